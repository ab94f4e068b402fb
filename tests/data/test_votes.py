"""Votes of several raters: rows of one pair belong together, whatever the order of the answers."""

import pytest
from preference_rows import write

from ranking.data.preferences import load_preferences
from ranking.data.votes import label_rule


def row(label, a="x", b="y", **more):
    return {"prompt": "p", "response_a": a, "response_b": b, "label": label, **more}


def test_rows_of_one_pair_are_its_votes(tmp_path):
    rows = [row("A", judge="1", turn=1), row("A", "y", "x", judge="2", turn=1),
            row("tie", judge="3", turn=1), row("A", judge="4", turn=2), row("error", judge="5", turn=2)]  # fmt: skip
    data = load_preferences(write(tmp_path / "r.jsonl", rows), include_ties=True)
    first, second = data.examples
    assert first.completions == ("x", "y") and first.ranks == (1, 1)
    assert first.votes == {(0, 1): (1.5, 1.5)} and second.votes == {(0, 1): (1, 0)}
    assert data.notes == [
        "label names the preferred answer",
        "a row is a rater's vote, half for each answer where it is a tie",
        "rater rows without a preference: 1",
        "raters of a pair: 1 (1 pair), 3 (1 pair)",
    ]


def test_pairs_are_drawn_with_all_their_votes(tmp_path):
    rows = [{**row(label, judge=str(k)), "prompt": f"p{pair}"}
            for k, label in enumerate("AAB") for pair in range(30)]  # fmt: skip
    data = load_preferences(write(tmp_path / "r.jsonl", rows), sample_size=5)
    assert [e.votes for e in data.examples] == [{(0, 1): (2, 1)}] * 5


def test_one_label_a_pair_gives_no_votes(tmp_path):
    rows = [{**row("B", judge="1"), "prompt": f"p{k}"} for k in range(20)]
    data = load_preferences(write(tmp_path / "r.jsonl", rows))
    assert {e.votes for e in data.examples} == {None} and {e.ranks for e in data.examples} == {
        (2, 1)
    }
    twice = [{**row("B"), "prompt": f"p{k}"} for k in range(20)]  # nobody says who rated
    data = load_preferences(write(tmp_path / "r.jsonl", [*twice, twice[0]]))
    assert len(data.examples) == 21 and data.examples[0].votes is None
    data = load_preferences(write(tmp_path / "r.jsonl", [*twice, *twice[:5]]))
    assert len(data.examples) == 20 and data.examples[0].votes == {(0, 1): (0, 2)}
    missing = [*twice, row(None)]
    assert load_preferences(write(tmp_path / "r.jsonl", missing)).dropped == {"no preference": 1}


SHARES = {  # values of a label column, and what of a vote goes to the second answer
    "words": (["model_a", "model_b", "tie", "tie (bothbad)", "both_bad"], [0, 1, 0.5, 0.5, 0.5]),
    "letters": (["A", "b", "[[A]]", "Response B", ""], [0, 1, 0, 1, None]),
    "comparisons": (["A>B", "B>A", "A=B", "A>>B", "A<B"], [0, 1, 0.5, 0, 1]),
    "degrees": (["A-is-clearly-better", "B-is-slightly-better", "Tie"], [0, 1, 0.5]),
    "from one": ([1, 2, 3], [0, 1, 0.5]),
    "from one, as floats": ([1.0, 2.0], [0, 1]),
    "columns": (["response_a", "response_b"], [0, 1]),
}


@pytest.mark.parametrize("case", SHARES)
def test_labels(case):
    values, shares = SHARES[case]
    rule = label_rule(values, "label", "response_a", "response_b")
    assert [rule.share(value) for value in values] == shares


