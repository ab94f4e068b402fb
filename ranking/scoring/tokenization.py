"""Prompt and completions → token ids, with the boundary between them found by character offsets."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from jinja2 import TemplateError
from tokenizers import Tokenizer

from ranking.scoring.models import unwrap

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


def parse_dialogue(prompt: str) -> list[dict[str, str]]:
    """Chat messages of a prompt: `\\n\\nHuman:`/`\\n\\nAssistant:` turns, or one user message.

    Text before the first turn is the system message (the user's, if the assistant speaks first).
    """
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", prompt)
    if len(parts) < 3:
        return [{"role": "user", "content": prompt.strip()}]
    roles = {"Human": "user", "Assistant": "assistant"}
    messages: list[dict[str, str]] = []
    if parts[0].strip():
        first = "system" if parts[1] == "Human" else "user"
        messages.append({"role": first, "content": parts[0].strip()})
    for role, text in zip(parts[1::2], map(str.strip, parts[2::2])):
        if role == "Assistant" and not text:
            continue  # it opens the turn that is to come
        if messages and messages[-1]["role"] == roles[role]:
            both = filter(None, (messages[-1]["content"], text))
            messages[-1]["content"] = "\n\n".join(both)
        else:
            messages.append({"role": roles[role], "content": text})
    return messages or [{"role": "user", "content": ""}]


def is_begun(prompt: str) -> bool:
    """Whether a prompt ends inside an assistant turn, which the completion goes on with."""
    return parse_dialogue(prompt)[-1]["role"] == "assistant"


def chat_prompt(tokenizer, prompt: str) -> str:
    """The prompt in the chat template, up to where a completion begins.

    ValueError where the template refuses the dialogue.
    """
    begun = is_begun(prompt)
    try:
        return tokenizer.apply_chat_template(
            parse_dialogue(prompt),
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


def tokenize_examples(
    tokenizer,
    examples: Sequence[tuple[str, Sequence[str]]],
    *,
    separators: Sequence[Sequence[str]] | None = None,
    ranks: Sequence[Sequence[int]] | None = None,
    chat_template: bool = False,
    add_eos: bool = False,
    max_length: int | None = None,
) -> list[list[TokenizedCompletion] | str]:
    """Tokenize (prompt, completions) examples jointly; the boundary comes from offsets.

    A token belongs to the completion if its span ends after the prompt. Special tokens that the
    tokenizer puts in front are kept (once), those it appends are not; `add_eos` has every
    completion end with one scored EOS (the end-of-turn token under `chat_template`), whether its
    text ends with one or not. `separators` (one per completion, default "") stand between prompt
    and completion and count with the completion. `ranks` (default: all differ): completions that
    differ in rank have to differ in tokens.
    `max_length` in tokens: the prompt is cut from the left after its BOS, never a completion, and
    by the same amount for all completions of an example, so that all are given one prompt.

    Returns one list of TokenizedCompletion per example, or the reason why it cannot be scored.
    """
    fast = exact_offset_tokenizer(tokenizer)
    end = end_of_turn_id(tokenizer) if chat_template else tokenizer.eos_token_id
    if add_eos and end is None:
        raise ValueError("--add-eos: this tokenizer has no EOS token")
    closing = end if add_eos else None
    ending = end if end in tokenizer.added_tokens_decoder else None  # not a word of the answer
    tokenized: list[list[TokenizedCompletion] | str] = []
    numbers: dict[int, int] = {}  # one object for a number, however often it occurs
    for first in range(0, len(examples), EXAMPLES_PER_CALL):
        texts, boundaries, refused = [], [], set()
        chunk = examples[first : first + EXAMPLES_PER_CALL]
        for number, (prompt, completions) in enumerate(chunk, start=first):
            between = separators[number] if separators is not None else [""] * len(completions)
            if add_eos or chat_template:
                completions = [without_endings(tokenizer, c, ending) for c in completions]
            if chat_template:
                space = prompt[len(prompt.rstrip()) :] if is_begun(prompt) else None
                between = [
                    "" if space is None else space + s + c[: len(c) - len(c.lstrip())]
                    for s, c in zip(between, completions, strict=True)
                ]
                completions = [completion.strip() for completion in completions]
                try:
                    prompt = chat_prompt(tokenizer, prompt)
                except ValueError:
                    refused.add(number)
            for completion, separator in zip(completions, between, strict=True):
                texts.append(prompt + separator + completion)
                boundaries.append(len(prompt))
        encodings = iter(
            zip(fast.encode_batch(texts, add_special_tokens=not chat_template), boundaries)
        )
        for number, (_, completions) in enumerate(chunk, start=first):
            parts = [
                locate_completion(*next(encodings), closing, tokenizer.bos_token_id)
                for _ in completions
            ]
            order = range(len(parts)) if ranks is None else ranks[number]
            if number in refused:
                tokenized.append("chat template refuses the dialogue")
            elif any(parts[i] == parts[j] and order[i] != order[j]
                     for i, j in combinations(range(len(parts)), 2)):  # fmt: skip
                tokenized.append("identical completions")
            else:
                shared = [
                    [[numbers.setdefault(i, i) for i in ids] for ids in part] for part in parts
                ]
                tokenized.append(fit_to_length(shared, max_length))
    return tokenized


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
) -> list[TokenizedCompletion] | str:
    """The completions of one example, all after the same prompt, cut from the left to fit the
    longest; or why the example cannot be scored."""
    if not all(completion for _, _, completion in parts):
        return "no completion token"
    if not all(head or prompt for head, prompt, _ in parts):
        return "no token of context"
    excess = 0
    if max_length is not None:
        excess = max(0, max(len(h) + len(p) + len(c) for h, p, c in parts) - max_length)
    if excess and any(excess > len(p) or len(h) + len(p) == excess for h, p, _ in parts):
        return "too long"
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
