"""`verify` and `inspect` of files that are split, of many files, and of files that were made from a GGUF file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from command_line import check_one_line, invoke
from gguf import GGUFValueType as Type
from gguf_files import remade
from part_cases import cut, groups_of, write_source
from pico import pico_mixtral

from calibration.importance.imatrix import Entry, Imatrix
from gguf_export import export, inspect, verify
from gguf_export.checking.file_check import Level
from gguf_export.checking.inspect import ModelFacts
from quantize.containers.gguf import read_container
from quantize.containers.keys import KeyValue
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import QType

STEM = "Parts-Q4_K_M"
N_PARTS = 5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "Parts-BF16.gguf")


@pytest.fixture(scope="module")
def pristine(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    export(source, "Q4_K_M", folder, split_max_tensors=7)
    export(source, "Q4_K_M", folder)
    return folder


@pytest.fixture
def made(pristine: Path, tmp_path: Path) -> Path:
    """A folder with a file, and the same in five parts, which may be changed."""
    return Path(shutil.copytree(pristine, tmp_path / "made"))


def part(folder: Path, no: int) -> Path:
    return folder / f"{STEM}-{no:05d}-of-{N_PARTS:05d}.gguf"


def spoil(path: Path, name: str, at: int = 0, byte: bytes = b"\x7f") -> None:
    """Change one byte of a tensor, in the part that holds it."""
    file = GGUFFile(path, any_part=True)
    stored = file.tensors[name]
    with file.parts[stored.part].path.open("r+b") as stream:
        stream.seek(stored.offset + at)
        stream.write(byte)


def in_part(folder: Path, no: int) -> str:
    """The name of a matrix in a part."""
    specs = GGUFFile(part(folder, no), any_part=True).specs()
    return next(spec.name for spec in specs if spec.qtype is QType.Q4_K)


def faults(path: Path, **settings: Any) -> list[str]:
    return [str(finding) for finding in verify(path, **settings) if finding.severity != "info"]


# -- parts


@pytest.mark.parametrize("level", ["auto", "bytes", "errors"])
def test_a_healthy_file_in_parts(made: Path, source: Path, level: Level) -> None:
    assert faults(part(made, 1), against=source, level=level) == []


def test_a_fault_in_a_later_part_is_named(made: Path, source: Path) -> None:
    name = in_part(made, 3)
    spoil(part(made, 1), name, at=9)
    (found,) = faults(part(made, 1), against=source)
    assert found.startswith(f"error: {name}: 1 of ")
    with part(made, 4).open("ab") as file:
        file.write(bytes(100))
    assert any(f"{part(made, 4)}: 100 bytes lie behind" in fault for fault in faults(part(made, 1)))


def test_a_later_part_is_checked_for_itself(made: Path) -> None:
    healthy = invoke("verify", part(made, 2), "-q")
    assert healthy.exit_code == 0 and "part 2 of 5 of a model" in healthy.output
    spoil(part(made, 2), in_part(made, 2), at=1, byte=b"\xff")
    damaged = invoke("verify", part(made, 2), "-q")
    assert damaged.exit_code == 1 and "NaN or infinite" in damaged.output
    assert any("NaN or infinite" in fault for fault in faults(part(made, 1)))


def test_keys_of_a_later_part(made: Path, tmp_path: Path) -> None:
    change = [KeyValue("split.no", 1, Type.UINT32)]
    path = remade(part(made, 2), tmp_path / "part.gguf", change, leave_out=["split.tensors.count"])
    assert [fault.partition(";")[0] for fault in faults(path)] == [
        "error: split.no: is of type UINT32, the loader wants UINT16",
        "warning: split.tensors.count: is missing",
    ]


def test_a_missing_part_is_an_error(made: Path) -> None:
    part(made, 3).unlink()
    (fault,) = faults(part(made, 1))
    assert (
        f"{part(made, 3).name}: file is missing: part 3 of 5 of the model; all parts lie in one folder"
        in fault
    )


def test_a_later_part_is_not_compared(made: Path, source: Path) -> None:
    """It would have passed for the whole model."""
    (fault,) = faults(part(made, 2), against=source)
    assert "is part 2 of 5: the model is compared by its first part; give the first part" in fault


def test_sums_of_all_parts(made: Path) -> None:
    assert faults(part(made, 1), sums=True) == []
    assert len((made / "SHA256SUMS").read_text().splitlines()) == N_PARTS
    spoil(part(made, 1), in_part(made, 2), at=20)
    assert [fault.partition(": SHA")[0] for fault in faults(part(made, 1), sums=True)] == [
        f"error: {part(made, 2)}"
    ]


# -- many files


def test_many_files(made: Path, source: Path) -> None:
    files = sorted(made.glob("*.gguf"))
    healthy = invoke("verify", *files, "--against", source, "-q")
    assert healthy.exit_code == 0, healthy.output
    assert healthy.output.count(": nothing is wrong") == len(files)
    assert f"{part(made, 2)}: is verified with {part(made, 1).name}" in healthy.output
    spoil(part(made, 1), in_part(made, 4), at=9)
    damaged = invoke("verify", *files, "--against", source, "-q", "--json")
    assert damaged.exit_code == 1
    found = json.loads(damaged.output)
    assert [one["file"] for one in found if one["severity"] == "error"] == [str(part(made, 1))]
    assert all(list(one) == ["file", "severity", "place", "message", "remedy"] for one in found)


def test_the_findings_of_one_file_name_no_file(made: Path) -> None:
    done = invoke("verify", part(made, 2), "-q", "--json")
    assert [list(one) for one in json.loads(done.output)] == [["severity", "place", "message", "remedy"]]


def test_one_bad_file_among_many(made: Path) -> None:
    (made / "bad.gguf").write_bytes(b"GGUF")
    done = invoke("verify", made / "bad.gguf", made / f"{STEM}.gguf", "-q")
    assert done.exit_code == 1
    assert f"{made / 'bad.gguf'}: 1 error" in done.output
    assert f"{made / STEM}.gguf: nothing is wrong" in done.output


def test_parts_beside_a_file_of_the_first_part_s_name_are_looked_at(made: Path) -> None:
    """A model of its own under that name does not stand for them."""
    (made / f"{STEM}.gguf").replace(part(made, 1))
    spoil(part(made, 2), in_part(made, 2), at=1, byte=b"\xff")
    done = invoke("verify", part(made, 1), part(made, 2), "-q")
    assert done.exit_code == 1 and "NaN or infinite" in done.output


# -- a GGUF file as the source


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    model = pico_mixtral(folder / "Pico", n_embd=256, n_ff=256, n_layer=1)
    return export(model, "BF16", folder).files[0].path


def importances(file: Path) -> Imatrix:
    rng = np.random.default_rng(1)
    entries = {
        spec.name: Entry(
            rng.random((spec.n_matrix, spec.n_per_row), np.float32) + 1, np.full(spec.n_matrix, 500)
        )
        for spec in GGUFFile(file).specs()
        if spec.is_matrix and spec.bid is not None
    }
    return Imatrix(entries=entries, datasets=["x"], chunk_count=1, chunk_size=512, file="x.gguf")


@pytest.mark.parametrize("ftype", ["Q4_K_M", "F16", "F32", "IQ4_XS"])
def test_what_a_gguf_becomes_is_healthy(mixture: Path, tmp_path: Path, ftype: str) -> None:
    plain = export(mixture, ftype, tmp_path / "plain").files[0].path
    assert verify(plain, against=mixture, level="bytes").summary() == "nothing is wrong"
    imatrix = importances(mixture)
    weighed = export(mixture, ftype, tmp_path / "weighed", imatrix=imatrix).files[0].path
    assert verify(weighed, against=mixture, level="bytes", imatrix=imatrix).summary() == "nothing is wrong"
    assert verify(weighed, against=GGUFFile(mixture)).summary() == "nothing is wrong"


def test_a_source_in_parts(made: Path, source: Path, tmp_path: Path) -> None:
    names = list(read_container(source).tensors)
    first = cut(source, tmp_path / "in", groups_of(names, "none first"))
    assert faults(made / f"{STEM}.gguf", against=first) == []
    part_of_it = sorted(first.parent.iterdir())[1]
    done = invoke("verify", made / f"{STEM}.gguf", "--against", part_of_it)
    check_one_line(done, f"is part 2 of 7 of a model; give {first.name}")


def swapped(blocks: np.ndarray) -> None:
    blocks[[0, 1]] = blocks[[1, 0]]


def test_swapped_experts_are_named(mixture: Path, tmp_path: Path) -> None:
    path = export(mixture, "Q4_0", tmp_path).files[0].path
    stored = GGUFFile(path).tensors["blk.0.ffn_up_exps.weight"]
    content = np.fromfile(path, np.uint8)
    swapped(content[stored.offset : stored.offset + stored.n_bytes].reshape(4, -1))
    content.tofile(path)
    assert [fault.partition(";")[0] for fault in faults(path, against=mixture)] == [
        "error: blk.0.ffn_up_exps.weight, expert 0: the weights of expert 1 are in its place",
        "error: blk.0.ffn_up_exps.weight, expert 1: the weights of expert 0 are in its place",
    ]


def test_another_source(mixture: Path, tmp_path: Path) -> None:
    other = export(pico_mixtral(tmp_path / "Pico", n_embd=256, n_ff=256, n_layer=1, seed=5), "BF16", tmp_path)
    path = export(mixture, "Q8_0", tmp_path).files[0].path
    found = faults(path, against=other.files[0].path)
    assert any("differs from the source: relative error" in fault for fault in found)
    assert not any("checkpoint:" in fault for fault in found)


def write_mixed(path: Path) -> Path:
    """A file with tensors that stay as they are: blocks, numbers that are no weights, a type that nothing decodes."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", rng.standard_normal((64, 256), np.float32))
    writer.add_tensor("blk.0.ffn_gate_inp.weight", rng.standard_normal((4, 256), np.float32))
    half = gguf.quants.quantize(rng.standard_normal((4, 256), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_norm.weight", half, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("ids", np.arange(8, dtype=np.int32), raw_dtype=gguf.GGMLQuantizationType.I32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("blk.0.ffn_gate_inp.weight", "1 of 1024 weights are not what the source gives, the first in row 0"),
        ("blk.0.attn_norm.weight", "1 of 32 blocks are not what the source gives, the first in row 0"),
        ("ids", "1 of 8 blocks are not what the source gives, the first in row 0"),
    ],
)
def test_a_copy_that_is_none(tmp_path: Path, name: str, told: str) -> None:
    mixed = write_mixed(tmp_path / "mixed.gguf")
    path = export(mixed, "Q4_0", tmp_path / "out").files[0].path

    def of_tensors() -> list[str]:
        names = GGUFFile(mixed).tensors
        return [
            one for one in faults(path, against=mixed) if one.removeprefix("error: ").split(":")[0] in names
        ]

    before = of_tensors()
    spoil(path, name, at=2, byte=b"\x01")
    (found,) = set(of_tensors()) - set(before)
    assert told in found


