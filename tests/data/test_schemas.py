"""Each schema, row by row, worked out by hand."""

import json

import numpy as np
import pytest
from preference_rows import FARM, HH, LISTED, PAIR, SHP, write

from ranking.data.preferences import load_preferences


def test_hh_prompt_ends_at_the_last_assistant_of_chosen(tmp_path):
    path = write(tmp_path / "hh.jsonl", [HH, {**HH, "rejected": "\n\nHuman: z\n\nAssistant: Wet"}])
    data = load_preferences(path)
    (example,) = data.examples
    assert example.prompt == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert example.completions == (" Well", " Wet") and example.ranks == (1, 2)
    assert data.dropped == {"no common prompt": 1}


def test_dialogues_among_whole_texts_are_read_as_dialogues(tmp_path):
    """Whatever the first row is: no prompt ends inside an answer."""
    texts = {"chosen": "A tree that is tall: An oak.", "rejected": "A tree that is tall: A spoon."}
    first = {
        side: HH["chosen"][:-4] + word
        for side, word in (("chosen", "The oak"), ("rejected", "The"))
    }
    data = load_preferences(write(tmp_path / "rows.jsonl", [texts, first]))
    assert [e.prompt for e in data.examples] == ["A tree that is tall:", HH["chosen"][:-5]]
    crlf = {side: text.replace("\n", "\r\n") for side, text in first.items()}
    with pytest.raises(ValueError, match=r"row 1: turns of column 'chosen' are parted by \\r\\n"):
        load_preferences(write(tmp_path / "rows.jsonl", [crlf]))


def test_shp_rows_are_pairs_by_label_and_posts_are_clusters(tmp_path):
    path = write(tmp_path / "shp.jsonl", [SHP, {**SHP, "labels": 1, "human_ref_A": "C"}])
    first, second = load_preferences(path).examples
    assert (first.ranks, second.ranks) == ((2, 1), (1, 2))
    assert first.prompt_id == second.prompt_id and first.id != second.id


def test_scores_become_ranks(tmp_path):
    answers = [{"response": t, "overall_score": s} for t, s in zip("abcd", (7.5, 9, 7.5, 2))]
    ultra = write(tmp_path / "u.jsonl", [{"instruction": "i", "completions": answers}])
    assert load_preferences(ultra).examples[0].ranks == (2, 1, 2, 4)
    answers = [{"text": t, "pm_score": s} for t, s in zip("abc", (0, 3, 1))]
    stack = write(tmp_path / "s.jsonl", [{"qid": 1, "question": "<p>q</p>", "answers": answers}])
    assert load_preferences(stack).examples[0].ranks == (3, 1, 2)
    missing = [{"response": "a", "overall_score": None}, {"response": "b", "overall_score": 1}]
    both = [
        {"instruction": "i", "completions": missing},
        {"instruction": "i", "completions": missing},
    ]
    with pytest.raises(ValueError, match=r"no usable example left of 2 \(missing score: 2\)"):
        load_preferences(write(tmp_path / "m.jsonl", both))


