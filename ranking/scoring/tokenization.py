"""Prompt and completions → token ids, with the boundary between them found by character offsets."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from tokenizers import Tokenizer

from ranking.data.cells import Dropped
from ranking.data.examples import PreferenceExample
from ranking.data.preferences import BAR_FROM
from ranking.plumbing.command_line import progress_bar
from ranking.scoring.chat import (
    AUTO,
    ChatOptions,
    Texts,
    check_template,
    closes_turns,
    end_of_turn_id,
    goes_through_template,
    plain_prompt,
    render_example,
)
from ranking.scoring.loading import unwrap

EXAMPLES_PER_CALL = 512  # of the tokenizer, whose encodings are 100 times as large as their ids


@dataclass(frozen=True, slots=True)
class TokenizedCompletion:
    """Token ids of prompt + completion; `ids[start:]` are the completion's tokens."""

    ids: tuple[int, ...]
    start: int
    truncated: bool
    scored: tuple[int, ...] | None = None  # positions, where others lie between them; from `start`

    @property
    def positions(self) -> Sequence[int]:
        """Where the tokens stand that are scored."""
        return range(self.start, len(self.ids)) if self.scored is None else self.scored


def exact_offset_tokenizer(tokenizer) -> Tokenizer:
    """The fast tokenizer with untrimmed offsets, neither padding nor truncating.

    Byte-level tokenizers trim white space off the offsets they report, which would move a token
    such as ":\\n\\n" from the completion into the prompt.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "scoring needs a fast tokenizer (tokenizer.json): it locates completions by offsets"
        )
    fast = Tokenizer.from_str(
        re.sub(
            r'"trim_offsets":\s*true', '"trim_offsets":false', tokenizer.backend_tokenizer.to_str()
        )
    )
    fast.no_padding()
    fast.no_truncation()
    return fast


def without_endings(tokenizer, text: str, end: int | None) -> str:
    """A text without the EOS tokens, or `end` tokens, written out, that it ends with."""
    ids = {end, tokenizer.eos_token_id} - {None}
    endings = tuple(tokenizer.convert_ids_to_tokens(i) for i in ids)
    while (bare := text.rstrip()).endswith(endings):
        text = bare[: -max(len(ending) for ending in endings if bare.endswith(ending))]
    return text


def encode_texts(fast: Tokenizer, texts: Sequence[str], add_special_tokens=True) -> Iterator:
    """Encodings of texts, some hundred in memory at a time."""
    for first in range(0, len(texts), EXAMPLES_PER_CALL):
        part = texts[first : first + EXAMPLES_PER_CALL]
        yield from fast.encode_batch(part, add_special_tokens=add_special_tokens)


class Tokenized(NamedTuple):
    """Which examples were kept, their completions, and how many were dropped by reason."""

    kept: list[int]
    completions: list[list[TokenizedCompletion]]
    dropped: dict[str, int]


class Written(NamedTuple):
    """Example `number` as text: its prompt, and each completion behind the prompt."""

    number: int
    prompt: str
    texts: list[str]
    in_template: bool  # which writes the special tokens in front, too


def tokenize_examples(
    tokenizer,
    examples: Sequence[PreferenceExample | Texts],
    chat: ChatOptions = AUTO,
    *,
    add_eos: bool = False,
    max_length: int | None = None,
) -> Tokenized:
    """Tokenize prompts and completions jointly; the boundary comes from offsets.

    A token belongs to the completion if its span ends after the prompt. Special tokens that the
    tokenizer puts in front are kept (once), those it appends are not; `add_eos` has every
    completion end with one scored EOS, in a chat template with all that it closes the turn with,
    whether its text ends with one or not. A separator counts with the completion behind it.
    `max_length` in tokens: the prompt is cut from the left after its BOS, never a completion, and
    by the same amount for all completions of an example, so that all are given one prompt.
    Dropped: no completion token, no token of context, too long, completions that differ in rank but
    not in tokens, dialogues that the chat template refuses, and tool calls without one.
    Raises ValueError where a template or an end of a turn is asked for and there is none.
    """
    fast = exact_offset_tokenizer(tokenizer)
    check_template(tokenizer, chat, "this tokenizer")
    endings = find_endings(tokenizer, examples, chat, add_eos)
    kept: list[int] = []
    tokenized: list[list[TokenizedCompletion]] = []
    dropped: Counter[str] = Counter()
    numbers: dict[int, int] = {}  # one object for a number, however often it occurs
    bar = progress_bar("tokenizing", len(examples)) if len(examples) >= BAR_FROM else None
    for first in range(0, len(examples), EXAMPLES_PER_CALL):
        waiting: list[Written] = []
        for k, example in enumerate(examples[first : first + EXAMPLES_PER_CALL], start=first):
            renders = goes_through_template(tokenizer, example, chat)
            write = write_in_template if renders else write_as_text
            try:
                prompt, texts = write(tokenizer, example, chat, endings[renders], add_eos)
                waiting.append(Written(k, prompt, texts, renders))
            except Dropped as drop:
                dropped[str(drop)] += 1
        encodings = {}
        for renders in (False, True):
            together = [text for w in waiting if w.in_template == renders for text in w.texts]
            encodings[renders] = iter(fast.encode_batch(together, add_special_tokens=not renders))
        for k, prompt, texts, renders in waiting:
            closing = endings[renders].appended
            parts = [
                locate_completion(
                    next(encodings[renders]), len(prompt), closing, tokenizer.bos_token_id
                )
                for _ in texts
            ]
            ranks = examples[k].ranks or range(len(parts))
            try:
                for (one, rank), (other, its_rank) in combinations(zip(parts, ranks), 2):
                    if one == other and rank != its_rank:
                        raise Dropped("identical completions")
                shared = [
                    [[numbers.setdefault(i, i) for i in ids] for ids in part] for part in parts
                ]
                tokenized.append(fit_to_length(shared, max_length))
                kept.append(k)
            except Dropped as drop:
                dropped[str(drop)] += 1
        if bar is not None:
            bar.update(len(examples[first : first + EXAMPLES_PER_CALL]))
    if bar is not None:
        bar.close()
    return Tokenized(kept, tokenized, dict(dropped))


class Endings(NamedTuple):
    """How completions end."""

    left_out: int | None = None  # id that, written out, ends no text: it is no word of the answer
    appended: int | None = None  # id that is put behind each


def find_endings(
    tokenizer, examples: Sequence[PreferenceExample | Texts], chat: ChatOptions, add_eos: bool
) -> dict[bool, Endings]:
    """The endings of what is rendered by the template (True), and of what is not (False)."""
    eos = tokenizer.eos_token_id
    found = {False: Endings(), True: Endings()}
    for renders in {goes_through_template(tokenizer, example, chat) for example in examples}:
        end = end_of_turn_id(tokenizer, chat) if renders else eos
        closed = renders and closes_turns(tokenizer, chat)
        if add_eos and not closed and end is None:
            raise ValueError("--add-eos: this tokenizer has no EOS token")
        left_out = end if end in tokenizer.added_tokens_decoder else None
        found[renders] = Endings(left_out, end if add_eos and not closed else None)
    return found


def write_as_text(
    tokenizer, item: PreferenceExample | Texts, chat: ChatOptions, ends: Endings, add_eos: bool
) -> tuple[str, list[str]]:
    """The prompt, and prompt + separator + completion; without the EOS that a completion ends
    with where one is appended."""
    messages = item.dialogue.messages if item.dialogue else ()
    if any(m.get("tool_calls") and not m.get("content") for m in messages):
        raise Dropped("tool calls without text need a chat template")
    prompt, texts = plain_prompt(item, chat), list(item.completions)
    if add_eos:
        texts = [without_endings(tokenizer, text, ends.left_out) for text in texts]
    separators = item.separators or [""] * len(texts)
    return prompt, [prompt + s + text for s, text in zip(separators, texts, strict=True)]


def write_in_template(
    tokenizer, item: PreferenceExample | Texts, chat: ChatOptions, ends: Endings, add_eos: bool
) -> tuple[str, list[str]]:
    """The prompt in the chat template, and behind it each assistant's turn; closed if `add_eos`."""
    texts = [without_endings(tokenizer, text, ends.left_out) for text in item.completions]
    try:
        prompt, turns, closing = render_example(tokenizer, item, chat, texts)
    except ValueError:
        raise Dropped("chat template refuses the dialogue") from None
    return prompt, [prompt + turn + closing * add_eos for turn in turns]


