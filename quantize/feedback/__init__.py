"""Rounding that knows what the errors of a matrix do together: error feedback, and descent over all parts of blocks.

Arrays alone: which tokens the moments are of, and how strongly they are trusted, is `calibration.feedback`'s business.
"""
