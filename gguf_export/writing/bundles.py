"""Slabs in bundles, the units of work for other machines: read, encoded and written where they are done.

What comes back of a bundle is where its pieces lie and their checksums, and only from a machine that does not see the
files the blocks themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gguf_export.cluster.engine import Shared, this_node
from gguf_export.files.durable import Piece
from gguf_export.files.shared_file import OutputNotSeenError, SharedFile
from gguf_export.writing.results import Seconds
from gguf_export.writing.slabs import Slab, SlabUnit, encode_slab
from quantize.exceptions import MoeGgufError
from quantize.guide import Guide
from quantize.sources.model_source import ModelFile
from quantize.tensors import Array, QType

__all__ = ["BUNDLE_BYTES", "Bundle", "BundleDone", "BundledSlab", "bundled", "do_bundle"]

BUNDLE_BYTES = 64 * 2**20
"""The most source bytes of one bundle: half a second of encoding, beside which its way through the driver is little
(`scripts/simulate_cluster`), and little is lost with a node."""

PER_CPU = 4
"""Bundles that each processor gets at least: the last ones do not end together."""


class BundledSlab(NamedTuple):
    """A slab, and where its blocks go: for each file that lacks it its index, the offset there, the type."""

    slab: Slab
    targets: tuple[tuple[int, int, QType], ...]


class Bundle(NamedTuple):
    """A unit of work: all that `do_bundle` takes; it can be pickled."""

    source: Shared[ModelFile]
    files: Mapping[int, SharedFile]
    guides: Mapping[tuple[str, int], Guide | None]
    """Of each expert that the slabs are of, by the tensor's name: the guide of a matrix is small beside its rows."""
    slabs: tuple[BundledSlab, ...]


@dataclass
class BundleDone:
    """What became of a bundle."""

    node: str
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    """By the index of the file: what was written, durably."""
    blocks: dict[int, list[tuple[int, Array]]] = field(default_factory=dict)
    """By the index of the file, where this machine does not see it: (offset, bytes) of each piece."""
    bytes_read: int = 0
    seconds: Seconds = field(default_factory=Seconds)


def bundled(slabs: Sequence[Slab], of: Callable[[list[Slab]], Bundle], n_cpu: int) -> Iterator[Bundle]:
    """Bundles of slabs that follow each other: of `BUNDLE_BYTES`, or less where they would not busy all processors."""
    most = min(BUNDLE_BYTES, sum(slab.n_bytes for slab in slabs) // (PER_CPU * n_cpu))
    together: list[Slab] = []
    size = 0
    for slab in slabs:
        if together and size + slab.n_bytes > most:
            yield of(together)
            together, size = [], 0
        together.append(slab)
        size += slab.n_bytes
    if together:
        yield of(together)


def do_bundle(bundle: Bundle) -> BundleDone:
    """Read and encode the slabs of a bundle, and put their blocks into the files.

    Raises:
        MoeGgufError: the model cannot be opened or read on this machine, or a weight is not finite.
        OutputError: the disk is full or broken.
    """
    source = _opened(bundle.source)
    done = BundleDone(this_node())
    blocks: dict[int, list[tuple[int, Array]]] = {}
    read_before = source.bytes_read
    for slab, targets in bundle.slabs:
        guide = bundle.guides.get((slab.spec.name, slab.xid))
        qtypes = tuple(dict.fromkeys(qtype for _, _, qtype in targets))
        encoded = encode_slab(SlabUnit(source, slab, qtypes, guide))
        done.seconds.add(Seconds(read=encoded.read_seconds, encode=encoded.encode_seconds))
        for file, offset, qtype in targets:
            blocks.setdefault(file, []).append((offset, encoded.blocks[qtype]))
    done.bytes_read = source.bytes_read - read_before
    started = time.perf_counter()
    for file, pieces in blocks.items():
        pieces.sort(key=lambda piece: piece[0])
        try:
            done.pieces[file] = bundle.files[file].write(pieces)
        except OutputNotSeenError:
            done.blocks[file] = pieces
    done.seconds.add(Seconds(write=time.perf_counter() - started))
    return done


def _opened(shared: Shared[ModelFile]) -> ModelFile:
    try:
        return shared.value
    except MoeGgufError as fault:
        remedy = "put the model where all nodes see it, under the same path"
        raise type(fault)(fault.place, f"cannot be opened here: {fault.message}", remedy) from None
