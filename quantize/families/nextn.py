"""Layers that predict further tokens (MTP), where a checkpoint stores them apart from the others.

llama.cpp's converter makes them layers behind the last one, as many as are stored (conversion/qwen.py: _QwenMtpMixin).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantize.containers.shard_index import ShardTensor
from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.key_table import MAX_LAYERS
from quantize.families.keys import whole_number

__all__ = ["StoredApart"]

NUMBERED = re.compile(r"(0|[1-9][0-9]{0,2})\.")


@dataclass(frozen=True)
class StoredApart:
    """The names of such layers.

    `layers` stands before the number of a layer and the names that any layer has. `others` are beginnings of names of
    the first one, and what stands there in a layer of the model. `setting` is the one of config.json that counts them.
    """

    setting: str
    layers: str
    others: Mapping[str, str]

    def as_layers(
        self, stored: Mapping[str, ShardTensor], config: Mapping[str, Any]
    ) -> tuple[dict[str, ShardTensor], dict[str, Any]]:
        """The tensors under names of layers behind the last one, and a config.json that counts these layers.

        Args:
            stored: all tensors, by their plain names.
            config: a complete config.json; where nothing is stored, its number is taken for none, as llama.cpp cannot
                load a file that lacks such a layer.

        Raises:
            CheckpointError: two stored tensors would have one name; config.json has another number of layers.
        """
        n_layer = whole_number(config, "num_hidden_layers", 1, MAX_LAYERS)
        found: dict[str, ShardTensor] = {}
        n_nextn = 0
        for name, tensor in stored.items():
            place = self._place(name.removeprefix("model."))
            plain = name
            if place is not None:
                nid, rest = place
                plain, n_nextn = f"model.layers.{n_layer + nid}.{rest}", max(n_nextn, nid + 1)
            if plain in found:
                message = f"tensors {quoted(found[plain].name)} and {quoted(tensor.name)} would both be {quoted(plain)}"
                remedy = "remove the one that does not belong to the model"
                raise CheckpointError(str(tensor.path), message, remedy)
            found[plain] = tensor
        stated = config.get(self.setting)
        if n_nextn and stated and stated != n_nextn:
            message = f"{self.setting} is {quoted(stated)}, but {n_nextn} such layers are stored"
            raise CheckpointError("config.json", message)
        return found, {**config, self.setting: n_nextn}

    def _place(self, name: str) -> tuple[int, str] | None:
        """Which one of these layers a stored name belongs to, and its name there; None for any other name."""
        if name.startswith(self.layers):
            rest = name.removeprefix(self.layers)
            number = NUMBERED.match(rest)
            if number is None or int(number[1]) >= MAX_LAYERS:
                return None
            return int(number[1]), rest[number.end() :]
        for beginning, inside in self.others.items():
            if name.startswith(beginning):
                return 0, inside + name.removeprefix(beginning)
        return None
