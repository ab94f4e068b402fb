"""Optimizer steps through packed rows: losses and gradients against TRL's own trainers."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GPT
from datasets import Dataset
from peft import LoraConfig
from test_dpo_gamma_trainer import cached_rows, losses_and_weights, tiny_model, trainer
from trl import SFTConfig, SFTTrainer

from ranking.data.conversions import preference_pairs, sft_texts
from ranking.data.preferences import load_preferences
from ranking.scoring.log_likelihood import ScoringPath
from ranking.training import packed_steps
from ranking.training.packed_steps import divide_further, fitting_tokens, take_examples
from ranking.training.sft_trainer import PackedSFTTrainer
from ranking.training.texts import IGNORED, tokenize_texts


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Dialogues of the sample data, one of them a continuation of another; labels as sft.py's."""
    texts = sft_texts(load_preferences("sample").examples)
    found, _ = tokenize_texts(tokenizer, texts[:20], None, 160, add_eos=False)
    two_turns = max(found, key=lambda row: sum(np.diff(np.array(row["labels"]) == IGNORED)))
    longer = {name: [*two_turns[name], 5, 6, 7] for name in ("input_ids", "labels")}
    return [*found[:13], longer]


def sft(folder, tokenizer, rows, kind=PackedSFTTrainer, model=None, **more):
    """A trainer whose steps show in its weights."""
    extra = {name: more.pop(name) for name in ("eval_dataset", "peft_config") if name in more}
    settings = {
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 4, "max_steps": 4,
        "logging_steps": 1, "optim": "sgd", "learning_rate": 0.5, "report_to": "none", "seed": 3,
        "lr_scheduler_type": "constant", "use_cpu": True, "bf16": False, "save_strategy": "no",
        "disable_tqdm": True, "gradient_checkpointing": False, "max_grad_norm": 1e9, **more,
    }  # fmt: skip
    budget = settings.pop("tokens_per_batch", None)
    arguments = SFTConfig(output_dir=str(folder), **settings)
    arguments.tokens_per_batch = budget
    return kind(model=model or tiny_model(), args=arguments, train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer, **extra)  # fmt: skip


SPLITS = [(1, 8, 4), (2, 4, 200), (4, 2, 100_000), (8, 1, 300)]


def test_sft_equals_trl_whatever_the_split(tmp_path, tokenizer, rows):
    """Losses and weights of four steps, of which the second is the short last one of an epoch."""
    peer = sft(tmp_path, tokenizer, rows, SFTTrainer)
    want, weights = losses_and_weights(peer)
    n_tokens = [e["num_tokens"] for e in peer.state.log_history if "num_tokens" in e]
    assert len(want) == 4 and want.std() > 1e-2
    for batch, accumulation, budget in SPLITS:
        run = sft(tmp_path, tokenizer, rows, per_device_train_batch_size=batch,
                  gradient_accumulation_steps=accumulation, tokens_per_batch=budget)  # fmt: skip
        assert run.path.is_packed
        losses, found = losses_and_weights(run)
        np.testing.assert_allclose(losses, want, atol=1e-5)
        torch.testing.assert_close(found, weights, atol=2e-5, rtol=0)
        assert [e["num_tokens"] for e in run.state.log_history if "num_tokens" in e] == n_tokens
        assert run.state.total_flos > 0


def test_evaluation_loss_is_the_mean_over_tokens(tmp_path, tokenizer, rows):
    """By hand in float64; in any batches and rows, and by TRL's own forward pass."""
    model = tiny_model().double()
    nats, n = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        nats -= logps[labels != IGNORED].sum().item()
        n += int((labels != IGNORED).sum())
    evaluated = Dataset.from_list(rows)
    for batch, budget in ((1, 50), (4, 100_000)):
        run = sft(tmp_path, tokenizer, rows, eval_dataset=evaluated, tokens_per_batch=budget,
                  per_device_eval_batch_size=batch)  # fmt: skip
        assert run.evaluate()["eval_loss"] == pytest.approx(nats / n, rel=1e-6)
    run.path = ScoringPath("plain", "asked for by the test")
    assert run.evaluate()["eval_loss"] == pytest.approx(nats / n, rel=1e-6)


