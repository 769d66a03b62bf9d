"""Statistics of the activations that reach a matrix: importance matrices, and the observers that collect them.

Nothing here judges a file.
"""
