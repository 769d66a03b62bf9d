"""Texts become chunks of tokens: tokenizers, and the windows in which a model reads a text.

Nothing here knows a weight.
"""
