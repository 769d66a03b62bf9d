"""Text meets weights: the forward pass, importance matrices, perplexity."""
