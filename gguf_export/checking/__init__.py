"""Whether something is as it should be: `doctor` before the work, `verify` after it, `inspect` at any time.

Nothing here changes a file.
"""
