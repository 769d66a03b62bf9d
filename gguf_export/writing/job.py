"""An export before its first weight is read: the model, the files that will be made of it, and their importances."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path

from gguf import GGUFValueType

from calibration.importance.imatrix import Imatrix
from calibration.text.chosen_template import TemplateChoice
from gguf_export.metadata import file_names as names
from gguf_export.metadata import model_keys as metadata
from gguf_export.metadata.type_keys import PREFIX
from gguf_export.vocab import vocab_keys as vocab
from gguf_export.vocab.chat_templates import with_template
from gguf_export.writing.header import header
from gguf_export.writing.parts import Split, part_keys, part_paths, part_plans
from gguf_export.writing.pruning import pruning_remarks
from quantize.containers.gguf_parts import model_stem
from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import quoted
from quantize.decoding import can_decode
from quantize.exceptions import DecodeError, GGUFError, NeedsImatrixError, OutputError, RecipeError
from quantize.recipes.copying import converted_file_type, guessed_file_type
from quantize.recipes.ftypes import COPY, Ftype
from quantize.recipes.layout import Plan, PlannedTensor
from quantize.recipes.left_alone import FLOATS, converted_type
from quantize.recipes.recipe import (
    Recipe,
    RecipeFacts,
    file_order,
    make_plan,
    require_importances,
)
from quantize.sources.model_source import ModelFile
from quantize.telling import Note, Remark
from quantize.tensors import QType
from quantize.tracing import span

__all__ = ["ExportJob", "Output", "OutputFile", "as_copied", "keys_of", "prepare"]


@dataclass(frozen=True)
class OutputFile:
    """One file to be written, complete but for its weights: a model, or a part of it."""

    path: Path
    plan: Plan
    keys: tuple[KeyValue, ...]
    keeps_axes: bool = False
    """Axes of length 1 are written, too: see `header`."""

    @cached_property
    def header(self) -> bytes:
        """The bytes before the first tensor."""
        return header(self.keys, self.plan, keeps_axes=self.keeps_axes)

    @property
    def n_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.header) + self.plan.data_bytes


@dataclass(frozen=True)
class Output:
    """A model in one type: a file, or the parts of one that is split."""

    plan: Plan
    """Of the model, whatever the parts are."""
    files: tuple[OutputFile, ...]


@dataclass(frozen=True)
class ExportJob:
    """A prepared export: see `prepare`."""

    source: ModelFile
    outputs: tuple[Output, ...]
    imatrix: Imatrix | None = None
    remarks: tuple[Remark, ...] = ()
    """Remarks on the model and the importances: fallbacks taken, settings that a GGUF cannot say."""

    @property
    def files(self) -> tuple[OutputFile, ...]:
        """All files that will lie on the disk."""
        return tuple(file for output in self.outputs for file in output.files)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each output."""
        return tuple(output.plan for output in self.outputs)

    @property
    def weighted(self) -> frozenset[str]:
        """Names of the tensors of which importances are known."""
        return frozenset(self.imatrix.entries) if self.imatrix else frozenset()


