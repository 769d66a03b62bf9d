"""recipe.json: everything that decides the bytes of a release, and by which they are made again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.text.chat_templates import KEY
from gguf_export.checking.checksums import sha256
from gguf_export.checking.llama_process import program
from gguf_export.releasing.job import ReleaseJob
from gguf_export.releasing.record import KIND, RECIPE, SCHEMA, Record, stored_recipe
from gguf_export.writing.fingerprint import version
from gguf_export.writing.results import FileFigures
from quantize.containers.untrusted import label, read_json
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.hub import MARK, hub_cache
from quantize.telling import OnProgress

__all__ = ["recipe_json", "shard_sums"]


def recipe_json(
    job: ReleaseJob, files: Sequence[FileFigures], record: Record, date: str, progress: OnProgress
) -> str:
    """The recipe as JSON; of paths only the last part is told.

    Raises:
        MoeGgufError: a file cannot be read any more.
    """
    settings = job.settings
    told: dict[str, Any] = {
        "kind": KIND,
        "schema": SCHEMA,
        "date": date,
        "versions": {"moe-gguf": version(), "llama.cpp": program()},
        "request": job.request,
        "source": record.source,
        "model": {
            "name": job.about.name,
            "base_model": job.about.base_model,
            "shards": _known_shards(job, record) or shard_sums(job.model, progress),
        },
        "arguments": {
            "name": settings.name,
            "repo": settings.repo,
            "license": job.about.license,
            "n_chunk": settings.n_chunk,
            "n_judge_chunk": settings.n_judge_chunk,
            "vram": list(settings.vram),
            "split_max_size": settings.split_max_size,
        },
        "chat_template": None if settings.chat_template is None else _template(files[0].path),
        "calibration": [text.as_dict() for text in (*job.texts, *job.prompts)],
        "judged_by": [text.as_dict() for text in job.judges],
        "imatrix": {"file": job.imatrix.name, "sha256": sha256(job.imatrix)},
        "errors": record.errors_as_dict(),
        "files": {},
    }
    entries = record.as_dict()
    for file in files:
        types = {tensor.name: tensor.qtype for tensor in file.tensors}
        name = record.name_of(file.path)
        told["files"][name] = entries[name] | {"tensors": types}
    return json.dumps(told, indent=1) + "\n"


def shard_sums(model: Path, progress: OnProgress) -> dict[str, str]:
    """The SHA-256 of each shard; of a model of the Hub those that the Hub tells.

    Raises:
        MoeGgufError: a shard cannot be read.
    """
    place = model.absolute().parent
    if place.is_relative_to(hub_cache()) and (place / MARK).exists():
        listed = read_json(place / MARK)["files"]
        return {
            str(one["name"]): str(one["sha256"])
            for one in listed
            if str(one["name"]).endswith(".safetensors") and one.get("sha256")
        }
    return {label(path.name): sha256(path, progress) for path in sorted(model.glob("*.safetensors"))}


def _known_shards(job: ReleaseJob, record: Record) -> dict[str, str]:
    """The sums that an earlier release in this folder found of the same files."""
    told = stored_recipe(job.folder / RECIPE)
    if told is None or told.get("source") != record.source:
        return {}
    known = told.get("model", {}).get("shards", {})
    return {str(name): str(digest) for name, digest in known.items()}


def _template(path: Path) -> str:
    """The chat template of a file; empty where none was chosen."""
    found = GGUFFile(path).keys.get(KEY)
    return found if isinstance(found, str) else ""
