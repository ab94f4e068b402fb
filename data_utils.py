"""Preference data: names of datasets and files → examples, and what SFT and DPO train on.

    data = load_preferences("Anthropic/hh-rlhf", sample_size=1000)
    pairs = preference_pairs(data.examples)  # prompt, chosen, rejected
    texts = sft_texts(data.examples)         # prompt and preferred completion as one text

How rows are read is in `ranking/data/`.
"""

from ranking.data.conversions import preference_pairs, sft_texts
from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.data.hub import DATASETS
from ranking.data.preferences import load_preferences
from ranking.data.splits import load_training_splits

__all__ = [
    "DATASETS",
    "PreferenceData",
    "PreferenceExample",
    "load_preferences",
    "load_training_splits",
    "preference_pairs",
    "sft_texts",
]
