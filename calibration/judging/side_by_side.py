"""Several models beside a base in one pass over the text: a layer of each is decoded, used on all chunks and dropped.

Logits are compared chunk by chunk, so no file of logits is needed. Protocol and formulas: llama-perplexity, see `kld`.
What it does not have: how often the router of a quantized model still chooses the experts that the base chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibration.forward.int8 import InputRounding
from calibration.forward.layers import Routing
from calibration.forward.run import forward
from calibration.forward.saved_state import Keeper
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Observer, Stream
from calibration.forward.timings import Timings
from calibration.judging.kld import Scores, Statistics, base_probs, log_probs, score, summarize
from calibration.judging.logits_file import LogitsFile
from calibration.judging.perplexity import Estimate, first_scored, perplexity
from calibration.text.chunks import Chunks
from quantize.exceptions import GGUFError, LogitsError
from quantize.hparams import Hparams
from quantize.recipes.recipe import stored_type
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import Array, TensorSource

__all__ = ["Activations", "Comparison", "Model", "OnText", "RouterAgreement", "compare", "refuse_other_model"]

Activations = Literal["exact", "int8"]

SAME_HPARAMS = (
    "arch",
    "n_layer",
    "n_embd",
    "n_ff",
    "n_head",
    "n_head_kv",
    "n_vocab",
    "head_dim",
    "n_expert",
    "n_expert_used",
)


@dataclass(frozen=True)
class Model:
    """A model and what it costs: `n_bytes` of its file (of its weights, where there is no file), bits per weight."""

    name: str
    source: TensorSource
    n_bytes: int
    bpw: float


@dataclass(frozen=True)
class RouterAgreement:
    """By layer, f64 [n_layer]; NaN where a layer has no router.

    `same`: share of all tokens that go to the very experts to which the base sends them. `kld`: mean KL divergence in
    nats of the router's probabilities to the base's.
    """

    n_token: int
    same: npt.NDArray[np.float64]
    kld: npt.NDArray[np.float64]


@dataclass(frozen=True)
class OnText:
    """How one model did on one text: figures, the scores they summarise, and the router (None: no experts)."""

    statistics: Statistics
    scores: Scores
    router: RouterAgreement | None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: `results[m][t]` of model m on text t, and the base's perplexity on each text."""

    base: Model | LogitsFile
    models: tuple[Model, ...]
    texts: tuple[Chunks, ...]
    activations: Activations
    base_ppl: tuple[Estimate, ...]
    results: tuple[tuple[OnText, ...], ...]
    timings: Timings

    def text_name(self, index: int) -> str:
        """What a text is called."""
        return " + ".join(self.texts[index].names)


