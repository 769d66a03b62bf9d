"""The importance matrix: statistics of the inputs of each matrix, and the weights that follow for its columns.

For every weight matrix (and every expert of it) llama-imatrix keeps the sum over tokens of the squared input
activations of each column, and the number of tokens. llama-quantize divides one by the other and weighs the
rounding error of each column with the result. `calibration.importance.observers` fills the sums,
`calibration.importance.imatrix_files` reads and writes them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from quantize.containers.untrusted import F32_MAX, file_name, label, printable, quoted
from quantize.exceptions import ImatrixError
from quantize.guide import Guide
from quantize.telling import Remark
from quantize.tensors import TensorSpec, names_experts

__all__ = ["Entry", "Imatrix", "ThinExpert"]

Vector = npt.NDArray[np.float32]

MAX_STRING = 127
"""Bytes that llama-quantize keeps of a string that it writes into a model (llama_model_kv_override.val_str)."""

F32_TINY = 1.1754943508222875e-38  # the smallest that has all its digits

OF_ANOTHER_MODEL = "give the importance matrix of this model"


@dataclass
class Entry:
    """The statistics of one tensor: for each matrix the sums of squares [n_mat, n_per_row] and the tokens [n_mat].

    `n_mat` is the number of experts, 1 where there are none. Legacy files do not hold it: until `Imatrix.check` has
    seen the model, their entries have all experts in one row, and `counts` are llama-imatrix's calls, not tokens.
    """

    sums: Vector
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ThinExpert:
    """An expert that few tokens reached."""

    name: str
    xid: int
    n_tokens: int


@dataclass
class Imatrix:
    """The importances of a model's tensors: `importance(name, xid)`.

    `prior` is a number of tokens: an expert's importance is drawn toward the mean over the tensor's experts
    (all tokens of the layer together) as if that many tokens of the mean kind had reached it besides its own.
    0 is llama.cpp's behaviour to the byte: an expert without tokens gets ones, an expert with three tokens is
    trusted fully. `legacy` marks a matrix from a .dat file, which holds no token counts; `file` is where it came
    from, empty for one that was just collected.
    """

    entries: dict[str, Entry]
    datasets: list[str] = field(default_factory=list)
    chunk_count: int = 0
    chunk_size: int = 512
    file: str = ""
    legacy: bool = False
    prior: float = 0.0
    ignored: tuple[str, ...] = ()
    """Names of entries that `check` dropped; llama-quantize counts them among those that it has."""

    def __post_init__(self) -> None:
        """Refuse a prior that weighs nothing or everything, or that a file cannot hold as a 32-bit float.

        Raises:
            ImatrixError: it is negative, NaN, larger than any such float, or above 0 and smaller than any.
        """
        if self.prior != 0 and not F32_TINY <= self.prior <= F32_MAX:
            raise ImatrixError(
                f"prior {quoted(self.prior)}",
                "is not a number of tokens",
                "give {setting} 0 for none, or a number such as 8",
                setting="prior",
            )

    def guide(self, name: str, xid: int = 0) -> Guide | None:
        """The importances of one expert as `quantize.encode` takes them; raises as `importance`."""
        return Guide.of(self.importance(name, xid))

    def importance(self, name: str, xid: int = 0) -> Vector | None:
        """The importances [n_per_row] of one expert, or None where nothing is known of the tensor.

        The mean square sum/count in float32, as `load_imatrix` of llama.cpp's tools/quantize/quantize.cpp
        computes it.

        Raises:
            ImatrixError: the entry has no such expert, or `prior` was asked of a file without token counts.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        n_mat = len(entry.counts)
        if not 0 <= xid < n_mat:
            raise ImatrixError(f"{self._label}: {name}", f"has {n_mat} expert(s), expert {xid} was asked for")
        if self.prior > 0:
            if self.legacy:
                raise ImatrixError(
                    self._label,
                    f"a legacy .dat file holds no token counts, so a prior of {self.prior:g} tokens cannot be applied",
                    "use the GGUF form or {setting} 0",
                    setting="prior",
                )
            return self._shrunk(entry, xid)
        sums: Vector = entry.sums[xid]
        count = entry.counts[xid]
        if count > 0:
            return np.asarray(sums / np.float32(count), np.float32)
        # for a legacy file quantize.cpp takes the values as they are where ncall is not positive
        return sums.copy() if self.legacy else np.ones_like(sums)

    def flat(self) -> tuple[list[str], list[str]]:
        """Names of the entries whose sums are all zero though tokens were counted, and of those without a difference.

        The latter are those in which all columns of each matrix are equal, zero or not; matrices without tokens are.
        """
        zero, flat = [], []
        for name, entry in self.entries.items():
            seen = entry.sums if self.legacy else entry.sums[entry.counts > 0]
            if len(seen) and not seen.any():
                zero.append(name)
            if (seen == seen[:, :1]).all():
                flat.append(name)
        return zero, flat

    def _shrunk(self, entry: Entry, xid: int) -> Vector:
        total = int(entry.counts.sum())
        if total == 0:
            return np.ones(entry.sums.shape[1], np.float32)
        mean = entry.sums.sum(axis=0, dtype=np.float64) / total
        blend = (entry.sums[xid] + self.prior * mean) / (int(entry.counts[xid]) + self.prior)
        return np.asarray(blend, np.float32)

    def thin(self, fewer_than: int = 1) -> list[ThinExpert]:
        """The experts that fewer than `fewer_than` tokens reached; with `prior` 0 those without tokens weigh nothing.

        Dense tensors have no experts and are never named. A legacy file holds no token counts: the list is empty.
        """
        if self.legacy:
            return []
        return [
            ThinExpert(name, xid, int(count))
            for name, entry in self.entries.items()
            if names_experts(name)
            for xid, count in enumerate(entry.counts)
            if count < fewer_than
        ]

    def check(self, specs: Iterable[TensorSpec]) -> list[Remark]:
        """Hold the entries against a model's tensors, and give legacy entries their expert count.

        Returns remarks: on entries that name no tensor of the model, and on a `token_embd` entry that does not fit,
        which is dropped; llama-quantize goes on likewise.

        Raises:
            ImatrixError: not one entry names a tensor of the model, which llama-quantize does not mind; an entry does
                not have n_per_row x n_expert values, or not one count per expert.
        """
        specs = list(specs)
        remarks = self._strangers({spec.name for spec in specs})
        for spec in specs:
            entry, name = self.entries.get(spec.name), printable(spec.name)
            if entry is None:
                continue
            n_value = spec.n_per_row * spec.n_matrix
            n_mat = len(entry.counts)
            if entry.sums.size != n_value:
                fault = f"{name} has {entry.sums.size} values there and needs {n_value} in this model"
                if "token_embd" not in spec.name:
                    raise ImatrixError(
                        self._label, f"{fault}: it was made for another model", OF_ANOTHER_MODEL
                    )
                remarks.append(Remark(self._label, f"{fault}; ignored"))
                del self.entries[spec.name]
                self.ignored += (spec.name,)
            elif n_mat != spec.n_matrix:
                # one count for all experts: .dat files, and GGUF files made from them
                if n_mat != 1:
                    raise ImatrixError(
                        self._label,
                        f"{name} has counts of {n_mat} experts and the model has {spec.n_matrix}: "
                        "it was made for another model",
                        OF_ANOTHER_MODEL,
                    )
                entry.sums = entry.sums.reshape(spec.n_matrix, spec.n_per_row)
                entry.counts = np.repeat(entry.counts, spec.n_matrix)
        return remarks

    def selected(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Imatrix:
        """The matrix with some of its entries, as llama-quantize takes it by `--include-weights`, `--exclude-weights`.

        Args:
            include: parts of names; where there are any, only entries stay whose name contains one of them.
            exclude: parts of names; entries whose name contains one of them go.
        """

        def is_chosen(name: str) -> bool:
            is_included = not include or any(part in name for part in include)
            return is_included and not any(part in name for part in exclude)

        entries = {name: entry for name, entry in self.entries.items() if is_chosen(name)}
        return replace(self, entries=entries, ignored=tuple(filter(is_chosen, self.ignored)))

    @property
    def n_entry(self) -> int:
        """The number of entries as llama-quantize counts them."""
        return len(self.entries) + len(self.ignored)

    def missing(self, specs: Iterable[TensorSpec]) -> list[str]:
        """Names of the given tensors for which there is no entry."""
        return [spec.name for spec in specs if spec.name not in self.entries]

    def metadata(self) -> dict[str, str | int | float]:
        """The keys that llama-quantize writes into the model, in its order (tools/quantize/quantize.cpp).

        Strings are cut to 127 bytes as there, the counts are u32; only the first dataset is named; the number
        of chunks is left out where it is not known. Of paths only the last part is written, because files are
        published. One key is ours, `quantize.imatrix.prior`, where there is a prior, because llama.cpp would have
        weighted otherwise.
        """
        keys: dict[str, str | int | float] = {"quantize.imatrix.file": _cut(file_name(self.file))}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = _cut(file_name(self.datasets[0]))
        keys["quantize.imatrix.entries_count"] = self.n_entry
        if self.chunk_count > 0:
            keys["quantize.imatrix.chunks_count"] = self.chunk_count
        if self.prior > 0:
            keys["quantize.imatrix.prior"] = float(self.prior)
        return keys

    def _strangers(self, names: Container[str]) -> list[Remark]:
        """A remark on entries that name no tensor of a model, which weigh nothing."""
        strange = [name for name in self.entries if name not in names]
        if not strange:
            return []
        first = printable(", ".join(strange[:4]) + ", ..." * (len(strange) > 4))
        if len(strange) == len(self.entries):
            message = f"none of its {len(strange)} entries is of a tensor of this model: {first}"
            raise ImatrixError(self._label, message, OF_ANOTHER_MODEL)
        of_all = f"{len(strange)} of its {len(self.entries)} entries"
        return [Remark(self._label, f"{of_all} are of tensors that the model has not, and ignored: {first}")]

    @property
    def _label(self) -> str:
        return self.file or "imatrix"


def _cut(text: str) -> str:
    return label(text).encode("utf-8")[:MAX_STRING].decode("utf-8", "ignore")
