"""Texts become chunks of tokens: vocabularies of folders and GGUF files, tokenizers, and the windows of a text.

Everything that is read of a vocabulary is read here, once. Nothing here knows a weight.
"""
