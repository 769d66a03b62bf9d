"""What is known of the model that is published: its words, its licence, where it is from, and its donors."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from calibration.text.donors import donors_of
from gguf_export.metadata.model_card import read_card
from gguf_export.metadata.model_keys import count_params, size_label
from quantize.containers.hub_names import hub_name
from quantize.containers.untrusted import file_name, label
from quantize.exceptions import ChoiceError
from quantize.sources.checkpoint import Checkpoint
from quantize.telling import Note, Remark, discard

__all__ = ["About", "about", "refuse_no_repo"]

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class About:
    """The facts of a checkpoint that cards and companions tell.

    license: its id; `license_name` and `license_link` where the checkpoint's card has them.
    base_model: owner/name of the checkpoint on the Hub, None where it is not known.
    sampling: what generation_config.json recommends, by the names of `general.sampling.*`.
    donors: by expert; empty where the model is no merge of mergekit's.
    """

    name: str
    arch: str
    model_type: str
    n_expert: int
    n_ctx_train: int
    size_label: str
    license: str
    license_name: str
    license_link: str
    base_model: str | None
    languages: tuple[str, ...]
    sampling: dict[str, str | int | float]
    donors: tuple[str, ...]


def about(
    checkpoint: Checkpoint,
    given: Path | str,
    *,
    license: str | None,
    base_model: str | None,
    note: Note = discard,
) -> About:
    """Collect the facts.

    Args:
        checkpoint: the model.
        given: how the model was named, which may be by its repository.
        license: that which a person names, None for that of the checkpoint's card.
        base_model: owner/name that a person names.
        note: told what is left out.

    Raises:
        ChoiceError: no licence is known, or `base_model` is no owner/name.
    """
    params = count_params(checkpoint.specs())
    card = read_card(checkpoint.path, checkpoint.config, params.total)
    named = license or card.texts.get("license", "")
    if not named:
        raise ChoiceError(
            str(given),
            "names no licence: its README.md has no license in its front matter",
            "name the licence of the weights with {setting}, such as apache-2.0",
            setting="license",
        )
    is_own = license is None
    donors = tuple(_shown(donor.name) for donor in donors_of(checkpoint.path))
    return About(
        name=label(Path(os.path.abspath(checkpoint.path)).name) or "model",  # noqa: PTH100 (keeps links)
        arch=checkpoint.arch,
        model_type=str(checkpoint.config.get("model_type", checkpoint.arch)),
        n_expert=checkpoint.hparams.n_expert,
        n_ctx_train=checkpoint.hparams.n_ctx_train,
        size_label=card.texts.get("size_label") or size_label(params),
        license=named,
        license_name=card.texts.get("license.name", "") if is_own else "",
        license_link=card.texts.get("license.link", "") if is_own else "",
        base_model=_base_model(checkpoint, given, base_model, is_merge=bool(donors), note=note),
        languages=tuple(card.languages),
        sampling=dict(card.sampling),
        donors=donors,
    )


def refuse_no_repo(name: str | None, setting: str) -> None:
    """Refuse what is not owner/name.

    Raises:
        ChoiceError: it is something else.
    """
    if name is not None and not REPO.fullmatch(name):
        raise ChoiceError(name, "is no owner/name of the Hub", "spell {setting} owner/name", setting=setting)


def _base_model(
    checkpoint: Checkpoint, given: Path | str, named: str | None, *, is_merge: bool, note: Note
) -> str | None:
    """The checkpoint's own repository.

    `base_model` of its card is what it was made of. mergekit copies `_name_or_path` from a donor.
    """
    refuse_no_repo(named, "base_model")
    if named is not None:
        return named
    on_hub = hub_name(given)
    if on_hub is not None:
        return on_hub.repo
    told = checkpoint.config.get("_name_or_path")
    if isinstance(told, str) and REPO.fullmatch(told) and not is_merge:
        return told
    message = "it is not known under which name the checkpoint is on the Hub: the card names no base_model"
    note(Remark("", message, "name it with {setting} OWNER/NAME", setting="base_model"))
    return None


def _shown(donor: str) -> str:
    """The name of a donor: a repository's in full, of a folder its last part."""
    return donor if REPO.fullmatch(donor) else label(file_name(donor))
