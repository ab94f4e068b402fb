"""Conditions on the columns of a table, as in --keep 'c < 20 and alpha > 0.7'.

An expression is checked before pandas evaluates it: it names columns and holds numbers, texts,
lists of these, comparisons, `in`, `is None`, and, or, not, and arithmetic. Nothing is called.
"""

import ast
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

ALLOWED = (
    ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.UAdd, ast.BinOp, ast.Add,
    ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Compare, ast.Lt, ast.LtE, ast.Gt,
    ast.GtE, ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Name, ast.Load,
    ast.Constant, ast.List, ast.Tuple,
)  # fmt: skip
DEPTH = 50  # of parts within parts; Python and pandas walk them by calling themselves
WHAT = (
    "columns, numbers, texts in quotes, comparisons, `in [...]`, `is None`, and, or, not, and "
    "arithmetic"
)


def parse_condition(text: str) -> ast.Expression:
    """A condition as Python reads it. ValueError where it is none, or holds more than `WHAT`."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        why = " ".join(str(getattr(error, "msg", error)).split()).partition(";")[0]
        raise ValueError(f"{shortened(text)}: no condition ({why})") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"{shortened(text)}: holds too much within each other") from None
    check_depth(text, tree)
    for node in ast.walk(tree.body):
        if not isinstance(node, ALLOWED):
            said = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise ValueError(f"{text!r}: {said} is not read: a condition holds {WHAT}")
        number = node.value if isinstance(node, ast.Constant) else None
        if isinstance(number, int) and not abs(number) < 2**63:
            raise ValueError(f"{shortened(text)}: holds a number of more than 64 bits")
        if isinstance(node, ast.Compare):
            check_comparison(text, node)
    return tree


def shortened(text: str) -> str:
    """A condition in quotes, of which a long one is cut."""
    return repr(text if len(text) <= 100 else text[:99] + "…")


def check_depth(text: str, tree: ast.Expression) -> None:
    """Raise ValueError where parts stand within parts deeper than DEPTH."""
    level: list[ast.AST] = [tree]
    for _ in range(DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise ValueError(f"{shortened(text)}: holds too much within each other")


def check_comparison(text: str, node: ast.Compare) -> None:
    """Raise ValueError for `is` with something else than one column and None, for None without
    `is`, and for `in` without a list."""
    sides = [node.left, *node.comparators]
    empty = [isinstance(side, ast.Constant) and side.value is None for side in sides]
    if any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops) or any(empty):
        whole = empty == [False, True] and isinstance(node.left, ast.Name)
        if not whole or not isinstance(node.ops[0], ast.Is | ast.IsNot):
            raise ValueError(f"{text!r}: write COLUMN is None, or COLUMN is not None")
    for op, right in zip(node.ops, node.comparators):
        if isinstance(op, ast.In | ast.NotIn) and not isinstance(right, ast.List | ast.Tuple):
            raise ValueError(f"{text!r}: write COLUMN in [VALUE, ...]")


def check_columns_named(text: str, tree: ast.Expression, columns: Sequence[str]) -> None:
    """Raise ValueError for a name that is none of the columns; it gives the nearest ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in columns:
            close = difflib.get_close_matches(node.id, columns, 3, 0.5)
            hint = f"nearest: {', '.join(close)}" if close else f"there are {', '.join(columns)}"
            raise ValueError(f"{text!r}: no column {node.id!r} ({hint})")


def check_truths(text: str, tree: ast.Expression, booleans: Sequence[str]) -> None:
    """Raise ValueError where `and`, `or` or `not` is given something that is neither a comparison
    nor a column that is true or false."""
    for node in ast.walk(tree):
        given = node.values if isinstance(node, ast.BoolOp) else []
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            given = [node.operand]
        for part in given:
            negated = isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Not)
            true_or_false = isinstance(part, ast.Name) and part.id in booleans
            if not (negated or true_or_false or isinstance(part, ast.BoolOp | ast.Compare)):
                raise ValueError(f"{text!r}: {ast.unparse(part)} is neither true nor false")


def is_text(node: ast.AST, texts: Mapping[str, bool | None]) -> bool | None:
    """Whether a part of a condition is text; None where it is neither text nor a number.
    texts: the same of the columns."""
    if isinstance(node, ast.Name):
        return texts[node.id]
    if isinstance(node, ast.Constant):
        return None if node.value is None else isinstance(node.value, str)
    return False


def check_kinds(text: str, tree: ast.Expression, texts: Mapping[str, bool | None]) -> None:
    """Raise ValueError where a text is compared with a number, which no row's is equal to."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        listed = [side.elts if isinstance(side, ast.List | ast.Tuple) else [side]
                  for side in (node.left, *node.comparators)]  # fmt: skip
        kinds = {is_text(part, texts): ast.unparse(part) for sides in listed for part in sides}
        if True in kinds and False in kinds:
            raise ValueError(
                f"{text!r}: compares {kinds[True]}, a text, with {kinds[False]}, a number: put "
                "what stands beside a text in quotes"
            )


def holds_text(values: Sequence[Any]) -> bool | None:
    """Whether a column holds text; None where it holds nothing."""
    given = [value for value in values if value is not None]
    return any(isinstance(value, str) for value in given) if given else None


class NullTests(ast.NodeTransformer):
    """`COLUMN is None` → the name of a column that holds where that is so."""

    def __init__(self):
        self.tested: dict[str, str] = {}  # name of the test → column

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if not isinstance(node.ops[0], ast.Is | ast.IsNot):
            return node
        assert isinstance(node.left, ast.Name)  # as `check_comparison` has it
        name = f"is_none_{len(self.tested)}"
        self.tested[name] = node.left.id
        test = ast.Name(name, ast.Load())
        return test if isinstance(node.ops[0], ast.Is) else ast.UnaryOp(ast.Not(), test)


def rows_that_hold(
    text: str, columns: Mapping[str, Sequence[Any]], missing: Mapping[str, float] | None = None
) -> list[bool]:
    """Whether a condition holds, row by row. Compared with nothing (null), only != and `not in`
    hold, but in columns of `missing` nothing counts as the number given there.

    ValueError as `parse_condition`, for a name that is no column, and where columns and values do
    not go together.
    """
    import pandas as pd  # only where there is a condition

    tree = parse_condition(text)
    check_columns_named(text, tree, list(columns))
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    check_kinds(text, tree, {name: holds_text(columns[name]) for name in named})
    tests = NullTests()
    expression = ast.unparse(ast.fix_missing_locations(tests.visit(tree)))
    frame = pd.DataFrame({name: pd.Series(columns[name]) for name in sorted(named)})
    for name, value in (missing or {}).items():
        if name in frame:
            frame[name] = frame[name].astype(float).fillna(value)
    for name, column in tests.tested.items():
        frame[name] = pd.Series([value is None for value in columns[column]], dtype=bool)
    if frame.empty:
        raise ValueError(f"{text!r}: names no column")
    check_truths(text, tree, [name for name in frame if frame[name].dtype == bool])
    try:
        holds = frame.eval(expression, engine="python")
    except (
        TypeError,
        ValueError,
        NotImplementedError,
        KeyError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise ValueError(f"{text!r}: {' '.join(str(error).split())}") from None
    if str(getattr(holds, "dtype", None)) != "bool":
        raise ValueError(f"{text!r}: no condition that holds or does not")
    return holds.tolist()
