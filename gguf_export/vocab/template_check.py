"""Whether a chat template works in llama.cpp: it is applied to dialogues as llama-server would apply it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.chat.dialogues import PLAIN_DIALOGUE, TOOL_DIALOGUE, TOOL_LIST_DIALOGUE, Dialogue
from calibration.chat.rendering import ChatTemplate, Fault, render
from calibration.text.chat_templates import template_of_keys
from calibration.text.donors import Donor, donors_of
from quantize.containers.keys import KeyValue
from quantize.exceptions import MoeGgufError, TokenizerError
from quantize.telling import Remark

__all__ = ["TemplateCheck", "absence", "check_template", "is_for_chats", "template_in", "template_remarks"]

CHATML = "llama-server will prompt in ChatML"
CHAT_NAME = re.compile(r"instruct|chat|assistant|(^|-)it($|-)", re.I)
CHAT_TOKENS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "[INST]",
    "<start_of_turn>",
    "<|user|>",
    "<|assistant|>",
)
_TRIED = (PLAIN_DIALOGUE, PLAIN_DIALOGUE.without_system(), TOOL_LIST_DIALOGUE, TOOL_DIALOGUE)
_SAID = PLAIN_DIALOGUE.messages[-1]["content"]
_REMEDY = "choose another one with {setting}: a file, donor:N or a name such as chatml; none leaves it out"


@dataclass(frozen=True)
class TemplateCheck:
    """What a template did.

    error: why no application can chat with the model, None where one can.
    remarks: what does not work.
    notes: what works in another way than it seems.
    tried: the dialogues, and the text of each, or why there is none.
    """

    error: TokenizerError | None
    remarks: tuple[Remark, ...] = ()
    notes: tuple[Remark, ...] = ()
    tried: tuple[tuple[Dialogue, str | Fault], ...] = ()


def template_in(label: str, keys: Sequence[KeyValue], name: str = "") -> ChatTemplate | None:
    """A template among the keys of a file, None where there is none."""
    return template_of_keys(label, {kv.key: kv.value for kv in keys}, name)


def check_template(template: ChatTemplate) -> TemplateCheck:
    """Apply a template to dialogues with and without a system message, and with tools where it mentions them."""
    uses_tools = "tools" in template.text
    tried = _TRIED if uses_tools else _TRIED[:2]
    made = render(template, tried)
    if made.fault is not None:
        return TemplateCheck(_error(template, made.fault))
    texts = dict(zip(("plain", "without system", "tools", "calls"), made.texts, strict=False))
    remarks = [
        Remark(template.place, f"it uses {name}, which llama.cpp does not know") for name in made.unknown
    ]
    notes = []
    if not made.abilities.system:
        message = "the chat template has no place for a system message"
        notes.append(Remark(template.place, message, "llama.cpp puts it before what the user says first"))
    failed = texts["plain"]
    if isinstance(failed, Fault) and isinstance(texts["without system"], str) and failed.kind == "refused":
        notes.append(Remark(template.place, f"the chat template refuses a system message: {failed.message}"))
        failed = texts["without system"]
    with_tools = texts.get("tools")
    if not isinstance(failed, Fault) and isinstance(with_tools, Fault) and with_tools.kind != "refused":
        failed = with_tools
    if isinstance(failed, Fault):
        return TemplateCheck(_error(template, failed, has_tools=failed is with_tools))
    if _SAID not in failed:
        remarks.append(Remark(template.place, "the chat template leaves out what the user says"))
    calls = texts.get("calls")
    if isinstance(calls, Fault):
        message = f"the chat template cannot write a call of a tool: {calls.message}"
        remarks.append(Remark(template.place, message))
    return TemplateCheck(None, tuple(remarks), tuple(notes), tuple(zip(tried, made.texts, strict=True)))


def _error(template: ChatTemplate, fault: Fault, *, has_tools: bool = False) -> TokenizerError:
    what = "the chat template fails on a dialogue with tools" if has_tools else "the chat template fails"
    if fault.kind == "syntax":
        what = "the chat template cannot be read"
    return TokenizerError(template.place, f"{what}: {fault.message}", _REMEDY, setting="chat_template")


def template_remarks(place: str, keys: Sequence[KeyValue], model: Path) -> tuple[Remark, ...]:
    """Remarks on the template of a file that is about to be written, or on its absence.

    Args:
        place: where the template is from.
        keys: the keys of the file.
        model: the model that it is made of.

    Raises:
        TokenizerError: the template fails.
    """
    template = template_in("", keys)
    if template is None:
        tokens = next((kv.value for kv in keys if kv.key == "tokenizer.ggml.tokens"), ())
        return (absence(place, model),) if is_for_chats(model, tokens) else ()
    checked = check_template(replace(template, place=place))
    if checked.error is not None:
        raise checked.error
    return checked.remarks


def is_for_chats(model: Path, tokens: Sequence[str]) -> bool:
    """Whether a model may be one to chat with, by its name, its donors or its tokens.

    A merge is, unless all its donors are here and none of them has a template.
    """
    donors = _donors(model)
    names = [model.resolve().name, *(donor.name for donor in donors)]
    return (
        any(map(CHAT_NAME.search, names))
        or bool(set(CHAT_TOKENS) & set(tokens))
        or any(donor.folder is None or donor.has_template() for donor in donors)
    )


def absence(place: str, model: Path) -> Remark:
    """The remark on a model without a template, which names the donors that have one."""
    message = f"there is no chat template: {CHATML}"
    all_donors = _donors(model)
    donors = [donor for donor in all_donors if donor.has_template()]
    if not donors:
        named = ", ".join(list(dict.fromkeys(donor.name for donor in all_donors))[:4])
        whose = f"that of its donors ({named})" if all_donors else "the one that it was trained with"
        remedy = f"put in {whose}: {{setting}} FILE, or a name such as mistral-v1"
        return Remark(place, message, remedy, "chat_template")
    listed = ", ".join(f"donor:{donor.number} ({donor.name})" for donor in donors)
    return Remark(place, message, f"{{setting}} takes that of {listed}", "chat_template")


def _donors(model: Path) -> list[Donor]:
    try:
        return donors_of(model) if model.is_dir() else []
    except MoeGgufError:
        return []  # a file that is no merge of mergekit's
