"""reproduce/train_reward_model.py: which pairs it takes."""

import pytest

from ranking.data.splits import opening
from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import write_json_lines
from ranking.training.splits import load_parts
from reproduce import train_reward_model


def test_the_judge_has_not_seen_the_policys_dialogues(tmp_path):
    """The examples are those that dpo.py draws; no opening is on two sides."""
    rows = [{"prompt": f"\n\nHuman: {k % 40}\n\nAssistant: yes\n\nHuman: and {k}\n\nAssistant:",
             "chosen": f" good {k}", "rejected": f" bad {k}"} for k in range(100)]  # fmt: skip
    write_json_lines(tmp_path / "train.jsonl", rows)
    file = str(tmp_path / "train.jsonl")
    policy, unseen = train_reward_model.divided_examples(file, None, n_policy=20)
    drawn = load_parts([file], n_train=20)["train"].examples
    assert policy == drawn
    openings = [{opening(e) for e in part} for part in (policy, unseen)]
    assert not openings[0] & openings[1] and len(unseen) > 20
    test, train = train_reward_model.keep_aside(unseen, 10, seed=0)
    sides = [{pair["prompt"].split("\n\nAssistant:")[0] for pair in part} for part in (test, train)]
    assert len(test) == 10 and train and not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("flag", "value", "give"),
    [("--batch-size", "0", "a positive number"), ("--max-length", "-5", "a positive number"),
     ("--n-pairs", "0", "a positive number"), ("--epochs", "0", "a positive number"),
     ("--learning-rate", "nan", "a positive number"), ("--seed", "-1", "a number from 0 to ")],
)  # fmt: skip
def test_impossible_values_are_said_at_once(flag, value, give, tmp_path, capsys):
    flags = ["--lm-name-or-path", "m", "--output-dir", str(tmp_path), flag, value]
    with pytest.raises(SystemExit):
        train_reward_model.parse_args(flags)
    assert f"{flag} {value}: give {give}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [([], "--n-test-pairs 100 keeps all pairs of 24 examples aside: give less"),
     (["--unless-trained-on", "23"], "--unless-trained-on 23: all other dialogues open like one")],
)  # fmt: skip
def test_few_pairs_name_the_flag_that_leaves_none(more, message, tmp_path, capsys):
    """30 rows, of which 24 are trained on; one question opens all of the second case's."""
    question = "\n\nHuman: {}\n\nAssistant: yes\n\nHuman: and {}\n\nAssistant:"
    rows = [{"prompt": question.format(1 if more else k, k), "chosen": " good", "rejected": " bad"}
            for k in range(30)]  # fmt: skip
    (tmp_path / "data").mkdir()
    for split in ("train", "test") if more else ("train",):
        write_json_lines(tmp_path / "data" / f"{split}.jsonl", rows[: 24 if more else 30])
    flags = ["--lm-name-or-path", "m", "--output-dir", str(tmp_path / "rm"), *more,
             "--dataset", str(tmp_path / "data"), "--device", "cpu"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        run_script(train_reward_model.main, train_reward_model.parse_args(flags))
    assert stop.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err
