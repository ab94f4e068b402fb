"""Conditions on columns: what they mean, by Python row by row, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranking.plumbing.row_filter import parse_condition, rows_that_hold

COLUMNS = {
    "c": [1.0, 2.5, None, -5.0],
    "alpha": [0.9, 0.6, 0.75, 0.999],
    "critical_beta": [None, 1.0, 2.0, None],
    "dataset": ["a", None, "b", "a"],
    "truncated": [True, False, False, True],
    "n": [1, 2, 3, 4],
    "split": [None, None, None, None],
}


@pytest.mark.parametrize(
    "text, holds",
    [
        ("c < 2 and alpha > 0.7", [True, False, False, True]),
        ("not truncated", [False, True, True, False]),
        ("dataset in ['a', 'c'] and c < 0", [False, False, False, True]),
        ("dataset not in ['a']", [False, True, True, False]),
        ('dataset == "b" or truncated', [True, False, True, True]),
        ("-1 < c <= 2.5", [True, True, False, False]),
        ("c is None", [False, False, True, False]),
        ("not (c is not None) or n == 4", [False, False, True, True]),
        ("critical_beta > 1.5", [True, False, True, True]),  # nothing: right at every β
        ("critical_beta is None", [True, False, False, True]),
        ("(n - 1) % 2 == 0", [True, False, True, False]),
        ("not " * 40 + "c == 1", [True, False, False, False]),
        ("n in [" + ", ".join(map(str, range(2, 3000))) + "]", [False, True, True, True]),
        ("n < 9223372036854775807", [True] * 4),
        ("c != 1", [False, True, True, True]),
        ("truncated", COLUMNS["truncated"]),
        ("split == 'test'", [False] * 4),
        ("split != 1 and n in [1, 2.5]", [True, False, False, False]),
    ],
)
def test_conditions(text, holds):
    assert rows_that_hold(text, COLUMNS, {"critical_beta": math.inf}) == holds


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 5), st.booleans()), min_size=1, max_size=9),
    st.floats(-9, 9), st.integers(0, 5),
)  # fmt: skip
def test_as_python_decides_row_by_row(rows, low, n):
    text = f"(x > {low!r} and not flag) or n * 2 >= {n} + x"
    columns = dict(zip(("x", "n", "flag"), map(list, zip(*rows))))
    want = [eval(text, {"x": x, "n": k, "flag": flag}) for x, k, flag in rows]
    assert rows_that_hold(text, columns) == want


@pytest.mark.parametrize(
    "text, why",
    [
        ("__import__('os').system('true')", "is not read: a condition holds columns"),
        ("c.real < 1", "c.real is not read"),
        ("abs(c) < 1", r"abs\(c\) is not read"),
        ("[x for x in c]", "is not read"),
        ("c[0] < 1", r"c\[0\] is not read"),
        ("c ** 9 < 1", "Pow is not read"),
        ("@c < 1", "no condition"),
        ("c <", "no condition"),
        ("", "no condition"),
        ("c == None", "COLUMN is None"),
        ("c is 3", "COLUMN is None"),
        ("'a' in dataset", r"COLUMN in \[VALUE"),
        ("c < 1" + "0" * 400, "…': holds a number of more than 64 bits"),
        ("c < 9223372036854775808", "a number of more than 64 bits"),
        ("c < 1" + "0" * 5000, "…': no condition"),
        ("not " * 60 + "c < 1", "…': holds too much within each other"),
        ("not " * 3000 + "c < 1", "…': "),
        ("(" * 3000 + "c < 1" + ")" * 3000, "…': no condition"),
        ("c" + " + 1" * 3000 + " < 1", "…': holds too much within each other"),
    ],
)
def test_what_is_no_condition_is_refused_before_anything_is_read(text, why):
    with pytest.raises(ValueError, match=why) as error:
        parse_condition(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text, why",
    [
        ("alhpa > 0.7", r"^'alhpa > 0.7': no column 'alhpa' \(nearest: alpha"),
        ("zzz > 0.7", r"no column 'zzz' \(there are c, alpha, critical_beta, dataset"),
        ("c < 'a'", "compares 'a', a text, with c, a number: put what stands beside a text in quo"),
        ("dataset != 1", "compares dataset, a text, with 1, a number"),
        ("dataset in ['a', 1]", "a text, with 1, a number"),
        ("not (n == 1 and 1 < dataset)", "compares dataset, a text, with 1"),
        ("dataset == c + 1", r"compares dataset, a text, with c \+ 1, a number"),
        ("c", "no condition that holds or does not"),
        ("n and truncated", "n is neither true nor false"),
        ("not (c + 1)", "c \\+ 1 is neither true nor false"),
        ("1 < 2", "names no column"),
    ],
)
def test_what_does_not_fit_the_columns_is_one_line(text, why):
    with pytest.raises(ValueError, match=why) as error:
        rows_that_hold(text, COLUMNS)
    assert "\n" not in str(error.value)
