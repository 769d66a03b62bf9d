"""A plan, a source and importances become files: slabs in flight, a journal of what is done, going on after a kill.

Nothing here judges what was written.
"""