def test_texts_without_a_response_token(tmp_path, tokenizer, rows):
    """Beside others they change nothing, in rows of their own neither; alone they are one line."""
    silent = {"input_ids": [3, 4, 5], "labels": [IGNORED] * 3}
    both = Dataset.from_list([silent, *rows[:2], silent])
    more = {"tokens_per_batch": 1, "max_steps": 2, "per_device_train_batch_size": 4}
    run = sft(tmp_path, tokenizer, [silent] * 2 + rows[:2], eval_dataset=both, **more)
    alone = sft(tmp_path, tokenizer, rows[:2], eval_dataset=both.select([1, 2]), **more)
    assert run.path.is_packed
    assert run.evaluate()["eval_loss"] == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-6)
    np.testing.assert_allclose(losses_and_weights(run)[0], losses_and_weights(alone)[0], rtol=1e-6)
    logged = set().union(*run.state.log_history)
    assert not logged & {"entropy", "mean_token_accuracy"}
    with pytest.raises(ValueError, match="eval: no text has a response token"):
        run.evaluate(both.select([0, 3]))
    with pytest.raises(ValueError, match="no text has a response token to train on"):
        sft(tmp_path, tokenizer, [silent])


def test_another_dataset_is_evaluated_alone(tmp_path, tokenizer, rows):
    """Not the mixture and the named sets that are evaluated where none is given."""
    names = ["one"] * 3 + ["two"] * 2
    mixture = Dataset.from_list([{**row, "dataset": name} for row, name in zip(rows, names)])
    other = Dataset.from_list(rows[7:9])
    kind = partial(PackedSFTTrainer, eval_sets={"A": other})
    run = sft(tmp_path, tokenizer, rows, kind, eval_dataset=mixture)
    own, found = run.evaluate(), run.evaluate(other)
    assert {"eval_one/loss", "eval_two/loss", "eval_A/loss"} <= own.keys()
    assert found["eval_loss"] == own["eval_A/loss"] != own["eval_loss"]
    assert not [name for name in found if "/" in name]


def test_persistent_workers_read_the_set_that_is_asked_for(tmp_path, tokenizer, rows):
    """Not the one before, whose loader Trainer keeps."""
    own, other, losses = Dataset.from_list(rows[:4]), Dataset.from_list(rows[7:9]), []
    for more in ({}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}):
        run = sft(tmp_path, tokenizer, rows, eval_dataset=own, **more)
        losses.append([run.evaluate()["eval_loss"], run.evaluate(other)["eval_loss"]])
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]


def test_sft_with_an_adapter_checkpointing_and_bfloat16(tmp_path, tokenizer, rows):
    """As TRL's, with and without; bfloat16 to its own rounding."""
    lora = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "down_proj"],
                      task_type="CAUSAL_LM")  # fmt: skip
    for more, tolerance in (
        ({"peft_config": lora}, 1e-5),
        ({"peft_config": lora, "gradient_checkpointing": True}, 1e-5),
        ({"bf16": True, "learning_rate": 0.1}, 2e-2),
    ):
        losses = []
        for kind in (SFTTrainer, PackedSFTTrainer):
            torch.manual_seed(0)
            run = sft(tmp_path, tokenizer, rows, kind, max_steps=2, **more)
            losses.append(losses_and_weights(run)[0])
        assert run.path.is_packed and run.model.config._attn_implementation == "sdpa"
        np.testing.assert_allclose(losses[1], losses[0], atol=tolerance)


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"loss_type": "dft"}, "--loss_type dft"), ({"label_smoothing_factor": 0.1}, "--label_smoothing"),
     ({"neftune_noise_alpha": 5.0}, "--neftune_noise_alpha")],
)  # fmt: skip
def test_other_losses_take_trls_forward_pass(tmp_path, tokenizer, rows, capsys, more, reason):
    losses = []
    for kind in (SFTTrainer, PackedSFTTrainer):
        torch.manual_seed(0)
        losses.append(
            losses_and_weights(sft(tmp_path, tokenizer, rows, kind, max_steps=2, **more))[0]
        )
    assert losses[0].tolist() == losses[1].tolist()
    assert f"SFT by TRL's own forward pass (plain: {reason}" in capsys.readouterr().err


