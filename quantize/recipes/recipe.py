"""Rules become one type per tensor: the plan of a file, complete before a weight is read.

A plan equals what `convert_hf_to_gguf.py` (to the checkpoint's own float type) followed by `llama-quantize`
makes of a checkpoint: types, order and offsets. Decisions where the two-step route leaves a choice:

* A tensor that is quantized is encoded from its original values, whatever their float type; llama.cpp's route
  would round an F32 checkpoint to F16 first. BF16 and F16 checkpoints give the same bytes on both routes.
* A tensor that is left alone has the type that the converter gives it (`converted_type`): BF16 in a BF16 checkpoint.
  In a GGUF it keeps its type, which a converter has given it.
* The file types F32, F16 and BF16 are llama-quantize's: all that may be quantized is converted, nothing else. MXFP4
  matrices of a checkpoint stay, as in what the converter makes of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import printable
from quantize.exceptions import NeedsImatrixError, RecipeError
from quantize.recipes.facts import RecipeFacts
from quantize.recipes.ftypes import COPY, FALLBACKS, NEED_IMATRIX, NEED_IMPORTANCE, Ftype, is_70b
from quantize.recipes.layout import Plan, PlannedTensor, padded
from quantize.recipes.left_alone import FLOATS, allows_quantization, converted_type
from quantize.recipes.pruning import renumbered
from quantize.recipes.rules import Category, TensorContext, category
from quantize.recipes.tensor_types import compiled, parse_qtype
from quantize.tensors import QType, TensorSpec

__all__ = [
    "Plan",
    "PlannedTensor",
    "Recipe",
    "RecipeFacts",
    "candidates_for",
    "fallback",
    "file_order",
    "make_plan",
    "needs_importances",
    "require_importances",
]

_FFN = (Category.FFN_UP, Category.FFN_GATE, Category.FFN_DOWN)
LARGEST_WITHOUT_FALLBACK = 32  # weights of a block; of larger ones llama-quantize must know the substitute
_GLM5_NEXT_Q8_0 = ("attn_q_a", "attn_q_b", "nextn.eh_proj")


@dataclass(frozen=True)
class Recipe:
    """The rules of one file, each with the name and the meaning of llama-quantize's option.

    `tensor_types` are pairs (regular expression, type); the first expression that is found anywhere in a name
    decides, in place of the file type's mix. Expressions are lower-cased, as llama-quantize does. They are
    Python's, where llama-quantize takes ECMAScript's; the usual expressions for tensor names mean the same in both.
    Bracket classes such as `[[:digit:]]` are refused here, look-behind and inline flags there.

    `stated` are keys with which the file says how its types were chosen; llama-quantize has no such thing.

    Raises:
        RecipeError: an expression is malformed, or a type cannot be written.
    """

    ftype: Ftype
    tensor_types: tuple[tuple[str, QType], ...] = ()
    output_tensor_type: QType | None = None
    token_embedding_type: QType | None = None
    pure: bool = False  # every tensor takes the default type, none a rule's
    leave_output_tensor: bool = False  # output.weight keeps the type it is stored in
    stated: tuple[KeyValue, ...] = ()

    def __post_init__(self) -> None:
        demanded = [
            self.output_tensor_type,
            self.token_embedding_type,
            *(qtype for _, qtype in self.tensor_types),
        ]
        for qtype in demanded:
            if qtype is not None:
                parse_qtype(qtype.name)
        _ = self.patterns

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """The compiled expressions of `tensor_types`."""
        return tuple(compiled(pattern) for pattern, _qtype in self.tensor_types)


def make_plan(
    specs: Sequence[TensorSpec],
    facts: RecipeFacts,
    recipe: Recipe,
    has_imatrix: bool,
    *,
    left_as: Callable[[TensorSpec], QType] = converted_type,
    keeps_blocks: bool = False,
    prune_layers: Collection[int] = (),
    keeps_order: bool = False,
) -> Plan:
    """Decide every tensor of a file: `llama_tensor_get_type` for each, in the order of llama-quantize.

    Args:
        specs: the tensors of the source, of any rank and type, in any order, names unique.
        facts: of the model.
        recipe: the rules.
        has_imatrix: an importance matrix will be used; some rules depend on it. See `require_importances`.
        left_as: the type of a tensor that is not quantized; by default as from a checkpoint.
        keeps_blocks: the file types F32, F16 and BF16 leave quantized tensors as they are, as a converter does.
        prune_layers: layers that are left out; those behind them get new numbers, by which the rules go.
        keeps_order: the tensors stay in the order of `specs`, as llama-quantize --keep-split leaves them.

    Raises:
        RecipeError: a type that was demanded for the output or the token embedding does not fit its rows; a
            feed-forward tensor of a model with experts names no layer; two tensors would get the same name.
    """
    names, n_layer = renumbered([spec.name for spec in file_order(specs)], prune_layers)
    kept = [spec for spec in (specs if keeps_order else file_order(specs)) if spec.name in names]
    told = [replace(spec, name=names[spec.name]) for spec in kept]
    chooser = _Chooser(told, facts, recipe, has_imatrix, left_as, keeps_blocks)
    tensors: list[PlannedTensor] = []
    offset = 0
    for source, spec in zip(kept, told, strict=True):
        qtype, intended = chooser.choose(spec)
        needs = chooser.may_change(spec) and needs_importances(spec, qtype, recipe.ftype.needs_imatrix)
        fallback_from = intended if intended != qtype else None
        new_name = None if spec.name == source.name else spec.name
        planned = PlannedTensor(source, qtype, offset, needs, fallback_from, new_name)
        tensors.append(planned)
        offset += padded(planned.n_bytes)
    return Plan(recipe.ftype, tuple(tensors), chooser.unmatched(), n_layer)


def file_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """The tensors in the order of a file: by layer, then bytewise by name."""
    return sorted(specs, key=lambda spec: (-1 if spec.bid is None else spec.bid, spec.name.encode()))


def require_importances(plan: Plan, has_importance: Callable[[str], bool]) -> None:
    """Refuse a plan with types that are of no use without importances, as llama-quantize does.

    Args:
        plan: of the file.
        has_importance: whether there are importances for the tensor of a name.

    Raises:
        NeedsImatrixError: a tensor needs importances and has none.
    """
    needing = [planned for planned in plan.tensors if planned.requires_imatrix]
    lacking = [planned for planned in needing if not has_importance(planned.spec.name)]
    if lacking:
        first, n_more = lacking[0], len(lacking) - 1
        others = f" nor for {n_more} more such {'tensors' if n_more > 1 else 'tensor'}" if n_more else ""
        made = f"{plan.ftype.name} makes it {first.qtype.name}, which needs importances"
        raise NeedsImatrixError(
            printable(first.name),
            f"{made}, and there are none for it{others}",
            f"give an importance matrix that covers {'them' if n_more else 'it'}, another file type or another "
            "{setting}",
            setting="tensor_type",
        )


def needs_importances(spec: TensorSpec, qtype: QType, needing: Collection[QType] = NEED_IMATRIX) -> bool:
    """Whether a tensor is not made of a type without importances.

    llama-quantize lets the output and the embedding be of any type, which ends in an abort of ggml for some.

    Args:
        spec: the tensor.
        qtype: the type.
        needing: types that no other tensor is made of without importances.
    """
    is_end = category(spec.name) in (Category.OUTPUT, Category.TOKEN_EMBD)
    return qtype in (NEED_IMPORTANCE if is_end else needing)


def candidates_for(spec: TensorSpec, qtypes: Iterable[QType], has_importance: bool) -> tuple[QType, ...]:
    """The types that a tensor can have: fallbacks where rows demand them, and none that lacks importances."""
    fitting = dict.fromkeys(fallback(spec, qtype) for qtype in qtypes)
    return tuple(qtype for qtype in fitting if has_importance or not needs_importances(spec, qtype))


class _Chooser:
    """Chooses types in file order and counts tensors per category, because some rules depend on that index
    (llama.cpp's `i_attention_wv`).
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        facts: RecipeFacts,
        recipe: Recipe,
        has_imatrix: bool,
        left_as: Callable[[TensorSpec], QType],
        keeps_blocks: bool,
    ) -> None:
        categories = Counter(category(spec.name) for spec in specs)
        self.n_attn_v = categories[Category.ATTN_V]
        self.tied = categories[Category.OUTPUT] == 0
        self.facts, self.recipe, self.has_imatrix = facts, recipe, has_imatrix
        self.left_as, self.keeps_blocks = left_as, keeps_blocks
        self.n_chosen = Counter[Category]()
        self.matched = set[int]()  # indices of patterns

    def may_change(self, spec: TensorSpec) -> bool:
        """Whether the recipe decides the type of a tensor."""
        is_left_output = self.recipe.leave_output_tensor and spec.name == "output.weight"
        is_left = self.recipe.ftype is COPY or is_left_output
        return not is_left and allows_quantization(spec, self.facts.arch)

    def choose(self, spec: TensorSpec) -> tuple[QType, QType]:
        """The type of the next tensor, and the type that was intended whatever the width of its rows."""
        recipe, kind = self.recipe, category(spec.name)
        if not self.may_change(spec):
            left = self.left_as(spec)
            return left, left
        if kind is Category.TOKEN_EMBD and recipe.token_embedding_type is not None:
            named = spec.name == "per_layer_token_embd.weight" and self._pattern(spec.name) is not None
            if not named:
                return _demanded(spec, recipe.token_embedding_type, "token embedding type")
        if kind is Category.OUTPUT and recipe.output_tensor_type is not None:
            return _demanded(spec, recipe.output_tensor_type, "output tensor type")
        if recipe.ftype.qtype in FLOATS:
            is_kept = self.keeps_blocks and spec.qtype not in FLOATS
            chosen = spec.qtype if is_kept else recipe.ftype.qtype
            return chosen, chosen
        index = self._pattern(spec.name)
        if index is not None:
            self.matched.add(index)
            intended = recipe.tensor_types[index][1]
        else:
            intended = recipe.ftype.qtype if recipe.pure else self._mixed(spec, kind)
        if intended not in FALLBACKS and intended.block_size > LARGEST_WITHOUT_FALLBACK:
            return _demanded(spec, intended, "type for it")
        return fallback(spec, intended), intended

    def unmatched(self) -> tuple[str, ...]:
        """The patterns that have decided no type so far."""
        return tuple(
            pattern for i, (pattern, _) in enumerate(self.recipe.tensor_types) if i not in self.matched
        )

    def _pattern(self, name: str) -> int | None:
        return next((i for i, pattern in enumerate(self.recipe.patterns) if pattern.search(name)), None)

    def _mixed(self, spec: TensorSpec, kind: Category) -> QType:
        """The file type's own choice (`llama_tensor_get_type_impl`)."""
        ftype, arch = self.recipe.ftype, self.facts.arch
        if arch == "glm5-next" and any(part in spec.name for part in _GLM5_NEXT_Q8_0):
            return QType.Q8_0
        if kind is Category.OUTPUT or (self.tied and kind is Category.TOKEN_EMBD):
            if self.recipe.output_tensor_type is not None:
                return self.recipe.output_tensor_type
            is_plain = arch != "falcon" and _fits(spec, ftype.qtype)
            return ftype.output if is_plain else QType.Q8_0
        qtype = ftype.choose(self._context(spec, kind))
        more = kind is Category.ATTN_V and ftype.knows_70b and is_70b(self.facts)
        if more and qtype in (QType.Q3_K, QType.Q4_K):
            return QType.Q5_K
        return qtype

    def _context(self, spec: TensorSpec, kind: Category) -> TensorContext:
        facts = self.facts
        i = nth = self.n_chosen[kind]
        self.n_chosen[kind] += 1
        if kind in _FFN and facts.n_expert > 1:
            if spec.bid is None or spec.bid >= facts.n_layer:
                message = f"names no layer of a model with {facts.n_layer} layers"
                raise RecipeError(printable(spec.name), message)
            i = spec.bid
        return TensorContext(
            category=kind,
            # The heads of bailingmoe3's attention are stacked, too.
            stacked=spec.n_matrix > 1 and (facts.arch != "bailingmoe3" or kind in _FFN),
            arch=facts.arch,
            nth=nth,
            i=i,
            n=self.n_attn_v if kind is Category.ATTN_V else facts.n_layer,
            n_gqa=facts.n_gqa,
            n_expert=facts.n_expert,
            has_imatrix=self.has_imatrix,
        )


def _fits(spec: TensorSpec, qtype: QType) -> bool:
    """Whether the blocks of a type divide the rows."""
    return spec.n_per_row % qtype.block_size == 0


def fallback(spec: TensorSpec, qtype: QType) -> QType:
    """The type itself, or its substitute where its blocks do not divide the rows (`tensor_type_fallback`)."""
    if _fits(spec, qtype):
        return qtype
    smaller = FALLBACKS.get(qtype, qtype)
    return smaller if _fits(spec, smaller) else QType.F16


def _demanded(spec: TensorSpec, qtype: QType, what: str) -> tuple[QType, QType]:
    """A type that llama-quantize seeks no fallback for; it dies where the type does not fit."""
    if not _fits(spec, qtype):
        blocks = f"the {qtype.block_size}-weight blocks of {qtype.name}"
        message = f"rows of {spec.n_per_row} weights do not divide into {blocks}"
        raise RecipeError(printable(spec.name), message, f"choose another {what}")
    return qtype, qtype
