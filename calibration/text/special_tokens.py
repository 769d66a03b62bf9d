"""Which tokens begin, end and separate a text, and whether they are added.

Sources and precedence are those of llama.cpp's converter (gguf-py/gguf/vocab.py: SpecialVocab): tokenizer.json knows
ids and the post-processor, tokenizer_config.json the names, config.json the ids that are still missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calibration.text.json_values import objects, section, token_text
from calibration.text.tokenizer_files import TokenizerFiles
from calibration.text.tokenizer_json import KINDS
from quantize.telling import Note, Remark, discard

__all__ = ["SpecialTokens", "ids_around", "read_special_tokens"]

MAX_AROUND = 16  # tokens that a post-processor adds to a text, and steps that it has


@dataclass(frozen=True)
class SpecialTokens:
    """Ids by kind of token, and by kind whether it is added to a text; in the order in which the files say it.

    Kinds are `KINDS`, and "eot" and "eom" for ends of a turn and of a message.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    adds: Mapping[str, bool] = field(default_factory=dict)


@dataclass
class _Findings:
    """Facts gathered so far from the files, in the order in which llama.cpp's converter finds them."""

    names: dict[str, str]  # kind -> text of the token
    has_settings: bool
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    adds: dict[str, bool] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)


def read_special_tokens(files: TokenizerFiles, n_vocab: int, note: Note = discard) -> SpecialTokens:
    """The special tokens of a folder.

    One difference from the converter: a token that tokenizer_config.json writes as an object (`{"content": "</s>"}`)
    is here the same as its text; the converter takes the two for different tokens and may write an end of turn that
    does not exist.

    Args:
        files: the tokenizer's files.
        n_vocab: rows of the embedding; ids beyond are left out.
        note: receives a remark for each id and flag that was left out.

    Raises:
        TokenizerError: a file is damaged.
    """
    settings = files.settings
    names = {kind: text for kind in KINDS if (text := token_text(settings.get(f"{kind}_token")))}
    for kind, stand_in in (("bos", "cls"), ("eos", "sep")):
        if files.json and kind not in names and stand_in in names:
            names[kind] = names[stand_in]
    findings = _Findings(names, has_settings=bool(settings))
    _read_post_processor(section(files.json, "post_processor"), findings)
    if settings:
        _read_settings(files, findings, n_vocab, note)
    _read_config(files.config, findings, n_vocab, note)
    return SpecialTokens(findings.ids, findings.adds)


def _read_post_processor(processor: Mapping[str, Any], findings: _Findings) -> None:
    """Read which tokens the post-processor of tokenizer.json adds around a text.

    Only simple templates are understood, as in llama.cpp: special tokens at the ends of `single` and between the two
    texts of `pair`.
    """
    for step in objects(processor.get("processors", [processor])):
        kind = step.get("type")
        if kind == "ByteLevel":
            findings.adds.setdefault("bos", False)
            findings.adds.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            findings.adds.update(bos=True, eos=True, sep=True)
            for name in ("cls", "sep") if findings.has_settings else ():
                pair = step.get(name)  # [text, id]
                text = token_text(pair[0]) if isinstance(pair, list) and pair else None
                if text:
                    findings.names.setdefault(name, text)
        elif kind == "TemplateProcessing":
            _read_template(step, findings)


