"""What the shell offers behind the TAB key where an option takes a name; click itself offers files and choices.

The names are those of the library, which is imported only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

__all__ = [
    "Complete",
    "device_names",
    "file_or",
    "file_type_names",
    "mixed_names",
    "none_name",
    "pre_names",
    "tensor_type_names",
    "written_type_names",
]

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def file_type_names(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a file type, in any case."""
    return _beginning(begun, _file_types())


def written_type_names(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a file type or COPY, in any case."""
    return _beginning(begun, [*_file_types(), "COPY"])


def tensor_type_names(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a tensor type, in any case."""
    return _beginning(begun, _tensor_types())


def mixed_names(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a tensor type or of a file type, in any case."""
    return _beginning(begun, dict.fromkeys([*_tensor_types(), *_file_types()]))


def pre_names(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the name of a pre-tokenizer."""
    from calibration.text.pretokenizers import KNOWN

    return _beginning(begun, sorted(KNOWN))


def device_names(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the usual names of torch's devices; which of them are there is not asked, torch takes seconds."""
    return _beginning(begun, ("cpu", "cuda", "mps"))


def none_name(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the word that stands for no file."""
    return _beginning(begun, ["none"])


def file_or(names: Complete) -> Complete:
    """Complete the path of a file, too."""

    def complete(ctx: click.Context, param: click.Parameter, begun: str) -> list[CompletionItem]:
        return [*names(ctx, param, begun), CompletionItem(begun, type="file")]

    return complete


def _beginning(begun: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.lower().startswith(begun.lower())]


def _file_types() -> list[str]:
    from quantize.recipes.ftypes import FTYPES

    return [known.name for known in FTYPES]


def _tensor_types() -> list[str]:
    from quantize.blocks import WRITABLE

    return [known.name for known in WRITABLE]
