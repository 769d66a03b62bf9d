"""Faults of a checkpoint that headers and a sample of the weights show, named before hours of work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf_export.checking.findings import Finding, Findings, error, info, warning
from gguf_export.checking.shard_checks import check_shards, check_types
from gguf_export.checking.template_checks import check_templates
from gguf_export.checking.tokenizer_checks import check_tokenizer
from gguf_export.checking.weight_checks import check_weights
from gguf_export.metadata.model_keys import model_keys
from quantize.containers.untrusted import quoted, read_json, refuse_foreign_links
from quantize.exceptions import CheckpointError, MoeGgufError
from quantize.families import family_of
from quantize.families.binding import bind
from quantize.families.config import shape_dims, text_config
from quantize.families.keys import setting
from quantize.families.limits import remarks_on_limits
from quantize.families.roles import is_router
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.hub import local_path
from quantize.telling import OnProgress, Remark, silent

__all__ = ["doctor"]

DERIVED = ("num_key_value_heads", "head_dim")  # null or missing in healthy configs: other keys say it


def doctor(
    path: str | Path, *, full: bool = False, pre: str | None = None, progress: OnProgress = silent
) -> Findings:
    """Look for everything that would stop an export, or make it useless.

    Args:
        path: the folder of a Hugging Face checkpoint, or a GGUF file, of which the chat template is looked at.
        full: read all weights instead of some rows of each matrix.
        pre: name of the pre-tokenizer, where it is not recognised.
        progress: called with the progress in tensors.

    Returns:
        The findings; a healthy checkpoint has neither errors nor warnings.

    Raises:
        ModelChangedError: the checkpoint changed meanwhile: nothing that was found holds.

    >>> doctor(demo_model).summary()  # it is a merge, and has no chat template
    '1 warning'
    """
    try:
        folder = local_path(path)
    except CheckpointError as fault:
        return Findings([Finding.of(fault, place=str(path))])
    return Findings(_check(folder, full, pre, progress))


def _check(path: Path, full: bool, pre: str | None, progress: OnProgress) -> list[Finding]:
    place = str(path)
    if path.is_file():
        return list(_check_gguf(path))
    try:
        refuse_foreign_links(path)
    except CheckpointError as fault:
        return [Finding.of(fault, remedy="give the folder of a Hugging Face checkpoint", place=place)]
    try:
        raw = text_config(read_json(path / "config.json"))
    except CheckpointError as fault:
        return [Finding.of(fault, remedy="copy the config.json of the model there", place=place)]
    findings = [*_config(raw), *check_shards(path)]
    if Findings(findings).worst == "error":
        return findings
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as fault:
        return [*findings, Finding.of(fault, place=place)]
    limits = remarks_on_limits(checkpoint.family.limits, checkpoint.arch, checkpoint.config)
    findings += [Finding.of_remark(remark, "warning") for remark in limits]
    said = {finding.message for finding in findings}
    remarks = [remark for remark in checkpoint.remarks if remark.message not in said]
    findings += [Finding.of_remark(remark, "info", place=place) for remark in remarks]
    findings += check_types(checkpoint.stored, _routers(checkpoint))
    findings += _model_keys(checkpoint)
    findings += check_tokenizer(checkpoint, raw, pre)
    try:
        findings.extend(check_weights(checkpoint, full=full, progress=progress))
        checkpoint.refuse_changed()
    except CheckpointError as fault:  # what was found before it stays
        findings.append(Finding.of(fault, place=place))
    return findings


def _check_gguf(path: Path) -> Iterator[Finding]:
    """What is wrong with the vocabulary and the chat template of a GGUF file; its tensors are `verify`'s."""
    try:
        keys = GGUFFile(path).key_values()
    except MoeGgufError as fault:
        yield Finding.of(fault, place=str(path))
        return
    if not any(kv.key == "tokenizer.ggml.tokens" for kv in keys):
        yield error(str(path), "holds no tokens", "export it again")
        return
    yield from check_templates(str(path), path, keys)


def _config(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the family is known, and which keys are missing that it needs."""
    try:
        family = family_of(raw)
    except CheckpointError as fault:
        yield Finding.of(fault, place="config.json")
        return
    known = set(raw) | {key for alias, key in family.aliases.items() if setting(raw, alias) is not None}
    for key in [*family.settings, "vocab_size"]:
        if key in known or key in DERIVED:
            continue
        if family.defaults.get(key) is None:
            yield error("config.json", f"{key} is missing", "add it as the model was trained")
        else:
            yield warning(
                "config.json",
                f"{key} is missing: {quoted(family.defaults[key])}, transformers' default, would be used",
                "add it as the model was trained",
            )
    rope = raw.get("rope_parameters")
    if "rope_theta" not in known and not (isinstance(rope, dict) and "rope_theta" in rope):
        # Llama's first configs had none, because there was only one value.
        usual = family.architectures[0] == "LlamaForCausalLM"
        text = f"rope_theta is missing: {family.rope_theta:.0f} would be used"
        yield (
            info("config.json", text)
            if usual
            else warning("config.json", text, "add it as the model was trained")
        )


def _routers(checkpoint: Checkpoint) -> set[str]:
    """The stored names of the tensors that choose the experts."""
    dims = shape_dims(checkpoint.family, checkpoint.config, checkpoint.hparams)
    bindings, _ = bind(checkpoint.family, dims, checkpoint.stored)
    return {tensor.name for binding in bindings if is_router(binding.spec) for tensor in binding.stored}


def _model_keys(checkpoint: Checkpoint) -> list[Finding]:
    """Fields of the model card and of generation_config.json that cannot become keys of a GGUF file."""
    remarks: list[Remark] = []
    place = str(checkpoint.path)
    try:
        model_keys(checkpoint, note=remarks.append)
    except CheckpointError as fault:
        return [Finding.of(fault, place=place)]
    remedy = "repair that file, or remove it"
    return [Finding.of_remark(remark, "warning", remedy=remedy, place=place) for remark in remarks]
