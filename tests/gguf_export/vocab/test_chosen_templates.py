"""`--chat-template`: where templates come from, where they go, and what is said of those that do not work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pico import pico_mixtral

from calibration.chat.named import named_template
from calibration.text.donors import donors_of
from gguf_export.checking.doctor import doctor
from gguf_export.vocab.chat_templates import with_template
from gguf_export.writing.export import export, plan
from quantize.containers.keys import KeyValue
from quantize.exceptions import MoeGgufError, TokenizerError
from quantize.sources.gguf_file import GGUFFile

NEMO = (
    "{{ bos_token }}{% for m in messages | selectattr('tool_calls', 'undefined') %}[INST]{{ m.content }}[/INST]"
    "{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no sirs') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
MERGE = "experts:\n  - source_model: chatty\n  - source_model: away/Away-Instruct\n  - source_model: silent\n"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("chat") / "pico")


@pytest.fixture
def model(pristine: Path) -> Any:
    """A model beside two donors; what a test puts beside its files goes away."""
    (pristine / "mergekit_moe_config.yml").write_text(MERGE)
    for name in ("chatty", "silent"):
        (pristine.parent / name).mkdir(exist_ok=True)
        (pristine.parent / name / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    (pristine.parent / "chatty" / "chat_template.jinja").write_text(str(named_template("zephyr")))
    yield pristine
    (pristine / "mergekit_moe_config.yml").unlink(missing_ok=True)
    (pristine / "chat_template.jinja").unlink(missing_ok=True)


def keys_of(model: Path | str, folder: Path, **options: Any) -> dict[str, Any]:
    made = export(model, "COPY", folder, jobs=1, **options)
    return GGUFFile(made.files[0].path).keys


def refused(model: Path, **options: Any) -> str:
    with pytest.raises(MoeGgufError) as caught:
        plan(model, "Q8_0", **options)
    return str(caught.value)


def test_the_choices(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}\n")
    chosen = {
        "chatml": named_template("chatml"),
        str(file): file.read_text(),
        "donor:0": named_template("zephyr"),
    }
    for i, (choice, text) in enumerate(chosen.items()):
        keys = keys_of(model, tmp_path / str(i), chat_template=choice)
        assert keys["tokenizer.chat_template"] == text
        # where the converter writes it: behind the special tokens, before what is said of spaces
        names = [name for name in keys if name.startswith("tokenizer.")]
        assert names[-2:] == ["tokenizer.ggml.add_eos_token", "tokenizer.chat_template"]
    (model / "chat_template.jinja").write_text(NEMO)
    assert keys_of(model, tmp_path / "as-is", chat_template="as-is")["tokenizer.chat_template"] == NEMO
    assert "tokenizer.chat_template" not in keys_of(model, tmp_path / "none", chat_template="none")


def test_a_gguf_gets_another_template(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(NEMO)
    first = export(model, "COPY", tmp_path / "a", jobs=1, chat_template="as-is").files[0].path
    assert "its first argument" not in refused(first)
    assert "the chat template fails" in refused(first)
    keys = keys_of(first, tmp_path / "b", chat_template="llama3")
    assert keys["tokenizer.chat_template"] == named_template("llama3")
    assert list(keys).index("tokenizer.chat_template") == list(GGUFFile(first).keys).index(
        "tokenizer.chat_template"
    )
    assert doctor(first)[0].severity == "error"
    assert doctor(next((tmp_path / "b").iterdir())).summary() == "nothing is wrong"


def test_a_template_that_fails_is_refused_before_the_work(model: Path) -> None:
    (model / "chat_template.jinja").write_text(NEMO)
    line = refused(model)
    assert "line 1: selectattr('tool_calls', 'undefined')" in line and "which llama.cpp does not know" in line
    assert "donor:N" in line and "\n" not in line
    (model / "chat_template.jinja").write_text("{% if %}")
    assert "the chat template cannot be read: line 1" in refused(model)
    (model / "chat_template.jinja").write_text(NO_SYSTEM)
    assert plan(model, "Q8_0").remarks == ()
    found = doctor(model)
    assert found.summary() == "nothing is wrong"
    assert any("the chat template has no place for a system message" in one.message for one in found)


def test_what_cannot_be_chosen(model: Path, tmp_path: Path) -> None:
    assert "is neither a file nor the name" in refused(model, chat_template="chat")
    assert "donor 1 is 'away/Away-Instruct', and no folder here" in refused(model, chat_template="donor:1")
    assert "silent: has no chat template" in refused(model, chat_template="donor:2")
    assert "has no donor '3'; its donors are 0 'chatty'" in refused(model, chat_template="donor:3")
    (tmp_path / "empty.jinja").write_text("\n")
    assert "is empty" in refused(model, chat_template=str(tmp_path / "empty.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"\xe9")
    assert "not UTF-8" in refused(model, chat_template=str(tmp_path / "latin.jinja"))
    (model / "mergekit_moe_config.yml").unlink()
    assert "lists no donors" in refused(model, chat_template="donor:0")


def test_the_absence_is_a_warning_that_names_donors(model: Path) -> None:
    (remark,) = plan(model, "Q8_0").remarks
    assert "llama-server will prompt in ChatML" in remark.message
    assert remark.remedy == "{setting} takes that of donor:0 (chatty)"
    (warning,) = [one for one in doctor(model) if "chat template" in one.message]
    assert warning.severity == "warning" and "donor:0 (chatty)" in warning.remedy
    assert plan(model, "Q8_0", chat_template="none").remarks == ()


def test_a_damaged_merge_file_names_no_donors(model: Path) -> None:
    (model / "mergekit_moe_config.yml").write_text("experts: [")
    with pytest.raises(TokenizerError):
        donors_of(model)
    assert plan(model, "Q8_0").remarks == ()
    (model / "mergekit_moe_config.yml").write_text('experts: [1, {source_model: 5}, {source_model: "a\\0b"}]')
    assert [donor.folder for donor in donors_of(model)] == [None, None]


def test_other_templates_go_with_the_default() -> None:
    keys = [
        KeyValue.text("general.name", "x"),
        KeyValue.u32("tokenizer.ggml.bos_token_id", 1),
        KeyValue.text("tokenizer.chat_template.tool_use", "t"),
        KeyValue.text("tokenizer.chat_template", "d"),
        KeyValue.flag("tokenizer.ggml.add_space_prefix", False),
    ]
    assert [kv.key for kv in with_template(keys, "n")] == [keys[i].key for i in (0, 1, 3, 4)]
    assert [kv.key for kv in with_template(keys, None)] == [keys[i].key for i in (0, 1, 4)]
    assert [kv.key for kv in with_template(keys[:2] + keys[4:], "n")] == [keys[i].key for i in (0, 1, 3, 4)]


def test_a_long_template_by_override(model: Path, tmp_path: Path) -> None:
    text = f"{named_template('chatml')}{{# {'long ' * 100}#}}"
    keys = keys_of(model, tmp_path, override_kv=[f"tokenizer.chat_template=str:{text}"])
    assert keys["tokenizer.chat_template"] == text
    assert "the chat template fails" in refused(model, override_kv=[f"tokenizer.chat_template=str:{NEMO}"])


def test_llama_cpp_agrees(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from calibration.chat.dialogues import PLAIN_DIALOGUE
    from calibration.chat.rendering import ChatTemplate, Fault, render
    from gguf_export.checking.llama_cpp import apply_in_llama_cpp

    (model / "chat_template.jinja").write_text(NEMO)
    made = export(model, "COPY", tmp_path, jobs=1, chat_template="as-is").files[0].path
    keys = GGUFFile(made).key_values()
    verdict = apply_in_llama_cpp(keys, [PLAIN_DIALOGUE])
    said = verdict.refusal or str(verdict.texts[0])
    assert "unknown test 'tool_calls'" in said
    for name in ("gemma", "mistral-v3", "llama2-sys", "command-r"):
        text = str(named_template(name))
        verdict = apply_in_llama_cpp(with_template(keys, text), [PLAIN_DIALOGUE])
        (ours,) = render(ChatTemplate(text, name, "<s>", "</s>"), [PLAIN_DIALOGUE]).texts
        assert not isinstance(ours, Fault) and verdict.texts == (ours.removeprefix("<s>"),), name


def test_a_vocabulary_that_llama_cpp_does_not_load() -> None:
    pytest.importorskip("xllamacpp")
    from gguf import GGUFValueType

    from calibration.chat.dialogues import PLAIN_DIALOGUE
    from gguf_export.checking.llama_cpp import apply_in_llama_cpp

    keys = [
        KeyValue.text("tokenizer.ggml.model", "nonsense"),
        KeyValue.array("tokenizer.ggml.tokens", ["a", "b"], GGUFValueType.STRING),
    ]
    assert "nonsense" in apply_in_llama_cpp(keys, [PLAIN_DIALOGUE]).refusal
