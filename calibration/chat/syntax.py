"""The syntax that llama.cpp's engine lacks, and the operators that it computes in its own way.

Jinja's own parser reads a template; what llama.cpp's lexer or parser refuses (common/jinja/lexer.cpp, parser.cpp) is
found in the result. Operators become filters, so that `operators.py` computes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jinja2 import Environment, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from calibration.chat.faults import UnknownNameError

__all__ = ["Generation", "Rewritten", "operator_filter", "refuse_unknown"]

_ESCAPE = re.compile(r"\\(.)", re.S)
_ESCAPES = frozenset("ntrbfv\\'\"")  # all that llama.cpp's lexer knows
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")

_NODES: dict[type[nodes.Node], str] = {
    nodes.With: "{% with %}",
    nodes.Block: "{% block %}",
    nodes.Extends: "{% extends %}",
    nodes.Include: "{% include %}",
    nodes.Import: "{% import %}",
    nodes.FromImport: "{% from %}",
    nodes.ScopedEvalContextModifier: "{% autoescape %}",
    nodes.ExprStmt: "{% do %}",
    nodes.FloorDiv: "the operator //",
    nodes.Pow: "the operator **",
}


class Generation(Extension):
    """`{% generation %}`, which transformers uses to mark what an assistant says; llama.cpp passes over the tag."""

    tags = {"generation", "endgeneration"}  # noqa: RUF012 - jinja2's own way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Make nothing of the tag."""
        next(parser.stream)
        return []


def _first_unknown(environment: Environment, source: str, tree: nodes.Template) -> tuple[int, str] | None:
    """The line and name of the first piece of syntax that llama.cpp's parser refuses."""
    return next(iter(sorted([*_in_tokens(environment, source), *_in_tree(tree)])), None)


def _in_tokens(environment: Environment, source: str) -> Iterator[tuple[int, str]]:
    for line, kind, text in environment.lex(source):
        if kind == "raw_begin":
            yield line, "{% raw %}"
        elif kind == "string":
            for escape in _ESCAPE.finditer(text[1:-1]):
                if escape[1] not in _ESCAPES:
                    yield line, f"the escape {escape[0]!a} in a text"
        elif kind in ("integer", "float") and not _NUMBER.fullmatch(text):
            yield line, f"the number {text}"
        elif kind in ("block_begin", "variable_begin") and text.endswith("+"):
            yield line, f"the sign {text}"


def _in_tree(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    for kind, name in _NODES.items():
        yield from ((node.lineno, name) for node in tree.find_all(kind))
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            yield loop.lineno, "a recursive loop"
    for block in tree.find_all(nodes.AssignBlock):
        if block.filter is not None:
            yield block.lineno, "{% set %} with a filter"
    for call in tree.find_all(nodes.Call):
        if call.dyn_args is not None or call.dyn_kwargs is not None:
            yield call.lineno, "an argument with *"


def operator_filter(name: str) -> str:
    """The name of the filter that an operator becomes; no template can spell it."""
    return f"operator {name}"


class Rewritten(NodeTransformer):
    """A template whose operators, slices and loops are filters."""

    def __init__(self) -> None:
        self.filters: set[str] = set()
        self.tests: set[str] = set()

    def _filter(self, name: str, node: nodes.Expr, *given: nodes.Expr) -> nodes.Filter:
        made = nodes.Filter(node, name, list(given), [], None, None)
        made.set_lineno(node.lineno)
        return made

    def visit_binary(self, node: nodes.BinExpr) -> nodes.Node:
        """`left + right` and its like."""
        self.generic_visit(node)
        return self._filter(operator_filter(type(node).__name__.lower()), node.left, node.right)

    visit_Add = visit_Sub = visit_Mul = visit_Div = visit_Mod = visit_binary  # noqa: N815 - jinja2's names

    def visit_sign(self, node: nodes.UnaryExpr) -> nodes.Node:
        """`-value` and `+value`."""
        self.generic_visit(node)
        return self._filter(operator_filter(type(node).__name__.lower()), node.node)

    visit_Neg = visit_Pos = visit_sign  # noqa: N815 - jinja2's names

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """`a ~ b ~ c`."""
        self.generic_visit(node)
        made: nodes.Expr = node.nodes[0]
        for part in node.nodes[1:]:
            made = self._filter(operator_filter("concat"), made, part)
        return made

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """`a < b`, `a in b`; a chain is taken from the left."""
        self.generic_visit(node)
        made = node.expr
        for operand in node.ops:
            made = self._filter(operator_filter(operand.op), made, operand.expr)
        return made

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """`value[start:stop:step]`."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        nothing = nodes.Const(None)
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return self._filter(operator_filter("slice"), node.node, *(bound or nothing for bound in bounds))

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        """`for a, b in values`."""
        self.generic_visit(node)
        n_target = len(node.target.items) if isinstance(node.target, nodes.Tuple) else 1
        values: Any = node.iter
        node.iter = self._filter(operator_filter("items"), values, nodes.Const(n_target))
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        """`value | name`."""
        self.generic_visit(node)
        self.filters.add(node.name)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        """`value is name`."""
        self.generic_visit(node)
        self.tests.add(node.name)
        return node


def refuse_unknown(environment: Environment, source: str, tree: nodes.Template) -> None:
    """Refuse syntax that llama.cpp's parser does not know.

    Raises:
        UnknownNameError: there is some; the message names the line.
    """
    found = _first_unknown(environment, source, tree)
    if found is not None:
        raise UnknownNameError(f"line {found[0]}: {found[1]}, which llama.cpp does not know")
