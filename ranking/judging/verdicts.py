"""Pairs of responses → verdicts, by whichever judge."""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from ranking.judging.reward_model import reward_ids, reward_scores
from ranking.judging.served_model import (
    FIRST_ORDER,
    SECOND_ORDER,
    ask_all,
    both_orders,
    combine_orders,
    parse_verdict,
)
from ranking.plumbing.command_line import announce
from ranking.plumbing.result_files import Record
from ranking.scoring.models import cache_directory


def judged_rows(args: argparse.Namespace, pairs: list[Record], judge) -> Iterator[Record]:
    """The pairs with the judge's verdict: `win` is the policy's share, None if unclear.

    Identical responses are a tie without asking.
    """
    differing = []
    for pair in pairs:
        if pair["policy_response"] == pair["other_response"]:
            yield {**pair, "win": 0.5, "identical": True}
        else:
            differing.append(pair)
    if not differing:
        return
    kind, _, judge_name = args.judge.partition(":")
    waiting: dict[int, dict[str, Any]] = {k: {} for k in range(len(differing))}

    def finish(k: int) -> Record:
        return {**differing[k], **verdict_of(kind, waiting.pop(k))}

    if kind == "reward-model":
        model, tokenizer = judge
        asking: dict[tuple, list[tuple[int, str]]] = {}  # a reference's response is scored once
        for k, pair in enumerate(differing):
            for side in ("policy", "other"):
                try:
                    ids = reward_ids(tokenizer, pair["prompt"], pair[f"{side}_response"])
                except ValueError as error:
                    announce(str(error))
                    yield {**pair, "win": None, "rewards": None}
                    break
                asking.setdefault(tuple(ids), []).append((k, side))
        texts = list(asking)
        for index, reward in reward_scores(model, tokenizer, texts):
            for k, side in asking[texts[index]]:
                waiting[k][side] = reward
                if len(waiting[k]) == 2:
                    yield finish(k)
        return
    questions = {
        (k, order): messages
        for k, pair in enumerate(differing)
        for order, messages in both_orders(
            pair["prompt"], pair["policy_response"], pair["other_response"]
        ).items()
    }
    cache = cache_directory() / "judge" / f"{judge_name.replace('/', '--')}.jsonl"
    for (k, order), answer in ask_all(
        judge, judge_name, questions, cache, concurrency=args.judge_concurrency,
        price=args.judge_price, announce=announce,
    ):  # fmt: skip
        waiting[k][order] = answer
        if len(waiting[k]) == 2:
            yield finish(k)


def verdict_of(kind: str, found: dict[str, Any]) -> Record:
    """`win` and what it came from: two rewards, or two answers."""
    if kind == "reward-model":
        policy, other = found["policy"], found["other"]
        if not np.isfinite([policy, other]).all():
            return {"win": None, "rewards": None}
        return {"win": float(np.sign(policy - other) / 2 + 0.5), "rewards": [policy, other]}
    answers = [found[FIRST_ORDER], found[SECOND_ORDER]]
    verdicts = [parse_verdict(answer) for answer in answers]
    return {"win": combine_orders(*verdicts), "verdicts": verdicts, "answers": answers}
