"""What the blocks of the finished files cost each expert: report/errors.html, and a figure for each expert of the card.

No weight is encoded: the blocks are read from the files. Some of the calibration text counts the tokens, and as much of
the held-out text, evenly spread, gives the inputs on which outputs are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import median

from calibration.judging.encoding_errors import ErrorSettings
from calibration.judging.matrix_errors import ErrorReport
from calibration.text.text_settings import TextSettings
from gguf_export.comparing.errors import errors
from gguf_export.files.opening import status_of
from gguf_export.files.replacing import write_text
from gguf_export.releasing.job import ReleaseJob
from gguf_export.releasing.record import ExpertErrors, Record
from gguf_export.reports.error_report import errors_html
from gguf_export.writing.results import FileFigures
from quantize.engine import Threads
from quantize.recipes.ftypes import ftype
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import Note, OnProgress
from quantize.tensors import Array, QType, Rows, TensorSpec

__all__ = ["ERRORS_HTML", "N_CHUNK", "N_JUDGED", "calibration_text", "measure_errors_of_files"]

ERRORS_HTML = "report/errors.html"
N_CHUNK = 32
"""Chunks of either text: the medians of matrices settle long before the figures of whole models do."""
N_JUDGED = 256
"""Inputs of a matrix on which its outputs are compared."""


def measure_errors_of_files(
    job: ReleaseJob, files: Sequence[FileFigures], record: Record, progress: OnProgress, note: Note
) -> None:
    """Write report/errors.html and keep the medians by expert in the record; nothing is done where they stand.

    Raises:
        MoeGgufError: see `comparing.errors.errors`.
        OutputError: the page cannot be written.
    """
    path = job.folder / ERRORS_HTML
    key = _key(job, files, record)
    if record.errors is not None and record.errors.key == key and status_of(path) is not None:
        return
    settings = job.settings
    blocks = _FileBlocks([GGUFFile(file.path) for file in files])
    with Threads(settings.jobs) as engine:
        report = errors(
            job.model,
            calibration_text(job, min(N_CHUNK, settings.n_chunk or N_CHUNK)),
            ErrorSettings(
                tuple(ftype(file.ftype) for file in files),
                baseline=False,
                n_judged=N_JUDGED,
                stored=blocks.read,
            ),
            held_out=[text.path for text in job.judges],
            engine=engine,
            progress=progress,
            note=note,
        )
    write_text(path, errors_html(report))
    record.errors = ExpertErrors(key, {name: _medians(report, name) for name in report.qtypes})
    record.save()


def calibration_text(job: ReleaseJob, n_chunk: int | None) -> TextSettings:
    """The first chunks of the calibration text."""
    return TextSettings(
        tuple(text.path for text in job.texts),
        tuple(text.path for text in job.prompts),
        n_chunk=n_chunk,
        chat_template=job.settings.chat_template,
    )


class _FileBlocks:
    """The blocks of finished files: of those that have a tensor in one type, any has the same."""

    def __init__(self, files: Sequence[GGUFFile]) -> None:
        self._stored: dict[tuple[str, QType], GGUFFile] = {}
        for file in files:
            for name, stored in file.tensors.items():
                self._stored.setdefault((name, stored.spec.qtype), file)

    def read(self, spec: TensorSpec, xid: int, rows: Rows, qtype: QType) -> Array | None:
        """See `encoding_errors.Blocks`."""
        file = self._stored.get((spec.name, qtype))
        return None if file is None else file.read_blocks(file.tensors[spec.name].spec, xid, rows)


def _medians(report: ErrorReport, name: str) -> tuple[float | None, ...]:
    """For each expert the median output error of its matrices in a file type; None where no held-out token came."""
    found: list[list[float]] = [[] for _ in range(report.n_expert)]
    for row in report.of(name):
        if row.xid is not None and row.errors.nmse is not None:
            found[row.xid].append(row.errors.nmse)
    return tuple(median(each) if each else None for each in found)


def _key(job: ReleaseJob, files: Sequence[FileFigures], record: Record) -> str:
    """One hash of all that decides the page."""
    told = [job.judged_by, job.settings.n_chunk, [text.sha256 for text in (*job.texts, *job.prompts)]]
    names = [record.name_of(file.path) for file in files]
    sums = [record.files[name].parts(name) for name in sorted(names)]
    return hashlib.sha256(repr([told, sums]).encode()).hexdigest()
