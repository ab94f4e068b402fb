"""Train, validation and test parts of a dataset; no prompt is in two of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ranking.data.examples import PreferenceData, PreferenceExample
from ranking.data.files import SHARD, data_files, saved_splits
from ranking.data.hub import DATASETS, split_name
from ranking.data.preferences import load_preferences


def available_splits(spec: str, data_dir: str | Path | None = None) -> list[str]:
    """Names of the splits of a hub dataset or local folder; none for a single file."""
    name = split_name(spec)[0]
    folder = Path(data_dir) / name if data_dir is not None else Path(name)
    if name in DATASETS and data_dir is None:
        return list(DATASETS[name].splits)
    if not folder.is_dir():
        return []
    if (folder / "state.json").is_file():  # a saved dataset, without splits
        return []
    if saved := saved_splits(folder):
        return saved
    names = [SHARD.sub(".", file.name) for file in data_files(folder)]
    return list(dict.fromkeys(name.split(".")[0] for name in names))


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
    """The prompt up to the first response turn: what dialogues that continue each other share."""
    return example.prompt.split("\n\nAssistant:")[0]


def load_training_splits(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    seed: int = 0,
    sample_size: int | None = None,
    separator: str | None = None,
    columns: Mapping[str, str] | None = None,
    conversations: bool = False,
) -> tuple[dict[str, PreferenceData], list[str]]:
    """Train, validation and test parts of a dataset, and notes that say where they come from.

    A validation and a test split are taken as they are; a lone evaluation split (HH-RLHF's test)
    is halved with seed 0; a lone split is divided 80/10/10 by `seed`. Halving and division go by
    prompt, so that no prompt is in two parts; after a division, dialogues that also open a training
    dialogue are left out of validation and test, and counted. Where that leaves a part empty, they
    go by example, which the notes say. `sample_size` limits the rows read of a split.
    Raises as `load_preferences`, and ValueError where a split has to be named.
    """
    name, config, named_split = split_name(spec)
    splits = available_splits(spec, data_dir)
    if train_split and named_split and train_split != named_split:
        raise ValueError(f"{spec} names a split, and --train_split {train_split} another")
    train_split = train_split or named_split or ("train" if "train" in splits else None)
    if train_split is None and len(splits) > 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: choose one by --train_split")
    train_split = train_split or (splits[0] if splits else None)
    if eval_split is None:
        others = [s for s in splits if s != train_split]
        preferred = [s for s in ("validation", "test") if s in others]
        if others and not preferred:
            raise ValueError(
                f"{name} has the splits {', '.join(splits)}: choose one by --eval_split"
            )
        eval_split = preferred[0] if preferred else train_split

    def load(split: str | None) -> PreferenceData:
        full = f"{name}:{config}:{split}" if config else name
        return load_preferences(
            full,
            split=split,
            data_dir=data_dir,
            sample_size=sample_size,
            separator=separator,
            columns=columns,
            conversations=conversations,
        )

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
        if eval_split != "test" and "test" in splits and train_split != "test":
            loaded = [train, evaluation, load("test")]
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


def describe(data: PreferenceData) -> str:
    """Number of usable examples of a split, and what was dropped by reason."""
    dropped = ", ".join(f"{reason}: {n}" for reason, n in data.dropped.items()) or "none"
    split = f"split {data.split}: " if data.split else ""
    return "; ".join([f"{split}{len(data.examples)} examples, dropped: {dropped}", *data.notes])
