"""Names of metrics on a tracker's page."""

from ranking.reports.metric_names import grouped_metrics


def test_each_metric_has_one_name():
    logged = {"eval_train_groups/a": 1, "eval_ranking/b": 2, "eval_rewards/b": 3, "test_groups/a": 4,
              "eval_sample/loss": 5, "eval_train/loss": 6, "eval_train_loss": 7, "eval_distance/squared": None}  # fmt: skip
    others = {"test_loss": 3, "eval_loss": 1, "epoch": 4, "rewards/chosen": 5, "loss": 6}
    grouped, rest = grouped_metrics({**logged, **others})
    assert rest == others
    assert grouped == {
        "train groups/a": 1,
        "train pairs/loss": 7,
        "validation ranking/b": 2,
        "validation rewards/b": 3,
        "test groups/a": 4,
        "validation sample/loss": 5,  # of one of several datasets
        "validation train/loss": 6,  # of one that is called so
    }


def test_times_and_counts_of_evaluations_are_left_out():
    """Training's are not: steps go on, and speed is what one looks at."""
    counters = [f"{prefix}_{name}" for prefix in ("eval", "eval_train", "eval_A", "test")
                for name in ("runtime", "samples_per_second", "steps_per_second", "num_tokens")]  # fmt: skip
    kept = {"train_runtime": 1, "num_tokens": 2, "train_samples_per_second": 3}
    assert grouped_metrics({**dict.fromkeys(counters, 1.0), **kept}) == ({}, kept)
