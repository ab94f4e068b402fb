"""Messages that name their parents: what no tree holds is counted, and an id is there once."""

import pytest
from preference_rows import write

from ranking.data.preferences import load_preferences


def message(name, parent, rank=None, **more):
    role = "assistant" if rank is not None or more.get("unranked") else "prompter"
    return {"message_id": name, "parent_id": parent, "text": f"text {name}", "role": role,
            "rank": rank, "deleted": more.get("deleted", False)}  # fmt: skip


TREE = [message("q", None), message("a", "q", 0), message("b", "q", 1)]


def test_messages_that_are_left_out_are_counted(tmp_path):
    orphans = [message("lost", "GONE", 0), message("below", "lost")]
    circle = [message("egg", "hen"), message("hen", "egg")]
    others = [message("c", "q", unranked=True), message("d", "q", 2, deleted=True)]
    rows = [*orphans, *TREE, *circle, *others]
    data = load_preferences(write(tmp_path / "rows.jsonl", rows))
    (example,) = data.examples
    assert example.completions == ("text a", "text b") and example.ranks == (1, 2)
    assert data.notes == [
        "messages that no tree holds, since a parent is missing: 4",
        "deleted messages, left out with what answers them: 1",
        "answers without a rank beside ranked ones, left out: 1",
    ]
    assert load_preferences(write(tmp_path / "rows.jsonl", TREE)).notes == []


def test_an_id_that_is_there_twice_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [*TREE, message("b", "q", 2)])
    with pytest.raises(ValueError, match="row 4: message_id 'b' is there twice"):
        load_preferences(path)


def test_trees_and_their_truth_values_in_a_table_of_text(tmp_path):
    """csv has no null, and writes false as a word; pandas writes NaN."""
    rows = [*TREE, message("c", "q", unranked=True), message("d", "q", 2, deleted=True)]
    names = list(rows[0])
    lines = [
        ",".join("" if row[name] is None else str(row[name]) for name in names) for row in rows
    ]
    (tmp_path / "rows.csv").write_text("\n".join([",".join(names), *lines]))
    nan = [{**row, "rank": float("nan") if row["rank"] is None else row["rank"]} for row in rows]
    for path in (str(tmp_path / "rows.csv"), write(tmp_path / "rows.jsonl", nan)):
        data = load_preferences(path)
        (example,) = data.examples
        assert example.completions == ("text a", "text b") and example.ranks == (1, 2)
        assert data.notes == [
            "deleted messages, left out with what answers them: 1",
            "answers without a rank beside ranked ones, left out: 1",
        ]


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_a_grade_that_one_rater_did_not_give(tmp_path, missing):
    """The others count; of an answer without any grade the prompt is dropped."""
    graded = [{"prompt": "p", "response": text, "helpfulness": grades}
              for text, grades in (("a", [4, missing, 3, 2]), ("b", [2, 1, 4, missing]))]  # fmt: skip
    apart = [{"prompt": "q", "response": text, "helpfulness": grades}
             for text, grades in (("a", [4, missing]), ("b", [missing, 1]))]  # fmt: skip
    none = [{"prompt": "r", "response": "a", "helpfulness": missing}]
    data = load_preferences(
        write(tmp_path / "rows.jsonl", [*graded, *apart, *none]), include_ties=True
    )
    first, second = data.examples
    assert first.votes == {(0, 1): (1, 1)} and first.ranks == (1, 1)
    assert second.votes is None and second.ranks == (1, 2)
    assert data.dropped == {"missing score": 1}