def locate_completion(
    encoding, boundary: int, closing: int | None, bos_id: int | None
) -> tuple[list[int], list[int], list[int]]:
    """Split one encoding at character `boundary` into BOS (if any), prompt and completion ids."""
    ids, special = list(encoding.ids), encoding.special_tokens_mask
    end = len(ids)
    while end and special[end - 1]:
        end -= 1  # appended by the tokenizer's template (not by the text): not scored
    front = 0
    while front < end and special[front] and encoding.offsets[front] == (0, 0):
        front += 1
    if (
        front
        and bos_id is not None
        and ids[front - 1] == bos_id
        and ids[front : front + 1] == [bos_id]
    ):
        del ids[front - 1]  # the text itself starts with BOS
        front, end = front - 1, end - 1
        offsets = encoding.offsets[:front] + encoding.offsets[front + 1 :]
    else:
        offsets = encoding.offsets
    start = next((t for t in range(front, end) if offsets[t][1] > boundary), end)
    head, prompt, completion = ids[:front], ids[front:start], ids[start:end]
    if closing is not None:
        completion.append(closing)
    if front == 0 and prompt and bos_id is not None and prompt[0] == bos_id:
        head, prompt = prompt[:1], prompt[1:]
    return head, prompt, completion


def fit_to_length(
    parts: Sequence[Sequence[list[int]]], max_length: int | None
) -> list[TokenizedCompletion]:
    """The completions of one example, all after the same prompt, cut from the left to fit the
    longest. Raises `Dropped` where they cannot be scored."""
    if not all(completion for _, _, completion in parts):
        raise Dropped("no completion token")
    if not all(head or prompt for head, prompt, _ in parts):
        raise Dropped("no token of context")
    excess = 0
    if max_length is not None:
        excess = max(0, max(len(h) + len(p) + len(c) for h, p, c in parts) - max_length)
    if excess and any(excess > len(p) or len(h) + len(p) == excess for h, p, _ in parts):
        raise Dropped("too long")
    return [
        TokenizedCompletion((*h, *p[excess:], *c), len(h) + len(p) - excess, excess > 0)
        for h, p, c in parts
    ]


def check_vocabulary(model, ids: Iterable[Sequence[int]]) -> None:
    """Raise ValueError if a tokenizer's ids are more than the model has embeddings for."""
    embeddings = unwrap(model).get_input_embeddings()
    n_words = getattr(embeddings, "num_embeddings", None)
    largest = max((max(row, default=0) for row in ids), default=0)
    if n_words is not None and largest >= n_words:
        raise ValueError(
            f"the tokenizer gives ids up to {largest}, the model has embeddings for {n_words} "
            "tokens: they do not belong together"
        )
