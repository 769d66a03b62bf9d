"""What llama.cpp's engine knows, what it does not, and how it writes values."""

from __future__ import annotations

import pytest

from calibration.chat.dialogues import PLAIN_DIALOGUE, TOOL_DIALOGUE, Dialogue
from calibration.chat.environment import Program
from calibration.chat.faults import TemplateFault
from calibration.chat.rendering import ChatTemplate, render

VALUES = {
    "messages": [
        {"role": "user", "content": "Hi", "tool_calls": None},
        {"role": "assistant", "content": "Ho"},
    ],
    "tool": {"name": "f", "items": 3, "parameters": {"x": 1.5, "y": [True, None], "z": 'a"ü\n'}},
    "flag": True,
}


def made(text: str) -> str:
    return Program(text, 0.0).run(VALUES)


def refused(text: str, kind: str = "unknown") -> str:
    with pytest.raises(TemplateFault) as caught:
        made(text)
    assert caught.value.kind == kind
    return str(caught.value)


KNOWN = {
    "{{ none }}{{ nothing }}{{ flag }}{{ 1 }}{{ 2.50 }}{{ {'a': 1} }}{{ ['a', 1] }}": "True12.5a1",
    "{{ tool.parameters | tojson }}": '{"x": 1.5, "y": [true, null], "z": "a\\"ü\\n"}',
    "{{ {'a': [1]} | tojson(indent=2) }}": '{\n  "a": [\n    1\n  ]\n}',
    "{{ 'ü' | tojson(ensure_ascii=true) }}": '"\\u00fc"',
    "{{ nothing.at.all }}{{ nothing[0] }}{{ nothing + 'x' }}{{ none ~ 'y' }}": "xy",
    "{{ 'a' + 1 }}{{ 7 % 4 }}{{ 7 / 2 }}{{ 'ab' * 2 }}{{ [1] + [2] }}": "a133.5abab12",
    "{{ ' x ' | trim }}{{ ' y '.strip() }}{{ 'a,b'.split(',')[1] }}{{ 'abc'[1:] }}{{ [1, 2, 3][::-1] }}": "xybbc321",
    "{{ messages | length }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}": "21",
    "{{ messages | map(attribute='content') | join('-') }}{{ messages | last | tojson | length }}": "Hi-Ho38",
    "{% for key, value in tool.parameters.items() %}{{ key }}{% endfor %}{% for k in tool %}{{ k }} {% endfor %}": "xyz"
    "name items parameters ",
    "{{ tool.items is callable }}{{ tool['items'] }}{{ tool.get('no', 'd') }}": "True3d",
    "{{ 'x' if flag }}{{ 'y' if not flag }}{{ none | default('z') }}{{ '' | default('w', true) }}": "xzw",
    "{% for m in messages %}{% if loop.last %}{{ loop.index0 }}{% continue %}{% endif %}{{ loop.nextitem.content }}"
    "{% endfor %}": "Ho1",
    "{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + 1 %}{% endfor %}{{ ns.a }}": "3",
    "{% macro m(a, b='d') %}{{ a }}{{ b }}{% endmacro %}{{ m('c') }}{% generation %}g{% endgeneration %}": "cdg",
    "{{ 'a' in 'abc' and 1 not in [2] and 'name' in tool }}{{ 'A' is upper }}{{ 'x' is in ['x'] }}": "TrueTrueTrue",
    "  {% if flag %}\n  a\n  {% endif %}\n{{ strftime_now('%Y') }}\n": "  a\n1970",
}


@pytest.mark.parametrize("text", KNOWN)
def test_what_is_known(text: str) -> None:
    assert made(text) == KNOWN[text]


UNKNOWN = {
    "{{ messages | selectattr('tool_calls', 'defined') }}": "selectattr('tool_calls', 'defined')",
    "{{ messages | selectattr('role', '==', 'user') }}": "the test '=='",
    "{{ messages | map('upper') }}": "map with the name of a filter",
    "{{ 'a' | e }}": "the filter 'escape'",
    "{{ messages | groupby('role') }}": "the filter 'groupby'",
    "{{ 'abc' | list }}": "the filter 'list' of a value of type String",
    "{{ [1, 1] | unique }}": "the filter 'unique'",
    "{{ tool | tojson(sort_keys=true) }}": "sort_keys",
    "{{ 'a'.isdigit() }}": "the method 'isdigit' of a value of type String",
    "{{ cycler('a') }}": "the function 'cycler'",
    "{{ 1 is prime }}": "the test 'prime'",
    "a\n{{ 7 // 2 }}": "line 2: the operator //",
    "{% raw %}x{% endraw %}": "{% raw %}",
    "{% include 'x' %}": "{% include %}",
    "{{ '\\x41' }}": "the escape",
    "{{ 1e3 }}": "the number 1e3",
    "{%+ if flag %}{% endif %}": "{%+",
    "{% with a = 1 %}{% endwith %}": "{% with %}",
}


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_llama_cpp_does_not_know_is_named(text: str) -> None:
    message = refused(text)
    assert UNKNOWN[text] in message and message.startswith("line ")


def test_what_fails_in_llama_cpp_too() -> None:
    assert "a loop over a value of type String" in refused("{% for c in 'abc' %}{% endfor %}", "failed")
    assert "Integer + None" in refused("{{ 1 + none }}", "failed")
    assert "no sirs" in refused("{{ raise_exception('no sirs') }}", "refused")
    assert refused("{% if %}", "syntax").startswith("line 1: ")


def test_names_that_are_not_reached_are_told() -> None:
    made = render(ChatTemplate("{% if false %}{{ 1 | wordwrap }}{% endif %}", "t"), [PLAIN_DIALOGUE])
    assert made.texts == ("",) and made.unknown == ("the filter 'wordwrap'",)


def test_messages_are_adapted_as_llama_cpp_does() -> None:
    parts = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    found = render(ChatTemplate(parts, "t"), [PLAIN_DIALOGUE])
    assert not found.abilities.plain_content and "And at sunset?" in str(found.texts[0])
    no_system = "{% for m in messages if m.role != 'system' %}{{ m.role }}:{{ m.content }}|{% endfor %}"
    dialogue = Dialogue([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    found = render(ChatTemplate(no_system, "t"), [dialogue])
    assert not found.abilities.system and found.texts == ("user:S\nU|",)
    assert render(ChatTemplate(no_system, "t"), [dialogue], as_given=True).texts == ("user:U|",)
    calls = "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    arguments = f"{{% for m in messages %}}{calls}{{% endfor %}}"
    found = render(ChatTemplate(arguments, "t"), [TOOL_DIALOGUE])
    assert found.abilities.object_arguments and found.texts == ('{"river": "Rhine"}',)


def test_bos_eos_and_the_time() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{{ strftime_now('%Y-%m') }}{{ eos_token }}{{ date_string }}", "t", "<s>", "</s>"
    )
    assert render(template, [PLAIN_DIALOGUE], now=86400.0 * 40).texts == ("<s>1970-02</s>10 Feb 1970",)
