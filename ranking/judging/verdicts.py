"""Pairs of responses → verdicts, by whichever judge, kept in NAME.examples.jsonl."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from ranking.data.examples import Dialogue, Message, PreferenceData, PreferenceExample
from ranking.judging.alpaca_eval_annotator import alpaca_eval_judge
from ranking.judging.responses import Generation, Response, preferred_answer, respond
from ranking.judging.reward_model import load_reward_model, reward_ids, reward_scores
from ranking.judging.served_model import ServedJudge, ask_all, make_client, plain_judge, text_said
from ranking.plumbing.command_line import progress_bar, until_stopped
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record, append_json_lines
from ranking.scoring.models import (
    cache_directory,
    check_model_path,
    choose_device,
    model_fingerprint,
)

KINDS = ("reward-model", "openai", "alpaca_eval")


class Pair(TypedDict):
    """Two responses to a prompt."""

    model: str  # the policy
    id: str  # of the example whose prompt it is
    prompt_id: str
    dataset: str
    split: str | None
    prompt: str
    messages: NotRequired[list[Message]]  # the prompt, where it is a dialogue
    tools: NotRequired[list[dict[str, Any]]]
    policy_response: str
    other_response: str  # the reference's, or the dataset's preferred completion
    groups: NotRequired[dict[str, str]]  # column → value: what win rates are also given by


class Judged(Pair):
    """A line of NAME.examples.jsonl of calculate_win_rate.py."""

    win: float | None  # the policy's share: 1, 0.5 (a tie) or 0, by an annotator of alpaca_eval
    #   any in [0, 1]; None: no clear verdict
    identical: NotRequired[bool]  # True: a tie without asking
    # by a reward model
    rewards: NotRequired[list[float] | None]  # of policy and other; None: refused, not finite
    # by a served judge, in both orders: the policy's response first, then second
    verdicts: NotRequired[list[float | None]]  # share that goes to the first response
    answers: NotRequired[list[str]]  # its words; empty: the question was refused


Judge = Callable[[Sequence[Pair]], Iterator[Judged]]


def check_judge(name: str, base_url: str | None) -> None:
    """Raise ValueError or FileNotFoundError for a judge that cannot be, before anything is read.

    name: as `make_judge` takes it.
    """
    kind, _, model = name.partition(":")
    if kind == "reward-model":
        check_model_path(model)
        return
    if kind == "alpaca_eval":
        base_url = base_url or alpaca_eval_judge(model)[2]
    make_client(base_url, timeout=1.0, max_retries=0)


def make_judge(
    name: str,
    *,
    judge_base_url: str | None,
    judge_timeout: float,
    judge_retries: int,
    judge_concurrency: int,
    judge_price: Sequence[float] | None,
    device: str,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> tuple[Judge, dict[str, str | None]]:
    """What judges pairs, and what identifies it in a run's configuration.

    name: "reward-model:NAME_OR_PATH", "openai:MODEL" or "alpaca_eval:CONFIG[:MODEL]".
    """
    kind, _, model = name.partition(":")
    facts: dict[str, str | None] = {
        "judge": name, "judge_fingerprint": None, "judge_base_url": None
    }  # fmt: skip
    if kind != "reward-model":
        served = plain_judge(model)
        if kind == "alpaca_eval":
            served, facts["judge_fingerprint"], own_address = alpaca_eval_judge(model)
            judge_base_url = judge_base_url or own_address
        client = make_client(judge_base_url, judge_timeout, judge_retries)
        facts["judge_base_url"] = str(client.base_url)
        return partial(ask_judge, client, served, judge_concurrency, judge_price), facts
    facts["judge_fingerprint"] = model_fingerprint(model)
    trust = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    loaded = load_reward_model(model, choose_device(device), **trust)
    return partial(compare_rewards, *loaded), facts


def compare_rewards(model, tokenizer, pairs: Sequence[Pair]) -> Iterator[Judged]:
    """The higher reward wins. Like texts (a reference's in every checkpoint) are scored once."""
    sides: dict[tuple[int, ...], list[tuple[int, str]]] = {}
    for k, pair in enumerate(pairs):
        dialogue = None
        if "messages" in pair:
            dialogue = Dialogue(tuple(pair["messages"]), tuple(pair.get("tools", ())) or None)
        try:
            policy = reward_ids(tokenizer, pair["prompt"], pair["policy_response"], dialogue)
            other = reward_ids(tokenizer, pair["prompt"], pair["other_response"], dialogue)
        except ValueError as error:
            announce(str(error))
            yield {**pair, "win": None, "rewards": None}
            continue
        sides.setdefault(tuple(policy), []).append((k, "policy"))
        sides.setdefault(tuple(other), []).append((k, "other"))
    texts = list(sides)
    found: list[dict[str, float]] = [{} for _ in pairs]
    for index, reward in reward_scores(model, tokenizer, texts):
        for k, side in sides[texts[index]]:
            found[k][side] = reward
            if len(found[k]) == 2:
                rewards = [found[k]["policy"], found[k]["other"]]
                win = win_by_rewards(*rewards)
                yield {**pairs[k], "win": win, "rewards": None if win is None else rewards}


def win_by_rewards(policy: float, other: float) -> float | None:
    """The policy's share of the win; None if a reward is not finite."""
    finite = np.isfinite([policy, other]).all()
    return float(np.sign(policy - other) / 2 + 0.5) if finite else None


def ask_judge(
    client,
    judge: ServedJudge,
    concurrency: int,
    price: Sequence[float] | None,
    pairs: Sequence[Pair],
) -> Iterator[Judged]:
    """The judge sees each pair in both orders; answers are cached under its model's name."""
    questions = {}
    for k, pair in enumerate(pairs):
        asked, both = judge.asked_of(pair), (pair["policy_response"], pair["other_response"])
        questions[k, 0] = judge.question(asked, *both)
        questions[k, 1] = judge.question(asked, *both[::-1])
    cache = cache_directory() / "judge" / f"{judge.model.replace('/', '--')}.jsonl"
    found: list[dict[int, str]] = [{} for _ in pairs]
    for (k, order), answer in ask_all(
        client, judge, questions, cache, concurrency=concurrency, price=price
    ):
        found[k][order] = answer
        if len(found[k]) == 2:
            answers = [found[k][0], found[k][1]]
            verdicts = [judge.verdict(answer) for answer in answers]
            said = [text_said(answer, judge.parameters) for answer in answers]
            pair, win = pairs[int(k)], judge.combine(*verdicts)
            yield {**pair, "win": win, "verdicts": verdicts, "answers": said}


def collect_responses(
    prompts: Sequence[PreferenceExample],
    policies: Sequence[Generation],
    other: Generation | None,
    data: PreferenceData,
    known: Sequence[Response],
    path: Path,
    **how,
) -> list[Pair]:
    """Every policy's responses to the prompts beside the `other`'s (None: the preferred ones).

    known, path, how: as `respond` takes them.
    """
    theirs: dict[str, str | None] = {p.id: preferred_answer(p) for p in prompts}
    if other is not None:
        theirs = respond(other, prompts, known, path, **how)
    return [
        pair
        for policy in policies
        for pair in pair_responses(
            policy, prompts, respond(policy, prompts, known, path, **how), theirs, data
        )
    ]


def pair_responses(
    policy: Generation,
    prompts: Sequence[PreferenceExample],
    own: Mapping[str, str | None],
    other: Mapping[str, str | None],
    data: PreferenceData,
) -> list[Pair]:
    """A pair for each prompt that both could answer. ValueError if there is none."""
    pairs: list[Pair] = []
    for prompt in prompts:
        mine, its = own[prompt.id], other[prompt.id]
        if mine is not None and its is not None:
            pair: Pair = {
                "model": policy["model"], "id": prompt.id, "prompt_id": prompt.prompt_id,
                "dataset": data.name, "split": data.split, "prompt": prompt.prompt,
                "policy_response": mine, "other_response": its,
            }  # fmt: skip
            if (dialogue := prompt.dialogue) is not None:
                pair["messages"] = list(dialogue.messages)
                if dialogue.tools:
                    pair["tools"] = list(dialogue.tools)
            if prompt.groups:
                pair["groups"] = prompt.groups
            pairs.append(pair)
    if not pairs:
        raise ValueError("no prompt has tokens and leaves room for --max-new-tokens in the context")
    return pairs


def judge_pairs(
    judge: Judge, pairs: Sequence[Pair], earlier: Sequence[Record], path: Path
) -> list[Record]:
    """The pairs with their verdicts: `earlier` ones, and those that are appended to `path`.

    A policy whose responses are all empty is not judged; ValueError if that is every policy.
    """
    speaking = {pair["model"] for pair in pairs if pair["policy_response"]}
    silent = [model for model in dict.fromkeys(p["model"] for p in pairs) if model not in speaking]
    if not speaking:
        raise ValueError(f"every response of {', '.join(silent)} is empty: nothing to judge")
    for model in silent:
        announce(f"every response of {model} is empty: it gets no win rate")
    judged: list[Any] = list(earlier)
    done = {(row["model"], row["id"]) for row in earlier}
    waiting = [pair for pair in pairs if (pair["model"], pair["id"]) not in done]
    with (
        path.open("ab") as file,
        progress_bar("judged", len(done) + len(waiting), len(done)) as progress,
    ):
        rows = judged_rows(judge, waiting, silent)
        for row in until_stopped(rows, lambda: f"{progress.n} verdicts are saved in {path}"):
            append_json_lines(file, [row])
            judged.append(row)
            progress.update()
    return judged


def judged_rows(judge: Judge, pairs: Sequence[Pair], silent: Sequence[str]) -> Iterator[Judged]:
    """A row for each pair; without asking, like responses are a tie and the silent policies get
    no verdict."""
    asked = []
    for pair in pairs:
        if pair["model"] in silent:
            yield {**pair, "win": None}
        elif pair["policy_response"] == pair["other_response"]:
            yield {**pair, "win": 0.5, "identical": True}
        else:
            asked.append(pair)
    if asked:
        yield from judge(asked)
