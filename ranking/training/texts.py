"""SFT's data: the preferred text of each example, with labels on its response turns only."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from datasets import Dataset

from ranking.data.cells import Dropped
from ranking.data.conversions import sft_texts
from ranking.data.examples import PreferenceData, counts_text
from ranking.plumbing.processes import announce
from ranking.scoring.chat import (
    ChatOptions,
    Texts,
    closes_turns,
    end_of_turn_id,
    goes_through_template,
    plain_prompt,
)
from ranking.scoring.loading import context_length
from ranking.scoring.tokenization import (
    EXAMPLES_PER_CALL,
    check_vocabulary,
    exact_offset_tokenizer,
    without_endings,
)
from ranking.training.templates import describe_template, ends_turn
from ranking.training.turns import rendered_turns

TEMPLATES = ("Human:", "Assistant:")  # HH-RLHF's


IGNORED = -100  # a label that does not count
AS_TEXT = ChatOptions(mode="never")


def response_spans(text: str, instruction: str, response: str) -> list[tuple[int, int]]:
    """Character spans of the response turns of a dialogue, without the templates.

    A turn opens where a template stands at the start of the text or after a blank line, and ends
    before the blank line of the next turn; a template inside a turn opens nothing.
    """
    opening = re.compile(rf"(?:\A\s*|\n\n)({re.escape(instruction)}|{re.escape(response)})")
    turns = list(opening.finditer(text))
    ends = [turn.start() for turn in turns[1:]] + [len(text)]
    return [
        (turn.end(), end)
        for turn, end in zip(turns, ends)
        if turn.group(1) == response and text[turn.end() : end].strip()
    ]


def trained_spans(
    text: str, n_prompt_characters: int, templates: tuple[str, str] | None
) -> list[tuple[int, int]]:
    """Spans to train on: by `templates` if given; else HH's turns if the prompt ends with one, or
    the completion."""
    if templates is not None:
        return response_spans(text, *templates)
    if re.search(rf"(?:\A|\n\n){TEMPLATES[1]}\s*\Z", text[:n_prompt_characters]):
        return response_spans(text, *TEMPLATES)
    return [(n_prompt_characters, len(text))] if text[n_prompt_characters:].strip() else []


def mask_labels(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Labels: the ids of tokens that reach into a span, IGNORED elsewhere.

    As in scoring, a token that begins before a span and ends inside it belongs to the span.
    """
    labels = [IGNORED] * len(ids)
    for t, (first, last) in enumerate(offsets):
        if any(first < end and last > start for start, end in spans):
            labels[t] = ids[t]
    return labels


class Marked(NamedTuple):
    """A text, the spans to train on, whether one more EOS is to end it, and whether it is what a
    chat template wrote, with all special tokens in it."""

    text: str
    spans: list[tuple[int, int]]
    with_eos: bool
    in_template: bool


def mark_turns(
    tokenizer,
    given: dict,
    templates: tuple[str, str] | None,
    add_eos: bool | None,
    chat: ChatOptions,
) -> Marked:
    """What is trained of a row of `sft_texts`. Raises `Dropped` with the reason where it cannot be
    rendered."""
    n = given["n_prompt_characters"]
    prompt, separator = given["text"][:n], given.get("separator", "")
    answer = given["text"][n + len(separator) :]
    item = Texts(prompt, (answer,), (separator,), dialogue=given.get("dialogue"))
    ended = ends_turn(tokenizer, item, chat, add_eos)
    renders = goes_through_template(tokenizer, item, chat)
    with_eos = ended and not (renders and closes_turns(tokenizer, chat))
    if with_eos and tokenizer.eos_token_id is None:
        raise ValueError(
            "--add_eos: this tokenizer has no EOS token (--no_add_eos trains without an end)"
        )
    if renders:
        end = end_of_turn_id(tokenizer, chat)
        end = end if end in tokenizer.added_tokens_decoder else None
        item = item._replace(completions=(without_endings(tokenizer, answer, end),))
        return Marked(*rendered_turns(tokenizer, item, chat, ended), with_eos, True)
    calls = item.dialogue and any(
        m.get("tool_calls") and not m.get("content") for m in item.dialogue.messages
    )
    if calls:
        raise Dropped("tool calls without text or a chat template")
    spans = given.get("spans") if templates is None else None
    start = spans[-1][0] if spans else n
    text = given["text"]
    if ended:
        text = text[:start] + without_endings(tokenizer, text[start:], tokenizer.eos_token_id)
    if spans is not None:
        spans = [(first, min(last, len(text))) for first, last in spans]
    else:
        spans = trained_spans(text, n, templates)
    whole = plain_prompt(item, chat)  # behind a system message, where one is asked for
    shift = len(whole) - n
    return Marked(whole + text[n:], [(a + shift, b + shift) for a, b in spans], with_eos, False)


