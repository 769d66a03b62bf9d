"""llama.cpp's file of a base's logits (llama-perplexity --save-all-logits), read chunk by chunk.

    "_logits_"  i32 n_ctx  i32 n_vocab  i32 n_chunk  i32 tokens[n_chunk * n_ctx]
    per chunk, for each of its n_ctx - 1 - n_ctx / 2 targets:
        f32 scale  f32 min_log_prob  u16 codes[n_vocab, rounded up to an even number]

ln p = scale * code + min_log_prob, in float32. The file holds no ln p below that of the likeliest token - 16.
tools/perplexity/perplexity.cpp writes it (`perplexity`, `log_softmax` with log_prob) and reads it (`kl_divergence`).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from calibration.text.chunks import Chunks
from quantize.containers.untrusted import regular_size
from quantize.exceptions import LogitsError
from quantize.sources.fingerprint import SeenFiles, hashed

__all__ = ["LogitsFile", "is_logits_file"]

MAGIC = b"_logits_"
HEADER = len(MAGIC) + 12  # bytes
MAX_CTX, MAX_VOCAB, MAX_CHUNK = 1 << 24, 1 << 24, 1 << 24


def is_logits_file(path: Path) -> bool:
    """Whether a file begins as llama-perplexity's logits files do."""
    try:
        regular_size(path, LogitsError)
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, LogitsError):
        return False


class LogitsFile:
    """An open file of logits, which may be a base in the place of a model (`side_by_side.Base`).

    `tokens` int32 [n_chunk, n_ctx] are the text's, before BOS is put in. The size of the model that gave the logits is
    not known.

    Raises:
        LogitsError: not such a file, or its size is not what its header says.
    """

    kind: ClassVar[Literal["logits"]] = "logits"
    n_bytes: ClassVar[None] = None
    bpw: ClassVar[None] = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = SeenFiles([path], LogitsError)
        size = regular_size(path, LogitsError)
        try:
            with path.open("rb") as file:
                head = file.read(HEADER)
                if len(head) < HEADER or not head.startswith(MAGIC):
                    raise LogitsError(str(path), "not a file of llama-perplexity --save-all-logits")
                counts: tuple[int, int, int] = struct.unpack_from("<3i", head, len(MAGIC))
                self.n_ctx, self.n_vocab, self.n_chunk = counts
                self._check(size)
                tokens = np.frombuffer(file.read(4 * self.n_chunk * self.n_ctx), "<i4")
        except OSError as error:
            raise LogitsError(str(path), f"cannot be read: {error.strerror}") from error
        self.tokens: npt.NDArray[np.int32] = tokens.reshape(self.n_chunk, self.n_ctx).astype(np.int32)
        if self.tokens.min() < 0 or self.tokens.max() >= self.n_vocab:
            raise LogitsError(str(path), f"damaged: a token is not below {self.n_vocab}")

    @property
    def name(self) -> str:
        """The path, as it was given."""
        return str(self.path)

    @property
    def n_scored(self) -> int:
        """Targets of a chunk."""
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def row_bytes(self) -> int:
        """Bytes of one target."""
        return 8 + 4 * ((self.n_vocab + 1) // 2)

    def log_probs(self, chunk: int) -> npt.NDArray[np.float32]:
        """ln p f32 [n_scored, n_vocab] of one chunk.

        Raises:
            LogitsError: the file cannot be read, ends early, or holds scales that are no numbers.
            ModelChangedError: it is no longer the one that was opened.
        """
        n_bytes = self.n_scored * self.row_bytes
        try:
            with self.path.open("rb") as file:
                file.seek(HEADER + 4 * self.n_chunk * self.n_ctx + chunk * n_bytes)
                data = file.read(n_bytes)
                self._seen.confirm(self.path, file.fileno())
        except OSError as error:
            raise LogitsError(self.name, f"cannot be read: {error.strerror}") from error
        if len(data) != n_bytes:
            raise LogitsError(self.name, f"truncated: it ends within chunk {chunk}")
        rows = np.frombuffer(data, np.uint8).reshape(self.n_scored, self.row_bytes)
        scale, least = rows[:, :8].copy().view("<f4").T[:, :, None]
        if not (np.isfinite(scale).all() and np.isfinite(least).all()):
            raise LogitsError(self.name, f"damaged: chunk {chunk} holds a scale that is no number")
        codes = rows[:, 8 : 8 + 2 * self.n_vocab].copy().view("<u2")
        log_probs: npt.NDArray[np.float32] = scale * codes.astype(np.float32) + least
        return log_probs

    def fingerprint(self) -> str:
        """A hash of the file's size and times, and of samples of its content.

        Raises:
            LogitsError: it cannot be read any more.
            ModelChangedError: it is no longer the one that was opened.
        """
        return hashed(self._seen.fingerprint())

    def refuse_changed(self) -> None:
        """Look at the file again.

        Raises:
            ModelChangedError: it is no longer the one that was opened.
        """
        self._seen.refuse_changed()

    def refuse_other_text(self, chunks: Chunks) -> None:
        """Chunks can be scored where they are the file's first ones.

        Raises:
            LogitsError: they are not; the message says what differs.
        """
        if chunks.n_ctx != self.n_ctx or chunks.n_chunk > self.n_chunk:
            raise LogitsError(
                self.name,
                f"holds {self.n_chunk} chunks of {self.n_ctx} tokens",
                f"asked for were {chunks.n_chunk} of {chunks.n_ctx}",
            )
        if (chunks.tokens != self.tokens[: chunks.n_chunk]).any():
            raise LogitsError(
                self.name, "made from another text", "leave the text out, the file brings its own"
            )

    def refuse_other_size(self, label: str, n_vocab: int) -> None:
        """A model can be held against the file where both know as many tokens.

        Raises:
            LogitsError: the model called `label` does not.
        """
        if n_vocab != self.n_vocab:
            raise LogitsError(self.name, f"has {self.n_vocab} tokens, {label} has {n_vocab}")

    def _check(self, size: int) -> None:
        """Refuse a header that cannot be, and a file that is shorter than it says."""
        if not (
            3 <= self.n_ctx <= MAX_CTX and 0 < self.n_vocab <= MAX_VOCAB and 0 < self.n_chunk <= MAX_CHUNK
        ):
            raise LogitsError(
                self.name,
                f"damaged: context {self.n_ctx}, vocabulary {self.n_vocab}, chunks {self.n_chunk}",
            )
        expected = HEADER + 4 * self.n_chunk * self.n_ctx + self.n_chunk * self.n_scored * self.row_bytes
        if size < expected:
            raise LogitsError(
                self.name,
                f"truncated: {size} bytes of {expected}",
                "was the program that wrote it stopped?",
            )
