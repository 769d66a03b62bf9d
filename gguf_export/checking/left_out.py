"""A file of which layers were left out, seen in the numbers that its source gives to layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from quantize.recipes.pruning import renumbered
from quantize.recipes.recipe import file_order
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelFile

__all__ = ["InNumbersOf", "in_numbers_of", "n_layers"]


class InNumbersOf(GGUFFile):
    """A file whose tensors have other names, and some keys other values; its bytes are those of the file."""

    def __init__(self, file: GGUFFile, names: Mapping[str, str], keys: Mapping[str, Any]) -> None:
        """Take over what `file` knows.

        Args:
            file: the file as it is.
            names: the names to be shown, by those in the file; others stay.
            keys: values to be shown.
        """
        vars(self).update(vars(file))
        self._shown = file, names, keys
        self.keys = {**file.keys, **keys}
        self.tensors = {}
        for name, stored in file.tensors.items():
            shown = names.get(name, name)
            self.tensors[shown] = replace(stored, spec=replace(stored.spec, name=shown))

    def __reduce__(self) -> Any:
        return InNumbersOf, self._shown


def n_layers(source: ModelFile) -> tuple[str, int | None]:
    """The key that tells how many layers a model has, and what it says; None where it says no number."""
    if source.kind == "gguf":
        key = f"{source.keys.get('general.architecture')}.block_count"
        value = source.keys.get(key)
    else:
        key = f"{source.arch}.block_count"
        value = source.hparams.n_layer
    return key, value if type(value) is int else None


def in_numbers_of(
    file: GGUFFile, source: ModelFile, prune: Collection[int]
) -> tuple[GGUFFile, frozenset[str]]:
    """The file in the numbers of its source, and the names of the source's tensors that were left out.

    Args:
        file: what was made.
        source: what it was made from.
        prune: the layers that were left out.

    Raises:
        RecipeError: no file can be without just these layers.
    """
    names = [spec.name for spec in file_order(source.specs())]
    kept, n_left = renumbered(names, prune)
    shown = {new: old for old, new in kept.items()}
    key, n_source = n_layers(source)
    # A count that is wrong even so stays what it is, for its key is compared.
    keys = {key: n_source} if file.keys.get(key) == n_left else {}
    return InNumbersOf(file, shown, keys), frozenset(names) - kept.keys()
