"""An export whose bundles are done by the nodes of a Ray cluster, which write into the files themselves."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from gguf_export.cluster.connection import Cluster, connected
from gguf_export.cluster.engine import RayEngine, Shared
from gguf_export.files.durable import Piece, confirmed, disk_errors
from gguf_export.files.shared_file import SharedFile
from gguf_export.files.sizes import size_in_words
from gguf_export.writing.bundles import Bundle, BundleDone, BundledSlab, bundled, do_bundle
from gguf_export.writing.job import ExportJob
from gguf_export.writing.open_files import OpenFiles
from gguf_export.writing.results import Seconds
from gguf_export.writing.sink import Sink
from gguf_export.writing.slabs import Slab
from quantize.exceptions import OutputError
from quantize.sources.model_source import ModelFile
from quantize.telling import Note, OnProgress, Progress, Remark

__all__ = ["Written", "spread"]


class Written(NamedTuple):
    """Some slabs that are in all files."""

    n_bytes: int
    """Of its slabs, as the source stores them."""
    seconds: Seconds
    bytes_read: int
    """By other machines, of which the source here knows nothing."""


def spread(
    job: ExportJob,
    files: OpenFiles,
    slabs: Sequence[Slab],
    address: str,
    *,
    jobs: int | None,
    progress: OnProgress,
    note: Note,
) -> Generator[Written, None, None]:
    """Yield each bundle of slabs when its pieces are in the files and their sinks know it.

    Args:
        job: the export.
        files: open, and lacking these slabs.
        slabs: what is to be done.
        address: of the cluster (`cluster.connection.connected`).
        jobs: bundles in work at once; by default one for each processor of the cluster.
        progress: told of the connection.
        note: told which nodes are gone, what was done again, and what came back to be written here.

    Raises:
        ChoiceError: see `connected` and `RayEngine.map`.
        MoeGgufError: see `do_bundle`.
        OutputError: what a node has written is not here.
    """
    progress(Progress("connecting to ray", 0, 1, "clusters"))
    with connected(address, n_cpu=jobs) as cluster:
        progress(Progress("connecting to ray", 1, 1, "clusters"))
        engine = RayEngine(cluster, jobs=jobs, note=note)
        taker = _Taker(files.sinks, cluster, note)
        giver = _Giver(job, files, engine, taker.files)
        try:
            with closing(engine.map(do_bundle, bundled(slabs, giver.bundle, cluster.n_cpu))) as ended:
                for bundle, done in ended:
                    taker.take(done)
                    n_bytes = sum(slab.n_bytes for slab, _ in bundle.slabs)
                    yield Written(n_bytes, done.seconds, done.bytes_read)
        finally:
            taker.remark()


class _Giver:
    """Makes bundles of slabs."""

    def __init__(
        self, job: ExportJob, files: OpenFiles, engine: RayEngine, shared: Mapping[int, SharedFile]
    ) -> None:
        self._job, self._files, self._engine, self._shared = job, files, engine, shared
        self._source: Shared[ModelFile] = engine.share(job.source)
        self._index = {id(sink): i for i, sink in enumerate(files.sinks)}

    def bundle(self, slabs: Sequence[Slab]) -> Bundle:
        guides = {}
        if (imatrix := self._job.imatrix) is not None:
            matrices = dict.fromkeys((slab.spec.name, slab.xid) for slab in slabs)
            guides = {matrix: imatrix.guide(*matrix) for matrix in matrices}
        return Bundle(self._source, self._shared, guides, tuple(map(self._bundled, slabs)))

    def _bundled(self, slab: Slab) -> BundledSlab:
        return BundledSlab(
            slab,
            tuple(
                (
                    self._index[id(sink)],
                    sink.place(planned, slab.offset_in(planned)),
                    planned.qtype,
                )
                for sink, planned in self._files.lacking(slab)
            ),
        )


class _Taker:
    """Takes what comes back of bundles: sinks get to know the pieces, and blocks are written here."""

    def __init__(self, sinks: Sequence[Sink], cluster: Cluster, note: Note) -> None:
        self._sinks, self._cluster, self._note = sinks, cluster, note
        self.files = {i: sink.shared() for i, sink in enumerate(sinks) if not sink.is_whole}
        self._proven: set[str] = set()
        self._unseen: set[str] = set()
        self._n_returned = 0

    def take(self, done: BundleDone) -> None:
        """Note the pieces of a bundle, and write the blocks that came back."""
        for i, pieces in done.pieces.items():
            self._prove(done.node, self._sinks[i], pieces)
            self._sinks[i].take(pieces)
        for i, blocks in done.blocks.items():
            # As the nodes write, and not through the sink: see `files.shared_file` on neighbours in a page.
            self._sinks[i].take(self.files[i].write(blocks))
            self._unseen.add(done.node)
            self._n_returned += sum(block.nbytes for _, block in blocks)

    def remark(self) -> None:
        """Say what came back."""
        if self._unseen:
            what = f"{len(self._unseen)} ray node{'s do' if len(self._unseen) > 1 else ' does'} not see the folder"
            message = f"{what}: {size_in_words(self._n_returned)} came back and were written by this machine"
            remedy = "a folder that all nodes see under the same path would spare them the way"
            self._note(Remark(str(self._sinks[0].path.parent), message, remedy))

    def _prove(self, node: str, sink: Sink, pieces: Sequence[Piece]) -> None:
        """Look once for each node whether what it writes is here: a folder may look the same and be another."""
        if node in self._proven:
            return
        with disk_errors(sink.partial, sink.n_bytes):
            if not confirmed(sink.partial, pieces[:1]):
                name = next((known.name for known in self._cluster.nodes() if known.id == node), node)
                raise OutputError(
                    str(sink.partial),
                    f"what ray node {name} has written into it is not here",
                    "put the files into a folder that all nodes share, under the same path",
                )
        self._proven.add(node)
