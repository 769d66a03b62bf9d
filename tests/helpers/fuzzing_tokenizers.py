"""Tokenizers and model cards of strangers that are made by a grammar: sound JSON and YAML that ask for too much.

Bytes changed at random are nearly always refused by the first parser. What these make is read by it, and only then
found out.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

__all__ = ["mutated_tokenizer", "mutated_yaml"]

TEXTS: list[Any] = [
    *(
        "",
        "e",
        "ee",
        " ",
        "▁",
        "the",
        "\n",
        "<s>",
        "\u0130",
        "\ufdfa",
        "e" * 50,
        "x" * 100_000,
        "\0",
        "Ġ",
        "(",
        "A",
        "B",
    ),
    *(None, True, 7, -1, 1.5, [], {}, ["e"], {"content": "e"}, 10**40),
]
EXPRESSIONS = [
    *(
        "(a+)+$",
        "(t|h|e| )*x",
        r"(\s*\S*)*\d{99}",
        ".*.*.*x",
        "(",
        "[",
        "\\",
        "a{99999}",
        "(?<=e+)",
        r"(.)\1*\1*\1*!",
        "",
    ),
    *(
        r"\p{N}{1,3}",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s+(?!\S)",
        r"\s*[\r\n]+",
        "'s|'t",
    ),
    *(
        "|".join(["a+b"] * 300),
        "(?i:" * 50 + ")" * 50,
        "a" * 5000,
        "[a-z&&[^e]]+",
        r"\p{Greek}*",
        "e?" * 40 + "e" * 40,
    ),
]
FLAGS: list[Any] = [True, False, None, 1, "true", []]
BEHAVIORS: list[Any] = [
    "Isolated",
    "Removed",
    "MergedWithPrevious",
    "MergedWithNext",
    "Contiguous",
    "",
    None,
    3,
]
NUMBERS: list[Any] = [0, 1, 3, -1, 2**31, 2**63, 2**64, 10**40, 0.5, None, "1"]

_PARAMETERS: dict[str, list[Any]] = {
    "prepend": TEXTS,
    "content": TEXTS,
    "replacement": TEXTS,
    "prepend_scheme": ["always", "never", "first", 1],
    "delimiter": TEXTS,
    "suffix": TEXTS,
    "prefix": TEXTS,
    "pad_token": TEXTS,
    "word_delimiter_token": TEXTS,
    "precompiled_charsmap": ["", "AAAA", "/////w" * 1000, None],
    **dict.fromkeys(
        (
            "add_prefix_space",
            "trim_offsets",
            "use_regex",
            "invert",
            "individual_digits",
            "cleanup",
            "clean_text",
        ),
        FLAGS,
    ),
    **dict.fromkeys(
        ("strip_left", "strip_right", "strip_accents", "lowercase", "handle_chinese_chars", "split"), FLAGS
    ),
    "behavior": BEHAVIORS,
    **dict.fromkeys(("start", "stop", "length"), NUMBERS),
}
_NORMALIZERS = """NFC NFD NFKC NFKD Nmt Lowercase StripAccents Strip Prepend Replace Precompiled BertNormalizer
ByteLevel Prefix""".split()  # noqa: SIM905
_PRE_TOKENIZERS = """ByteLevel Split Digits Punctuation Whitespace WhitespaceSplit Metaspace BertPreTokenizer
CharDelimiterSplit UnicodeScripts FixedLength""".split()  # noqa: SIM905
_DECODERS = """ByteLevel WordPiece Metaspace BPEDecoder CTC Replace Fuse Strip ByteFallback""".split()  # noqa: SIM905
_KINDS = {"normalizer": _NORMALIZERS, "pre_tokenizer": _PRE_TOKENIZERS, "decoder": _DECODERS}
_INNER = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}


def mutated_tokenizer(draw: st.DrawFn, valid: bytes) -> bytes:
    """A tokenizer.json in which some parts are others: any steps of the library, in any number, with any parameters."""
    tree: dict[str, Any] = json.loads(valid)
    for _ in range(draw(st.integers(1, 3))):
        part = draw(
            st.sampled_from([*_KINDS, *_KINDS, "post_processor", "added_tokens", "model", "truncation"])
        )
        if part in _KINDS:
            tree[part] = _part(draw, part)
        elif part == "post_processor":
            tree[part] = _post_processor(draw)
        elif part == "added_tokens":
            tree[part] += _added(draw, len(tree["model"]["vocab"]))
        elif part == "model":
            name = draw(
                st.sampled_from(["dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"])
            )
            tree[part][name] = draw(st.sampled_from([0.5, 1.0, *FLAGS, *TEXTS]))
        else:
            length = draw(st.sampled_from(NUMBERS))
            tree[part] = {"max_length": length, "strategy": "LongestFirst", "direction": "Right", "stride": 1}
            tree["padding"] = {"strategy": {"Fixed": length}, "direction": "Right", "pad_token": "x"}
    return json.dumps(tree).encode()


def _part(draw: st.DrawFn, part: str) -> Any:
    """One step, or a sequence of steps, of sequences, or of one step many times."""
    shape = draw(st.integers(0, 5))
    step = _step(draw, part)
    if shape <= 1:
        return step
    steps = [_step(draw, part) for _ in range(draw(st.integers(0, 6)))]
    if shape == 2:
        many = 1000 if len(json.dumps(step)) < 1000 else 17  # an input has a few megabytes at most
        steps = [step] * draw(st.sampled_from([2, 15, 16, 17, 40, many]))
    if shape == 3:
        for _ in range(draw(st.sampled_from([1, 3, 40, 150]))):
            steps = [{"type": "Sequence", _INNER[part]: steps}]
    if shape == 4:  # what a known tokenizer ends with
        steps.append(
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        )
    return {"type": "Sequence", _INNER[part]: steps}


def _step(draw: st.DrawFn, part: str) -> dict[str, Any]:
    kind = draw(st.sampled_from(_KINDS[part]))
    step: dict[str, Any] = {"type": kind}
    names = draw(st.lists(st.sampled_from(sorted(_PARAMETERS)), max_size=5))
    if kind in ("Replace", "Split"):
        is_text = draw(st.booleans())
        values = TEXTS if is_text else EXPRESSIONS
        step["pattern"] = {"String" if is_text else "Regex": draw(st.sampled_from(values))}
        names += ["content", "behavior", "invert"]
    if kind == "Prepend":
        names.append("prepend")
    if kind == "ByteLevel":
        names += ["add_prefix_space", "trim_offsets"]
    return step | {name: draw(st.sampled_from(_PARAMETERS[name])) for name in names}


def _post_processor(draw: st.DrawFn) -> Any:
    token = st.sampled_from(["<s>", "the", "x", 7, None, {"content": "<s>"}, ["<s>"]])
    number = st.sampled_from(NUMBERS)
    piece = st.one_of(
        st.builds(lambda text, n: {"SpecialToken": {"id": text, "type_id": n}}, token, number),
        st.builds(lambda text: {"Sequence": {"id": text, "type_id": 0}}, st.sampled_from(["A", "B", "C", 1])),
        token,
    )
    kind = draw(st.integers(0, 4))
    if kind == 0:
        name = draw(st.sampled_from(["RobertaProcessing", "BertProcessing"]))
        pair = st.lists(st.one_of(token, number), max_size=3)
        return {
            "type": name,
            "cls": draw(pair),
            "sep": draw(pair),
            "trim_offsets": True,
            "add_prefix_space": True,
        }
    if kind == 1:
        return {
            "type": "Sequence",
            "processors": [_post_processor(draw) for _ in range(draw(st.integers(0, 3)))],
        }
    pieces = draw(st.lists(piece, max_size=4)) * draw(st.sampled_from([1, 1, 1, 5, 5000]))
    ids = [draw(number)] * draw(st.sampled_from([0, 1, 2, 20_000]))
    known = {"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"] * len(ids)}}
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces * 2, "special_tokens": known}


def _added(draw: st.DrawFn, n_vocab: int) -> list[dict[str, Any]]:
    text = draw(st.sampled_from(TEXTS))
    flags = {
        name: draw(st.sampled_from([True, False]))
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
    }
    n = draw(st.sampled_from([1, 2, 60, 2000]))
    texts = (
        [text]
        if n == 1
        else [f"{text}{i}" if isinstance(text, str) and len(text) < 60 else text for i in range(n)]
    )
    return [{"id": n_vocab + i, "content": content, **flags} for i, content in enumerate(texts)]


NAMES = """license base_model base_models tags language languages datasets pipeline_tag model_name name version author
url doi license_name experts positive_prompts x 7 ~ yes <<""".split()  # noqa: SIM905
SCALARS = [
    *(
        "x",
        "a/b",
        "https://huggingface.co/a/b",
        "~",
        "null",
        "yes",
        "no",
        "1",
        "1.50",
        "0x" + "f" * 5000,
        "9" * 5000,
    ),
    *(
        ":".join(["59"] * 5000),
        "1:30.5",
        "2001-99-99",
        "2001-01-01 10:00:00.1",
        "!!int x",
        "!!float 1:30",
        "!!binary A",
    ),
    *(
        "!!python/name:os.system ''",
        "!!set {a, b}",
        "!!merge x",
        "&a x",
        "*a",
        '"\\ud800"',
        '"\\x00"',
        "'it''s'",
        "|\n  x",
    ),
    *(
        ".inf",
        ".nan",
        "=",
        "<<",
        "0b" + "1" * 5000,
        "!",
        "!<tag:yaml.org,2002:int> 5",
        "%",
        "@",
        "- x",
        "? x",
        "x" * 3000,
    ),
]


def mutated_yaml(draw: st.DrawFn, valid: bytes) -> bytes:
    """YAML of fields, lists and scalars of all kinds, in the front matter of a card where `valid` is one."""
    fields = "".join(
        f"{draw(st.sampled_from(NAMES))}: {_node(draw, 1, draw(st.integers(0, 3)))}\n"
        for _ in range(draw(st.integers(1, 6)))
    )
    if valid.startswith(b"---"):
        fields = f"---\n{fields}---\n# Card\n"
    elif draw(st.booleans()):
        fields = f"experts:\n- positive_prompts: {_node(draw, 2, 2)}\n"
    return fields.encode("utf-8", "replace")


def _node(draw: st.DrawFn, indent: int, depth: int) -> str:
    """A scalar, a list or fields, written over lines or in brackets."""
    kind = draw(st.integers(0, 5))
    if depth == 0 or kind <= 1:
        return str(draw(st.sampled_from(SCALARS)))
    items = [_node(draw, indent + 1, depth - 1) for _ in range(draw(st.integers(0, 4)))]
    items *= draw(st.sampled_from([1, 1, 1, 20]))
    if kind == 2:
        return f"[{', '.join(items)}]"
    if kind == 3:
        return "{" + ", ".join(f"k{i}: {item}" for i, item in enumerate(items)) + "}"
    start = "\n" + "  " * indent
    return (
        "".join(f"{start}- {item}" if kind == 4 else f"{start}k{i}: {item}" for i, item in enumerate(items))
        or "[]"
    )
