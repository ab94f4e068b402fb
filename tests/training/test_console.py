"""Lines and times of a run, from values by hand and from metrics of known pairs."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from ranking.metrics.dynamics import pair_values, summarize_pairs
from ranking.training.console import (
    Clock,
    Console,
    duration,
    evaluation_lines,
    per_second,
    row_counts,
    seconds_left,
    training_line,
)
from ranking.training.plan import Outlook, Schedule


def pairs(seed: int, n: int) -> tuple[dict, dict[str, float]]:
    """Random pairs, and their metrics."""
    rng = np.random.default_rng(seed)
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    logps = {name: -50 * rng.random(n) for name in names}
    logps |= {"n_chosen": rng.integers(5, 40, n), "n_rejected": rng.integers(5, 40, n)}
    return logps, summarize_pairs(pair_values(logps, 0.1, 1.0), 0.1)


def test_the_line_of_an_evaluation_counts_what_was_flipped():
    """Of a mixture, a line for all and one for each dataset, with counts by brute force."""
    parts = {"eval": ("_", 40), "eval_A": ("/", 25), "eval_B": ("/", 15)}
    metrics, wanted = {"eval_loss": 0.6543, "eval_runtime": 1.0, "eval_distance/squared": 1.5}, []
    for seed, (prefix, (between, n)) in enumerate(parts.items()):
        logps, found = pairs(seed, n)
        metrics |= {f"{prefix}{between}{name}": value for name, value in found.items()}
        wrong = logps["ref_chosen"] < logps["ref_rejected"]
        right = logps["chosen"] >= logps["rejected"]
        flipped = 100 * (wrong & right).sum() / wrong.sum()
        wanted.append((f"flipped {(wrong & right).sum()} of {wrong.sum()}, {flipped:.1f} %",
                       f"R {100 * right.mean():.1f} %"))  # fmt: skip
    counts = {prefix: n for prefix, (_, n) in parts.items()}
    lines = evaluation_lines(metrics, counts, "step 8")
    assert [line.split()[2] for line in lines] == ["validation", "A", "B"]
    for line, texts in zip(lines, wanted):
        assert line.startswith("step 8  ") and all(text in line for text in texts)
    assert "loss 0.6543" in lines[0] and "distance² 1.5" in lines[0] and "loss" not in lines[1]
    (followed,) = evaluation_lines(
        {f"eval_train_{k}": v for k, v in pairs(3, 9)[1].items()}, {}, "step 8"
    )
    assert followed.split()[2] == "train" and " of " not in followed


def test_the_line_of_texts_has_their_perplexity():
    metrics = {"eval_loss": np.log(20.0), "eval_A/loss": 2.0, "eval_A/entropy": 3.0}
    lines = evaluation_lines(metrics, {}, "step 1", is_nll=True)
    assert lines[0] == "step 1  validation  loss 2.9957  perplexity 20"
    assert lines[1] == "step 1  A           loss 2.0000  perplexity 7.389"
    assert "perplexity" not in evaluation_lines(metrics, {}, "step 1")[0]


def test_training_line_and_durations():
    logs = {"loss": 0.69314, "grad_norm": 12.345, "learning_rate": 1e-6}
    line = training_line(logs, "step 4", "8 pairs/s", "12 min left")
    assert line == (
        "step 4  loss 0.6931  learning rate 1e-06  gradient 12.3  8 pairs/s  12 min left"
    )
    assert per_second(12.345, "pairs") == "12.3 pairs/s"
    assert per_second(4970.2, "tokens") == "4,970 tokens/s"
    texts = {45: "45 s", 99.4: "99 s", 700: "12 min", 3 * 3600 + 290: "3 h 05 min",
             2 * 86400 + 4 * 3600: "2 d 04 h"}  # fmt: skip
    assert {seconds: duration(seconds) for seconds in texts} == texts


def test_time_left_is_that_of_steps_evaluations_checkpoints_and_the_test():
    """A run whose steps take 2 s, evaluated rows ½ s, checkpoints 3 s, played to its end."""
    outlook = Outlook(20, Schedule("steps", 6, 0, True), Schedule("steps", 10), 4, 0.1)
    now = [0.0]
    clock = Clock(lambda: now[0])

    def spend(what: str, seconds: float, n: int) -> None:
        now[0] += seconds
        clock.lap(what, n)

    assert seconds_left(clock, outlook, 0, final_rows=10) is None
    spend("step", 2, 1)
    unseen = 19 * 2 + (4 * 4 + 10) * 0.1 * 2  # evaluations as the outlook has them, no checkpoints
    assert seconds_left(clock, outlook, 1, final_rows=10) == pytest.approx(unseen)
    spend("evaluation", 2, 4)
    left = {}
    for step in range(2, 21):
        spend("step", 2, 1)
        if step % 10 == 0:
            spend("checkpoint", 3, 1)
        if step % 6 == 0 or step == 20:
            spend("evaluation", 2, 4)
        left[step] = seconds_left(clock, outlook, step, final_rows=10), now[0]
    end = now[0] + 10 * 0.5
    assert all(at + seconds == pytest.approx(end) for step, (seconds, at) in left.items()
               if step >= 10)  # fmt: skip


def test_row_counts_of_several_sets():
    one, two = Dataset.from_dict({"pair": [0, 1, 2]}), Dataset.from_dict({"pair": [0, 1]})
    assert row_counts({"eval": one, "eval_train": None}) == {"eval": 3}
    assert row_counts({"eval": {"C": two, "D": one}}) == {"eval_C": 2, "eval_D": 3}


def test_lines_go_above_the_bar_and_none_after_training(capsys):
    outlook = Outlook(2, Schedule("steps", 1), Schedule("no"), 4, 0.1)
    sizes = {"eval": 4}
    console = Console(outlook, sizes, sizes, batch=3, what="pairs", final_rows=4, is_nll=True,
                      has_bar=True)  # fmt: skip
    state = SimpleNamespace(global_step=0, max_steps=2, epoch=0.0, is_world_process_zero=True,
                            log_history=[], num_input_tokens_seen=0)  # fmt: skip
    call = {"args": None, "state": state, "control": None}
    console.on_train_begin(**call)
    state.global_step, state.epoch = 1, 0.5
    console.on_step_end(**call)
    console.on_log(**call, logs={"loss": 1.5})
    console.on_prediction_step(**call)
    evaluated = {"eval_loss": 1.0, "eval_runtime": 0.1}
    console.on_evaluate(**call, metrics=evaluated)
    console.on_train_end(**call)
    console.on_evaluate(**call, metrics=evaluated)
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\r", "\n").split("\n") if "loss" in line]
    assert not out and len(lines) == 2
    assert "step 1  epoch 0.50  loss 1.5000" in lines[0] and "pairs/s" in lines[0]
    assert "step 1  epoch 0.50  validation  loss 1.0000  perplexity 2.718" in lines[1]
    assert "evaluating, batch 1" in err and "step 1 of 2" in err and "trained 1 step in" in err


def test_a_resumed_run_counts_its_own_tokens(capsys):
    """Not those before the checkpoint, some of them after its last log, which num_tokens goes on
    from."""
    outlook = Outlook(4, Schedule("no"), Schedule("no"), 0, 0.1)
    console = Console(outlook, {}, {}, batch=3, what="texts", final_rows=0, is_nll=True,
                      has_bar=False)  # fmt: skip
    state = SimpleNamespace(global_step=2, max_steps=4, epoch=0.5, is_world_process_zero=True,
                            num_input_tokens_seen=5300, log_history=[{"num_tokens": 5000.0}, {"eval_loss": 1.0}])  # fmt: skip
    call = {"args": None, "state": state, "control": None}
    console.on_train_begin(**call)
    state.global_step = 3
    console.clock.seconds["step"] = 2.0
    console.on_log(**call, logs={"loss": 1.5, "num_tokens": 5600.0})
    assert "  150 tokens/s" in capsys.readouterr().err
