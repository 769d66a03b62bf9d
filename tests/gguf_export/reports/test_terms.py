"""The words that pages explain: each page explains those that it uses, in the glossary's words where there is one."""

from __future__ import annotations

import re

from measured import make_report, make_results
from places import ROOT

from gguf_export.reports.compare_page import compare_page
from gguf_export.reports.error_page import error_page
from gguf_export.reports.terms import TERMS

GLOSSARY = ROOT / "docs" / "glossary.md"

OTHERWISE = {
    "bpw": "bits per weight",
    "bpw of matrices": "bits per weight",
    "held-out text": "held-out",
    "importances": "importance matrix",
    "ln PPL ratio": "PPL ratio",
    "tokens routed": "routed",
}
"""Words of pages that the glossary explains under another heading."""

LLAMA_BENCH = {"pp", "tg"}
"""Words that stand in no table unless they are asked for."""


def test_pages_explain_their_words() -> None:
    page = compare_page(make_results(3, ("prose", "code")))
    for word in ("mean KLD", "same top", "same experts", "router KLD", "PPL ratio", "RMS Δp", "bpw"):
        assert f">{word}</dt>" in page
    assert ">prior</dt>" not in page and ">tg</dt>" not in page
    page = error_page(make_report())
    for word in ("output error", "effective", "router entropy"):
        assert f">{word}</dt>" in page


def test_tables_link_to_the_words_that_they_use() -> None:
    for page in (compare_page(make_results(3, ("prose", "code"))), error_page(make_report())):
        places = re.findall(r'<dt id="([^"]+)"', page)
        links = re.findall(r'<a class="term" href="#([^"]+)">', page)
        assert links and set(links) <= set(places)
        assert len(places) == len(set(places))


def test_each_word_has_one_line() -> None:
    for word, meaning in TERMS.items():
        assert meaning.endswith(".") and "\n" not in meaning and len(meaning) > len(word)


def test_the_glossary_has_the_words_of_the_pages() -> None:
    if GLOSSARY.exists():
        headings = re.findall(r"^### (.+)$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
        words = {OTHERWISE.get(word, word).lower() for word in TERMS.keys() - LLAMA_BENCH}
        assert words <= {heading.strip().lower() for heading in headings}
