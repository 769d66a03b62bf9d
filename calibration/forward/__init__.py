"""The model streamed layer by layer, expert by expert, over a text.

Each weight is read once, and observers see the inputs of each matrix. The statistics that they keep live in
`importance` and `judging`, not here; the arithmetic of a layer is in `layers`, without reading or observing.
"""
