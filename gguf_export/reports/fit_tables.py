"""What fits a graphics card, as a person reads it: what each file takes, which file to take, and what was assumed."""

from __future__ import annotations

from gguf_export.checking.fit import GIB, RESERVE, Choice, Fit, ModelNeeds
from gguf_export.files.sizes import size_in_words
from gguf_export.reports.figures import NOTHING
from gguf_export.reports.pages import TableText
from quantize.families.cache import N_UBATCH

__all__ = ["assumptions", "choices_table", "context_words", "needs_table"]


def context_words(n_ctx: int) -> str:
    """A number of tokens as people call it: 4k, 32k; others in full."""
    return f"{n_ctx // 1024}k" if n_ctx % 1024 == 0 else f"{n_ctx:,}"


def needs_table(fit: Fit) -> TableText:
    """The table of the files: GiB on the GPU with each context, and GiB in RAM; a second line with experts in RAM."""
    contexts = list(dict.fromkeys(choice.n_ctx for choice in fit.choices))
    columns = ("file", "experts", ">size", ">RAM", *(f">GPU {context_words(n_ctx)}" for n_ctx in contexts))
    rows = [
        row
        for model in fit.models
        for experts_in_ram in (False, True)
        for row in _needs_rows(model, contexts, experts_in_ram)
    ]
    return columns, rows


def _needs_rows(model: ModelNeeds, contexts: list[int], experts_in_ram: bool) -> list[tuple[str, ...]]:
    needs = [model.need(n_ctx, experts_in_ram=experts_in_ram) for n_ctx in contexts]
    found = [need for need in needs if need is not None]
    if not found:
        return []
    has_experts = model.need(contexts[0], experts_in_ram=True) is not None
    place = "in RAM" if experts_in_ram else "on the GPU" if has_experts else NOTHING
    name, size = ("", "") if experts_in_ram else (model.name, _gib(model.n_bytes))
    return [(name, place, size, _gib(found[0].ram), *(_gib(need.gpu) for need in found))]


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f}"


def choices_table(fit: Fit) -> TableText:
    """The table of the cards: the file to take with each context."""
    contexts = list(dict.fromkeys(choice.n_ctx for choice in fit.choices))
    cards = list(dict.fromkeys(choice.vram for choice in fit.choices))
    chosen = {(choice.vram, choice.n_ctx): choice for choice in fit.choices}
    n_same = _n_same([model.name for model in fit.models])
    columns = ("GPU", *(context_words(n_ctx) for n_ctx in contexts))
    return columns, [
        (f"{vram:g} GiB", *(_choice_words(chosen[vram, n_ctx], n_same) for n_ctx in contexts))
        for vram in cards
    ]


def _n_same(names: list[str]) -> int:
    """Characters with which all names begin, up to a hyphen or a dot; what is behind them tells the files apart."""
    first, last = min(names), max(names)
    same = first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1), 0)]
    return max(same.rfind("-"), same.rfind(".")) + 1


def _choice_words(choice: Choice, n_same: int) -> str:
    if choice.need is None or choice.name is None:
        return "none"
    return choice.name[n_same:] + (", experts in RAM" if choice.need.experts_in_ram else "")


def assumptions(fit: Fit) -> list[str]:
    """The sentences without which the tables mean little."""
    logits = fit.models[0].needs[0].reserve - RESERVE
    has_experts = any(need.experts_in_ram for model in fit.models for need in model.needs)
    n_ctx = max(choice.n_ctx for choice in fit.choices)
    lines = [
        "GiB. GPU: tensors of all layers, keys and values of one conversation "
        f"({fit.cache_type}), and a reserve that is assumed: {size_in_words(RESERVE)} and "
        f"{size_in_words(logits)} for the logits of {N_UBATCH} tokens. RAM: the token embedding.",
    ]
    if has_experts:
        lines.append(
            "Experts in RAM (llama.cpp's --cpu-moe): the GPU has a copy of the largest stack of them, for prompts; "
            f"chosen where RAM has no more than {fit.ram:g} GiB of tensors."
        )
    if n_ctx > fit.n_ctx_train:
        lines.append(f"The model was trained for {fit.n_ctx_train:,} tokens.")
    if fit.unknown:
        lines.append(
            f"Architecture {', '.join(fit.unknown)} is not known here: each layer is counted as if it kept keys and "
            "values of all tokens, which may be too much."
        )
    return lines
