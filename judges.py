"""Which of two responses to a prompt is better: a reward model, or a language model behind an
OpenAI-compatible endpoint that is asked in both orders.
"""

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from result_files import append_json_lines

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
ANSWER_TOKENS = 16
CHARACTERS_PER_TOKEN = 4  # only for the estimate of the costs
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}  # share of the win that goes to the first reply
FIRST_ORDER, SECOND_ORDER = "policy first", "policy second"


# ---------------------------------------------------------------------------- reward model
def load_reward_model(name: str, device: str, dtype: str):
    """A sequence-classification model with one output, and its tokenizer.

    Raises OSError if nothing loads, ValueError if what loads has no trained score head.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from model_loading import load_tokenizer, resolve_model

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            resolve_model(name), dtype=getattr(torch, dtype), output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load the judge {name}: {str(error).splitlines()[0]}") from error
    if info["missing_keys"] or model.config.num_labels != 1:
        raise ValueError(
            f"{name} is no reward model: "
            + (
                f"it has no weights for {', '.join(sorted(info['missing_keys'])[:3])}"
                if info["missing_keys"]
                else f"it has {model.config.num_labels} outputs instead of one"
            )
        )
    tokenizer = load_tokenizer(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device).eval(), tokenizer


def reward_text(tokenizer, prompt: str, response: str) -> str:
    """Prompt and response as a reward model reads them: in its chat template if it has one, else
    one after the other with the end-of-text token."""
    from log_likelihood import parse_dialogue

    if tokenizer.chat_template is not None:
        messages = [*parse_dialogue(prompt), {"role": "assistant", "content": response}]
        return tokenizer.apply_chat_template(messages, tokenize=False)
    return f"{prompt.rstrip()} {response}{tokenizer.eos_token or ''}"


def reward_scores(
    model, tokenizer, texts: Sequence[str], tokens_per_batch: int = 4096
) -> Iterator[tuple[int, float]]:
    """(index, reward) of each text, longest first, in right-padded batches of similar length.

    Texts longer than the model's context lose their beginning.
    """
    import torch

    from model_loading import context_length

    limit = context_length(model)
    special = tokenizer.chat_template is None  # a template writes its own
    ids = [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
    ids = [x[-limit:] if limit else x for x in ids]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    while order:
        n = max(1, tokens_per_batch // max(len(ids[order[0]]), 1))
        batch, order = order[:n], order[n:]
        inputs = tokenizer.pad(
            {"input_ids": [ids[i] for i in batch]}, padding_side="right", return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            rewards = model(**inputs).logits[:, 0].float().tolist()
        yield from zip(batch, rewards)


# ---------------------------------------------------------------------------- language model
def make_client(base_url: str | None, timeout: float, max_retries: int):
    """An OpenAI client; the key comes from OPENAI_API_KEY and from nowhere else.

    It retries, with growing pauses, connection errors, timeouts and answers 408, 409, 429 and 5xx.
    Raises ValueError without a key, unless the endpoint is one's own (`base_url`).
    """
    from openai import OpenAI

    key = os.environ.get("OPENAI_API_KEY")
    if not key and base_url is None:
        raise ValueError("--judge openai: set OPENAI_API_KEY, or give --judge-base-url")
    return OpenAI(
        api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=max_retries
    )


def parse_verdict(answer: str) -> float | None:
    """Share of the win that goes to the first reply (1, 0, or 0.5 for a tie); None if unclear."""
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    if not lines:
        return None
    letters = set(re.findall(r"(?<![A-Za-z])[ABC](?![A-Za-z])", lines[-1]))
    return VERDICTS[letters.pop()] if len(letters) == 1 else None


def question(prompt: str, first: str, second: str) -> list[dict[str, str]]:
    """The messages that ask for a comparison."""
    content = QUESTION.format(prompt=prompt.strip(), first=first.strip(), second=second.strip())
    return [{"role": "user", "content": content}]


def both_orders(prompt: str, policy: str, other: str) -> dict[str, list[dict[str, str]]]:
    """The two questions about a pair of responses."""
    return {
        FIRST_ORDER: question(prompt, policy, other),
        SECOND_ORDER: question(prompt, other, policy),
    }


def combine_orders(first: float | None, second: float | None) -> float | None:
    """The policy's share of the win from the verdicts of the two orders (its own place first, then
    second); verdicts that contradict each other are a tie, an unclear one leaves None."""
    if first is None or second is None:
        return None
    return first if first == 1.0 - second else 0.5


def cache_key(model: str, messages: list[dict[str, str]]) -> str:
    """What identifies a paid answer: the model and everything it is asked."""
    content = json.dumps([model, ANSWER_TOKENS, messages], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def read_answers(path: Path) -> dict[str, str]:
    """Cached answers by key; a torn line (killed run) is left out and asked again."""
    answers = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            key, answer = json.loads(line)
        except ValueError:
            continue
        answers[key] = answer
    return answers


def estimate(
    questions: Sequence[list[dict[str, str]]], n_cached: int, price: Sequence[float] | None
) -> str:
    """One line: calls, tokens and, with prices in dollars per million tokens, the cost at most."""
    characters = sum(len(message["content"]) for messages in questions for message in messages)
    tokens = characters / CHARACTERS_PER_TOKEN, ANSWER_TOKENS * len(questions)
    text = (
        f"judge: {len(questions)} calls ({n_cached} more are answered from the cache), about "
        f"{tokens[0] / 1e6:.3g} M tokens asked, at most {tokens[1] / 1e6:.3g} M answered"
    )
    if price:
        text += f", at most {(tokens[0] * price[0] + tokens[1] * price[1]) / 1e6:.2f} USD"
    return text


def ask(client, model: str, messages: list[dict[str, str]]) -> str:
    """The answer's text. Raises ValueError with one line that never holds the key."""
    import openai

    try:
        response = client.chat.completions.create(
            model=model, messages=messages, temperature=0.0, max_tokens=ANSWER_TOKENS
        )
    except openai.APIStatusError as error:
        raise ValueError(
            f"judge {model} at {client.base_url}: HTTP {error.status_code} after "
            f"{client.max_retries} retries: check the model's name, the key and the quota"
        ) from None
    except openai.APIConnectionError:  # timeouts too
        raise ValueError(
            f"judge {model}: {client.base_url} does not answer after {client.max_retries} retries"
        ) from None
    choices = response.choices or []
    return (choices[0].message.content or "") if choices else ""


