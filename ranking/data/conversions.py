"""Preference examples → what DPO and SFT train on."""

from collections.abc import Sequence

from ranking.data.cells import Row
from ranking.data.dialogues import as_turns, is_begun
from ranking.data.examples import Message, PreferenceExample


def pair_id(example_id: str, n_completions: int, better: int, worse: int) -> str:
    """The id of a pair of an example's completions, by their positions: the example's, if they are
    all it has."""
    return example_id if n_completions == 2 else f"{example_id}:{better}>{worse}"


def preference_pairs(examples: Sequence[PreferenceExample]) -> list[Row]:
    """DPO's data: {id, prompt, chosen, rejected, separators, dialogue, dataset, reference} of every
    untied pair. reference: what the data give for one pair of completions, else None."""
    return [
        {
            "id": pair_id(e.id, len(e.completions), i, j),
            "prompt": e.prompt,
            "chosen": e.completions[i],
            "rejected": e.completions[j],
            "separators": (e.separators[i], e.separators[j]),
            "dialogue": e.dialogue,
            "dataset": e.dataset,
            "reference": e.reference,
        }
        for e in examples
        for i in range(len(e.completions))
        for j in range(len(e.completions))
        if e.ranks[i] < e.ranks[j]
    ]


def sft_texts(examples: Sequence[PreferenceExample]) -> list[Row]:
    """SFT's data: the prompt followed by a best-ranked answer.

    {id, text, n_prompt_characters, separator, spans, dialogue, dataset}: behind the prompt, the
    separator and the answer. spans: of the assistant's turns, where the text is messages written
    as turns, else None.
    """
    rows = []
    for e in examples:
        best = e.ranks.index(min(e.ranks))
        text = e.prompt + e.separators[best] + e.completions[best]
        spans = None
        if e.dialogue is not None and e.prompt == as_turns(e.dialogue.messages):
            spans = assistant_spans(e.dialogue.messages)
            opened = spans.pop()[0] if is_begun(e.dialogue.messages) else len(e.prompt)
            spans.append((opened, len(text)))
        rows.append(
            {"id": e.id, "text": text, "n_prompt_characters": len(e.prompt),
             "separator": e.separators[best], "spans": spans, "dialogue": e.dialogue,
             "dataset": e.dataset}
        )  # fmt: skip
    return rows


def assistant_spans(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Character spans of the assistant's turns in `as_turns(messages)`, each with the space before
    it."""
    spans = []
    for k, message in enumerate(messages):
        if message["role"] == "assistant":
            before = as_turns(messages[:k]) if k else ""
            opened = before if k and not is_begun(messages[:k]) else before + "\n\nAssistant:"
            spans.append((len(opened), len(as_turns(messages[: k + 1]))))
    return spans
