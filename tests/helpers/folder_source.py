"""A source of tensors that can be sent to another process: it opens its checkpoint where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quantize.hparams import Hparams
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.tensors import Array, Rows, TensorSpec


@dataclass(frozen=True)
class FolderSource:
    path: Path

    @cached_property
    def opened(self) -> Checkpoint:
        return open_checkpoint(self.path)

    @property
    def hparams(self) -> Hparams:
        return self.opened.hparams

    def specs(self) -> Sequence[TensorSpec]:
        return self.opened.specs()

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        return self.opened.read(spec, xid, rows)

    def __reduce__(self) -> Any:
        return FolderSource, (self.path,)
