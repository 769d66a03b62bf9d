"""One text of several files, as a person names it, and its chunks in the tokens of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.text.built_in import expanded
from calibration.text.chunks import N_CTX, Chunks, make_chunks, read_prompts
from calibration.text.dialogue_texts import read_text_of
from calibration.text.tokenizer import tokenizer_of
from quantize.exceptions import TextError
from quantize.sources.model_source import ModelFile
from quantize.tracing import span

__all__ = ["TextSettings", "cut_text"]


@dataclass(frozen=True)
class TextSettings:
    """One text of several files, such as a calibration text, and how it is cut (see `make_chunks`).

    paths: text files, or names of built-in texts, which become their files.
    prompts: files like mergekit_moe_config.yml; their positive prompts are text that reaches each expert.
    n_ctx: tokens of a chunk.
    n_chunk: number of chunks that are used, from the first on; all where it is None.
    parse_special: special tokens in the text count as such.
    chat_template: what writes the dialogues of `FILE.jsonl`, as `choose_template` takes it; by default the model's.
    """

    paths: tuple[Path, ...] = ()
    prompts: tuple[Path, ...] = ()
    n_ctx: int = N_CTX
    n_chunk: int | None = None
    parse_special: bool = False
    chat_template: str | None = None

    def __post_init__(self) -> None:
        """Put files in the place of names.

        Raises:
            TextError: there is no such built-in text.
        """
        object.__setattr__(self, "paths", expanded(self.paths))

    @classmethod
    def of(cls, text: TextSettings | str | Path) -> TextSettings:
        """The text of one file, where only its path is given."""
        return text if isinstance(text, TextSettings) else cls((Path(text),))

    @property
    def is_given(self) -> bool:
        """Whether there is a text at all."""
        return bool(self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are read."""
        return (*self.paths, *self.prompts)


def cut_text(model: ModelFile, settings: TextSettings, pre: str | None = None) -> Chunks:
    """The chunks of a text, in the tokens of a model; `pre` is for `tokenizer_of`.

    Raises:
        TextError: there is no text, or it cannot be read or is too short.
        TokenizerError: the model has no tokenizer that can be used here.
    """
    if not settings.is_given:
        raise TextError("", "there is no text", "give {setting}", setting="text")
    with span("cut text"):
        return make_chunks(
            [read_text_of(model, path, settings.chat_template) for path in settings.paths]
            + [read_prompts(path) for path in settings.prompts],
            tokenizer_of(model, pre),
            n_ctx=settings.n_ctx,
            n_chunk=settings.n_chunk,
            parse_special=settings.parse_special,
        )
