"""Quantized models beside their base, in one pass over the texts: opened and checked, run, and resumed if stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix import Imatrix
from calibration.judging import side_by_side
from calibration.judging.compare_shares import joined, score_shares
from calibration.judging.logits_file import LogitsFile
from calibration.judging.model import Model
from calibration.judging.side_by_side import Activations, Base, Comparison
from calibration.text.chunks import Chunks
from gguf_export.comparing.measured import labels_of
from gguf_export.comparing.models import ModelChoice, open_models
from gguf_export.comparing.texts import TextChoice, cut_choice, own_text
from gguf_export.writing import fingerprint
from gguf_export.writing.spread_text import spread_shares
from gguf_export.writing.state_file import StateFile, state_path
from quantize.sources.model_source import ModelSource
from quantize.telling import Note, OnProgress, discard, silent

__all__ = [
    "CompareJob",
    "CompareResult",
    "PassSettings",
    "StateSettings",
    "compare",
    "fingerprint_of",
    "prepare",
    "run",
]


@dataclass(frozen=True)
class CompareJob:
    """Models and texts, opened and found to fit together; no weight is read yet."""

    base: Base
    models: tuple[Model, ...]
    texts: tuple[Chunks, ...]
    sources: tuple[ModelSource, ...]
    imatrix: Imatrix | None = None

    @property
    def files(self) -> tuple[ModelSource | LogitsFile, ...]:
        """All that is read in the pass."""
        return (*self.sources, self.base) if self.base.kind == "logits" else self.sources

    @property
    def n_in_pass(self) -> int:
        """Models that run through the texts: the base is one of them, unless its logits come from a file."""
        return len(self.models) + (self.base.kind == "model")

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read so far from all files."""
        return sum(source.bytes_read for source in self.sources)


@dataclass(frozen=True)
class PassSettings:
    """How the models run, see `side_by_side.compare`: by default float32 on the CPU, for differences are small."""

    activations: Activations = "exact"
    forward: ForwardSettings = field(default_factory=ForwardSettings)


@dataclass(frozen=True)
class StateSettings:
    """Where the state of the pass is kept for a run that is stopped; remarks call the work `label`.

    With `restart`, nothing of an earlier run is used.
    """

    path: Path
    label: str
    restart: bool = False

    @classmethod
    def beside(cls, output: Path, *, restart: bool = False) -> StateSettings:
        """The state beside the file that will hold the figures."""
        return cls(state_path(output), output.name, restart)


@dataclass(frozen=True)
class CompareResult:
    """The figures, and the work that they took: models that ran through the texts, bytes of weights that were read."""

    comparison: Comparison
    n_in_pass: int
    bytes_read: int


