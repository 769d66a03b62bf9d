"""Tensor types under a budget of bytes, as one call: costs are measured on a text, types chosen, the choice judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix import Imatrix
from calibration.importance.observers import Collected
from calibration.importance.type_costs import N_TOKEN, TypeCosts, measure_type_costs
from calibration.judging.model import Model
from calibration.judging.perplexity import Estimate
from calibration.judging.round_trip import RoundTrip, SharedSource
from calibration.judging.side_by_side import compare
from calibration.text.text_settings import TextSettings
from gguf_export.files.outputs import refuse_outputs
from gguf_export.files.replacing import write_text
from gguf_export.metadata.type_keys import FISHER, type_keys
from gguf_export.planning.budget import Budget
from gguf_export.planning.job import N_HELD_OUT, Naming, TypeJob, prepare_types
from gguf_export.planning.results import Forecast, TensorChoice, TypePlan
from gguf_export.writing.importances import write_imatrix
from gguf_export.writing.job import ExportJob
from gguf_export.writing.spread_text import spread_encoding, spread_imatrix
from quantize.containers.untrusted import label
from quantize.engine import Engine
from quantize.recipes.budget import TypeOption, choose_types
from quantize.recipes.left_alone import FLOATS
from quantize.recipes.recipe import Recipe
from quantize.recipes.tensor_types import anchored
from quantize.sources.checkpoint_files import files_of_model
from quantize.telling import Note, OnProgress, Remark, discard, silent
from quantize.tensors import QType, bits_per_weight

__all__ = ["plan_types", "run_types"]


def plan_types(
    model: Path | str,
    text: TextSettings | Path | str,
    *,
    like: str | None = None,
    size: str | int | None = None,
    bpw: float | None = None,
    output: Path | str | None = None,
    candidates: Sequence[str] = (),
    imatrix: Imatrix | Path | str | None = None,
    save_imatrix: Path | None = None,
    prior: float = 0.0,
    n_token: int = N_TOKEN,
    n_held_out: int = N_HELD_OUT,
    forward: ForwardSettings | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    engine: Engine | None = None,
    ray: str | None = None,
    force: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> TypePlan:
    """Choose tensor types under a budget of bytes by what each costs each tensor in KL divergence on a text.

    Args:
        model: the folder of a checkpoint, or a GGUF file.
        text: a file, or `TextSettings`.
        like: take as many bytes as the file of this file type.
        size: bytes of the whole file; or a text such as "13.5GiB".
        bpw: bits per weight. One of the three is given.
        output: the file of tensor types that is written, for `export` and for llama-quantize; None writes none.
        candidates: the types that are allowed, by default Q2_K, Q3_K, IQ4_XS, Q4_K, Q5_K, Q6_K and Q8_0.
        imatrix: importances, or the file that holds them; by default the text gives them on the way.
        save_imatrix: keep the importances in this file.
        prior: draws an expert's importances toward its layer's mean with the weight of so many tokens.
        n_token: tokens on which the costs are measured.
        n_held_out: chunks of the text that are held out, on which the file type's own types and the chosen ones are
            measured and the prediction is scaled; 0 for none.
        forward: how the text passes through the model; by default bfloat16 products where the CPU has them.
        name, override_kv, pre: as `export` will be told, for keys take bytes, too.
        engine: encodes; by default threads.
        ray: the address of a Ray cluster, "local" for one of this machine, which works in the place of `engine`; see
            `run_types`.
        force: replace files that exist.
        progress: told the tokens that are through, and what is encoded.
        note: given remarks.

    Raises:
        ChoiceError: the cluster cannot be reached, or does not work.
        RecipeError: no budget is given, or the model does not fit it.
        OutputError: a file exists (`OutputExistsError`) or cannot be written.
        TextError, TokenizerError: the text cannot be used.
        ActivationError, CheckpointError, GGUFError, ModelChangedError: the model is damaged or changed.

    >>> planned = plan_types(demo_model, TextSettings((text,), n_ctx=128, n_chunk=4), like="Q4_K_M", n_held_out=1)
    >>> planned.ftype, planned.chosen.n_bytes <= planned.usual.n_bytes
    ('Q4_K_M', True)
    """
    text = TextSettings.of(text)
    outputs = [Path(path) for path in (output, save_imatrix) if path is not None]
    inputs = [*files_of_model(Path(model)), *text.files]
    if isinstance(imatrix, (str, Path)):
        inputs.append(Path(imatrix))
    refuse_outputs(outputs, force=force, inputs=inputs)
    job = prepare_types(
        model,
        text,
        Budget.of(like, size, bpw),
        candidates=candidates,
        imatrix=imatrix,
        imatrix_label=label(save_imatrix or "collected while types were chosen"),
        prior=prior,
        n_held_out=n_held_out,
        forward=forward,
        naming=Naming(name, override_kv, pre),
        note=note,
    )
    planned = run_types(job, n_token=n_token, engine=engine, ray=ray, progress=progress, note=note)
    if save_imatrix is not None:
        write_imatrix(save_imatrix, planned.imatrix)
    if output is not None:
        write_text(Path(output), planned.types_text())
    return planned


def run_types(
    job: TypeJob,
    *,
    n_token: int = N_TOKEN,
    engine: Engine | None = None,
    ray: str | None = None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> TypePlan:
    """The passes over the text, and the choice between them.

    Args:
        job: from `prepare_types`.
        n_token, engine, progress, note: see `plan_types`.
        ray: the address of a Ray cluster (see `cluster.connection.connected`): importances are collected from shares of
            the text on its nodes, and then the encodings are spread over them, while the few chunks whose gradients are
            taken, and those that are held out, run through the model here. The figures are the same whatever nodes
            there are, and differ from those of a run without by rounding.

    Raises:
        RecipeError: no choice fits the budget.
        ModelChangedError: a file of the model changed while it was read.
        MoeGgufError: see `measure_type_costs` and `side_by_side.compare`.
    """
    measure = partial(
        measure_type_costs,
        job.source,
        job.fit,
        _measured_types(job),
        n_token=n_token,
        prior=job.expected.prior,
        settings=job.settings,
        progress=progress,
    )
    if ray is None:
        costs = measure(imatrix=job.imatrix, engine=engine)
    else:
        with spread_encoding(ray, note) as nodes:
            collected = None if job.imatrix is not None else _collected(job, ray, progress, note)
            costs = measure(imatrix=collected.imatrix if collected else job.imatrix, engine=nodes)
            costs = replace(costs, load=collected.load) if collected else costs
    imatrix = replace(costs.imatrix, file=job.expected.file)
    tensors = _chosen(job, costs, note)
    types = anchored({tensor.name: QType[tensor.qtype] for tensor in tensors})
    recipe = Recipe(job.ftype, tensor_types=types, stated=type_keys(FISHER, costs.n_token, 0.0))
    exported = job.exported(recipe, imatrix)
    usual = _forecast(job.usual, sum(tensor.usual_cost for tensor in tensors))
    chosen = _forecast(exported, sum(tensor.cost for tensor in tensors))
    if job.judged is not None:
        usual, chosen = _measured(job, exported, imatrix, usual, chosen, progress)
    job.source.refuse_changed()
    recipe = replace(recipe, stated=type_keys(FISHER, costs.n_token, chosen.predicted))
    return TypePlan(
        ftype=job.ftype.name,
        tensors=tensors,
        usual=usual,
        chosen=chosen,
        candidates=tuple(qtype.name for qtype in job.candidates),
        n_token=costs.n_token,
        n_measured=0 if job.judged is None else job.judged.n_chunk,
        recipe=recipe,
        imatrix=imatrix,
        load=costs.load,
        timings=costs.timings,
    )


def _collected(job: TypeJob, address: str, progress: OnProgress, note: Note) -> Collected:
    """Importances from shares of the text on the nodes of a cluster."""
    return spread_imatrix(
        address, job.source, job.fit, job.settings, prior=job.expected.prior, progress=progress, note=note
    )


def _measured_types(job: TypeJob) -> list[QType]:
    """The candidates, and the types of the file type's own mixture, which is predicted, too."""
    usual = (planned.fallback_from or planned.qtype for planned in job.free)
    return list(dict.fromkeys((*job.candidates, *(qtype for qtype in usual if qtype not in FLOATS))))


