"""Whether a GGUF file can be trusted: its structure, its numbers, and what it was made from."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import nullcontext
from pathlib import Path

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix
from gguf_export.checking.against import check_against
from gguf_export.checking.checksums import check_sum
from gguf_export.checking.file_check import IMATRIX_KEY, Level, follows_from_weights
from gguf_export.checking.file_hashes import FileHashes
from gguf_export.checking.findings import Finding, Findings, error, info
from gguf_export.checking.key_checks import check_keys
from gguf_export.checking.left_out import in_numbers_of, n_layers
from gguf_export.checking.remedies import FETCH
from gguf_export.checking.stored_numbers import check_numbers
from gguf_export.checking.structure import check_structure
from gguf_export.metadata.feedback_keys import has_feedback
from quantize.containers.gguf_parts import leading_part
from quantize.containers.untrusted import quoted
from quantize.engine import Engine, Threads
from quantize.exceptions import GGUFError
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelFile, open_stored
from quantize.telling import OnProgress, silent

__all__ = ["verified_with", "verify"]


def verify(
    path: str | Path,
    *,
    against: str | Path | ModelFile | None = None,
    level: Level = "auto",
    imatrix: str | Path | Imatrix | None = None,
    prior: float = 0.0,
    prune_layers: Collection[int] = (),
    sums: bool = False,
    digests: dict[Path, str] | None = None,
    jobs: int | None = None,
    engine: Engine | None = None,
    progress: OnProgress = silent,
) -> Findings:
    """Look for everything that can be wrong with a GGUF file, whoever made it.

    Args:
        path: the file, of one that is split the first part: all parts are checked, then. A later part is checked for
            itself.
        against: the checkpoint or GGUF file that it was made from, or its path; every expert of every tensor is
            compared with it.
        level: how strictly quantized tensors are compared with the source. "bytes": they must be what llama.cpp
            makes of it with `imatrix`. "auto": bytes are compared where the importances are known (`imatrix` is given,
            or the file names none), and may be those of another program. "errors": errors and codes are compared, and
            bytes only of types that know no importances.
        imatrix: the importances with which the file was made, or their file; None for none.
        prior: as in export, where `imatrix` is a file.
        prune_layers: the layers of `against` that were left out of the file.
        sums: check the file, and all its parts, by the SHA256SUMS beside it, too, from the same read; what is not
            listed there is added.
        digests: is given the SHA-256 of the file, and of all its parts, from the same read; of a file that cannot be
            read whole it is given none.
        jobs: threads that compare, by default one for each processor.
        engine: compares in the place of threads.
        progress: called with the progress of each stage.

    Returns:
        The findings; a healthy file has neither errors nor warnings.

    Raises:
        CheckpointError, GGUFError, ImatrixError: `against` or `imatrix` cannot be read, or do not go together.
        GGUFError: the file or its SHA256SUMS cannot be hashed or read.
        ModelChangedError: the file or its source changed meanwhile: nothing that was found holds.
        OutputError: SHA256SUMS cannot be written.

    >>> from gguf_export import export
    >>> file = export(demo_model, "Q4_0", folder).files[0].path
    >>> verify(file, against=demo_model).summary()
    'nothing is wrong'
    """
    path = Path(path)
    source = open_stored(against) if isinstance(against, (str, Path)) else against
    importances = load_imatrix(imatrix, prior=prior) if isinstance(imatrix, (str, Path)) else imatrix
    with nullcontext(engine) if engine is not None else Threads(jobs) as workers:
        hashed = {} if sums and digests is None else digests
        findings, parts = _check(path, source, level, importances, prune_layers, workers, progress, hashed)
    if sums:
        findings += [check_sum(part, progress, (hashed or {}).get(part)) for part in parts]
    return Findings(findings)


def _check(
    path: Path,
    source: ModelFile | None,
    level: Level,
    imatrix: Imatrix | None,
    prune_layers: Collection[int],
    engine: Engine,
    progress: OnProgress,
    digests: dict[Path, str] | None,
) -> tuple[list[Finding], list[Path]]:
    """The findings, and the files that were looked at; `digests` is given their SHA-256, where it is wanted."""
    try:
        file = GGUFFile(path, any_part=True)
    except GGUFError as fault:
        return [Finding.of(fault, remedy="give a GGUF file", place=str(path))], [path]
    parts = [part.path for part in file.parts]
    findings: list[Finding] = []
    try:
        if file.keys.get("general.type") == "imatrix":  # it lies beside the models: `verify out/*.gguf`
            told = info(
                str(path), "is an importance matrix, no model: its numbers are checked, and nothing else"
            )
            return [told, *_read_whole(file, progress, digests)], parts
        findings += check_structure(file)
        findings += _read_whole(file, progress, digests)
        if source is not None and file.place is not None:
            message = f"is {file.place}: the model is compared by its first part"
            findings.append(error(str(path), message, "give the first part"))
            source = None
        if source is not None and not prune_layers and (lacking := _lacks_layers(file, source)):
            findings.append(lacking)
            source = None
        if source is not None:
            shown, left_out = (
                in_numbers_of(file, source, prune_layers) if prune_layers else (file, frozenset())
            )
            findings += check_keys(shown, source)
            findings += check_against(
                shown, source, engine, level=level, imatrix=imatrix, left_out=left_out, progress=progress
            )
        file.refuse_changed()
        if source is not None:
            source.refuse_changed()
    except GGUFError as fault:  # what was found before it stays
        return [*findings, Finding.of(fault, remedy=FETCH, place=str(path))], parts
    if source is not None and level != "errors" and imatrix is None:
        findings += _unused_imatrix(file)
    return findings, parts


def _read_whole(file: GGUFFile, progress: OnProgress, digests: dict[Path, str] | None) -> Iterator[Finding]:
    """What is wrong with the numbers of a file, and its hashes from the same read."""
    hashes = None if digests is None else FileHashes([part.path for part in file.parts])
    yield from check_numbers(file, progress, hashes)
    if hashes is not None and digests is not None:
        digests.update(hashes.hexdigests())


def _lacks_layers(file: GGUFFile, source: ModelFile) -> Finding | None:
    """What there is to say where a file has fewer layers than its source: by number they would be those of others."""
    key, n_source = n_layers(source)
    n_layer = file.keys.get(key)
    if type(n_layer) is not int or n_source is None or n_layer >= n_source:
        return None
    return error(
        str(file.path),
        f"has {n_layer} layers and its source {n_source}: it is not compared",
        "name those that were left out with {setting}",
        setting="prune_layers",
    )


def verified_with(path: Path, given: Collection[Path]) -> Findings | None:
    """What there is to say of a later part where its first part is verified, too, which looks at all; else None."""
    first = leading_part(path, given)
    return None if first is None else Findings([info(str(path), f"is verified with {first.name}")])


def _unused_imatrix(file: GGUFFile) -> Iterator[Finding]:
    """Says that a file was made with importances that were not given, where they would allow a sharper comparison."""
    qtypes = {stored.spec.qtype for stored in file.tensors.values()}
    if (
        IMATRIX_KEY in file.keys
        and not has_feedback(file.keys)
        and not all(map(follows_from_weights, qtypes))
    ):
        yield info(
            IMATRIX_KEY,
            f"the file was made with {quoted(file.keys[IMATRIX_KEY])} and compared without: by errors, and by the "
            "codes of K types, IQ4_NL and IQ4_XS, which may miss a low bit of a scale",
            "name that file as {setting} to compare every byte",
            setting="imatrix",
        )
