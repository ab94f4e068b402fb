"""Columns by other names: --columns, in every form of data, and its one-line errors."""

from pathlib import Path

import pyarrow.parquet
import pytest
from preference_rows import PAIR, write

from ranking.data.columns import RenamedRows, names_of, parse_columns, values_of
from ranking.data.files import read_file
from ranking.data.preferences import load_preferences
from ranking.data.splits import load_training_splits

ROW = {"ask": {"text": "Why?"}, "a": "Because.", "b": "No.", "role": "Be brief.", "prompt": "unused",
       "topic": "x"}  # fmt: skip


def test_a_pair_by_other_names(tmp_path):
    columns = parse_columns(
        ["prompt=ask.text", "chosen=a", "rejected=b", "system=role", "group=topic"]
    )
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]), path)
    for file in (write(tmp_path / "rows.jsonl", [ROW]), str(path)):
        (example,) = load_preferences(file, columns=columns).examples
        assert [m["content"] for m in example.dialogue.messages] == ["Be brief.", "Why?"]
        assert example.completions == ("Because.", "No.") and example.groups == {"topic": "x"}


def test_lists_votes_and_labels_by_other_names(tmp_path):
    row = {"q": "Why?", "texts": ["a", "b"], "order": [2, 1], "counts": [1, 3], "how_good": [1, 5]}
    path = write(tmp_path / "rows.jsonl", [row])
    ranked = {"prompt": "q", "completions": "texts", "ranks": "order", "votes": "counts"}
    (example,) = load_preferences(path, columns=ranked).examples
    assert example.ranks == (2, 1) and example.votes == {(0, 1): (1, 3)}
    scored = {"prompt": "q", "completions": "texts", "scores": "how_good"}
    assert load_preferences(path, columns=scored).examples[0].ranks == (2, 1)
    safer = {"prompt": "Why?", "response_0": "a", "response_1": "b", "better_response_id": 0,
             "safer_response_id": 1}  # fmt: skip
    path = write(
        tmp_path / "rows.jsonl", [safer, {**safer, "prompt": "How?", "safer_response_id": 0}]
    )
    asked = load_preferences(path, columns={"label": "safer_response_id"}).examples
    assert [e.ranks for e in asked] == [(2, 1), (1, 2)]


def test_training_reads_the_same_names(tmp_path):
    rows = [{"q": f"{k}?", "a": "x", "b": "y"} for k in range(20)]
    path = write(tmp_path / "rows.jsonl", rows)
    parts, _ = load_training_splits(path, columns={"prompt": "q", "chosen": "a", "rejected": "b"})
    assert len(parts["train"].examples) == 16


