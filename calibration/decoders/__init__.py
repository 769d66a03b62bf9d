"""Blocks decoded by torch where they lie, on a GPU or anywhere: bit for bit what `quantize.decoding` makes of them.

Pure functions of bytes, one module for each kind of layout; the layouts themselves are described in `quantize.blocks`.
No file, no tensor name.
"""

from __future__ import annotations

from calibration.decoders.decode import decode_blocks

__all__ = ["decode_blocks"]