def test_sft_of_alibi_takes_trls_forward_pass(tmp_path, tokenizer, rows):
    losses = []
    for kind in (SFTTrainer, PackedSFTTrainer):
        model = tiny_model(model_type="bloom", config={**GPT, "hidden_size": 32})
        run = sft(tmp_path, tokenizer, rows, kind, model, max_steps=2)
        losses.append(losses_and_weights(run)[0].tolist())
    assert losses[0] == losses[1] and not run.path.is_packed


# ---------------------------------------------------------------------------- DPO
@pytest.fixture(scope="module")
def pairs(tokenizer):
    texts = preference_pairs(load_preferences("sample").examples)[:14]
    texts = [{k: p[k][:90] for k in ("prompt", "chosen", "rejected")} for p in texts]
    return cached_rows(tokenizer, texts, tiny_model())


def dpo(folder, tokenizer, pairs, batch, accumulation, budget, **more):
    return trainer(folder, tokenizer, pairs, model=tiny_model(1), ref_model=None, beta=0.01,
                   precompute_ref_log_probs=True, per_device_train_batch_size=batch,
                   gradient_accumulation_steps=accumulation, tokens_per_batch=budget, **more)  # fmt: skip


def test_dpo_steps_whatever_the_split(tmp_path, tokenizer, pairs):
    """Four steps of eight pairs and, the last of an epoch, six: losses, metrics and weights."""
    whole = dpo(tmp_path, tokenizer, pairs, 8, 1, 100_000)
    assert whole.path.is_packed
    want, weights = losses_and_weights(whole)
    assert want.std() > 1e-3
    for batch, accumulation, budget in SPLITS:
        run = dpo(tmp_path, tokenizer, pairs, batch, accumulation, budget)
        losses, found = losses_and_weights(run)
        np.testing.assert_allclose(losses, want, atol=1e-5)
        torch.testing.assert_close(found, weights, atol=3e-5, rtol=0)
        for mine, theirs in zip(run.state.log_history, whole.state.log_history):
            for name in theirs.keys() - {"epoch", "total_flos"}:  # of padded batches
                if not name.startswith("train_"):
                    assert mine[name] == pytest.approx(theirs[name], abs=1e-3, rel=1e-4), name


@pytest.mark.parametrize("loss", ["bco_pair", ["sigmoid", "sft"], "js"])
def test_evaluation_loss_is_the_mean_over_pairs(tmp_path, tokenizer, pairs, monkeypatch, loss):
    """Of losses that are not one of a margin: each pair once, whatever batches they come in; those
    with a part that is a mean over a batch's tokens keep TRL's way."""
    monkeypatch.setattr(packed_steps, "EVALUATED_AT_ONCE", 9)  # 14 pairs: 9 and 5
    more = {"loss_type": loss}
    if loss == "js":
        more = {"loss_type": "sigmoid", "f_divergence_type": "js_divergence"}
    run = dpo(tmp_path, tokenizer, pairs, 8, 1, 200, eval_dataset=pairs,
              per_device_eval_batch_size=4, **more)  # fmt: skip
    run.model.eval()
    step = 1 if run.divides_steps else 4
    parts = [
        [pairs[k] for k in range(first, min(first + step, 14))] for first in range(0, 14, step)
    ]
    with torch.no_grad():
        losses = [run.compute_loss(run.model, run.data_collator(part)).item() for part in parts]
    want = np.average(losses, weights=[len(part) for part in parts])
    run._metrics["eval"].clear()
    metrics = run.evaluate()
    assert run.divides_steps == (loss != ["sigmoid", "sft"]) and np.std(losses) > 1e-3
    assert metrics["eval_loss"] == pytest.approx(want, rel=1e-5)
    assert "eval_samples_per_second" in metrics and "eval_steps_per_second" not in metrics