def test_given_columns_decide_between_two_schemas(tmp_path):
    row = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "completions": ["c", "d"],
        "ranks": [1, 2],
    }
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match="two schemas fit, completions/ranks and chosen/rejected"):
        load_preferences(path)
    pair = load_preferences(path, columns={"chosen": "chosen", "rejected": "rejected"})
    assert pair.examples[0].completions == ("a", "b")
    listed = load_preferences(path, columns={"completions": "completions", "ranks": "ranks"})
    assert listed.examples[0].completions == ("c", "d")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["prompt"], "--columns prompt: give TARGET=COLUMN"),
        (["prompt="], "--columns prompt=: give TARGET=COLUMN"),
        (["promt=q"], "the targets are prompt, system.*; did you mean prompt"),
        (["prompt=q", "prompt=r"], "--columns prompt=r: prompt is given twice"),
    ],
)
def test_what_cannot_be_parsed(texts, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_columns(texts)
    assert "\n" not in str(error.value)


def test_a_column_that_is_not_there(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"question": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(
        ValueError, match="--columns questoin: no such column .*did you mean question"
    ):
        load_preferences(path, columns={"prompt": "questoin"})
    assert parse_columns(None) is None


def grouped(path, rows, **options):
    data = load_preferences(write(path, rows), **options)
    return [example.groups for example in data.examples], data.notes


def test_groups_that_the_first_row_lacks_or_that_are_whole_numbers(tmp_path):
    subsets = [{}, {"subset": "s0"}, {"subset": "s1"}]
    rows = [{**PAIR, "chosen": str(k), **subset} for k, subset in enumerate(subsets)]
    assert grouped(tmp_path / "rows.jsonl", rows) == (subsets, [])
    rows = [{**PAIR, "domain": k} for k in (0, 7)]
    assert grouped(tmp_path / "rows.jsonl", rows)[0] == [{"domain": "0"}, {"domain": "7"}]


def test_a_note_says_that_a_column_has_too_many_values_for_groups(tmp_path):
    rows = [{**PAIR, "subset": f"s{k}"} for k in range(51)]
    groups, notes = grouped(tmp_path / "rows.jsonl", rows)
    assert groups == [{}] * 51
    assert notes == ["subset holds more than 50 values: not grouped; --group-by subset does"]
    groups, notes = grouped(tmp_path / "rows.jsonl", rows, group_by=["subset"])
    assert len({row["subset"] for row in groups}) == 51 and notes == []


def write_table(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_an_object_that_the_first_row_of_a_table_lacks(tmp_path):
    rows = [{**PAIR, "metadata": None}, {**PAIR, "chosen": "c", "metadata": {"d": "x"}}]
    path = write_table(tmp_path / "rows.parquet", rows)
    examples = load_preferences(path, group_by=["metadata.d"], sample_size=2).examples
    groups = {example.completions[0]: example.groups for example in examples}
    assert groups == {"a": {}, "c": {"metadata.d": "x"}}
    for name in ("metadata.e", "metadata.d.e", "chosen.d"):
        with pytest.raises(ValueError, match=f"--group-by {name}: no such column .found prompt"):
            load_preferences(path, group_by=[name], sample_size=2)


def test_columns_of_a_table_are_read_by_other_names_without_making_its_rows(tmp_path):
    rows = read_file(Path(write_table(tmp_path / "rows.parquet", [ROW, ROW])), whole=False)
    assert hasattr(rows, "table")
    renamed = RenamedRows(rows, {"prompt": "ask.text", "chosen": "a", "rejected": "b"})
    known = ["prompt", "chosen", "rejected", "ask", "role", "topic"]
    assert names_of(renamed) == list(renamed[0]) == known
    rows.block, rows.next = None, None  # which no row can be made of
    assert list(values_of(renamed, "prompt")) == ["Why?", "Why?"]
    assert list(values_of(renamed, "chosen")) == ["Because.", "Because."]
    assert not hasattr(RenamedRows([ROW], {"chosen": "a"}), "table")


def test_a_label_by_name_goes_before_raters_and_other_labels(tmp_path):
    row = {"prompt": "p", "response1": "a", "response2": "b", "overall_preference": -2,
           "individual_preference": [{"score": 1}, {"score": 2}, {"score": -1}]}  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [row])
    assert load_preferences(path).examples[0].votes == {(0, 1): (1, 2)}
    (example,) = load_preferences(path, columns={"label": "overall_preference"}).examples
    assert example.ranks == (1, 2) and example.votes is None
    farm = {"instruction": "i", "output_1": "a", "output_2": "b", "preference": 1, "mine": 2}
    path = write(tmp_path / "rows.jsonl", [farm])
    assert load_preferences(path, columns={"label": "mine"}).examples[0].ranks == (2, 1)


def test_votes_and_grades_by_name(tmp_path):
    row = {"prompt": "p", "good": "a", "bad": "b", "v": [3, 1]}
    path = write(tmp_path / "rows.jsonl", [row])
    named = {"chosen": "good", "rejected": "bad", "votes": "v"}
    assert load_preferences(path, columns=named).examples[0].votes == {(0, 1): (3, 1)}
    rows = [{"prompt": "p", "response": text, "helpfulness": k, "overall": -k, "mine": -k}
            for k, text in enumerate("ab")]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match="two schemas fit.*--columns scores=overall"):
        load_preferences(path)
    for grade, ranks in {"mine": (1, 2), "overall": (1, 2), "helpfulness": (2, 1)}.items():
        (example,) = load_preferences(path, columns={"scores": grade}).examples
        assert example.ranks == ranks


@pytest.mark.parametrize("target", ["label", "ranks", "scores", "system", "completion", "messages"])
def test_a_target_that_is_not_read_is_refused(tmp_path, target):
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    path = write(tmp_path / "rows.jsonl", [{**row, "w": 1}])
    with pytest.raises(ValueError, match=f"--columns {target}=w: .*no {target} is read") as error:
        load_preferences(path, columns={target: "w"})
    assert "\n" not in str(error.value)
