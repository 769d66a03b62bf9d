"""The names that the packages offer: `__all__` is the truth, `dir()` shows it, each is there and documented."""

from __future__ import annotations

from importlib import import_module

import pytest

OFFERED = {
    "quantize": ["Guide", "decode", "encode"],
    "gguf_export": [
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
    ],
}


@pytest.mark.parametrize("package", OFFERED)
def test_what_is_offered_is_listed_shown_and_there(package: str) -> None:
    module = import_module(package)
    assert module.__all__ == dir(module) == OFFERED[package]
    for name in module.__all__:
        offered = getattr(module, name)
        assert offered.__name__ == name and offered.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018
