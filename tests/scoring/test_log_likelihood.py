"""Log-likelihoods and gradients against token-by-token float64 scoring of the same ids."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DYNAMIC, FAMILIES, GPT, LONGROPE, SMALL, make_model, random_examples, score
from transformers import AutoModelForCausalLM

from ranking.scoring.log_likelihood import (
    PACKED,
    ScoringPath,
    compute_token_logps,
    compute_token_logps_plain,
    head_logps,
)
from ranking.scoring.rotary import by_length_class
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import TokenizedCompletion

PLAIN = ScoringPath("plain")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def brute_force(model, completion: TokenizedCompletion) -> np.ndarray:
    """log π(y_t | x, y_<t) in float64, one prefix at a time."""
    double = model.double()
    logps = []
    with torch.no_grad():
        for t in range(completion.start, len(completion.ids)):
            logits = double(torch.tensor([completion.ids[:t]]), use_cache=False).logits[0, -1]
            logps.append(torch.log_softmax(logits.double(), -1)[completion.ids[t]].item())
    model.float()
    return np.array(logps)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_brute_force(family):
    model_type, config, expected_path = FAMILIES[family]
    model = make_model(model_type, config)
    tokenized = random_examples(n=6)
    truth = [[brute_force(model, c) for c in example] for example in tokenized]
    path = check_fast_path(model, tokenized)
    assert path.kind == expected_path, path
    scores = score(model, tokenized, path)
    for index, example in enumerate(truth):
        for expected, found in zip(example, scores[index]):
            np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.std([x.mean() for e in truth for x in e]) > 0.05  # the models are not uniform


@pytest.mark.parametrize(("model_type", "config"), [("phi3", LONGROPE), ("llama", DYNAMIC)])
@pytest.mark.parametrize("path", ["segments", "plain"])
def test_frequencies_are_those_of_each_completions_own_length(model_type, config, path):
    """Values and gradients against a new model for each completion; 16 and 17 tokens differ in
    LongRoPE's factors, and both completions of a prompt may."""
    tokens = [random.Random(k) for k in range(8)]
    tokenized = [
        [TokenizedCompletion(tuple(r.choices(range(2, 600), k=n)), n // 2, False) for n in lengths]
        for r, lengths in zip(tokens, [(9, 14), (16, 17), (15, 18), (40, 9), (33, 34), (70, 50)])
    ]
    for k, (first, second) in enumerate(tokenized):  # a prompt in common
        start = min(first.start, second.start)
        tokenized[k] = [replace(c, ids=(*first.ids[:start], *c.ids[start:]), start=start)
                        for c in (first, second)]  # fmt: skip
    everyone = [c for example in tokenized for c in example]
    truth = []
    for completion in everyone:
        fresh = make_model(model_type, config)
        logits = fresh(input_ids=torch.tensor([completion.ids])).logits[
            0, completion.start - 1 : -1
        ]
        targets = torch.tensor(completion.ids[completion.start :])
        logps = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
        truth.append((logps.detach(), torch.autograd.grad(logps.sum(), fresh.lm_head.weight)[0]))
    model = make_model(model_type, config)
    found_path = check_fast_path(model, tokenized)
    assert found_path == PACKED
    scored = score(model, tokenized, ScoringPath(path))
    flat = [x for index in range(len(tokenized)) for x in scored[index]]
    for (expected, _), found in zip(truth, flat, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    compute = compute_token_logps if path == "segments" else compute_token_logps_plain
    sum(logps.sum() for logps in compute(model, everyone)).backward()
    torch.testing.assert_close(
        model.lm_head.weight.grad, sum(g for _, g in truth), atol=1e-3, rtol=1e-3
    )
    assert len(by_length_class(model, everyone)) > 1


def test_head_slicing_matters_for_softcap_fixture():
    """The gemma2 fixture's caps bind: without them its log-likelihoods would differ."""
    model_type, config, _ = FAMILIES["gemma2 (window 8, soft caps)"]
    loose = {**config, "final_logit_softcapping": None, "attn_logit_softcapping": 1e6}
    completion = random_examples(n=1)[0][0]
    capped, free = (brute_force(make_model(model_type, c), completion) for c in (config, loose))
    assert np.abs(capped - free).max() > 0.1


def test_window_fixture_is_shorter_than_the_text():
    completion = max((c for e in random_examples(n=6) for c in e), key=lambda c: len(c.ids))
    windowed = make_model("mistral", {**SMALL, "sliding_window": 8})
    full = make_model("mistral", {**SMALL, "sliding_window": None})
    assert np.abs(brute_force(windowed, completion) - brute_force(full, completion)).max() > 0.01


def test_plain_path_batches_change_nothing():
    model = make_model("bloom", GPT)
    tokenized = random_examples(n=10)
    alone, together = score(model, tokenized, PLAIN, 1), score(model, tokenized, PLAIN, 2000)
    for index in range(10):
        for a, b in zip(alone[index], together[index]):
            np.testing.assert_allclose(a, b, atol=2e-5)


@needs_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_gpu_equals_cpu(family):
    """float32: the same path and log-likelihoods; bfloat16: the start-up check says the same, and
    packed rows move log-likelihoods no further than rounding does."""
    model_type, config, expected_path = FAMILIES[family]
    model, tokenized = make_model(model_type, config), random_examples(n=6)
    path = check_fast_path(model, tokenized)
    truth = score(model, tokenized, path)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        on_gpu = make_model(model_type, config).to("cuda", dtype)
        gpu_path = check_fast_path(on_gpu, tokenized)
        assert gpu_path.kind == expected_path, gpu_path
        scores = score(on_gpu, tokenized, gpu_path)
        differences = np.concatenate(
            [a - b for i in truth for a, b in zip(truth[i], scores[i], strict=True)]
        )
        if dtype == torch.float32 or expected_path == "segments":
            assert np.abs(differences).mean() < tolerance


@pytest.mark.parametrize("offloaded", ["model.layers.1", "lm_head", "model.embed_tokens"])
def test_model_spread_over_memory_and_disk(tiny_model_directory, tmp_path, offloaded):
    """accelerate moves each layer in when its forward pass begins: the same log-likelihoods."""
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu",
              "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu", offloaded: "disk"}  # fmt: skip
    spread = AutoModelForCausalLM.from_pretrained(
        tiny_model_directory, device_map=places, offload_folder=tmp_path, dtype=torch.float32
    ).eval()
    whole = AutoModelForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32).eval()
    tokenized = random_examples(n=6)
    assert check_fast_path(spread, tokenized) == PACKED
    assert any(parameter.device.type == "meta" for parameter in spread.parameters())
    found, expected = score(spread, tokenized, PACKED), score(whole, tokenized, PACKED)
    for i in expected:
        for a, b in zip(found[i], expected[i]):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral (window 8)"])
def test_gradients_equal_plain_cross_entropy(family):
    model_type, config, _ = FAMILIES[family]
    model = make_model(model_type, config)
    example = random_examples(n=3)[2]
    loss = sum(
        torch.nn.functional.cross_entropy(
            model(torch.tensor([c.ids])).logits[0, c.start - 1 : -1], torch.tensor(c.ids[c.start :])
        )
        * (len(c.ids) - c.start)
        for c in example
    )
    loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (-sum(logps.sum() for logps in compute_token_logps(model, example))).backward()
    for name, gradient in expected.items():
        found = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, atol=1e-3, rtol=1e-3)


