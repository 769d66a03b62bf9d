"""What is in a checkpoint or a GGUF file, told from headers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from quantize.codec import row_bytes
from quantize.exceptions import MoeGgufError
from quantize.hparams import Hparams
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import TensorSpec

MAX_SHOWN = 64  # elements of an array, characters of a text


@dataclass(frozen=True)
class TensorFacts:
    """One tensor."""

    name: str
    shape: tuple[int, ...]
    qtype: str
    n_bytes: int


@dataclass(frozen=True)
class TypeFacts:
    """All tensors of one type together."""

    qtype: str
    n_tensors: int
    n_elements: int
    n_bytes: int


@dataclass(frozen=True)
class Description:
    """What `describe` found. Sizes are bytes of weights; `keys` are the metadata of a GGUF file."""

    path: str
    kind: str  # "checkpoint" or "gguf"
    name: str
    ftype: str
    hparams: Hparams
    n_elements: int
    n_bytes: int
    types: tuple[TypeFacts, ...]
    tensors: tuple[TensorFacts, ...]
    keys: dict[str, Any]

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.n_bytes / self.n_elements

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {**asdict(self), "bpw": self.bpw}

    def facts(self) -> list[tuple[str, str]]:
        """The lines that a person wants to see first."""
        hp = self.hparams
        experts = f"{hp.n_expert}, {hp.n_expert_used} used" if hp.n_expert else "none (dense)"
        return [
            ("kind", self.kind),
            ("name", self.name),
            ("architecture", hp.arch),
            ("file type", self.ftype),
            ("layers", str(hp.n_layer)),
            ("experts", experts),
            ("embedding", str(hp.n_embd)),
            ("feed-forward", str(hp.n_ff)),
            ("heads", f"{hp.n_head}, {hp.n_head_kv} for keys and values"),
            ("context", f"{hp.n_ctx_train:,} tokens"),
            ("vocabulary", f"{hp.n_vocab:,} tokens"),
            ("weights", f"{self.n_elements:,}"),
            ("size", f"{self.n_bytes / 2**30:.3f} GiB, {self.bpw:.2f} bits per weight"),
        ]


def describe(path: Path) -> Description:
    """Look at a checkpoint folder or a GGUF file.

    Raises:
        MoeGgufError: it is neither, or it is damaged.
    """
    if path.is_dir():
        checkpoint = open_checkpoint(path)
        stored = [
            (spec, row_bytes(spec.qtype, spec.n_per_row) * spec.n_row * spec.n_matrix)
            for spec in checkpoint.specs()
        ]
        architecture = ", ".join(map(str, checkpoint.config.get("architectures") or ()))
        return _description(path, "checkpoint", architecture, "", checkpoint.hparams, stored, {})
    if not path.exists():
        raise MoeGgufError(f"{path}: does not exist")
    file = GGUFFile(path)
    stored = [(tensor.spec, tensor.n_bytes) for tensor in file.tensors.values()]
    try:
        ftype = LlamaFileType(file.keys.get("general.file_type", -1)).name.removeprefix("MOSTLY_")
    except ValueError:
        ftype = "unknown"
    keys = {key: _shortened(value) for key, value in file.keys.items()}
    name = str(file.keys.get("general.name", ""))
    return _description(path, "gguf", name, ftype.removeprefix("ALL_"), file.hparams, stored, keys)


def _description(
    path: Path,
    kind: str,
    name: str,
    ftype: str,
    hparams: Hparams,
    stored: Sequence[tuple[TensorSpec, int]],
    keys: dict[str, Any],
) -> Description:
    types: dict[str, list[tuple[TensorSpec, int]]] = {}
    for spec, n_bytes in stored:
        types.setdefault(spec.qtype.name, []).append((spec, n_bytes))
    return Description(
        path=str(path),
        kind=kind,
        name=name,
        ftype=ftype or ", ".join(types),
        hparams=hparams,
        n_elements=sum(spec.n_elements for spec, _ in stored),
        n_bytes=sum(n_bytes for _, n_bytes in stored),
        types=tuple(
            TypeFacts(qtype, len(of), sum(s.n_elements for s, _ in of), sum(n for _, n in of))
            for qtype, of in sorted(types.items())
        ),
        tensors=tuple(TensorFacts(spec.name, spec.shape, spec.qtype.name, n) for spec, n in stored),
        keys=keys,
    )


def _shortened(value: Any) -> Any:
    """Vocabularies are long and chat templates longer: their beginning says enough."""
    if isinstance(value, list):
        more = [f"... {len(value):,} in all"] if len(value) > MAX_SHOWN else []
        return [*map(_shortened, value[:MAX_SHOWN]), *more]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return value