def ids_around(processor: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The ids that the post-processor of tokenizer.json puts before and behind one text.

    Only what known tokenizers have is understood; what adds more than `MAX_AROUND` tokens adds none.
    """
    before: list[int] = []
    after: list[int] = []
    for step in objects(processor.get("processors", [processor]))[:MAX_AROUND]:
        first: list[int] = []
        last: list[int] = []
        kind = step.get("type")
        if kind in ("RobertaProcessing", "BertProcessing"):  # both are [text, id]
            first, last = _integers(step.get("cls")), _integers(step.get("sep"))
        elif kind == "TemplateProcessing":
            known, is_behind = section(step, "special_tokens"), False
            for piece in objects(step.get("single"))[:MAX_AROUND]:
                ids = _integers(section(known, _piece_text(piece) or "").get("ids"))
                (last if is_behind else first).extend(ids)
                is_behind = is_behind or "Sequence" in piece
        before, after = first + before, after + last
    return (before, after) if len(before) + len(after) <= MAX_AROUND else ([], [])


def _integers(values: object) -> list[int]:
    return [value for value in values[:MAX_AROUND] if type(value) is int] if isinstance(values, list) else []


def _piece_text(piece: Mapping[str, Any], kind: str = "SpecialToken") -> str | None:
    """The `id` of a template's piece of one kind, which is a token's text or the letter of a text."""
    return token_text(section(piece, kind).get("id"))


def _read_template(step: Mapping[str, Any], findings: _Findings) -> None:
    names, adds = findings.names, findings.adds
    single, pair = objects(step.get("single")), objects(step.get("pair"))
    first = last = None
    if len(single) > 1:
        first, last = _piece_text(single[0]), _piece_text(single[-1])
    if first:
        if not findings.has_settings:
            names["bos"] = first
        elif first not in (names.get("bos"), names.get("cls")):
            names.setdefault("bos", first)
            names.setdefault("cls", first)
        adds["bos"] = first in (names.get("bos"), names.get("cls"))
    if last:
        if findings.has_settings and last != names.get("eos"):
            # the template's end is the true one; the configured one, if any, ends a turn or a message
            free_kind = next((kind for kind in ("eot", "eom") if kind not in findings.kinds), None)
            if free_kind:
                findings.kinds.append(free_kind)
                if "eos" in names:
                    names[free_kind] = names["eos"]
        names["eos"] = last
        adds["eos"] = True
    if pair:
        _read_pair(pair, first, last, findings)


def _read_pair(pair: list[dict[str, Any]], first: str | None, last: str | None, findings: _Findings) -> None:
    """Read whether the template puts a separator between two texts: A [sep] [eos] B."""
    names = findings.names
    if first and _piece_text(pair[0]) == first:
        pair = pair[1:]
    if pair and last and _piece_text(pair[-1]) == last:
        pair = pair[:-1]
    if len(pair) < 3 or _piece_text(pair[0], "Sequence") != "A" or _piece_text(pair[-1], "Sequence") != "B":
        return
    ends = (names.get("sep"), names.get("eos"))
    between = [_piece_text(piece) for piece in pair[1:-1]]
    adds_sep = between[0] is not None and between[0] in ends and not last
    if len(between) == 2 and between[1] is not None and between[1] in ends:
        adds_sep = True
    findings.adds["sep"] = adds_sep
    if adds_sep and "sep" not in names and findings.has_settings and "eos" in names:
        names["sep"] = names["eos"]


def _read_settings(files: TokenizerFiles, findings: _Findings, n_vocab: int, note: Note) -> None:
    """Fill in `add_*_token` of tokenizer_config.json, and the ids of the named tokens by tokenizer.json."""
    ids: dict[str, Any] = {}
    for entry in objects(files.json.get("added_tokens")):
        if isinstance(entry.get("content"), str):
            ids.setdefault(entry["content"], entry.get("id"))
    for kind in findings.kinds:
        flag = files.settings.get(f"add_{kind}_token")
        if isinstance(flag, bool) and findings.adds.setdefault(kind, flag) != flag:
            note(
                Remark(
                    "tokenizer_config.json",
                    f"add_{kind}_token is {flag}, the post-processor of tokenizer.json says {findings.adds[kind]}",
                    "the latter is written, as llama.cpp's converter does",
                )
            )
        if kind in findings.names:
            _set_id(findings, kind, ids.get(findings.names[kind]), n_vocab, "tokenizer.json", note)


def _read_config(config: Mapping[str, Any], findings: _Findings, n_vocab: int, note: Note) -> None:
    """Fill in ids by config.json as it stands in the folder: the defaults of transformers do not count here."""
    inner = section(config, "text_config")
    for kind in findings.kinds:
        token_id = config.get(f"{kind}_token_id")
        if token_id is None:
            token_id = inner.get(f"{kind}_token_id")
        _set_id(findings, kind, token_id, n_vocab, "config.json", note)


def _set_id(findings: _Findings, kind: str, token_id: Any, n_vocab: int, place: str, note: Note) -> None:
    if kind in findings.ids or type(token_id) is not int:
        return  # known already; or unknown, or a list of several
    if 0 <= token_id < n_vocab:
        findings.ids[kind] = token_id
    else:
        note(Remark(place, f"{kind}_token_id {token_id} is not written: the vocabulary has {n_vocab} tokens"))
