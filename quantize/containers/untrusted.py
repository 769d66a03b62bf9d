"""Reading what strangers wrote: JSON and YAML of bounded size, files in their folder, names that are safe to print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import yaml

from quantize.exceptions import CheckpointError, MoeGgufError

__all__ = [
    "CHAT_TEMPLATES",
    "F32_MAX",
    "MAX_JSON_BYTES",
    "exact_text",
    "file_name",
    "guarded",
    "label",
    "parse_json",
    "parse_yaml",
    "printable",
    "quoted",
    "read_bytes",
    "read_json",
    "refuse_foreign_links",
    "regular_size",
]

T = TypeVar("T")

MAX_JSON_BYTES = 100_000_000  # bytes; the limit of the safetensors library for a header
MAX_YAML_CHARS = 2**20
MAX_YAML_NODES = (
    50_000  # some seconds; a model card with the results of hundreds of benchmarks has some 10,000
)
MAX_FOLDER = 100_000  # entries
CHAT_TEMPLATES = "additional_chat_templates"
SUFFIXES = {".json", ".safetensors", ".model", ".jinja", ".txt", ".md"}  # of all that is read of a checkpoint
MAX_QUOTED = 160  # characters
F32_MAX = 3.4028234663852886e38  # larger numbers have no place in a GGUF file, nor, where whole, in a float


def quoted(text: object) -> str:
    """Text from a file, fit for a message of one line: names in quotes, control characters escaped, length cut."""
    if isinstance(text, (str, list, memoryview)):  # whatever its length, a message costs little
        text = text[: MAX_QUOTED + 1]
    if isinstance(text, memoryview):
        text = text.tolist()
    shown = ascii(text) if isinstance(text, str) else ascii(str(text))[1:-1]
    return shown if len(shown) <= MAX_QUOTED else f"{shown[:MAX_QUOTED]}..."


def exact_text(text: str) -> str:
    """The text that the bytes of a name or an argument spell in UTF-8, whatever the system's encoding is.

    Python holds bytes of the operating system that it could not decode as halves of surrogate pairs, which neither
    UTF-8 nor a GGUF file can hold.

    Raises:
        UnicodeError: the bytes spell none.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8")


def label(name: str | Path) -> str:
    r"""The name of a file, or any other name, as valid text: bytes that are no UTF-8 are escaped, as in `w\xff.txt`.

    Wherever a path becomes text that is stored or published, it goes through here. What is valid stays as it is.
    """
    text = str(name)
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a half that JSON or YAML spelled
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def file_name(name: str | Path) -> str:
    r"""The last part of a path as valid text, see `label`; also of `C:\dir\name`, wherever that was written.

    What is published says by what a file was made, and not in which folder of whose machine that lay.
    """
    foreign = PureWindowsPath(str(name))
    return label(foreign.name if foreign.drive else Path(name).name) or label(name)


