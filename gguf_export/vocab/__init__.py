"""Tokenizer files become the tokenizer.* keys of a GGUF file, as llama.cpp's converter writes them.

Cutting text into tokens is `calibration.text`.
"""
