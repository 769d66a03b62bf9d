"""Writing files so that nothing is lost: one way to open them, locks, atomic replacement, durable writes, free space.

Nothing here knows what the bytes mean.
"""