def printable(text: str) -> str:
    """One line without anything that a terminal obeys; unprintable characters are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in label(text))


def regular_size(path: Path, error: type[MoeGgufError] = CheckpointError) -> int:
    """Size in bytes of a regular file (symbolic links are followed, as the cache of the Hugging Face hub needs it).

    Raises:
        error: there is no such file, or it is a folder, a pipe or a device, which could block or never end.
    """
    try:
        if not path.is_file():
            raise error(str(path), "not a regular file" if path.exists() else "file is missing")
        return path.stat().st_size
    except OSError as failure:  # a name that is too long, a loop of links, a folder that may not be entered
        raise error(str(path), failure.strerror or "cannot be read") from None


def read_bytes(path: Path, limit: int, error: type[MoeGgufError] = CheckpointError) -> bytes:
    """A whole file of at most `limit` bytes.

    Raises:
        error: the file is missing, unreadable, not a regular one, or larger.
    """
    size = regular_size(path, error)
    if size > limit:
        raise error(str(path), f"{size} bytes are too many for such a file, the limit is {limit}")
    try:
        with path.open("rb") as file:
            return file.read(size)  # never more: as much as is asked for is allocated at once
    except OSError as failure:
        raise error(str(path), f"cannot be read: {failure.strerror}") from None


def refuse_foreign_links(folder: Path) -> None:
    """Refuse a folder in which a symbolic link leads out of it: a stranger's link could put any file of yours into a
    model, and the model on the internet.

    The cache of the Hugging Face hub is let be: its files are links to `models--.../blobs/`, from its own snapshots
    and from folders into which it downloaded.

    Raises:
        CheckpointError: a file that is read leads elsewhere.
    """
    if not folder.is_dir():
        remedy = "give the folder of a Hugging Face checkpoint"
        raise CheckpointError(str(folder), "no such folder", remedy)
    try:
        home = folder.resolve()
        for path in _links(folder):
            target = path.resolve()
            in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
            if not target.is_relative_to(home) and not in_cache:
                raise CheckpointError(
                    str(path),
                    f"is a link to {target}, outside of the folder",
                    "refused: put the file itself there if you trust it",
                )
    except (OSError, RuntimeError) as failure:  # RuntimeError: a loop of links, before Python 3.13
        raise CheckpointError(str(folder), f"cannot be read: {_one_line(failure)}") from None


def _links(folder: Path) -> list[Path]:
    """The symbolic links among the files of a checkpoint, and in its folder of chat templates."""
    links = []
    for i, path in enumerate(folder.iterdir()):
        if i > MAX_FOLDER:
            message = f"more than {MAX_FOLDER} files"
            raise CheckpointError(str(folder), message, "is this a checkpoint?")
        if path.is_symlink():
            links.append(path)
        elif path.name == CHAT_TEMPLATES and path.is_dir():
            links += [inner for inner in path.iterdir() if inner.is_symlink()]
    return [path for path in links if path.name == CHAT_TEMPLATES or path.suffix in SUFFIXES]


def read_json(
    path: Path, error: type[MoeGgufError] = CheckpointError, unique: bool = False
) -> dict[str, Any]:
    """The JSON object that a file holds; `unique` refuses objects in which a key stands twice.

    Raises:
        error: the file is missing, unreadable, larger than `MAX_JSON_BYTES`, or holds no JSON object.
    """
    return parse_json(read_bytes(path, MAX_JSON_BYTES, error), str(path), error, unique)


def parse_json(content: bytes, where: str, error: type[MoeGgufError], unique: bool = False) -> dict[str, Any]:
    """The JSON object in `content`; `where` names its place in messages.

    Raises:
        error: it is not JSON (NaN and Infinity are not), not an object, nested without end, or has double keys.
    """
    try:
        text = content.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique_object if unique else None,
            parse_constant=_refuse_constant,
        )
        if "\\ud" in text or "\\uD" in text:
            # JSON can spell half of a surrogate pair, which neither UTF-8 nor GGUF can hold.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        message = "invalid content: half of a surrogate pair is no text"
        raise error(where, message, "repair it") from None
    except RecursionError:
        raise error(where, "invalid JSON: nested too deeply") from None
    except ValueError as failure:  # JSONDecodeError, UnicodeDecodeError, numbers of thousands of digits
        raise error(where, f"invalid JSON: {_one_line(failure)}") from None
    if not isinstance(value, dict):
        message = f"invalid content: a JSON object is expected, not {type(value).__name__}"
        raise error(where, message)
    return value


class _PlainLoader(yaml.SafeLoader):
    """YAML of texts, lists and fields, true, false and null: numbers and dates stay the text that they are written as.

    So nothing is computed, for which some numbers take minutes. References are refused, a few hundred bytes of which
    can unfold to gigabytes.
    """

    n_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) are not read here")
        self.n_nodes += 1
        if self.n_nodes > MAX_YAML_NODES:
            raise yaml.YAMLError(f"more than {MAX_YAML_NODES} entries")
        return super().compose_node(parent, index)


def _as_written(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_COMPUTED = [f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp", "merge", "value")]
_PlainLoader.yaml_implicit_resolvers = {
    char: [(tag, expression) for tag, expression in resolvers if tag not in _COMPUTED]
    for char, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag in _COMPUTED:  # they can be asked for by name, too
    _PlainLoader.add_constructor(_tag, _as_written)


def parse_yaml(text: str, where: str, error: type[MoeGgufError]) -> Any:
    """The plain data, never objects, of a YAML text, numbers and dates as text; `where` names its place in messages.

    Raises:
        error: the text is no YAML, holds references, is nested without end, or larger than a person writes.
    """
    if len(text) > MAX_YAML_CHARS:
        message = f"{len(text)} characters are too many for YAML, the limit is {MAX_YAML_CHARS}"
        raise error(where, message)
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError:
        raise error(where, "invalid YAML: nested too deeply") from None
    except Exception as failure:  # PyYAML fails on hostile scalars with whatever its constructors raise
        raise error(where, f"invalid YAML: {_one_line(failure)}") from None


def guarded(source: Path, call: Callable[[], T], fault: str, error: type[MoeGgufError]) -> T:
    """Turn whatever a native library makes of a stranger's file into one line."""
    try:
        return call()
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as failure:  # a panic of Rust is no Exception
        raise error(str(source), f"{fault}: {_one_line(failure)}", "fetch the file again") from None


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"key {quoted(key)} stands twice in one object")
        members[key] = value
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _one_line(failure: BaseException) -> str:
    return ascii(" ".join(str(failure).split())[:MAX_QUOTED].rstrip("."))[1:-1]