def test_rater_rows_are_grouped_before_sampling(tmp_path):
    rows = [
        {**FARM, "instruction": f"i{pair}", "preference": p}
        for p in (1, 1, 2, 0)
        for pair in range(10)
    ]
    path = write(tmp_path / "farm.jsonl", rows)
    data = load_preferences(path)
    assert len(data.examples) == 10
    assert data.examples[0].votes == {(0, 1): (2.5, 1.5)} and data.examples[0].ranks == (1, 2)
    some = load_preferences(path, sample_size=4, seed=3)
    drawn = np.random.default_rng(3).choice(10, 4, replace=False)
    assert [e.prompt for e in some.examples] == [f"i{k}" for k in drawn]
    assert all(sum(e.votes[0, 1]) == 4 for e in some.examples)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "chosen": "a"}], "missing column rejected .found prompt, chosen"),
        ([{**PAIR, "rejected": None}], r"no usable example left of 1 .empty completion: 1"),
        ([{"instruction": "i", "completions": [{"response": "a"}]}], "no 'overall_score'"),
        ([{"question": "q", "answers": "none"}], "should be a list of objects"),
        ([{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "votes": [2, 2]}], "contradict"),
        ([{**PAIR, "reject": "b"}], "two schemas fit, chosen/rejected and chosen/reject: .*--columns"),
        ([{"prompt": "p", "chosen_text": "a", "rejected_text": "b"}],
         "is it 'chosen_text'.*--columns prompt=prompt chosen=chosen_text rejected=rejected_text"),
        ([{"request": "p", "answer_a": "a", "answer_b": "b"}], "missing column label .found request, answer_a"),
        ([{"prompt": "p", "response_a": "a", "response_b": "b", "better one": "a"}],
         "which of response_a and response_b is preferred; .*--columns 'label=better one'$"),
        ([{"prompt": "p", "Chosen Answer": "a", "Rejected Answer": "b"}],
         "--columns prompt=prompt 'chosen=Chosen Answer' 'rejected=Rejected Answer'$"),
        ([{"topic": "p", "chosen": "a", "rejected": "b"}], "without a column `prompt`.*found topic"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_line_with_file_and_row(tmp_path, rows, message):
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(ValueError, match=message) as error:
        load_preferences(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


def test_a_column_of_the_prompt_that_is_not_read_is_refused(tmp_path):
    rows = [{"post": "", "tools": [], **PAIR}, {"post": "Be brief.", **PAIR}]
    path = write(tmp_path / "s.jsonl", rows)
    with pytest.raises(ValueError, match="s.jsonl: row 2: column 'post' is part of the prompt"):
        load_preferences(path)
    for column, row in {"document": FARM, "article": PAIR, "passage": LISTED, "system": HH,
                        "Document": PAIR, "history": HH, "context": SHP}.items():  # fmt: skip
        assert load_preferences(write(tmp_path / "s.jsonl", [{**row, column: " "}])).examples
        with pytest.raises(ValueError, match=f"row 1: column '{column}' is part of the prompt"):
            load_preferences(write(tmp_path / "s.jsonl", [{**row, column: "x"}]))


MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "text",
    [str(MESSAGES), str(MESSAGES[1]), str({"messages": MESSAGES}), str(np.array(MESSAGES)),
     repr(np.array(MESSAGES)), str([{"from": "human", "value": "Hi"}]), json.dumps(MESSAGES) + "]"],
)  # fmt: skip
def test_messages_written_as_text_are_refused(tmp_path, text):
    pattern = "row 1: .* holds chat messages written as text"
    for row in ({**PAIR, "chosen": text}, {**PAIR, "prompt": text}, {**FARM, "output_2": text},
                {**LISTED, "completions": ["a", text]},
                {**LISTED, "completions": ["a", json.dumps(MESSAGES)]}):  # fmt: skip
        with pytest.raises(ValueError, match=pattern):
            load_preferences(write(tmp_path / "m.jsonl", [row]))
    fair = ['[{"name": "x"}]', '{"role": "admin", "content": "x"}', "[{role: 'user'}]", f"See {text}",
            '[{"value": 3, "label": "A"}]', '[{"role": "developer", "salary": 3}]',
            '[{"from": "2020", "to": "2021"}]', '[{"content": "x"}]']  # fmt: skip
    rows = [{**PAIR, "chosen": answer} for answer in fair]
    assert len(load_preferences(write(tmp_path / "m.jsonl", rows)).examples) == len(fair)


def test_votes_of_one_pair_in_both_orders_belong_together(tmp_path):
    flipped = {"instruction": "i", "output_1": "y", "output_2": "x"}
    rows = [
        FARM,
        {**flipped, "preference": 1},
        {**flipped, "preference": 2},
        {**FARM, "preference": 0},
    ]
    (example,) = load_preferences(write(tmp_path / "f.jsonl", rows), include_ties=True).examples
    assert example.completions == ("x", "y") and example.votes == {(0, 1): (1.5, 2.5)}


def test_graded_and_missing_preferences(tmp_path):
    other = {**FARM, "instruction": "j"}
    graded = [{**FARM, "preference": p} for p in (1.25, "2.0", None)]
    data = load_preferences(write(tmp_path / "g.jsonl", [*graded, {**other, "preference": None}]))
    (example,) = data.examples
    assert example.votes == {(0, 1): (0.75, 1.25)} and example.ranks == (2, 1)
    assert data.dropped == {"no preference": 1}
    assert data.notes == [
        "preference 1 is output_1, 2 is output_2, divided in between",
        "a row is a rater's vote, half for each answer where it is a tie",
        "rater rows without a preference: 2",
        "raters of a pair: 0 (1 pair), 2 (1 pair)",
    ]


@pytest.mark.parametrize(
    ("good", "lacking", "dropped"),
    [
        (HH, {"chosen": None}, "empty completion"),
        (HH, {"rejected": ""}, "no common prompt"),
        ({"question": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
         {"answers": []}, "fewer than two completions"),
        ({**PAIR, "chosen": ["a"], "rejected": ["b", "c"]}, {"chosen": []}, "all ranks tied"),
    ],
)  # fmt: skip
def test_a_first_row_without_answers_is_dropped_like_any_other(tmp_path, good, lacking, dropped):
    path = write(tmp_path / "rows.jsonl", [{**good, **lacking}, good])
    first = load_preferences(path)
    last = load_preferences(write(tmp_path / "rows.jsonl", [good, {**good, **lacking}]))
    assert first.dropped == last.dropped == {dropped: 1}
    assert [e.completions for e in first.examples] == [e.completions for e in last.examples]
