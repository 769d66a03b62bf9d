"""The options of the verbs: each is declared once, and a group of them reaches its verb as one frozen object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_export.commands.completion import Complete, device_names, file_type_names, pre_names
from gguf_export.commands.verb import Decorator, group, option

if TYPE_CHECKING:
    from calibration.forward.settings import ForwardSettings
    from calibration.text.text_settings import TextSettings

FILE = click.Path(path_type=Path)
TEXT = ("texts", "prompts")
"""The parameters that bring a text."""


# ---- single options ------------------------------------------------------------------------------------------------

MODEL = click.argument("model", type=FILE)
QUIET = option("-q", "--quiet", is_flag=True, help="No progress and no table.")
RESTART = option("--restart", is_flag=True, help="Begin afresh, whatever a run that was stopped has left.")
PRE = option(
    "--pre",
    metavar="NAME",
    shell_complete=pre_names,
    help="Pre-tokenizer (tokenizer.ggml.pre), where it is not recognised.",
)
CHAT_TEMPLATE = option(
    "--chat-template",
    metavar="CHOICE",
    help="The chat template: a file of Jinja; donor:N, of expert N in mergekit_moe_config.yml; a name of llama.cpp's "
    "such as chatml, llama3 or mistral-v7; none; or as-is, MODEL's own unchecked.  [default: MODEL's own]",
)
JSON = option("--json", "as_json", is_flag=True, help="The findings, as JSON for programs.")

RAY = option(
    "--ray",
    metavar="ADDRESS|local",
    help="Spread the work over a Ray cluster: HOST:PORT of its head, auto for the one that runs here, or local for the "
    "processors of this machine. Needs moe-gguf[ray]; see docs/cluster.md.",
)


def jobs(needs: Sequence[str] = ()) -> Decorator:
    """How many threads work."""
    return option(
        "-j",
        "--jobs",
        type=click.IntRange(min=1),
        metavar="N",
        needs=needs,
        help="Threads.  [default: all processors]",
    )


def force(needs: Sequence[str] = ()) -> Decorator:
    """Whether outputs may replace files."""
    return option("--force", is_flag=True, needs=needs, help="Replace files that exist.")


SKIP_EXISTING = option(
    "--skip-existing", is_flag=True, help="Leave files that exist as they are, whatever is in them."
)


def ftypes(
    text: str, *, required: bool = False, needs: Sequence[str] = (), names: Complete = file_type_names
) -> Decorator:
    """The file or tensor types of a verb; `names` completes them in a shell."""
    return option(
        "-t",
        "--type",
        "types",
        multiple=True,
        required=required,
        metavar="TYPE",
        needs=needs,
        shell_complete=names,
        help=text,
    )


def prior(needs: Sequence[str]) -> Decorator:
    """How far the importances of an expert are drawn toward its layer's mean."""
    return option(
        "--prior",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="N",
        needs=needs,
        help="Draw an expert's importances toward its layer's mean with the weight of N tokens, for experts that see "
        "few; 0 is llama.cpp's behaviour.",
    )


def imatrix(text: str, needs: Sequence[str] = ()) -> Decorator:
    """A file of importances; its name is stored in models as it is spelled, which a `Path` would not keep."""
    return option("--imatrix", type=click.Path(path_type=str), metavar="FILE", needs=needs, help=text)


def chunks(text: str, needs: Sequence[str] = ()) -> Decorator:
    """How many chunks of a text are used."""
    return option("--chunks", "n_chunk", type=click.IntRange(min=1), metavar="N", needs=needs, help=text)


def ctx(least: int, needs: Sequence[str] = ()) -> Decorator:
    """The tokens of a chunk."""
    return option(
        "--ctx",
        "n_ctx",
        type=click.IntRange(min=least),
        default=512,
        show_default=True,
        needs=needs,
        help="Tokens of a chunk.",
    )


# ---- groups --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextOptions:
    """The text that runs through the model."""

    texts: tuple[Path, ...]
    prompts: tuple[Path, ...]
    n_chunk: int | None
    n_ctx: int
    parse_special: bool

    @property
    def is_given(self) -> bool:
        """Whether there is a text at all."""
        return bool(self.texts or self.prompts)

    def settings(self) -> TextSettings:
        """The text as the library takes it.

        Raises:
            UsageError: there is none.
        """
        if not self.is_given:
            raise click.UsageError("give the text with --text FILE or --prompts FILE")
        from calibration.text.text_settings import TextSettings

        return TextSettings(self.texts, self.prompts, self.n_ctx, self.n_chunk, self.parse_special)


@dataclass(frozen=True)
class RunOptions:
    """How files are written."""

    jobs: int | None
    force: bool
    skip_existing: bool
    restart: bool
    ray: str | None = None


text_options = group(
    "text",
    TextOptions,
    option(
        "--text",
        "texts",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="Calibration text; may be repeated. FILE.jsonl is dialogues, which the chat template writes; "
        "builtin:calibration is the text that comes with moe-gguf.",
    ),
    option(
        "--prompts",
        multiple=True,
        type=FILE,
        metavar="FILE",
        help="mergekit_moe_config.yml: its positive prompts are text that reaches each expert.",
    ),
    chunks("Use the first N chunks only.", TEXT),
    ctx(2, TEXT),
    option("--parse-special", is_flag=True, needs=TEXT, help="Special tokens in the text count as such."),
)
"""`text: TextOptions`."""


@dataclass(frozen=True)
class ForwardOptions:
    """How the forward pass is run."""

    scratch: Path | None
    hidden: str
    device: str

    def settings(self, *, exact: bool = False) -> ForwardSettings:
        """The settings as the library takes them.

        Args:
            exact: float32 products whatever the device likes best, where differences are small.

        Raises:
            DeviceError: torch cannot compute on the device.
        """
        import torch

        from calibration.forward.settings import ForwardSettings, best_dtype, refuse_device

        refuse_device(self.device)
        return ForwardSettings(
            self.device,
            torch.float32 if exact else best_dtype(self.device),
            {"f32": torch.float32, "bf16": torch.bfloat16}[self.hidden],
            self.scratch,
        )


def forward_options(needs: Sequence[str] = ()) -> Decorator:
    """`forward: ForwardOptions`."""
    return group(
        "forward",
        ForwardOptions,
        option(
            "--scratch",
            type=FILE,
            metavar="DIR",
            needs=needs,
            help="Keep the hidden states of long texts in files there.",
        ),
        option(
            "--hidden",
            type=click.Choice(["f32", "bf16"]),
            default="f32",
            show_default=True,
            needs=needs,
            help="Type of the hidden states between layers; bf16 takes half the memory and rounds them.",
        ),
        option(
            "--device",
            default="cpu",
            show_default=True,
            shell_complete=device_names,
            needs=needs,
            help="Where torch does the arithmetic, such as cuda.",
        ),
    )
