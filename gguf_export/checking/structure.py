"""Whether llama.cpp would load a GGUF file: everything its loader checks before the first token.

The container itself (counts, offsets, sizes, names) is checked by `quantize.containers.gguf`, which reads nothing
that ggml refuses. Here are the checks of src/llama-model-loader.cpp, src/llama-model.cpp, src/llama-vocab.cpp and
src/models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from gguf import GGUFValueType as Type
from gguf.constants import MODEL_ARCH_NAMES

from calibration.text import pretokenizers
from gguf_export.checking.findings import Finding, error, info, warning
from gguf_export.checking.remedies import AGAIN, FETCH
from quantize.containers.keys import elements
from quantize.containers.untrusted import quoted
from quantize.exceptions import GGUFError
from quantize.families import known_keys
from quantize.families.fit import are_known, dimension_misfits, tensor_misfits
from quantize.hparams import Hparams
from quantize.recipes.layout import padded
from quantize.sources.gguf_file import GGUFFile

__all__ = ["check_structure"]

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
SPLIT_TYPES = {"split.no": Type.UINT16, "split.count": Type.UINT16, "split.tensors.count": Type.INT32}
TOKENIZER_TYPES = {
    **dict.fromkeys(("model", "pre"), (Type.STRING,)),
    **dict.fromkeys(("tokens", "merges"), (Type.STRING,)),
    "scores": (Type.FLOAT32, Type.INT32),
    "token_type": (Type.INT32,),
    **dict.fromkeys(
        (
            f"{kind}_token_id"
            for kind in ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask")
        ),
        (Type.UINT32,),
    ),
    **dict.fromkeys((f"add_{what}" for what in ("bos_token", "eos_token", "space_prefix")), (Type.BOOL,)),
}
TOKENIZER_ARRAYS = {"tokens", "merges", "scores", "token_type"}


def check_structure(file: GGUFFile) -> list[Finding]:
    """Look for everything in an open file that the loader would refuse or warn of; no weight is read."""
    if file.place is not None:
        told = f"{file.place} of a model: the first part holds its keys, and is verified together with all others"
        return [*_split_keys(file), *_tail(file), info(str(file.path), told)]
    findings = [*_architecture(file), *_tokenizer(file), *_tail(file)]
    if file.is_vocabulary:
        return findings
    arch = file.keys.get("general.architecture")
    per_layer = [f"{arch}.{row.name}" for row in known_keys(str(arch)).values() if row.per_layer]
    arrays = [key for key in per_layer if elements(file.keys.get(key)) is not None]
    if arrays:
        return [*findings, info(arrays[0], "differs by layer: the tensors are not checked by name")]
    try:
        hparams = file.hparams
    except GGUFError as fault:
        # A key that is missing or of a wrong type may have been named already, more precisely.
        if not any(finding.severity == "error" for finding in findings):
            findings.append(Finding.of(fault, remedy=AGAIN, place=str(file.path)))
        return findings
    return [*findings, *_fit(file, hparams)]


def _architecture(file: GGUFFile) -> Iterator[Finding]:
    """Keys that must be there, and types, which the loader takes literally."""
    arch = file.keys.get("general.architecture")
    if not isinstance(arch, str):
        yield error("general.architecture", "is missing or no text", f"is this a model? if so, {AGAIN}")
        return
    if arch not in MODEL_ARCH_NAMES.values():
        yield warning(
            "general.architecture", f"{quoted(arch)} is unknown here, and perhaps to llama.cpp", AGAIN
        )
    yield from _wrong_types(file, {**SPLIT_TYPES, "general.name": Type.STRING})
    scaling = file.keys.get(f"{arch}.rope.scaling.type", "none")
    if isinstance(scaling, str) and scaling not in ROPE_SCALINGS:
        yield error(f"{arch}.rope.scaling.type", f"{quoted(scaling)} is unknown to llama.cpp", AGAIN)
    if not file.is_vocabulary:  # of which the loader reads the tokenizer alone
        yield from _arch_keys(file, arch)
    quantized = any(stored.spec.qtype.name not in ("F32", "F16", "BF16") for stored in file.tensors.values())
    if quantized and file.keys.get("general.quantization_version", 2) != 2:
        yield warning("general.quantization_version", "is not 2, ggml's present one", AGAIN)


def _split_keys(file: GGUFFile) -> Iterator[Finding]:
    """Keys of a part that are missing, or of a type that the loader does not take."""
    for key in SPLIT_TYPES.keys() - file.keys.keys():
        yield warning(key, "is missing", AGAIN)
    yield from _wrong_types(file, SPLIT_TYPES)


def _wrong_types(file: GGUFFile, types: Mapping[str, Type]) -> Iterator[Finding]:
    for key, wanted in types.items():
        there = file.types.get(key, (wanted, None))[0]
        if there != wanted:
            yield error(key, f"is of type {there.name}, the loader wants {wanted.name}", AGAIN)


def _arch_keys(file: GGUFFile, arch: str) -> Iterator[Finding]:
    """Keys of the architecture that are missing or of a type that the loader does not take."""
    n_layer = file.keys.get(f"{arch}.block_count")
    for name, row in known_keys(arch).items():
        key = f"{arch}.{name}"
        kind, element = file.types.get(key, (None, None))
        if kind is None:
            if row.is_required and not _has_layer_norm(file, key):
                yield error(key, "is missing", AGAIN)
        elif kind == Type.ARRAY and row.per_layer:
            if element not in (Type.INT32, Type.UINT32) or len(file.keys[key]) != n_layer:
                yield error(key, "is no array of one u32 or i32 for each layer", AGAIN)
        elif kind != row.type:
            yield error(key, f"is of type {kind.name}, the loader wants {row.type.name}", AGAIN)


def _has_layer_norm(file: GGUFFile, key: str) -> bool:
    """Whether the file has the epsilon of an ordinary layer norm instead of this one."""
    return key.replace("layer_norm_rms_", "layer_norm_") in file.keys


def _tokenizer(file: GGUFFile) -> Iterator[Finding]:
    """Whether the vocabulary is complete, of the types that the loader takes, and that of the embedding."""
    prefix = "tokenizer.ggml."
    keys: Mapping[str, Any] = {
        key.removeprefix(prefix): value for key, value in file.keys.items() if key.startswith(prefix)
    }
    for name in ("model", "tokens"):
        if name not in keys:
            yield error(prefix + name, "is missing: the file has no vocabulary", AGAIN)
            return
    has_wrong_types = False
    for name, allowed in TOKENIZER_TYPES.items():
        kind, element = file.types.get(prefix + name, (None, None))
        is_array = name in TOKENIZER_ARRAYS
        if name in keys and (
            is_array != (kind == Type.ARRAY) or (element if is_array else kind) not in allowed
        ):
            has_wrong_types = True
            yield error(prefix + name, "is of a type that the loader does not take", AGAIN)
    if has_wrong_types:
        return
    n_tokens = len(keys["tokens"])
    texts = [text.partition("\0")[0] for text in keys["tokens"]]  # the loader reads C strings
    if len(set(texts)) < n_tokens:
        double = Counter(texts).most_common(1)[0][0]
        yield error(f"{prefix}tokens", f"{quoted(double)} is there twice", AGAIN)
    for name in ("scores", "token_type"):
        if name in keys and len(keys[name]) < n_tokens:
            yield error(prefix + name, f"has {len(keys[name])} entries for {n_tokens} tokens", AGAIN)
    if keys["model"] == "gpt2":
        if "merges" not in keys:
            yield error(f"{prefix}merges", "is missing: a byte-level BPE cannot do without", AGAIN)
        if keys.get("pre", "default") not in (*pretokenizers.KNOWN, "default"):
            yield error(f"{prefix}pre", f"{quoted(keys['pre'])} is unknown to llama.cpp", AGAIN)
    for name, value in keys.items():
        if name.endswith("_token_id") and isinstance(value, int) and value >= n_tokens:
            yield warning(prefix + name, f"is {value}, the last token is {n_tokens - 1}", AGAIN)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and embedding.spec.n_row != n_tokens:
        yield error(
            f"{prefix}tokens", f"{n_tokens} tokens for an embedding of {embedding.spec.n_row} rows", AGAIN
        )


def _fit(file: GGUFFile, hparams: Hparams) -> Iterator[Finding]:
    """Whether dimensions and tensors go together."""
    for misfit in dimension_misfits(hparams, file.keys):
        yield error(misfit.place, misfit.message, AGAIN)
    for misfit in tensor_misfits(hparams, file.specs()):
        yield error(misfit.place, misfit.message, FETCH if misfit.is_missing else AGAIN)
    if not are_known(hparams):
        text = f"architecture {quoted(hparams.arch)}: its tensors are not known here by name"
        yield info(str(file.path), text)


def _tail(file: GGUFFile) -> Iterator[Finding]:
    """Whether there are tensors, and nothing but padding behind the last."""
    if file.is_vocabulary:
        yield info(str(file.path), "holds no tensors (a vocabulary only): no weights are checked")
        return
    if not file.tensors and file.place is None:
        yield error(str(file.path), "holds no tensors", "is this a model?")
        return
    for i, part in enumerate(file.parts):
        stored = [one for one in file.tensors.values() if one.part == i]
        if not stored:  # llama-gguf-split --no-tensor-first-split leaves the first part without
            continue
        last = stored[-1]
        end = last.offset + last.n_bytes
        if part.n_bytes > max(end, last.offset + padded(last.n_bytes), end + -last.n_bytes % part.alignment):
            yield warning(str(part.path), f"{part.n_bytes - end} bytes lie behind the last tensor", FETCH)
