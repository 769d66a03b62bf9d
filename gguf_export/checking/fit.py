"""Which file fits a graphics card: the bytes that llama.cpp takes for a model on a GPU and in RAM.

need = tensors on the GPU + keys and values of the text + a reserve. `scripts/check_fit` holds the figures against those
of llama.cpp's `llama-fit-params`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gguf_export.checking.inspect import ftype_name
from quantize.containers.gguf_parts import model_stem
from quantize.containers.untrusted import label
from quantize.exceptions import ChoiceError, GGUFError, RecipeError
from quantize.families import known_archs
from quantize.families.cache import N_UBATCH, CacheType, cache_bytes
from quantize.families.key_table import MAX_LAYERS
from quantize.families.placement import placement
from quantize.hparams import Hparams
from quantize.recipes.ftypes import ftype
from quantize.recipes.left_alone import converted_type
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.hub import local_path
from quantize.tensors import TensorSpec

__all__ = [
    "CONTEXTS",
    "LEVELS",
    "RAM",
    "RESERVE",
    "VRAM",
    "Choice",
    "Fit",
    "ModelNeeds",
    "Need",
    "fit",
    "which_file",
]

GIB = 2**30
VRAM = (8.0, 12.0, 16.0, 24.0)
"""Memory of usual graphics cards, GiB."""
CONTEXTS = (4096, 8192, 32768)
RAM = 32.0
"""GiB of main memory that the tensors may take that are not on the GPU."""
LEVELS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "Q3_K_S", "Q2_K")
"""The file types of which the sizes are computed for a checkpoint."""

RESERVE = 3 * GIB // 4
"""Bytes for the driver's context and for the results of a layer: an assumption, not a measurement."""


@dataclass(frozen=True)
class Need:
    """The bytes that a model takes with one context, for one conversation at a time."""

    n_ctx: int
    experts_in_ram: bool
    on_gpu: int
    """Tensors on the GPU."""
    ram: int
    """Tensors that stay in RAM."""
    cache: int
    """Keys and values, and states of recurrent layers."""
    reserve: int
    """`RESERVE`, the logits of the tokens that are computed at a time, and with `experts_in_ram` a copy of the largest
    stack of experts."""

    @property
    def gpu(self) -> int:
        """All bytes on the GPU."""
        return self.on_gpu + self.cache + self.reserve


@dataclass(frozen=True)
class ModelNeeds:
    """A file, or a file type of a checkpoint, and what it takes with each context: on the GPU, then with experts in RAM
    where there are experts. `n_bytes` are those of all tensors."""

    name: str
    ftype: str
    n_bytes: int
    needs: tuple[Need, ...]

    def need(self, n_ctx: int, *, experts_in_ram: bool = False) -> Need | None:
        """The need with one context; None where there are no experts that could be in RAM."""
        wanted = (n_ctx, experts_in_ram)
        return next((one for one in self.needs if (one.n_ctx, one.experts_in_ram) == wanted), None)


@dataclass(frozen=True)
class Choice:
    """The file for one card (`vram`, GiB) and one context; without `name` none fits."""

    vram: float
    n_ctx: int
    name: str | None = None
    need: Need | None = None


@dataclass(frozen=True)
class Fit:
    """What fits: the models, largest first, and the choice for each card and context."""

    models: tuple[ModelNeeds, ...]
    choices: tuple[Choice, ...]
    ram: float
    """GiB of RAM that the choices may take."""
    cache_type: CacheType
    n_ctx_train: int
    """Tokens for which the models were trained: the fewest, where they differ."""
    unknown: tuple[str, ...]
    """Architectures of which it is not known here which layers keep less than all keys and values."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it; each need with the sum `gpu`."""
        facts = asdict(self)
        for model, told in zip(self.models, facts["models"], strict=True):
            for need, figures in zip(model.needs, told["needs"], strict=True):
                figures["gpu"] = need.gpu
        for choice, told in zip(self.choices, facts["choices"], strict=True):
            if choice.need is not None:
                told["need"]["gpu"] = choice.need.gpu
        return facts


def fit(
    path: str | Path,
    vram: Sequence[float] = VRAM,
    contexts: Sequence[int] = CONTEXTS,
    *,
    ram: float = RAM,
    types: Sequence[str] = (),
    cache_type: CacheType = "f16",
) -> Fit:
    """Say what a model takes on a GPU, and which file is the largest that fits; no weight is read.

    Args:
        path: a GGUF file, a folder of GGUF files, or the folder of a checkpoint.
        vram: memory of the cards, GiB.
        contexts: tokens.
        ram: GiB of main memory that experts may take.
        types: file types of a checkpoint; by default `LEVELS`. Sizes are those with an importance matrix.
        cache_type: of keys and values.

    Raises:
        ChoiceError: there is nothing at that path, or no model in it, or its heads have no q8_0 keys.
        CheckpointError, GGUFError: it is damaged.
        RecipeError: no such file type, or file types of finished files.

    >>> fit(demo_model, vram=[1.0]).choices[0].name
    'Q8_0'
    """
    path = local_path(path)
    if not path.exists():
        raise ChoiceError(str(path), "does not exist")
    files = _gguf_files(path)
    if types and files:
        raise RecipeError(str(path), "file types are chosen for a checkpoint, finished files have theirs")
    found = _finished(path, files) if files else _levels(path, types or LEVELS)
    models = sorted(found, key=lambda model: -model.n_bytes)
    if not models:
        raise ChoiceError(str(path), "holds no GGUF file with a model")
    head_dims = {size for model in models for size in (model.hparams.head_dim, model.hparams.head_dim_v)}
    if cache_type == "q8_0" and any(size % 32 for size in head_dims):
        message = "q8_0 keys and values need heads of 32 dimensions, or a multiple of it"
        raise ChoiceError(str(path), message, "leave {setting} at f16", setting="cache_type")
    contexts = tuple(dict.fromkeys(contexts))
    needs = tuple(model.needs(contexts, cache_type) for model in models)
    return Fit(
        needs,
        which_file(needs, vram, contexts, ram=ram),
        ram,
        cache_type,
        min(model.hparams.n_ctx_train for model in models),
        tuple(sorted({model.hparams.arch for model in models} - set(known_archs()))),
    )


