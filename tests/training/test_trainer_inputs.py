"""Evaluations of several sets: each has the metrics and rows that it has alone."""

import pytest
from datasets import Dataset
from test_dpo_gamma_trainer import cached_rows, tiny_model, trainer
from test_dpo_gamma_trainer import texts as texts  # a fixture
from transformers import TrainerCallback

from ranking.metrics.dynamics import lowest_loss_step, parts_of
from ranking.plumbing.result_files import read_json_lines

KEYS = ("loss", "ranking/accuracy", "groups/correct_to_correct_share", "logps/rejected")


class Evaluations(TrainerCallback):
    """The metrics of each evaluation, as callbacks see them."""

    def __init__(self):
        self.seen = []

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.seen.append(dict(metrics))


@pytest.fixture
def sets(tokenizer, texts):
    rows = cached_rows(tokenizer, texts, tiny_model())
    return rows, {"a": rows.select(range(6)), "b": rows.select(range(4, 13))}


def run_of(tmp_path, tokenizer, rows, name, **sets):
    return trainer(
        tmp_path, tokenizer, rows, model=tiny_model(1), alpha=0.5,
        dynamics_dataset=rows.select(range(5)), dynamics_file=tmp_path / f"{name}.jsonl", **sets,
    )  # fmt: skip


def rows_of(path, part):
    return [{**r, "part": None} for r in read_json_lines(path) if r["part"] == part]


def test_named_sets_beside_the_validation_set(tmp_path, tokenizer, sets):
    """In one evaluation: the metrics and rows of each are those of an evaluation of it alone, and
    the validation set's are as without them."""
    rows, named = sets
    run = run_of(tmp_path, tokenizer, rows, "named", eval_dataset=rows, eval_sets=named)
    seen = Evaluations()
    run.add_callback(seen)
    metrics = run.evaluate()
    assert len(seen.seen) == 1 and seen.seen[0] == metrics
    plain = run_of(tmp_path, tokenizer, rows, "plain", eval_dataset=rows)
    without = plain.evaluate()
    for key, value in without.items():
        if not key.endswith(("runtime", "second", "preparation_time")):
            assert metrics[key] == pytest.approx(value, abs=1e-5), key
    file = tmp_path / "named.jsonl"
    assert parts_of(read_json_lines(file)) == ["train", "validation", "a", "b"]
    for part in ("train", "validation"):
        assert rows_of(file, part) == rows_of(tmp_path / "plain.jsonl", part)
    for name, own in named.items():
        alone = run_of(tmp_path, tokenizer, rows, f"alone-{name}", eval_dataset=own)
        wanted = alone.evaluate()
        for key in KEYS:
            value = pytest.approx(wanted[f"eval_{key}"], abs=1e-5)
            assert metrics[f"eval_{name}/{key}"] == value
        recorded = rows_of(file, name)
        assert [row["id"] for row in recorded] == own["id"]
        chosen = [row["chosen"] for row in rows_of(tmp_path / f"alone-{name}.jsonl", "validation")]
        assert [row["chosen"] for row in recorded] == pytest.approx(chosen, abs=1e-4)
    run.evaluate()  # the same step again
    assert len(read_json_lines(file)) == 5 + 16 + 6 + 9
    assert run.evaluate(named["a"])["eval_loss"] == pytest.approx(metrics["eval_a/loss"], abs=1e-6)


def test_several_sets_by_name_as_trainer_takes_them(tmp_path, tokenizer, sets):
    """Trainer's names of their metrics; rows of each, with the distance."""
    rows, named = sets
    run = run_of(tmp_path, tokenizer, rows, "dict", eval_dataset=named)
    metrics = run.evaluate()
    for name, own in named.items():
        wanted = run.evaluate(own)
        for key in KEYS:
            assert metrics[f"eval_{name}_{key}"] == pytest.approx(wanted[f"eval_{key}"], abs=1e-5)
        assert [row["id"] for row in rows_of(tmp_path / "dict.jsonl", name)] == own["id"]
    recorded = read_json_lines(tmp_path / "dict.jsonl")
    assert parts_of(recorded) == ["train", "a", "b"] and lowest_loss_step(recorded) == 0
    assert {row["squared_distance"] for row in recorded if row["part"] == "a"} == {0.0}
    assert metrics["eval_train_loss"] > 0 and "eval_loss" not in metrics
    run.evaluate("b")  # under other names: no rows of it
    assert len(read_json_lines(tmp_path / "dict.jsonl")) == len(recorded)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eval_dataset": {"train": 0}}, "'train' has the metrics of dynamics_dataset"),
        ({"eval_dataset": 0, "eval_sets": {"train": 0}}, "'train' has the metrics of dynamics"),
        ({"eval_dataset": 0, "eval_sets": {"validation": 0}}, "has the metrics of eval_dataset"),
        ({"eval_dataset": {"a": 0}, "eval_sets": {"b": 0}}, "put those of eval_sets there"),
    ],
)
def test_names_that_are_taken(tmp_path, tokenizer, sets, given, message):
    rows, _ = sets
    filled = {
        key: {name: rows for name in value} if isinstance(value, dict) else rows
        for key, value in given.items()
    }
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, tokenizer, rows, "names", **filled)


def test_a_mixture_of_texts_has_the_metrics_of_each_dataset(tmp_path, tokenizer, texts):
    """Named in the column `dataset`; not where it names one, or is something else."""
    names = ["one"] * 3 + ["two"] * 5
    mixture = [{**row, "dataset": name} for row, name in zip(texts, names)]
    others = [[{**row, "dataset": value} for row in texts[:4]] for value in ("one", 3)]
    run = trainer(tmp_path, tokenizer, texts, model=tiny_model(1), alpha=0.5)
    metrics = run.evaluate(Dataset.from_list(mixture))
    for name, own in (("one", texts[:3]), ("two", texts[3:8])):
        wanted = run.evaluate(Dataset.from_list(own))
        for key in KEYS:
            value = pytest.approx(wanted[f"eval_{key}"], abs=1e-5)
            assert metrics[f"eval_{name}/{key}"] == value
    for rows in others:
        assert "eval_one/loss" not in run.evaluate(Dataset.from_list(rows))