class OtherLinear(torch.nn.Linear):
    """What a quantized or adapted head looks like: not a plain linear layer."""


@pytest.mark.parametrize("kind", ["sliced", "bias", "softcap", "other module"])
def test_head_over_several_slices_of_the_vocabulary_with_gradients(kind):
    """4999 words are three slices, the last one short; values and gradients against float64."""
    extra = {"final_logit_softcapping": 2.0, "sliding_window": 8} if kind == "softcap" else {}
    family = "gemma2" if kind == "softcap" else "llama"
    model = make_model(family, {**SMALL, "vocab_size": 4999, "tie_word_embeddings": False, **extra})
    head = (OtherLinear if kind == "other module" else torch.nn.Linear)(32, 4999, kind == "bias")
    model.set_output_embeddings(head)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(150, 32, generator=generator, requires_grad=True)
    targets = torch.cat(
        [torch.tensor([0, 2047, 2048, 4095, 4096, 4998]),
         torch.randint(0, 4999, (144,), generator=generator)]
    )  # fmt: skip
    weights = torch.randn(150, generator=generator)

    found = head_logps(model, hidden, targets)
    if kind == "sliced":  # a second derivative would be a wrong one
        (first,) = torch.autograd.grad(found.square().sum(), hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
        found = head_logps(model, hidden, targets)
    (found * weights).sum().backward()
    gradients = [hidden.grad, *(parameter.grad for parameter in head.parameters())]

    leaves = [x.detach().double().requires_grad_() for x in (hidden, *head.parameters())]
    logits = leaves[0] @ leaves[1].T + (leaves[2] if kind == "bias" else 0)
    logits = 2.0 * torch.tanh(logits / 2.0) if kind == "softcap" else logits
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    (expected * weights.double()).sum().backward()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-6)
    for ours, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(ours.double(), leaf.grad, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(head_logps(model, hidden, targets), found.detach())
