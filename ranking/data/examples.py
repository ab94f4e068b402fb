"""A preference example: a prompt, K completions, the human order of them, the raters' votes."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Votes = dict[tuple[int, int], tuple[float, float]]
DatasetKey = tuple[str, str | None, str | None]  # name, split, configuration
Message = dict[str, Any]  # role (system, user, assistant, tool), content, what templates read


@dataclass(frozen=True)
class Dialogue:
    """A prompt as chat messages, which a chat template renders.

    The last message is the user's or a tool's, or an assistant turn that the completion goes on
    with. tools, template_kwargs: what else the template is given for this example. of_text: read
    from text of turns, where white space around a turn is no part of it.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    of_text: bool = False


@dataclass(frozen=True)
class GivenScores:
    """Log-likelihoods under a reference that the data bring along, and what they say of them.

    logps: of the completions, nats, summed (Eq. 13). n_tokens: how many tokens these are of.
    truncated: the prompt lost its beginning. model, dtype: the reference's. add_eos: the end of a
    completion is scored too. id, prompt_id: of the example that was scored, by which results are
    joined, and of its prompt. None where the data do not say.
    """

    logps: tuple[float, ...]
    n_tokens: tuple[int, ...] | None = None
    truncated: bool = False
    model: str | None = None
    dtype: str | None = None
    add_eos: bool | None = None
    id: str | None = None
    prompt_id: str | None = None


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt with K ≥ 2 completions and the human order of them; with one or none where it is
    only asked, or trained on without a preference.

    id: content hash plus occurrence number, or what the data give beside a reference's scores.
    prompt_id: examples with one id form a cluster.
    separators: what stands between the prompt and each completion. ranks: 1 = best, equal = tied.
    votes: for a pair (i, j), i < j, how many raters preferred each (a "tie" vote counts half for
    both), or None. prompt: what a model without a chat template is given; dialogue: the same as
    messages, where the data are a dialogue. groups: columns by which results are also given, such
    as subset or domain, with their values. reference: where the data hold a reference's scores.
    """

    id: str
    prompt_id: str
    prompt: str
    completions: tuple[str, ...]
    separators: tuple[str, ...]
    ranks: tuple[int, ...]
    votes: Votes | None
    dataset: str
    row: int
    dialogue: Dialogue | None = None
    groups: dict[str, str] = field(default_factory=dict)
    reference: GivenScores | None = None


@dataclass(frozen=True)
class PreferenceData:
    """What `load_preferences` returns: the examples of one dataset and how they came about.

    separator: what joins prompts and completions; None: `separator_between` decides for each.
    """

    name: str
    config: str | None
    split: str | None
    separator: str | None
    examples: list[PreferenceExample]
    dropped: dict[str, int]
    notes: list[str]
    commit: str | None = None  # of a hub dataset

    @property
    def key(self) -> DatasetKey:
        """What its records and results are grouped by."""
        return self.name, self.split, self.config


def joining(examples: Sequence[PreferenceExample]) -> dict[str, int]:
    """How many completions each separator joins to their prompt."""
    return dict(Counter(s for example in examples for s in example.separators).most_common())


def describe_joining(examples: Sequence[PreferenceExample]) -> str:
    """One line that says what joins prompts and completions."""
    names = {"": "nothing", " ": "a space"}
    counts = [f"{names.get(s, repr(s))} ({n} completions)" for s, n in joining(examples).items()]
    return f"joined to the prompt by {', '.join(counts)}"


def fingerprint(examples: Sequence[PreferenceExample]) -> str:
    """16 hex digits over all that results depend on: texts, order, ranks, votes, clusters."""
    return content_hash(
        [
            json.dumps(
                [e.id, e.prompt_id, e.row, e.separators, e.ranks, sorted((e.votes or {}).items())]
                + ([asdict(e.dialogue)] if e.dialogue and not e.dialogue.of_text else [])
                + [e.groups] * bool(e.groups)
                + ([asdict(e.reference)] if e.reference else [])
                + texts_under_given_id(e)
            )
            for e in examples
        ]
    )


def texts_under_given_id(example: PreferenceExample) -> list[str]:
    """The hash of the texts where the data gave an id that does not begin with it, else nothing:
    the id stands for them."""
    if example.reference is None or example.reference.id is None:
        return []
    texts = content_hash([example.prompt, *example.completions])
    return [] if example.id.startswith(texts) else [texts]


def content_hash(texts: Sequence[str]) -> str:
    """First 16 hex digits of SHA-256 over the texts (lone surrogates included)."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def counts_text(counts: Mapping[str, int]) -> str:
    """How many by reason, in words: `empty completion: 2, too long: 1`, or `none`."""
    return ", ".join(f"{reason}: {n}" for reason, n in counts.items()) or "none"


def dataset_label(name: str, split: str | None, config: str | None = None) -> str:
    """How lines and tables name a dataset: with its split, and a configuration of another name."""
    parts = [part for part in (config if config != split else None, split) if part]
    return f"{name} ({', '.join(parts)})" if parts else name
