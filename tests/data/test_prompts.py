"""Parts of a prompt under more names, and pictures in whatever a cell holds them."""

import pyarrow.parquet
import pytest
from preference_rows import FARM, PAIR, write

from ranking.data.preferences import load_preferences

SUMMARIES = {"info": {"post": "Long.", "title": "T"}, "summaries": [{"text": "a"}, {"text": "b"}],
             "choice": 1}  # fmt: skip
WHOLE = {"chosen": "A tree that is tall: An oak.", "rejected": "A tree that is tall: A spoon."}
MESSAGE = {"parent_id": None, "text": "Hi", "role": "prompter", "rank": None}


@pytest.mark.parametrize(
    "picture", [b"\x89PNG", 7, 0, {"bytes": b"\x89PNG", "path": None}, "a.png"]
)
def test_a_picture_drops_its_row(tmp_path, picture):
    """An empty cell, or an object of nulls, is no picture."""
    path = tmp_path / "rows.parquet"
    rows = [{**PAIR, "image": picture}, {**PAIR, "chosen": "c", "image": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = load_preferences(str(path))
    assert data.dropped == {"images": 1}
    assert [example.completions for example in data.examples] == [("c", "b")]


@pytest.mark.parametrize("empty", [None, "", [], {"bytes": None, "path": None}])
def test_an_empty_cell_is_no_picture(tmp_path, empty):
    data = load_preferences(write(tmp_path / "rows.jsonl", [{**PAIR, "images": empty}]))
    assert len(data.examples) == 1 and data.dropped == {}


def test_recordings_and_paths_of_pictures_drop_their_rows(tmp_path):
    media = {"video": "x.mp4", "videos": ["x.mp4"], "audio": "x.wav", "image_path": "x.png"}
    rows = [PAIR, *({**PAIR, name: value} for name, value in media.items())]
    data = load_preferences(write(tmp_path / "rows.jsonl", rows))
    assert data.dropped == {"video or audio": 3, "images": 1} and len(data.examples) == 1


@pytest.mark.parametrize("first", ["instruction", "prompt"])
def test_a_number_that_something_is_done_to_is_no_empty_cell(tmp_path, first):
    """It is not written as text, of which there are several; NaN is what pandas writes for none."""
    row = {first: "Square it.", "chosen": "a", "rejected": "b"}
    path = write(
        tmp_path / "rows.jsonl", [{**row, "input": value} for value in (float("nan"), None)]
    )
    assert [e.prompt for e in load_preferences(path).examples] == ["Square it."] * 2
    for value in (3, 0.5, 0):
        path = write(tmp_path / "rows.jsonl", [row, {**row, "input": value}])
        with pytest.raises(ValueError, match="row 2: column 'input' should be text, found"):
            load_preferences(path)


@pytest.mark.parametrize("name", ["conversation_history", "dialogue_history"])
def test_a_history_stands_before_the_question(tmp_path, name):
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path / "rows.jsonl", [{name: earlier, **PAIR}])
    (example,) = load_preferences(path).examples
    asked = {"role": "user", "content": "p"}
    assert list(example.dialogue.messages) == [*earlier, asked]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**PAIR, "functions": [{"name": "f"}]}, "functions"),
        ({**SUMMARIES, "system": "Be brief."}, "system"),
        ({**SUMMARIES, "prompt": "Sum it up."}, "prompt"),
        ({**MESSAGE, "message_id": "a", "system": "Be brief."}, "system"),
        ({"message_tree_id": "a", "prompt": {**MESSAGE, "replies": []}, "context": "x"}, "context"),
        ({**FARM, "functions": "f()"}, "functions"),
        ({**WHOLE, "system": "Be brief."}, "system"),
        ({**WHOLE, "tools": [{"name": "f"}]}, "tools"),
        ({**WHOLE, "chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs"),
    ],
)
def test_a_part_of_the_prompt_that_a_kind_does_not_read_is_refused(tmp_path, row, column):
    with pytest.raises(ValueError, match=f"row 1: column '{column}' is part of the prompt"):
        load_preferences(write(tmp_path / "rows.jsonl", [row]))
