"""What is said of a run before it starts, against Trainer's own schedule, torch's own optimizers
and files as they are written."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import DefaultFlowCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ranking.metrics.dynamics import pair_values
from ranking.scoring.loading import load_model
from ranking.training.dynamics_file import append_dynamics, dynamics_rows
from ranking.training.plan import (
    DYNAMICS_ROW,
    Schedule,
    checkpoint_bytes,
    describe_disk,
    describe_schedule,
    describe_sparser,
    directory_bytes,
    evaluation_share,
    mean_tokens,
    merged_bytes,
    n_times,
    sparser_eval_steps,
)

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)


def times_of_trainer(schedule: Schedule, max_steps: int, after: int, n_per_epoch: int = 7) -> int:
    """How often Trainer's default flow evaluates from step `after` on."""
    flow, n = DefaultFlowCallback(), int(schedule.at_start and after == 0)
    delay = schedule.first / (n_per_epoch if schedule.strategy == "epoch" else 1)
    args = SimpleNamespace(
        logging_first_step=False, logging_strategy=IntervalStrategy.NO, eval_delay=delay,
        eval_strategy=IntervalStrategy(schedule.strategy), save_strategy=SaveStrategy.NO,
    )  # fmt: skip
    state = TrainerState(max_steps=max_steps, eval_steps=schedule.steps)
    for step in range(after + 1, max_steps + 1):
        state.global_step, state.epoch = step, step / n_per_epoch
        n += flow.on_step_end(args, state, TrainerControl()).should_evaluate
        if step % n_per_epoch == 0 or step == max_steps:
            n += flow.on_epoch_end(args, state, TrainerControl()).should_evaluate
    return n


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
@pytest.mark.parametrize("first", [0, 5, 14, 40])
def test_times_are_those_of_trainer(strategy, first):
    for max_steps, after, steps, at_start in (
        (21, 0, 4, True), (20, 0, 4, False), (20, 8, 4, True), (3, 0, 4, False), (21, 20, 5, True),
        (21, 21, 4, True), (1, 0, 1, False),
    ):  # fmt: skip
        schedule = Schedule(strategy, 7 if strategy == "epoch" else steps, first, at_start)
        wanted = times_of_trainer(schedule, max_steps, after)
        assert n_times(schedule, max_steps, after) == wanted, (max_steps, after, steps)


def test_share_of_evaluations_and_a_sparser_schedule():
    """The paper's command: 160,800 pairs of equal length, batches of 8, 5 epochs, every 100 steps
    1000 + 1000 pairs are scored: 1006 · 2000 forward passes beside 804,000 · 3."""
    n = n_times(Schedule("steps", 100, 0, True), 100_500)
    assert n == 1006
    share = evaluation_share(n, 2000 * 300, 100_500, 8 * 300, 2.0)
    assert share == pytest.approx(1006 * 2000 / (1006 * 2000 + 804_000 * 3))
    steps = sparser_eval_steps(2000 * 300, 100_500, 8 * 300, 2.0, at_start=True)
    assert steps == 760  # 804,000 · 3 / 9 / 2000 = 134 evaluations at most, one at the start
    for every, fits in ((steps, True), (steps - 10, False)):
        n = n_times(Schedule("steps", every, 0, True), 100_500)
        assert (evaluation_share(n, 2000 * 300, 100_500, 8 * 300, 2.0) <= 0.1) == fits
    assert sparser_eval_steps(2000, 10, 8, 2.0, at_start=False) is None
    assert evaluation_share(0, 0, 10, 8, 2.0) == 0


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw_torch", torch.optim.AdamW),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, alpha=0.99)),
        ("sgd", torch.optim.SGD),
        ("adagrad", torch.optim.Adagrad),
    ],
)
def test_checkpoint_bytes_are_those_of_weights_and_optimizer(name, make):
    model = torch.nn.Sequential(torch.nn.Linear(40, 50), torch.nn.Linear(50, 60))
    model[0].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = make(trained)
    model(torch.ones(40)).sum().backward()
    optimizer.step()
    states = sum(
        x.numel() * x.element_size()
        for state in optimizer.state.values() for x in state.values()
        if torch.is_tensor(x) and x.dim() > 0
    )  # fmt: skip
    weights = 4 * sum(p.numel() for p in model.parameters())
    counts = weights // 4, sum(p.numel() for p in trained), 4
    assert checkpoint_bytes(*counts, name, only_model=False) == weights + states
    assert checkpoint_bytes(*counts, name, only_model=True) == weights