def _chosen(job: TypeJob, costs: TypeCosts, note: Note) -> tuple[TensorChoice, ...]:
    """The choice; a tensor of which no costs are known keeps the file type's own type.

    Raises:
        RecipeError: no choice fits the budget.
    """

    def cost(name: str, *qtypes: QType | None) -> float:
        known = costs.costs.get(name, {})
        return next((known[qtype] for qtype in qtypes if qtype is not None and qtype in known), 0.0)

    if costs.unreached:
        name, xid = costs.unreached[0]
        what = f"{len(costs.unreached)} matrices, such as {name} expert {xid}"
        message = f"no token on which costs are measured reached {what}"
        note(Remark("", message, "give {setting} more", setting="cost_tokens"))
    unknown = [planned for planned in job.free if not costs.costs.get(planned.spec.name)]
    if unknown:
        message = (
            f"nothing is known of {len(unknown)} tensors, such as {unknown[0].name}: they keep their types"
        )
        note(Remark("", message, "more text may reach them"))
    options = {}
    for planned in job.free:
        name = planned.spec.name
        allowed = job.allowed(planned) if planned not in unknown else job.kept(planned)
        options[name] = [TypeOption(qtype, n_bytes, cost(name, qtype)) for qtype, n_bytes in allowed.items()]
    chosen = choose_types(options, job.room)
    return tuple(
        TensorChoice(
            name=planned.name,
            qtype=chosen[planned.spec.name].name,
            n_bytes=replace(planned.spec, qtype=chosen[planned.spec.name]).n_bytes,
            cost=cost(planned.spec.name, chosen[planned.spec.name]),
            usual_qtype=planned.qtype.name,
            usual_n_bytes=planned.n_bytes,
            usual_cost=cost(planned.spec.name, planned.qtype, planned.fallback_from),
        )
        for planned in job.free
    )


