"""The command line: with its verbs in `commands`, the only place that parses arguments, prints or exits.

Heavy imports happen inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

import click

from gguf_export.commands.compare import compare
from gguf_export.commands.doctor import doctor
from gguf_export.commands.errors import errors
from gguf_export.commands.exit_codes import DEFECT, EPILOG, INTERRUPTED, status_of
from gguf_export.commands.export import export
from gguf_export.commands.imatrix import imatrix
from gguf_export.commands.inspect import inspect
from gguf_export.commands.messages import saying_warnings
from gguf_export.commands.plan import plan
from gguf_export.commands.quantize import quantize
from gguf_export.commands.release import release
from gguf_export.commands.signals import Stopped, orderly_stops
from gguf_export.commands.streams import standard_streams, tell
from gguf_export.commands.upload import upload
from gguf_export.commands.verify import verify
from gguf_export.commands.warm import warm


class _Group(click.Group):
    """Turns every error that a user can cause into one line and an exit status, and signals into an orderly end."""

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the command line on standard streams that never fail."""
        with standard_streams():
            return super().main(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        with orderly_stops(), saying_warnings():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Stopped as stop:
            tell(f"moe-gguf: stopped by {stop.name}")
            sys.exit(stop.status)
        except KeyboardInterrupt:
            tell("moe-gguf: stopped")
            sys.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from quantize.exceptions import MoeGgufError

            if not isinstance(error, MoeGgufError):
                for line in traceback.format_exc().splitlines():
                    tell(line)
                tell("moe-gguf: this is a defect of the program: please report it with the lines above")
                sys.exit(DEFECT)
            from gguf_export.commands.messages import error_line

            tell(error_line(error))
            sys.exit(status_of(error))


PAGES = "docs/levels.md says which level to take, docs/glossary.md what the words mean, docs/faq.md the rest."


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"]}, epilog=f"{PAGES}\n\n{EPILOG}"
)
@click.version_option(package_name="moe-gguf", prog_name="moe-gguf")
def main() -> None:
    """Quantized GGUF files from bf16 Mixture-of-Experts checkpoints, in one streaming pass."""


for verb in (
    compare,
    doctor,
    errors,
    export,
    imatrix,
    inspect,
    plan,
    quantize,
    release,
    upload,
    verify,
    warm,
):
    main.add_command(verb)
