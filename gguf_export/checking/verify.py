"""Whether a GGUF file can be trusted: its structure, its numbers, and what it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix
from gguf_export.checking.against import check_against
from gguf_export.checking.checksums import check_sum
from gguf_export.checking.file_check import IMATRIX_KEY, Level, follows_from_weights
from gguf_export.checking.findings import Finding, Findings, info
from gguf_export.checking.key_checks import check_keys
from gguf_export.checking.remedies import FETCH
from gguf_export.checking.stored_numbers import check_numbers
from gguf_export.checking.structure import check_structure
from quantize.containers.untrusted import quoted
from quantize.engine import Engine, Threads
from quantize.exceptions import GGUFError
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import OnProgress, silent

__all__ = ["verify"]


def verify(
    path: str | Path,
    *,
    against: str | Path | Checkpoint | None = None,
    level: Level = "auto",
    imatrix: str | Path | Imatrix | None = None,
    prior: float = 0.0,
    sums: bool = False,
    jobs: int | None = None,
    engine: Engine | None = None,
    progress: OnProgress = silent,
) -> Findings:
    """Look for everything that can be wrong with a GGUF file, whoever made it.

    Args:
        path: the file.
        against: the checkpoint that it was made from, or its folder; every expert of every tensor is compared with it.
        level: how strictly quantized tensors are compared with the checkpoint. "bytes": they must be what llama.cpp
            makes of it with `imatrix`. "auto": bytes are compared where the importances are known (`imatrix` is given,
            or the file names none), and may be those of another program. "errors": errors and codes are compared, and
            bytes only of types that know no importances.
        imatrix: the importances with which the file was made, or their file; None for none.
        prior: as in export, where `imatrix` is a file.
        sums: check the file by the SHA256SUMS beside it, too; a file that is not listed there is added.
        jobs: threads that compare, by default one for each processor.
        engine: compares in the place of threads.
        progress: called with the progress of each stage.

    Returns:
        The findings; a healthy file has neither errors nor warnings.

    Raises:
        CheckpointError, ImatrixError: `against` or `imatrix` cannot be read, or do not go together.
        GGUFError: the file or its SHA256SUMS cannot be hashed or read.
        ModelChangedError: the file or the checkpoint changed meanwhile: nothing that was found holds.
        OutputError: SHA256SUMS cannot be written.

    >>> from gguf_export import export
    >>> file = export(demo_model, "Q4_0", folder).files[0].path
    >>> verify(file, against=demo_model).summary()
    'nothing is wrong'
    """
    path = Path(path)
    checkpoint = open_checkpoint(against) if isinstance(against, (str, Path)) else against
    importances = load_imatrix(imatrix, prior=prior) if isinstance(imatrix, (str, Path)) else imatrix
    with nullcontext(engine) if engine is not None else Threads(jobs) as workers:
        findings = _check(path, checkpoint, level, importances, workers, progress)
    if sums:
        findings.append(check_sum(path, progress))
    return Findings(findings)


def _check(
    path: Path,
    checkpoint: Checkpoint | None,
    level: Level,
    imatrix: Imatrix | None,
    engine: Engine,
    progress: OnProgress,
) -> list[Finding]:
    try:
        file = GGUFFile(path)
    except GGUFError as fault:
        return [Finding.of(fault, remedy="give a GGUF file", place=str(path))]
    findings: list[Finding] = []
    try:
        findings += check_structure(file)
        findings += check_numbers(file, progress)
        if checkpoint is not None:
            findings += check_keys(file, checkpoint)
            findings += check_against(
                file, checkpoint, engine, level=level, imatrix=imatrix, progress=progress
            )
        file.refuse_changed()
        if checkpoint is not None:
            checkpoint.refuse_changed()
    except GGUFError as fault:  # what was found before it stays
        return [*findings, Finding.of(fault, remedy=FETCH, place=str(path))]
    if checkpoint is not None and level != "errors" and imatrix is None:
        findings += _unused_imatrix(file)
    return findings


def _unused_imatrix(file: GGUFFile) -> Iterator[Finding]:
    """Says that a file was made with importances that were not given, where they would allow a sharper comparison."""
    qtypes = {stored.spec.qtype for stored in file.tensors.values()}
    if IMATRIX_KEY in file.keys and not all(map(follows_from_weights, qtypes)):
        yield info(
            IMATRIX_KEY,
            f"the file was made with {quoted(file.keys[IMATRIX_KEY])} and compared without: by errors, and by the "
            "codes of K types, IQ4_NL and IQ4_XS, which may miss a low bit of a scale",
            "name that file as {setting} to compare every byte",
            setting="imatrix",
        )
