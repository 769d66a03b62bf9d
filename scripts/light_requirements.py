"""Print, line by line, the packages that the tests without torch need: those of the project but for torch and Ray."""

from __future__ import annotations

import re
from importlib.metadata import requires

LEFT_OUT = ("torch", "transformers", "ray")


def main() -> None:
    """Print the requirements of the installed project and of its tests."""
    for requirement in requires("moe-gguf") or []:
        package, _, marker = requirement.partition(";")
        name = re.match(r"[\w.-]+", package)
        if name and name[0] not in LEFT_OUT and marker.strip() in ("", 'extra == "test"'):
            print(package.strip())


if __name__ == "__main__":
    main()
