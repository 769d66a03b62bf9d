"""The verbs of the command line, a file each: they parse, call the library and print what it returns."""
