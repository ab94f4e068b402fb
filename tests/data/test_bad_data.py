"""Malformed data: each file is a counted drop or one line that names file and row, never a traceback
and never another n."""

import gzip
import json
import struct

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ranking.data.preferences import load_preferences

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
LIST = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
SHP = {"post_id": "x", "history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
ULTRA = {"instruction": "i", "completions": [{"response": "a", "overall_score": 2.0},
                                             {"response": "b", "overall_score": 1.0}]}  # fmt: skip
STACK = {"question": "q", "answers": [{"text": "a", "pm_score": 2}, {"text": "b", "pm_score": 1}]}
FARM = {"instruction": "i", "output_1": "a", "output_2": "b", "preference": 1}
VOTES = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}


DEEP: list = []
for _ in range(900):
    DEEP = [DEEP]


def ultra(*scores):
    return {"instruction": "i", "completions": [
        {"response": f"r{k}", "overall_score": score} for k, score in enumerate(scores)]}  # fmt: skip


def stack(*scores):
    return {"question": "q", "answers": [
        {"text": f"r{k}", "pm_score": score} for k, score in enumerate(scores)]}  # fmt: skip


# a good row stands first in each file; then the bad one, and what it says: a message, or {reason: n}
ROWS = {
    # plain pairs
    "chosen is a number": (PAIR, {**PAIR, "chosen": 3}, "column 'chosen' should be text, found int"),
    "chosen is null": (PAIR, {**PAIR, "chosen": None}, {"empty completion": 1}),
    "rejected is an empty list": (PAIR, {**PAIR, "rejected": []}, {"empty completion": 1}),
    "a whole dialogue is null": (HH, {**HH, "rejected": None}, {"empty completion": 1}),
    "chosen is a list": (PAIR, {**PAIR, "chosen": ["a"]}, "should be text, found list"),
    "prompt is an object": (PAIR, {**PAIR, "prompt": {"a": None}}, "should be text, found dict"),
    "prompt is true": (PAIR, {**PAIR, "prompt": True}, "should be text, found bool"),
    "prompt is null": (PAIR, {**PAIR, "prompt": None}, {"empty prompt": 1}),
    "prompt is an empty list": (PAIR, {**PAIR, "prompt": []}, {"empty prompt": 1}),
    "no rejected": (PAIR, {"prompt": "p", "chosen": "a"}, "missing column rejected"),
    "empty object": (PAIR, {}, "missing column"),
    "a list, not an object": (PAIR, [1, 2], "should be an object, found list"),
    "a string, not an object": (PAIR, "chosen", "should be an object, found str"),
    "null, not an object": (PAIR, None, "should be an object, found NoneType"),
    "empty chosen": (PAIR, {**PAIR, "chosen": ""}, {"empty completion": 1}),
    "blank rejected": (PAIR, {**PAIR, "rejected": " \n\t"}, {"empty completion": 1}),
    "identical completions": (PAIR, {**PAIR, "rejected": "a"}, {"identical completions": 1}),
    "lone surrogate": (PAIR, {**PAIR, "chosen": "\ud83d"}, {"lone surrogate": 1}),
    "lone surrogate in the prompt": (PAIR, {**PAIR, "prompt": "\udc00"}, {"lone surrogate": 1}),
    "tools a thousand deep": (PAIR, {**PAIR, "tools": [{"a": DEEP}]}, "maximum recursion depth"),
    "messages a thousand deep": (PAIR, {**PAIR, "chosen": {"role": "assistant", "x": DEEP, "content": "a"}}, "maximum recursion depth"),
    "10 MB of text": (PAIR, {**PAIR, "prompt": "x" * 10_000_000}, {}),
    "NUL in the text": (PAIR, {**PAIR, "prompt": "a\0b"}, {}),
    # plain lists
    "ranks too short": (LIST, {**LIST, "ranks": [1, 2]}, "one integer ≥ 1 for each completion"),
    "ranks too long": (LIST, {**LIST, "ranks": [1, 2, 3, 4]}, "one integer ≥ 1"),
    "rank zero": (LIST, {**LIST, "ranks": [0, 1, 2]}, "one integer ≥ 1"),
    "rank is a fraction": (LIST, {**LIST, "ranks": [1, 1.5, 2]}, "one integer ≥ 1"),
    "ranks of pandas": (LIST, {**LIST, "ranks": [1.0, 2.0, 3.0]}, {}),
    "rank is infinite": (LIST, {**LIST, "ranks": [1.0, float("inf"), 3.0]}, "one integer ≥ 1"),
    "rank is true": (LIST, {**LIST, "ranks": [True, 2, 3]}, "one integer ≥ 1"),
    "rank is NaN": (LIST, {**LIST, "ranks": [float("nan"), 2, 3]}, "one integer ≥ 1"),
    "ranks are null": (LIST, {**LIST, "ranks": None}, "one integer ≥ 1"),
    "ranks with gaps": (LIST, {**LIST, "ranks": [2, 70, 9]}, {}),
    "completion is null": (LIST, {**LIST, "completions": ["a", None, "c"]}, "a list of text"),
    "completions are text": (LIST, {**LIST, "completions": "abc"}, "a list of text"),
    "no completion": (LIST, {"prompt": "p", "completions": [], "ranks": []}, {"fewer than two completions": 1}),
    "one completion": (LIST, {**LIST, "completions": ["a"], "ranks": [1]}, {"fewer than two completions": 1}),
    "1000 completions": (LIST, {"prompt": "p", "completions": [str(k) for k in range(1000)], "ranks": list(range(1, 1001))}, {}),
    "all ranks tied": (LIST, {**LIST, "ranks": [1, 1, 1]}, {"all ranks tied": 1}),
    "one text, two ranks": (LIST, {**LIST, "completions": ["a", "a", "c"]}, {"identical completions": 1}),
    # votes
    "negative votes": (VOTES, {**VOTES, "votes": [3, -1]}, "should be ≥ 0 and not both 0"),
    "no votes at all": (VOTES, {**VOTES, "votes": [0, 0]}, "should be ≥ 0 and not both 0"),
    "infinite votes": (VOTES, {**VOTES, "votes": [float("inf"), 1]}, "should be ≥ 0"),
    "NaN votes": (VOTES, {**VOTES, "votes": [float("nan"), 1]}, "should be ≥ 0"),
    "three votes for a pair": (VOTES, {**VOTES, "votes": [1, 2, 3]}, "should be 'i,j'"),
    "one vote": (VOTES, {**VOTES, "votes": [1]}, "should be 'i,j'"),
    "votes are text": (VOTES, {**VOTES, "votes": "4-0"}, "votes should be two counts"),
    "counts are text": (VOTES, {**VOTES, "votes": {"0,1": "21"}}, "should be 'i,j'"),
    "votes hold text": (VOTES, {**VOTES, "votes": ["four", "none"]}, "should be 'i,j'"),
    "votes hold lists": (VOTES, {**VOTES, "votes": [[1], [2]]}, "should be 'i,j'"),
    "a vote of 10**400": (VOTES, {**VOTES, "votes": [10**400, 1]}, "should be"),
    "vote list for three": (LIST, {**LIST, "votes": [1, 2, 3]}, "votes should be two counts for a pair"),
    "index out of range": (LIST, {**LIST, "votes": {"0,3": [1, 0]}}, "there are 3 completions"),
    "index with itself": (LIST, {**LIST, "votes": {"1,1": [1, 0]}}, "there are 3 completions"),
    "index is a word": (LIST, {**LIST, "votes": {"a,b": [1, 0]}}, "should be 'i,j'"),
    "three indices": (LIST, {**LIST, "votes": {"0,1,2": [1, 0]}}, "should be 'i,j'"),
    "votes against the ranks": (VOTES, {**VOTES, "votes": [1, 3]}, "contradict each other"),
    # HH-RLHF
    "no assistant turn": (HH, {"chosen": "hello", "rejected": "you"}, {"no common prompt": 1}),
    "other prompts": (HH, {**HH, "rejected": "\n\nHuman: z\n\nAssistant: b"}, {"no common prompt": 1}),
    "nothing answered": (HH, {**HH, "chosen": "\n\nHuman: q\n\nAssistant:"}, {"empty completion": 1}),
    # SHP
    "label 2": (SHP, {**SHP, "labels": 2}, "labels should be 0 or 1, found 2"),
    "label null": (SHP, {**SHP, "labels": None}, "labels should be 0 or 1"),
    "label is a list": (SHP, {**SHP, "labels": [1]}, "labels should be 0 or 1"),
    "label is text": (SHP, {**SHP, "labels": "A"}, "labels should be 0 or 1"),
    "comment is null": (SHP, {**SHP, "human_ref_B": None}, "'human_ref_B' should be text"),
    # UltraFeedback
    "score is null": (ULTRA, ultra(None, 1), {"missing score": 1}),
    "score is NaN": (ULTRA, ultra(float("nan"), 1), {"missing score": 1}),
    "score is infinite": (ULTRA, ultra(float("inf"), 1), {"missing score": 1}),
    "score is a word": (ULTRA, ultra("good", 1), "scores should be numbers"),
    "score is a list": (ULTRA, ultra([5], 1), "scores should be numbers"),
    "score is 10**400": (ULTRA, ultra(10**400, 1), "scores should be numbers"),
    "scores tied": (ULTRA, ultra(3, 3), {"all ranks tied": 1}),
    "no score": (ULTRA, {"instruction": "i", "completions": [{"response": "a"}]}, "has no 'overall_score'"),
    "responses are text": (ULTRA, {"instruction": "i", "completions": ["a", "b"]}, "a list of objects"),
    "responses are null": (ULTRA, {"instruction": "i", "completions": None}, "a list of objects"),
    "response is null": (ULTRA, {"instruction": "i", "completions": [{"response": None, "overall_score": 1},
                                 {"response": "b", "overall_score": 2}]}, "'response' should be text"),
    # Stack Exchange
    "answers are text": (STACK, {"question": "q", "answers": "none"}, "a list of objects"),
    "no answers": (STACK, stack(), {"fewer than two completions": 1}),
    "one answer": (STACK, stack(4), {"fewer than two completions": 1}),
    "answer without a score": (STACK, stack(4, None), {"missing score": 1}),
    # AlpacaFarm's rater rows
    "preference 3": (FARM, {**FARM, "preference": 3}, "preference should be 1, 2 or 0"),
    "preference null": (FARM, {**FARM, "instruction": "j", "preference": None}, {"no preference": 1}),
    "preference graded": (FARM, {**FARM, "instruction": "j", "preference": 1.03}, {}),
    "preference 0.5": (FARM, {**FARM, "preference": 0.5}, "preference should be 1, 2 or 0"),
    "preference NaN": (FARM, {**FARM, "instruction": "j", "preference": float("nan")}, {"no preference": 1}),
    "preference true": (FARM, {**FARM, "preference": True}, "preference should be 1, 2 or 0"),
    "preference is a list": (FARM, {**FARM, "preference": [1]}, "preference should be 1, 2 or 0"),
    "output null": (FARM, {**FARM, "output_1": None}, {"empty completion": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_after_a_good_one(case, tmp_path):
    good, bad, expected = ROWS[case]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad)))
    if isinstance(expected, dict):
        data = load_preferences(str(path))
        assert data.dropped == expected
        assert len(data.examples) + sum(data.dropped.values()) == 2
        return
    with pytest.raises(ValueError) as error:
        load_preferences(str(path))
    message = str(error.value)
    assert message.startswith(str(path)) and "row 2: " in message and "\n" not in message
    assert expected in message and len(message) < 600


