"""Win rates (§5): ties as half, at equal lengths, by order of asking, beside ranking accuracy."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NotRequired, TypedDict

import numpy as np

from ranking.metrics.groups import GroupColumns, GroupMeanColumns, group_means, record_groups
from ranking.metrics.intervals import bootstrap_95, correlation_test
from ranking.metrics.length import rate_at_equal_length


class WinRateRow(TypedDict):
    """One line of NAME.jsonl of the win-rate script: a policy against the reference.

    Over checkpoints, every line has `step` to `squared_distance`, the last one `correlations`.
    """

    model: str
    against: str  # the reference model, or "chosen": the dataset's preferred completions
    judge: str  # reward-model:NAME, openai:MODEL or alpaca_eval:CONFIG[:MODEL]
    dataset_name: str
    dataset_split: str | None
    dataset_commit: str | None  # of a hub dataset
    n_unanswered: int  # prompts without a pair of responses
    dropped: dict[str, int]  # reason → examples
    joined_by: dict[str, int] | None  # separator → completions; null: a chat template joins them
    seed: int  # of the sample, the responses and the bootstrap
    step: NotRequired[int | None]  # of the checkpoint; null: a run's final model
    gamma: NotRequired[float | None]  # of DPO^γ; null: unknown
    ranking_accuracy: NotRequired[float]  # on the same examples, share in [0, 1]
    n_ranked: NotRequired[int]
    n_exact_ties: NotRequired[int]  # untied pairs whose log-likelihoods are exactly equal
    squared_distance: NotRequired[float]  # ‖θ − θ_ref‖²
    generation: dict[str, Any]  # how the policy's responses were drawn
    versions: dict[str, str]  # library → version
    win_rate: float | None  # share in [0, 1], ties half; null: no clear verdict
    bootstrap_95: list[float | None]  # over prompts
    length_controlled_win_rate: float | None  # by `rate_at_equal_length` of characters
    n: int  # pairs with a clear verdict
    n_wins: int  # of more than one half
    n_ties: int  # of exactly one half
    n_losses: int
    n_unclear: int
    n_empty_responses: int  # of both sides
    mean_characters_policy: float
    mean_characters_other: float
    by_group: list[GroupColumns]  # win rates; empty: the data have no groups
    mean_over_groups: list[GroupMeanColumns]
    order_disagreement: NotRequired[float | None]  # where a judge saw both orders
    first_reply_share: NotRequired[float | None]
    correlations: NotRequired[list[dict[str, Any]]]  # `correlations` of all lines


def summarize_win_rate(rows: list[dict[str, Any]], common: dict[str, Any], seed: int) -> WinRateRow:
    """The summary line of one policy from its judged pairs; unclear verdicts are left out."""
    judged = [row for row in rows if row["win"] is not None]
    wins = [row["win"] for row in judged]
    lengths = {side: [len(row[f"{side}_response"]) for row in rows] for side in ("policy", "other")}
    differences = [len(r["policy_response"]) - len(r["other_response"]) for r in judged]
    verdicts = [row["verdicts"] for row in rows if row.get("verdicts")]
    prompts = [row["prompt_id"] for row in judged]
    by_group, over_groups = group_means(list(map(record_groups, judged)), prompts, seed, wins)
    row: Any = {
        **common,
        "win_rate": float(np.mean(wins)) if wins else None,
        "bootstrap_95": bootstrap_95(wins, prompts, seed),
        "length_controlled_win_rate": rate_at_equal_length(wins, differences).value,
        "n": len(judged),
        "n_wins": sum(win > 0.5 for win in wins),
        "n_ties": sum(win == 0.5 for win in wins),
        "n_losses": sum(win < 0.5 for win in wins),
        "n_unclear": len(rows) - len(judged),
        "n_empty_responses": [*lengths["policy"], *lengths["other"]].count(0),
        "mean_characters_policy": float(np.mean(lengths["policy"])),
        "mean_characters_other": float(np.mean(lengths["other"])),
        "by_group": by_group,
        "mean_over_groups": over_groups,
        **(position_bias(verdicts) if verdicts else {}),
    }
    return row


def check_one_judge(rows: Iterable[WinRateRow]) -> None:
    """Raise ValueError where several judges gave the win rates: they are not to be compared."""
    judges = list(dict.fromkeys(row["judge"] for row in rows))
    if len(judges) > 1:
        raise ValueError(
            f"win rates by different judges ({', '.join(judges)}) are not comparable: give the "
            "files of one"
        )


def means_by_gamma(rows: Iterable[WinRateRow]) -> dict[float, tuple[float, float]]:
    """γ → mean win rate and mean ranking accuracy of its runs (seeds), ordered by γ. ValueError
    where several judges gave them."""
    rows = list(rows)
    check_one_judge(rows)
    ordered = sorted(rows, key=lambda row: row["gamma"])
    return {
        gamma: tuple(np.mean([[r["win_rate"], r["ranking_accuracy"]] for r in runs], axis=0))
        for gamma, runs in groupby(ordered, key=lambda row: row["gamma"])
    }


def correlations(rows: Sequence[WinRateRow]) -> list[dict[str, Any]]:
    """Spearman's correlation of ranking accuracy and win rate: all, nearer and farther half.

    Halves are by the distance from the reference (the paper's "on-policy" and "off-policy" parts);
    None with fewer than three points or where one of the two never changes. Rows without a win rate
    are left out. ValueError where several judges gave the rest.
    """
    check_one_judge(rows)
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
    """Of pairs with two clear verdicts: share in which the orders contradict each other (one names
    a winner that the other does not), and mean share of the win that went to the reply shown first
    (0.5 without bias)."""
    clear = np.array([v for v in verdicts if None not in v], dtype=float).reshape(-1, 2)
    if not len(clear):
        return {"order_disagreement": None, "first_reply_share": None}
    return {
        "order_disagreement": float(
            np.mean(np.sign(clear[:, 0] - 0.5) != np.sign(0.5 - clear[:, 1]))
        ),
        "first_reply_share": float(clear.mean()),
    }
