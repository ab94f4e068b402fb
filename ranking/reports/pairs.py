"""Pairs with their texts and numbers, for the page and for wandb's tables."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ranking.data.dialogues import is_dialogue_text, parse_dialogue
from ranking.data.examples import dataset_label
from ranking.metrics.accuracy import record_scores, untied_pairs
from ranking.metrics.dynamics import finite
from ranking.metrics.groups import record_groups
from ranking.metrics.rewards import is_right
from ranking.plumbing.outputs import dataset_key, row_key
from ranking.plumbing.result_files import Record
from ranking.reports.labels import group_label
from ranking.reports.page_columns import COMPLETION_COLUMNS, PAIR_COLUMNS

SIDES = ("chosen", "rejected")

Columns = tuple[list[str], list[list[Any]]]  # titles, lines of texts and numbers


def message_text(message: Mapping[str, Any]) -> str:
    """A chat message as text: content of parts and tool calls as JSON."""
    parts = [message.get("content"), message.get("tool_calls")]
    return "\n".join(
        part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part
    )


def turns_of(record: Record) -> list[tuple[str, str]]:
    """Role and text of each turn of the prompt; one turn where it is no dialogue."""
    messages = record.get("messages")
    if not messages and is_dialogue_text(record["prompt"]):
        messages = parse_dialogue(record["prompt"])
    if not messages:
        return [("prompt", record["prompt"])]
    return [(str(message.get("role")), message_text(message)) for message in messages]


def pair_example(record: Record) -> Record:
    """Texts of an example, and the columns that its pairs have in common."""
    groups = [f"{column}: {value}" for column, value in record_groups(record).items()]
    dataset = dataset_label(*dataset_key(record))
    return {
        "turns": turns_of(record),
        "texts": [completion["text"] for completion in record["completions"]],
        "columns": without_unknown(
            {"dataset": dataset, "groups": groups or None, "row": record["row"]}
        ),
    }


def lines_of_record(record: Record, rewards: Mapping[tuple, Record]) -> Iterator[Record]:
    """Lines of one record's untied pairs; rewards: by place, winner and loser."""
    logps = record_scores(record, "non-length-normalized")
    means = record_scores(record, "length-normalized")
    for w, l in untied_pairs(record["ranks"]):  # noqa: E741
        reward = rewards.get((*row_key(record), w, l), {})
        sides = {
            side: pair_completion(record, k, other, reward, side)
            for side, k, other in zip(SIDES, (w, l), (l, w))
        }
        yield without_unknown(
            {
                "ranked": "right" if is_right(logps[w] - logps[l]) else "wrong",
                "ranked_per_token": "right" if is_right(means[w] - means[l]) else "wrong",
                "group": group_label(reward["group"]) if reward else None,
                "logratio": rounded(logps[w] - logps[l], 3),
                "logratio_per_token": rounded(means[w] - means[l], 4),
                "length_difference": sides["chosen"]["tokens"] - sides["rejected"]["tokens"],
                "reward_margin": rounded(reward.get("reward_margin"), 4),
                "ches": rounded(reward.get("ches"), 3),
                "ches_normalized": rounded(reward.get("ches_normalized"), 5),
                **sides,
            }
        )


def pair_completion(record: Record, k: int, other: int, reward: Record, side: str) -> Record:
    """The numbers of completion k, beside the other one of its pair."""
    completion, votes = record["completions"][k], record.get("votes") or {}
    counts = votes.get(f"{min(k, other)},{max(k, other)}")
    change = reward.get(f"{side}_change")
    return without_unknown(
        {
            "place": k,
            "logp": rounded(completion["logp"], 3),
            "tokens": completion["n_tokens"],
            "rank": record["ranks"][k],
            "votes": counts[k > other] if counts else None,
            "change": rounded(change, 3),
            "reward": None if change is None else rounded(reward["beta"] * change, 4),
        }
    )


