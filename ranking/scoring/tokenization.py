"""Prompt and completions → token ids, with the boundary between them found by character offsets."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer

from ranking.data.cells import Dropped
from ranking.data.dialogues import is_begun, parse_dialogue
from ranking.data.examples import Dialogue, PreferenceExample
from ranking.scoring.loading import unwrap

EXAMPLES_PER_CALL = 512  # of the tokenizer, whose encodings are 100 times as large as their ids


@dataclass(frozen=True, slots=True)
class TokenizedCompletion:
    """Token ids of prompt + completion; `ids[start:]` are the completion's tokens."""

    ids: tuple[int, ...]
    start: int
    truncated: bool


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


def chat_prompt(tokenizer, prompt: str) -> str:
    """The prompt in the chat template, up to where a completion begins.

    ValueError where the template refuses the dialogue.
    """
    messages = parse_dialogue(prompt)
    begun = is_begun(messages)
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=begun,
        )
    except (TemplateError, ValueError) as error:
        raise ValueError(f"the chat template refuses {prompt[:60]!r} ({error})") from None


def end_of_turn_id(tokenizer) -> int | None:
    """Id of the token that closes an assistant turn in the chat template, else EOS."""
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "probe"}]
    tail = tokenizer.apply_chat_template(probe, tokenize=False).rpartition("probe")[2]
    ids = tokenizer(tail.strip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids else tokenizer.eos_token_id


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


class Texts(NamedTuple):
    """What is tokenized of an example, where there is no `PreferenceExample`.

    separators stand between prompt and completions (default: nothing); completions that differ in
    ranks (default: all differ) have to differ in tokens.
    """

    prompt: str
    completions: Sequence[str]
    separators: Sequence[str] | None = None
    ranks: Sequence[int] | None = None
    dialogue: Dialogue | None = None


class Tokenized(NamedTuple):
    """Which examples were kept, their completions, and how many were dropped by reason."""

    kept: list[int]
    completions: list[list[TokenizedCompletion]]
    dropped: dict[str, int]


def tokenize_examples(
    tokenizer,
    examples: Sequence[PreferenceExample | Texts],
    *,
    chat_template: bool = False,
    add_eos: bool = False,
    max_length: int | None = None,
) -> Tokenized:
    """Tokenize prompts and completions jointly; the boundary comes from offsets.

    A token belongs to the completion if its span ends after the prompt. Special tokens that the
    tokenizer puts in front are kept (once), those it appends are not; `add_eos` has every
    completion end with one scored EOS (the end-of-turn token under `chat_template`), whether its
    text ends with one or not. A separator counts with the completion behind it.
    `max_length` in tokens: the prompt is cut from the left after its BOS, never a completion, and
    by the same amount for all completions of an example, so that all are given one prompt.
    Dropped: no completion token, no token of context, too long, completions that differ in rank but
    not in tokens, and dialogues that the chat template refuses.
    """
    fast = exact_offset_tokenizer(tokenizer)
    end = end_of_turn_id(tokenizer) if chat_template else tokenizer.eos_token_id
    if add_eos and end is None:
        raise ValueError("--add-eos: this tokenizer has no EOS token")
    closing = end if add_eos else None
    ending = end if end in tokenizer.added_tokens_decoder else None  # not a word of the answer
    kept: list[int] = []
    tokenized: list[list[TokenizedCompletion]] = []
    dropped: Counter[str] = Counter()
    numbers: dict[int, int] = {}  # one object for a number, however often it occurs
    for first in range(0, len(examples), EXAMPLES_PER_CALL):
        waiting: list[tuple[int, str, list[str]]] = []
        for k, example in enumerate(examples[first : first + EXAMPLES_PER_CALL], start=first):
            prompt, completions = example.prompt, list(example.completions)
            separators = example.separators or [""] * len(completions)
            if add_eos or chat_template:
                completions = [without_endings(tokenizer, text, ending) for text in completions]
            if chat_template:
                separators, completions = in_chat(prompt, separators, completions)
                try:
                    prompt = chat_prompt(tokenizer, prompt)
                except ValueError:
                    dropped["chat template refuses the dialogue"] += 1
                    continue
            texts = [prompt + s + text for s, text in zip(separators, completions, strict=True)]
            waiting.append((k, prompt, texts))
        together = [text for _, _, texts in waiting for text in texts]
        encodings = iter(fast.encode_batch(together, add_special_tokens=not chat_template))
        for k, prompt, texts in waiting:
            parts = [
                locate_completion(next(encodings), len(prompt), closing, tokenizer.bos_token_id)
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
    return Tokenized(kept, tokenized, dict(dropped))


def in_chat(
    prompt: str, separators: Sequence[str], completions: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Separators and completions as a chat template takes them: stripped, with nothing between,
    but for a turn that the prompt has begun: white space that the template strips stays."""
    space = prompt[len(prompt.rstrip()) :] if is_begun(parse_dialogue(prompt)) else None
    between = [
        "" if space is None else space + s + text[: len(text) - len(text.lstrip())]
        for s, text in zip(separators, completions, strict=True)
    ]
    return between, [text.strip() for text in completions]


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
