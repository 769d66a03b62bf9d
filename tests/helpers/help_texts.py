"""What each command says of itself."""

from __future__ import annotations

from click.testing import CliRunner

from gguf_export.cli import main


def help_texts() -> dict[str, str]:
    """The output of `--help` of each command, and of the program itself as `moe-gguf`, 100 columns wide."""
    runner = CliRunner()
    words = {"moe-gguf": ["--help"]} | {name: [name, "--help"] for name in main.commands}
    return {
        name: runner.invoke(main, arguments, prog_name="moe-gguf", terminal_width=100).output
        for name, arguments in words.items()
    }
