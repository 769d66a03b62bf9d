"""Calibration and evaluation text -> chunks of tokens, by the protocol of llama-imatrix and llama-perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.text.tokenizer import Tokenizer, Tokens
from quantize.containers.untrusted import file_name, label, parse_yaml, read_bytes
from quantize.exceptions import TextError

__all__ = ["Chunks", "Text", "make_chunks", "read_prompts", "read_text"]

N_CTX = 512  # tokens of a chunk, llama.cpp's default in both programs
MAX_BYTES = 1 << 31  # of one text; it is held in memory and tokenised at once


@dataclass(frozen=True)
class Text:
    """A text and the name it goes by in reports and in the imatrix (its path as given, see `label`).

    A text of dialogues has each of them apart: BOS stands before each, and special tokens count as such.
    """

    name: str
    text: str = ""
    dialogues: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunks:
    """Windows of a text, as the tokenizer gave them: `tokens` is int32 [n_chunk, n_ctx]."""

    names: tuple[str, ...]
    tokens: Tokens
    bos_id: int | None

    @property
    def n_chunk(self) -> int:
        """Number of chunks."""
        return int(self.tokens.shape[0])

    @property
    def n_ctx(self) -> int:
        """Tokens of a chunk."""
        return int(self.tokens.shape[1])

    @property
    def n_token(self) -> int:
        """Tokens of all chunks."""
        return int(self.tokens.size)

    @property
    def inputs(self) -> Tokens:
        """Tokens that the model is given, int32 [n_chunk, n_ctx]: BOS, if it wants one, replaces each chunk's first."""
        inputs = self.tokens.copy()
        if self.bos_id is not None:
            inputs[:, 0] = self.bos_id
        return inputs

    def part(self, start: int, stop: int | None = None) -> Chunks:
        """The chunks `start:stop`, e.g. to hold a part of the text out."""
        return Chunks(self.names, self.tokens[start:stop], self.bos_id)


def read_text(path: str | Path) -> Text:
    """A text file, its bytes as they are but for one final newline (llama.cpp's common/arg.cpp, `-f`).

    Raises:
        TextError: it cannot be read, is empty, or is not UTF-8 (the message names the byte).
    """
    raw = read_bytes(Path(path), MAX_BYTES, TextError).removesuffix(b"\n")
    if not raw:
        raise TextError(str(path), "the text is empty")
    try:
        return Text(label(path), raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TextError(
            str(path),
            f"not UTF-8 at byte {error.start} (0x{raw[error.start]:02x})",
            "convert it to UTF-8",
        ) from error


def read_prompts(path: str | Path) -> Text:
    """The positive prompts of a mergekit_moe_config.yml, one per line: text that is known to reach each expert.

    Raises:
        TextError: it cannot be read, or there are no prompts in it.
    """
    config = parse_yaml(read_text(path).text, str(path), TextError)
    experts = config.get("experts") if isinstance(config, dict) else None
    lists = [
        expert.get("positive_prompts")
        for expert in (experts if isinstance(experts, list) else [])
        if isinstance(expert, dict)
    ]
    prompts = [
        prompt.encode("utf-8", "replace").decode("utf-8")  # YAML can spell half of a surrogate pair
        for listed in lists
        if isinstance(listed, list)
        for prompt in listed
        if isinstance(prompt, str) and prompt
    ]
    if not prompts:
        raise TextError(str(path), "holds no positive_prompts of experts")
    return Text(label(path), "\n".join(prompts))


def make_chunks(
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    *,
    n_ctx: int = N_CTX,
    n_chunk: int | None = None,
    parse_special: bool = False,
) -> Chunks:
    """Tokenise once, BOS first, and cut into chunks; the remainder is dropped (tools/imatrix/imatrix.cpp).

    Several texts are tokenised apart and cut as one stream, so that short ones (prompts) count as well.
    Dialogues are as llama-server gives them to a model: BOS before each, their special tokens parsed.
    `n_chunk` limits the number of chunks. With one text the chunks are those of llama-imatrix and
    llama-perplexity, except that one chunk is enough here and two are needed there.

    Raises:
        TextError: there are not enough tokens for one chunk.
    """
    streams: list[Tokens] = []
    bos = [] if tokenizer.bos_id is None else [np.array([tokenizer.bos_id], np.int32)]
    for text in texts:
        if not text.dialogues:
            streams += [*([] if streams else bos), tokenizer.encode(text.text, parse_special=parse_special)]
        for dialogue in text.dialogues:
            streams += [*bos, tokenizer.encode(dialogue, parse_special=True)]
    stream = np.concatenate(streams) if streams else np.empty(0, np.int32)
    names = tuple(file_name(text.name) for text in texts)
    n_full = len(stream) // n_ctx
    if not n_full:
        place = " + ".join(text.name for text in texts) or "no text"
        raise TextError(place, f"{len(stream)} tokens are too few, one chunk needs {n_ctx}", "give more text")
    n_kept = n_full if n_chunk is None else min(n_chunk, n_full)
    return Chunks(names, stream[: n_kept * n_ctx].reshape(n_kept, n_ctx), tokenizer.bos_id)
