"""The model card: README.md of a release, in Markdown; every figure on it was measured on the files beside it.

`templates/card.md.jinja` holds its words, this module what is put into them: each text of a stranger goes through
`markdown_text`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from gguf_export.checking.fit import Fit
from gguf_export.comparing.results import Results
from gguf_export.metadata.file_names import safe_name
from gguf_export.releasing.about import About
from gguf_export.releasing.experts import ExpertLoad
from gguf_export.releasing.smoke import NOT_RUN, has_failed
from gguf_export.reports.compare_facts import protocol, size_unit
from gguf_export.reports.compare_tables import VERDICTS, files_table, kld_by_text
from gguf_export.reports.figures import percent
from gguf_export.reports.fit_tables import assumptions, choices_table
from gguf_export.reports.markdown import markdown_text, table_line
from gguf_export.reports.pages import TableText

__all__ = ["CardFacts", "model_card"]

HUB = "https://huggingface.co"
MOST_LISTED = 24
"""Experts, and places of starved ones."""


@dataclass(frozen=True)
class CardFacts:
    """What the card tells.

    title: with which the names of the files begin.
    files: file type -> name of the file, of its first part where it is split.
    n_parts: file type -> number of files on the disk.
    smoke: file type -> verdict of the smoke test.
    program: the llama.cpp that ran the files, None where there was none.
    prompt: the text of a sample dialogue, None where the files have no chat template.
    load: what each expert saw of the calibration text, None where there are no experts.
    errors: file type -> median output error of the matrices of each expert, None where it is not known.
    dialogues: names of the held-out texts that the chat template writes.
    made_by: the command that made the folder, without local paths.
    imatrix: the name of the file of importances; `calibration` is the text that gave them, in words.
    """

    about: About
    title: str
    repo: str | None
    results: Results
    files: dict[str, str]
    n_parts: dict[str, int]
    smoke: dict[str, str]
    program: str | None
    fit: Fit
    prompt: str | None
    load: ExpertLoad | None
    errors: Mapping[str, Sequence[float | None]]
    dialogues: tuple[str, ...]
    made_by: str
    imatrix: str
    calibration: str
    versions: str
    date: str

    @property
    def best_known(self) -> str:
        """The type that llama.cpp and Ollama take where nobody names one: Q4_K_M, then Q8_0; else the first."""
        return _preferred(list(self.files))

    @property
    def whole(self) -> list[str]:
        """The types of the files that are not split."""
        return [ftype for ftype in self.files if self.n_parts[ftype] == 1]

    @property
    def for_ollama(self) -> str | None:
        """The type that Ollama is given, which refuses split files; None where all are."""
        return _preferred(self.whole) if self.whole else None


def _preferred(ftypes: Sequence[str]) -> str:
    return next((ftype for ftype in ("Q4_K_M", "Q8_0") if ftype in ftypes), ftypes[0])


def model_card(facts: CardFacts) -> str:
    """The body of the card; the front matter stands before it. Equal facts give equal text."""
    about, load = facts.about, facts.load
    unit = size_unit(facts.results)
    text = (
        _environment()
        .get_template("card.md.jinja")
        .render(
            facts=facts,
            about=about,
            origin=_origin(about),
            tried=_tried(facts),
            which_file=_table(choices_table(facts.fit)),
            assumptions=assumptions(facts.fit),
            files=_files(facts),
            unit=f"{unit.name} = 10^{len(str(unit.n_bytes)) - 1}",
            verdicts=VERDICTS,
            protocol=protocol(facts.results),
            by_text=_table(kld_by_text(facts.results)) if len(facts.results.texts) > 1 else "",
            split=[ftype for ftype in facts.files if facts.n_parts[ftype] > 1],
            best_file=facts.files[facts.best_known],
            short_name=safe_name(about.name).lower(),
            experts=_table(_experts(facts, load)) if load is not None else "",
            only_some=f"; the {MOST_LISTED} with the fewest of {about.n_expert}"
            if about.n_expert > MOST_LISTED
            else "",
            starved=_starved(load) if load is not None else "",
            licence=_licence(about),
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _origin(about: About) -> str:
    return (
        f"[{about.base_model}]({HUB}/{about.base_model})" if about.base_model else markdown_text(about.name)
    )


def _tried(facts: CardFacts) -> str:
    """What the smoke test found, as the end of a sentence."""
    verdicts = list(facts.smoke.values())
    if NOT_RUN in verdicts or facts.program is None:
        return "they were not run in llama.cpp (smoke test: not run)"
    failed = [ftype for ftype, verdict in facts.smoke.items() if has_failed(verdict)]
    if failed:
        return f"{', '.join(failed)} failed in llama.cpp ({facts.program})"
    return f"llama.cpp ({facts.program}) loaded each and wrote with it"


def _files(facts: CardFacts) -> str:
    """The table of the files, each with its link."""
    columns, rows = files_table(facts.results)
    shown: list[tuple[str, ...]] = []
    for label, *cells in rows:
        name = facts.files.get(label)
        first = markdown_text(label) if name is None else f"[{markdown_text(label)}]({_link(facts, name)})"
        shown.append((first, *map(markdown_text, cells)))
    return _lines(("file", *columns[1:]), shown)


def _link(facts: CardFacts, name: str) -> str:
    return f"{HUB}/{facts.repo}/resolve/main/{quote(name)}" if facts.repo else f"./{quote(name)}"


def _experts(facts: CardFacts, load: ExpertLoad) -> TableText:
    """The table of the experts, in their order; of many those that saw least."""
    about = facts.about
    donors = about.donors if len(about.donors) == about.n_expert else ()
    medians = {name: each for name, each in facts.errors.items() if len(each) == about.n_expert}
    costs = {name: medians[name] for name in (facts.best_known,) if name in medians}
    shown = list(enumerate(load.totals))
    if len(shown) > MOST_LISTED:
        shown = sorted(shown, key=lambda pair: pair[1])[:MOST_LISTED]
    rows: list[tuple[str, ...]] = [
        (
            str(xid),
            *((donors[xid],) if donors else ()),
            f"{total:,}",
            f"{load.fewest[xid]:,}",
            *(percent(each[xid]) for each in costs.values()),
        )
        for xid, total in shown
    ]
    heads = (">expert", *(("donor",) if donors else ()), ">tokens", ">fewest in a layer")
    return (*heads, *(f">output error as {name}" for name in costs)), rows


def _starved(load: ExpertLoad) -> str:
    n_more = len(load.starved) - MOST_LISTED
    return ", ".join(load.starved[:MOST_LISTED]) + (f" and {n_more} more" if n_more > 0 else "")


def _licence(about: About) -> str:
    named = markdown_text(about.license_name or about.license)
    if about.license_link.startswith("https://"):
        return f"[{named}]({quote(about.license_link, safe=':/?#=&%+,;@~.-_')})"
    return named


def _table(table: TableText) -> str:
    columns, rows = table
    return _lines(columns, [tuple(map(markdown_text, row)) for row in rows])


def _lines(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table whose cells are Markdown."""
    rule = ["---:" if column.startswith(">") else "---" for column in columns]
    heads = [markdown_text(column.removeprefix(">")) for column in columns]
    return "\n".join(map(table_line, (heads, rule, *rows)))


def _fenced(text: str) -> str:
    """A block of code that nothing in the text ends."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gguf_export.releasing"),
        autoescape=False,  # it is Markdown: texts go through the filters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": markdown_text, "fenced": _fenced}
    return environment
