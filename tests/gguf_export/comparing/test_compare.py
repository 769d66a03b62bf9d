"""Models compared in one pass: against llama-perplexity, against plain formulas, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from logits import write_logits
from pico import pico_mixtral, read_checkpoint, write_checkpoint
from places import GOLDEN
from rich.console import Console

from calibration.forward.routing import Routing
from calibration.forward.run import forward
from calibration.forward.streams import Observer, Stream
from calibration.judging.kld import Scores, base_probs, log_probs, score
from calibration.judging.model import Model, refuse_other_model
from calibration.judging.perplexity import Estimate, measure_perplexity
from calibration.judging.round_trip import RoundTrip, SharedSource
from calibration.judging.side_by_side import Activations, Comparison, compare
from calibration.text.chunks import Chunks
from gguf_export.cli import main
from gguf_export.commands.console import make_table
from gguf_export.comparing import run as comparing
from gguf_export.comparing.measured import labels_of, results_of
from gguf_export.comparing.models import ModelChoice
from gguf_export.comparing.run import CompareJob, PassSettings
from gguf_export.comparing.texts import NamedText, TextChoice
from gguf_export.reports.compare_data import compare_csv, compare_json
from gguf_export.reports.compare_facts import protocol
from gguf_export.reports.compare_page import compare_page
from gguf_export.reports.compare_tables import DETAILS, compare_markdown, files_table, text_table, with_error
from gguf_export.writing.export import prepare, run
from quantize.exceptions import GGUFError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile

pytestmark = pytest.mark.numeric

N_CTX = 32
TEXT = "a river runs through the small town and the small town knows the river well. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compare")
    pico_mixtral(made / "pico", n_embd=256, n_ff=256, n_layer=2, n_head=4)
    (made / "text.txt").write_text(TEXT * 12, encoding="utf-8")
    (made / "other.txt").write_text("everybody knows numbers. " * 30, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder / "pico")


@pytest.fixture(scope="module")
def files(folder: Path, checkpoint: Checkpoint) -> list[Path]:
    export = prepare(checkpoint, [Recipe(ftype(name)) for name in ("Q8_0", "Q4_0", "BF16")], folder)
    return [file.path for file in run(export, jobs=1).files]


@pytest.fixture(scope="module")
def texts(folder: Path) -> list[NamedText]:
    return [NamedText("prose", folder / "text.txt"), NamedText("o|ther <b>", folder / "other.txt")]


def job_of(
    paths: Sequence[Path], texts: Sequence[NamedText] = (), n_chunk: int | None = None, **models: Any
) -> CompareJob:
    """Models and texts, in chunks of a few tokens."""
    choice = TextChoice(tuple(texts), N_CTX, n_chunk)
    return comparing.prepare(ModelChoice(tuple(paths), **models), choice)


def compare_on(
    paths: Sequence[Path], texts: Sequence[NamedText] = (), activations: Activations = "exact", **models: Any
) -> Comparison:
    """The figures of models on texts."""
    return comparing.run(job_of(paths, texts, **models), PassSettings(activations)).comparison


@pytest.fixture(scope="module")
def compared(folder: Path, files: list[Path], texts: list[NamedText]) -> Comparison:
    job = job_of([folder / "pico", *files], texts, recipes=(Recipe(ftype("Q4_0")),))
    result = comparing.run(job)
    assert result.n_in_pass == 5 and result.bytes_read == job.bytes_read
    for source in job.sources:  # each byte once, whatever the length of the text
        assert source.bytes_read == sum(
            spec.n_bytes for spec in source.specs() if spec.name != "rope_freqs.weight"
        )
    return result.comparison


def _logits(*models: object, tokens: np.ndarray) -> list[torch.Tensor]:
    found: list[list[torch.Tensor]] = [[] for _ in models]

    def keep(chunk: int, logits: Sequence[torch.Tensor]) -> None:
        for kept, one in zip(found, logits, strict=True):
            kept.append(one.clone())

    forward([Stream(model) for model in models], tokens, on_logits=keep, first_logit=N_CTX // 2)  # type: ignore[arg-type]
    return [torch.stack(one) for one in found]


def test_figures_are_those_of_the_logits(
    compared: Comparison, files: list[Path], checkpoint: Checkpoint
) -> None:
    chunks = compared.texts[0]
    base, q = _logits(checkpoint, GGUFFile(files[1]), tokens=chunks.inputs)
    n_vocab = base.shape[-1]
    targets = torch.from_numpy(chunks.tokens[:, N_CTX // 2 + 1 :].astype(np.int64)).reshape(-1)
    base, q = (one[:, :-1].reshape(-1, n_vocab) for one in (base, q))
    wanted = score(q, base_probs(log_probs(base)), targets)
    found = compared.results[1][0]
    assert found.statistics.n == targets.numel() == chunks.n_chunk * (N_CTX - 1 - N_CTX // 2)
    np.testing.assert_allclose(found.scores.kld, wanted.kld, rtol=1e-4, atol=1e-6)
    assert found.statistics.kld.value > 1e-4
    assert compared.base_ppl[0].value == pytest.approx(measure_perplexity(checkpoint, chunks).value, rel=1e-5)
    ppl = measure_perplexity(GGUFFile(files[1]), chunks)
    assert found.statistics.ppl.value == pytest.approx(ppl.value, rel=1e-5)


def test_the_order_is_that_of_the_bits(compared: Comparison) -> None:
    for text in range(2):
        q8, q4, bf16 = (results[text].statistics for results in compared.results[:3])
        assert q4.kld.value > 10 * q8.kld.value > 0
        assert q4.same_top.value <= q8.same_top.value <= bf16.same_top.value == 1
        assert abs(bf16.kld.value) < 1e-6


def test_a_round_trip_is_its_file(compared: Comparison) -> None:
    file, trip = compared.results[1], compared.results[3]
    assert compared.models[1].bpw == pytest.approx(compared.models[3].bpw)
    for text in range(2):
        assert (file[text].scores.kld == trip[text].scores.kld).all()
        assert file[text].statistics == trip[text].statistics


def test_texts_in_one_pass_are_texts_apart(
    compared: Comparison, folder: Path, files: list[Path], texts: list[NamedText]
) -> None:
    for index, text in enumerate(texts):
        apart = compare_on([folder / "pico", files[1]], [text])
        one, other = apart.results[0][0], compared.results[1][index]
        np.testing.assert_allclose(one.scores.kld, other.scores.kld, rtol=1e-3, atol=1e-6)
        assert one.router is not None and other.router is not None
        np.testing.assert_allclose(one.router.same, other.router.same, atol=0.01)


def test_router_agreement_is_counted(compared: Comparison, files: list[Path], checkpoint: Checkpoint) -> None:
    class Keep(Observer):
        def __init__(self) -> None:
            self.routings: dict[tuple[int, int], Routing] = {}

        def routed(self, stream: int, bid: int, tokens: torch.Tensor, routing: Routing) -> None:
            self.routings[stream, bid] = routing

    keep = Keep()
    chunks = compared.texts[0]
    forward([Stream(checkpoint), Stream(GGUFFile(files[1]))], chunks.inputs, observers=[keep])
    found = compared.results[1][0].router
    assert found is not None and found.n_token == chunks.n_token
    for bid in range(2):
        base, q = keep.routings[0, bid], keep.routings[1, bid]
        same = [set(a) == set(b) for a, b in zip(base.ids.tolist(), q.ids.tolist(), strict=True)]
        assert found.same[bid] == pytest.approx(np.mean(same), abs=0.02)
        kld = (base.probs * (base.probs / q.probs).log()).sum(-1).mean()
        assert found.kld[bid] == pytest.approx(float(kld), rel=1e-2, abs=1e-6)
    assert 0.5 < found.same.min() < 1
    exact = compared.results[2][0].router
    assert exact is not None and (exact.same == 1).all()


def test_rounded_activations_cost_a_little(
    compared: Comparison, folder: Path, files: list[Path], texts: list[NamedText]
) -> None:
    rounded = compare_on([folder / "pico", files[0]], texts[:1], "int8").results[0][0].statistics
    exact = compared.results[0][0].statistics
    assert (
        rounded.kld_median > 1.5 * exact.kld_median
    )  # of a few tokens the mean is but that of one expert lost


def test_a_gguf_is_a_base_without_its_checkpoint(
    compared: Comparison, files: list[Path], texts: list[NamedText]
) -> None:
    found = compare_on([files[1]], texts, base=files[2])
    assert (found.texts[0].tokens == compared.texts[0].tokens).all()
    assert found.results[0][1].statistics.kld.value == pytest.approx(
        compared.results[1][1].statistics.kld.value, rel=1e-3
    )


def test_a_file_of_logits_is_a_base(
    compared: Comparison, files: list[Path], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    chunks = compared.texts[0]
    (base,) = _logits(checkpoint, tokens=chunks.inputs)
    path = tmp_path / "base.kld"
    write_logits(path, base[:, :-1].numpy(), chunks.tokens)
    job = job_of([files[1]], base=path)
    assert job.n_in_pass == 1  # the base is not
    found = comparing.run(job).comparison
    one, other = found.results[0][0], compared.results[1][0]
    np.testing.assert_allclose(one.scores.kld, other.scores.kld, atol=2e-3)
    assert one.statistics.kld.value == pytest.approx(other.statistics.kld.value, rel=0.02)
    assert one.router is None
    results = results_of(found)
    assert ">same experts %" not in text_table(results, 0)[0] + files_table(results)[0]
    assert ">mean KLD" in text_table(results, 0)[0]
    assert "Router" not in compare_page(results)


def test_a_shared_source_reads_each_matrix_once(checkpoint: Checkpoint) -> None:
    class Counted:
        kind, label, hparams = checkpoint.kind, checkpoint.label, checkpoint.hparams
        reads: list[tuple[str, int]] = []  # noqa: RUF012

        def specs(self) -> object:
            return checkpoint.specs()

        def read(self, spec: object, xid: int = 0, rows: object = None) -> object:
            self.reads.append((spec.name, xid))  # type: ignore[attr-defined]
            return checkpoint.read(spec, xid)  # type: ignore[arg-type]

    source = Counted()
    shared = SharedSource(source, 3)  # type: ignore[arg-type]
    plan = make_plan(checkpoint.specs(), RecipeFacts.of(checkpoint.hparams), Recipe(ftype("Q8_0")), False)
    models = [Model("a", RoundTrip(shared, plan), 1, 1), Model("b", RoundTrip(shared, plan), 1, 1)]
    tokens = np.arange(2 * N_CTX, dtype=np.int32).reshape(2, N_CTX)
    compare(Model("base", shared, 1, 1), models, [Chunks(("t",), tokens, 1)])
    assert len(source.reads) == len(set(source.reads)) == sum(spec.n_matrix for spec in checkpoint.specs())
    assert not shared._kept


def test_labels_are_what_tells_files_apart(compared: Comparison) -> None:
    assert labels_of(compared.base, compared.models) == ["Q8_0", "Q4_0", "BF16", "Q4_0 (round trip)"]


@pytest.mark.parametrize(
    ("base", "paths", "shown"),
    [
        ("m/Pico-2x1B", ["o/Pico-2x1B-Q4_K_M-imatrix.gguf"], ["Q4_K_M-imatrix"]),
        ("m/pico", ["o/Pico-2x1B-v0.1-Q4_K_M.gguf"], ["Q4_K_M"]),
        ("m/pico", ["o/Pico.i1-IQ4_XS.gguf"], ["IQ4_XS"]),
        ("m/pico", ["o/mine.gguf"], ["mine"]),
        ("m/pico", ["o/Pico.Q4_K_M.gguf", "o/Pico.Q8_0.gguf"], ["Q4_K_M", "Q8_0"]),
        ("m/pico", ["o/Pico-v0.2-Q8_0.gguf", "o/Pico-v0.3-Q8_0.gguf"], ["v0.2-Q8_0", "v0.3-Q8_0"]),
        ("o/Pico-BF16.gguf", ["o/Pico-Q8_0.gguf"], ["Q8_0"]),
        ("m/pico", ["a/x.gguf", "b/x.gguf"], ["a/x", "b/x"]),
        ("m/pico", ["/t/Q4/a.gguf", "/t/Q5/a.gguf", "/t/Q4/b.gguf"], ["Q4/a", "Q5/a", "b"]),
        ("m/pico", ["x/1/P-Q4_0.gguf", "y/1/P-Q4_0.gguf"], ["x/1/Q4_0", "y/1/Q4_0"]),
    ],
)
def test_labels(compared: Comparison, base: str, paths: list[str], shown: list[str]) -> None:
    first = compared.models[0]
    file: Any = SimpleNamespace(kind="gguf")
    folder: Any = SimpleNamespace(kind="checkpoint")
    models = tuple(replace(first, name=name, source=file) for name in paths)
    base_model = replace(first, name=base, source=file if base.endswith(".gguf") else folder)
    assert labels_of(base_model, models) == shown


def test_the_protocol_says_how_it_was_measured(compared: Comparison) -> None:
    found = dict(protocol(results_of(replace(compared, activations="int8"))))
    assert found["base"] == "pico"
    assert found["text prose"] == f"{compared.texts[0].n_chunk} chunks of 32 tokens"
    assert "text o|ther <b>" in found and found["activations"].startswith("rounded to 8 bits")
    assert found["protocol"].startswith("that of llama-perplexity: the second half")
    assert found["importances of round trips"] == "none"
    assert found["versions"].startswith("moe-gguf ") and torch.__version__ in found["versions"]
    page = compare_page(results_of(compared))
    assert "<dt>activations</dt><dd>exact, so" in page and "<dt>text prose</dt>" in page


def test_a_terminal_of_80_columns_holds_the_figures(compared: Comparison) -> None:
    results = results_of(compared)
    for columns, rows in (files_table(results, brief=True), text_table(results, 0, DETAILS, brief=True)):
        out = io.StringIO()
        Console(file=out, width=80).print(make_table("", columns, rows, 80), crop=False)
        assert max(map(len, out.getvalue().splitlines())) <= 80
        for row in rows:
            numbers = [cell for cell in row[1:] if not cell[0].isalpha()]
            assert all(cell in out.getvalue() for cell in numbers)  # none is torn


def test_one_model_is_no_plot(compared: Comparison) -> None:
    one = replace(compared, models=compared.models[:1], results=compared.results[:1])
    page = compare_page(results_of(one))
    assert "1 model beside pico" in page and "quality as Q8_0" in page and "<svg" not in page


def test_the_reports_hold_the_figures(compared: Comparison) -> None:
    results = results_of(compared)
    assert results.labels[:2] == ["BF16", "Q8_0"]  # the largest first
    lines = list(csv.DictReader(io.StringIO(compare_csv(results))))
    at = 2 * results.labels.index("Q4_0")
    assert len(lines) == 8
    kld = compared.results[1][0].statistics.kld.value
    assert float(lines[at]["kld"]) == pytest.approx(kld, rel=1e-6)
    assert (lines[at]["model"], lines[at]["text"]) == ("Q4_0", "prose")
    found = json.loads(compare_json(results))
    model = found["models"][results.labels.index("Q4_0")]
    assert model["texts"]["prose"]["kld"] == pytest.approx(kld)
    assert len(model["texts"]["prose"]["router_same_by_layer"]) == 2
    assert model["name"] == Path(compared.models[1].name).name and not model["is_named"]
    assert found["versions"]["torch"] and found["texts"][0]["n_ctx"] == N_CTX
    assert model["imatrix"] is None and "kld_q0.5" not in lines[0]
    assert (lines[at]["base"], lines[at]["activations"], lines[at]["n_ctx"]) == ("pico", "exact", str(N_CTX))
    table = compare_markdown(results).splitlines()
    cells = {line.replace("\\|", "").count("|") for line in table if line.startswith("|")}
    assert cells == {10, 5}  # the files, and their KLD on each text
    assert sum("verdict" in line and "beaten by" in line for line in table) == 1
    columns, rows = text_table(results, 0)
    assert {len(row) for row in rows} == {len(columns)}
    assert len(rows) == 5


def test_numbers_are_written_to_the_place_of_their_error() -> None:
    assert with_error(Estimate(0.0064999, 0.0000391, 100)) == "0.006500 ± 0.000039"
    assert with_error(Estimate(0.0928, 0.00055, 100)) == "0.09280 ± 0.00055"
    assert with_error(Estimate(0.98647, 0.00051, 100), 100) == "98.647 ± 0.051"
    assert with_error(Estimate(3.7e-5, 4.2e-7, 100)) == "0.00003700 ± 0.00000042"
    assert with_error(Estimate(-1e-9, 1e-9, 100)) == "0.000000 ± 0.000000"
    assert with_error(Estimate(0.5, math.nan, 1)) == "0.500000"
    assert with_error(Estimate(1.0, 0.0, 100), 100) == "100.00 ± 0.00"


def test_the_page_escapes_names(compared: Comparison) -> None:
    page = compare_page(results_of(compared))
    assert "<b>" not in page.replace("<b>0", "").split("</head>")[1].split("<footer>")[0].replace(
        "<dd><b>", ""
    )
    assert "o|ther &lt;b&gt;" in page
    assert page.count("<svg") >= 2
    assert "Router agreement" in page


# -- the command line, and what it refuses


def _cli(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line(folder: Path, files: list[Path], tmp_path: Path) -> None:
    outputs = [f"--{kind}={tmp_path / kind}" for kind in ("json", "csv", "markdown", "html")]
    code, out, err = _cli(
        folder / "pico", *files[:2], "--text", f"prose={folder / 'text.txt'}", "--text", folder / "other.txt",
        "--ctx", N_CTX, "--chunks", 2, "--timings", *outputs,
    )  # fmt: skip
    assert code == 0, err
    for word in ("prose", "other", "Q8_0", "Q4_0", "same experts", "2 chunks of 32 tokens", "decoding"):
        assert word in out
    again = (
        folder / "pico",
        files[0],
        "--text",
        folder / "text.txt",
        "--ctx",
        N_CTX,
        "--chunks",
        1,
        outputs[0],
    )
    assert "exists already; pass --force" in _refused(*again)
    assert _cli(*again, "--force", "-q")[0] == 0
    assert all((tmp_path / kind).stat().st_size > 100 for kind in ("json", "csv", "markdown", "html"))
    quiet = _cli(
        folder / "pico", files[0], "--text", folder / "text.txt", "--ctx", N_CTX, "--chunks", 1, "-q"
    )
    assert quiet == (0, "", "")


def _refused(*arguments: object) -> str:
    code, out, err = _cli(*arguments)
    assert code in (2, 3, 4) and not out
    assert len(err.splitlines()) == 1, err
    return err


def test_bad_input_is_refused_in_one_line(
    folder: Path, files: list[Path], tmp_path: Path, checkpoint: Checkpoint
) -> None:
    model, text = folder / "pico", ("--text", folder / "text.txt", "--ctx", N_CTX)
    assert "other.gguf: another model" in _refused(model, _other_model(tmp_path), *text)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files[0].read_bytes()[:-4096])
    assert "truncated" in _refused(model, cut, *text)
    assert "tokenizer is not that of" in _refused(model, _other_tokenizer(tmp_path), *text)
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    assert "too few" in _refused(model, files[0], "--text", tmp_path / "short.txt")
    assert "no text to judge by" in _refused(model, files[0])
    twins = [f"--text=a={folder / name}.txt" for name in ("text", "other")]
    assert "two texts are called 'a'; name them" in _refused(model, files[0], *twins)
    assert "nothing to compare with" in _refused(files[0], *text)
    assert "nothing to compare; give GGUF files" in _refused(model, *text)
    (tmp_path / "link.gguf").symlink_to(files[0])
    assert "link.gguf: is given twice" in _refused(model, files[0], tmp_path / "link.gguf", *text)
    assert "Q4_K_M: is given twice" in _refused(model, "-t", "Q4_K_M", "-t", "q4_k_m", *text)
    assert "folder of the checkpoint" in _refused(files[0], "--base", files[1], "-t", "Q4_0", *text)
    assert "one checkpoint is enough" in _refused(model, model, files[0], *text)
    assert "no such folder" in _refused(model, files[0], *text, "--html", tmp_path / "absent" / "x.html")
    twice = ("--json", tmp_path / "x", "--csv", tmp_path / "x")
    assert "x: named twice" in _refused(model, files[0], *text, *twice)
    assert "cannot be decoded" in _refused(model, _other_type(files[0], tmp_path), *text)
    logits = tmp_path / "base.kld"
    write_logits(logits, np.eye(15, 300, dtype=np.float32)[None], np.zeros((1, N_CTX), np.int32))
    assert "has 300 tokens" in _refused(files[0], "--base", logits)
    assert "brings its own text" in _refused(files[0], "--base", logits, *text)
    logits.write_bytes(logits.read_bytes()[:-2])
    assert "truncated" in _refused(files[0], "--base", logits)


@pytest.mark.parametrize("name", ["output.weight", "output_norm.weight", "blk.1.ffn_gate_inp.weight"])
def test_a_file_with_a_nan_gives_no_figures(
    folder: Path, files: list[Path], tmp_path: Path, name: str
) -> None:
    """A scale of Q8_0 (f16) or a value (f32) is made NaN: no activation that is passed on ever shows it."""
    damaged = tmp_path / "damaged.gguf"
    data = bytearray(files[0].read_bytes())
    at = GGUFFile(files[0]).tensors[name].offset
    data[at : at + 4] = b"\x00\x7e\xc0\x7f"  # NaN as f16, and as f32
    damaged.write_bytes(data)
    place = "the router of layer 1" if "inp" in name else "the output of the model"
    told = _refused("-q", folder / "pico", files[1], damaged, "--text", folder / "text.txt", "--ctx", N_CTX)
    assert f"{damaged}: {place}: a value is not finite (NaN or infinity); {name} holds" in told
    assert f"moe-gguf verify {damaged}" in told


def test_blocks_do_not_hide_a_weight_that_is_no_number(
    folder: Path, files: list[Path], tmp_path: Path
) -> None:
    """Against a file, the checkpoint is seen through its round trip only."""
    model = Path(shutil.copytree(folder / "pico", tmp_path / "pico"))
    stored = read_checkpoint(model)
    name = next(name for name in stored if name.endswith("layers.0.self_attn.q_proj.weight"))
    stored[name][0, 3] = 0x7FC0
    write_checkpoint(model, stored, json.loads((model / "config.json").read_text(encoding="utf-8")))
    (model / "model.safetensors.index.json").unlink()
    for shard in model.glob("model-*.safetensors"):
        shard.unlink()
    text = ("--text", folder / "text.txt", "--ctx", N_CTX, "--chunks", 1)
    told = _refused("-q", model, "--base", files[2], "-t", "Q4_0", *text)
    assert "blk.0.attn_q.weight: row 0, column 3 is not a finite number; the checkpoint is damaged" in told


def _other_model(folder: Path) -> Path:
    pico_mixtral(folder / "wide", n_embd=256, n_ff=512, n_head=4)
    export = prepare(open_checkpoint(folder / "wide"), [Recipe(ftype("Q8_0"))], folder)
    path = run(export, jobs=1).files[0].path
    return path.rename(folder / "other.gguf")


def _other_tokenizer(folder: Path) -> Path:
    made = pico_mixtral(folder / "same", n_embd=256, n_ff=256, n_layer=2, n_head=4, tokenizer=False)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(folder.parent / name if (folder.parent / name).exists() else folder / "wide" / name, made)
    added = {"añejo": 319}
    (made / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    export = prepare(open_checkpoint(made), [Recipe(ftype("Q8_0"))], folder)
    return run(export, jobs=1).files[0].path


def _other_type(file: Path, folder: Path) -> Path:
    """The same file, but the type of one tensor is I32, of the same size as F32."""
    data = file.read_bytes()
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8
    assert data[at : at + 4] == bytes(4)
    path = folder / "type.gguf"
    path.write_bytes(data[:at] + (26).to_bytes(4, "little") + data[at + 4 :])
    return path


def test_a_model_without_a_tensor_is_another(checkpoint: Checkpoint) -> None:
    class Less:
        hparams = checkpoint.hparams

        def specs(self) -> object:
            return checkpoint.specs()[1:]

    with pytest.raises(GGUFError, match=r"less: another model than whole: tensor .* is only there"):
        refuse_other_model(Model("whole", checkpoint, 1, 1), Model("less", Less(), 1, 1))  # type: ignore[arg-type]


# -- llama-perplexity itself


@pytest.mark.slow
def test_the_figures_are_those_of_llama_perplexity(bench: Path) -> None:
    """Token by token within the spread of the rounding, which no two builds of llama.cpp have in common.

    8-bit codes flip with the last bit of a sum, so a token's figures differ between processors by about as much as they
    are large: llama.cpp itself finds a mean KLD of .000169 for Q8_0 with flash attention and of .000175 without. What
    is left of the tokens' differences in their mean is known by its standard error.
    """
    golden = np.load(GOLDEN / "perplexity-6-chunks.npz")  # made by make_perplexity.py beside it
    p_base = np.exp(-golden["nll_BF16"])
    scores = _scores_of_bench(bench, "int8", "Q8_0", "Q4_K_M", "Q4_0")
    for name, found in scores.items():
        assert _apart(found.nll_base, golden["nll_BF16"]) < MOST_APART
        assert _apart(found.nll, golden[f"nll_{name}"]) < MOST_APART
        assert _apart(found.kld, golden[f"kld_{name}"]) < MOST_APART
        assert _apart(found.same_top, golden[f"same_top_{name}"]) < MOST_APART
        dp = np.exp(-golden[f"nll_{name}"]) - p_base
        assert _apart(found.dp**2, dp**2) < MOST_APART
    # Activations that are not rounded are another thing, and this ruler sees it.
    (exact,) = _scores_of_bench(bench, "exact", "Q8_0").values()
    assert _apart(exact.kld, golden["kld_Q8_0"]) > 3 * MOST_APART


MOST_APART = 4.0


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How many standard errors the mean of the paired differences is away from 0."""
    difference = ours.astype(np.float64) - theirs
    return float(abs(difference.mean()) / (difference.std(ddof=1) / math.sqrt(len(difference))))


def _scores_of_bench(bench: Path, activations: Activations, *types: str) -> dict[str, Scores]:
    """The scores of file types of the bench's model on the first chunks of its code."""
    models = ModelChoice.of(bench / "harmony-nano", types=types)
    job = comparing.prepare(models, TextChoice((NamedText("code", bench / "texts" / "code.txt"),), n_chunk=6))
    results = comparing.run(job, PassSettings(activations)).comparison.results
    return {name: on_text.scores for name, (on_text,) in zip(types, results, strict=True)}
