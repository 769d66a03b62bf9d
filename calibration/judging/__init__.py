"""How good a model is on a text: perplexity, KL divergence, output errors, several models side by side.

Nothing here prints or draws, or opens a model's files; what was measured is handed on as plain numbers.
"""
