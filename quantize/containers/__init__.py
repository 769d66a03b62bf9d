"""Files of strangers, read with suspicion: JSON and YAML, safetensors shards, the GGUF container.

Every length is checked against the file before memory is taken. Nothing here knows what a model is.
"""