def tokenize_texts(
    tokenizer,
    texts: list[dict],
    templates: tuple[str, str] | None,
    max_length: int,
    add_eos: bool | None,
    chat: ChatOptions = AS_TEXT,
) -> tuple[list[dict], dict[str, int]]:
    """{input_ids, labels} of texts cut at `max_length` tokens, of a mixture also `dataset`, and
    what was dropped by reason.

    add_eos: as `ends_turn`. What a template writes ends as the template closes a turn; where it
    closes none, and where no template writes, with EOS, once.
    """
    eos = tokenizer.eos_token_id
    fast = exact_offset_tokenizer(tokenizer)
    several = len({given.get("dataset") for given in texts}) > 1
    rows: list[dict] = []
    dropped: Counter[str] = Counter()
    for first in range(0, len(texts), EXAMPLES_PER_CALL):
        marked = []
        for given in texts[first : first + EXAMPLES_PER_CALL]:
            try:
                marked.append((given, mark_turns(tokenizer, given, templates, add_eos, chat)))
            except Dropped as drop:
                dropped[str(drop)] += 1
        encodings = {
            in_template: iter(
                fast.encode_batch(
                    [m.text for _, m in marked if m.in_template == in_template],
                    add_special_tokens=not in_template,
                )
            )
            for in_template in (True, False)
        }
        for given, (text, spans, with_eos, in_template) in marked:
            encoding = next(encodings[in_template])
            end = len(encoding.ids)
            while not in_template and end and encoding.special_tokens_mask[end - 1]:
                end -= 1  # appended by the tokenizer's template
            ids, labels = encoding.ids[:end], mask_labels(encoding.ids, encoding.offsets, spans)
            labels = labels[:end]
            if with_eos:
                ids, labels = [*ids, eos], [*labels, eos]
            is_cut = len(ids) > max_length
            ids, labels = ids[:max_length], labels[:max_length]
            if not any(text[a:b].strip() for a, b in spans):
                dropped["no response turn"] += 1
            elif all(label == IGNORED for label in labels[1:]):
                dropped["too long" if is_cut else "no token of context"] += 1
            else:
                row = {"input_ids": ids, "labels": labels}
                rows.append({**row, "dataset": given["dataset"]} if several else row)
    return rows, dict(dropped)


def prepare_texts(
    examples: dict[str, PreferenceData],
    model,
    tokenizer,
    *,
    templates: tuple[str, str] | None,
    max_length: int,
    add_eos: bool | None,
    chat: ChatOptions,
) -> dict[str, Dataset]:
    """The tokenized texts of each part, checked against the model that is to be trained on them."""
    describe_template(tokenizer, examples, chat, add_eos)
    rendered = [e for e in examples["train"].examples if goes_through_template(tokenizer, e, chat)]
    if templates is not None and rendered:
        announce("--instruction_template and --response_template have no part in what goes through "
                 "the chat template")  # fmt: skip
    longest = min(x for x in (max_length, context_length(model)) if x is not None)
    parts = {
        part: texts_dataset(tokenizer, data, templates, longest, add_eos, chat, part)
        for part, data in examples.items()
    }
    columns = [part["input_ids"] for part in parts.values()]
    check_vocabulary(model, chain.from_iterable(columns))
    return parts


def texts_dataset(
    tokenizer,
    data: PreferenceData,
    templates: tuple[str, str] | None,
    max_length: int,
    add_eos: bool | None,
    chat: ChatOptions,
    part: str,
) -> Dataset:
    """The tokenized texts of one part; what was dropped and cut is announced."""
    texts = sft_texts(data.examples)
    rows, dropped = tokenize_texts(tokenizer, texts, templates, max_length, add_eos, chat)
    counts = counts_text(dropped)
    n_tokens = sum(label != IGNORED for row in rows for label in row["labels"])
    n_cut = sum(len(row["input_ids"]) == max_length for row in rows)
    announce(
        f"{part}: {len(rows)} texts with {n_tokens} response tokens, {n_cut} cut at {max_length} "
        f"tokens, dropped: {counts}"
    )
    if not rows:
        hint = "leave the templates out, or check them; " if "no response turn" in dropped else ""
        raise ValueError(f"{part}: no text left to train on ({hint}dropped: {counts})")
    return Dataset.from_list(rows)


def check_packing(model, dataset: Dataset) -> None:
    """ValueError if a text packed behind another is not predicted as it is alone."""
    first, second = (dataset[k]["input_ids"][:64] for k in (0, len(dataset) - 1))
    positions = [*range(len(first)), *range(len(second))]
    with torch.inference_mode():
        ids, positions = (
            torch.tensor([x], device=model.device) for x in (first + second, positions)
        )
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        alone = model(input_ids=ids[:, len(first) :], use_cache=False).logits
    difference = (packed[:, len(first) :] - alone).float().abs().max().item()
    limit = 1e-3 if alone.dtype == torch.float32 else 0.5
    if not difference <= limit * max(1.0, alone.float().abs().max().item()):
        raise ValueError(
            "--packing: this model's attention lets packed texts see each other "
            f"(logits differ by {difference:.2g}): leave it out"
        )