def prepare(
    source: ModelFile,
    recipes: Sequence[Recipe],
    folder: Path,
    *,
    imatrix: Imatrix | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    template: TemplateChoice | None = None,
    publisher: str | None = None,
    allow_requantize: bool = False,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    prune_layers: Sequence[int] = (),
    file: Path | None = None,
    split: Split | None = None,
    only_planned: bool = False,
) -> ExportJob:
    """Plan the files; nothing is written and no weight is read.

    Args:
        source: the model; of a GGUF file the keys are copied, so that `pre` means nothing.
        recipes: one for each file.
        folder: where the files go; with `publisher`, the root of LM Studio's models.
        imatrix: importances of the inputs, per tensor and expert.
        name: `general.name`, and the base of the file names; by default found as llama.cpp's converter finds it, or
            those that a GGUF file has.
        override_kv: metadata to set, spelled KEY=TYPE:VALUE as llama-quantize takes it.
        pre: name of the pre-tokenizer, where it is not recognised.
        template: the chat template, in the place of the model's own.
        publisher: put the files where LM Studio looks: `folder/publisher/model/file.gguf`.
        allow_requantize: quantize again what a GGUF file holds quantized, which adds one loss to the other.
        include_weights: parts of names; where there are any, other importances are not used.
        exclude_weights: parts of names; importances of such tensors are not used.
        prune_layers: layers that are left out; those behind them get new numbers.
        file: the path of the one file, in the place of a name in `folder`.
        split: cut each file into parts.
        only_planned: no file will be made of the job: importances that some types need may be missing, with a remark.

    Raises:
        MoeGgufError: a recipe, tokenizer, imatrix or setting that does not fit the model.
    """
    if file is not None and len(recipes) != 1:
        raise OutputError(str(file), "is one file, and several types are asked for", "name a folder")
    specs = source.specs()
    remarks: list[Remark] = list(source.remarks) if source.kind == "checkpoint" else []
    if imatrix is not None:
        remarks += imatrix.check(specs)
        imatrix, told = _chosen(imatrix, include_weights, exclude_weights)
        remarks += told
    overrides = [metadata.parse_override(text) for text in override_kv]
    if source.kind == "gguf" and name is not None:
        overrides.insert(0, KeyValue.text("general.name", metadata.exact_name(name)))
    with span("keys"):
        keys = keys_of(source, name=name, pre=pre, note=remarks.append)
    if template is not None:
        keys = with_template(keys, template.text)
    # llama-quantize's rules see what is set by hand: whoever sets expert_count to 8 gets the types of a Mixtral.
    arch = next((kv.value for kv in reversed(overrides) if kv.key == "general.architecture"), source.arch)
    facts = RecipeFacts.of_keys(arch, [*keys, *overrides])
    outputs = []
    for recipe in recipes:
        plan = make_plan(
            specs,
            facts,
            recipe,
            has_imatrix=imatrix is not None,
            left_as=partial(converted_type, arch=source.arch)
            if source.kind == "checkpoint"
            else attrgetter("qtype"),
            keeps_blocks=source.kind == "checkpoint",
            prune_layers=prune_layers,
            keeps_order=split is not None and split.keeps_parts,
        )
        for planned in plan.tensors:
            _refuse_change(source, planned, allow_requantize)
        try:
            require_importances(plan, lambda name: imatrix is not None and name in imatrix.entries)
        except NeedsImatrixError as error:
            if not only_planned:
                raise
            remarks.append(Remark(error.place, error.message, error.remedy, error.setting))
        n_layer = [] if plan.n_layer is None else [KeyValue.u32(f"{arch}.block_count", plan.n_layer)]
        kept = [kv for kv in keys if recipe.ftype is COPY or not kv.key.startswith(PREFIX)]
        file_type = _file_type(source, keys, plan)
        file_keys = metadata.assemble(kept, file_type, imatrix, overrides, n_layer, recipe.stated)
        path = file or _path_of(folder, _file_name(source, keys, recipe.ftype, name), keys, publisher)
        outputs.append(Output(plan, _files(path, plan, file_keys, split, source)))
    if prune_layers:
        remarks += pruning_remarks(facts, keys, outputs[0].plan, prune_layers)
    job = ExportJob(source, tuple(outputs), imatrix, tuple(remarks))
    if len({made.path for made in job.files}) < len(job.files):
        raise OutputError(
            str(job.files[0].path), "two of the files would have the same name", "give each type once"
        )
    return job


def _chosen(
    imatrix: Imatrix, include: Sequence[str], exclude: Sequence[str]
) -> tuple[Imatrix | None, list[Remark]]:
    """Of the importances those that shall be used; none at all, with a remark, where nothing is left of them."""
    chosen = imatrix.selected(include, exclude)
    if chosen.n_entry:
        return chosen, []
    message = "nothing is left of the importances: the files are made without"
    return None, [Remark(imatrix.file, message, setting="exclude_weights" if exclude else "include_weights")]


def _files(
    path: Path, plan: Plan, keys: Sequence[KeyValue], split: Split | None, source: ModelFile
) -> tuple[OutputFile, ...]:
    """The file, or its parts."""
    plans = [] if split is None else part_plans(plan, split, source)
    if split is None or (split.in_folders and len(plans) == 1):
        is_converted = source.kind == "checkpoint" and all(t.qtype in FLOATS for t in plan.tensors)
        return (OutputFile(path, plan, tuple(keys), keeps_axes=is_converted),)
    paths = part_paths(path.with_suffix("") / path.name if split.in_folders else path, len(plans))
    return tuple(
        OutputFile(part, plans[no], part_keys(keys, split, no, plans)) for no, part in enumerate(paths)
    )


