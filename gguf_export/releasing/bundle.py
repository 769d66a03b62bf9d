"""All that lies beside the GGUF files of a release, written when everything is measured; SHA256SUMS comes last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from calibration.chat.dialogues import Dialogue
from calibration.chat.rendering import render
from calibration.importance.imatrix_files import load_imatrix
from gguf_export.checking.checksums import SUMS
from gguf_export.checking.fit import Fit, fit, which_file
from gguf_export.checking.llama_process import program
from gguf_export.comparing.results import Results
from gguf_export.files.replacing import write_files
from gguf_export.releasing.card import CardFacts, model_card
from gguf_export.releasing.companions import model_yaml, modelfile, params_json
from gguf_export.releasing.expert_errors import ERRORS_HTML
from gguf_export.releasing.experts import expert_load
from gguf_export.releasing.front_matter import front_matter
from gguf_export.releasing.job import ReleaseJob
from gguf_export.releasing.recipe import recipe_json
from gguf_export.releasing.record import RECIPE, WORKING, Record
from gguf_export.releasing.smoke import MESSAGES
from gguf_export.releasing.sums import write_sums
from gguf_export.reports.compare_data import compare_csv, compare_json
from gguf_export.reports.compare_page import compare_page
from gguf_export.reports.compare_plots import plot_png, plot_svg
from gguf_export.reports.compare_tables import compare_markdown
from gguf_export.vocab.template_check import template_in
from gguf_export.writing.fingerprint import version
from gguf_export.writing.results import FileFigures
from quantize.containers.gguf_parts import model_stem
from quantize.containers.untrusted import label
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import OnProgress

__all__ = ["fit_by_quality", "write_bundle"]


def write_bundle(
    job: ReleaseJob,
    files: Sequence[FileFigures],
    record: Record,
    results: Results,
    made_by: str,
    progress: OnProgress,
) -> None:
    """Write card, plots, report, companions, recipe.json and SHA256SUMS; what is there is replaced.

    Args:
        job: the release.
        files: the GGUF files, as they were planned.
        record: what was found of each.
        results: the comparison on held-out text, whose models are called by their file types.
        made_by: the command that does all this, without local paths.
        progress: told of the hashing of the checkpoint.

    Raises:
        OutputError: the disk is full or broken.
        MoeGgufError: a file cannot be read any more.
    """
    folder = job.folder
    facts = _card_facts(job, files, record, results, made_by)
    texts = {
        "README.md": front_matter(job.about, job.settings.repo) + "\n" + model_card(facts),
        "report/compare.html": compare_page(results),
        "report/compare.json": compare_json(results),
        "report/compare.csv": compare_csv(results),
        "report/compare.md": compare_markdown(results),
        "quality.svg": plot_svg(results),
        "params": params_json(job.about),
        RECIPE: recipe_json(job, files, record, facts.date, progress),
    }
    if facts.for_ollama is not None:
        texts["Modelfile"] = modelfile(job.about, facts.files[facts.for_ollama])
    if job.settings.repo is not None:
        texts["model.yaml"] = model_yaml(job.about, job.settings.repo, min(file.n_bytes for file in files))
    contents: list[tuple[Path, bytes]] = [
        (folder / name, text.encode("utf-8", "backslashreplace")) for name, text in texts.items()
    ]
    (folder / "report").mkdir(exist_ok=True)
    for earlier in (SUMS, "Modelfile"):  # those of an earlier release are no longer true
        (folder / earlier).unlink(missing_ok=True)
    write_files([*contents, (folder / "quality.png", plot_png(results))])
    known = record.sums()
    write_sums(folder, [*texts, ERRORS_HTML, "quality.png", job.imatrix.name, *known], known)
    (folder / WORKING).unlink(missing_ok=True)


def fit_by_quality(job: ReleaseJob, files: Sequence[FileFigures], results: Results | None) -> Fit:
    """What fits which card: of the files that fit, the best by mean KL divergence.

    Args:
        job: the release.
        files: the GGUF files.
        results: of the comparison; None before there is one, where the largest is taken for the best.
    """
    settings = job.settings
    if results is None:
        return fit(job.model, settings.vram, settings.contexts, types=[file.ftype for file in files])
    found = fit(job.folder, settings.vram, settings.contexts)
    kld = {model.label: model.mean("kld").value for model in results.models}
    ftypes = {label(model_stem(file.path)): file.ftype for file in files}
    models = [model for model in found.models if model.name in ftypes]
    models.sort(key=lambda model: kld[ftypes[model.name]])
    choices = which_file(models, settings.vram, settings.contexts)
    return replace(found, models=tuple(models), choices=choices)


def _card_facts(
    job: ReleaseJob, files: Sequence[FileFigures], record: Record, results: Results, made_by: str
) -> CardFacts:
    llama = program()
    versions = f"moe-gguf {version()}" + (f", {llama}" if llama else "")
    return CardFacts(
        about=job.about,
        title=job.stem,
        repo=job.settings.repo,
        results=results,
        files={file.ftype: record.name_of(file.path) for file in files},
        n_parts={file.ftype: len(file.parts) for file in files},
        smoke={file.ftype: record.of_file(file).smoke for file in files},
        program=llama,
        fit=fit_by_quality(job, files, results),
        prompt=_prompt(files[0].path),
        load=expert_load(job.imatrix),
        errors=record.errors.medians if record.errors is not None else {},
        dialogues=tuple(text.name for text in job.judges if text.is_dialogues),
        made_by=made_by,
        imatrix=job.imatrix.name,
        calibration=_calibration(job),
        versions=versions,
        date=datetime.now(timezone.utc).date().isoformat(),
    )


def _prompt(path: Path) -> str | None:
    """A dialogue as the template of a file writes it, with BOS where llama.cpp adds it; None without a template."""
    file = GGUFFile(path)
    template = template_in("", file.key_values())
    if template is None:
        return None
    text = render(template, [Dialogue(MESSAGES, generation=True)]).texts[:1]
    if not text or not isinstance(text[0], str):
        return None
    adds = file.keys.get("tokenizer.ggml.add_bos_token", file.keys.get("tokenizer.ggml.model") == "llama")
    bos = template.bos if adds is True else ""
    return text[0] if text[0].startswith(bos) else bos + text[0]


def _calibration(job: ReleaseJob) -> str:
    """The calibration text in words."""
    imatrix = load_imatrix(job.imatrix)
    names = ", ".join(dict.fromkeys(text.name for text in (*job.texts, *job.prompts)))
    return f"{names} ({imatrix.chunk_count:,} chunks of {imatrix.chunk_size:,} tokens)"