def rewards_by_place(rewards: Sequence[Mapping[str, Any]]) -> dict[tuple, Record]:
    """`RewardPair`s by example, winner and loser."""
    return {(*row_key(pair), pair["winner"], pair["loser"]): dict(pair) for pair in rewards}


def pair_table(records: Sequence[Record], rewards: Sequence[Mapping[str, Any]]) -> Columns:
    """A line for each untied pair of some examples. rewards: `RewardPair`s, none where no reference
    was scored."""
    known = rewards_by_place(rewards)
    lines = []
    for record in records:
        example = pair_example(record)
        for line in lines_of_record(record, known):
            texts = {side: example["texts"][line[side]["place"]] for side in SIDES}
            columns = {**example["columns"], **line}
            columns["groups"] = ", ".join(columns.get("groups", []))
            lines.append(
                {"id": record["id"], "prompt": record["prompt"], **texts, **titled(columns)}
            )
    return filled_columns(lines)


def followed_pair_table(kinds: Mapping[str, Sequence[Record]], texts: Mapping[str, Any]) -> Columns:
    """Pairs that training followed, by kind. texts: id → prompt, chosen, rejected, among others."""
    return filled_columns(
        [
            {"kind": kind, "part": row["part"], "id": row["id"],
             **{name: texts[row["id"]][name] for name in ("prompt", *SIDES)},
             **titled(followed_line(row))}
            for kind, rows in kinds.items()
            for row in rows
        ]
    )  # fmt: skip


def followed_line(row: Mapping[str, Any]) -> Record:
    """The numbers of a `DynamicsRow` with finite log-likelihoods, as those of `lines_of_record`."""
    means = {}
    sides: dict[str, Any] = {}
    for side in SIDES:
        logp, n, before = row[side], row[f"n_{side}"], row[f"ref_{side}"]
        means[side] = logp / n
        change = None if before is None else logp - before
        sides[side] = without_unknown(
            {"logp": logp, "tokens": n, "change": change,
             "reward": None if change is None else row["beta"] * change}
        )  # fmt: skip
    logratio, mean = row["chosen"] - row["rejected"], means["chosen"] - means["rejected"]
    return {
        "ranked": "right" if is_right(logratio) else "wrong",
        "ranked_per_token": "right" if is_right(mean) else "wrong",
        "group": group_label(row["group"]),
        "logratio": logratio,
        "logratio_per_token": mean,
        "length_difference": row["n_chosen"] - row["n_rejected"],
        "reward_margin": row["reward_margin"],
        "tuned_loss": row["loss"],
        **sides,
    }


def titled(line: Mapping[str, Any]) -> Record:
    """The numbers of a pair and of its two completions by the titles of their columns."""
    cells = {c.title: line.get(c.key) for c in PAIR_COLUMNS if c.key != "prompt"}
    for side in SIDES:
        numbers = with_shares(line[side])
        cells |= {f"{side}: {c.title}": numbers.get(c.key) for c in COMPLETION_COLUMNS}
    return cells


def filled_columns(lines: Sequence[Mapping[str, Any]]) -> Columns:
    """Columns and lines, without columns that no line has a value of."""
    titles = [
        title
        for title in (lines[0] if lines else ())
        if any(line[title] not in (None, "") for line in lines)
    ]
    return titles, [[line[title] for title in titles] for line in lines]


def with_shares(completion: Record) -> Record:
    """A completion's numbers, and those that follow from its log-likelihood and its length."""
    if "logp" not in completion:
        return completion
    mean = completion["logp"] / completion["tokens"]
    return {**completion, "per_token": mean, "percent": 100 * math.exp(mean)}


def rounded(value: float | None, digits: int) -> float | None:
    """For JSON: not longer than it is shown, null where it is not finite."""
    value = None if value is None else finite(value)
    return None if value is None else round(value, digits)


def without_unknown(line: Mapping[str, Any]) -> Record:
    return {key: value for key, value in line.items() if value is not None}
