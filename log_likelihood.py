"""log π(y|x) of every completion y of a prompt x under a causal language model (Eq. 13).

Completions of one prompt, and examples that share a dialogue prefix, form a trie of token
segments: a shared prefix is computed once, each segment attends to its ancestors and causally to
itself, and several tries are packed into one row without padding. The LM head is applied to
completion positions only, in chunks. `check_fast_path` compares the result with plain scoring;
models that cannot run this way (ALiBi, state-space) are scored in plain length-sorted batches.

The same `compute_token_logps` serves evaluation, reference log-likelihoods and training.
"""

import re
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from tokenizers import Tokenizer
from torch.autograd.graph import queue_callback
from torch.nn import Linear
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

EXAMPLES_PER_CALL = 512  # of the tokenizer, whose encodings are 100 times as large as their ids
VOCABULARY_CHUNK = 2048  # words per LM-head call: 1000 positions x 2048 x 4 bytes = 8 MB
POSITION_CHUNK = 64  # positions per call of a head that is no plain linear layer
FAMILY_ROWS = 4  # examples that share a prefix may fill so many rows' worth of tokens
KEYS_PER_CALL = 2**15  # of one flash-attention call: 0.5 GiB of copies at Llama-2-7B's width
MIN_SHARED_TOKENS = 16  # examples that share fewer leading tokens are packed independently
CHECKED: weakref.WeakSet = weakref.WeakSet()  # models that `check_fast_path` has found to agree


# ---------------------------------------------------------------------------- tokenization
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


# ---------------------------------------------------------------------------- rows of segments
@dataclass
class Segment:
    """Tokens `start:end` of a row, which see themselves causally and their ancestors' `keys`."""

    start: int
    end: int
    keys: np.ndarray  # (n_ancestor_tokens + n_tokens,) row indices, its own at the end
    key_positions: np.ndarray
    masks: dict = field(default_factory=dict)
    indices: dict = field(default_factory=dict)

    @property
    def is_root(self) -> bool:
        """Whether it has no ancestors: its keys are its own tokens."""
        return len(self.keys) == self.end - self.start

    def key_indices(self, device: torch.device) -> torch.Tensor:
        """`keys` on a device, moved there once for all layers."""
        if device not in self.indices:
            self.indices[device] = torch.from_numpy(self.keys).to(device)
        return self.indices[device]

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """Additive mask (n_tokens, n_keys), cached for all layers; None: plain causal attention."""
        longest = int(self.key_positions[-1]) + 1
        window = window if window is not None and window < longest else None
        if self.is_root and window is None:
            return None
        if (window, like.device) not in self.masks:
            distance = self.key_positions[-(self.end - self.start) :, None] - self.key_positions
            hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
            self.masks[window, like.device] = mask.masked_fill_(
                torch.from_numpy(hidden).to(like.device), float("-inf")
            )
        return self.masks[window, like.device]


class KernelCall(NamedTuple):
    """Segments that follow each other in a row, for a kernel that takes many at once."""

    queries: slice  # of the row
    keys: torch.Tensor  # row indices of every segment's keys, one segment after the other
    query_starts: torch.Tensor  # (n_segments + 1,) int32: where each one's begin in `queries`
    key_starts: torch.Tensor  # the same in `keys`
    most_queries: int
    most_keys: int


def kernel_call(segments: Sequence[Segment], device: torch.device) -> KernelCall:
    """The call for segments that follow each other, its indices on `device`."""
    n_queries = [s.end - s.start for s in segments]
    n_keys = [len(s.keys) for s in segments]
    return KernelCall(
        slice(segments[0].start, segments[-1].end),
        torch.from_numpy(np.concatenate([s.keys for s in segments])).to(device),
        torch.from_numpy(np.cumsum([0, *n_queries], dtype=np.int32)).to(device),
        torch.from_numpy(np.cumsum([0, *n_keys], dtype=np.int32)).to(device),
        max(n_queries),
        max(n_keys),
    )


