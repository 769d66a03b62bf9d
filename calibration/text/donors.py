"""The donors of a merge, as mergekit_moe_config.yml lists them, and the chat templates of those that are here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from calibration.text.chat_templates import folder_templates
from calibration.text.tokenizer_files import TokenizerFiles
from quantize.containers.text_files import optional_text
from quantize.containers.untrusted import parse_yaml, refuse_foreign_links
from quantize.exceptions import MoeGgufError, TokenizerError

__all__ = ["MERGE_FILE", "Donor", "donors_of"]

MERGE_FILE = "mergekit_moe_config.yml"


@dataclass(frozen=True)
class Donor:
    """A model of which a merge took an expert.

    number: of the expert, from 0 on.
    name: as mergekit's file spells it: a folder, or the name of a repository.
    folder: where it is here, None where it is not.
    """

    number: int
    name: str
    folder: Path | None

    def template(self) -> str | None:
        """Its chat template, None where it has none or is not here.

        Raises:
            TokenizerError: one of its files is damaged.
        """
        return None if self.folder is None else folder_templates(TokenizerFiles(self.folder)).default

    def has_template(self) -> bool:
        """Whether it is here and has a chat template that can be read."""
        try:
            return self.template() is not None
        except MoeGgufError:
            return False


def donors_of(folder: Path) -> list[Donor]:
    """The donors of a merge, by expert; none where the folder has no file of mergekit's.

    A donor's folder is looked for as the file spells it, from the model's folder and from its parent.

    Raises:
        TokenizerError: the file is damaged.
    """
    text = optional_text(folder / MERGE_FILE)
    if text is None:
        return []
    config = parse_yaml(text, str(folder / MERGE_FILE), TokenizerError)
    experts = config.get("experts") if isinstance(config, dict) else None
    donors = []
    for number, expert in enumerate(experts if isinstance(experts, list) else []):
        name = expert.get("source_model") if isinstance(expert, dict) else None
        if isinstance(name, str) and name:
            donors.append(Donor(number, name, _folder_of(name, folder)))
    return donors


def _folder_of(name: str, folder: Path) -> Path | None:
    if "\0" in name:
        return None
    for start in (Path(), folder, folder.parent):
        candidate = start / name
        if os.path.isfile(candidate / "tokenizer_config.json"):  # noqa: PTH113 - Path raises where a name is too long
            try:
                refuse_foreign_links(candidate)
            except MoeGgufError:
                return None
            return candidate
    return None
