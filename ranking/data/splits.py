"""Train, validation and test parts of a dataset; no prompt is in two of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ranking.data.examples import PreferenceData, PreferenceExample, counts_text
from ranking.data.folders import ALL_FILES
from ranking.data.hub import split_name
from ranking.data.preferences import load_preferences
from ranking.data.sources import available_splits

# the first that is there is taken; of several for evaluation, one that ends as the split trained
# on does (train_prefs: validation_prefs, test_prefs) comes first
TRAIN_SPLITS = ("train", "train_prefs", "training", "train_sft")
VALIDATION_SPLITS = (
    "validation", "valid", "val", "dev", "eval", "evaluation", "test", "testing",
)  # fmt: skip
TEST_SPLITS = ("test", "testing")


def first_split(names: Sequence[str], splits: Sequence[str], like: str | None = None) -> str | None:
    """The first of `names` among the splits; before all, with what stands after the underscore in
    the split `like`, and after all, with _prefs or _sft."""
    endings = ["", "_prefs", "_sft"]
    if like is not None and "_" in like:
        own = like[like.index("_") :]
        endings = [own, *(ending for ending in endings if ending != own)]
    candidates = [name + ending for ending in endings for name in names]
    return next((name for name in candidates if name in splits), None)


def divide_by_prompt(
    examples: Sequence[PreferenceExample],
    shares: Sequence[float],
    seed: int,
    key: str = "prompt_id",
) -> list[list[PreferenceExample]]:
    """Disjoint parts of about the given shares, in the order of the data; no prompt is in two
    (key "id": no example)."""
    keys = np.array(list(dict.fromkeys(getattr(example, key) for example in examples)))
    order = np.random.default_rng(seed).permutation(len(keys))
    bounds = np.round(np.cumsum(shares) * len(keys)).astype(int)
    part = dict(zip(keys[order], np.searchsorted(bounds, np.arange(len(keys)), "right")))
    return [[e for e in examples if part[getattr(e, key)] == k] for k in range(len(shares))]


def opening(example: PreferenceExample) -> str:
    """The prompt up to the first response turn: what dialogues that continue each other share.
    Of a text without a prompt, the same of the text itself."""
    if example.prompt.strip() or example.dialogue is not None:
        return example.prompt.split("\n\nAssistant:")[0]
    text = example.completions[0]
    return text.split("\n\nAssistant:")[0] or text


def load_training_splits(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    seed: int = 0,
    **how: Any,
) -> tuple[dict[str, PreferenceData], list[str]]:
    """Train, validation and test parts of a dataset, and notes that say where they come from.

    Splits are found by their names, in the orders of `TRAIN_SPLITS`, `VALIDATION_SPLITS` and
    `TEST_SPLITS`, where none is given. A validation and a test split are taken as they are; a lone
    evaluation split (HH-RLHF's test) is halved with seed 0; a lone split is divided 80/10/10 by
    `seed`. Halving and division go by prompt, so that no prompt is in two parts; after a division,
    dialogues that also open a training dialogue are left out of validation and test, and counted.
    Where that leaves a part empty, they go by example, which the notes say. how: sample_size (rows
    read of a split), separator, columns, progress and conversations, as for `load_preferences`.
    Raises as `load_preferences`, and ValueError where a split has to be named.
    """
    name, config, named_split, splits = named_parts(spec, data_dir)
    if train_split and named_split and train_split != named_split:
        raise ValueError(f"{spec} names a split, and --train_split {train_split} another")
    train_split = train_split or named_split or first_split(TRAIN_SPLITS, splits)
    if train_split is None and len(splits) > 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: choose one by --train_split")
    train_split = train_split or (splits[0] if splits else None)
    if eval_split is None:
        others = [s for s in splits if train_split not in (s, ALL_FILES)]
        preferred = first_split(VALIDATION_SPLITS, others, like=train_split)
        if others and preferred is None:
            raise ValueError(
                f"{name} has the splits {', '.join(splits)}: choose one by --eval_split"
            )
        eval_split = preferred or train_split
    left = [s for s in splits if s not in (train_split, eval_split)]
    test_split = first_split(TEST_SPLITS, left, like=train_split)

    def load(split: str | None) -> PreferenceData:
        spec = spec_of(name, config, split)
        return load_preferences(spec, split=split, data_dir=data_dir, **how)

    train = load(train_split)
    notes = [describe(train)]
    too_few = "too few prompts to divide, so the parts share prompts"
    if eval_split == train_split:
        parts = divide_by_prompt(train.examples, (0.8, 0.1, 0.1), seed)
        openings = {opening(example) for example in parts[0]}
        kept = [parts[0], *([e for e in p if opening(e) not in openings] for p in parts[1:])]
        n_shared = sum(map(len, parts)) - sum(map(len, kept))
        note = (
            f"divided by prompt into 80/10/10 % (seed {seed}); left out of validation and test "
            f"because the dialogue is also in train: {n_shared}"
        )
        if not all(kept):
            kept = divide_by_prompt(train.examples, (0.8, 0.1, 0.1), seed, key="id")
            note = f"divided by example into 80/10/10 % (seed {seed}): {too_few}"
        loaded = [replace(train, examples=part) for part in kept]
        notes.append(note)
    else:
        evaluation = load(eval_split)
        notes.append(describe(evaluation))
        tested = first_split(TEST_SPLITS, [eval_split], like=train_split) is not None
        if test_split is not None and not tested:
            loaded = [train, evaluation, load(test_split)]
            notes.append(describe(loaded[2]))
        else:
            halves = divide_by_prompt(evaluation.examples, (0.5, 0.5), 0)
            note = f"{eval_split} is halved by prompt into validation and test (seed 0)"
            if not all(halves):
                halves = divide_by_prompt(evaluation.examples, (0.5, 0.5), 0, key="id")
                note = f"{eval_split} is halved by example (seed 0): {too_few}"
            loaded = [train, *(replace(evaluation, examples=half) for half in halves)]
            notes.append(note)
    named = dict(zip(("train", "validation", "test"), loaded))
    if not all(data.examples for data in named.values()):
        raise ValueError(f"{name}: too few examples to divide into train, validation and test")
    notes.append(", ".join(f"{key}: {len(data.examples)}" for key, data in named.items()))
    return named, notes


def load_evaluation_set(
    spec: str, *, data_dir: str | Path | None = None, **how: Any
) -> PreferenceData:
    """A whole split to evaluate on: the one that `spec` names, else validation, else test (in the
    order of `VALIDATION_SPLITS`), else the only one. how and errors: as `load_training_splits`."""
    name, config, split, splits = named_parts(spec, data_dir)
    split = split or first_split(VALIDATION_SPLITS, splits)
    if split is None and len(splits) > 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: name one, {spec}:SPLIT")
    split = split or (splits[0] if splits else None)
    return load_preferences(spec_of(name, config, split), split=split, data_dir=data_dir, **how)


def named_parts(
    spec: str, data_dir: str | Path | None
) -> tuple[str, str | None, str | None, list[str]]:
    """The name of a dataset, the configuration and split that `spec` names, the splits it has."""
    name, config, split = split_name(spec)
    splits = available_splits(spec, data_dir)
    if config is None and split not in (None, ALL_FILES, *splits) and splits:
        config, split = split, None
    return name, config, split, splits


def spec_of(name: str, config: str | None, split: str | None) -> str:
    """What `named_parts` reads."""
    return name if config is None else ":".join([name, config, *([split] if split else [])])


def describe(data: PreferenceData) -> str:
    """Number of usable examples of a split, and what was dropped by reason."""
    split = f"split {data.split}: " if data.split else ""
    said = f"{split}{len(data.examples)} examples, dropped: {counts_text(data.dropped)}"
    return "; ".join([said, *data.notes])
