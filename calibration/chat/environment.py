"""A Jinja that knows what llama.cpp's engine knows, and nothing else.

The settings are those of transformers and llama.cpp (`trim_blocks`, `lstrip_blocks`, `{% break %}`). No
attribute of Python's can be reached: every look-up ends in the tables of `built_ins.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jinja2 import TemplateSyntaxError, Undefined
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from calibration.chat.arguments import Arguments
from calibration.chat.built_ins import Method, apply_filter, is_filter, method_of, tojson
from calibration.chat.faults import RefusedError, TemplateFault, TooMuchError
from calibration.chat.list_parts import MAX_ITEMS
from calibration.chat.operators import OPERATORS, entry_of, part_of
from calibration.chat.syntax import Generation, Rewritten, operator_filter, refuse_unknown
from calibration.chat.type_tests import TESTS, apply_test
from calibration.chat.values import items_of, plain, printed, refuse_length, type_name, unknown

__all__ = ["Program"]

_LOOP = ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem")


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2 with llama.cpp's look-ups, calls, filters and tests."""

    def __init__(self, now: float) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            autoescape=False,
            finalize=printed,
            extensions=["jinja2.ext.loopcontrols", Generation],
            cache_size=0,
        )
        self.filters = {operator_filter(name): compute for name, compute in OPERATORS.items()}
        self.filters |= {operator_filter("slice"): part_of, operator_filter("items"): items_of}
        self.tests = {}
        self.globals = {
            "range": _range,
            "dict": _object,
            "namespace": lambda *given, **named: Namespace(_object(*given, **named)),
            "raise_exception": _raise,
            "strftime_now": partial(_strftime, time.localtime(now)),
            "tojson": lambda value, *given, **named: tojson(value, Arguments("tojson", given, named)),
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`: a method, else an entry."""
        if isinstance(obj, LoopContext):
            return getattr(obj, attribute) if attribute in _LOOP else self.undefined(name=f"loop.{attribute}")
        method = method_of(obj, attribute)
        found = entry_of(obj, attribute) if method is None else method
        if isinstance(found, Undefined):
            return self.undefined(obj=type_name(obj), name=attribute)
        return found

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`: an entry, else a method."""
        if isinstance(obj, LoopContext):
            return self.getattr(obj, str(argument))
        found = entry_of(obj, argument)
        return (
            self.undefined(obj=type_name(obj), name=str(argument)) if isinstance(found, Undefined) else found
        )

    def is_safe_callable(self, obj: Any) -> bool:
        """Whether a value may be called at all."""
        return isinstance(obj, (Macro, Method)) or any(obj is known for known in self.globals.values())

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """`obj(...)`."""
        if isinstance(__obj, Undefined):
            owner = __obj._undefined_obj
            of = f" of a value of type {owner}" if isinstance(owner, str) else ""
            raise unknown(f"the {'method' if of else 'function'} '{__obj._undefined_name}'{of}")
        if not self.is_safe_callable(__obj):
            raise TemplateFault(f"calls a value of type {type_name(__obj)}")
        return super().call(__context, __obj, *args, **kwargs)


def _test(name: str) -> Callable[..., bool]:
    return lambda value, *arguments: apply_test(name, value, *arguments)


def _range(*bounds: Any) -> list[int]:
    if not 1 <= len(bounds) <= 3 or any(type_name(bound) != "Integer" for bound in bounds):
        raise TemplateFault("range wants 1 to 3 whole numbers")
    if len(bounds) == 3 and bounds[2] == 0:
        raise TemplateFault("range with steps of 0")
    numbers = range(*bounds)
    if len(numbers) > MAX_ITEMS:
        raise TooMuchError(f"a range of more than {MAX_ITEMS} numbers")
    return list(numbers)


def _object(*given: Any, **named: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for entries in given[:1]:
        value = plain(entries)
        is_list = isinstance(value, (list, tuple))
        if isinstance(value, dict) or (
            is_list and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
        ):
            made.update(value)
        else:
            raise TemplateFault(f"makes an object of a value of type {type_name(value)}")
    return {**made, **named}


def _raise(message: Any = "") -> None:
    raise RefusedError(message if isinstance(message, str) else type_name(message))


def _strftime(moment: time.struct_time, form: Any = "") -> str:
    text = time.strftime(form, moment) if isinstance(form, str) and len(form) < 100 else ""
    if not text or len(text) >= 100:
        raise TemplateFault("strftime_now cannot write the time")
    return text


class Program:
    """A template that was parsed, to be run with one set of values after the other."""

    def __init__(self, source: str, now: float) -> None:
        """Parse a template; `now` is the time that it is told, in seconds since the epoch.

        Raises:
            TemplateFault: jinja2, or llama.cpp's parser, does not understand it.
        """
        self._environment = _Environment(now)
        try:
            tree = self._environment.parse(source)
            refuse_unknown(self._environment, source, tree)
            rewritten = Rewritten()
            rewritten.visit(tree)
            tree.set_environment(self._environment)
            self._fill(rewritten)
            self._template = self._environment.from_string(tree)
        except TemplateSyntaxError as error:
            fault = TemplateFault(f"line {error.lineno}: {error.message}")
            fault.kind = "syntax"
            raise fault from None
        except (RecursionError, SyntaxError, MemoryError):
            raise TooMuchError("its parts lie too deep in one another") from None
        except TemplateFault:
            raise
        except Exception as error:  # numbers of thousands of digits, a NUL
            raise TemplateFault(str(error)) from error
        self.unknown = sorted(
            [f"the filter '{name}'" for name in rewritten.filters if not is_filter(name)]
            + [f"the test '{name}'" for name in rewritten.tests if name not in TESTS]
        )
        """Names that llama.cpp lacks; they are an error where they are reached."""

    def _fill(self, names: Rewritten) -> None:
        for name in names.filters:
            self._environment.filters.setdefault(name, partial(apply_filter, name))
        for name in names.tests:
            self._environment.tests[name] = _test(name)

    def run(self, values: Mapping[str, Any]) -> str:
        """The text that the template makes of values.

        Raises:
            TemplateFault: see `faults`.
        """
        pieces, n_char = [], 0
        try:
            for piece in self._template.generate(values):
                n_char += len(piece)
                refuse_length(n_char)
                pieces.append(piece)
        except TemplateFault as fault:
            fault.args = (f"{_where(fault)}{fault}",)
            raise
        except RecursionError:
            raise TooMuchError("it calls itself too often") from None
        except MemoryError:
            raise TooMuchError("it takes too much memory") from None
        except Exception as error:  # jinja2's own, and Python's on what llama.cpp would refuse in other words
            raise TemplateFault(f"{_where(error)}{error or type(error).__name__}") from error
        return "".join(pieces)


def _where(error: Exception) -> str:
    """The line of the template at which an error was raised."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""
