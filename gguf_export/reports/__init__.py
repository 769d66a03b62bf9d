"""Pages, tables and plots of what was measured.

Nothing here measures: a report takes finished numbers and gives text.
"""
