"""How good a model is on a text: perplexity, KL divergence, output errors, several models side by side.

Nothing here prints or draws; what was measured is handed on as plain numbers.
"""
