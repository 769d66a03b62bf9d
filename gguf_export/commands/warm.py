"""`moe-gguf warm`: every kernel compiled ahead, for containers and workers."""

from __future__ import annotations

import click

from gguf_export.commands.completion import mixed_names
from gguf_export.commands.options import QUIET
from gguf_export.commands.streams import show, show_json
from gguf_export.commands.verb import Verb, option


@click.command(cls=Verb)
@click.argument("types", nargs=-1, metavar="[TYPE]...", shell_complete=mixed_names)
@option("--no-feedback", is_flag=True, help="Without what --feedback needs, a quarter of the whole.")
@option("--json", "as_json", is_flag=True, help="What was done, as JSON for programs.")
@QUIET
def warm(types: tuple[str, ...], no_feedback: bool, as_json: bool, quiet: bool) -> None:
    """Compile the kernels of each TYPE, a tensor type or a file type, so that no later command waits for it.

    Without TYPE all are compiled, a few minutes of work for several processes; what is in the cache already is not
    compiled again. The cache is the folder that NUMBA_CACHE_DIR names, else it lies beside the package or in the
    user's cache folder. It is of use to processors of the same kind only, which NUMBA_CPU_NAME and NUMBA_CPU_FEATURES
    can set.
    """
    from gguf_export.commands.console import ProgressView
    from gguf_export.files.sizes import size_in_words
    from quantize import warming

    with ProgressView(quiet=quiet) as view:
        done = warming.warm(types, feedback=not no_feedback, progress=view)
    if as_json:
        show_json(done.as_dict())
        return
    if quiet:
        return
    names = ", ".join(qtype.name for qtype in done.types)
    now = (
        f"{done.n_compiled} compiled in {done.seconds:.1f} seconds"
        if done.n_compiled
        else "nothing to compile"
    )
    show(f"{names}: {now}")
    show(f"{size_in_words(done.n_bytes)} of kernels for {done.processor} in {done.place}")
