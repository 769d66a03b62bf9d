"""The words of a folder about its model: the model card, generation_config.json, the id.

Sources and precedence are those of llama.cpp's converter (gguf-py/gguf/metadata.py: Metadata.load,
apply_metadata_heuristic): model card front matter, then `_name_or_path` of config.json, then the folder's name. Where
the converter would stop with an exception at what a stranger wrote, the entry is left out and a note says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_export.metadata.model_id import NameParts, split_model_id, title
from quantize.containers.text_files import optional_object, optional_text
from quantize.containers.untrusted import file_name, label, parse_yaml
from quantize.exceptions import TokenizerError
from quantize.telling import Note, Remark, discard

__all__ = ["TEXTS", "Card", "read_card"]

Entry = dict[str, str]

TEXTS = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
"""The texts of general.* in file order, each with its names in the front matter: the first that is there counts."""

_BASE_MODELS = ("base_model", "base_models", "base_model_sources")
_DATASETS = ("datasets", "dataset", "dataset_sources")
MAX_ORIGINS = 1000  # base models or datasets that are written
_HUB = "https://huggingface.co/"

# general.sampling.* -> type, and its names in generation_config.json
_SAMPLING: dict[str, tuple[type, tuple[str, ...]]] = {
    "sequence": (str, ("sequence",)),
    "top_k": (int, ("top_k",)),
    "top_p": (float, ("top_p",)),
    "min_p": (float, ("min_p",)),
    "xtc_probability": (float, ("xtc_probability",)),
    "xtc_threshold": (float, ("xtc_threshold",)),
    "temp": (float, ("temperature",)),
    "penalty_last_n": (int, ("penalty_last_n",)),
    "penalty_repeat": (float, ("penalty_repeat", "repetition_penalty")),
    "mirostat": (int, ("mirostat",)),
    "mirostat_tau": (float, ("mirostat_tau",)),
    "mirostat_eta": (float, ("mirostat_eta",)),
}


@dataclass
class Card:
    """The words of general.*: `texts` by the name of the key, None for lists that the card does not have."""

    texts: dict[str, str] = field(default_factory=dict)
    sampling: dict[str, str | int | float] = field(default_factory=dict)
    base_models: list[Entry] | None = None
    datasets: list[Entry] | None = None
    tags: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)


def read_card(
    path: Path, config: Mapping[str, Any], n_total: int, name: str | None = None, note: Note = discard
) -> Card:
    """Collect the words about the model in folder `path`.

    Args:
        path: the model's folder.
        config: config.json.
        n_total: number of weights, which unmasks sizes in names that are none; 0 if unknown.
        name: the name given by hand; all that follows from a name then follows from this one alone.
        note: receives remarks on what was left out.
    """
    front = _front_matter(path / "README.md", note)
    card = Card(sampling=_sampling(path / "generation_config.json", note))
    for key, aliases in TEXTS.items():
        if chosen := next((text for alias in aliases if (text := _text(front.get(alias)))), None):
            card.texts[key] = chosen
    card.base_models = _origins(front, _BASE_MODELS, n_total, note)
    card.datasets = _origins(front, _DATASETS, n_total, note)
    card.tags = [*_words(front.get("tags")), *_words(front.get("pipeline_tag"))]
    card.languages = [*_words(front.get("languages")), *_words(front.get("language"))]

    if name is not None:
        for key in ("name", "basename", "finetune", "version", "size_label"):
            card.texts.pop(key, None)
        _add_parts(card, split_model_id("-".join(name.split()), n_total))
        card.texts["name"] = name
        return card
    given = config.get("_name_or_path")
    if isinstance(given, str) and given and given.count("/") <= 1 and "\\" not in given:  # an id, no path
        _add_parts(card, split_model_id(given, n_total))
    folder = Path(os.path.abspath(path)).name  # noqa: PTH100 (keeps links)
    _add_parts(card, split_model_id(label(folder), n_total))
    return card


def _add_parts(card: Card, parts: NameParts) -> None:
    """Fill in the texts that are not known yet."""
    texts = {
        "name": title(parts.name or ""),
        "organization": title(parts.organization or ""),
        "basename": parts.basename,
        "finetune": parts.finetune,
        "version": parts.version,
        "size_label": parts.size_label,
    }
    for key, text in texts.items():
        if text:
            card.texts.setdefault(key, text)


def _front_matter(path: Path, note: Note) -> dict[str, Any]:
    """The YAML between the first two lines of `---`, empty where there is none."""
    try:
        text = optional_text(path)
    except TokenizerError as reason:
        note(_left_out(reason, "general.* is written without it"))
        return {}
    lines = (text or "").splitlines()
    if not lines or lines[0] != "---":
        return {}
    end = next((i for i, line in enumerate(lines) if i and line == "---"), len(lines))
    # YAML 1.1 takes the language code `no` for false, and refuses tabs
    front = "".join(f"{line}\n" for line in lines[1:end]).replace("- no\n", '- "no"\n').replace("\t", "  ")
    try:
        fields = parse_yaml(front, f"{path}: front matter", TokenizerError)
    except TokenizerError as reason:
        note(_left_out(reason, "general.* is written without it"))
        return {}
    if fields is not None and not isinstance(fields, dict):
        note(Remark(f"{path}: front matter", "holds no fields", "general.* is written without it"))
    return fields if isinstance(fields, dict) else {}


def _left_out(reason: TokenizerError, consequence: str) -> Remark:
    return Remark(reason.place, reason.message, "; ".join(filter(None, (reason.remedy, consequence))))


def _text(value: Any) -> str:
    """A front matter value as text, a list joined by commas (licences come so); "" where it is no text."""
    if isinstance(value, list):
        return ",".join(text for text in map(_text, value) if text)
    if not isinstance(value, str):
        return ""
    # YAML can spell half of a surrogate pair, names of files can be any bytes
    return value.encode("utf-8", errors="replace").decode("utf-8")


def _words(value: Any) -> list[str]:
    return [text for text in map(_text, value if isinstance(value, list) else [value]) if text]


def _origins(front: Mapping[str, Any], keys: tuple[str, ...], n_total: int, note: Note) -> list[Entry] | None:
    """The base models or datasets that the card names, None where it has no such field."""
    key = next((key for key in keys if key in front), None)
    if key is None:
        return None
    value = front[key]
    listed = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    if len(listed) > MAX_ORIGINS:
        note(Remark("README.md", f"{key} has {len(listed)} entries", f"the first {MAX_ORIGINS} are written"))
    origins = []
    for item in listed[:MAX_ORIGINS]:
        if isinstance(item, dict):
            origins.append({str(name): text for name, entry in item.items() if (text := _text(entry))})
        elif isinstance(item, str):
            origins.append(_origin(_text(item), n_total))
        else:
            message = f"an entry of {key} is neither text nor fields"
            note(Remark("README.md", message, "only its place is kept"))
            origins.append({})
    return origins


def _origin(model_id: str, n_total: int) -> Entry:
    """The facts about a base model or dataset in its id of the Hugging Face hub, or its address; of a path its end."""
    if model_id.startswith(("http://", "https://", "ssh://")):
        on_hub = re.fullmatch(r"https?://huggingface\.co/([^/]+/[^/]+)", model_id)
        parts = split_model_id(on_hub[1], n_total) if on_hub else NameParts()
        repo_url = model_id
    else:
        parts = split_model_id(file_name(model_id) if _is_path(model_id) else model_id, n_total)
        repo_url = f"{_HUB}{parts.organization}/{parts.name}" if parts.organization and parts.name else ""
    entry = {
        "name": title(parts.name or ""),
        "organization": title(parts.organization or ""),
        "version": parts.version,
        "repo_url": repo_url,
    }
    return {key: text for key, text in entry.items() if text}


def _is_path(model_id: str) -> bool:
    """Whether a card names a folder of its author's machine, as mergekit writes it of donors that lie there."""
    return model_id.count("/") > 1 or re.match(r"[/~.]|[A-Za-z]:\\", model_id) is not None


def _sampling(path: Path, note: Note) -> dict[str, str | int | float]:
    """The sampling parameters that generation_config.json recommends."""
    try:
        settings = optional_object(path) or {}
    except TokenizerError as reason:
        note(_left_out(reason, "general.sampling.* is not written"))
        return {}
    sampling: dict[str, str | int | float] = {}
    for key, (kind, aliases) in _SAMPLING.items():
        alias = next((alias for alias in aliases if alias in settings), "")
        value = settings.get(alias)
        if value is None:
            continue
        if isinstance(value, bool) or not _fits(value, kind):
            message = f"{alias} is no {kind.__name__}"
            note(Remark(str(path), message, f"general.sampling.{key} is not written"))
        else:
            sampling[key] = kind(value)
    return sampling


def _fits(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and bool(value)
    if kind is int:
        return isinstance(value, int | float) and value == value // 1 and abs(value) < 2**31
    return isinstance(value, int | float) and abs(value) < 3e38
