"""Preference examples → what DPO and SFT train on."""

from collections.abc import Sequence

from ranking.data.cells import Row
from ranking.data.examples import PreferenceExample


def preference_pairs(examples: Sequence[PreferenceExample]) -> list[Row]:
    """DPO's data: {id, prompt, chosen, rejected, separators} of every untied pair."""
    return [
        {
            "id": e.id if len(e.completions) == 2 else f"{e.id}:{i}>{j}",
            "prompt": e.prompt,
            "chosen": e.completions[i],
            "rejected": e.completions[j],
            "separators": (e.separators[i], e.separators[j]),
        }
        for e in examples
        for i in range(len(e.completions))
        for j in range(len(e.completions))
        if e.ranks[i] < e.ranks[j]
    ]


def sft_texts(examples: Sequence[PreferenceExample]) -> list[Row]:
    """SFT's data: {id, text, n_prompt_characters}; the prompt followed by a best-ranked answer."""
    best = [e.ranks.index(min(e.ranks)) for e in examples]
    return [
        {
            "id": e.id,
            "text": e.prompt + e.separators[k] + e.completions[k],
            "n_prompt_characters": len(e.prompt),
        }
        for e, k in zip(examples, best)
    ]
