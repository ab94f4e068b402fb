"""reproduce/train_reward_model.py: which pairs it takes."""

from ranking.data.splits import opening
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