@pytest.mark.parametrize("quantization", [None, pytest.param("4bit", marks=needs_bitsandbytes)])
def test_a_merged_model_has_the_bytes_of_its_base(quantization, tiny_model_directory, tmp_path):
    base = load_model(str(tiny_model_directory), quantization=quantization)
    adapter = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    size = (tiny_model_directory / "model.safetensors").stat().st_size
    assert merged_bytes(adapter) == pytest.approx(size, rel=0.02)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model.safetensors").write_bytes(b"12345")
    assert directory_bytes(tmp_path) == 5 and directory_bytes(tmp_path / "absent") == 0


def test_a_row_of_the_dynamics_file_has_about_this_size(tmp_path):
    rng = np.random.default_rng(0)
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    logps = {name: -100 * rng.random(50) for name in names}
    logps |= {"n_chosen": rng.integers(5, 200, 50), "n_rejected": rng.integers(5, 200, 50)}
    evaluation = {"step": 1200, "epoch": 1.2345678901, "part": "train", "beta": 0.1, "gamma": 1.0,
                  "squared_distance": 0.123456789012345, "loss_type": "alpha_scaling",
                  "rounding": 2.0**-23}  # fmt: skip
    ids = [f"{k:016x}" for k in range(50)]
    rows = dynamics_rows(pair_values(logps, 0.1, 1.0), ids, evaluation)
    append_dynamics(tmp_path / "d.jsonl", rows)
    size = (tmp_path / "d.jsonl").stat().st_size / 50
    assert pytest.approx(size, rel=0.05) == DYNAMICS_ROW


def test_tokens_of_pairs_and_texts():
    pairs = [
        {"chosen_ids": [1] * 7, "chosen_start": 4, "rejected_ids": [1] * 9, "rejected_start": 4},
        {"chosen_ids": [1] * 3, "chosen_start": 2, "rejected_ids": [1] * 3, "rejected_start": 1},
    ]
    assert mean_tokens(Dataset.from_list(pairs)) == (12 + 5) / 2
    texts = Dataset.from_list([{"input_ids": [1] * k} for k in range(1, 1001)])
    assert mean_tokens(texts) == pytest.approx(500.5, abs=2)


def test_what_the_lines_say(tmp_path):
    line = describe_schedule(
        "pairs", n_rows=160_800, batch=8, first_step=0, max_steps=100_500, epochs=5.0,
        n_evaluations=1006, evaluated=[1000, 1000], share=0.4548,
    )  # fmt: skip
    assert line == (
        "plan: 100,500 steps of 8 pairs (5 epochs of 160,800), 1,006 evaluations of 1,000 + 1,000 "
        "pairs: about 45 % of the time"
    )
    once = describe_schedule("texts", n_rows=160, batch=8, first_step=0, max_steps=1, epochs=0.9999,
                             n_evaluations=1, evaluated=[20], share=0.1)  # fmt: skip
    assert once == (
        "plan: 1 step of 8 texts (1 epoch of 160), 1 evaluation of 20 texts: about 10 % of the time"
    )
    assert "--eval_steps 760 --save_steps 760: about 10 %" in describe_sparser(760, (0, 0), True)
    sparser = describe_sparser(760, (8e8, 1e8), False)
    assert sparser.endswith("of the time, 100 MB of dynamics in place of 800 MB")
    assert "--max_eval_samples would" in describe_sparser(None, (0, 0), False)
    assert "or --dynamics_sample_size would" in describe_sparser(None, (9, 0), False)
    room, short = (
        describe_disk(
            1_500_000_000,
            2,
            {"the model": 500_000_000, "its base": 0, "ranking dynamics": 800_000_000},
            free,
            tmp_path,
        )
        for free in (5_000_000_000, 4_000_000_000)
    )
    assert room == ["disk: 3.0 GB of checkpoints (2 of 1.5 GB), 500 MB of the model, 800 MB of "
                    "ranking dynamics; 5.0 GB are free"]  # fmt: skip
    assert len(short) == 2 and f"{tmp_path} may need 4.3 GB and has 4.0 GB" in short[1]