def keys_of(source: ModelFile, *, name: str | None, pre: str | None, note: Note) -> list[KeyValue]:
    """All keys of a model before it is quantized: a GGUF file's own, or those that the converter makes.

    Raises:
        TokenizerError: the checkpoint's tokenizer cannot become keys.
    """
    if source.kind == "gguf":
        return [as_copied(kv) for kv in source.key_values()]
    keys = metadata.model_keys(source, name=name, note=note)
    return keys + vocab.vocab_keys(
        source.path, source.config, source.hparams.n_vocab, pre, note, source.family.vocab
    )


def as_copied(kv: KeyValue) -> KeyValue:
    """A key as llama.cpp copies it: of a text that which stands before a NUL (ggml/src/gguf.cpp: gguf_set_kv)."""
    if kv.type == GGUFValueType.STRING:
        return replace(kv, value=kv.value.partition("\0")[0])
    if kv.sub_type == GGUFValueType.STRING:
        return replace(kv, value=[text.partition("\0")[0] for text in kv.value])
    return kv


def _refuse_change(source: ModelFile, planned: PlannedTensor, allow_requantize: bool) -> None:
    """Refuse to make a type of a tensor of what cannot be read, or should not be quantized again.

    A checkpoint whose matrices are quantized was published so: there is nothing better to make a file of.

    Raises:
        DecodeError: its type cannot be decoded here.
        RecipeError: it is quantized already.
    """
    spec = planned.spec
    if spec.qtype in (planned.qtype, *FLOATS):
        return
    place = f"{source.label}: tensor {quoted(spec.name)}"
    if not can_decode(spec.qtype):
        raise DecodeError(place, f"is {spec.qtype.name}, which cannot be made {planned.qtype.name} here")
    if source.kind == "gguf" and not allow_requantize:
        raise RecipeError(
            place,
            f"is {spec.qtype.name} already; made {planned.qtype.name}, it would lose twice",
            "take a BF16 or F16 file of the model, or pass {setting}",
            setting="allow_requantize",
        )


def _file_type(source: ModelFile, keys: Sequence[KeyValue], plan: Plan) -> int:
    """The number of the file type; of a copy that which the source states, or the one by its tensors."""
    weights = [(planned.qtype, planned.spec.n_elements) for planned in plan.tensors]
    keeps_blocks = plan.ftype.qtype in FLOATS and any(qtype is QType.MXFP4 for qtype, _ in weights)
    if source.kind == "checkpoint" and (plan.ftype is COPY or keeps_blocks):
        return converted_file_type(weights)
    if plan.ftype is not COPY:
        return plan.ftype.id
    stated = next((kv.value for kv in keys if kv.key == "general.file_type"), None)
    if stated is None:
        return guessed_file_type(spec.qtype for spec in file_order(source.specs()))
    if type(stated) is not int or not 0 <= stated < 2**32:
        raise GGUFError(source.label, f"general.file_type is {quoted(stated)}, a number is expected")
    return stated


def _file_name(source: ModelFile, keys: Sequence[KeyValue], ftype: Ftype, name: str | None) -> str:
    """The name of a file that is made: a GGUF file's own with another type, or what its keys say."""
    if source.kind == "checkpoint":
        stem = names.stem_of(keys)
    else:
        stem = model_stem(source.path) if name is None else names.safe_name(name)
    if ftype is COPY:
        return f"{stem}-copy.gguf"
    if source.kind == "checkpoint":
        return names.output_name(keys, ftype.name)
    return names.retyped(stem, ftype.name)


def _path_of(folder: Path, file_name: str, keys: Sequence[KeyValue], publisher: str | None) -> Path:
    if publisher is None:
        path = folder / file_name
    else:
        path = names.lmstudio_path(folder, publisher, names.model_folder(keys), file_name)
    try:
        os.fsencode(path)
    except UnicodeError:
        encoding = sys.getfilesystemencoding()
        raise OutputError(
            str(path),
            f"the encoding of file names here, {encoding}, lacks a character of it",
            "give another {setting}, or set LC_ALL to a locale of UTF-8",
            setting="name",
        ) from None
    return path
