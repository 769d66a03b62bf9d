"""Top floor: blocks become a file, and people are spoken to.

Offered are the verbs of the command line as functions, and the settings that they take; other names may change without
a word in the changelog. Types are strings; results are frozen objects with the figures that the command line prints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantize.offering import offered

if TYPE_CHECKING:
    from calibration.forward.settings import ForwardSettings
    from calibration.judging.encoding_errors import ErrorSettings
    from calibration.text.text_settings import TextSettings
    from gguf_export.checking.doctor import doctor
    from gguf_export.checking.fit import fit
    from gguf_export.checking.inspect import inspect
    from gguf_export.checking.verify import verify
    from gguf_export.comparing.errors import errors
    from gguf_export.comparing.models import ModelChoice
    from gguf_export.comparing.run import PassSettings, compare
    from gguf_export.comparing.texts import TextChoice
    from gguf_export.planning.plan_types import plan_types
    from gguf_export.publishing.upload import upload_release
    from gguf_export.releasing.release import release
    from gguf_export.releasing.settings import ReleaseSettings
    from gguf_export.writing.calibrate import calibrate
    from gguf_export.writing.export import export, plan
    from gguf_export.writing.importances import merge_imatrices

__all__ = [
    "ErrorSettings",
    "ForwardSettings",
    "ModelChoice",
    "PassSettings",
    "ReleaseSettings",
    "TextChoice",
    "TextSettings",
    "calibrate",
    "compare",
    "doctor",
    "errors",
    "export",
    "fit",
    "inspect",
    "merge_imatrices",
    "plan",
    "plan_types",
    "release",
    "upload_release",
    "verify",
]

_MODULES = {
    "ErrorSettings": "calibration.judging.encoding_errors",
    "ForwardSettings": "calibration.forward.settings",
    "ModelChoice": "gguf_export.comparing.models",
    "PassSettings": "gguf_export.comparing.run",
    "ReleaseSettings": "gguf_export.releasing.settings",
    "TextChoice": "gguf_export.comparing.texts",
    "TextSettings": "calibration.text.text_settings",
    "calibrate": "gguf_export.writing.calibrate",
    "compare": "gguf_export.comparing.run",
    "doctor": "gguf_export.checking.doctor",
    "errors": "gguf_export.comparing.errors",
    "export": "gguf_export.writing.export",
    "fit": "gguf_export.checking.fit",
    "inspect": "gguf_export.checking.inspect",
    "merge_imatrices": "gguf_export.writing.importances",
    "plan": "gguf_export.writing.export",
    "plan_types": "gguf_export.planning.plan_types",
    "release": "gguf_export.releasing.release",
    "upload_release": "gguf_export.publishing.upload",
    "verify": "gguf_export.checking.verify",
}


def __getattr__(name: str) -> Any:
    return offered(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
