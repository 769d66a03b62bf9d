"""Numbers become blocks: checkpoints, block formats, recipes, error measures."""
