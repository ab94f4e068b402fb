"""Pairs with their texts and numbers, as tables of wandb."""

import json
import math

import pytest
from result_rows import scored_record

from ranking.data.conversions import preference_pairs
from ranking.data.examples import Dialogue, GivenScores, PreferenceExample
from ranking.metrics.rewards import reward_pairs
from ranking.reports.pairs import followed_pair_table, pair_table


def records(shift=0.0):
    first = scored_record(
        1, [-6.0 + shift, -4.0], [1, 2], n_tokens=[3, 1], votes={"0,1": [2.0, 1.0]}
    )
    first["completions"][0]["text"], first["completions"][1]["text"] = "good", "bad"
    second = scored_record(2, [None, -4.0, -1.0], [2, 2, 1], n_tokens=[3, 4, 5])
    second["groups"] = {"domain": "chat", "level": "1"}
    return [first, second]


def as_dicts(table):
    columns, lines = table
    return [dict(zip(columns, line)) for line in lines]


def test_a_line_for_each_pair():
    first, *others = as_dicts(pair_table(records(), []))
    assert len(others) == 2  # the first two of the second example are tied
    assert (first["id"], first["prompt"], first["chosen"], first["rejected"]) == (
        "1",
        "p",
        "good",
        "bad",
    )
    assert (first["ranked (R)"], first["log-ratio, nats"], first["length difference, tokens"]) == (
        "wrong",
        -2.0,
        2,
    )
    assert (first["ranked (R̃)"], first["log-ratio per token, nats"]) == ("right", 2.0)
    assert first["chosen: probability per token, %"] == pytest.approx(100 * math.exp(-2))
    assert (first["chosen: votes"], first["rejected: votes"]) == (2.0, 1.0)
    assert first["data group"] == "" and others[0]["data group"] == "domain: chat, level: 1"
    assert [line["log-ratio, nats"] for line in others] == [None, 3.0]
    assert [line["ranked (R)"] for line in others] == ["wrong", "right"]
    assert not {"reward margin, nats", "ranking group", "CHES"} & first.keys()


def test_rewards_where_a_reference_was_scored():
    before = records(shift=-1.5)
    pairs = list(reward_pairs(list(zip(records(), before)), 0.5))
    first, *others = as_dicts(pair_table(records(), pairs))
    assert (
        first["reward margin, nats"] == 0.75 and first["ranking group"] == "incorrect → incorrect"
    )
    assert (
        first["chosen: change, nats"],
        first["chosen: reward, nats"],
        first["rejected: reward, nats"],
    ) == (
        1.5,
        0.75,
        0,
    )
    assert others[0]["reward margin, nats"] is None and others[1]["reward margin, nats"] == 0


def test_no_pair():
    assert pair_table([], []) == ([], [])
    assert followed_pair_table({"hardest": []}, {}) == ([], [])


def test_pairs_that_training_followed():
    row = {"id": "a", "part": "train", "chosen": -6.0, "rejected": -4.0, "ref_chosen": -7.0,
           "ref_rejected": None, "n_chosen": 3, "n_rejected": 1, "group": "correct_to_incorrect",
           "reward_margin": None, "loss": 0.25, "beta": 0.5}  # fmt: skip
    texts = {"a": {"prompt": "p", "chosen": "good", "rejected": "bad"}}
    (line,) = as_dicts(followed_pair_table({"easiest": [row]}, texts))
    assert (line["kind"], line["part"], line["prompt"], line["chosen"]) == (
        "easiest",
        "train",
        "p",
        "good",
    )
    assert (
        line["log-ratio, nats"],
        line["log-ratio per token, nats"],
        line["tuned loss, nats"],
    ) == (-2.0, 2.0, 0.25)
    assert (line["ranked (R)"], line["ranked (R̃)"]) == ("wrong", "right")
    assert (line["chosen: change, nats"], line["chosen: reward, nats"]) == (1.0, 0.5)
    assert "rejected: change, nats" not in line and line["ranking group"] == "correct → incorrect"


def test_pairs_of_dialogues_are_cells_of_any_tracker():
    """Messages and a reference's scores are no columns: no tracker takes them."""
    example = PreferenceExample(
        "a", "p", "\n\nHuman: p\n\nAssistant:", ("good", "bad"), (" ", " "), (1, 2), None, "d", 1,
        dialogue=Dialogue(({"role": "user", "content": "p"},)), reference=GivenScores((-7.0, -4.0)),
    )  # fmt: skip
    (pair,) = preference_pairs([example])
    row = {"id": "a", "part": "train", "chosen": -6.0, "rejected": -4.0, "ref_chosen": -7.0,
           "ref_rejected": -4.0, "n_chosen": 3, "n_rejected": 1, "group": "correct_to_incorrect",
           "reward_margin": 0.5, "loss": 0.25, "beta": 0.5}  # fmt: skip
    columns, (line,) = followed_pair_table({"easiest": [row]}, {"a": pair})
    assert columns[:6] == ["kind", "part", "id", "prompt", "chosen", "rejected"]
    assert json.loads(json.dumps(line))[3:6] == [example.prompt, "good", "bad"]