def compare(
    base: Model | LogitsFile,
    models: Sequence[Model],
    texts: Sequence[Chunks],
    *,
    activations: Activations = "exact",
    settings: ForwardSettings | None = None,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> Comparison:
    """Measure models against a base on texts, all in one pass: every source is read once, however long the texts are.

    Args:
        base: a model, or a file of logits that llama-perplexity wrote (then there is one text, its own, and nothing is
            said of routers).
        models: at least one.
        texts: chunks of the same number of tokens.
        activations: "exact" judges the weights alone; "int8" rounds the input of each product as llama.cpp's CPU
            kernels do (see `int8`), so that the figures are those that llama-perplexity finds.
        settings: see `forward`; default float32, since differences are small.
        keeper: see `forward`; a pass that goes on behind the last layer compares all chunks anew.
        progress: told the tokens that are through, then the chunks that are compared.

    Raises:
        GGUFError: a model is not the base's kind: other dimensions or tensors.
        LogitsError: the base's file is of another text, context or vocabulary.
        ActivationError, CheckpointError, TokenizerError: see `forward`.
    """
    whole = np.concatenate([text.tokens for text in texts])
    fed = np.concatenate([text.inputs for text in texts])
    all_chunks = replace(texts[0], tokens=whole)
    if isinstance(base, LogitsFile):
        _refuse_other_text(base, all_chunks, models)
        shown: list[Model] = list(models)
    else:
        shown = [base, *models]
    for model in shown[1:]:
        refuse_other_model(shown[0], model)
    starts = np.cumsum([0] + [text.n_chunk for text in texts])
    comparer = _Comparer(base if isinstance(base, LogitsFile) else None, all_chunks, progress)
    routers = _RouterComparer(shown, all_chunks.n_token, starts * all_chunks.n_ctx)
    is_routed = shown[0].source.hparams.n_expert > 0 and not isinstance(base, LogitsFile)
    rounding = InputRounding(stored_type) if activations == "int8" else None
    timings = forward(
        [Stream(model.source, rounding, model.name) for model in shown],
        fed,
        settings=settings,
        observers=[routers] if is_routed else [],
        on_logits=comparer,
        first_logit=first_scored(all_chunks.n_ctx),
        keeper=keeper,
        progress=progress,
    )
    n_base = len(shown) - len(models)
    results = []
    for index in range(len(models)):
        parts = comparer.scores[index]
        row = []
        for text in range(len(texts)):
            scores = Scores.joined(parts[starts[text] : starts[text + 1]])
            router = routers.agreement(index + n_base, text) if is_routed else None
            row.append(OnText(summarize(scores), scores, router))
        results.append(tuple(row))
    return Comparison(
        base,
        tuple(models),
        tuple(texts),
        activations,
        tuple(perplexity(result.scores.nll_base) for result in results[0]),
        tuple(results),
        timings,
    )


def refuse_other_model(base: Model, model: Model) -> None:
    """Two models can be compared where they have the same dimensions and tensors.

    Raises:
        GGUFError: they have not; the message says what differs first.
    """
    ours: Hparams = base.source.hparams
    theirs: Hparams = model.source.hparams
    for field in SAME_HPARAMS:
        one, other = getattr(ours, field), getattr(theirs, field)
        if one != other:
            raise GGUFError(
                f"{model.name}: another model than {base.name}: {field} is {other} here, {one} there"
            )
    known = {spec.name: spec.shape for spec in base.source.specs()}
    found = {spec.name: spec.shape for spec in model.source.specs()}
    for name in sorted(known.keys() ^ found.keys()):
        if name.startswith("rope_f"):
            continue  # a table that a file may carry or leave out
        place = "only there" if name in known else "only here"
        raise GGUFError(f"{model.name}: another model than {base.name}: tensor {name} is {place}")
    for name, shape in found.items():
        if known.get(name, shape) != shape:
            raise GGUFError(
                f"{model.name}: another model than {base.name}: {name} has shape {shape} here, {known[name]} there"
            )


def _refuse_other_text(base: LogitsFile, chunks: Chunks, models: Sequence[Model]) -> None:
    if chunks.tokens.shape[1] != base.n_ctx or chunks.n_chunk > base.n_chunk:
        raise LogitsError(
            f"{base.path}: holds {base.n_chunk} chunks of {base.n_ctx} tokens; asked for were {chunks.n_chunk} of "
            f"{chunks.n_ctx}"
        )
    if (chunks.tokens != base.tokens[: chunks.n_chunk]).any():
        raise LogitsError(f"{base.path}: made from another text; leave the text out, the file brings its own")
    for model in models:
        n_vocab = model.source.hparams.n_vocab
        if n_vocab != base.n_vocab:
            raise LogitsError(f"{base.path}: has {base.n_vocab} tokens, {model.name} has {n_vocab}")


class _Comparer:
    """`on_logits`: the scores of each chunk, `scores[model][chunk]`."""

    def __init__(self, file: LogitsFile | None, chunks: Chunks, progress: OnProgress) -> None:
        self.file = file
        self.progress = progress
        self.chunks = chunks
        self.scores: list[list[Scores]] = []

    def __call__(self, chunk: int, logits: Sequence[Tensor]) -> None:
        first = first_scored(self.chunks.n_ctx)
        scored = [one[:-1] for one in logits]  # the last position has no target
        base = base_probs(
            log_probs(scored.pop(0)) if self.file is None else self.read(chunk, scored[0].device)
        )
        targets = torch.from_numpy(self.chunks.tokens[chunk, first + 1 :]).long().to(base.log.device)
        for index, one in enumerate(scored):
            if index == len(self.scores):
                self.scores.append([])
            self.scores[index].append(score(one, base, targets))
        self.progress(Progress("comparing", chunk + 1, self.chunks.n_chunk, unit="chunks"))

    def read(self, chunk: int, device: torch.device) -> Tensor:
        """ln p of the base's file, f32 [n, V]."""
        assert self.file is not None
        return torch.from_numpy(self.file.log_probs(chunk)).to(device)


class _RouterComparer(Observer):
    """Holds what the base's router does in a layer against what the others' do; blocks come in one order for all."""

    def __init__(self, models: Sequence[Model], n_token: int, starts: npt.NDArray[np.int64]) -> None:
        n_layer = models[0].source.hparams.n_layer
        shape = (len(models), len(starts) - 1, n_layer)
        self.starts = starts
        self.text_of = np.searchsorted(starts, np.arange(n_token), side="right") - 1
        self.same = np.zeros(shape)
        self.kld = np.zeros(shape)
        self.seen = np.zeros(shape, np.int64)
        self.base: dict[int, Routing] = {}  # first token of a block -> the base's routing

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        """Remember the base's routing, or compare with it."""
        first = int(tokens[0])
        if stream == 0:
            self.base[first] = routing
            return
        base = self.base[first]
        same = (base.ids.sort(dim=-1).values == routing.ids.sort(dim=-1).values).all(dim=-1)
        p, q = base.probs.double(), routing.probs.double()
        kld = torch.special.xlogy(p, p / q.clamp(min=1e-300)).sum(dim=-1)
        texts = self.text_of[tokens.cpu().numpy()]
        np.add.at(self.same[stream, :, bid], texts, same.cpu().numpy())
        np.add.at(self.kld[stream, :, bid], texts, kld.cpu().numpy())
        np.add.at(self.seen[stream, :, bid], texts, 1)

    def kept(self) -> dict[str, Array]:
        """The sums; the base's routing is of use within a layer only."""
        return {"same": self.same, "kld": self.kld, "seen": self.seen}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """See `kept`."""
        for name, array in self.kept().items():
            array[...] = arrays[name]

    def agreement(self, stream: int, text: int) -> RouterAgreement:
        """The shares and means of one model on one text."""
        seen = self.seen[stream, text].astype(np.float64)
        with np.errstate(invalid="ignore"):
            same, kld = self.same[stream, text] / seen, self.kld[stream, text] / seen
        return RouterAgreement(int(self.starts[text + 1] - self.starts[text]), same, kld)
