"""The model streamed layer by layer, expert by expert, over a text.

Each weight is read once; observers see the inputs of each matrix. What is kept of them lives in `importance` and
`judging`, not here.
"""
