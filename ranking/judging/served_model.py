"""A served judge: a language model behind an OpenAI-compatible endpoint, asked in both orders."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import append_json_lines, drop_torn_line, read_cached

QUESTION = """You compare two replies to the last message of a conversation with an AI assistant.

<conversation>
{prompt}
</conversation>

<reply_A>
{first}
</reply_A>

<reply_B>
{second}
</reply_B>

Which reply serves the user better? Prefer what is correct, to the point and harmless; length and
order are no merit. Answer with one letter and nothing else: A, B, or C if neither is better."""
TRIAL = [{"role": "user", "content": "Answer with the letter A and nothing else."}]
ANSWER_TOKENS = 16
PARAMETERS = {"temperature": 0.0, "max_tokens": ANSWER_TOKENS}
REASONING_TOKENS = 4096  # of an answer, where the reasoning before it counts
CHARACTERS_PER_TOKEN = 4  # only for the estimate of the costs
REFUSED = (400, 413, 422)  # of a question after the trial: it counts as unclear
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}  # share of the win that goes to the first reply

Messages = list[dict[str, str]]


class ServedJudge(NamedTuple):
    """A model behind an endpoint: how it is asked, and what its answers say.

    parameters: of a request, as first tried. asked_of: what a pair's replies answer. question: that
    and two replies → messages. verdict: an answer → the first reply's share of the win, in [0, 1],
    None if unclear. combine: the verdicts of both orders → the policy's share.
    """

    model: str
    parameters: Mapping[str, Any]
    asked_of: Callable[[Mapping[str, Any]], str]
    question: Callable[[str, str, str], Messages]
    verdict: Callable[[str], float | None]
    combine: Callable[[float | None, float | None], float | None]


def plain_judge(model: str) -> ServedJudge:
    """The judge of `QUESTION`, greedy."""
    return ServedJudge(
        model, PARAMETERS, itemgetter("prompt"), question, parse_verdict, combine_orders
    )


def make_client(base_url: str | None, timeout: float, max_retries: int):
    """An OpenAI client; the key comes from OPENAI_API_KEY and from nowhere else.

    Without `base_url` the address is OPENAI_BASE_URL's or OpenAI's own. It retries, with growing
    pauses, connection errors, timeouts and answers 408, 409, 429 and 5xx.

    Raises ValueError without a key, unless the endpoint is one's own, and for an address that holds
    credentials: it is recorded.
    """
    import openai

    key = os.environ.get("OPENAI_API_KEY")
    base_url = base_url or os.environ.get("OPENAI_BASE_URL")
    if any(sign in (base_url or "") for sign in "@?"):
        raise ValueError("the judge's address: no credentials in it; use OPENAI_API_KEY")
    if not key and base_url is None:
        raise ValueError("a served judge: set OPENAI_API_KEY, or give --judge-base-url")
    return openai.OpenAI(
        api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=max_retries
    )


def parse_verdict(answer: str) -> float | None:
    """Share of the win that goes to the first reply (1, 0, or 0.5 for a tie); None if unclear."""
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    found = re.fullmatch(
        r"\W*(?:(?:final )?(?:answer|reply|verdict)[\W_]+)?([ABC])\W*", lines[-1] if lines else "",
        flags=re.I,
    )  # fmt: skip
    return VERDICTS[found[1].upper()] if found else None


def question(prompt: str, first: str, second: str) -> Messages:
    """The messages that ask for a comparison."""
    content = QUESTION.format(prompt=prompt.strip(), first=first.strip(), second=second.strip())
    return [{"role": "user", "content": content}]


def combine_orders(first: float | None, second: float | None) -> float | None:
    """The policy's share of the win from the verdicts of the two orders (its own place first, then
    second); verdicts that contradict each other are a tie, an unclear one leaves None."""
    if first is None or second is None:
        return None
    return first if first == 1.0 - second else 0.5


def cache_key(address: str, judge: ServedJudge, messages: Messages) -> str:
    """What identifies a paid answer: the endpoint, the model and everything it is asked (how it
    wants to be asked follows from the first two and the parameters first tried)."""
    how = ANSWER_TOKENS if judge.parameters == PARAMETERS else dict(judge.parameters)
    content = json.dumps([address, judge.model, how, messages], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def estimate(
    questions: Sequence[Messages],
    n_cached: int,
    answer_tokens: int,
    price: Sequence[float] | None,
) -> str:
    """One line: calls, tokens and, with prices in dollars per million tokens, the cost."""
    characters = sum(len(message["content"]) for messages in questions for message in messages)
    tokens = characters / CHARACTERS_PER_TOKEN, answer_tokens * len(questions)
    cost = price and (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6
    return (
        f"judge: {len(questions)} calls ({n_cached} more are answered from the cache), about "
        f"{tokens[0] / 1e6:.3g} M tokens asked, at most {tokens[1] / 1e6:.3g} M answered"
        + (f", about {cost:.2f} USD" if price else "")
    )


def complaint(client, error) -> str:
    """What an endpoint says against a request, in one line that does not hold the key."""
    body = error.body if isinstance(error.body, dict) else {}
    text = " ".join(str(body.get("message") or error.body or error.message).split())
    return text.replace(client.api_key, "…") if os.environ.get("OPENAI_API_KEY") else text


def ask(client, model: str, messages: Messages, parameters: Mapping[str, Any]):
    """The first choice of a chat completion; None where there is none.

    Raises openai.APIStatusError where the judge does not take this request, ValueError with one
    line, which never holds the key, if it cannot be asked at all.
    """
    import openai

    where = f"judge {model} at {client.base_url}"
    try:
        response = client.chat.completions.create(model=model, messages=messages, **parameters)
    except openai.APIStatusError as error:
        if error.status_code in REFUSED:
            raise
        raise ValueError(
            f"{where}: HTTP {error.status_code} after {client.max_retries} retries: check the "
            "model's name, the key and the quota"
        ) from None
    except openai.APIConnectionError:  # timeouts too
        raise ValueError(
            f"judge {model}: {client.base_url} does not answer after {client.max_retries} retries"
        ) from None
    except openai.OpenAIError as error:
        raise ValueError(f"{where}: {type(error).__name__}") from None
    if not hasattr(response, "choices"):
        raise ValueError(f"{where}: no chat completion came back: check --judge-base-url")
    return response.choices[0] if response.choices else None


def answer_text(choice, parameters: Mapping[str, Any]) -> str:
    """What a choice says: its text, or the arguments of the function that it calls; where
    log-probabilities were asked for, all of the choice as JSON, the text under `text`."""
    if choice is None:
        return ""
    calls = choice.message.tool_calls
    text = (calls[0].function.arguments if calls else choice.message.content) or ""
    if not text or not parameters.get("logprobs"):
        return text
    bytes_of = {"bytes": True, "top_logprobs": {"__all__": {"bytes"}}}  # the tokens once more
    left_out = {"logprobs": {"content": {"__all__": bytes_of}}}
    said = choice.model_dump(exclude_none=True, exclude=left_out, warnings=False)
    return json.dumps(said | {"text": text})


def text_said(answer: str, parameters: Mapping[str, Any]) -> str:
    """The text of what `answer_text` returned."""
    return json.loads(answer)["text"] if answer and parameters.get("logprobs") else answer


def find_parameters(client, judge: ServedJudge) -> dict[str, Any]:
    """How the judge wants to be asked, found by a question that no filter and no limit refuses.

    With `judge.parameters`; newer models of OpenAI's take `max_completion_tokens` instead of
    `max_tokens`, which also limits their reasoning, and no temperature. Raises ValueError as `ask`
    does, and with what the judge says against the request otherwise, or where it gives no
    log-probabilities although they are asked for.
    """
    import openai

    model, parameters = judge.model, dict(judge.parameters)
    while True:
        try:
            choice = ask(client, model, TRIAL, parameters)
            if parameters.get("logprobs") and getattr(choice, "logprobs", None) is None:
                raise ValueError(
                    f"judge {model} at {client.base_url} gives no log-probabilities, from which "
                    "this judge's verdicts are read: choose one that is read by its words"
                )
            return parameters
        except openai.APIStatusError as error:
            said = complaint(client, error)
            named = error.param or said
            if "max_tokens" in parameters and re.search("max_(completion_)?tokens", named):
                del parameters["max_tokens"]
                parameters["max_completion_tokens"] = REASONING_TOKENS
            elif "temperature" in parameters and "temperature" in named:
                del parameters["temperature"]
            else:
                raise ValueError(
                    f"judge {model} at {client.base_url}: HTTP {error.status_code}: {said[:300]}"
                ) from None


def ask_all(
    client,
    judge: ServedJudge,
    questions: dict[tuple, Messages],
    cache: Path,
    *,
    concurrency: int,
    price: Sequence[float] | None = None,
) -> Iterator[tuple[tuple, str]]:
    """(key of the question, answer), from the cache first, the rest as the judge answers.

    Every answer is on disk before it is yielded, so nothing is paid for twice. A question that the
    judge refuses (too long, filtered) has an empty one. Raises ValueError if the judge fails for
    good; the answers until then are kept.
    """
    answers = read_cached(cache)
    waiting: dict[str, list[tuple]] = {}  # like questions are asked once
    for name, messages in questions.items():
        key = cache_key(str(client.base_url), judge, messages)
        if key in answers:
            yield name, answers[key]
        else:
            waiting.setdefault(key, []).append(name)
    if not waiting:
        return
    missing = {key: questions[names[0]] for key, names in waiting.items()}
    parameters = find_parameters(client, judge)
    if parameters != judge.parameters:
        announce(f"judge {judge.model} takes no max_tokens or temperature: asked with {parameters}")
    limit = int(parameters.get("max_tokens", REASONING_TOKENS))
    announce(estimate(list(missing.values()), len(questions) - len(missing), limit, price))
    for key, answer in ask_missing(client, judge.model, missing, parameters, cache, concurrency):
        for name in waiting[key]:
            yield name, answer


def ask_missing(
    client,
    model: str,
    missing: dict[str, Messages],
    parameters: Mapping[str, Any],
    cache: Path,
    concurrency: int,
) -> Iterator[tuple[str, str]]:
    """(key, answer) as the judge answers, each appended before to `cache`, a line [key, answer]
    each: `cache_key` of the question, and the answer as it came, never empty."""
    import openai

    cache.parent.mkdir(parents=True, exist_ok=True)
    if cache.exists():
        drop_torn_line(cache)
    lock = threading.Lock()
    refusals: list[str] = []

    def answered(key: str) -> str:
        try:
            answer = answer_text(ask(client, model, missing[key], parameters), parameters)
        except openai.APIStatusError as error:
            refusals.append(complaint(client, error))
            return ""
        if answer:
            with lock, cache.open("ab") as file:
                append_json_lines(file, [[key, answer]])
        return answer

    pool = ThreadPoolExecutor(concurrency)
    futures = {pool.submit(answered, key): key for key in missing}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
        if refusals:
            announce(f"judge: {len(refusals)} questions refused, unclear: {refusals[0][:300]}")
    finally:  # after an error or a stop no further call is made; those on their way are kept
        pool.shutdown(wait=False, cancel_futures=True)
