"""Attention of packed rows against dense attention with the whole mask."""

import pytest
import torch
from conftest import FAMILIES, make_model, random_examples, score

from ranking.scoring.attention import segment_attention
from ranking.scoring.log_likelihood import PACKED, compute_token_logps
from ranking.scoring.packing import build_row
from ranking.scoring.start_up_check import check_fast_path
from ranking.scoring.tokenization import TokenizedCompletion

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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


def test_soft_capped_attention_drops_weights_in_training():
    """Of the values' unit vectors come the weights: each is dropped or twice as large."""
    torch.manual_seed(0)
    row = build_row([TokenizedCompletion(tuple(range(17)), 1, False)])
    query, key = torch.randn(2, 1, 2, 16, 16)
    value = torch.eye(16).expand(1, 2, 16, 16)
    how = {"scaling": 0.25, "softcap": 2.0, "packed_row": row}
    whole = segment_attention(None, query, key, value, **how)[0]
    dropped = segment_attention(None, query, key, value, dropout=0.5, **how)[0]
    kept = dropped != 0
    assert 0 < kept.sum() < (whole != 0).sum()
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
