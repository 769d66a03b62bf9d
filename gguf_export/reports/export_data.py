"""What an export would write or has written, for programs: JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gguf_export.reports.data_texts import as_data, json_text
from gguf_export.writing.fingerprint import version
from gguf_export.writing.results import ExportPlan, ExportResult, FileFigures
from quantize.exceptions import SETTING
from quantize.telling import Remark

__all__ = ["export_dict", "export_json"]


def export_dict(
    done: ExportPlan | ExportResult,
    remarks: Sequence[Remark],
    *,
    free_bytes: int | None = None,
    spell: Callable[[str], str] = str,
) -> dict[str, Any]:
    """All figures: sizes in bytes, offsets from the end of the header, times in seconds.

    Args:
        done: the plan of a dry run, or the result. Files are "planned", "made", or "left" where they were there.
        remarks: all that was said of it.
        free_bytes: of the disk that the files of a plan will lie on.
        spell: writes the name of a setting.
    """
    is_plan = isinstance(done, ExportPlan)
    left = () if isinstance(done, ExportPlan) else done.standing
    figures: dict[str, Any] = {
        "moe_gguf": version(),
        "dry_run": is_plan,
        "n_bytes": sum(file.n_bytes for file in done.files),
        "files": [_file(file, "planned" if is_plan else "made", left) for file in done.files],
        "imatrix": _imatrix(done),
        "remarks": [
            {
                "place": remark.place,
                "message": remark.message,
                "remedy": remark.remedy.replace(SETTING, spell(remark.setting)),
            }
            for remark in remarks
        ],
    }
    if isinstance(done, ExportPlan):
        figures |= {"free_bytes": free_bytes, "estimated_seconds": done.seconds}
    else:
        figures |= {"bytes_read": done.bytes_read, "seconds": asdict(done.seconds)}
        figures |= {"feedback": None if done.feedback is None else asdict(done.feedback)}
    data: dict[str, Any] = as_data(figures)
    return data


def export_json(
    done: ExportPlan | ExportResult,
    remarks: Sequence[Remark],
    *,
    free_bytes: int | None = None,
    spell: Callable[[str], str] = str,
) -> str:
    """Write a plan or a result as JSON; see `export_dict`."""
    return json_text(export_dict(done, remarks, free_bytes=free_bytes, spell=spell)) + "\n"


def _imatrix(done: ExportPlan | ExportResult) -> dict[str, Any] | None:
    """The file that keeps importances."""
    if done.imatrix is None:
        return None
    if isinstance(done, ExportPlan):
        path, n_bytes = done.imatrix
        return {"path": str(path), "n_bytes": n_bytes}
    return {"path": str(done.imatrix), "n_bytes": done.imatrix.stat().st_size}


def _file(file: FileFigures, state: str, left: Sequence[Path]) -> dict[str, Any]:
    types: dict[str, dict[str, int]] = {}
    for tensor in file.tensors:
        one = types.setdefault(tensor.qtype, {"n_tensors": 0, "n_bytes": 0})
        one["n_tensors"] += 1
        one["n_bytes"] += tensor.n_bytes
    return {
        "path": str(file.path),
        "type": file.ftype,
        "state": "left" if all(part.path in left for part in file.parts) else state,
        "n_bytes": file.n_bytes,
        "bpw": file.bpw,
        "parts": [{"path": str(part.path), "n_bytes": part.n_bytes} for part in file.parts],
        "types": types,
        "tensors": [asdict(tensor) for tensor in file.tensors],
    }
