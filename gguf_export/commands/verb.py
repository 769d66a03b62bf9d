"""The base of the verbs: their options may need another one to mean anything, and what means nothing is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

__all__ = ["Decorator", "Option", "Verb", "group", "option"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Option(click.Option):
    """An option that means something only beside one of the parameters in `needs`."""

    def __init__(self, *args: Any, needs: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.needs = tuple(needs)


class Verb(click.Command):
    """A command that refuses options which were given and mean nothing."""

    def __init__(self, *args: Any, modes: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        """Take `modes`: flags under which the verb does something else, each with the parameters that it takes."""
        super().__init__(*args, **kwargs)
        self.modes = dict(modes or {})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb, if all that was given is of use."""
        switches = {param.name: param.opts[-1] for param in self.params}
        modes = [mode for mode in self.modes if _is_given(ctx, mode)]
        for param in self.params:
            if not isinstance(param, Option) or param.name in modes or not _is_given(ctx, param.name):
                continue
            foreign = [switches[mode] for mode in modes if param.name not in self.modes[mode]]
            if foreign:
                raise click.UsageError(f"{param.opts[-1]} means nothing beside {foreign[0]}", ctx)
            if not modes and param.needs and not any(_is_given(ctx, need) for need in param.needs):
                needed = " or ".join(switches[need] for need in param.needs)
                raise click.UsageError(f"{param.opts[-1]} means nothing without {needed}", ctx)
        return super().invoke(ctx)


def _is_given(ctx: click.Context, name: str | None) -> bool:
    """Whether a parameter was set by hand, and to something: `--prior 0` is as good as none."""
    is_default = ctx.get_parameter_source(str(name)) in (ParameterSource.DEFAULT, None)
    return not is_default and bool(ctx.params.get(str(name)))


def option(*names: str, **settings: Any) -> Decorator:
    """Declare one option, as click does; `needs` names the parameters without which it means nothing."""
    return click.option(*names, cls=Option, **settings)


def group(name: str, kind: Callable[..., Any], *options: Decorator) -> Decorator:
    """Declare options, shown in this order, that reach the verb as one object `kind(**values)` called `name`."""

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(verb)
        def bundled(**values: Any) -> Any:
            own = {key: values.pop(key) for key in names}
            return verb(**{name: kind(**own)}, **values)

        n_before = len(getattr(bundled, "__click_params__", ()))
        for declare in reversed(options):
            declare(bundled)
        names = [param.name for param in vars(bundled)["__click_params__"][n_before:]]
        return bundled

    return decorate
