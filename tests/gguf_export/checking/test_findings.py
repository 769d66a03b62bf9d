"""Findings keep the fields of the errors and remarks that they come from, and are sorted, counted and spelled."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pico import pico_mixtral

from gguf_export.checking.findings import Finding, Findings, error, info, warning
from gguf_export.checking.verdicts import place_of
from gguf_export.cli import main
from quantize.exceptions import CheckpointError, GGUFError
from quantize.telling import Remark
from quantize.tensors import QType, TensorSpec


def test_fields_of_an_error_become_those_of_a_finding() -> None:
    fault = GGUFError("a: b; c.gguf", "is: not; whole", "pass {setting}", setting="tensor_type")
    finding = Finding.of(fault, "warning", remedy="unused", place="unused")
    assert finding == Finding("warning", "a: b; c.gguf", "is: not; whole", "pass {setting}", "tensor_type")
    assert finding.line(str.upper) == "warning: a: b; c.gguf: is: not; whole; pass TENSOR_TYPE"
    assert str(finding) == f"warning: {fault}"


def test_what_an_error_lacks_is_filled_in() -> None:
    finding = Finding.of(CheckpointError("", "is damaged"), remedy="fetch it", place="a/b")
    assert finding == error("a/b", "is damaged", "fetch it")


@pytest.mark.parametrize(
    ("remark", "finding"),
    [
        (Remark("README.md", "is no YAML"), warning("README.md", "is no YAML", "repair it")),
        (Remark("", "is no YAML", "leave it"), warning("folder", "is no YAML", "leave it")),
        (
            Remark("x", "y", "give {setting}", setting="pre"),
            warning("x", "y", "give {setting}", setting="pre"),
        ),
    ],
)
def test_fields_of_a_remark_become_those_of_a_finding(remark: Remark, finding: Finding) -> None:
    assert Finding.of_remark(remark, "warning", remedy="repair it", place="folder") == finding


def test_names_of_strangers_cannot_steer_a_terminal() -> None:
    assert str(error("\x1b[2J", "a\nb", "")) == "error: \\x1b[2J: a\\nb"


def test_the_worst_comes_first() -> None:
    found = [info("1", "a"), warning("2", "b", ""), error("3", "c", ""), warning("4", "d", "")]
    findings = Findings(found)
    assert [finding.place for finding in findings] == ["3", "2", "4", "1"]
    assert findings.worst == "error"
    assert findings.summary() == "1 error, 2 warnings"
    assert pickle.loads(pickle.dumps(findings)) == findings
    assert (Findings().worst, Findings(found[:1]).worst) == (None, "info")
    assert Findings(found[:1]).summary() == "nothing is wrong"


def test_json_spells_settings() -> None:
    findings = Findings([info("key", "is not compared", "give {setting}", setting="imatrix")])
    (found,) = json.loads(json.dumps(findings.as_json(lambda setting: f"--{setting}")))
    assert found == {
        "severity": "info",
        "place": "key",
        "message": "is not compared",
        "remedy": "give --imatrix",
    }


@pytest.mark.parametrize(
    ("name", "shape", "xids", "place"),
    [
        ("blk.0.ffn_up_exps.weight", (4, 8, 32), [2], "blk.0.ffn_up_exps.weight, expert 2"),
        ("blk.0.ffn_up_exps.weight", (4, 8, 32), [0, 2], "blk.0.ffn_up_exps.weight, experts 0, 2"),
        ("blk.0.ffn_up_exps.weight", (2, 8, 32), [0, 1], "blk.0.ffn_up_exps.weight, all experts"),
        ("blk.0.attn_k_b.weight", (16, 8, 32), [3, 5], "blk.0.attn_k_b.weight, matrices 3, 5"),
        ("blk.0.attn_q.weight", (8, 32), [0], "blk.0.attn_q.weight"),
    ],
)
def test_only_stacks_of_experts_have_experts(
    name: str, shape: tuple[int, ...], xids: list[int], place: str
) -> None:
    assert place_of(TensorSpec(name, shape, QType.BF16), xids) == place


def test_nothing_here_imports_torch(tmp_path: Path) -> None:
    model = pico_mixtral(tmp_path / "Pico-4x1M-bf16")
    done = CliRunner().invoke(main, ["export", str(model), "-t", "Q4_K_M", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("*.gguf")
    script = f"""
import sys
from gguf_export.checking.doctor import doctor
from gguf_export.checking.inspect import inspect
from gguf_export.checking.verify import verify

doctor({str(model)!r})
inspect({str(model)!r})
assert verify({str(path)!r}, against={str(model)!r}).summary() == "nothing is wrong"
print("torch" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
