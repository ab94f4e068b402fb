"""Rows that are computed at once are those that are computed one after the other."""

from threading import Barrier

import numpy as np
import pytest
import torch
from conftest import DYNAMIC, SMALL, make_model, random_examples, score

import ranking.scoring.side_by_side as side_by_side_module
from ranking.scoring.log_likelihood import PACKED
from ranking.scoring.score import token_logps_of_batches
from ranking.scoring.side_by_side import in_order, rows_at_once, side_by_side, with_shared_weights
from ranking.scoring.start_up_check import check_fast_path


@pytest.fixture(params=[2, 3])
def threads(request, monkeypatch):
    monkeypatch.setattr(side_by_side_module, "LEAST_WORK", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def of_one_thread(model, tokenized, **how):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = score(model, tokenized, PACKED, **how)
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("config", [SMALL, DYNAMIC], ids=["llama", "by the length"])
def test_rows_side_by_side_are_those_one_after_the_other(threads, config):
    model = make_model("llama", config)
    tokenized = random_examples(n=30)
    assert check_fast_path(model, tokenized) == PACKED and rows_at_once(model, 30, 30) == threads
    truth, found = of_one_thread(model, tokenized, tokens=30), score(model, tokenized, PACKED, 30)
    assert list(found) == list(truth)  # in the same order
    for index in range(30):
        for a, b in zip(truth[index], found[index]):
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert torch.get_num_threads() == threads
    assert model.config._attn_implementation != "segments"


def test_autocast_and_hidden_products_hold_in_every_thread(threads):
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=12)
    how = {"path": PACKED, "tokens_per_batch": 1, "batch_size": 100}
    found = []
    for n in (threads, 1):
        torch.set_num_threads(n)
        products: dict = {}
        with torch.autocast("cpu", torch.bfloat16):
            batches = list(token_logps_of_batches(model, tokenized, **how, products=products))
        assert len(batches) == 12
        found.append((dict(pair for batch in batches for pair in batch), products))
    (logps, products), (expected, expected_products) = found
    assert sorted(products) == list(range(12))
    for index in range(12):
        np.testing.assert_allclose(products[index], expected_products[index], rtol=1e-3)
        for a, b in zip(logps[index], expected[index]):
            np.testing.assert_allclose(a, b, atol=1e-3)
    exact = score(model, tokenized, PACKED, 1)
    differences = [np.abs(a - b).max() for k in range(12) for a, b in zip(logps[k], exact[k])]
    assert max(differences) > 1e-3  # it was in bfloat16


def test_a_run_that_is_left_or_fails_gives_the_threads_back(threads):
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=12)
    how = {"path": PACKED, "tokens_per_batch": 1, "batch_size": 100}
    batches = token_logps_of_batches(model, tokenized, **how)
    assert next(batches)[0][0] == next(iter(score(model, tokenized, PACKED, 1)))
    batches.close()
    assert torch.get_num_threads() == threads
    too_large = [tokenized[0][0].__class__((5, 9_999, 7), 1, False)]
    with pytest.raises(IndexError):
        list(token_logps_of_batches(model, [*tokenized, too_large], **how))
    assert torch.get_num_threads() == threads


def test_copies_share_weights_and_nothing_that_a_pass_writes():
    model = make_model("llama", SMALL)
    copy = with_shared_weights(model)
    assert all(a is b for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    buffers = list(zip(model.buffers(), copy.buffers(), strict=True))
    assert buffers and all(a is not b and a.equal(b) for a, b in buffers)
    assert copy.config is not model.config and copy.model.layers[0] is not model.model.layers[0]


def test_no_thread_is_left_idle():
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    together = Barrier(4)  # each row by a thread of its own

    def n_threads(model, batch):
        together.wait(timeout=60)
        return torch.get_num_threads()

    try:
        with side_by_side(torch.nn.Linear(1, 1), 4) as submit:
            results = [submit(n_threads, batch) for batch in range(4)]
            assert sorted(result() for result in results) == [1, 2, 2, 2]
        assert torch.get_num_threads() == 7
    finally:
        torch.set_num_threads(before)


def test_what_is_pushed_comes_before_what_was_to_come():
    stack = [3, 2, 1]
    seen = []
    with side_by_side(None, 1) as submit:
        for batch, result in in_order(submit, lambda _, batch: 10 * batch, stack, 2):
            seen.append((batch, result))
            if batch == 1:
                stack += [12, 11]
    assert seen == [(1, 10), (2, 20), (11, 110), (12, 120), (3, 30)]


def test_few_rows_little_work_quantized_and_one_thread_take_one_at_a_time(threads, monkeypatch):
    model = make_model("llama", SMALL)
    n, n_weights = 4 * threads, sum(weight.numel() for weight in model.parameters())
    monkeypatch.setattr(side_by_side_module, "LEAST_WORK", 100 * n_weights)
    assert [rows_at_once(model, *row) for row in ((n, 100), (n - 1, 100), (n, 99))] == [
        threads, 1, 1,
    ]  # fmt: skip
    model.is_quantized = True
    assert rows_at_once(model, n, 100) == 1
    model.is_quantized = False
    torch.set_num_threads(1)
    assert rows_at_once(model, n, 100) == 1
