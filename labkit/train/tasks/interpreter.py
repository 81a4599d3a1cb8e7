"""Evaluate a Python expression that a model wrote, without ever running it as Python.

The text is parsed into a syntax tree, every node is checked against a short list, and this module walks the tree
itself: nothing in an expression can reach an attribute, an import or a name that is not in the tables of `language`.
Cost is counted, not timed: every node visited costs the size of its value. A refusal is therefore the same on every
machine, and comes within milliseconds.
"""

import ast
import warnings
from collections.abc import Callable, Iterator

from labkit.train.tasks import language
from labkit.train.tasks.language import ExpressionRefused, limit, size_of


def evaluate(source: str) -> object:
    """Return the value of `source`: an int, float, str, bool, None, list, tuple, set, dict or range.

    Raises ExpressionRefused for anything else, including the ordinary errors of evaluation (a division by zero, an
    index out of range), which are named in its message.
    """
    try:
        value = _Interpreter(_Budget(), {}).visit(_parse(source).body)
        if type(value) not in language.VALUES:
            raise ExpressionRefused(f"its value is of type {type(value).__name__}, which is not data")
    except (ValueError, TypeError, ArithmeticError, LookupError, SyntaxError, RecursionError, MemoryError) as error:
        shown = ascii(source if len(source) <= 60 else f"{source[:57]}...")[1:-1]
        raise ExpressionRefused(f"Cannot evaluate `{shown}`: {_reason(error):.120}.") from None
    return value


def same_value(predicted: str, expected: str) -> bool:
    """True if both evaluate to equal values of equal type, contents included (1, True and 1.0 all differ).

    A predicted expression that is refused is simply wrong: False. Raises ExpressionRefused if `expected` is refused.
    """
    value = _typed(evaluate(expected))
    try:
        return _typed(evaluate(predicted)) == value
    except ExpressionRefused:
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, ExpressionRefused):
        return str(error)
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"


def _typed(value: object) -> tuple:
    """A hashable stand-in that differs where a type differs: Python alone holds that 1 == True == 1.0."""
    if isinstance(value, dict):
        return dict, frozenset((_typed(key), _typed(item)) for key, item in value.items())
    if isinstance(value, set):
        return set, frozenset(map(_typed, value))
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_typed, value))
    return type(value), value


def _parse(source: str) -> ast.Expression:
    """The syntax tree of `source`, every node of it in the language."""
    limit(len(source), language.MAX_SOURCE_CHARACTERS, "characters")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # '\d' and `1if x else 2` warn
        tree = ast.parse(source.strip(), mode="eval")
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        limit(depth, language.MAX_NESTING, "levels of nesting")
        if type(node) not in NODES:
            raise ExpressionRefused(f"{type(node).__name__} is outside the language")
        method = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
        children = [method.value, *node.args, *node.keywords] if method else ast.iter_child_nodes(node)
        waiting += [(child, depth + 1) for child in children]
    return tree


