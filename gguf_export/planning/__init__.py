"""Where bytes matter: tensor types are chosen under a budget of bytes by what they cost on a text, and judged on it.

The costs come from `calibration.importance`, the choice from `quantize.recipes`; what is chosen is a recipe like any
other, and `writing` makes the file.
"""
