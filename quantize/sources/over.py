"""What a source that reads from another one takes over from it."""

from __future__ import annotations

from collections.abc import Sequence

from quantize.containers.keys import KeyValue
from quantize.hparams import Hparams
from quantize.sources.model_source import ModelSource

__all__ = ["Over"]


class Over:
    """A source over another one; what is missing of a `ModelSource` is for the heir to say."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    @property
    def hparams(self) -> Hparams:
        """Hyper-parameters of the source below."""
        return self._source.hparams

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read from the source below so far, by all threads."""
        return self._source.bytes_read

    def arch_keys(self) -> Sequence[KeyValue]:
        """The `{arch}.*` keys of the source below."""
        return self._source.arch_keys()

    def refuse_changed(self) -> None:
        """See `ModelSource.refuse_changed`: the files are those of the source below."""
        self._source.refuse_changed()
