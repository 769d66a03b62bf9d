"""Blocks become a file: metadata, the GGUF writer, exports and the command line."""