def which_file(
    models: Sequence[ModelNeeds],
    vram: Sequence[float] = VRAM,
    contexts: Sequence[int] = CONTEXTS,
    *,
    ram: float = RAM,
) -> tuple[Choice, ...]:
    """For each card and context the first model that fits on the GPU; else the first that does with experts in RAM.

    Args:
        models: the best one first, whatever makes it so.
        vram, contexts, ram: see `fit`.
    """
    return tuple(_choice(models, size, n_ctx, ram) for size in dict.fromkeys(vram) for n_ctx in contexts)


def _choice(models: Sequence[ModelNeeds], vram: float, n_ctx: int, ram: float) -> Choice:
    for experts_in_ram in (False, True):
        for model in models:
            need = model.need(n_ctx, experts_in_ram=experts_in_ram)
            if need is not None and need.gpu <= vram * GIB and (not experts_in_ram or need.ram <= ram * GIB):
                return Choice(vram, n_ctx, model.name, need)
    return Choice(vram, n_ctx)


@dataclass(frozen=True)
class _Model:
    """Hyper-parameters and tensors, which are all that the figures hang on."""

    name: str
    ftype: str
    hparams: Hparams
    specs: Sequence[TensorSpec]

    @property
    def n_bytes(self) -> int:
        return sum(spec.n_bytes for spec in self.specs)

    def needs(self, contexts: Sequence[int], cache_type: CacheType) -> ModelNeeds:
        placed = placement(self.hparams, self.specs)
        reserve = RESERVE + 4 * N_UBATCH * self.hparams.n_vocab
        caches = {n_ctx: cache_bytes(self.hparams, n_ctx, cache_type) for n_ctx in contexts}
        whole = [
            Need(n_ctx, False, placed.dense + placed.experts, placed.ram, cache, reserve)
            for n_ctx, cache in caches.items()
        ]
        reserve += placed.largest_stack
        apart = [
            Need(n_ctx, True, placed.dense, placed.ram + placed.experts, cache, reserve)
            for n_ctx, cache in caches.items()
        ]
        needs = whole + apart if placed.experts else whole
        return ModelNeeds(self.name, self.ftype, self.n_bytes, tuple(needs))


def _levels(path: Path, types: Iterable[str]) -> Iterator[_Model]:
    """File types of a checkpoint: the plans of the files, without their keys."""
    if not (path / "config.json").exists():
        raise ChoiceError(str(path), "holds neither a checkpoint (config.json) nor a GGUF file")
    checkpoint = open_checkpoint(path)
    specs, facts = checkpoint.specs(), RecipeFacts.of(checkpoint.hparams)
    left_as = partial(converted_type, arch=checkpoint.hparams.arch)
    for name in dict.fromkeys(ftype(name).name for name in types):
        recipe = Recipe(ftype(name))
        plan = make_plan(specs, facts, recipe, has_imatrix=True, left_as=left_as, keeps_blocks=True)
        yield _Model(name, name, checkpoint.hparams, [tensor.target for tensor in plan.tensors])


def _gguf_files(path: Path) -> list[Path]:
    """The file itself, or the GGUF files of a folder and of the folders in it; none where a checkpoint's shards lie."""
    if path.is_file():
        return [path]
    if any(path.glob("*.safetensors")):
        return []
    return sorted((*path.glob("*.gguf"), *path.glob("*/*.gguf")))


def _finished(path: Path, files: Iterable[Path]) -> Iterator[_Model]:
    """Finished files; in a folder, later parts and what is no model are passed over."""
    for one in files:
        file = GGUFFile(one, any_part=one != path)
        if one == path:
            file.refuse_empty()
        elif file.place or not file.tensors or file.keys.get("general.type", "model") != "model":
            continue
        if file.hparams.n_layer > MAX_LAYERS:
            message = (
                f"{file.arch}.block_count is {file.hparams.n_layer}, the loader takes at most {MAX_LAYERS}"
            )
            raise GGUFError(str(one), message)
        yield _Model(label(model_stem(one)), ftype_name(file.keys), file.hparams, file.specs())
