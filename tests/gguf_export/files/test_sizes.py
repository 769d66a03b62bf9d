"""Sizes in words."""

from __future__ import annotations

import pytest

from gguf_export.files.sizes import size_in_words


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536.0, "1.50 KiB"),
        (3 * 2**20 + 2**18, "3.25 MiB"),
        (2**30, "1.00 GiB"),
        (95 * 2**30, "95.00 GiB"),
        (3000 * 2**30, "3000.00 GiB"),
    ],
)
def test_sizes(n_bytes: float, words: str) -> None:
    assert size_in_words(n_bytes) == words


def test_decimals_are_those_of_large_sizes() -> None:
    assert size_in_words(1.2345 * 2**30, 3) == "1.234 GiB"
    assert size_in_words(1.2345 * 2**20, 3) == "1.23 MiB"
