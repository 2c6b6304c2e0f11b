"""Which branches of a function are taken: both outcomes of each condition and loop, and the entry of each function."""

from __future__ import annotations

import ast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType
    from typing import Any

Branch = tuple[int, bool]
_CONDITION, _LOOP = "__condition__", "__loop__"


class Branches:
    """The branches of one program, and which of them have been taken."""

    def __init__(self, source: str) -> None:
        marker = _Marker()
        tree = ast.fix_missing_locations(marker.visit(ast.parse(source)))
        self.code: CodeType = compile(tree, "<implementation>", "exec")
        self.num_branches = 2 * marker.num_forks + marker.num_entries
        self.taken: set[Branch] = set()

    def run(self, names: dict[str, Any]) -> None:
        """Defines the program in the namespace `names`."""
        names[_CONDITION], names[_LOOP] = self._condition, self._loop
        exec(self.code, names)  # noqa: S102

    def coverage(self) -> float:
        """The share of branches that have been taken, from 0 to 1."""
        return len(self.taken) / self.num_branches if self.num_branches else 0.0

    def _condition(self, number: int, value: Any) -> bool:
        is_true = bool(value)
        self.taken.add((number, is_true))
        return is_true

    def _loop(self, number: int, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.taken.add((number, True))
            yield item
        self.taken.add((number, False))


class _Marker(ast.NodeTransformer):
    def __init__(self) -> None:
        self.num_forks = 0
        self.num_entries = 0

    def _number(self) -> ast.Constant:
        return ast.Constant(self.num_forks + self.num_entries)

    def _forked(self, function: str, value: ast.expr) -> ast.expr:
        number = self._number()
        self.num_forks += 1
        return ast.Call(ast.Name(function, ast.Load()), [number, value], [])

    def _with_condition(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        node.test = self._forked(_CONDITION, node.test)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        return self._with_condition(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._with_condition(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        return self._with_condition(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        node.iter = self._forked(_LOOP, node.iter)
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        node.ifs = [self._forked(_CONDITION, condition) for condition in node.ifs]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        call = ast.Call(ast.Name(_CONDITION, ast.Load()), [self._number(), ast.Constant(value=True)], [])
        self.num_entries += 1
        node.body.insert(1 if ast.get_docstring(node) is not None else 0, ast.Expr(call))
        return node