@dataclass
class Row:
    """One packed forward pass: inputs (n,), segments, and where each completion is predicted."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    segments: list[Segment]
    predictors: list[np.ndarray]  # per completion: row positions whose output predicts its tokens
    targets: list[np.ndarray]  # per completion: its token ids
    layouts: dict[torch.device, list[KernelCall]] = field(default_factory=dict)

    def layout(self, device: torch.device) -> list[KernelCall]:
        """The segments in groups of at most KEYS_PER_CALL keys (or one segment), since the keys of
        a shared prefix are copied for each of its continuations. Kept for all layers."""
        if device not in self.layouts:
            groups: list[list[Segment]] = []
            n_keys = KEYS_PER_CALL
            for segment in self.segments:
                n_keys += len(segment.keys)
                if n_keys > KEYS_PER_CALL:
                    groups.append([])
                    n_keys = len(segment.keys)
                groups[-1].append(segment)
            self.layouts[device] = [kernel_call(group, device) for group in groups]
        return self.layouts[device]


def common_prefix_length(a: Sequence[int], b: Sequence[int], start: int = 0) -> int:
    """Number of leading tokens that `a` and `b` share, given that the first `start` agree."""
    limit = min(len(a), len(b))
    while start < limit and a[start] == b[start]:
        start += 1
    return start


def build_row(completions: Sequence[TokenizedCompletion], whole: bool = False) -> Row:
    """Lay the completions out as tries in one row, each distinct prefix once, depth first.

    A prefix and its first continuation stand side by side and are one segment: fewer and longer
    attention calls. The last token of a sequence predicts nothing that is scored, so it is an input
    only if sequences are to be `whole`.
    """
    inputs = [c.ids if whole else c.ids[:-1] for c in completions]
    location = [np.empty(len(ids), dtype=np.int64) for ids in inputs]
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    everyone = sorted(range(len(inputs)), key=lambda i: inputs[i])
    stack = [(everyone, 0, np.empty(0, dtype=np.int64), False)]
    while stack:
        members, depth, ancestors, continues = stack.pop()
        first, last = inputs[members[0]], inputs[members[-1]]  # sorted: they differ the earliest
        shared = common_prefix_length(first, last, depth)
        if shared > depth:
            here = np.arange(len(tokens), len(tokens) + shared - depth)
            keys = np.concatenate([ancestors, here])
            tokens += first[depth:shared]
            positions += range(depth, shared)
            start = segments.pop().start if continues else int(here[0])
            segments.append(Segment(start, len(tokens), keys, np.arange(shared)))
            for member in members:
                location[member][depth:shared] = here
            ancestors = keys
        branches: dict[int, list[int]] = {}
        for member in members:
            if len(inputs[member]) > shared:
                branches.setdefault(inputs[member][shared], []).append(member)
        children = [
            (branch, shared, ancestors, number == 0 and shared > 0)
            for number, branch in enumerate(branches.values())
        ]
        stack += reversed(children)
    return Row(
        np.array(tokens, dtype=np.int64),
        np.array(positions, dtype=np.int64),
        segments,
        [where[c.start - 1 : len(c.ids) - 1] for where, c in zip(location, completions)],
        [np.array(c.ids[c.start :], dtype=np.int64) for c in completions],
    )


def count_new_tokens(sequences: Sequence[tuple[int, ...]], previous: tuple[int, ...] = ()) -> int:
    """Tokens that sorted `sequences` add to a trie whose last sequence is `previous`."""
    pairs = zip([previous, *sequences], sequences)
    return sum(len(ids) - common_prefix_length(before, ids) for before, ids in pairs)


def add_to_trie(trie: list[tuple[int, ...]], sequences: Sequence[tuple[int, ...]]) -> int:
    """Insert `sequences` into the sorted list `trie`; returns how many tokens they add."""
    added = 0
    for ids in sequences:
        place = bisect_left(trie, ids)
        neighbours = trie[max(place - 1, 0) : place + 1]
        added += len(ids) - max((common_prefix_length(ids, n) for n in neighbours), default=0)
        trie.insert(place, ids)
    return added


def pack_rows(
    tokenized: Sequence[Sequence[TokenizedCompletion]], tokens_per_row: int, examples_per_row: int
) -> list[list[int]]:
    """Group examples into rows of about `tokens_per_row` unique tokens (first-fit decreasing).

    Examples that share a prompt or a dialogue prefix stay together; where that at least halves the
    tokens an example costs, in a row of up to FAMILY_ROWS times the size. A larger example has a
    row of its own. Deterministic, and a function of the whole list alone, so that a resumed
    run forms the same rows.
    """
    sequences = [sorted(c.ids[:-1] for c in example) for example in tokenized]
    families: list[tuple[int, list[int]]] = []  # (unique tokens, example indices)
    trie: list[tuple[int, ...]] = []  # of the last family
    for index in sorted(range(len(tokenized)), key=lambda i: sequences[i]):
        shared = max(
            (common_prefix_length(sequences[index][0], ids) for ids in trie[-1:]), default=0
        )
        if shared >= MIN_SHARED_TOKENS and len(families[-1][1]) < examples_per_row:
            size, members = families[-1]
            grown = trie.copy()
            added = add_to_trie(grown, sequences[index])
            saves = 2 * added <= count_new_tokens(sequences[index])
            if size + added <= (FAMILY_ROWS if saves else 1) * tokens_per_row:
                families[-1], trie = (size + added, [*members, index]), grown
                continue
        trie = []
        families.append((add_to_trie(trie, sequences[index]), [index]))
    rows: list[list[int]] = []
    room: list[int] = []
    for size, members in sorted(families, key=lambda family: -family[0]):
        for row, left in enumerate(room):
            if size <= left and len(rows[row]) + len(members) <= examples_per_row:
                rows[row] += members
                room[row] -= size
                break
        else:
            rows.append(list(members))
            room.append(tokens_per_row - size)
    return rows


def pad_batches(
    tokenized: Sequence[Sequence[TokenizedCompletion]], tokens_per_batch: int, batch_size: int
) -> list[list[int]]:
    """Batches of examples of similar length whose padded size stays within the budget."""
    longest = [max(len(c.ids) for c in example) for example in tokenized]
    batches: list[list[int]] = []
    width = n_rows = 0
    for index in sorted(range(len(tokenized)), key=lambda i: -longest[i]):
        n_rows += len(tokenized[index])
        if batches and width * n_rows <= tokens_per_batch and len(batches[-1]) < batch_size:
            batches[-1].append(index)
        else:
            batches.append([index])
            width, n_rows = longest[index], len(tokenized[index])
    return batches


# ---------------------------------------------------------------------------- the forward pass
def segment_attention(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask=None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_row: Row | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row, segment by segment (transformers' AttentionInterface).

    query (1, n_heads, n, d), key and value (1, n_kv_heads, n, d); returns (1, n, n_heads, d).
    On a GPU in half precision one flash-attention call takes many segments.
    Raises NotImplementedError where the layer needs something this function does not compute.
    """
    if (
        packed_row is None
        or s_aux is not None
        or position_bias is not None
        or attention_mask is not None
    ):
        raise NotImplementedError("attention variant without segments")
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if softcap is None and dropout == 0.0 and flash_takes(query, key, value):
        return flash_attention(query, key, value, packed_row, scaling, sliding_window), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and (query.is_cuda or softcap is not None):  # no fused kernel has both and a mask
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for segment in packed_row.segments:
        queries = query[:, :, segment.start : segment.end]
        if segment.is_root:
            keys = key[:, :, segment.start : segment.end]
            values = value[:, :, segment.start : segment.end]
        else:
            chosen = segment.key_indices(key.device)
            keys, values = key.index_select(2, chosen), value.index_select(2, chosen)
        mask = segment.mask(sliding_window, query)
        if softcap is not None:
            outputs.append(softcapped_attention(queries, keys, values, mask, scaling, softcap))
            continue
        outputs.append(
            F.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def flash_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether PyTorch's flash attention can: NVIDIA from Ampere on, half precision, head sizes."""
    size = query.shape[-1]
    return (
        query.is_cuda
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.dtype == key.dtype == value.dtype
        and size == value.shape[-1] <= 256
        and size % 8 == 0
    )


def flash_attention(query, key, value, row: Row, scaling, window: int | None) -> torch.Tensor:
    """`segment_attention` of all segments by flash attention, many in one call.

    A segment's queries are the last of its keys: causal attention aligned at the end.
    """
    from torch.nn.attention.varlen import varlen_attn

    outputs = [
        varlen_attn(
            query[0, :, call.queries].transpose(0, 1),
            key[0].transpose(0, 1).index_select(0, call.keys),
            value[0].transpose(0, 1).index_select(0, call.keys),
            call.query_starts,
            call.key_starts,
            call.most_queries,
            call.most_keys,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for call in row.layout(query.device)
    ]
    return torch.cat(outputs)[None]


def softcapped_attention(queries, keys, values, mask, scaling, softcap) -> torch.Tensor:
    """Attention with soft-capped scores (gemma2), which fused kernels do not offer."""
    scores = softcap * torch.tanh(queries @ keys.transpose(2, 3) * scaling / softcap)
    if mask is None:
        n = queries.shape[2]
        mask = torch.full((n, n), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    return torch.softmax((scores + mask).float(), dim=-1).to(values.dtype) @ values


AttentionInterface.register("segments", segment_attention)


def unwrap(model):
    """The transformers model inside a data-parallel wrapper and a PEFT adapter."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def own_attention(model) -> list[tuple]:
    """(config, its attention's name) for every config in the decoder that names another attention
    than "segments"."""
    configs = [vars(module).get("config") for module in unwrap(model).get_decoder().modules()]
    named = {id(c): c for c in configs if hasattr(c, "_attn_implementation_internal")}
    return [(c, c._attn_implementation) for c in named.values()
            if c._attn_implementation != "segments"]  # fmt: skip


def switch_attention(model) -> list[tuple]:
    """Have the decoder call `segment_attention`; returns what `restore_attention` takes.

    Written into the configs, as `set_attn_implementation` does after its checks: this runs for
    every row. Where it is on already there is nothing to restore.
    """
    own = own_attention(model)
    for config, _ in own:
        config._attn_implementation_internal = "segments"
    return own


def restore_attention(own: list[tuple]) -> None:
    """Give configs the attention back that they had."""
    for config, name in own:
        config._attn_implementation_internal = name


def rope_parameters(model) -> list[dict]:
    """The rotary settings of a model, one for each kind of layer; none where it has no such."""
    found = getattr(unwrap(model).config.get_text_config(), "rope_parameters", None) or {}
    return [found] if "rope_type" in found else [x for x in found.values() if isinstance(x, dict)]


def length_class(model, length: int) -> tuple[int, ...]:
    """What the rotary frequencies of a sequence depend on beside positions; () for most models.

    Dynamic frequencies follow the length of the forward pass beyond the trained one, LongRoPE's
    (Phi-3) are two sets. Sequences may share a forward pass only within a class.
    """
    config, found = unwrap(model).config.get_text_config(), []
    for parameters in rope_parameters(model):
        kind = parameters.get("rope_type", "")
        if "dynamic" in kind:
            found.append(max(length, config.max_position_embeddings))
        elif kind in ("longrope", "su"):
            found.append(int(length > parameters["original_max_position_embeddings"]))
    return tuple(found)


def by_length_class(model, completions: Sequence[TokenizedCompletion]) -> list[list[int]]:
    """Indices of the completions that may share a forward pass."""
    groups: dict[tuple, list[int]] = {}
    for k, completion in enumerate(completions):
        groups.setdefault(length_class(model, len(completion.ids)), []).append(k)
    return list(groups.values())


def forget_lengths(model) -> None:
    """Have dynamic frequencies computed for the next forward pass alone: transformers keeps those
    of the longest sequence it has seen."""
    for module in unwrap(model).modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, module.original_max_seq_len)
            for name, buffer in list(module.named_buffers(recurse=False)):
                if name.endswith("original_inv_freq"):
                    getattr(module, name.replace("original_", "")).data = buffer.clone()


def input_device(model) -> torch.device:
    """Where a model takes its inputs; the CPU, if its embeddings are kept there or on disk."""
    device = unwrap(model).get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def final_logits(config, logits: torch.Tensor) -> torch.Tensor:
    """The LM head's output as the model's own forward would return it, in float32."""
    if config.model_type.startswith("cohere"):
        logits = logits * config.logit_scale
    if config.model_type.startswith("granite"):
        logits = logits / config.logits_scaling
    logits = logits.float()
    softcap = getattr(config, "final_logit_softcapping", None)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def chunk_statistics(
    config, hidden: torch.Tensor, weight: torch.Tensor, bias, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Over a slice of the vocabulary: log-sum-exp (n,), and the target's logit where it is inside.

    hidden (n, d), weight (words, d), targets (n,) counted from the slice's first word.
    """
    logits = final_logits(config, F.linear(hidden, weight, bias))
    inside = (targets >= 0) & (targets < len(weight))
    scores = logits.gather(1, targets.clamp(0, len(weight) - 1)[:, None])[:, 0]
    return torch.logsumexp(logits, dim=1), torch.where(inside, scores, 0.0)


def module_logps(
    config, head_forward: Callable, hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """`head_logps` through the head's own forward, for a few positions."""
    logits = final_logits(config, head_forward(hidden))
    return logits.gather(1, targets[:, None])[:, 0] - torch.logsumexp(logits, dim=1)


def head_logps(model, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax of the LM head at `targets`, in float32. hidden (n, d), targets (n,) -> (n,).

    The vocabulary is cut into slices: each part of the weight is read once, its logits stay in the
    cache, and (n, vocabulary) logits never exist, in the backward pass neither. A head that is not
    a plain linear layer (quantized, adapted) sees a few positions at a time. Either way the head is
    called once, as a module, so that whoever shards or offloads its weight brings it here.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    head_forward = getattr(head, "_old_forward", head.forward)

    def run(function, *inputs):
        if torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def sliced_by_position(hidden):
        parts = zip(hidden.split(POSITION_CHUNK), targets.to(hidden.device).split(POSITION_CHUNK))
        return torch.cat([run(module_logps, config, head_forward, h, t) for h, t in parts])

    def sliced_by_vocabulary(hidden):
        weights = head.weight.split(VOCABULARY_CHUNK)
        biases = [None] * len(weights) if head.bias is None else head.bias.split(VOCABULARY_CHUNK)
        normalizers, scores = [], torch.zeros(len(targets), device=hidden.device)
        for number, (weight, bias) in enumerate(zip(weights, biases)):
            local = targets.to(hidden.device) - number * VOCABULARY_CHUNK
            normalizer, score = run(chunk_statistics, config, hidden, weight, bias, local)
            normalizers.append(normalizer)
            scores = scores + score
        return scores - torch.logsumexp(torch.stack(normalizers), dim=0)

    # FSDP2 makes a subclass of Linear with the same forward
    is_plain = isinstance(head, Linear) and type(head).forward is Linear.forward
    with replaced_forward(head, sliced_by_vocabulary if is_plain else sliced_by_position):
        return head(hidden)


@contextmanager
def replaced_forward(module, forward: Callable) -> Iterator[None]:
    """Inside, calling `module`, or a wrapper around it, runs `forward` between all their hooks:
    PyTorch's, and accelerate's, which wraps the forward it keeps as `_old_forward`."""
    name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
    own = vars(module).get(name)
    setattr(module, name, forward)
    try:
        yield
    finally:
        delattr(module, name)
        if own is not None:
            setattr(module, name, own)


def compute_token_logps(model, completions: Sequence[TokenizedCompletion]) -> list[torch.Tensor]:
    """Per-token log-likelihoods log π(y_t | x, y_<t) of completions, in one packed row.

    model: causal LM, possibly wrapped. The wrapper is called and only the innermost forward is
    replaced, so that gradients are synchronised, sharded weights are gathered and adapters work.
    Differentiable when grad is enabled. The model has its own attention back afterwards; a backward
    pass switches it again, since gradient checkpointing runs the layers there once more.
    Completions whose rotary frequencies differ (`length_class`) have rows of their own.
    Returns one float32 tensor (n_tokens,) per completion, nats.
    """
    inner = unwrap(model)
    groups = by_length_class(inner, completions)
    by_length = length_class(inner, 1) != ()
    rows = [build_row([completions[k] for k in group], whole=by_length) for group in groups]
    n_inputs = [len(row.input_ids) for row in rows]
    targets = torch.from_numpy(np.concatenate([t for row in rows for t in row.targets]))

    def forward(input_ids, position_ids, **_) -> torch.Tensor:
        predicting = []
        for row, ids, positions in zip(
            rows, input_ids.split(n_inputs, dim=1), position_ids.split(n_inputs, dim=1)
        ):
            if by_length:
                forget_lengths(inner)
            hidden = inner.get_decoder()(
                input_ids=ids, position_ids=positions, packed_row=row, use_cache=False
            )[0][0]
            predictors = torch.from_numpy(np.concatenate(row.predictors))
            predicting.append(hidden[predictors.to(hidden.device)])
        hidden = torch.cat(predicting)
        return head_logps(inner, hidden, targets.to(hidden.device))

    device = input_device(inner)
    own = switch_attention(inner)
    try:
        with replaced_forward(inner, forward):
            ids, positions = (
                torch.from_numpy(np.concatenate([getattr(row, name) for row in rows]))[None]
                for name in ("input_ids", "position_ids")
            )
            logps = model(input_ids=ids.to(device), position_ids=positions.to(device))
    finally:
        restore_attention(own)
    if logps.requires_grad:
        logps.register_hook(
            lambda _: queue_callback(partial(restore_attention, switch_attention(inner)))
        )
    parts = iter(logps.split([len(t) for row in rows for t in row.targets]))
    by_index = {k: next(parts) for group in groups for k in group}
    return [by_index[k] for k in range(len(completions))]


def compute_token_logps_plain(
    model, completions: Sequence[TokenizedCompletion]
) -> list[torch.Tensor]:
    """The same by a right-padded batch through the model's own head: slower, for any causal LM.

    Completions whose rotary frequencies differ (`length_class`) have batches of their own.
    """
    groups = by_length_class(model, completions)
    if len(groups) > 1:
        by_index: dict[int, torch.Tensor] = {}
        for group in groups:
            logps = compute_token_logps_plain(model, [completions[k] for k in group])
            by_index |= dict(zip(group, logps))
        return [by_index[k] for k in range(len(completions))]
    if length_class(model, 1):
        forget_lengths(model)
    device = input_device(model)
    width = max(len(c.ids) for c in completions)
    input_ids = torch.zeros((len(completions), width), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for i, c in enumerate(completions):
        input_ids[i, : len(c.ids)] = torch.tensor(c.ids)
        attention_mask[i, : len(c.ids)] = 1
    first = min(c.start for c in completions) - 1
    logits = model(
        input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False,
        logits_to_keep=width - first,
    ).logits  # fmt: skip
    offset = width - logits.shape[1]  # 0 for models that ignore logits_to_keep
    logps = []
    for i, c in enumerate(completions):
        scores = logits[i, c.start - 1 - offset : len(c.ids) - 1 - offset].float()
        targets = torch.tensor(c.ids[c.start :], device=scores.device)
        logps.append(scores.gather(1, targets[:, None])[:, 0] - torch.logsumexp(scores, dim=1))
    return logps


# ---------------------------------------------------------------------------- scoring many examples
def disagreement(plain: list[torch.Tensor], other: list[torch.Tensor], rounded: bool) -> float:
    """Largest |difference of the sums| over completions, nats; of `rounded` ones, whose sums
    drift, mean |difference| over all tokens."""
    differences = [torch.where(a.isnan() & b.isnan(), 0, a - b) for a, b in zip(plain, other)]
    if rounded:
        return torch.cat(differences).abs().mean().item()
    return np.max([abs(d.sum().item()) for d in differences])  # NaN stays NaN


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


@contextmanager
def jittered_embeddings(model, eps: float, device: torch.device) -> Iterator[None]:
    """Inside, every number of an embedding is off by up to half of `eps` of itself, then rounded to
    the model's dtype: how much the log-likelihoods change is how much it makes of rounding."""
    generator = torch.Generator(device).manual_seed(0)

    def jitter(module, inputs, output: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(output.shape, generator=generator, device=device)
        return (output * (1 + eps * (noise - 0.5))).to(output.dtype)  # the product is in float32

    hook = model.get_input_embeddings().register_forward_hook(jitter)
    try:
        yield
    finally:
        hook.remove()


def check_fast_path(model, tokenized: Sequence[Sequence[TokenizedCompletion]]) -> str:
    """Try the segment path on a few examples; return "segments", or "plain: <why not>".

    Two completions of each of the shortest examples are compared with plain scoring, one at a time;
    a model with windowed or chunked attention, with rotary frequencies that depend on the length,
    or with code of its own is also tried on the longest. A model that padding
    disturbs has the path "alone: <why not>". A model that agreed is not tried again.
    Call it under the autocast that scoring will have, since other precisions have other attention
    kernels: a float32 model is then tried without it first, where mistakes show best.
    Agreement: 0.02 nats per completion in float32. In half precision and TF32, per token, 0.02 nats
    plus twice what embeddings rounded elsewhere change, but no more than 0.1.
    Raises ValueError where a token has no embedding.
    """
    check_vocabulary(model, (c.ids for completions in tokenized for c in completions))
    inner = unwrap(model)
    if inner in CHECKED:
        return "segments"
    order = sorted(range(len(tokenized)), key=lambda i: max(len(c.ids) for c in tokenized[i]))
    config = inner.config.get_text_config()
    length_matters = (
        any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        or length_class(inner, 1) != ()
        or type(inner).__module__.startswith("transformers_modules")
    )
    groups = [[c for i in order[:3] for c in tokenized[i][:2]]]
    if length_matters:
        groups.append(list(tokenized[order[-1]][:2]))
    device, weights = input_device(inner), next(inner.parameters()).dtype
    autocast = torch.is_autocast_enabled(device.type)
    path = "segments"
    with torch.inference_mode():
        if not autocast or weights == torch.float32:
            with torch.autocast(device.type, enabled=False):
                path = compare_paths(model, groups, weights)
        if autocast and path == "segments":
            path = compare_paths(model, groups, torch.get_autocast_dtype(device.type))
    if path == "segments":
        CHECKED.add(inner)
    return path


def compare_paths(model, groups: list[list[TokenizedCompletion]], dtype: torch.dtype) -> str:
    """`check_fast_path` in one precision; each group's disagreement is taken by itself."""
    inner = unwrap(model)
    device = input_device(inner)
    half = dtype in (torch.bfloat16, torch.float16)
    tf32 = device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
    rounded = half or tf32
    plain = [[compute_token_logps_plain(model, [c])[0] for c in group] for group in groups]
    tolerances = [0.02] * len(groups)
    if rounded:
        with jittered_embeddings(inner, torch.finfo(dtype).eps if half else 2**-10, device):
            jittered = [
                [compute_token_logps_plain(model, [c])[0] for c in group] for group in groups
            ]
        changes = [disagreement(a, b, rounded) for a, b in zip(plain, jittered)]
        tolerances = [np.fmin(0.02 + 2 * change, 0.1) for change in changes]  # 0.1 for NaN
    try:
        if not inner._can_set_attn_implementation():
            raise NotImplementedError("the model's attention cannot be replaced")
        found = iter(compute_token_logps(model, [c for group in groups for c in group]))
        worst = [disagreement(group, [next(found) for _ in group], rounded) for group in plain]
    except (NotImplementedError, TypeError, ValueError, LookupError, AttributeError,
            RuntimeError) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        if all(difference <= most for difference, most in zip(worst, tolerances)):  # not for NaN
            return "segments"
        reason = f"differs from plain scoring by {max(worst):.3g} nats"
    padded = iter(compute_token_logps_plain(model, [c for group in groups for c in group]))
    worst = [disagreement(group, [next(padded) for _ in group], rounded) for group in plain]
    kind = "plain" if all(d <= most for d, most in zip(worst, tolerances)) else "alone"
    return f"{kind}: {reason}"


def compute_token_logps_alone(
    model, completions: Sequence[TokenizedCompletion]
) -> list[torch.Tensor]:
    """One completion at a time: for models whose log-likelihoods change with padding."""
    return [compute_token_logps_plain(model, [completion])[0] for completion in completions]


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's out-of-memory error, or the CPU allocator's plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def deal_batches(
    batches: list[list[int]], n_tokens: Sequence[int], n_processes: int
) -> list[list[list[int]]]:
    """Batches of each process: the largest first, each to the process with the fewest tokens."""
    shares: list[list[list[int]]] = [[] for _ in range(n_processes)]
    loads = [0] * n_processes
    sizes = [sum(n_tokens[i] for i in batch) for batch in batches]
    for number in sorted(range(len(batches)), key=lambda number: -sizes[number]):
        least = loads.index(min(loads))
        shares[least].append(batches[number])
        loads[least] += sizes[number]
    return shares


def score_examples(
    model,
    tokenized: Sequence[Sequence[TokenizedCompletion]],
    *,
    path: str,
    tokens_per_batch: int,
    batch_size: int,
    done: frozenset[int] = frozenset(),
    rank: int = 0,
    n_processes: int = 1,
) -> Iterator[list[tuple[int, list[np.ndarray]]]]:
    """Score examples; yields, batch by batch, (index, per-token logps of each completion, nats).

    path: as `check_fast_path` says. Rows are formed from the whole list before those in `done`
    are left out and the rest is dealt to the processes, of which this one is `rank`; nothing is
    exchanged between them. A batch that does not fit in memory is halved; an example that does not
    fit alone raises ValueError. Log-likelihoods are float32 arrays (n_tokens,); NaN and infinite
    values are passed on.
    """
    if path == "segments":
        batches = pack_rows(tokenized, tokens_per_batch, batch_size)
    else:
        batches = pad_batches(tokenized, tokens_per_batch, batch_size)
    forward = {
        "segments": compute_token_logps,
        "plain": compute_token_logps_plain,
        "alone": compute_token_logps_alone,
    }[path.split(":")[0]]
    remaining = [[i for i in batch if i not in done] for batch in batches]
    remaining = [batch for batch in remaining if batch]
    if n_processes > 1:
        sizes = [sum(len(c.ids) for c in example) for example in tokenized]
        remaining = deal_batches(remaining, sizes, n_processes)[rank]
    pending = remaining[::-1]
    while pending:
        batch = pending.pop()
        completions = [c for i in batch for c in tokenized[i]]
        logps = None
        try:
            with torch.inference_mode():
                logps = [values.cpu().numpy() for values in forward(model, completions)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                longest = max(len(c.ids) for c in completions)
                raise ValueError(
                    f"out of memory on a single example ({len(completions)} completions, "
                    f"the longest {longest} tokens with its prompt): lower --max-length"
                ) from error
        if logps is None:  # outside the handler, so that the failed batch's tensors are freed
            torch.cuda.empty_cache()
            half = len(batch) // 2
            pending += [batch[half:], batch[:half]]
            continue
        values = iter(logps)
        yield [(i, [next(values) for _ in tokenized[i]]) for i in batch]