def test_examples_that_only_fill_up_a_batch_are_not_counted(tmp_path, tokenizer, pairs):
    """As accelerate gathers: all processes' batches one after the other, cut to the remainder."""
    run = dpo(tmp_path, tokenizer, pairs, 8, 1, 200)

    def counted(remainder, is_last=True):
        found = []
        for process in range(3):
            run.accelerator = SimpleNamespace(process_index=process, gradient_state=SimpleNamespace(
                end_of_dataloader=is_last, remainder=remainder))  # fmt: skip
            found.append(run.count_once(4))
        return found

    for remainder in range(1, 12):
        kept = [number for number in range(12) if number < remainder]
        assert counted(remainder) == [sum(n // 4 == k for n in kept) for k in range(3)]
    assert counted(0) == counted(-1) == counted(5, is_last=False) == [4, 4, 4]


def test_a_row_without_memory_is_halved_down_to_single_examples(tmp_path, tokenizer, pairs):
    run = dpo(tmp_path, tokenizer, pairs, 8, 1, 2000)
    memory = torch.OutOfMemoryError("out of memory")
    runs = []

    def fails(rows):
        runs.append(run.budgets["eval"])
        run.rows = rows
        if len(runs) < 3:
            raise memory
        return torch.ones(())

    assert run.within_memory("eval", lambda: fails([[0, 1], [2]])) == 1
    assert runs == [2000, 1000, 500]
    runs.clear()
    with pytest.raises(ValueError, match="with one example in a row"):
        run.within_memory("eval", lambda: fails([[0], [1]]))
    assert runs == [500]
    run.args = SimpleNamespace(world_size=2)  # where no process needs the others to evaluate
    runs.clear()
    assert run.within_memory("eval", lambda: fails([[0, 1]])) == 1 and run.budgets["eval"] == 125
    runs.clear()
    with pytest.raises(ValueError, match="give a lower --tokens_per_batch"):
        run.within_memory("train", lambda: fails([[0, 1]]))


def test_tokens_that_fit_are_those_of_later_rows_beside_gradients():
    """Rows of 3 bytes a token, gradients of 1000, which the first row allocates."""
    first, later = (200, 1600), [(100, 300), (50, 140)]
    assert fitting_tokens([first, *later], free=10_000, kept=1000, gradients=1000) == 8000 / 3 // 1
    assert fitting_tokens([first], free=10_000, kept=1000, gradients=1000) == 9000 / 8


def test_a_loss_of_the_whole_batch_keeps_its_batches(tmp_path, tokenizer, pairs):
    """A budget below one pair changes nothing."""
    more = {"loss_type": "aot", "max_steps": 2}
    runs = [dpo(tmp_path, tokenizer, pairs, 4, 2, budget, **more) for budget in (30, None)]
    assert not runs[0].divides_steps
    losses = [losses_and_weights(run)[0].tolist() for run in runs]
    assert losses[0] == losses[1]


def test_rows_are_divided_until_there_are_enough():
    rows = [[0, 1, 2, 3, 4], [5], [6, 7]]
    for n in range(3, 9):
        found = divide_further(rows, n)
        assert len(found) == n and sorted(k for row in found for k in row) == list(range(8))
        assert all(found)
    assert len(divide_further(rows, 12)) == 8 and rows[0] == [0, 1, 2, 3, 4]


def test_examples_of_batches_of_other_widths():
    """Two sequences an example, one above the other; cut to the longest that is taken."""
    first = {"input_ids": torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9], [10, 0, 0, 0]]),
             "number": torch.tensor([20, 21])}  # fmt: skip
    second = {"input_ids": torch.tensor([[11, 12], [13, 0]]), "number": torch.tensor([22])}
    for batch in (first, second):
        batch["attention_mask"] = (batch["input_ids"] > 0).long()
    taken = take_examples([first, second], [(1, 0), (0, 1)], sides=2)
    assert taken["input_ids"].tolist() == [[11, 12], [4, 5], [13, 0], [10, 0]]
    assert taken["number"].tolist() == [22, 21]
    taken = take_examples([first, second], [(0, 0), (1, 0)], sides=2)
    assert taken["input_ids"].tolist() == [
        [1, 2, 3, 0],
        [11, 12, 0, 0],
        [6, 7, 8, 9],
        [13, 0, 0, 0],
    ]


