"""Every causal-LM family of the installed transformers, tiny and random: exact, whichever path.

Families that a small text configuration cannot build are skipped with the reason. The list of
families in benchmarks/README.md on the fast path is compared with what is found here.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_examples, score
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ranking.scoring.log_likelihood import compute_token_logps_plain
from ranking.scoring.start_up_check import check_fast_path

pytestmark = pytest.mark.slow
README = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text(encoding="utf-8")
TINY = {
    "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "n_embd": 32, "n_layer": 2,
    "n_head": 4, "n_positions": 512, "rotary_dim": 4, "d_model": 32, "n_layers": 2, "n_heads": 4,
    "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "ffn_dim": 48,
    "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
    "window_size": 8, "sliding_window": 8, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "state_size": 4, "max_position_embeddings": 512, "is_decoder": True,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
MOST_PARAMETERS = 8_000_000


def build(family: str):
    """A tiny random model of the family; skips the test with the reason if there is none."""
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(family, **TINY)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > MOST_PARAMETERS:
            pytest.skip(f"smallest configuration has {size} parameters")
        model = AutoModelForCausalLM.from_config(config).float().eval()
    except Exception as error:  # whatever a configuration class or a missing package raises
        pytest.skip(f"cannot be built: {type(error).__name__}: {error}".splitlines()[0][:150])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)  # far from uniform
    return model


def context_matters(model, completion, logps) -> bool:
    """Whether another prompt of the same length changes the log-likelihoods."""
    prompt = [(token * 7 + 3) % 500 + 2 for token in completion.ids[: completion.start]]
    other = replace(completion, ids=(*prompt, *completion.ids[completion.start :]))
    with torch.inference_mode():
        changed = compute_token_logps_plain(model, [other])[0].numpy()
    return bool(np.abs(changed[1:] - logps[1:]).max(initial=0) > 0.01)


def listed_families() -> set[str]:
    """The families that benchmarks/README.md says take the fast path."""
    (listing,) = re.findall(r"<!-- fast path -->(.*?)<!-- end -->", README, flags=re.S)
    return set(re.findall(r"[a-z0-9_-]+", listing))


@pytest.mark.parametrize("family", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_family_is_exact_on_whichever_path(family):
    model = build(family)
    tokenized = random_examples(n=6)
    try:
        with torch.inference_mode():
            truth = [
                [compute_token_logps_plain(model, [c])[0].numpy() for c in example]
                for example in tokenized
            ]
    except Exception as error:  # needs images, a longer text, a GPU kernel, …
        pytest.skip(f"does not score text: {type(error).__name__}: {error}".splitlines()[0][:150])
    if not all(math.isfinite(x.sum()) for example in truth for x in example):
        pytest.skip("random weights give no finite log-likelihood")
    if not context_matters(model, tokenized[0][0], truth[0][0]):
        pytest.skip("random weights of this family ignore the context: nothing to compare")
    path = check_fast_path(model, tokenized)
    scores = score(model, tokenized, path)
    for index, example in enumerate(truth):
        for expected, found in zip(example, scores[index], strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-3)
    assert path.is_packed == (family in listed_families()), path
