"""Statistics of the activations that reach a matrix: importance matrices, and the observers that collect them.

Gradients say besides what each type would cost each tensor, and how much each token counts. Nothing here judges a file.
"""
