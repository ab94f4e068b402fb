"""What the metrics of a training are called on a tracker's page: each of them is there once."""

import re
from collections.abc import Mapping
from typing import Any

PREFIXES = {"eval_train_": "train ", "eval_": "validation ", "test_": "test "}
# of evaluations, what is no result
COUNTERS = re.compile(
    r"(eval|test)_(.*[_/])?(runtime|(samples|steps)_per_second|num_tokens|model_preparation_time)"
)


def grouped_metrics(logs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Trainer logs, in two: metrics of evaluations that have a section of their own, by their
    names there, and the rest by Trainer's, of which transformers makes `train/loss`, `eval/loss`.

    `eval_groups/x` is `validation groups/x`, `eval_A/x` of one of several datasets `validation
    A/x`; `eval_train_` (the training pairs that are followed) and `test_` likewise, of the first
    what has no section `train pairs/x`. Times and counts of evaluations and unknown values (None)
    are left out.
    """
    grouped, rest = {}, {}
    for name, value in logs.items():
        if COUNTERS.fullmatch(name):
            continue
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        own = name.removeprefix(prefix or "")
        if prefix == "eval_train_" and "/" not in own:
            own = f"pairs/{own}"
        if prefix is None or "/" not in own:
            rest[name] = value
        elif value is not None:
            grouped[PREFIXES[prefix] + own] = value
    return grouped, rest
