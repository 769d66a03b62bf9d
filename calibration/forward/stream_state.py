"""One stream on its way through the layers: its weights as they are needed, and its hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from calibration.forward.graph import EMBEDDING, OUTPUT, ROPE_FACTORS, ModelGraph, bias_of
from calibration.forward.layers import Norm
from calibration.forward.reading import Reader
from calibration.forward.rope import Rope
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import Matrix
from calibration.forward.streams import Stream
from calibration.forward.timings import Stage, Timings
from quantize.codec import first_non_finite
from quantize.exceptions import ActivationError, CheckpointError
from quantize.hparams import Hparams
from quantize.tensors import TensorSpec

__all__ = ["TOKEN_GROUP", "StreamState", "token_groups"]

TOKEN_GROUP = 1024  # tokens that go through a matrix at once; larger groups are no faster on a CPU
VOCAB_BLOCK = 4096  # rows of the output matrix that are widened to float32 at once


def token_groups(tokens: Tensor, n_together: int = 1) -> Iterator[Tensor]:
    """Tokens [t] in the groups that go through a matrix at once, never parted within `n_together` of them."""
    size = max(1, TOKEN_GROUP // n_together) * n_together
    return (tokens[start : start + size] for start in range(0, len(tokens), size))


@dataclass
class StreamState:
    """The state of one stream within the forward pass.

    `hidden` [T, D] are its hidden states, `normed` [T, D] the inputs of the feed-forward layer in work, and
    `layer_inputs` the hidden states with which each layer began, of all chunks or some, where they are kept.
    """

    index: int
    stream: Stream
    settings: ForwardSettings
    timings: Timings
    hidden: Tensor
    normed: Tensor
    rope: Rope | None = None
    tied: Matrix | None = None  # the embedding, where it is needed again as output matrix
    handed_out: set[tuple[str, int]] = field(default_factory=set)
    layer_inputs: list[Tensor] = field(default_factory=list)
    reader: Reader = field(default_factory=Reader)

    def __post_init__(self) -> None:
        self.specs = {spec.name: spec for spec in self.stream.source.specs()}
        self.graph = ModelGraph(self.hparams, self.specs, label=self.stream.name)

    @property
    def hparams(self) -> Hparams:
        """Dimensions of the model."""
        return self.stream.source.hparams

    @property
    def is_tied(self) -> bool:
        """Whether the embedding is the output matrix, too."""
        return OUTPUT not in self.specs

    # -- weights

    def spec(self, name: str) -> TensorSpec:
        """The tensor of that name.

        Raises:
            CheckpointError: the model has none.
        """
        spec = self.specs.get(name)
        if spec is None:
            raise CheckpointError(self.stream.name, f"tensor {name} is missing, the forward pass needs it")
        return spec

    def read(self, name: str, xid: int = 0) -> Matrix:
        """Read one matrix, in the form in which it is stored."""
        spec = self.spec(name)
        with self.timings.measure(Stage.READING):
            return self.reader.read(self.index, self.stream.source, spec, xid)

    def read_stack(self, name: str) -> list[Matrix]:
        """Read all matrices of a tensor: one, or those of a stack."""
        return [self.read(name, xid) for xid in range(self.spec(name).n_matrix)]

    def read_head(self) -> Matrix:
        """Read the output matrix; where the embedding is used again, it may be in memory already."""
        return self.tied or self.read(EMBEDDING if self.is_tied else OUTPUT)

    def decoded(self, matrix: Matrix, dtype: torch.dtype) -> Tensor:
        """A whole matrix [n_row, n_per_row] on the device."""
        key = (self.index, matrix.spec.name, matrix.xid, dtype)
        with self.timings.measure(Stage.DECODING):
            return self.settings.once(key, lambda: matrix.tensor(self.settings.device, dtype))

    def vector(self, name: str) -> Tensor:
        """Read a norm, a bias or the like, f32 [n] on the device."""
        return self.decoded(self.read(name), torch.float32).reshape(-1)

    def bias(self, matrix: Matrix) -> Tensor | None:
        """The bias of a matrix, f32 [n_row] on the device, of an expert its row; None where there is none."""
        spec = self.specs.get(bias_of(matrix.spec.name))
        if spec is None:
            return None
        row = matrix.xid if matrix.spec.has_experts else 0
        with self.timings.measure(Stage.READING):
            stored = self.stream.source.read_blocks(spec, 0, (row, row + 1))
        return self.decoded(Matrix(spec, 0, stored), torch.float32).reshape(-1)

    def rope_factors(self, n_ctx: int) -> list[str]:
        """The tensors that divide the frequencies of rotation in chunks of `n_ctx` tokens; the last one counts."""
        always, short, long = ROPE_FACTORS
        is_short = n_ctx <= (self.hparams.rope_scaling.n_ctx_orig or self.hparams.n_ctx_train)
        return [name for name in (always, short if is_short else long) if name in self.specs]

    # -- arithmetic

    def rounded(self, spec: TensorSpec, x: Tensor) -> Tensor:
        """The input of a product, as the kernels round it that the stream imitates."""
        return x if self.stream.round_inputs is None else self.stream.round_inputs(spec, x)

    def normed_groups(self, norm: Norm, n_together: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The text in groups (see `token_groups`): the places of the tokens [t], and norm(hidden), f32 [t, D]."""
        for tokens in token_groups(torch.arange(len(self.hidden)), n_together):
            yield tokens, self.hidden_norm(tokens, norm)

    def hidden_norm(self, tokens: Tensor, norm: Norm) -> Tensor:
        """norm(hidden) of neighbouring tokens, f32 [t, D]."""
        return norm(self.hidden[tokens[0] : tokens[-1] + 1].to(self.settings.device))

    def embedded(self, rows: Tensor) -> Tensor:
        """Rows of the embedding [t, D] -> the hidden states with which a pass begins."""
        scale = self.hparams.embedding_scale
        return rows.float() * scale if scale else rows

    def add(self, tokens: Tensor, y: Tensor) -> None:
        """hidden[tokens] += y, times the model's factor; in float32 whatever the hidden states are kept in."""
        if self.hparams.residual_scale:
            y = y.float() * self.hparams.residual_scale
        places = tokens.to(self.hidden.device)
        rows = self.hidden.index_select(0, places).to(y.device).float().add_(y)  # a copy: changed in place
        self.hidden.index_copy_(0, places, rows.to(self.hidden.device, self.hidden.dtype))

    def normed_rows(self, tokens: Tensor) -> Tensor:
        """The inputs of the feed-forward layer of some tokens, [t, D] on the device."""
        return self.normed.index_select(0, tokens.to(self.normed.device)).to(self.settings.device)

    def head_inputs(self, x: Tensor) -> Tensor:
        """The outputs of the last norm [t, D] -> what the output matrix is multiplied with to give logits."""
        return x / self.hparams.logit_scale if self.hparams.logit_scale else x

    def logits(self, head: Matrix, x: Tensor) -> Tensor:
        """x [t, D] -> f32 [t, V]; the matrix is decoded some rows at a time, because those of all streams stay."""
        x = self.rounded(head.spec, x)
        bias = self.bias(head)
        n_row = head.spec.n_row
        logits = torch.empty(len(x), n_row, device=x.device)
        for first in range(0, n_row, VOCAB_BLOCK):
            last = min(first + VOCAB_BLOCK, n_row)
            with self.timings.measure(Stage.DECODING):
                rows = head.tensor(self.settings.device, torch.float32, slice(first, last))
            with self.timings.measure(Stage.PRODUCTS):
                logits[:, first:last] = functional.linear(x, rows, None if bias is None else bias[first:last])
        return logits

    # -- damage

    def refuse_infinite(self, y: Tensor, place: str, *prefixes: str, xid: int = 0) -> None:
        """Refuse values that are not finite.

        Args:
            y: the values.
            place: the part of the model that computed them, in words.
            prefixes: how the names of the tensors begin that they were computed from.
            xid: the expert that computed them, where there are experts.

        Raises:
            ActivationError: a value is NaN or infinite; names the model, the place and the tensors at fault.
        """
        if torch.isfinite(y.sum(dtype=torch.float32)):
            return
        damaged = list(self._damaged(prefixes, xid))
        cause = (
            f"{', '.join(damaged)} holds such values" if damaged else "weights are finite, but far too large"
        )
        name = self.stream.name
        raise ActivationError(
            f"{name}: {place}" if name else place,
            f"a value is not finite (NaN or infinity); {cause}",
            "fetch or make the model again",
            model=name,
        )

    def _damaged(self, prefixes: tuple[str, ...], xid: int) -> Iterator[str]:
        """Names of tensors with a weight that is NaN or infinite; of experts, only `xid` is looked at."""
        for name, spec in self.specs.items():
            if name.startswith(prefixes):
                matrix = Matrix.read(self.stream.source, spec, xid if spec.has_experts else 0)
                firsts = range(0, spec.n_row, VOCAB_BLOCK)
                if any(
                    first_non_finite(matrix.rows(first, first + VOCAB_BLOCK)) is not None for first in firsts
                ):
                    yield name