def ask_all(
    client,
    model: str,
    questions: dict[tuple, list[dict[str, str]]],
    cache: Path,
    *,
    concurrency: int,
    price: Sequence[float] | None = None,
    announce: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Iterator[tuple[tuple, str]]:
    """(key of the question, answer), from the cache first, the rest as the judge answers.

    Every answer is on disk before it is yielded, so nothing is paid for twice. Raises ValueError
    if the judge fails for good; the answers until then are kept.
    """
    answers = read_answers(cache)
    keys = {name: cache_key(model, messages) for name, messages in questions.items()}
    missing = {keys[name]: questions[name] for name in questions if keys[name] not in answers}
    waiting: dict[str, list[tuple]] = {}
    for name, key in keys.items():
        if key in answers:
            yield name, answers[key]
        else:
            waiting.setdefault(key, []).append(name)
    if not missing:
        return
    announce(estimate(list(missing.values()), len(questions) - len(missing), price))
    cache.parent.mkdir(parents=True, exist_ok=True)
    lock = threading.Lock()

    def answered(key: str) -> str:
        answer = ask(client, model, missing[key])
        with lock, cache.open("ab") as file:
            append_json_lines(file, [[key, answer]])
        return answer

    with ThreadPoolExecutor(concurrency) as pool:
        futures = {pool.submit(answered, key): key for key in missing}
        try:
            for future in as_completed(futures):
                for name in waiting[futures[future]]:
                    yield name, future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
