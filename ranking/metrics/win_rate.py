"""Win rates (§5): ties as half, at equal lengths, by order of asking, beside ranking accuracy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ranking.metrics.intervals import clustered_bootstrap_interval, correlation_test


def win_rate(wins: list[float], prompt_ids: list[str], seed: int) -> tuple[float | None, list]:
    """Mean share of the win (ties half) and its 95 % bootstrap interval over prompts.

    None and [None, None] without wins."""
    if not wins:
        return None, [None, None]
    low, high = clustered_bootstrap_interval(wins, [1.0] * len(wins), prompt_ids, seed)
    return float(np.mean(wins)), [None if np.isnan(x) else x for x in (low, high)]


def length_controlled_win_rate(wins: list[float], length_differences: list[int]) -> float | None:
    """Win rate at equal lengths: logistic regression of the win on the standardized difference of
    lengths, squashed by tanh so that extremes do not decide, read off at zero.

    length_differences: policy − other, in characters. None where the regression has no finite
    optimum (no wins, all on one side, or lengths that separate wins from losses).
    """
    import statsmodels.api as sm
    from statsmodels.tools.sm_exceptions import PerfectSeparationError

    if not wins:
        return None
    wins_array = np.array(wins, dtype=float)
    differences = np.array(length_differences, dtype=float)
    if wins_array.min() == wins_array.max():
        return float(wins_array[0]) if wins_array[0] == 0.5 else None
    spread = differences.std()
    if spread == 0.0:
        return float(wins_array.mean()) if not differences.any() else None
    design = np.column_stack([np.ones(len(wins)), np.tanh(differences / spread)])
    try:
        fit = sm.GLM(wins_array, design, family=sm.families.Binomial()).fit()
    except PerfectSeparationError:
        return None
    if not fit.converged or not np.isfinite(fit.bse).all() or np.abs(fit.params).max() > 20:
        return None
    return float(1.0 / (1.0 + np.exp(-fit.params[0])))


def summarize(rows: list[dict[str, Any]], common: dict[str, Any], seed: int) -> dict[str, Any]:
    """The summary line of one policy from its judged pairs; unclear verdicts are left out."""
    judged = [row for row in rows if row["win"] is not None]
    wins = [row["win"] for row in judged]
    rate, interval = win_rate(wins, [row["prompt_id"] for row in judged], seed)
    own_lengths, other_lengths = (
        [len(row[f"{side}_response"]) for row in rows] for side in ("policy", "other")
    )
    differences = [len(r["policy_response"]) - len(r["other_response"]) for r in judged]
    verdicts = [row["verdicts"] for row in rows if row.get("verdicts")]
    return {
        **common,
        "win_rate": rate,
        "bootstrap_95": interval,
        "length_controlled_win_rate": length_controlled_win_rate(wins, differences),
        "n": len(judged),
        "n_wins": wins.count(1.0),
        "n_ties": wins.count(0.5),
        "n_losses": wins.count(0.0),
        "n_unclear": len(rows) - len(judged),
        "n_empty_responses": sum(
            not row[f"{side}_response"] for row in rows for side in ("policy", "other")
        ),
        "mean_characters_policy": float(np.mean(own_lengths)),
        "mean_characters_other": float(np.mean(other_lengths)),
        **(position_bias(verdicts) if verdicts else {}),
    }


def correlations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spearman's correlation of ranking accuracy and win rate: all, nearer and farther half.

    Halves are by the distance from the reference (the paper's "on-policy" and "off-policy" parts);
    None with fewer than three points or where one of the two never changes. Rows without a win rate
    are left out.
    """
    rated = [row for row in rows if row["win_rate"] is not None]
    ordered = sorted(rated, key=lambda row: row["squared_distance"])
    half = (len(ordered) + 1) // 2
    results = []
    for part, chosen in (("all", ordered), ("near", ordered[:half]), ("far", ordered[half:])):
        accuracy = [row["ranking_accuracy"] for row in chosen]
        wins = [row["win_rate"] for row in chosen]
        value = p_value = None
        if len(chosen) >= 3 and len(set(accuracy)) > 1 and len(set(wins)) > 1:
            value, p_value = correlation_test(accuracy, wins, "spearmanr")
        results.append({"part": part, "n": len(chosen), "spearmanr": value, "p_value": p_value})
    return results


def position_bias(verdicts: Sequence[tuple[float | None, float | None]]) -> dict[str, float | None]:
    """Of pairs with two clear verdicts: share in which the orders contradict each other, and mean
    share of the win that went to the reply shown first (0.5 without bias)."""
    clear = np.array([v for v in verdicts if None not in v], dtype=float).reshape(-1, 2)
    if not len(clear):
        return {"order_disagreement": None, "first_reply_share": None}
    return {
        "order_disagreement": float(np.mean(clear[:, 0] != 1.0 - clear[:, 1])),
        "first_reply_share": float(clear.mean()),
    }
