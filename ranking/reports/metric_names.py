"""What the metrics of a training are called on a tracker's page: each of them is there once."""

from collections.abc import Mapping
from typing import Any

PREFIXES = {"eval_train_": "train ", "eval_": "validation ", "test_": "test "}


def grouped_metrics(logs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Trainer logs, in two: metrics of evaluations that have a section of their own, by their
    names there, and the rest by Trainer's, of which transformers makes `train/loss`, `eval/loss`.

    `eval_groups/x` is `validation groups/x`, `eval_A/x` of one of several datasets `validation
    A/x`; `eval_train_` (the training pairs that are followed) and `test_` likewise. Unknown
    values (None) are left out.
    """
    grouped, rest = {}, {}
    for name, value in logs.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None or "/" not in name:
            rest[name] = value
        elif value is not None:
            grouped[PREFIXES[prefix] + name.removeprefix(prefix)] = value
    return grouped, rest
