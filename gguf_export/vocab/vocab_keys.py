"""The vocabulary of a folder as tokenizer.* keys, the way llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from calibration.text.folder_vocabulary import read_vocabulary
from calibration.text.library_parts import readable_steps
from calibration.text.pretokenizers import choose_pre
from calibration.text.special_tokens import SpecialTokens
from calibration.text.tokenizer_files import TokenizerFiles
from calibration.text.vocabulary import BYTE_LEVEL, SPM, Vocabulary
from gguf_export.vocab.chat_templates import template_keys
from quantize.containers.keys import KeyValue
from quantize.exceptions import TokenizerError
from quantize.families.vocab_rules import LLAMA_VOCAB, VocabRules
from quantize.telling import Note, discard

__all__ = ["vocab_keys"]

PREFIX = "tokenizer.ggml"

_CODE_LLAMA, _GRANITE = 32016, 49152  # vocabulary sizes by which the converter knows them
_CODE_LLAMA_EOT = 32010

_ID_KEYS = {  # "seperator" is llama.cpp's spelling; cls has no key
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "eom": "eom",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "mask": "mask",
}


def vocab_keys(
    path: Path,
    config: Mapping[str, Any],
    n_vocab: int,
    pre: str | None = None,
    note: Note = discard,
    rules: VocabRules = LLAMA_VOCAB,
) -> list[KeyValue]:
    """The tokenizer.* keys of the model in folder `path`, in llama.cpp's order.

    Args:
        path: the model's folder.
        config: config.json; its `vocab_size` tells CodeLlama and Granite where `rules` look for them.
        n_vocab: rows of the embedding: the list of tokens gets exactly this length.
        pre: name of the pre-tokenizer of a byte-level BPE, given by hand where it is not recognised.
        note: receives a remark for each fact that was left out or overruled.
        rules: those of the model's family.

    Raises:
        TokenizerError: there is no tokenizer, it is damaged or of an unsupported kind, its pre-tokenizer is unknown, or
            it has more tokens than the embedding has rows.
    """
    files = TokenizerFiles(path)
    vocabulary = read_vocabulary(files, n_vocab, note, rules)
    if vocabulary.kind == BYTE_LEVEL:
        pre = choose_pre(files, pre, note)
    elif pre is not None:
        raise TokenizerError(
            vocabulary.label,
            "only a byte-level BPE has a pre-tokenizer to be named",
            "leave {setting} out",
            setting="pre",
        )
    keys = _token_keys(vocabulary, pre or "default")
    keys += _special_keys(vocabulary.special)
    keys += template_keys(files, note)
    keys += _normalizer_keys(files)
    if vocabulary.add_space_prefix is not None:
        prefix = [KeyValue.flag(f"{PREFIX}.add_space_prefix", vocabulary.add_space_prefix)]
        keys = prefix + keys if rules.add_space_prefix == "first" else keys + prefix
    if not rules.known_sizes:
        return keys
    if config.get("vocab_size") == _CODE_LLAMA:
        # its infill ids have no keys in the converter's writer, which leaves the end of turn
        keys = _set(keys, KeyValue.u32(f"{PREFIX}.eot_token_id", _CODE_LLAMA_EOT))
    if config.get("vocab_size") == _GRANITE:
        keys = _set(keys, KeyValue.flag(f"{PREFIX}.add_bos_token", False))
    return keys


def _token_keys(vocabulary: Vocabulary, pre: str) -> list[KeyValue]:
    strings = GGUFValueType.STRING
    keys = [KeyValue.text(f"{PREFIX}.model", vocabulary.kind), KeyValue.text(f"{PREFIX}.pre", pre)]
    keys.append(KeyValue.array(f"{PREFIX}.tokens", vocabulary.texts, strings))
    if vocabulary.kind == SPM:
        keys.append(KeyValue.array(f"{PREFIX}.scores", vocabulary.scores, GGUFValueType.FLOAT32))
    keys.append(KeyValue.array(f"{PREFIX}.token_type", vocabulary.types, GGUFValueType.INT32))
    if vocabulary.kind == BYTE_LEVEL:
        keys.append(KeyValue.array(f"{PREFIX}.merges", vocabulary.merges, strings))
    return keys


def _special_keys(special: SpecialTokens) -> list[KeyValue]:
    keys = [
        KeyValue.u32(f"{PREFIX}.{_ID_KEYS[kind]}_token_id", token_id)
        for kind, token_id in special.ids.items()
        if kind in _ID_KEYS
    ]
    keys += [
        KeyValue.flag(f"{PREFIX}.add_{kind}_token", is_added)
        for kind, is_added in special.adds.items()
        if kind in ("bos", "eos", "sep")
    ]
    return keys


def _normalizer_keys(files: TokenizerFiles) -> list[KeyValue]:
    """Lower-casing and accent-stripping of the normalizer of tokenizer.json, of the steps of a sequence in turn."""
    flags: dict[str, bool] = {}
    for step in readable_steps(files.json.get("normalizer"), "normalizers"):
        kind = step.get("type")
        if kind == "Lowercase":
            flags["lowercase"] = True
        elif kind == "StripAccents":
            flags["strip_accents"] = True
        elif kind == "BertNormalizer":
            stated = {flag: step.get(flag) for flag in ("lowercase", "strip_accents")}
            flags.update({flag: value for flag, value in stated.items() if isinstance(value, bool)})
    return [
        KeyValue.flag(f"{PREFIX}.normalizer.{flag}", flags[flag])
        for flag in ("lowercase", "strip_accents")
        if flag in flags
    ]


def _set(keys: Sequence[KeyValue], change: KeyValue) -> list[KeyValue]:
    """Replace a key where it stands; a new one comes last."""
    return list({kv.key: kv for kv in (*keys, change)}.values())
