"""The heavy imports of a verb."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from quantize.tracing import span

__all__ = ["importing"]


@contextmanager
def importing() -> Iterator[None]:
    """Within the block modules are imported, and no garbage is looked for, nor later in what they define.

    Nothing of a module is garbage, and looking through all that numba and NumPy define takes a sixth of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        with span("import"):
            yield
    finally:
        if not gc.get_freeze_count():  # once in a process
            gc.freeze()
        if was_on:
            gc.enable()
