"""config.json, model card and folder name become the general.* and {arch}.* keys of a GGUF file, and its name.

Tokens are next door, in `vocab`.
"""