def compare(
    models: ModelChoice | Sequence[str | Path],
    texts: TextChoice | str | Sequence[str],
    settings: PassSettings | None = None,
    *,
    state: StateSettings | None = None,
    ray: str | None = None,
    on_result: Callable[[CompareResult], None] = lambda _: None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> CompareResult:
    """Compare GGUF files with their checkpoint on texts: perplexity, KL divergence, same top token, same experts.

    Args:
        models: the folder of the checkpoint and the files; or a `ModelChoice`, which also names another base, and types
            that no file is written of.
        texts: files, each perhaps as NAME=FILE; or a `TextChoice`, which also says how they are cut.
        settings, state, ray, on_result, progress, note: see `run`.

    Raises:
        MoeGgufError: see `prepare` and `run`.

    >>> result = compare(ModelChoice.of(demo_model, types=["Q8_0"]), TextChoice.of(str(text), n_chunk=2))
    >>> result.comparison.results[0][0].statistics.kld.value < 0.01
    True
    """
    models = models if isinstance(models, ModelChoice) else ModelChoice.of(*models)
    if not isinstance(texts, TextChoice):
        texts = TextChoice.of(*([texts] if isinstance(texts, str) else texts))
    job = prepare(models, texts, note=note)
    return run(job, settings, state=state, ray=ray, on_result=on_result, progress=progress, note=note)


def prepare(models: ModelChoice, texts: TextChoice, *, note: Note = discard) -> CompareJob:
    """Open the models and cut the texts.

    Args:
        models: the base, and what is held against it.
        texts: at least one, unless the base is a file of logits, which brings its own.
        note: is given remarks, one by one.

    Raises:
        MoeGgufError: a file is damaged, of an unknown type or of another model, or given twice, as may be a type; a
            tokenizer differs; a text is short, or called as another, as may be a model.
    """
    texts.refuse_twins()
    opened = open_models(models, note)
    labels_of(opened.base, opened.models)
    cutter = opened.sources[0]
    own = [own_text(opened.base, cutter, texts)] if opened.base.kind == "logits" else []
    chunks = own or cut_choice(cutter, texts)
    return CompareJob(opened.base, opened.models, tuple(chunks), opened.sources, models.imatrix)


def run(
    job: CompareJob,
    settings: PassSettings | None = None,
    *,
    state: StateSettings | None = None,
    ray: str | None = None,
    on_result: Callable[[CompareResult], None] = lambda _: None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> CompareResult:
    """The pass over the texts.

    Args:
        job: from `prepare`.
        settings: how the models run; by default as `PassSettings` says.
        state: where the state is kept; None keeps none. A run that was stopped goes on behind the last layer that was
            kept, if it is given the same job and settings.
        ray: the address of a Ray cluster over which shares of the texts are spread, "local" for one of this machine
            (see `cluster.connection.connected`); such a run keeps no state. The figures are the same whatever nodes
            there are, and differ from those of a run without by rounding.
        on_result: is given the result while the state is still there: where it raises, nothing is lost.
        progress: told the tokens that are through, then the chunks that are compared.
        note: is given remarks on the state, one by one.

    Raises:
        OutputError: another run keeps its state there, or the folder cannot be written.
        LogitsError, ActivationError, CheckpointError: see `side_by_side.compare`.
        ModelChangedError: a file changed while it was read; there is no result.
    """
    settings = settings or PassSettings()
    read_before = job.bytes_read
    with ExitStack() as stack:
        keeper = None
        if state is not None:
            prints = fingerprint_of(job, settings)
            keeper = stack.enter_context(
                StateFile(state.path, state.label, prints, restart=state.restart, note=note)
            )
        if ray is not None:
            comparison = _spread(job, settings, ray, progress, note)
        else:
            comparison = side_by_side.compare(
                job.base,
                job.models,
                job.texts,
                activations=settings.activations,
                settings=settings.forward,
                keeper=keeper,
                progress=progress,
            )
        for source in job.files:
            source.refuse_changed()
        result = CompareResult(comparison, job.n_in_pass, job.bytes_read - read_before)
        on_result(result)
    return result


def _spread(
    job: CompareJob, settings: PassSettings, address: str, progress: OnProgress, note: Note
) -> Comparison:
    """The comparison from shares of the texts, each on a node of a cluster."""
    started = time.monotonic()
    work = partial(
        score_shares,
        job.base,
        job.models,
        job.texts,
        activations=settings.activations,
        settings=settings.forward,
    )
    shares = spread_shares(address, work, job.texts, progress=progress, note=note)
    found = joined(job.texts, shares)
    found.timings.total = time.monotonic() - started
    return side_by_side.comparison_of(job.base, job.models, job.texts, settings.activations, found)


def fingerprint_of(job: CompareJob, settings: PassSettings) -> dict[str, str]:
    """All that decides the figures of `run`, by names that a person understands."""
    in_pass = [*([job.base] if job.base.kind == "model" else []), *job.models]
    types = [
        (model.name, [(spec.name, spec.qtype.name) for spec in model.source.specs()]) for model in in_pass
    ]
    prints = fingerprint.of_pass(job.texts, settings.forward) | {
        "activations": "int8, cache of f16" if settings.activations == "int8" else "exact",
        "importance matrix": fingerprint.of_imatrix(job.imatrix),
        "choice of models": fingerprint.hashed([json.dumps(types).encode()]),
    }
    if job.base.kind == "logits":
        prints[f"file {job.base.path}"] = job.base.fingerprint()
    for source in job.sources:
        name = "checkpoint" if source.kind == "checkpoint" else f"file {source.label}"
        prints[name] = source.fingerprint()
    return prints
