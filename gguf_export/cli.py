"""The command line, the only module that parses arguments or exits: every verb is a library call and a table.

Heavy imports happen inside the verbs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gguf_export.export import Export, Exported
    from quantize.recipe import Recipe


class _Group(click.Group):
    """Turns every error that a user can cause into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("moe-gguf: stopped", err=True)
            sys.exit(130)
        except Exception as error:
            from quantize.exceptions import MoeGgufError

            if not isinstance(error, MoeGgufError):
                raise
            click.echo(f"moe-gguf: error: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moe-gguf", prog_name="moe-gguf")
def main() -> None:
    """Quantized GGUF files from bf16 Mixture-of-Experts checkpoints, in one streaming pass."""


def _recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The switches of llama-quantize that change tensor types, in its spelling."""
    for option in reversed(
        [
            click.option(
                "--tensor-type",
                "tensor_types",
                multiple=True,
                metavar="PATTERN=TYPE",
                help="Type of all tensors whose name the regular expression finds; the first that matches counts.",
            ),
            click.option(
                "--tensor-type-file",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="A file of PATTERN=TYPE entries, as llama-quantize reads it.",
            ),
            click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
            click.option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight."),
            click.option("--pure", is_flag=True, help="One type for all quantized tensors, no mixture."),
        ]
    ):
        command = option(command)
    return command


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-t",
    "--type",
    "ftypes",
    multiple=True,
    required=True,
    metavar="TYPE",
    help="File type, such as Q4_K_M; give it several times for several files from one read.",
)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the files.  [default: the current one; with --lmstudio, LM Studio's]",
)
@click.option(
    "--imatrix",
    "imatrix_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Importance matrix: llama.cpp's GGUF form or the legacy .dat.",
)
@click.option(
    "--prior",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="N",
    help="Shrink an expert's importances toward its layer's mean with the weight of N tokens; "
    "0 is llama.cpp's behaviour.",
)
@_recipe_options
@click.option("--name", help="general.name, and the base of the file names.")
@click.option(
    "--override-kv",
    multiple=True,
    metavar="KEY=TYPE:VALUE",
    help="Metadata to set; TYPE is int, float, bool or str.",
)
@click.option("--pre", metavar="NAME", help="Pre-tokenizer (tokenizer.ggml.pre), where it is not recognised.")
@click.option("--lmstudio", is_flag=True, help="Write DIR/publisher/model/file.gguf, where LM Studio looks.")
@click.option(
    "--publisher", metavar="NAME", help="The publisher for --lmstudio.  [default: from the model card]"
)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: all processors]"
)
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--restart", is_flag=True, help="Begin afresh, whatever a run that was stopped has left.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
def export(
    model: Path,
    ftypes: tuple[str, ...],
    folder: Path | None,
    imatrix_path: Path | None,
    prior: float,
    name: str | None,
    override_kv: tuple[str, ...],
    pre: str | None,
    lmstudio: bool,
    publisher: str | None,
    jobs: int | None,
    force: bool,
    restart: bool,
    dry_run: bool,
    quiet: bool,
    **recipe_options: Any,
) -> None:
    """Quantize the checkpoint in folder MODEL to one GGUF file for each TYPE."""
    from gguf_export import export as exporting
    from gguf_export import names
    from gguf_export.console import ProgressView
    from quantize.shards import open_checkpoint

    checkpoint = open_checkpoint(model)
    if lmstudio:
        folder = folder or names.lmstudio_root()
        publisher = publisher or names.find_publisher(checkpoint.config)
        if publisher is None:
            raise click.UsageError(
                "--lmstudio needs --publisher NAME: config.json does not say who made the model"
            )
    prepared = exporting.prepare(
        checkpoint,
        _recipes(ftypes, **recipe_options),
        folder or Path(),
        imatrix=_load_imatrix(imatrix_path, prior),
        name=name,
        override_kv=override_kv,
        pre=pre,
        publisher=publisher if lmstudio else None,
    )
    _say_fallbacks(prepared)
    if dry_run:
        _print_plan(prepared)
        return
    with ProgressView(quiet=quiet) as view:
        exported = exporting.run(prepared, jobs=jobs, force=force, restart=restart, report=view, note=_say)
    if not quiet:
        _print_exported(exported)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _recipes(ftypes: tuple[str, ...], **options: Any) -> list[Recipe]:
    from quantize.ftypes import ftype
    from quantize.recipe import Recipe, parse_qtype, parse_tensor_type, read_tensor_types

    tensor_types = [parse_tensor_type(text) for text in options["tensor_types"]]
    if options["tensor_type_file"]:
        tensor_types += read_tensor_types(options["tensor_type_file"])

    def qtype(option: str) -> Any:
        return parse_qtype(options[option]) if options[option] else None

    return [
        Recipe(
            ftype(name),
            tensor_types=tuple(tensor_types),
            output_tensor_type=qtype("output_tensor_type"),
            token_embedding_type=qtype("token_embedding_type"),
            pure=options["pure"],
        )
        for name in ftypes
    ]


def _load_imatrix(path: Path | None, prior: float) -> Any:
    if path is None:
        return None
    from calibration.imatrix import load_imatrix

    return load_imatrix(path, prior=prior)


def _say_fallbacks(prepared: Export) -> None:
    """A fallback is never silent: each kind gets one line, with its count."""
    for remark in prepared.remarks:
        click.echo(remark, err=True)
    for file in prepared.files:
        plan = file.plan
        if plan.fallbacks:
            names = ", ".join(planned.spec.name for planned in plan.fallbacks[:2])
            click.echo(
                f"{file.path.name}: {len(plan.fallbacks)} tensors have rows that their type does not divide and "
                f"fall back to another one ({names}{', ...' if len(plan.fallbacks) > 2 else ''})",
                err=True,
            )
        for pattern in plan.unmatched:
            click.echo(f"{file.path.name}: --tensor-type {pattern} matches no tensor", err=True)
    missing = prepared.without_importance()
    if missing:
        click.echo(
            f"the importance matrix has nothing for {len(missing)} tensors, quantized without: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}",
            err=True,
        )
    starved = prepared.imatrix.starved() if prepared.imatrix else []
    if starved:
        places = ", ".join(f"{found.name} expert {found.xid}" for found in starved[:4])
        click.echo(
            f"the importance matrix saw no token for {len(starved)} experts, which are weighted evenly: "
            f"{places}{', ...' if len(starved) > 4 else ''}",
            err=True,
        )


def _print_plan(prepared: Export) -> None:
    from gguf_export.console import print_table, size

    for file in prepared.files:
        rows = [
            (
                planned.spec.name,
                " x ".join(map(str, planned.spec.shape)),
                planned.qtype.name,
                size(planned.n_bytes),
                str(planned.offset),
            )
            for planned in file.plan.tensors
        ]
        print_table(str(file.path), ("tensor", ">shape", "type", ">size", ">offset"), rows)
        click.echo(f"{size(file.n_bytes)}, {file.plan.bpw:.2f} bits per weight\n")


def _print_exported(exported: Exported) -> None:
    from gguf_export.console import print_table, size

    seconds = exported.seconds.wall
    rows = [
        (str(file.path), file.plan.ftype.name, size(file.n_bytes), f"{file.plan.bpw:.2f}")
        for file in exported.files
    ]
    print_table("", ("file", "type", ">size", ">bpw"), rows)
    rate = size(exported.bytes_read / seconds) if seconds else "-"
    click.echo(f"{size(exported.bytes_read)} read once, {seconds:.1f} seconds, {rate}/s")


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON for programs.")
@click.option("--tensors", is_flag=True, help="One line for each tensor, too.")
def inspect(path: Path, as_json: bool, tensors: bool) -> None:
    """Say what PATH is: a checkpoint folder or a GGUF file; its architecture, experts, types, sizes."""
    from gguf_export.inspect import describe

    found = describe(path)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
        return
    from gguf_export.console import print_table, size

    print_table(str(path), ("", ""), found.facts())
    print_table(
        "",
        ("type", ">tensors", ">weights", ">size"),
        [(row.qtype, str(row.n_tensors), f"{row.n_elements:,}", size(row.n_bytes)) for row in found.types],
    )
    if tensors:
        print_table(
            "",
            ("tensor", ">shape", "type", ">size"),
            [(t.name, " x ".join(map(str, t.shape)), t.qtype, size(t.n_bytes)) for t in found.tensors],
        )
