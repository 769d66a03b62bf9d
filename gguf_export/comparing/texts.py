"""Which texts run through a model, and their chunks, cut by the model's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from calibration.judging.logits_file import LogitsFile
from calibration.text.built_in import built_in_files
from calibration.text.chunks import N_CTX, Chunks, make_chunks
from calibration.text.dialogue_texts import read_text_of
from calibration.text.tokenizer import tokenizer_of, vocabulary_of
from gguf_export.comparing.named_files import is_file, split_name
from quantize.containers.untrusted import label, quoted
from quantize.exceptions import LogitsError, TextError
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.tracing import span

__all__ = ["NamedText", "TextChoice", "cut_choice", "own_text"]


@dataclass(frozen=True)
class NamedText:
    """A file of text and the name, valid text, under which it is reported."""

    name: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> NamedText:
        """NAME=FILE, or a file that goes by its stem.

        Raises:
            TextError: see `split_name`.
        """
        name, file = split_name(text, TextError, is_file)
        return cls(name or label(Path(file).stem), Path(file))

    @classmethod
    def parse_all(cls, text: str) -> list[NamedText]:
        """NAME=FILE or a file; or the name of a built-in text, whose files go by what they hold.

        Raises:
            TextError: see `split_name`; or there is no such built-in text, or it is given another name.
        """
        files = built_in_files(text)
        if files is not None:
            return [cls(name, path) for name, path in files.items()]
        one = cls.parse(text)
        if built_in_files(str(one.path)):
            raise TextError(
                text, "stands for several texts, which have names", f"leave out {quoted(one.name)}="
            )
        return [one]


@dataclass(frozen=True)
class TextChoice:
    """The texts that models are compared on, each with figures of its own.

    texts: at least one, unless the base is a file of logits, which brings its own.
    n_ctx: tokens of a chunk.
    n_chunk: of each text the first so many chunks are used, all where it is None.
    chat_template: what writes the dialogues of `FILE.jsonl`, as `choose_template` takes it; by default the model's.
    """

    texts: tuple[NamedText, ...] = ()
    n_ctx: int = N_CTX
    n_chunk: int | None = None
    chat_template: str | None = None

    @classmethod
    def of(cls, *texts: str, n_ctx: int = N_CTX, n_chunk: int | None = None) -> TextChoice:
        """The choice with each text as NAME=FILE, as a file that goes by its stem, or as the name of a built-in text.

        Raises:
            TextError: see `NamedText.parse_all`.
        """
        named = [one for text in texts for one in NamedText.parse_all(text)]
        return cls(tuple(named), n_ctx, n_chunk)

    def refuse_twins(self) -> None:
        """Two texts of one name could not be told apart in any report.

        Raises:
            TextError: there are two.
        """
        names = [text.name for text in self.texts]
        for name in names:
            if names.count(name) > 1:
                raise TextError(
                    "", f"two texts are called {quoted(name)}", "name them apart, as in NAME=FILE"
                )


def cut_choice(model: Checkpoint | GGUFFile, choice: TextChoice) -> list[Chunks]:
    """The chunks of each text, in the tokens of a model.

    Raises:
        TextError: there is no text, or one cannot be read or is too short.
        TokenizerError: the model has no tokenizer that can be used here.
    """
    if not choice.texts:
        raise TextError("", "there is no text to judge by", "give one")
    tokenizer = tokenizer_of(model)
    cut = []
    for text in choice.texts:
        with span("cut text", text=text.name):
            chunks = make_chunks(
                [read_text_of(model, text.path, choice.chat_template)],
                tokenizer,
                n_ctx=choice.n_ctx,
                n_chunk=choice.n_chunk,
            )
        cut.append(replace(chunks, names=(text.name,)))
    return cut


def own_text(logits: LogitsFile, model: Checkpoint | GGUFFile, choice: TextChoice) -> Chunks:
    """The text of a file of logits, which goes by the file's stem; BOS is the model's.

    Raises:
        LogitsError: another text is given, too.
    """
    if choice.texts:
        raise LogitsError(logits.name, "brings its own text", "leave the text out")
    return Chunks((label(logits.path.stem),), logits.tokens[: choice.n_chunk], vocabulary_of(model).bos_id)
