"""A template is a stranger's program: whatever it does, the answer is one line, soon."""

from __future__ import annotations

import time

import pytest

from calibration.chat.dialogues import PLAIN_DIALOGUE
from calibration.chat.rendering import ChatTemplate, Fault, render

TWICE = "{% set ns = namespace(t=VALUE) %}{% for i in range(64) %}{% set ns.t = ns.t + ns.t %}{% endfor %}"
LIMITS = {
    "a text that is repeated": "{{ 'a' * 10 ** 2 }}",
    "a long text": "{{ 'a' * 10000000000 }}",
    "a range": "{% for i in range(1000000000) %}x{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long output": "{% for i in range(99999) %}{{ 'abcdefghij' * 1000 }}{% endfor %}",
    "a macro of itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a long number": "{{ " + "9" * 10000 + " }}",
    "deep lists": "{{ " + "[" * 300 + "]" * 300 + " }}",
    "doubling": TWICE.replace("VALUE", "'ab'"),
    "lists that double": TWICE.replace("VALUE", "[1]"),
    "numbers that square": TWICE.replace("VALUE", "9").replace("+", "*"),
    "a list in itself": "{% set a = [] %}{% set b = a.append(a) %}{{ a | tojson }}",
    "a replacement": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "a wide indent": "{{ ('\\n' * 100000) | indent(100000) }}",
}

ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ range.__globals__ }}",
    "{{ raise_exception.__globals__.__builtins__ }}",
    "{{ '{0.__class__}' | tojson | default }}",
    "{{ namespace.__init__ }}{{ loop }}{{ cycler }}{{ lipsum }}",
    "{% macro m() %}{% endmacro %}{{ m.__class__ }}{{ m._func }}",
]


def run(text: str) -> str | Fault:
    made = render(ChatTemplate(text, "t"), [PLAIN_DIALOGUE])
    return made.fault or made.texts[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", LIMITS)
def test_limits(case: str) -> None:
    begun = time.monotonic()
    fault = run(LIMITS[case])
    assert isinstance(fault, Fault), case
    assert "\n" not in fault.message and len(fault.message) < 200
    assert fault.kind != "refused"
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("text", ESCAPES)
def test_nothing_of_pythons_can_be_reached(text: str) -> None:
    found = run(text)
    words = found.message if isinstance(found, Fault) else found
    assert "class" not in words.replace("__class__", "") and "function" not in words and "0x" not in words


def test_a_format_reaches_no_attribute() -> None:
    fault = run("{{ '{0.__class__}'.format(messages) }}")
    assert isinstance(fault, Fault) and fault.kind == "unknown" and "format" in fault.message


def test_calls_of_what_is_no_function() -> None:
    for text in ("{{ messages() }}", "{{ joiner() }}", "{{ ''.join([]) }}", "{{ ''.encode() }}"):
        fault = run(text)
        assert isinstance(fault, Fault) and fault.message.startswith("line 1: "), text


def test_what_is_no_text() -> None:
    fault = run("\0{{ '\0' }}\udcff")
    assert isinstance(fault, (str, Fault)) and "\udcff" not in str(fault)
