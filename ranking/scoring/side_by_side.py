"""Rows side by side on a CPU, each by threads of its own.

OpenMP divides each product of a row among all threads, which wait for the slowest of them at its
end: beside another busy process all are as slow as the one that shares its core. Rows have nothing
to wait for, and products of one thread leave less of a core unused.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch

from ranking.scoring.loading import unwrap

MOST_ROWS = 4  # at once: each takes the memory of a row
LEAST_WORK = 10**11  # weights x tokens of a row; with less, threads wait for Python's lock

# (function of a model and a batch, batch) → what gives its result, once
Submit = Callable[[Callable[[Any, Any], Any], Any], Callable[[], Any]]


def with_shared_weights(model):
    """A copy of the modules that holds the same parameters: what a forward pass writes into
    modules, buffers and configs is its own."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def rows_at_once(model, n_rows: int, n_tokens: int) -> int:
    """How many of a model's rows of `n_tokens` are computed at once: 1 on a GPU, with one thread,
    where a row is little work, where the modules are not all the model's own (offloaded,
    quantized), and of so few rows that the last would be alone for long."""
    inner = unwrap(model)
    weights = list(inner.parameters())
    is_small = n_tokens * sum(weight.numel() for weight in weights) < LEAST_WORK
    hooked = any(hasattr(module, "_hf_hook") for module in inner.modules())
    if is_small or hooked or getattr(inner, "is_quantized", False):
        return 1
    n = min(MOST_ROWS, torch.get_num_threads())
    return n if {weight.device.type for weight in weights} == {"cpu"} and n_rows >= 4 * n else 1


@contextmanager
def side_by_side(model, n: int) -> Iterator[Submit]:
    """Inside, `n` rows are computed at once, each with its share of the threads and a copy of the
    modules; with 1 each when its result is asked for, by the model itself. Autocast holds."""
    if n == 1:
        yield lambda function, batch: lambda: function(model, batch)
        return
    n_threads, device = torch.get_num_threads(), "cpu"
    autocast = {"enabled": torch.is_autocast_enabled(device),
                "dtype": torch.get_autocast_dtype(device)}  # fmt: skip
    models: SimpleQueue = SimpleQueue()
    for replica in (model, *(with_shared_weights(model) for _ in range(n - 1))):
        models.put(replica)

    def run(function, batch):
        replica = models.get()
        try:
            with torch.autocast(device, **autocast):
                return function(replica, batch)
        finally:
            models.put(replica)

    shares: SimpleQueue = SimpleQueue()
    for number in range(n):
        shares.put(n_threads // n + (number < n_threads % n))

    def take_share():
        torch.get_num_threads()  # the first call takes what any thread has set last
        torch.set_num_threads(shares.get())

    pool = ThreadPoolExecutor(n, initializer=take_share)
    try:
        yield lambda function, batch: pool.submit(run, function, batch).result
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # of threads to come; each has set its own


def in_order(submit: Submit, function, batches: list, n: int) -> Iterator[tuple[Any, Any]]:
    """(batch, result) of `batches`, a stack, last first, while the next n - 1 are computed. What is
    pushed on the stack meanwhile comes next that is not being computed."""
    waiting: deque[tuple[Any, Callable[[], Any]]] = deque()
    while batches or waiting:
        while batches and len(waiting) < n:
            batch = batches.pop()
            waiting.append((batch, submit(function, batch)))
        batch, result = waiting.popleft()
        yield batch, result()
