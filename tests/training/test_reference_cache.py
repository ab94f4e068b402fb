"""Reference log-likelihoods: equal to plain scoring, paid for once, never stale."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL, make_model, tokenize

from ranking.scoring.log_likelihood import compute_token_logps_plain
from ranking.scoring.tokenization import Texts, tokenize_examples
from ranking.training.reference_cache import (
    cache_file,
    completion_key,
    hash_model,
    read_cache,
    reference_logps,
)

EXAMPLES = [
    ("How are you?", (" Fine, thanks.", " No.")),
    ("How are you today?", (" Good", " Bad weather")),
    ("Why?", (" Because of it", " Hm")),
]


@pytest.fixture
def model():
    return make_model("llama", SMALL)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path))
    return tmp_path / "reference"


def test_equal_to_plain_scoring_and_paid_once(model, tokenizer, counted, cache):
    tokenized = tokenize(tokenizer, EXAMPLES)
    double = make_model("llama", SMALL).double()
    with torch.no_grad():
        want = [[compute_token_logps_plain(double, [c])[0].double().sum().item() for c in e] for e in tokenized]  # fmt: skip
    first = reference_logps(model, tokenized)
    np.testing.assert_allclose(first, want, atol=1e-4)
    assert np.array_equal(reference_logps(model, tokenized), first)
    assert np.array_equal(reference_logps(model, tokenized[::-1]), first[::-1])
    assert counted == [3]
    (file,) = cache.iterdir()
    assert len(read_cache(file)) == 6


def test_changed_inputs_never_hit(model, tokenizer, counted):
    reference_logps(model, tokenize(tokenizer, EXAMPLES))
    for change in (
        {"add_eos": True}, {"separator": "\n"}, {"max_length": 7},
    ):  # fmt: skip
        separators = [change.pop("separator", "")] * 2
        examples = [Texts(*example, separators) for example in EXAMPLES]
        reference_logps(model, tokenize_examples(tokenizer, examples, **change).completions)
    assert counted[:3] == [3, 3, 3] and len(counted) == 4
    tokenized = tokenize(tokenizer, EXAMPLES)
    reference_logps(model, tokenized, autocast=torch.bfloat16)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    reference_logps(model, tokenized)
    assert len(counted) == 6


def test_key_of_the_model(model):
    same = make_model("llama", SMALL)
    assert hash_model(same) == hash_model(model)
    same.config._name_or_path = "elsewhere"
    assert hash_model(same) == hash_model(model)
    same.config.rope_parameters["rope_theta"] = 123.0
    assert hash_model(same) != hash_model(model)
    assert cache_file(model, None) != cache_file(model, torch.bfloat16)
    as_cached = cache_file(same, None)
    same.__class__ = type("Own", (type(same),), {"__module__": "transformers_modules.own.4f2c"})
    assert cache_file(same, None) != as_cached  # of other code
    assert hash_model(model.to(torch.bfloat16)) != hash_model(make_model("llama", SMALL))


def test_same_text_after_another_boundary_is_another_entry(model, tokenizer, counted):
    moved = [("How are", (" you? Fine, thanks.", " you? No."))]
    reference_logps(model, tokenize(tokenizer, EXAMPLES[:1]))
    logps = reference_logps(model, tokenize(tokenizer, moved))
    assert counted == [1, 1] and (logps < -20).all()


def test_torn_line_is_computed_again(model, tokenizer, counted, cache):
    tokenized = tokenize(tokenizer, EXAMPLES)
    first = reference_logps(model, tokenized)
    (file,) = cache.iterdir()
    nan = json.dumps([completion_key(tokenized[0][0]), float("nan")]).encode()  # a foreign hand's
    file.write_bytes(nan + b"\n" + file.read_bytes()[:-9])
    assert reference_logps(model, tokenized) == pytest.approx(first, abs=1e-4)
    assert counted == [3, 1] and len(read_cache(file)) == 6


def test_non_finite_reference_is_an_error_and_not_cached(model, tokenizer, cache):
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="3 pairs a non-finite log-likelihood"):
        reference_logps(model, tokenize(tokenizer, EXAMPLES))
    (file,) = cache.iterdir()
    assert read_cache(file) == {}
