"""What a source text says of a name: whether its value is taken from one epoch into the next, and matters.

A counter that begins anew after a pause does harm where the code decides by it, or reports it. One that is
only printed, or set anew in each epoch, does none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

REPORT, EPOCHS = "report", "epochs"
"""The methods of a run: what a report is given decides, and the loop over the epochs is where values last."""


def deciding(source: str) -> frozenset[str]:
    """Return the names of variables and attributes by which a source text decides, or which it reports.

    Names that an assignment makes such a name of are among them; those of which only a remainder is tested,
    as in `step % 100 == 0`, are not: such a test says when to print.

    Args:
        source: of a function, a class or a module; an empty set is returned if it is none.
    """
    tree = _parsed(source)
    found = {name for node in ast.walk(tree) for test in _tests(node) for name in _names(test)}
    while (
        more := {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr)
            and node.value is not None
            and not found.isdisjoint(_targets(node))
            for name in _names(node.value)
        }
        - found
    ):
        found |= more
    return frozenset(found)


def carried(source: str) -> frozenset[str] | None:
    """Return the variables that the loop over the epochs reads before it sets them.

    Args:
        source: of a function.

    Returns:
        Their names; None where no such loop is found.
    """
    for node in ast.walk(_parsed(source)):
        if isinstance(node, ast.For) and _calls(node.iter, EPOCHS):
            reader = _ReadFirst()
            for statement in node.body:
                reader.visit(statement)
            return frozenset(reader.first)
    return None


def _parsed(source: str) -> ast.AST:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _calls(node: ast.AST, name: str) -> bool:
    """Return whether a method of a name is called somewhere in an expression."""
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute) and one.func.attr == name
        for one in ast.walk(node)
    )


def _tests(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node decides by, or reports."""
    if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
        yield node.test
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == REPORT:
        yield from node.args
        yield from (one.value for one in node.keywords)


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the variables and attributes in an expression, but for those of which a remainder is taken."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    for child in ast.iter_child_nodes(node):
        yield from _names(child)


def _targets(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]  # type: ignore[attr-defined]
    return {name for target in targets for name in _names(target)}


class _ReadFirst(ast.NodeVisitor):
    """Visits statements in the order in which they run; notes which names are read before they are set."""

    def __init__(self) -> None:
        self.first: set[str] = set()
        self._set: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        """Note a name that is read, or set."""
        if isinstance(node.ctx, ast.Load):
            if node.id not in self._set:
                self.first.add(node.id)
        else:
            self._set.add(node.id)

    def visit_Assign(self, node: ast.Assign) -> None:
        """The value comes first."""
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The value comes first."""
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """What is added to is read."""
        self.visit(node.value)
        if isinstance(node.target, ast.Name) and node.target.id not in self._set:
            self.first.add(node.target.id)
        self.generic_visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        """What is looped over comes first."""
        self.visit(node.iter)
        self.visit(node.target)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_If(self, node: ast.If) -> None:
        """What only one of two branches sets may not be set behind them."""
        self.visit(node.test)
        before = set(self._set)
        for statement in node.body:
            self.visit(statement)
        one, self._set = self._set, before
        for statement in node.orelse:
            self.visit(statement)
        self._set &= one
