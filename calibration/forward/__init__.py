"""The model streamed layer by layer, expert by expert, over a text.

Each weight is read once, and once more on the way back. Observers see the inputs of each matrix, and on the way back
the gradients of its results; the statistics that they keep live in `importance` and `judging`, not here. The arithmetic
of a layer is in `layers`, without reading or observing.
"""
