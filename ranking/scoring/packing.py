"""Completions → rows without padding: tries of token segments, each shared prefix once."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from ranking.scoring.tokenization import TokenizedCompletion

FAMILY_ROWS = 4  # examples that share a prefix may fill so many rows' worth of tokens
KEYS_PER_CALL = 2**15  # of one flash-attention call: 0.5 GiB of copies at Llama-2-7B's width
MIN_SHARED_TOKENS = 16  # examples that share fewer leading tokens are packed independently


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
class PackedRow:
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


def build_row(completions: Sequence[TokenizedCompletion], whole: bool = False) -> PackedRow:
    """Lay the completions out as tries in one row, each distinct prefix once, depth first.

    A prefix and its first continuation stand side by side and are one segment: fewer and longer
    attention calls. The last token of a sequence predicts nothing that is scored, so it is an input
    only if sequences are to be `whole`.
    """
    inputs = [c.ids if whole else c.ids[:-1] for c in completions]
    scored = [np.array(c.positions, dtype=np.int64) for c in completions]
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
    return PackedRow(
        np.array(tokens, dtype=np.int64),
        np.array(positions, dtype=np.int64),
        segments,
        [where[positions - 1] for where, positions in zip(location, scored)],
        [np.array(c.ids)[positions] for c, positions in zip(completions, scored)],
    )


def count_new_tokens(sequences: Sequence[tuple[int, ...]]) -> int:
    """Tokens of a trie of sorted `sequences`."""
    pairs = zip([(), *sequences], sequences)
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
    tokenized: Sequence[Sequence[TokenizedCompletion]],
    tokens_per_row: int,
    examples_per_row: int,
    family_rows: int = FAMILY_ROWS,
) -> list[list[int]]:
    """Group examples into rows of about `tokens_per_row` unique tokens (first-fit decreasing).

    Examples that share a prompt or a dialogue prefix stay together; where that at least halves the
    tokens an example costs, in a row of up to `family_rows` times the size. A larger example has a
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
            if size + added <= (family_rows if saves else 1) * tokens_per_row:
                families[-1], trie = (size + added, [*members, index]), grown
                continue
        trie = []
        families.append((add_to_trie(trie, sequences[index]), [index]))
    rows: list[list[int]] = []
    room: list[int] = []
    first: dict[tuple[int, int], int] = {}  # (tokens, examples) → the first row with room for them
    for size, members in sorted(families, key=lambda family: -family[0]):
        row = first.get((size, len(members)), 0)
        while row < len(rows) and (
            size > room[row] or len(rows[row]) + len(members) > examples_per_row
        ):
            row += 1
        first[size, len(members)] = row
        if row == len(rows):
            rows.append([])
            room.append(tokens_per_row)
        rows[row] += members
        room[row] -= size
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
