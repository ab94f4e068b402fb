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
