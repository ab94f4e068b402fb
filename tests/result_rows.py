"""Rows of result files, as small as tables and pictures of them need."""

import numpy as np
from scipy import stats

from ranking.metrics.dynamics import GROUPS

HH = "Anthropic/hh-rlhf"


def ranking_rows(model="gpt2", values=(0.5, 0.6), dataset=HH, split="test", n=100):
    kinds = ("length-normalized", "non-length-normalized")
    return [
        {"model": model, "dataset_name": dataset, "dataset_split": split, "include_ties": False,
         "distance_metric": "acc", "calib_property": f"ranking_{kind}", "n": n, "chance": 0.5,
         "distance_metric_value_mean": value, "wilson_95": [value - 0.05, value + 0.05]}
        for kind, value in zip(kinds, values)
    ]  # fmt: skip


def evaluated_pairs():
    """Rows of a dynamics file: three steps, four pairs; the validation loss is lowest at step 5.

    Log-ratios of the policy are ±1. At step 5, the chosen log-likelihoods of the pairs 1 to 3 fell,
    by k nats; before and after, they are the reference's."""
    rows = []
    losses = {0: (0.7, 0.7, 0.7, 0.7), 5: (0.5, 0.6, 0.4, 0.7), 10: (0.9, 0.9, 0.2, 0.9)}
    after = {0: (1, 1, 0, 0), 5: (1, 0, 1, 0), 10: (1, 1, 1, 1)}
    for part in ("train", "validation"):
        for step, values in losses.items():
            for k, (loss, correct) in enumerate(zip(values, after[step])):
                before = "correct" if k < 2 else "incorrect"
                chosen = -10.0 - (k if step == 5 else 0)
                rows.append(
                    {"step": step, "part": part, "id": str(k), "loss": loss, "beta": 0.1, "gamma": 1.0,
                     "group": f"{before}_to_{'correct' if correct else 'incorrect'}",
                     "chosen": chosen, "rejected": chosen - (1 if correct else -1),
                     "reward_margin": step * 0.1, "ref_chosen": -10.0, "ref_rejected": -12.0 + 3 * k,
                     "squared_distance": step**2 if part == "validation" else None}
                )  # fmt: skip
    return rows


def tuned_rows(n=80, beta=0.1, gamma=0.5, step=7, part="validation", loss=0.5, seed=0):
    """Rows of a dynamics file, one evaluation of random pairs around −60 nats; half of the pairs
    are of examples with two each. loss: of all pairs; None: Eq. 4's of each."""
    rng = np.random.default_rng(seed)
    rows = []
    for k, (chosen, rejected, move) in enumerate(rng.normal([-60, -60, 5], [9, 9, 6], (n, 3))):
        logps = {"chosen": chosen + move, "rejected": rejected, "ref_chosen": chosen,
                 "ref_rejected": rejected}  # fmt: skip
        group = GROUPS[bool(chosen >= rejected), bool(chosen + move >= rejected)]
        margin = beta * (chosen + move - rejected - gamma * (chosen - rejected))
        id_ = f"e{k}" if k % 4 < 2 else f"e{k - k % 2}:{k % 2}>2"
        rows.append(
            {"step": step, "part": part, "id": id_, "beta": beta, "gamma": gamma, "group": group,
             "loss": float(np.logaddexp(0, -margin)) if loss is None else loss,
             "reward_margin": beta * move, "squared_distance": None, **logps}
        )  # fmt: skip
    return rows


def idealized_rows():
    return [
        {"dataset_name": "d", "reference_model": "a/sft", "model": "a/dpo", "include_ties": False,
         "calib_property": f"ranks_{kind}", "n": 7, "observed_accuracy": 0.4,
         "min_median_max": [0.5, 0.75, 1.0], "gap_to_median": 0.35, "gap_to_median_95": [0.2, 0.4],
         "beta": beta}
        for beta in (0.1, 1)
        for kind in ("length-normalized", "non-length-normalized")
    ]  # fmt: skip


def scored_record(number, logps, ranks, prompt="p", dataset="d", n_tokens=None, votes=None):
    """A line of an examples file: log-likelihoods of one example's completions, and its ranks."""
    return {
        "id": str(number), "prompt_id": prompt, "dataset": dataset, "split": None, "row": number,
        "dataset_config": None,
        "model": "m", "prompt": prompt, "ranks": ranks, "votes": votes,
        "completions": [
            {"text": "", "separator": "", "logp": logp, "n_tokens": n}
            for logp, n in zip(logps, n_tokens or [1] * len(logps))
        ],
    }  # fmt: skip


def bootstrap_of_scipy(tops, bottoms, clusters, seed=0, n_resamples=2000) -> list[float]:
    """95 % percentile interval of Σ tops / Σ bottoms when whole clusters are resampled."""
    owner = np.unique(clusters, return_inverse=True)[1]
    sums, counts = (np.bincount(owner, weights=np.asarray(x, float)) for x in (tops, bottoms))
    found = stats.bootstrap(
        (sums, counts), lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis), paired=True,
        vectorized=True, method="percentile", n_resamples=n_resamples,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return list(map(float, found.confidence_interval))
