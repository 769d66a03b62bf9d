"""Dialogues become tokens as llama-server would give them to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import pico_mixtral

from calibration.chat.named import named_template
from calibration.text.chunks import make_chunks
from calibration.text.dialogue_texts import read_text_of
from calibration.text.text_settings import TextSettings, cut_text
from calibration.text.tokenizer import tokenizer_of
from gguf_export.comparing.texts import TextChoice, cut_choice
from gguf_export.writing.export import export
from quantize.exceptions import MoeGgufError
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile

LINES: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "Where is the river?"},
            {"role": "assistant", "content": "In town."},
        ]
    },
    {
        "messages": [
            {"role": "system", "content": "Know rivers."},
            {"role": "user", "content": "How long?"},
            {
                "role": "assistant",
                "content": "Long, and the winter is long, too, by the river.",
            },
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = pico_mixtral(tmp_path_factory.mktemp("dialogues") / "pico")
    (folder / "chat_template.jinja").write_text(str(named_template("mistral-v3")), "utf-8")
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n\n", "utf-8")
    return path


def test_each_dialogue_begins_with_one_bos(model: Path, file: Path) -> None:
    checkpoint = open_checkpoint(model)
    text = read_text_of(checkpoint, file)
    assert text.dialogues == (
        "[INST] Where is the river?[/INST] In town.</s>",
        "[INST] Know rivers.\n\nHow long?[/INST] Long, and the winter is long, too, by the river.</s>",
    )
    tokenizer = tokenizer_of(checkpoint)
    stream = make_chunks([text], tokenizer, n_ctx=2).tokens.ravel()
    wanted: list[int] = []
    for dialogue in text.dialogues:
        wanted += [1, *tokenizer.encode(dialogue, parse_special=True).tolist()]
    assert stream.tolist() == wanted[: len(stream)] and len(wanted) - len(stream) < 2
    assert wanted.count(1) == 2 and wanted.count(2) == 2  # </s> is a token, not its letters


def test_all_ways_to_a_text_give_the_same_tokens(model: Path, file: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(model)
    cut = cut_text(checkpoint, TextSettings((file,), n_ctx=16))
    (compared,) = cut_choice(checkpoint, TextChoice.of(f"chats={file}", n_ctx=16))
    assert compared.names == ("chats",) and np.array_equal(cut.tokens, compared.tokens)
    gguf = GGUFFile(export(model, "BF16", tmp_path / "out", jobs=1).files[0].path)
    (of_file,) = cut_choice(gguf, TextChoice.of(str(file), n_ctx=16))
    assert np.array_equal(cut.tokens, of_file.tokens)
    chosen = cut_text(checkpoint, TextSettings((file,), n_ctx=16, chat_template="chatml"))
    assert not np.array_equal(cut.tokens[:1], chosen.tokens[:1])


def test_dialogues_beside_plain_text(model: Path, file: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("the small model reads a short text", "utf-8")
    tokens = cut_text(open_checkpoint(model), TextSettings((plain, file), n_ctx=2)).tokens.ravel()
    assert tokens[0] == 1 and (tokens == 1).sum() == 3


def refused(model: Checkpoint, path: Path, *lines: Any) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    with pytest.raises(MoeGgufError) as caught:
        read_text_of(model, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_name_the_line(model: Path, tmp_path: Path) -> None:
    checkpoint, path = open_checkpoint(model), tmp_path / "bad.jsonl"
    good = LINES[0]
    assert "bad.jsonl: line 3: invalid JSON" in refused(checkpoint, path, good, "", "{")
    assert "line 2: is no dialogue: it has no list of messages" in refused(
        checkpoint, path, good, {"text": "x"}
    )
    assert "line 2: invalid content" in refused(checkpoint, path, good, [1])
    assert "line 1: a message has no role" in refused(checkpoint, path, {"messages": ["x"]})
    assert "line 1: the message of role 'user' has no content" in refused(
        checkpoint, path, {"messages": [{"role": "user"}]}
    )
    assert "line 1: tools is not a list" in refused(checkpoint, path, {**good, "tools": {}})
    assert "the text is empty" in refused(checkpoint, path, "", " ")
    assert "line 2: invalid JSON: nested too deeply" in refused(checkpoint, path, good, "[" * 100000)
    assert "line 1: invalid content: half of a surrogate" in refused(
        checkpoint, path, '{"messages": [{"role": "user", "content": "\\ud800"}]}'
    )
    odd = {"messages": [{"role": "user", "content": {"a": 1}}]}
    assert "line 2: the content of the message of role 'user' is neither" in refused(
        checkpoint, path, good, odd
    )
    (model / "chat_template.jinja").write_text("{{ messages[0].content + messages[1].content }}", "utf-8")
    alone = {"messages": [{"role": "user", "content": None}]}
    try:
        message = refused(open_checkpoint(model), path, good, alone)
    finally:
        (model / "chat_template.jinja").write_text(str(named_template("mistral-v3")), "utf-8")
    assert "bad.jsonl: line 2: the chat template of" in message and "line 1: None + Undefined" in message


def test_a_model_without_a_template(model: Path, file: Path, tmp_path: Path) -> None:
    bare = pico_mixtral(tmp_path / "bare")
    with pytest.raises(
        MoeGgufError, match=r"has no chat template to write them with; put a chat_template\.jinja"
    ):
        read_text_of(open_checkpoint(bare), file)
    assert read_text_of(open_checkpoint(bare), file, "llama3").dialogues
    with pytest.raises(MoeGgufError, match="has no chat template"):
        read_text_of(open_checkpoint(model), file, "none")


def test_the_day_does_not_matter(model: Path, file: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}", "utf-8")
    assert read_text_of(open_checkpoint(model), file).dialogues == ("26 Jul 2024",) * 2
