"""One read of a checkpoint becomes one or several GGUF files.

`prepare` decides everything before a weight is read; `run` executes it slab by slab; `export` is both. A slab is some
rows of one expert of one tensor: it is read once, encoded for every file that wants it, and put at its offset. Slabs
are independent, so they are worked on by several threads (the kernels release the GIL) and memory in flight is a few
slabs whatever the size of the model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from calibration.imatrix import Imatrix
from gguf_export import metadata, names, vocab
from gguf_export.metadata import KeyValue
from gguf_export.writer import Sink, check_space, header
from quantize import encode
from quantize.blocks import block_format
from quantize.exceptions import CheckpointError, ImatrixError, OutputError
from quantize.layout import Plan, PlannedTensor
from quantize.progress import Progress, Report, silent
from quantize.recipe import Recipe
from quantize.recipe import plan as make_plan
from quantize.shards import Checkpoint
from quantize.tensors import NUMPY_TYPES, Array, QType, Rows, TensorSpec

SLAB_BYTES = 16 * 2**20
"""Source bytes of one slab, about: small enough for a few in flight, large enough that reading is sequential."""


@dataclass(frozen=True)
class OutputFile:
    """One file to be written, complete but for its weights."""

    path: Path
    plan: Plan
    keys: tuple[KeyValue, ...]

    @property
    def n_bytes(self) -> int:
        """Size of the whole file."""
        return len(header(self.keys, self.plan)) + self.plan.data_bytes


@dataclass(frozen=True)
class Export:
    """A prepared export: what will be read, what will be written, and with which importances."""

    checkpoint: Checkpoint
    files: tuple[OutputFile, ...]
    imatrix: Imatrix | None = None
    remarks: tuple[str, ...] = ()
    """What a careful reader wants to be told: fallbacks taken, settings that a GGUF cannot say."""

    def without_importance(self) -> list[str]:
        """Names of tensors that will be quantized although the importance matrix knows nothing of them."""
        if self.imatrix is None:
            return []
        wanted = {
            planned.spec.name: planned.spec
            for file in self.files
            for planned in file.plan.tensors
            if block_format(planned.qtype).uses_importance
        }
        return self.imatrix.missing(list(wanted.values()))


@dataclass
class Seconds:
    """Where the time of an export went; `read`, `encode` and `write` are summed over the threads."""

    wall: float = 0.0
    read: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def add(self, other: Seconds) -> None:
        """Add the times of one slab."""
        self.read += other.read
        self.encode += other.encode
        self.write += other.write


@dataclass(frozen=True)
class Exported:
    """What `run` did."""

    files: tuple[OutputFile, ...]
    bytes_read: int
    seconds: Seconds = field(compare=False)


@dataclass(frozen=True)
class Slab:
    """The unit of work: some rows of one expert of one tensor."""

    spec: TensorSpec
    xid: int
    rows: Rows


def prepare(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    folder: Path,
    *,
    imatrix: Imatrix | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    publisher: str | None = None,
) -> Export:
    """Plan the files; nothing is written and no weight is read.

    Args:
        checkpoint: the model.
        recipes: one for each file.
        folder: where the files go; with `publisher`, the root of LM Studio's models.
        imatrix: importances of the inputs, per tensor and expert.
        name: `general.name`, and the base of the file names; by default found as llama.cpp's converter finds it.
        override_kv: metadata to set, spelled KEY=TYPE:VALUE as llama-quantize takes it.
        pre: name of the pre-tokenizer, where it is not recognised.
        publisher: put the files where LM Studio looks: `folder/publisher/model/file.gguf`.

    Raises:
        MoeGgufError: a recipe, tokenizer, imatrix or setting that does not fit the model.
    """
    specs, hparams = checkpoint.specs(), checkpoint.hparams
    remarks = list(checkpoint.remarks)
    if imatrix is not None:
        remarks += imatrix.check(specs)
    overrides = [metadata.parse_override(text) for text in override_kv]
    keys = metadata.model_keys(
        checkpoint.path,
        checkpoint.config,
        hparams,
        n_params=metadata.count_params(specs),
        name=name,
        note=remarks.append,
    )
    keys += vocab.vocab_keys(checkpoint.path, checkpoint.config, hparams.n_vocab, pre, note=remarks.append)
    files = []
    for recipe in recipes:
        plan = make_plan(specs, hparams, recipe, has_imatrix=imatrix is not None)
        file_keys = metadata.assemble(keys, recipe.ftype.id, imatrix, overrides)
        file_name = names.output_name(keys, recipe.ftype.name)
        if publisher is None:
            path = folder / file_name
        else:
            path = names.lmstudio_path(folder, publisher, names.model_folder(keys), file_name)
        files.append(OutputFile(path, plan, tuple(file_keys)))
        _refuse_blind(plan, imatrix)
    if len({file.path for file in files}) < len(files):
        raise OutputError(f"{files[0].path}: two of the files would have the same name; give each type once")
    return Export(checkpoint, tuple(files), imatrix, tuple(remarks))


def _refuse_blind(plan: Plan, imatrix: Imatrix | None) -> None:
    """Some types are of no use without importances: llama-quantize refuses them, too."""
    for planned in plan.tensors:
        if planned.requires_imatrix and (imatrix is None or imatrix.importance(planned.spec.name, 0) is None):
            raise ImatrixError(
                f"{planned.spec.name}: {plan.ftype.name} makes it {planned.qtype.name}, which needs importances, and "
                "the importance matrix has none for it; give one that covers it, or another --tensor-type"
            )


def run(export: Export, *, jobs: int | None = None, force: bool = False, report: Report = silent) -> Exported:
    """Write the files of a prepared export.

    Args:
        export: what `prepare` returned.
        jobs: threads that read, encode and write; by default one for each processor.
        force: replace files that exist.
        report: called with the progress in bytes of the checkpoint.

    Raises:
        OutputError: a file exists already, or the disk is full. Nothing is left under the final names of files that
            are not whole.
        CheckpointError: a shard is damaged, or a weight is not a finite number.
    """
    started = time.monotonic()
    jobs = jobs or os.cpu_count() or 1
    for file in export.files:
        if file.path.exists() and not force:
            raise OutputError(f"{file.path}: exists already; pass --force to replace it")
        try:
            file.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{file.path.parent}: cannot be made: {error.strerror}") from error
    check_space((file.path.parent, file.n_bytes) for file in export.files)
    _compile_kernels(export, report)
    read_before = export.checkpoint.bytes_read
    seconds = Seconds()
    with ExitStack() as stack:
        sinks = [stack.enter_context(Sink(file.path, file.keys, file.plan)) for file in export.files]
        worker = _Worker(export, sinks)
        total, done = export.checkpoint.n_bytes, 0
        for slab, spent in _in_window(worker, list(_slabs(export.checkpoint)), jobs):
            seconds.add(spent)
            done += _source_bytes(slab)
            report(Progress("encoding", done, max(done, total)))
        for sink in sinks:
            sink.commit()
    seconds.wall = time.monotonic() - started
    return Exported(export.files, export.checkpoint.bytes_read - read_before, seconds)


class _Worker:
    """Reads, encodes and shelves one slab; called from several threads."""

    def __init__(self, export: Export, sinks: Sequence[Sink]) -> None:
        self._checkpoint = export.checkpoint
        self._imatrix = export.imatrix
        self._targets: dict[str, list[tuple[Sink, PlannedTensor]]] = {}
        for file, sink in zip(export.files, sinks, strict=True):
            for planned in file.plan.tensors:
                self._targets.setdefault(planned.spec.name, []).append((sink, planned))

    def __call__(self, slab: Slab) -> Seconds:
        spec, spent = slab.spec, Seconds()
        moment = time.perf_counter()
        weights = self._checkpoint.read(spec, slab.xid, slab.rows)
        spent.read = time.perf_counter() - moment
        refuse_non_finite(spec, slab, weights)
        importance = self._imatrix.importance(spec.name, slab.xid) if self._imatrix else None
        encoded: dict[QType, Array] = {}
        for sink, planned in self._targets[spec.name]:
            moment = time.perf_counter()
            if planned.qtype not in encoded:
                encoded[planned.qtype] = encode.encode(weights, planned.qtype, importance)
            blocks = encoded[planned.qtype]
            spent.encode += time.perf_counter() - moment
            moment = time.perf_counter()
            sink.write(planned, (slab.xid * spec.n_row + slab.rows[0]) * planned.row_bytes, blocks)
            spent.write += time.perf_counter() - moment
        return spent


def refuse_non_finite(spec: TensorSpec, slab: Slab, weights: Array) -> None:
    """Stop at a NaN or infinity, as llama-quantize does.

    Raises:
        CheckpointError: names the tensor, the expert and the place.
    """
    found = encode.first_non_finite(weights)
    if found is not None:
        row, column = divmod(found, spec.n_per_row)
        expert = f", expert {slab.xid}" if len(spec.shape) == 3 else ""
        raise CheckpointError(
            f"{spec.name}{expert}: row {slab.rows[0] + row}, column {column} is not a finite number; "
            "the checkpoint is damaged or the merge failed: fetch it or make it again"
        )


def _in_window(worker: _Worker, slabs: Sequence[Slab], jobs: int) -> Iterator[tuple[Slab, Seconds]]:
    """Work on slabs with `jobs` threads; at most two slabs per thread are waiting or in work."""
    pending: dict[Future[Seconds], Slab] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for slab in slabs:
                if len(pending) >= 2 * jobs:
                    yield from _collect(pending)
                pending[pool.submit(worker, slab)] = slab
            while pending:
                yield from _collect(pending)
        finally:
            # Without this an error or Ctrl-C would wait for slabs whose result nobody wants.
            pool.shutdown(wait=True, cancel_futures=True)


def _collect(pending: dict[Future[Seconds], Slab]) -> Iterator[tuple[Slab, Seconds]]:
    finished, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in finished:
        yield pending.pop(future), future.result()


def _slabs(checkpoint: Checkpoint) -> Iterator[Slab]:
    for spec in checkpoint.specs():
        group = checkpoint.row_step(spec)
        step = max(1, SLAB_BYTES // (group * encode.row_bytes(spec.qtype, spec.n_per_row))) * group
        for xid in range(spec.n_expert):
            for first in range(0, spec.n_row, step):
                yield Slab(spec, xid, (first, min(first + step, spec.n_row)))


def _source_bytes(slab: Slab) -> int:
    return encode.row_bytes(slab.spec.qtype, slab.spec.n_per_row) * (slab.rows[1] - slab.rows[0])


def _compile_kernels(export: Export, report: Report) -> None:
    """Compile before the first slab, so that the first run says what it is doing while it does."""
    wanted = set()
    for file in export.files:
        for planned in file.plan.tensors:
            known = export.imatrix is not None and export.imatrix.importance(planned.spec.name, 0) is not None
            wanted.add((NUMPY_TYPES[planned.spec.qtype], planned.qtype, known))
    encode.compile_kernels(sorted(wanted, key=str), report)
