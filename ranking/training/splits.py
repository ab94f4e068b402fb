"""The parts that a run trains on, validates and tests."""

import numpy as np

from ranking.data.examples import PreferenceData, describe_joining
from ranking.data.hub import split_name
from ranking.data.splits import load_training_splits
from ranking.plumbing.processes import announce


def load_parts(
    dataset_name: str,
    *,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    seed: int = 0,
    n_train: int | None = None,
    n_eval: int = 1000,
    separator: str | None = None,
    chat_template: bool = False,
) -> dict[str, PreferenceData]:
    """Train, validation and test examples; what was read, and where from, on stderr.

    n_train, n_eval: most examples of train, and of validation and test each, drawn by `seed`, which
    also divides data with one split; None or -1: all. chat_template: no separator joins the texts.
    """
    sample_size = None
    if split_name(dataset_name)[0] == "HuggingFaceH4/stack-exchange-preferences":
        if data_dir is None and n_train is None:
            raise ValueError(
                f"{dataset_name} has 10 million rows: give --max_train_samples (or --data_dir)"
            )
        sample_size = n_train and round(n_train / 0.8)
    parts, notes = load_training_splits(
        dataset_name, data_dir=data_dir, train_split=train_split, eval_split=eval_split, seed=seed,
        sample_size=sample_size, separator=separator,
    )  # fmt: skip
    if not chat_template:
        notes.append(describe_joining(parts["train"].examples))
    for note in notes:
        announce(f"{dataset_name}: {note}")
    for part, data in parts.items():
        limit = n_train if part == "train" else n_eval
        if limit is not None and 0 <= limit < len(data.examples):
            rng = np.random.default_rng(seed)
            chosen = rng.choice(len(data.examples), limit, replace=False)
            data.examples[:] = [data.examples[i] for i in sorted(chosen)]
            announce(f"{dataset_name}: {part} limited to {limit} examples")
    return parts
