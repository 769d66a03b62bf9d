"""`moe-gguf upload`: the files of a release to a repository on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_export.commands.options import FILE, QUIET
from gguf_export.commands.verb import Verb, option


@click.command(cls=Verb)
@click.argument("folder", type=FILE)
@option("--repo", required=True, metavar="OWNER/NAME", help="The repository; it is made where there is none.")
@option(
    "--public",
    is_flag=True,
    help="A repository that all may see; without it one is made private, and a public one refused.",
)
@QUIET
def upload(folder: Path, repo: str, public: bool, quiet: bool) -> None:
    """Send the release in FOLDER to a repository on the Hugging Face Hub.

    That is the files that SHA256SUMS names, and it, each held against its sum, and only what the repository lacks: the
    importance matrix, Q4_K_M, the others by size, the small files, and README.md and SHA256SUMS last. The same command
    goes on where one was stopped. Afterwards the repository is compared with SHA256SUMS; a difference is exit status 1.

    The token is the one of hf auth login, or in HF_TOKEN; it must be allowed to write. HF_ENDPOINT names another Hub.
    """
    from gguf_export.commands.console import ProgressView
    from gguf_export.commands.messages import say
    from gguf_export.commands.streams import show, summary, tell
    from gguf_export.files.sizes import size_in_words
    from gguf_export.publishing.upload import upload_release

    with ProgressView(quiet=quiet) as view:
        made = upload_release(folder, repo, public=public, progress=view, note=say)
    if not quiet:
        sent = f"sent {len(made.sent)} files, {size_in_words(made.bytes)}" if made.sent else "nothing to do"
        tell(f"{sent}; {len(made.left)} were there already" if made.left else sent)
    with summary():
        show(made.url)