LINE = json.dumps(PAIR).encode() + b"\n"
FILES = {  # name of the file, its bytes, and what it says: a message, or how many examples it has
    "empty": ("e.jsonl", b"", "no rows"),
    "blank lines": ("e.jsonl", b"\n \n\n", "no rows"),
    "BOM": ("b.jsonl", b"\xef\xbb\xbf" + LINE, 1),
    "CRLF": ("c.jsonl", LINE.replace(b"\n", b"\r\n") * 2, 2),
    "no newline at the end": ("n.jsonl", LINE + LINE[:-1], 2),
    "torn last line": ("t.jsonl", LINE + LINE[:20], "row 2: not JSON"),
    "invalid UTF-8": ("u.jsonl", LINE + b'{"prompt": "\xff"}', "cannot be read"),
    "UTF-16": ("u.jsonl", LINE.decode().encode("utf-16"), "cannot be read"),
    "duplicated key": ("d.jsonl", LINE + b'{"prompt": "p", "chosen": "a", "chosen": "z", "rejected": "b"}\n',
                       "row 2: not JSON (the key 'chosen' is there twice)"),
    "deep nesting": ("n.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"\n", "cannot be read"),
    "not JSON": ("x.jsonl", b"prompt: p\n", "row 1: not JSON"),
    "JSON list in jsonl": ("l.jsonl", b"[" + LINE + b"]", "row 1"),
    "JSON object": ("o.json", LINE, 1),
    "JSON number": ("o.json", b"5", "row 1: should be an object, found int"),
    "torn JSON list": ("o.json", b"[" + LINE, "cannot be read"),
    "torn gzip": ("g.jsonl.gz", gzip.compress(LINE * 500)[:-9], "cannot be read"),
    "not gzip": ("g.jsonl.gz", LINE, "cannot be read"),
    "gzip with a wrong checksum": ("g.jsonl.gz", gzip.compress(LINE)[:-8] + struct.pack("<II", 1, len(LINE)), "cannot be read"),
    "gzip called jsonl": ("g.jsonl", gzip.compress(LINE), "cannot be read"),
    "unknown kind": ("r.txt", LINE, "not one of"),
    "no kind": ("rows", LINE, "not one of"),
    "not parquet": ("r.parquet", LINE, "cannot be read"),
    "csv with a comma too many": ("c.csv", b"prompt,chosen,rejected\np,a,b,c\n", "row 1: not as many fields"),
    "csv with a comma too few": ("c.csv", b"prompt,chosen,rejected\np,a\n", "row 1: not as many fields"),
    "csv with an open quote": ("c.csv", b'prompt,chosen,rejected\n"p,a,b\n', "cannot be read"),
    "csv with a column twice": ("c.csv", b"prompt,chosen,chosen,rejected\np,a,b,c\n", "'chosen'"),
    "votes of one pair twice": (
        "v.jsonl", b'{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "votes": {"0,1": [3, 1], "1,0": [0, 4]}}',
        "row 1: votes '1,0': the pair is given twice"),
    "csv with a header only": ("c.csv", b"prompt,chosen,rejected\n", "no rows"),
    "csv of lists": ("c.csv", b"prompt,completions,ranks\np,\"['a', 'b']\",\"[1, 2]\"\n", "row 1: column 'completions'"),
    "other columns": ("o.jsonl", b'{"text": "a", "label": 1}\n', "unknown columns: text, label"),
    "Git LFS pointer": ("l.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                        "a Git LFS pointer"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file(case, tmp_path):
    name, content, expected = FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    if isinstance(expected, int):
        assert len(load_preferences(str(path)).examples) == expected
        return
    with pytest.raises(ValueError) as error:
        load_preferences(str(path))
    message = str(error.value)
    assert message.startswith(str(path)) and expected in message and "\n" not in message


def test_parquet_with_nested_nulls(tmp_path):
    rows = [LIST, {"prompt": "p", "completions": ["a", None, "c"], "ranks": [1, None, 2]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "n.parquet")
    with pytest.raises(ValueError, match="n.parquet: row 2: column 'completions' should be a list"):
        load_preferences(str(tmp_path / "n.parquet"))


# anything JSON can say, in any column of any schema
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3)
)
GOOD = st.sampled_from([PAIR, LIST, HH, SHP, ULTRA, STACK, FARM, VOTES])


@st.composite
def damaged_rows(draw):
    """Rows of one schema in which some values, and sometimes a key, are something else."""
    good = draw(GOOD)
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        row = dict(good)
        for key in draw(st.lists(st.sampled_from(sorted(good)), max_size=2)):
            row[key] = draw(VALUES)
        if draw(st.integers(0, 9)) == 0:
            row.pop(draw(st.sampled_from(sorted(row))))
        rows.append(row)
    return rows


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=damaged_rows(), include_ties=st.booleans())
def test_damaged_rows_are_counted_or_named(rows, include_ties, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        data = load_preferences(str(path), include_ties=include_ties)
    except ValueError as error:
        message = str(error)
        assert message.startswith(str(path)) and "\n" not in message
        assert (
            "row " in message
            or "no usable example" in message
            or "missing column" in message
            or "unknown columns" in message
            or "the first row's" in message
            or "which answer that prefers is not said" in message  # 0 and 1 of output_1, output_2
        )
        return
    farm = "preference" in rows[0]
    answers = [(r["output_1"], r["output_2"]) for r in rows] if farm else []
    pairs = [
        (r["instruction"], *sorted(both))
        if all(isinstance(text, str) for text in (r["instruction"], *both))
        else (k,)
        for k, (r, both) in enumerate(zip(rows, answers))
    ]  # a row without a prompt or an answer is dropped by itself
    n_rows = len(set(pairs)) if farm else len(rows)
    assert len(data.examples) + sum(data.dropped.values()) == n_rows


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    content=st.binary(max_size=200),
    kind=st.sampled_from(["json", "jsonl", "jsonl.gz", "csv", "parquet"]),
)
def test_arbitrary_bytes_are_one_line(content, kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_preferences(str(path))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