# ---------------------------------------------------------------------------- kills and settings
@pytest.mark.parametrize("budget", [None, 1])
def test_every_row_is_evaluated_though_training_drops_its_last_batch(
    tmp_path, tokenizer, rows, monkeypatch, budget
):
    monkeypatch.setattr(packed_steps, "EVALUATED_AT_ONCE", 9)  # 14 texts: 9 and 5
    losses = []
    for drops in (False, True):
        run = sft(tmp_path, tokenizer, rows, eval_dataset=Dataset.from_list(rows),
                  dataloader_drop_last=drops, per_device_eval_batch_size=4)  # fmt: skip
        if budget is not None:
            run.path = ScoringPath("plain", "asked for by the test")
        losses.append(run.evaluate()["eval_loss"])
        assert run.args.dataloader_drop_last == drops
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_resumed_run_counts_the_tokens_since_the_last_log_too(tmp_path, tokenizer, rows):
    """Checkpoint 3 lies between the logs of steps 2 and 4."""
    more = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    counts = []
    for checkpoint in (None, str(tmp_path / "checkpoint-3")):
        run = sft(tmp_path, tokenizer, rows, **more)
        run.train(resume_from_checkpoint=checkpoint)
        counts.append([e["num_tokens"] for e in run.state.log_history if "num_tokens" in e])
    lengths = [len(row["input_ids"]) for row in rows]
    assert counts[0] == counts[1] and counts[0][-1] == 2 * sum(lengths)  # two epochs


def test_a_resumed_run_fits_its_rows_to_a_gpu_too(tmp_path, tokenizer, pairs, monkeypatch):
    """By what the first step of the process takes, once."""
    run = dpo(tmp_path, tokenizer, pairs, 8, 1, None)
    run.accelerator = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    run.state.global_step = 100
    free, taken = 10**8, 600_000
    for name, value in {
        "memory_allocated": 1000, "memory_reserved": 1000, "max_memory_allocated": 1000 + taken,
        "reset_peak_memory_stats": None, "mem_get_info": (free, free),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    run.note_memory(run.note_memory(), run.data_collator([pairs[0]]))
    ((n_tokens, bytes_taken),) = run.row_bytes
    assert bytes_taken == taken
    run.lengthen_rows()
    assert run.budgets["train"] == int(0.85 * free / (taken / n_tokens)) > 4096
    assert run.note_memory() is None


def test_the_test_split_has_no_metrics_of_the_validation_set(tmp_path, tokenizer, rows):
    """TRL's forward pass gives token accuracies, which TRL calls eval_… whatever is evaluated."""
    run = sft(tmp_path, tokenizer, rows, eval_dataset=Dataset.from_list(rows), loss_type="dft")
    own = run.evaluate()
    found = run.evaluate(Dataset.from_list(rows[:3]), metric_key_prefix="test")
    assert "eval_mean_token_accuracy" in own and found["test_loss"] != own["eval_loss"]
    assert not [name for name in found if name.startswith("eval_")]
