"""One stream on its way through the layers: its weights as they are needed, and its hidden states."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from calibration.forward.layers import Arithmetic, rms_norm, rope_table, to_tensor
from calibration.forward.stored import StoredMatrix
from calibration.forward.streams import Stream, Timings
from quantize.codec import first_non_finite
from quantize.exceptions import ActivationError, CheckpointError
from quantize.hparams import Hparams
from quantize.tensors import Array, TensorSource, TensorSpec

__all__ = ["Lane", "Matrix", "Routes", "refuse_unknown"]

VOCAB_BLOCK = 8192  # rows of the output matrix that are widened to float32 at once
ARCHITECTURES = ("llama",)
KNOWN = re.compile(
    r"(token_embd|output|output_norm|rope_freqs|rope_factors_short|rope_factors_long)\.weight"
    r"|blk\.\d+\.((attn_norm|ffn_norm|ffn_gate_inp|ffn_(gate|up|down)_exps)\.weight"
    r"|(attn_(q|k|v|output)|ffn_(gate|up|down))\.(weight|bias))"
)


@dataclass
class Matrix:
    """One matrix in memory: as the arithmetic wants it and, where somebody asks for it, as it was read."""

    spec: TensorSpec
    xid: int
    raw: Array | None
    tensor: Tensor
    bias: Tensor | None = None


@dataclass
class Routes:
    """Of all tokens: the experts they go to, int64 [T, K], and the weights of these, f32 [T, K]."""

    ids: Tensor
    weights: Tensor


@dataclass
class Lane:
    """The state of one stream; `pass_on(spec, xid, raw)` is called when the last input of a matrix was seen."""

    index: int
    stream: Stream
    n_ctx: int
    hidden: Tensor  # [T, D]
    normed: Tensor  # [T, D], the input of the feed-forward layer
    arithmetic: Arithmetic
    timings: Timings
    wants_raw: bool
    pass_on: Callable[[TensorSpec, int, Array | None], None]
    table: tuple[Tensor, Tensor] = field(init=False)  # cosines and sines [P, d/2]
    tied: StoredMatrix | None = None  # an embedding that is needed again as output
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.specs = {spec.name: spec for spec in self.stream.source.specs()}
        self.table = self._rope()

    @property
    def hparams(self) -> Hparams:
        """Dimensions of the model."""
        return self.stream.source.hparams

    # -- weights

    def spec(self, name: str) -> TensorSpec:
        """What is to be read; a tensor that is missing is an error."""
        spec = self.specs.get(name)
        if spec is None:
            raise CheckpointError(f"tensor {name} is missing, the forward pass needs it")
        return spec

    def stored(self, name: str, xid: int = 0) -> StoredMatrix:
        """Read one matrix and keep it as it is stored."""
        spec = self.spec(name)
        self.taken.add(name)
        with self.timings.measure("reading"):
            return StoredMatrix(self.stream.source, spec, xid)

    def matrix(self, name: str, xid: int = 0, dtype: torch.dtype | None = None) -> Matrix:
        """Read one matrix, in the arithmetic's type or another."""
        stored = self.stored(name, xid)
        with self.timings.measure("decoding"):
            raw = stored.whole()
            tensor = to_tensor(raw, self.arithmetic.device, dtype or self.arithmetic.dtype)
        name = name.removesuffix(".weight") + ".bias"
        bias = self.vector(name) if name in self.specs else None
        return Matrix(stored.spec, xid, raw if self.wants_raw else None, tensor, bias)

    def vector(self, name: str) -> Tensor:
        """A norm, a bias or a table of factors, f32 [n]; no importance belongs to it, so it is passed on at once."""
        matrix = self.matrix(name, dtype=torch.float32)
        vector = matrix.tensor.reshape(-1).clone()
        self.release(matrix)
        return vector

    def release(self, *matrices: Matrix | StoredMatrix) -> None:
        """All inputs of these matrices have been seen."""
        for one in matrices:
            raw = one.raw if isinstance(one, Matrix) else one.whole() if self.wants_raw else None
            self.pass_on(one.spec, one.xid, raw)

    def _rope(self) -> tuple[Tensor, Tensor]:
        """The rotary table, with the divisors of the frequencies that a file may bring along."""
        short = self.n_ctx <= (self.hparams.rope_scaling.n_ctx_orig or self.hparams.n_ctx_train)
        factors = None
        for name in ("rope_freqs.weight", f"rope_factors_{'short' if short else 'long'}.weight"):
            if name in self.specs:
                factors = self.vector(name).cpu()
        cos, sin = rope_table(self.hparams, self.n_ctx, factors)
        return cos.to(self.arithmetic.device), sin.to(self.arithmetic.device)

    # -- arithmetic

    def product(self, matrix: Matrix, x: Tensor) -> Tensor:
        """x [t, n_in] times the matrix [n_out, n_in], plus its bias -> [t, n_out]."""
        if self.stream.round_inputs is not None:
            x = self.stream.round_inputs(matrix.spec, x)
        with self.timings.measure("products"):
            y = functional.linear(x.to(matrix.tensor.dtype), matrix.tensor)
        return y if matrix.bias is None else y + matrix.bias.to(y.dtype)

    def hidden_norm(self, tokens: Tensor, norm: Tensor) -> Tensor:
        """norm(hidden) of some tokens in a row, f32 [t, D]."""
        h = self.hidden[tokens[0] : tokens[-1] + 1].to(self.arithmetic.device)
        return rms_norm(h, norm, self.hparams.rms_norm_eps)

    def add(self, tokens: Tensor, y: Tensor) -> None:
        """hidden[tokens] += y, in float32 whatever the hidden states are kept in."""
        summed = self.hidden[tokens].to(y.device) + y.float()
        self.hidden[tokens] = summed.to(self.hidden.device, self.hidden.dtype)

    def logits(self, head: StoredMatrix, x: Tensor) -> Tensor:
        """x [t, D] -> f32 [t, V]; the matrix is decoded some rows at a time, because those of all streams stay."""
        if self.stream.round_inputs is not None:
            x = self.stream.round_inputs(head.spec, x)
        n_row = head.spec.n_row
        found = torch.empty(len(x), n_row, device=x.device)
        for first in range(0, n_row, VOCAB_BLOCK):
            last = min(first + VOCAB_BLOCK, n_row)
            with self.timings.measure("decoding"):
                rows = to_tensor(head.rows(first, last), self.arithmetic.device, torch.float32)
            with self.timings.measure("products"):
                found[:, first:last] = functional.linear(x, rows)
        return found

    # -- damage

    def refuse_infinite(self, y: Tensor, place: str, *prefixes: str, xid: int = 0) -> None:
        """What was computed at a place from the tensors whose names begin so must be finite.

        Raises:
            ActivationError: it is not; the message names the model, the place, the tensors at fault and what helps.
        """
        if torch.isfinite(y.sum(dtype=torch.float32)):
            return
        bad = list(self._damaged(prefixes, xid))
        cause = f"{', '.join(bad)} holds such values" if bad else "weights are finite, but far too large"
        path = Path(self.stream.name)
        if path.is_dir() and self.stream.name:
            remedy = f"moe-gguf doctor {path} --full lists what is damaged"
        elif path.is_file():
            remedy = f"fetch or export the file again (moe-gguf verify {path} lists what is damaged)"
        else:
            remedy = "fetch or make the model again"
        label = f"{self.stream.name}: " if self.stream.name else ""
        raise ActivationError(f"{label}{place}: a value is not finite (NaN or infinity); {cause}; {remedy}")

    def _damaged(self, prefixes: tuple[str, ...], xid: int) -> Iterator[str]:
        """Names of tensors with a weight that is NaN or infinite; of experts, only one is looked at."""
        for name, spec in self.specs.items():
            if name.startswith(prefixes):
                matrix = StoredMatrix(self.stream.source, spec, xid if spec.n_matrix > 1 else 0)
                firsts = range(0, spec.n_row, VOCAB_BLOCK)
                if any(
                    first_non_finite(matrix.rows(first, first + VOCAB_BLOCK)) is not None for first in firsts
                ):
                    yield name


def refuse_unknown(sources: Sequence[TensorSource]) -> None:
    """A tensor that is not known here would change the result, so its presence is an error."""
    shapes = [{spec.name: spec.shape for spec in source.specs()} for source in sources]
    for source, names in zip(sources, shapes, strict=True):
        arch = source.hparams.arch
        if arch not in ARCHITECTURES:
            raise CheckpointError(
                f"the forward pass does not know arch {arch!r}; known: {', '.join(ARCHITECTURES)}"
            )
        for name, shape in names.items():
            if not KNOWN.fullmatch(name):
                raise CheckpointError(f"the forward pass does not know tensor {name}")
            if shapes[0].get(name) != shape:
                raise CheckpointError(
                    f"{name} has shape {shape} in one model and {shapes[0].get(name)} in the other"
                )