OPEN = {  # values of `label`, and the answers beside it
    "one value": ([1], "ab"), "a lone 0": ([0], "ab"), "from 0, letters": ([0, 1], "ab"),
    "a tie at 0 or 2": ([0, 1, 2], "ab"), "signs": ([-1, 1], "ab"), "grades": ([-0.5, 0.5], "ab"),
    "three signs": ([-1, 0, 1], "12"), "-1 and 2": ([-1, 2], "ab"), "-1 to 3": ([0, -1, 3], "ab"),
    "a third beside two": ([0, 1, 2], "01"), "from 1, names from 0": ([1, 2], "01"),
    "names from 1": ([0, 1], "12"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPEN)
def test_labels_that_can_be_meant_in_two_ways(case):
    values, (first, second) = OPEN[case]
    with pytest.raises(ValueError, match="which answer that prefers is not said"):
        label_rule(values, "label", f"response_{first}", f"response_{second}")


def test_names_of_columns_say_how_labels_count():
    assert label_rule([1], "label", "output_1", "output_2").share(1) == 0
    assert label_rule([1], "label", "answer_0", "answer_1").share(1) == 1
    assert label_rule([1], "choice", "a", "b").share(1) == 1
    assert label_rule([0, 1], "winner", "answer_a", "answer_b").share(1) == 1
    assert label_rule([1], "overall_preference", "a", "b").share(1) == 1
    assert label_rule([1.5], "preference", "output_1", "output_2").share(1.5) == 0.5
    rule = label_rule([0, 1, 2], "label", "output_1", "output_2")
    assert [rule.share(label) for label in (0, 1, 2)] == [0.5, 0, 1]
    signed = label_rule([-3, 2, 0, None], "overall_preference", "a", "b")
    assert [signed.share(grade) for grade in (-3, 2, 0, None)] == [0, 1, 0.5, None]
    with pytest.raises(ValueError, match="holds 0, 1.*write output_1, output_2 or tie there"):
        label_rule([0, 1], "label", "output_1", "output_2")


def test_a_rater_that_the_first_row_does_not_name(tmp_path):
    """One further row of a pair among twelve is too few to be raters' but for the column."""
    rows = [{**row("B"), "prompt": f"p{k}"} for k in range(11)]
    rows.append({**rows[0], "label": "A", "judge": "2"})
    data = load_preferences(write(tmp_path / "r.jsonl", rows), include_ties=True)
    assert len(data.examples) == 11 and data.examples[0].votes == {(0, 1): (1, 1)}


@pytest.mark.parametrize("values", [[1, 2, 2], [0, 1] * 10])
def test_a_strength_that_never_is_below_0_does_not_say_which_answer(tmp_path, values):
    pairs = [{"prompt": f"p{k}", "response_a": "x", "response_b": "y", "preference_strength": v}
             for k, v in enumerate(values)]  # fmt: skip
    with pytest.raises(ValueError, match="none of its .* rows is below 0") as error:
        load_preferences(write(tmp_path / "r.jsonl", pairs))
    assert "\n" not in str(error.value)
    chosen = [{**pair, "choice": k % 2} for k, pair in enumerate(pairs)]
    examples = load_preferences(write(tmp_path / "r.jsonl", chosen)).examples
    assert [e.ranks for e in examples[:3]] == [(1, 2), (2, 1), (1, 2)]


def test_votes_are_counted_beside_two_answers(tmp_path):
    counted = {"prompt": "p", "response_a": "x", "response_b": "y", "votes": [1, 4]}
    for votes in ({}, {"label": "A"}, {"votes": "[1, 4]"}):
        (example,) = load_preferences(write(tmp_path / "r.jsonl", [counted | votes])).examples
        assert example.votes == {(0, 1): (1, 4)} and example.ranks == (2, 1)
    pair = {"prompt": "p", "chosen": "x", "rejected": "y"}
    (example,) = load_preferences(write(tmp_path / "r.jsonl", [{**pair, "votes": [3, 1]}])).examples
    assert example.votes == {(0, 1): (3, 1)}
    rows = [{**pair, "prompt": "q"}, {**pair, "votes": [3, 1]}]  # of which the first has none
    first, second = load_preferences(write(tmp_path / "r.jsonl", rows)).examples
    assert first.votes is None and second.votes == {(0, 1): (3, 1)}
    upvoted = write(tmp_path / "r.jsonl", [{**pair, "votes": 17}])
    assert load_preferences(upvoted).examples[0].votes is None


def test_a_column_in_which_the_rows_of_a_pair_differ_is_no_group(tmp_path):
    """It says who rated, not what was rated: the first row's value would stand for all."""
    pair = {"prompt": "p", "response_a": "good", "response_b": "bad", "label": "A"}
    rows = [{**pair, "judge": judge, "source": judge[0], "topic": "t", "id": k}
            for k, judge in enumerate(("ann", "bob"))]  # fmt: skip
    rows.append({**rows[0], "prompt": "q", "topic": "u"})
    path = write(tmp_path / "v.jsonl", rows)
    with pytest.raises(ValueError, match="no groups by judge: .* differ in it, as in ann and bob$"):
        load_preferences(path, group_by=["topic", "judge"])
    assert [e.groups for e in load_preferences(path, group_by=["topic"]).examples] == [
        {"topic": "t"}, {"topic": "u"}]  # fmt: skip
    data = load_preferences(path)
    assert "source differs between the rows of one example: not grouped" in data.notes
    assert [e.groups for e in data.examples] == [{}, {}]
