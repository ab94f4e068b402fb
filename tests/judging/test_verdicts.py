"""Pairs and verdicts, by a judge that is a function."""

from dataclasses import replace

import pytest

from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.judging.verdicts import judge_pairs, pair_responses, win_by_rewards
from ranking.plumbing.result_files import read_json_lines

PROMPTS = [
    PreferenceExample(k, f"p{k}", f"{k}?", ("yes",), ("",), (1,), None, "d", row)
    for row, k in enumerate("abcd")
]
DATA = PreferenceData("d", None, "train", None, [], {}, [])


def pairs_of(policy: str, *responses):
    """A policy's pairs; the reference says yes to all but the last prompt, which it cannot take."""
    own = {prompt.id: text for prompt, text in zip(PROMPTS, responses)}
    other = {"a": "yes", "b": "yes", "c": "yes", "d": None}
    return pair_responses({"model": policy}, PROMPTS, own, other, DATA)


def test_pairs_are_of_prompts_that_both_could_answer():
    (pair,) = pairs_of("m", None, "no", None, "no")
    assert pair == {"model": "m", "id": "b", "prompt_id": "pb", "dataset": "d", "split": "train",
                    "prompt": "b?", "policy_response": "no", "other_response": "yes"}  # fmt: skip
    with pytest.raises(ValueError, match="no prompt has tokens"):
        pairs_of("m", None, None, None, "no")


def test_a_pair_has_the_groups_of_its_prompt():
    prompts = [replace(PROMPTS[0], groups={"domain": "code"}), PROMPTS[1]]
    answers = {"a": "yes", "b": "no"}
    pairs = pair_responses({"model": "m"}, prompts, answers, answers, DATA)
    assert [pair.get("groups") for pair in pairs] == [{"domain": "code"}, None]


def test_only_what_differs_is_asked_and_what_is_judged_is_kept(tmp_path, capsys):
    """Like responses are a tie, a policy without any response has no verdict, earlier rows stay."""
    path, asked = tmp_path / "examples.jsonl", []

    def judge(pairs):
        asked.extend((pair["model"], pair["id"]) for pair in pairs)
        for pair in reversed(pairs):  # in an order of its own
            yield {**pair, "win": 1.0}

    pairs = [*pairs_of("m", "no", "yes", "never", "-"), *pairs_of("silent", "", "", "", "")]
    earlier = [{**pairs[0], "win": 0.0}]
    judged = judge_pairs(judge, pairs, earlier, path)
    assert asked == [("m", "c")]
    assert [(row["model"], row["id"], row["win"]) for row in judged] == [
        ("m", "a", 0.0), ("m", "b", 0.5), ("silent", "a", None), ("silent", "b", None),
        ("silent", "c", None), ("m", "c", 1.0),
    ]  # fmt: skip
    assert [row.get("identical") for row in judged] == [None, True, None, None, None, None]
    assert read_json_lines(path) == judged[1:]
    assert "every response of silent is empty: it gets no win rate" in capsys.readouterr().err
    with pytest.raises(ValueError, match="every response of silent is empty: nothing to judge"):
        judge_pairs(judge, pairs[3:], [], path)


def test_the_higher_reward_wins():
    assert [win_by_rewards(2.0, other) for other in (1.0, 2.0, 3.0)] == [1.0, 0.5, 0.0]
    assert win_by_rewards(float("nan"), 1.0) is win_by_rewards(1.0, float("inf")) is None
