"""Outputs that stand already: whether a file is what an export would make, without making it.

Keys, tensor infos and length are compared whole: they are known before the first weight is read. Of the weights some
rows of every tensor are encoded anew, spread over all experts, which tells another model, another importance matrix or
another prior; that all bytes are right is for `verify` to say. Where importances are still to come from a text, tensors
that they weigh are compared with those that an earlier run has kept, and left out where there are none.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix
from gguf_export.files.opening import status_of
from gguf_export.writing.job import ExportJob, OutputFile
from gguf_export.writing.slabs import Slab, SlabUnit, compile_kernels, encode_slab
from quantize.blocks import block_format, can_encode
from quantize.containers.gguf import read_container
from quantize.containers.keys import Numbers
from quantize.containers.untrusted import printable
from quantize.exceptions import GGUFError, ImatrixError
from quantize.recipes.layout import PlannedTensor
from quantize.telling import OnProgress, silent
from quantize.tensors import NUMPY_TYPES

__all__ = ["Coming", "Standing"]

MAX_WEIGHTS = 2**22
"""Weights of a file that are encoded anew at most, beside one piece of each tensor: less than a second's work."""


@dataclass(frozen=True)
class Coming:
    """What is to come from a text while the files are made: importances, or the codes themselves."""

    fingerprint: str
    """A hash of all that decides it."""
    texts: tuple[Path, ...] = ()
    kept: Path | None = None
    """The file that keeps the importances."""
    moves_codes: bool = False


@dataclass(frozen=True)
class Standing:
    """Compares what stands under the names of an export's outputs with what would be made."""

    job: ExportJob
    coming: Coming | None = None
    progress: OnProgress = silent

    def differs(self, file: OutputFile, imatrix: Imatrix | None) -> str:
        """What tells a file from the one that would be made, as a phrase; "" where nothing does.

        Args:
            file: one of the files, under whose name something is.
            imatrix: the importances, as far as they are known: those of the job, or those that a text has given.

        Raises:
            MoeGgufError: the model cannot be read.
        """
        status = status_of(file.path)
        if status is None or file.path.is_symlink() or not file.path.is_file():
            return "is no plain file"
        try:
            with file.path.open("rb") as stored:
                if stored.read(len(file.header)) != file.header:
                    return _other_header(file)
                if status.st_size != file.n_bytes:
                    return f"has {status.st_size:,} bytes, not {file.n_bytes:,}"
                return self._other_rows(file, stored, imatrix) or self._newer(file.path)
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    def kept_importances(self) -> tuple[Imatrix | None, str]:
        """The importances that an earlier run has kept, and, where others are kept there, what differs."""
        expected, coming = self.job.imatrix, self.coming
        if expected is None or coming is None or coming.kept is None or status_of(coming.kept) is None:
            return None, ""
        try:
            kept = load_imatrix(coming.kept, prior=expected.prior)
        except ImatrixError as fault:
            return None, fault.message
        shapes = {name: entry.sums.shape for name, entry in kept.entries.items()}
        if any(shapes.get(name) != entry.sums.shape for name, entry in expected.entries.items()):
            return None, "is of another model"
        made_of = [(one.datasets, one.chunk_count, one.chunk_size) for one in (kept, expected)]
        if kept.legacy or made_of[0] != made_of[1]:
            return None, "is of another text, or of other chunks of it"
        if newer := self._newer(coming.kept):
            return None, newer
        return replace(kept, entries={name: kept.entries[name] for name in expected.entries}), ""

    def _newer(self, made: Path) -> str:
        """The first text that was changed after a file was made, as a phrase."""
        texts = self.coming.texts if self.coming else ()
        made_at = made.stat().st_mtime_ns
        newer = [path for path in texts if path.stat().st_mtime_ns > made_at]
        return f"{printable(newer[0].name)} was changed after it was made" if newer else ""

    def _other_rows(self, file: OutputFile, stored: io.BufferedReader, imatrix: Imatrix | None) -> str:
        known = [planned for planned in file.plan.tensors if self._is_known(planned, imatrix)]
        compile_kernels([replace(file.plan, tensors=tuple(known))], self.job.weighted, self.progress)
        pieces = list(_some_rows(self.job, known))
        every = -(-sum(slab.n_row * planned.spec.n_per_row for planned, slab in pieces) // MAX_WEIGHTS)
        for index, (planned, slab) in enumerate(pieces):
            if index % every and slab.xid:  # of each tensor one piece at least
                continue
            guide = imatrix.guide(planned.spec.name, slab.xid) if imatrix else None
            unit = SlabUnit(self.job.source, slab, (planned.qtype,), guide)
            made = encode_slab(unit).blocks[planned.qtype]
            stored.seek(len(file.header) + planned.offset + slab.offset_in(planned))
            if stored.read(made.nbytes) != made.tobytes():
                return f"holds other weights in {printable(planned.spec.label(slab.xid))}"
        return ""

    def _is_known(self, planned: PlannedTensor, imatrix: Imatrix | None) -> bool:
        """Whether the bytes of a tensor follow from what is known."""
        if planned.qtype == planned.spec.qtype or planned.qtype in NUMPY_TYPES:
            return True
        if self.coming is None or not can_encode(planned.qtype):
            return can_encode(planned.qtype)
        if self.coming.moves_codes:
            return False
        is_weighed = planned.spec.name in self.job.weighted and block_format(planned.qtype).uses_importance
        return imatrix is not None or not is_weighed


def _other_header(file: OutputFile) -> str:
    """What differs in keys and tensor infos."""
    try:
        found = read_container(file.path, GGUFError)
    except GGUFError as fault:
        return f"cannot be read as a GGUF file ({fault.message})"
    wanted = {kv.key: kv.value for kv in file.keys}
    for key in [*wanted, *found.keys]:
        if key not in found.keys or key not in wanted:
            return f"{'lacks' if key in wanted else 'has'} the key {printable(key)}"
        if not _is_equal(wanted[key], found.keys[key]):
            return f"has another {printable(key)}{_values(wanted[key], found.keys[key])}"
    for planned in file.plan.tensors:
        stored = found.tensors.get(planned.name)
        if stored is None:
            return f"lacks the tensor {printable(planned.name)}"
        if stored.spec.qtype != planned.qtype:
            return f"has {printable(planned.name)} as {stored.spec.qtype.name}, not {planned.qtype.name}"
    return "has other keys or tensors"


def _is_equal(one: object, other: object) -> bool:
    plain = [value.tolist() if isinstance(value, Numbers) else value for value in (one, other)]
    if any(isinstance(value, float) for value in plain):  # stored in 32 bits
        return str(np.float32(plain[0])) == str(np.float32(plain[1]))  # type: ignore[arg-type]
    return bool(plain[0] == plain[1])


def _values(wanted: object, found: object) -> str:
    """Both values, where they are short."""
    texts = [printable(str(value)) for value in (found, wanted)]
    return f": {texts[0]}, not {texts[1]}" if all(len(text) <= 40 for text in texts) else ""


def _some_rows(job: ExportJob, tensors: Sequence[PlannedTensor]) -> Iterator[tuple[PlannedTensor, Slab]]:
    """Of each matrix the fewest rows that can be read, where they lie changes from matrix to matrix."""
    for planned in tensors:
        spec = planned.spec
        step = job.source.row_step(spec)
        n_step = max(1, spec.n_row // step)
        for xid in range(spec.n_matrix):
            first = (xid * 7919 + 13) % n_step * step
            yield planned, Slab(spec, xid, (first, min(first + step, spec.n_row)))
