"""First floor: text meets weights. A model reads a text, layer by layer, and what its matrices see is kept or judged.

It asks a `quantize.sources.ModelSource` for matrices and opens no file of weights; `calibration.text` reads the
tokenizer files of a model. The verbs that use it are offered one floor up, in `gguf_export`.
"""
