"""Batches, order, budgets, memory and processes change no log-likelihood."""

import random

import numpy as np
import pytest
import torch
from conftest import SMALL, LimitedMemory, make_model, random_examples, score

from ranking.scoring.log_likelihood import PACKED
from ranking.scoring.score import token_logps_of_batches
from ranking.scoring.start_up_check import check_fast_path


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


def test_done_examples_are_left_out():
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=10)
    check_fast_path(model, tokenized)
    scores = score(model, tokenized, PACKED, done=frozenset({0, 3, 9}))
    assert sorted(scores) == [1, 2, 4, 5, 6, 7, 8]


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
