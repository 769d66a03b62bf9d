"""Models that tensors are read from: the checkpoint of Hugging Face, a finished GGUF file.

All offer the same questions (`model_source.ModelSource`); the round trip of `calibration.judging` does, too. Nothing
here encodes a weight or writes a file.
"""
