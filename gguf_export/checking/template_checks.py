"""Whether the chat templates of a model work, here and in llama.cpp itself where that is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from calibration.chat.dialogues import PLAIN_DIALOGUE, TOOL_LIST_DIALOGUE, Dialogue
from calibration.chat.rendering import ChatTemplate, Fault
from calibration.text.chat_templates import KEY
from gguf_export.checking.findings import Finding, error, info, warning
from gguf_export.checking.llama_cpp import apply_in_llama_cpp
from gguf_export.checking.llama_process import is_installed
from gguf_export.vocab.template_check import (
    TemplateCheck,
    absence,
    check_template,
    is_for_chats,
    template_in,
)
from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import quoted

__all__ = ["check_templates"]

CHECK = "see to the chat template"


def check_templates(label: str, model: Path, keys: Sequence[KeyValue]) -> Iterator[Finding]:
    """Look for everything that is wrong with the templates of a model.

    Args:
        label: the model, in messages.
        model: its folder or file.
        keys: those of its GGUF file.
    """
    default = template_in(label, keys)
    names = [kv.key.removeprefix(f"{KEY}.") for kv in keys if kv.key.startswith(f"{KEY}.")]
    if default is None:
        tokens = next((kv.value for kv in keys if kv.key == "tokenizer.ggml.tokens"), ())
        is_meant = is_for_chats(model, tokens)
        yield Finding.of_remark(absence(label, model), "warning" if is_meant else "info")
    else:
        checked = check_template(default)
        if checked.error is not None:
            yield Finding.of(checked.error, "warning" if _is_written_anyway(keys) else "error")
        yield from (Finding.of_remark(remark, "warning") for remark in checked.remarks)
        yield from (Finding.of_remark(remark) for remark in checked.notes)
        yield from _in_llama_cpp(default, keys, checked)
    for name in names:
        named = template_in(label, keys, name)
        fault = None if named is None else check_template(named).error
        if fault is not None:
            yield Finding.of(fault, "warning")


def _is_written_anyway(keys: Sequence[KeyValue]) -> bool:
    """Whether llama.cpp, which decides, is here and can do what was found to be an error."""
    if not is_installed():
        return False
    verdict = apply_in_llama_cpp(keys, [PLAIN_DIALOGUE, TOOL_LIST_DIALOGUE])
    return not verdict.refusal and all(isinstance(text, str) for text in verdict.texts)


def _in_llama_cpp(
    template: ChatTemplate, keys: Sequence[KeyValue], checked: TemplateCheck
) -> Iterator[Finding]:
    """What llama.cpp makes of the vocabulary and the template, and where it differs."""
    if checked.error is not None or not is_installed():
        return
    dialogues = [dialogue for dialogue, _ in checked.tried]
    verdict = apply_in_llama_cpp(keys, dialogues)
    if verdict.refusal:
        message = f"llama.cpp does not start with this tokenizer and chat template: {verdict.refusal}"
        yield error(template.place, message, "choose another template, or copy the tokenizer again")
        return
    for (dialogue, ours), theirs in zip(checked.tried, verdict.texts, strict=True):
        yield from _compared(template, dialogue, ours, theirs)


def _compared(
    template: ChatTemplate, dialogue: Dialogue, ours: str | Fault, theirs: str | Fault
) -> Iterator[Finding]:
    what = "a dialogue with tools" if dialogue.tools else "a dialogue"
    if isinstance(theirs, Fault):
        if not isinstance(ours, Fault):
            yield warning(template.place, f"llama.cpp cannot write {what}: {theirs.message}", CHECK)
        return
    if isinstance(ours, Fault):
        yield info(template.place, f"llama.cpp writes {what} all the same")
        return
    # where BOS is added to every text, llama.cpp takes away the template's
    if theirs in (ours, ours.removeprefix(template.bos)):
        return
    place = next(
        (i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )
    yield info(
        template.place,
        f"llama.cpp writes {what} otherwise: {quoted(theirs[place : place + 40])} where the template has "
        f"{quoted(ours[place : place + 40])}",
    )
