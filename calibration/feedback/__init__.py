"""Error feedback: two streams go through the model, the original and the one that is quantized on the way.

What a matrix of the second stream sees, and what it lacks against the first, becomes moments, and from these the
blocks are chosen. How blocks are moved is `quantize.feedback`'s business; files are nobody's here.
"""
