"""Writing files so that nothing is lost: locks, atomic replacement, durable writes, free space.

Nothing here knows what the bytes mean.
"""
