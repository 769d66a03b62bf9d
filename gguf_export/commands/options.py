"""Options that several verbs share, and what they mean to the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from calibration.forward.hidden import Storage
    from calibration.forward.layers import Arithmetic
    from calibration.text.chunks import Chunks
    from quantize.recipes.recipe import Recipe
    from quantize.sources.checkpoint import Checkpoint
    from quantize.sources.gguf_file import GGUFFile
    from quantize.telling import Remark

Command = Callable[..., None]

FILE = click.Path(path_type=Path)
MODEL = click.argument("model", type=FILE)
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
JOBS = click.option(
    "-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: all processors]"
)
RESTART = click.option(
    "--restart", is_flag=True, help="Begin afresh, whatever a run that was stopped has left."
)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


recipe_options = together(
    click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="PATTERN=TYPE",
        help="Type of the tensors whose name the regular expression finds; the first that matches counts.",
    ),
    click.option(
        "--tensor-type-file",
        type=FILE,
        metavar="FILE",
        help="A file of PATTERN=TYPE entries, as llama-quantize reads it.",
    ),
    click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
    click.option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight."),
    click.option("--pure", is_flag=True, help="One type for all quantized tensors, no mixture."),
)
"""The switches of llama-quantize that change tensor types, in its spelling; see `read_recipes`."""

text_options = together(
    click.option(
        "--text", "texts", multiple=True, type=FILE, metavar="FILE", help="Calibration text; may be repeated."
    ),
    click.option(
        "--prompts",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="mergekit_moe_config.yml: its positive prompts are text that reaches each expert.",
    ),
    click.option(
        "--chunks", "n_chunk", type=click.IntRange(min=1), metavar="N", help="Use the first N chunks only."
    ),
    click.option(
        "--ctx",
        "n_ctx",
        type=click.IntRange(min=2),
        default=512,
        show_default=True,
        help="Tokens of a chunk.",
    ),
    click.option("--parse-special", is_flag=True, help="Special tokens in the text count as such."),
)
"""The text that runs through the model; see `read_chunks`."""

forward_options = together(
    click.option(
        "--scratch", type=FILE, metavar="DIR", help="Keep the hidden states of long texts in files there."
    ),
    click.option(
        "--hidden",
        type=click.Choice(["f32", "bf16"]),
        default="f32",
        show_default=True,
        help="Type of the hidden states between layers; bf16 takes half the memory and rounds them.",
    ),
    click.option(
        "--device", default="cpu", show_default=True, help="Where torch does the arithmetic, such as cuda."
    ),
)
"""How the forward pass is run; see `read_forward`."""


def say(remark: Remark | str) -> None:
    """Show one line to the person at the terminal, beside what goes to standard output."""
    from quantize.containers.untrusted import printable

    click.echo(printable(str(remark)), err=True)


def read_recipes(ftypes: Sequence[str], options: dict[str, Any]) -> list[Recipe]:
    """One recipe for each file type, from `recipe_options`, which are taken out of `options`."""
    from quantize.recipes.ftypes import ftype
    from quantize.recipes.recipe import Recipe
    from quantize.recipes.tensor_types import parse_qtype, parse_tensor_type, read_tensor_types

    tensor_types = [parse_tensor_type(text) for text in options.pop("tensor_types")]
    file = options.pop("tensor_type_file")
    if file:
        tensor_types += read_tensor_types(file)

    output, embedding, pure = (
        options.pop(option) for option in ("output_tensor_type", "token_embedding_type", "pure")
    )
    return [
        Recipe(
            ftype(name),
            tensor_types=tuple(tensor_types),
            output_tensor_type=parse_qtype(output) if output else None,
            token_embedding_type=parse_qtype(embedding) if embedding else None,
            pure=pure,
        )
        for name in ftypes
    ]


def open_model(path: Path) -> Checkpoint | GGUFFile:
    """The checkpoint in a folder, or a finished GGUF file."""
    if path.is_file():
        from gguf_export.comparing.run import open_file

        return open_file(path, say)
    from quantize.sources.checkpoint import open_checkpoint

    return open_checkpoint(path)


def read_chunks(model: Checkpoint | GGUFFile, options: dict[str, Any]) -> Chunks | None:
    """The text of `text_options`, which are taken out of `options`; None where none is given."""
    texts, prompts = options.pop("texts"), options.pop("prompts")
    n_chunk, n_ctx, parse_special = (options.pop(name) for name in ("n_chunk", "n_ctx", "parse_special"))
    if not texts and not prompts:
        return None
    from calibration.text.chunks import make_chunks, read_prompts, read_text
    from gguf_export.vocab.same_tokens import tokenizer_of

    return make_chunks(
        [read_text(path) for path in texts] + [read_prompts(path) for path in prompts],
        tokenizer_of(model),
        n_ctx=n_ctx,
        n_chunk=n_chunk,
        parse_special=parse_special,
    )


def read_forward(options: dict[str, Any]) -> tuple[Arithmetic, Storage]:
    """The settings of `forward_options`, which are taken out of `options`; the type of products suits the device.

    Raises:
        DeviceError: torch cannot compute there.
    """
    from calibration.forward.layers import Arithmetic, best_dtype

    device, storage = read_device(options)
    return Arithmetic(device, best_dtype(device)), storage


def read_device(options: dict[str, Any]) -> tuple[str, Storage]:
    """As `read_forward`, for a verb that chooses the type of products itself."""
    import torch

    from calibration.forward.hidden import Storage
    from calibration.forward.layers import refuse_device

    device, scratch, hidden = (options.pop(name) for name in ("device", "scratch", "hidden"))
    refuse_device(device)
    return device, Storage({"f32": torch.float32, "bf16": torch.bfloat16}[hidden], scratch)
