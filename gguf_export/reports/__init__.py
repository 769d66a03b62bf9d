"""Pages, tables and plots of what was measured. A report takes finished numbers; nothing here measures.

`compare_*` and `error_*` choose what is shown, as plain data of `pages`, `heat_maps` and `plots`. `rendering` makes
HTML of it with the templates beside it; `drawing` makes pictures, on the matplotlib that `canvas` prepares.
"""
