"""A metric that no evaluation gives is found before a model is loaded."""

import pytest
from preference_rows import write

from ranking.training.best_metric import check_best_metric, evaluation_metrics
from ranking.training.splits import load_parts


@pytest.fixture
def parts(tmp_path):
    """Two datasets, one evaluation set."""
    pair = {"chosen": "yes", "rejected": "no"}
    for name in ("one", "two", "other"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {k}?", **pair} for k in range(30)])
    one, two, other = (str(tmp_path / f"{name}.jsonl") for name in ("one", "two", "other"))
    return load_parts([one, two], eval_names=[other])


def test_names_of_the_data(parts):
    assert set(evaluation_metrics(parts, False)) == {"loss", "one/loss", "two/loss", "other/loss"}
    for name in ("eval_loss", "two/rewards/margins", "eval_other/groups/correct_to_correct_share",
                 "train_ranking/accuracy", "distance/squared", None, "other/runtime"):  # fmt: skip
        check_best_metric(name, parts, True)


@pytest.mark.parametrize(
    ("name", "of_pairs", "nearest"),
    [
        ("rankng", True, None),
        ("eval_ranking/acuracy", True, "ranking/accuracy"),
        ("othr/rewards/margins", True, "other/rewards/margins"),
        ("num_tokns", True, None),
        ("ones/loss", False, "one/loss"),
        ("ranking/accuracy", False, None),
    ],
)
def test_others_are_refused(parts, name, of_pairs, nearest):
    with pytest.raises(ValueError) as error:
        check_best_metric(name, parts, of_pairs)
    end = f"; did you mean {nearest}?" if nearest else ""
    assert str(error.value) == f"--metric_for_best_model {name}: no evaluation gives it{end}"
