"""The model streamed layer by layer, expert by expert, over a text.

Each weight is read once, and once more on the way back. Observers see the inputs of each matrix, and on the way back
the gradients of its results; the statistics that they keep live in `importance` and `judging`, not here. The arithmetic
of a layer is in `layers`, without reading or observing.
"""

import os

# torch's matrix products in bfloat16 keep the code that was compiled for each number of rows, 0.65 MB of it, in two
# caches for 1,024 of them each (the one of oneDNN, and that of ideep around it). A pass has another number of rows for
# each expert of each layer, so nothing would be found there again. Compiling takes no time that could be measured.
for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(name, "64")