def _forecast(exported: ExportJob, cost: float) -> Forecast:
    return Forecast(exported.files[0].n_bytes, exported.plans[0].bpw, cost)


def _measured(
    job: TypeJob,
    exported: ExportJob,
    imatrix: Imatrix,
    usual: Forecast,
    chosen: Forecast,
    progress: OnProgress,
) -> tuple[Forecast, Forecast]:
    """Both forecasts with what was measured on the chunks that are held out, and the scale that follows.

    The scale is the geometric mean of measured over predicted: an error of the file type's own types and one of the
    choice weigh alike, however small the one that is chosen for being small.
    """
    if job.judged is None:
        return usual, chosen
    shared = SharedSource(job.source, 3)
    n_bytes = sum(spec.n_bytes for spec in job.source.specs())
    bpw = bits_per_weight(n_bytes, sum(spec.n_elements for spec in job.source.specs()))
    plans: Mapping[str, ExportJob] = {job.ftype.name: job.usual, "chosen types": exported}
    comparison = compare(
        Model(job.source.label, shared, n_bytes, bpw),
        [
            Model(name, RoundTrip(shared, made.plans[0], imatrix), made.files[0].n_bytes, made.plans[0].bpw)
            for name, made in plans.items()
        ],
        [job.judged],
        settings=replace(job.settings, dtype=torch.float32),  # differences are small
        progress=lambda moment: progress(replace(moment, stage=f"measuring: {moment.stage}")),
    )
    klds = [results[0].statistics.kld for results in comparison.results]
    scale = _scale([usual.unscaled, chosen.unscaled], klds)
    return tuple(  # type: ignore[return-value]
        replace(forecast, scale=scale, measured=kld)
        for forecast, kld in zip((usual, chosen), klds, strict=True)
    )


def _scale(predicted: Sequence[float], measured: Sequence[Estimate]) -> float | None:
    """The geometric mean of measured over predicted; None where one of them is nothing."""
    pairs = list(zip(predicted, measured, strict=True))
    if any(one <= 0 or other.value <= 0 for one, other in pairs):
        return None
    return math.exp(sum(math.log(other.value / one) for one, other in pairs) / len(pairs))
