"""A vocabulary becomes the tokenizer.* keys of a GGUF file, as llama.cpp's converter writes them.

Reading vocabularies and cutting text into tokens are `calibration.text`.
"""