class _Budget:
    """Operations left, shared by all scopes of one evaluation."""

    left = language.MAX_OPERATIONS

    def charge(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise ExpressionRefused(f"more than {language.MAX_OPERATIONS:,} operations")


class _Interpreter(ast.NodeVisitor):
    """Values of nodes in one scope. A comprehension's every turn is a new scope, so lazy generators keep theirs."""

    def __init__(self, budget: _Budget, scope: dict[str, object]):
        self.budget, self.scope = budget, scope

    def visit(self, node: ast.AST) -> object:
        value = super().visit(node)
        if isinstance(value, language.VIEWS):
            self.budget.charge(size_of(list(value)))
        elif type(value) not in language.VALUES and isinstance(value, Iterator):
            self.budget.charge(1)  # runs once over what was charged when it was made
        else:
            self.budget.charge(size_of(value))
        return value

    def generic_visit(self, node: ast.AST) -> None:
        raise ExpressionRefused(f"{type(node).__name__} is outside the language here")

    def visit_Constant(self, node: ast.Constant) -> object:
        return node.value

    def visit_Name(self, node: ast.Name) -> object:
        if node.id not in self.scope:
            raise ExpressionRefused(f"the name {node.id} has no value here")
        return self.scope[node.id]

    def visit_UnaryOp(self, node: ast.UnaryOp) -> object:
        return language.UNARY[type(node.op)](self.visit(node.operand))

    def visit_BinOp(self, node: ast.BinOp) -> object:
        return language.BINARY[type(node.op)](self.visit(node.left), self.visit(node.right))

    def visit_BoolOp(self, node: ast.BoolOp) -> object:
        for operand in node.values:
            value = self.visit(operand)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def visit_Compare(self, node: ast.Compare) -> object:
        left = self.visit(node.left)
        for comparison, operand in zip(node.ops, node.comparators, strict=True):
            right = self.visit(operand)
            result = language.COMPARE[type(comparison)](left, right)
            if not result:
                break
            left = right
        return result

    def visit_IfExp(self, node: ast.IfExp) -> object:
        return self.visit(node.body if self.visit(node.test) else node.orelse)

    def visit_List(self, node: ast.List) -> list:
        return [self.visit(item) for item in node.elts]

    def visit_Tuple(self, node: ast.Tuple) -> tuple:
        return tuple(self.visit(item) for item in node.elts)

    def visit_Set(self, node: ast.Set) -> set:
        return {self.visit(item) for item in node.elts}

    def visit_Dict(self, node: ast.Dict) -> dict:
        if None in node.keys:
            raise ExpressionRefused("** is outside the language in a dict")
        return {self.visit(key): self.visit(value) for key, value in zip(node.keys, node.values, strict=True)}

    def visit_Subscript(self, node: ast.Subscript) -> object:
        if not isinstance(node.slice, ast.Slice):
            return self.visit(node.value)[self.visit(node.slice)]
        bounds = (node.slice.lower, node.slice.upper, node.slice.step)
        return self.visit(node.value)[slice(*(bound and self.visit(bound) for bound in bounds))]

    def visit_Call(self, node: ast.Call) -> object:
        arguments = [self.visit(argument) for argument in node.args]
        options = {keyword.arg: self._option(keyword) for keyword in node.keywords}
        if not isinstance(node.func, ast.Attribute):
            return self._function(node.func)(*arguments, **options)
        owner, name = self.visit(node.func.value), node.func.attr
        if name not in language.METHODS.get(type(owner), {}):
            raise ExpressionRefused(f"{type(owner).__name__}.{name} is outside the language")
        return language.METHODS[type(owner)][name](owner, *arguments, **options)

    def _function(self, node: ast.expr) -> Callable:
        if not isinstance(node, ast.Name) or node.id in self.scope or node.id not in language.FUNCTIONS:
            raise ExpressionRefused(f"{ast.unparse(node)} is not a function of the language")
        return language.FUNCTIONS[node.id]

    def _option(self, keyword: ast.keyword) -> object:
        if keyword.arg is None:
            raise ExpressionRefused("** is outside the language in a call")
        is_function = keyword.arg == "key" and isinstance(keyword.value, ast.Name)
        return self._function(keyword.value) if is_function else self.visit(keyword.value)

    def _turns(self, loops: list[ast.comprehension]) -> Iterator["_Interpreter"]:
        """The scopes of a comprehension's innermost turns."""
        if not loops:
            yield self
            return
        if loops[0].is_async:
            raise ExpressionRefused("async is outside the language")
        for item in self.visit(loops[0].iter):
            inner = _Interpreter(self.budget, self.scope | _bind(loops[0].target, item))
            if all(inner.visit(condition) for condition in loops[0].ifs):
                yield from inner._turns(loops[1:])

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> Iterator:
        return (inner.visit(node.elt) for inner in self._turns(node.generators))

    def visit_ListComp(self, node: ast.ListComp) -> list:
        return [inner.visit(node.elt) for inner in self._turns(node.generators)]

    def visit_SetComp(self, node: ast.SetComp) -> set:
        return {inner.visit(node.elt) for inner in self._turns(node.generators)}

    def visit_DictComp(self, node: ast.DictComp) -> dict:
        return {inner.visit(node.key): inner.visit(node.value) for inner in self._turns(node.generators)}


def _bind(target: ast.expr, item: object) -> dict[str, object]:
    """Names and values of one assignment; a tuple of targets unpacks."""
    if isinstance(target, ast.Name):
        return {target.id: item}
    if not isinstance(target, ast.Tuple):
        raise ExpressionRefused("a loop assigns only to names")
    pairs = zip(target.elts, item, strict=True)
    return {name: value for part, inner in pairs for name, value in _bind(part, inner).items()}


NODES = {getattr(ast, name.removeprefix("visit_")) for name in vars(_Interpreter) if name.startswith("visit_")}
NODES |= {*language.BINARY, *language.UNARY, *language.COMPARE, ast.And, ast.Or}
NODES |= {ast.Expression, ast.comprehension, ast.keyword, ast.Slice, ast.Load, ast.Store}
