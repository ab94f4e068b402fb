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

from result_files import append_json_lines, drop_torn_line

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
REASONING_TOKENS = 4096  # of an answer, where the reasoning before it counts
TRIAL = [{"role": "user", "content": "Answer with the letter A and nothing else."}]
CHARACTERS_PER_TOKEN = 4  # only for the estimate of the costs
REFUSED = (400, 413, 422)  # of a question after the trial: it counts as unclear
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}  # share of the win that goes to the first reply
FIRST_ORDER, SECOND_ORDER = "policy first", "policy second"


# ---------------------------------------------------------------------------- reward model
def load_reward_model(
    name: str,
    device: str,
    dtype: str,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
):
    """A sequence-classification model with one output, and its tokenizer.

    Raises OSError if nothing loads, ValueError if what loads has no trained score head.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from model_loading import (
        LOADING_ERRORS,
        check_adapter_weights,
        explain,
        load_config,
        load_tokenizer,
        resolve_model,
    )

    try:
        check_adapter_weights(resolve_model(name), None, allow_pickle)
        load_config(resolve_model(name), None, trust_remote_code)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            resolve_model(name), dtype=getattr(torch, dtype), output_loading_info=True,
            trust_remote_code=trust_remote_code, use_safetensors=None if allow_pickle else True,
        )  # fmt: skip
    except LOADING_ERRORS as error:
        raise OSError(f"cannot load the judge {name}: {explain(error)}") from error
    if info["missing_keys"] or model.config.num_labels != 1:
        raise ValueError(
            f"{name} is no reward model: "
            + (
                f"it has no weights for {', '.join(sorted(info['missing_keys'])[:3])}"
                if info["missing_keys"]
                else f"it has {model.config.num_labels} outputs instead of one"
            )
        )
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    return model.to(device).eval(), tokenizer


def reward_ids(tokenizer, prompt: str, response: str) -> list[int]:
    """Token ids of prompt and response as a reward model reads them, in training and in judging.

    In its chat template if it has one: as model cards do, with the special tokens that the template
    writes and no others. Else one after the other with the tokenizer's special tokens, BOS at most
    once, and EOS at the end unless the tokenizer ends texts itself.
    Raises ValueError where the template refuses the dialogue.
    """
    from jinja2 import TemplateError

    from log_likelihood import is_begun, parse_dialogue, without_endings

    response = without_endings(tokenizer, response, None).strip()
    if tokenizer.chat_template is not None:
        messages = parse_dialogue(prompt)
        begun = f"{messages.pop()['content']} " if is_begun(prompt) else ""
        messages.append({"role": "assistant", "content": begun + response})
        try:
            return tokenizer.apply_chat_template(messages, return_dict=False)
        except TemplateError as error:
            raise ValueError(
                f"the judge's chat template refuses the dialogue {prompt[:60]!r} ({error})"
            ) from None
    text = f"{prompt.rstrip()} {response}"
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids, appended = encoded["input_ids"], any(encoded["special_tokens_mask"][-1:])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:  # the text itself begins with it
        del ids[0]
    return ids if appended or eos is None or ids[-1:] == [eos] else [*ids, eos]


def longest_text(model, tokenizer) -> int:
    """How many tokens the model and its tokenizer allow."""
    from model_loading import context_length

    return min(context_length(model) or 10**9, tokenizer.model_max_length)


def reward_scores(
    model, tokenizer, texts: Sequence[Sequence[int]], tokens_per_batch: int = 4096
) -> Iterator[tuple[int, float]]:
    """(index, reward) of each text's token ids, longest first, in right-padded batches of similar
    length.

    Texts longer than the model's context lose their beginning (not its BOS or CLS), which one line
    on stderr counts. Score heads read the last token that is not config.pad_token_id; a model
    without one is given one text at a time, of which it reads the last token. Texts whose rotary
    frequencies differ by their length (LongRoPE) are in batches of their own.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from log_likelihood import check_vocabulary, forget_lengths, length_class

    limit = longest_text(model, tokenizer)
    long = [i for i, ids in enumerate(texts) if len(ids) > limit]
    texts = list(texts)
    for i in long:
        kept = int(texts[i][0] in (tokenizer.bos_token_id, tokenizer.cls_token_id))
        texts[i] = [*texts[i][:kept], *texts[i][len(texts[i]) - limit + kept :]]
    if long:
        print(f"judge: {len(long)} texts cut from the left to {limit} tokens", file=sys.stderr)
    pad = model.config.get_text_config().pad_token_id
    can_pad = pad is not None and pad >= 0
    check_vocabulary(model, [*texts, [pad] * can_pad])
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    while order:
        n = max(1, tokens_per_batch // len(texts[order[0]])) if can_pad else 1
        kinds = [length_class(model, len(texts[i])) for i in order[:n]]
        n = next((k for k, kind in enumerate(kinds) if kind != kinds[0]), n)
        batch, order = order[:n], order[n:]
        if kinds[0]:
            forget_lengths(model)
        rows = [torch.tensor(texts[i], device=model.device) for i in batch]
        inputs = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad if can_pad else 0),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True),
        }
        with torch.inference_mode():
            rewards = model(**inputs).logits[:, 0].float().tolist()
        yield from zip(batch, rewards)


