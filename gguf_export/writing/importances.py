"""Importance matrices as files: written whole, and several of them merged into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix, save_imatrix
from calibration.importance.merging import merged
from gguf_export.files.disk import write_error
from gguf_export.files.opening import status_of
from gguf_export.files.outputs import refuse_existing, refuse_outputs
from gguf_export.files.replacing import replacing
from quantize.containers.untrusted import label
from quantize.telling import Note, Remark, discard

__all__ = ["merge_imatrices", "write_imatrix"]

LEGACY_SUFFIX = ".dat"
READ_BYTES = 2**20  # compared at a time


def merge_imatrices(
    files: Sequence[Path | str],
    output: Path | str | None = None,
    *,
    n_ctx: int = 512,
    force: bool = False,
    note: Note = discard,
) -> Imatrix:
    """Merge importance matrices, as llama-imatrix does with `--in-file`: sums and tokens are added.

    Args:
        files: GGUF or legacy .dat files, in the order in which their datasets shall be named; one is converted.
        output: the file that is written, in the legacy form where its name ends in .dat. None writes nothing.
        n_ctx: tokens of a chunk, in which the result is counted; a call that a legacy file tells is one chunk.
        force: replace a file that exists; none of `files` is ever replaced.
        note: given remarks on files of other chunks, files that are given twice, and tensors that some files lack.

    Returns:
        The importances; see `calibration.importance.merging.merged` for what depends on the order.

    Raises:
        ImatrixError: a file cannot be read, or does not fit the others: the message names the first tensor.
        OutputError: the file exists (`OutputExistsError`), is one of `files`, or cannot be written.

    >>> import numpy as np
    >>> from calibration.importance.imatrix import Entry
    >>> for name in "ab":
    ...     entry = Entry(np.ones((1, 4), np.float32), np.array([512]))
    ...     save_imatrix(folder / f"{name}.gguf", Imatrix({"output.weight": entry}, [f"{name}.txt"]))
    >>> both = merge_imatrices([folder / "a.gguf", folder / "b.gguf"], folder / "both.gguf")
    >>> both.chunk_count, both.datasets
    (2, ['a.txt', 'b.txt'])
    """
    paths = [Path(file) for file in files]
    path = None if output is None else Path(output)
    if path is not None:
        refuse_outputs([path], force=force, inputs=paths)
    for file, n_given in Counter(path.resolve() for path in paths).items():
        if n_given > 1:
            note(Remark(label(file), f"is given {n_given} times, and counts as often"))
    n_of: Counter[str] = Counter()

    def loaded() -> Iterator[Imatrix]:
        for file in paths:
            imatrix = load_imatrix(file)
            n_of.update(imatrix.entries.keys())
            if not imatrix.legacy and imatrix.chunk_size != n_ctx:
                message = f"was counted in chunks of {imatrix.chunk_size} tokens, the result is in chunks of {n_ctx}"
                remedy = f"{{setting}} {imatrix.chunk_size} keeps them"
                note(Remark(imatrix.file, message, remedy, setting="ctx"))
            yield imatrix

    result = merged(loaded(), n_ctx)
    lacking = [name for name, n_file in n_of.items() if n_file < len(paths)]
    if lacking:
        note(
            Remark(
                "", f"{len(lacking)} of {len(n_of)} tensors are not in all of the files, such as {lacking[0]}"
            )
        )
    if path is not None:
        write_imatrix(path, result)
    return result


def write_imatrix(path: Path, imatrix: Imatrix, *, is_again: bool = False) -> None:
    """Write an importance matrix; the file appears when it is whole and on the disk.

    Args:
        path: of the file, in the legacy form where its name ends in .dat.
        imatrix: the matrix.
        is_again: a file that exists is not replaced, but must hold what would be written.

    Raises:
        OutputError: the disk is full or broken; or `OutputExistsError`, another file is there.
    """
    try:
        with replacing(path) as file:
            save_imatrix(file, imatrix, legacy=path.suffix == LEGACY_SUFFIX)
            if is_again and status_of(path) is not None and not _holds(path, file):
                refuse_existing([path])
    except OSError as error:
        raise write_error(path, error) from error


def _holds(path: Path, file: BinaryIO) -> bool:
    """Whether a file has the same bytes as an open one."""
    file.seek(0)
    with path.open("rb") as other:
        while (piece := file.read(READ_BYTES)) == other.read(READ_BYTES):
            if not piece:
                return True
    return False
