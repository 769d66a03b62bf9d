"""Types that were chosen, read back: the list that llama-quantize takes, too, or the JSON that also says how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_export.metadata.type_keys import FISHER, LISTED, type_keys
from gguf_export.planning.mixtures import nearest_ftype
from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import quoted, read_json
from quantize.exceptions import RecipeError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.recipes.tensor_types import anchored, parse_qtype, read_tensor_types
from quantize.sources.model_source import ModelFile
from quantize.tensors import QType

__all__ = ["TypesFile", "read_types"]


@dataclass(frozen=True)
class TypesFile:
    """The types of a file, as `Recipe` takes them, and what is stated of how they were chosen."""

    tensor_types: tuple[tuple[str, QType], ...]
    stated: tuple[KeyValue, ...]

    def recipe(self, source: ModelFile, ftype_name: str | None = None) -> Recipe:
        """The recipe of a file of these types.

        Args:
            source: the model.
            ftype_name: the file type that gives the file its name and number, and what the list leaves open its
                types; by default the mixture nearest in size.
        """
        known = ftype(ftype_name) if ftype_name else nearest_ftype(source, self.tensor_types)
        return Recipe(known, tensor_types=self.tensor_types, stated=self.stated)


def read_types(path: Path) -> TypesFile:
    """Read a list of tensor types: of `PATTERN=TYPE`, or as JSON where the name ends in .json.

    Raises:
        RecipeError: the file cannot be read, or holds something else.
    """
    if path.suffix.lower() != ".json":
        return TypesFile(read_tensor_types(path), type_keys(LISTED))
    content = read_json(path, RecipeError)
    types, n_token, predicted = (content.get(key) for key in ("types", "n_token", "chosen"))
    if not isinstance(types, dict) or not all(isinstance(qtype, str) for qtype in types.values()):
        raise RecipeError(str(path), "holds no types of tensors", "give the JSON of a plan of types")
    try:
        qtypes = {name: parse_qtype(qtype) for name, qtype in types.items()}
    except RecipeError as error:
        raise RecipeError(str(path), error.message, error.remedy) from error
    kld = predicted.get("predicted_kld") if isinstance(predicted, dict) else None
    return TypesFile(anchored(qtypes), type_keys(FISHER, _count(path, n_token), _nats(path, kld)))


def _count(path: Path, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**32:
        raise RecipeError(str(path), f"n_token is {quoted(value)}, a number of tokens is expected")
    return value


def _nats(path: Path, value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < 1e6:
        raise RecipeError(str(path), f"predicted_kld is {quoted(value)}, a KL divergence is expected")
    return float(value)