KEYS: list[tuple[KeyValue, Sequence[str], str]] = [
    (KeyValue.u32("llama.context_length", 7), (), "error: llama.context_length: is not that of the source"),
    (
        KeyValue.text("general.architecture", "mistral3"),
        (),
        "error: general.architecture: is not that of the source",
    ),
    (KeyValue.text("general.name", "x"), (), "warning: general.name: is not that of the source"),
    (KeyValue.text("general.more", "x"), (), "warning: general.more: is not in the source"),
    (
        KeyValue.u32("general.file_type", 7),
        ("general.name",),
        "warning: general.name: is missing, the source has it",
    ),
    (
        KeyValue.array("tokenizer.ggml.tokens", [f"<{i}>" for i in range(1, 65)], Type.STRING),
        (),
        "error: tokenizer.ggml.tokens: is not that of the source",
    ),
    (
        KeyValue.array("tokenizer.ggml.scores", [1.0] * 64, Type.FLOAT32),
        (),
        "warning: tokenizer.ggml.scores: is not that of the source",
    ),
]


@pytest.mark.parametrize(("change", "leave_out", "told"), KEYS)
def test_keys_of_the_source(
    made: Path, source: Path, tmp_path: Path, change: KeyValue, leave_out: Sequence[str], told: str
) -> None:
    path = remade(made / f"{STEM}.gguf", tmp_path / "changed.gguf", [change], leave_out=leave_out)
    found = [fault.partition(";")[0] for fault in faults(path, against=source)]
    assert told in found and (len(found) == 1 or change.key == "general.architecture")


