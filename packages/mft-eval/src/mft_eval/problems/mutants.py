"""Small changes to a right program, most of which make it wrong."""

import ast
import copy
import random
from collections.abc import Iterator

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}


def mutants(source: str, entry_point: str, seed: int = 0) -> Iterator[str]:
    """Programs that differ from `source` in one place of a function or class of its own, in an order by `seed`.

    The places are comparisons, operators, `and` and `or`, integers, conditions and returned values; first those in
    `entry_point`.
    """
    tree = ast.parse(source)
    order = random.Random(seed)
    places = [(owner, place) for owner in _definitions(tree) for place in range(_num_places(owner))]
    order.shuffle(places)
    places.sort(key=lambda item: getattr(item[0], "name", "") != entry_point)
    definitions = _definitions(tree)
    for owner, place in places:
        changed = copy.deepcopy(tree)
        mutator = _Mutator(place)
        mutator.visit(_definitions(changed)[definitions.index(owner)])
        yield ast.unparse(ast.fix_missing_locations(changed))


def _definitions(tree: ast.Module) -> list[ast.stmt]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in tree.body if isinstance(node, kinds)]


def _num_places(definition: ast.stmt) -> int:
    counter = _Mutator(-1)
    counter.visit(copy.deepcopy(definition))
    return counter.num_places


class _Mutator(ast.NodeTransformer):
    """Changes the place of the given number, in the order in which the tree is walked; -1 changes none."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.num_places = 0

    def _is_here(self) -> bool:
        self.num_places += 1
        return self.num_places - 1 == self.place

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if type(node.ops[0]) in _COMPARISONS and self._is_here():
            node.ops[0] = _COMPARISONS[type(node.ops[0])]()
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if type(node.op) in _OPERATORS and self._is_here():
            node.op = _OPERATORS[type(node.op)]()
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        if self._is_here():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if type(node.value) is int and self._is_here():
            return ast.Constant(node.value + 1)
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if self._is_here():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        if node.value is not None and self._is_here():
            node.value = ast.Constant(None)
        return node
