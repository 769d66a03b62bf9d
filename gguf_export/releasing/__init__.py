"""The folder that is published: files, card, plots, sums and what reproduces them, made from what other rooms measure.

Nothing here quantizes, measures or prints: each step is a call of another room, and a record tells which are done.
"""
