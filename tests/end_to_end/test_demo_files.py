"""The bundled demo model becomes the same files, byte for byte, on every machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from demo_files import demo_sums
from places import GOLDEN

pytestmark = pytest.mark.numeric


def test_every_file_of_the_demo_model_is_the_same(tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / "demo_files.json").read_text(encoding="utf-8"))
    assert dict(demo_sums(tmp_path)) == expected