# -- inspect


def test_inspect_shows_the_whole_model(made: Path) -> None:
    whole, parts = inspect(made / f"{STEM}.gguf"), inspect(part(made, 1))
    assert isinstance(whole, ModelFacts) and isinstance(parts, ModelFacts)
    assert (parts.n_parts, parts.part, whole.n_parts) == (N_PARTS, None, 1)
    assert parts.tensors == whole.tensors and parts.types == whole.types and parts.hparams == whole.hparams
    assert "gguf in 5 parts" in invoke("inspect", part(made, 1)).output


def test_inspect_says_what_a_later_part_is(made: Path) -> None:
    facts = inspect(part(made, 2))
    assert isinstance(facts, ModelFacts)
    assert (facts.n_parts, facts.part, len(facts.tensors)) == (N_PARTS, 2, 7)
    assert facts.hparams.n_layer == 3 and facts.name == "Parts"
    assert "gguf, part 2 of 5" in invoke("inspect", part(made, 2)).output
    assert json.loads(invoke("inspect", part(made, 2), "--json").output)["part"] == 2
    part(made, 1).unlink()
    done = invoke("inspect", part(made, 2))
    check_one_line(done, f"{part(made, 2).name}: is part 2 of 5 of a model, with 7 tensors; ")
    assert "file is missing" in done.output
