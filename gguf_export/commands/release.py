"""`moe-gguf release`: from a checkpoint to the folder that is published, and to the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from gguf_export.commands.exit_codes import FINDINGS
from gguf_export.commands.fit_options import gib_sizes
from gguf_export.commands.options import CHAT_TEMPLATE, FILE, MODEL, QUIET, force, ftypes, jobs
from gguf_export.commands.streams import show, tell
from gguf_export.commands.verb import Verb, option

if TYPE_CHECKING:
    from gguf_export.releasing.job import ReleaseJob
    from gguf_export.releasing.release import ReleasePlan, ReleaseResult
    from gguf_export.releasing.settings import ReleaseSettings
    from gguf_export.releasing.texts import TextFile
    from gguf_export.writing.results import FileFigures

__all__ = ["release"]


@click.command(cls=Verb, modes={"recipe": ("texts", "folder", "jobs", "quiet")})
@MODEL
@option("--repo", metavar="OWNER/NAME", help="Where the folder will be on the Hugging Face Hub.")
@ftypes("File type; may be repeated. Those that are in the folder already stay.")
@option(
    "--set",
    "chosen_set",
    type=click.Choice(["small", "standard", "all"]),
    help="3, 9 or 24 file types.  [default: standard, without -t]",
)
@option(
    "-o",
    "--output",
    "folder",
    type=FILE,
    metavar="DIR",
    help="The folder that is published.  [default: <Model>-GGUF]",
)
@option(
    "--text",
    "texts",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Calibration text, or dialogues as FILE.jsonl; may be repeated.  [default: builtin:calibration, and the "
    "prompts of MODEL's mergekit_moe_config.yml]",
)
@option(
    "--judge",
    "judges",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Held-out text or dialogues by which the files are judged; may be repeated, each gets its own figures.  "
    "[default: builtin:held-out]",
)
@option(
    "--chunks", "n_chunk", type=click.IntRange(min=1), metavar="N", help="Calibrate with the first N chunks."
)
@option(
    "--judge-chunks",
    "n_judge_chunk",
    type=click.IntRange(min=1),
    metavar="N",
    help="Judge by the first N chunks of each text.",
)
@option(
    "--license",
    metavar="ID",
    help="The licence of the weights, as the Hub spells it.  [default: that of MODEL's card]",
)
@option(
    "--base-model",
    metavar="OWNER/NAME",
    help="MODEL on the Hub.  [default: as MODEL is given, or by its config.json]",
)
@option("--name", help="general.name, and the base of the file names.")
@CHAT_TEMPLATE
@option(
    "--vram",
    multiple=True,
    callback=gib_sizes,
    metavar="GIB,...",
    help="Memory of the cards in the table of what fits.  [default: 8,12,16,24]",
)
@option(
    "--split-max-size",
    metavar="N(M|G)",
    help="Cut larger files into parts of at most so much, in a folder each; Ollama refuses such files.",
)
@option(
    "--from",
    "recipe",
    type=FILE,
    metavar="RECIPE",
    help="Make the GGUF files of a recipe.json again, and hold them against its sums.",
)
@jobs()
@force()
@option("--dry-run", is_flag=True, help="Print what would be made and write nothing.")
@option(
    "--upload", is_flag=True, needs=("repo",), help="Publish the folder on the Hub when it is whole, private."
)
@option("--public", is_flag=True, needs=("upload",), help="Open the repository to all.")
@QUIET
def release(
    model: Path,
    repo: str | None,
    types: tuple[str, ...],
    chosen_set: str | None,
    folder: Path | None,
    texts: tuple[str, ...],
    judges: tuple[str, ...],
    n_chunk: int | None,
    n_judge_chunk: int | None,
    license: str | None,
    base_model: str | None,
    name: str | None,
    chat_template: str | None,
    vram: list[float],
    split_max_size: str | None,
    recipe: Path | None,
    jobs: int | None,
    force: bool,
    dry_run: bool,
    upload: bool,
    public: bool,
    quiet: bool,
) -> None:
    """Make the folder that is published of MODEL: GGUF files from one read, each verified, measured and tried, with
    model card, plots, report, companions for LM Studio and Ollama, recipe and sums.

    The same command goes on where it was stopped, and says so where there is nothing to do. One more -t later makes
    that file and renews what lies beside it. Without --upload nothing leaves this machine.

    The exit status is 1 where llama.cpp cannot write with a file, or a file of --from is not that of its recipe.
    """
    from gguf_export.checking.fit import VRAM
    from gguf_export.commands.console import ProgressView
    from gguf_export.commands.messages import say
    from gguf_export.releasing import release as releasing
    from gguf_export.releasing.settings import SETS, ReleaseSettings

    if recipe is not None:
        _make_again(model, recipe, folder, texts, jobs, quiet)
        return
    if types and chosen_set:
        raise click.UsageError("give -t or --set, not both")
    settings = ReleaseSettings(
        model=model,
        types=types or SETS[chosen_set or "standard"],
        folder=folder,
        repo=repo,
        texts=texts,
        judges=judges,
        n_chunk=n_chunk,
        n_judge_chunk=n_judge_chunk,
        license=license,
        base_model=base_model,
        chat_template=chat_template,
        name=name,
        vram=vram or VRAM,
        split_max_size=split_max_size,
        jobs=jobs,
        force=force,
    )
    if dry_run:
        _print_plan(releasing.plan_release(settings, say))
        return
    with ProgressView(quiet=quiet) as view:
        made = releasing.release(settings, made_by=_made_by, progress=view, note=say)
    _print_result(made, quiet)
    if made.failed:
        for ftype, why in made.failed.items():
            tell(f"moe-gguf: error: {ftype}: smoke test {why}")
        sys.exit(FINDINGS)
    if upload:
        _upload(made, public, quiet)
    elif not quiet:
        show(f"nothing has left this machine; to publish: {_upload_command(settings)}")


def _made_by(job: ReleaseJob) -> str:
    """The command by which the card says that its folder was made: of paths the last part."""
    settings = job.settings
    words = ["moe-gguf", "release", job.about.name]
    words += ["--repo", settings.repo] if settings.repo else []
    words += [word for ftype in job.types for word in ("-t", ftype)]
    texts = dict.fromkeys(map(_text_word, job.texts)) if settings.texts else ()
    words += [word for text in texts for word in ("--text", text)]
    judges = dict.fromkeys(map(_judge_word, job.judges)) if settings.judges else ()
    words += [word for judge in judges for word in ("--judge", judge)]
    for option_name, value in (
        ("--chunks", settings.n_chunk),
        ("--judge-chunks", settings.n_judge_chunk),
        ("--license", settings.license),
        ("--base-model", settings.base_model),
        ("--name", settings.name),
        ("--split-max-size", settings.split_max_size),
        ("--chat-template", settings.chat_template and Path(settings.chat_template).name),
    ):
        words += [option_name, str(value)] if value is not None else []
    return " ".join(map(quote, words))


def _text_word(text: TextFile) -> str:
    from calibration.text.built_in import is_built_in

    file = text.path.name
    return text.name if is_built_in(text.path) or text.name == file else f"{text.name}={file}"


def _judge_word(text: TextFile) -> str:
    from calibration.text.built_in import HELD_OUT, is_built_in

    return HELD_OUT if is_built_in(text.path) else f"{text.name}={text.path.name}"


def _upload_command(settings: ReleaseSettings) -> str:
    """What was given, and --upload."""
    words = sys.argv[1:] if sys.argv[1:2] == ["release"] else ["release", str(settings.model)]
    repo = [] if settings.repo else ["--repo", "OWNER/NAME"]
    return " ".join(["moe-gguf", *map(quote, words), *repo, "--upload"])


def _print_plan(planned: ReleasePlan) -> None:
    from gguf_export.commands.console import print_table
    from gguf_export.commands.export_output import time_in_words
    from gguf_export.commands.messages import say
    from gguf_export.files.disk import free_bytes
    from gguf_export.files.sizes import size_in_words
    from gguf_export.reports.fit_tables import assumptions, choices_table

    for remark in planned.files.remarks:
        say(remark)
    rows = [
        (_with_parts(file), f"{file.bpw:.2f}", size_in_words(file.n_bytes)) for file in planned.files.files
    ]
    if planned.files.imatrix is not None:
        path, n_bytes = planned.files.imatrix
        rows.append((path.name, "-", size_in_words(n_bytes)))
    print_table(str(planned.folder), ("file", ">bpw", ">size"), rows)
    told, free = planned.estimate, free_bytes(planned.folder)
    show(
        f"{size_in_words(told.files)} to write and up to {size_in_words(told.state)} for the work, "
        f"{size_in_words(free)} free on the disk"
    )
    if told.files + told.state > free:
        tell(f"{planned.folder}: the disk has too little room: {size_in_words(free)} are free")
    steps = ", ".join(f"{name} {time_in_words(s)}" for name, s in told.seconds if s and s >= 0.5)
    if told.total is not None:
        total = time_in_words(told.total)
        show(f"about {total} if nothing else runs, an estimate by rules of thumb: {steps or 'all short'}")
    else:
        show("the time is not estimated: how fast the weights arrive is not known")
    show()
    print_table("the largest file that fits", *choices_table(planned.fit))
    for line in assumptions(planned.fit):
        show(line)
    show()
    for line in planned.front_matter.splitlines():
        show(line)


def _with_parts(file: FileFigures) -> str:
    """The name of a file, and of how many parts it is."""
    more = f", and {len(file.parts) - 1} more parts" if len(file.parts) > 1 else ""
    return file.path.name + more


def _print_result(made: ReleaseResult, quiet: bool) -> None:
    if quiet:
        return
    if made.results is None:
        show(f"{made.folder}: nothing to do")
        return
    from gguf_export.commands.console import print_table
    from gguf_export.reports.compare_tables import VERDICTS, files_table

    print_table(str(made.folder), *files_table(made.results, brief=True))
    show(VERDICTS)


def _make_again(
    model: Path, recipe: Path, folder: Path | None, texts: tuple[str, ...], jobs: int | None, quiet: bool
) -> None:
    """Make the files of a recipe, and exit with 1 where one is not what it was."""
    from gguf_export.commands.console import ProgressView
    from gguf_export.commands.messages import say
    from gguf_export.releasing.reproduce import reproduce

    if folder is None:
        raise click.UsageError("--from needs -o DIR for the files")
    with ProgressView(quiet=quiet) as view:
        made = reproduce(model, recipe, folder, texts=texts, jobs=jobs, progress=view, note=say)
    for path, digest, same in made.files:
        show(f"{path}: SHA-256 {digest}, {'as the recipe says' if same else 'NOT that of the recipe'}")
    if not made.is_equal:
        sys.exit(FINDINGS)


def _upload(made: ReleaseResult, public: bool, quiet: bool) -> None:
    from gguf_export.commands.console import ProgressView
    from gguf_export.commands.messages import say
    from gguf_export.publishing.upload import upload_release

    assert made.repo is not None
    with ProgressView(quiet=quiet) as view:
        sent = upload_release(made.folder, made.repo, public=public, progress=view, note=say)
    if not quiet:
        show(
            f"{sent.url}: {len(sent.sent)} files sent, {len(sent.left)} were there"
            if sent.sent
            else f"{sent.url}: nothing to send"
        )
