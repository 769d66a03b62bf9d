"""The front matter of a model card, by which the Hub sorts a repository."""

from __future__ import annotations

from typing import Any

from gguf_export.releasing.about import About

__all__ = ["front_matter"]


def front_matter(about: About, repo: str | None) -> str:
    """YAML between two lines of `---`, as huggingface_hub writes it; nothing in it is invented.

    Args:
        about: the model.
        repo: owner/name, where the folder is published; its owner made the files.
    """
    from huggingface_hub import ModelCardData  # noqa: PLC0415 - the Hub's client takes a while to load

    more: dict[str, Any] = {}
    if about.base_model is not None:
        more["base_model_relation"] = "quantized"
    if repo is not None:
        more["quantized_by"] = repo.partition("/")[0]
    if about.license_name:
        more["license_name"] = about.license_name
    if about.license_link:
        more["license_link"] = about.license_link
    tags = ["gguf", "imatrix"]
    tags += ["moe"] if about.n_expert else []
    tags += [about.model_type, *(["mergekit"] if about.donors else [])]
    languages = list(about.languages)
    data = ModelCardData(
        base_model=about.base_model,
        license=about.license,
        language=languages or None,
        library_name="gguf",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
        **more,
    )
    return f"---\n{data.to_yaml()}\n---\n"