# ---------------------------------------------------------------------------- language model
def make_client(base_url: str | None, timeout: float, max_retries: int):
    """An OpenAI client; the key comes from OPENAI_API_KEY and from nowhere else.

    Without `base_url` the address is OPENAI_BASE_URL's or OpenAI's own. It retries, with growing
    pauses, connection errors, timeouts and answers 408, 409, 429 and 5xx.

    Raises ValueError without a key, unless the endpoint is one's own, and for an address that holds
    credentials: it is recorded.
    """
    from openai import OpenAI

    key = os.environ.get("OPENAI_API_KEY")
    base_url = base_url or os.environ.get("OPENAI_BASE_URL")
    if any(sign in (base_url or "") for sign in "@?"):
        raise ValueError("the judge's address: no credentials in it; use OPENAI_API_KEY")
    if not key and base_url is None:
        raise ValueError("--judge openai: set OPENAI_API_KEY, or give --judge-base-url")
    return OpenAI(
        api_key=key or "none", base_url=base_url, timeout=timeout, max_retries=max_retries
    )


def parse_verdict(answer: str) -> float | None:
    """Share of the win that goes to the first reply (1, 0, or 0.5 for a tie); None if unclear."""
    lines = [line for line in answer.strip().splitlines() if line.strip()]
    found = re.fullmatch(
        r"\W*(?:(?:final )?(?:answer|reply|verdict)\W+)?([ABC])\W*", lines[-1] if lines else "",
        flags=re.I,
    )  # fmt: skip
    return VERDICTS[found[1].upper()] if found else None


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


def cache_key(address: str, model: str, messages: list[dict[str, str]]) -> str:
    """What identifies a paid answer: the endpoint, the model and everything it is asked (how it
    wants to be asked follows from the first two)."""
    content = json.dumps([address, model, ANSWER_TOKENS, messages], sort_keys=True)
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
    questions: Sequence[list[dict[str, str]]],
    n_cached: int,
    answer_tokens: int,
    price: Sequence[float] | None,
) -> str:
    """One line: calls, tokens and, with prices in dollars per million tokens, the cost."""
    characters = sum(len(message["content"]) for messages in questions for message in messages)
    tokens = characters / CHARACTERS_PER_TOKEN, answer_tokens * len(questions)
    text = (
        f"judge: {len(questions)} calls ({n_cached} more are answered from the cache), about "
        f"{tokens[0] / 1e6:.3g} M tokens asked, at most {tokens[1] / 1e6:.3g} M answered"
    )
    if price:
        text += f", about {(tokens[0] * price[0] + tokens[1] * price[1]) / 1e6:.2f} USD"
    return text


def complaint(client, error) -> str:
    """What an endpoint says against a request, in one line that does not hold the key."""
    body = error.body if isinstance(error.body, dict) else {}
    text = " ".join(str(body.get("message") or error.body or error.message).split())
    return text.replace(client.api_key, "…") if os.environ.get("OPENAI_API_KEY") else text


def ask(client, model: str, messages: list[dict[str, str]], parameters: dict) -> str:
    """The answer's text.

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
    return (response.choices[0].message.content or "") if response.choices else ""


def find_parameters(client, model: str) -> dict[str, float | int]:
    """How the judge wants to be asked, found by a question that no filter and no limit refuses.

    Greedily with `max_tokens`; newer models of OpenAI's take `max_completion_tokens` instead, which
    also limits their reasoning, and no temperature. Raises ValueError as `ask` does, and with what
    the judge says against the request otherwise.
    """
    import openai

    parameters: dict[str, float | int] = {"temperature": 0.0, "max_tokens": ANSWER_TOKENS}
    while True:
        try:
            ask(client, model, TRIAL, parameters)
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
    model: str,
    questions: dict[tuple, list[dict[str, str]]],
    cache: Path,
    *,
    concurrency: int,
    price: Sequence[float] | None = None,
    announce: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Iterator[tuple[tuple, str]]:
    """(key of the question, answer), from the cache first, the rest as the judge answers.

    Every answer is on disk before it is yielded, so nothing is paid for twice. A question that the
    judge refuses (too long, filtered) has an empty one. Raises ValueError if the judge fails for
    good; the answers until then are kept.
    """
    import openai

    answers = read_answers(cache)
    keys = {
        name: cache_key(str(client.base_url), model, messages)
        for name, messages in questions.items()
    }
    missing = {keys[name]: questions[name] for name in questions if keys[name] not in answers}
    waiting: dict[str, list[tuple]] = {}
    for name, key in keys.items():
        if key in answers:
            yield name, answers[key]
        else:
            waiting.setdefault(key, []).append(name)
    if not missing:
        return
    parameters = find_parameters(client, model)
    if len(parameters.keys() & {"max_tokens", "temperature"}) < 2:
        announce(f"judge {model} takes no max_tokens or temperature: asked with {parameters}")
    limit = int(parameters.get("max_tokens", REASONING_TOKENS))
    announce(estimate(list(missing.values()), len(questions) - len(missing), limit, price))
    cache.parent.mkdir(parents=True, exist_ok=True)
    if cache.exists():
        drop_torn_line(cache)
    lock = threading.Lock()
    refusals: list[str] = []

    def answered(key: str) -> str:
        try:
            answer = ask(client, model, missing[key], parameters)
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
            for name in waiting[futures[future]]:
                yield name, future.result()
        if refusals:
            announce(f"judge: {len(refusals)} questions refused, unclear: {refusals[0][:300]}")
    finally:  # after an error or a stop no further call is made; those on their way are kept
        pool.shutdown(wait=False, cancel_futures=True)


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
