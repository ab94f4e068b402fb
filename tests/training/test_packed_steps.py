"""Optimizer steps through packed rows: losses and gradients against TRL's own trainers."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_dpo_gamma_trainer import losses_and_weights, tiny_model
from trl import SFTConfig, SFTTrainer

from ranking.data.conversions import sft_texts
from ranking.data.preferences import load_preferences
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
