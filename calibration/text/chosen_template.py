"""A chat template that a person chooses: a file, a donor's, or one of those that llama.cpp knows by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.chat.named import named_template, template_names
from calibration.text.donors import MERGE_FILE, donors_of
from quantize.containers.text_files import optional_text
from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError

__all__ = ["AS_IS", "NONE", "TemplateChoice", "choose_template"]

NONE, AS_IS = "none", "as-is"
"""No template at all; that of the model, whatever is wrong with it."""
_DONOR = "donor:"


@dataclass(frozen=True)
class TemplateChoice:
    """A chosen template.

    text: the template, None where there shall be none.
    place: where it is from, in messages.
    """

    text: str | None
    place: str


def choose_template(choice: str, model: Path) -> TemplateChoice:
    """The template of a choice: `none`, `donor:N`, a name such as `chatml`, or a file of Jinja.

    Args:
        choice: as a person spells it; a file that is called like a name is spelled with `./` before it.
        model: the folder or file of the model, whose donors are meant.

    Raises:
        TokenizerError: there is no such donor or file, or it holds no template.
    """
    if choice == NONE:
        return TemplateChoice(None, "")
    if choice.startswith(_DONOR):
        return _of_donor(choice, model)
    text = named_template(choice)
    if text is not None:
        return TemplateChoice(text, f"the template {choice}")
    text = optional_text(Path(choice))
    if text is None:
        names = ", ".join(template_names())
        raise TokenizerError(
            choice,
            "is neither a file nor the name of a chat template",
            f"{{setting}} takes a file of Jinja, donor:N, {NONE}, {AS_IS}, or one of {names}",
            setting="chat_template",
        )
    if not text.strip():
        raise TokenizerError(choice, "is empty, and no chat template")
    if "\0" in text:
        raise TokenizerError(choice, "holds a NUL, which ends a text in a GGUF file")
    return TemplateChoice(text, choice)


def _of_donor(choice: str, model: Path) -> TemplateChoice:
    number = choice.removeprefix(_DONOR)
    donors = donors_of(model) if model.is_dir() else []
    place = str(model / MERGE_FILE)
    if not donors:
        raise TokenizerError(place, "lists no donors", "give the template as a file", setting="chat_template")
    found = [donor for donor in donors if str(donor.number) == number]
    listed = ", ".join(f"{donor.number} {quoted(donor.name)}" for donor in donors)
    if not found:
        raise TokenizerError(place, f"has no donor {quoted(number)}", f"its donors are {listed}")
    donor = found[0]
    if donor.folder is None:
        raise TokenizerError(
            place,
            f"donor {donor.number} is {quoted(donor.name)}, and no folder here with a tokenizer_config.json",
            "give the template as a file",
        )
    text = donor.template()
    if text is None:
        raise TokenizerError(str(donor.folder), "has no chat template", f"the donors are {listed}")
    return TemplateChoice(text, str(donor.folder))
