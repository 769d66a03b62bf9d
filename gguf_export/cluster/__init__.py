"""Many machines through Ray, the only room that imports it: a connection, its nodes, and an engine that works on them.

Nothing here knows what the work is.
"""
