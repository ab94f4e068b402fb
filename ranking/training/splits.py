"""The parts that a run trains on, validates and tests."""

import numpy as np

from ranking.data.examples import PreferenceData, describe_joining
from ranking.data.hub import split_name
from ranking.data.splits import load_training_splits
from ranking.plumbing.processes import announce
from ranking.training.flags import DataArguments


def load_parts(args: DataArguments) -> dict[str, PreferenceData]:
    """Train, validation and test examples, cut to the sizes asked for; sizes on stderr."""
    sample_size = None
    if split_name(args.dataset_name)[0] == "HuggingFaceH4/stack-exchange-preferences":
        if args.data_dir is None and args.max_train_samples is None:
            raise ValueError(
                f"{args.dataset_name} has 10 million rows: give --max_train_samples (or --data_dir)"
            )
        sample_size = args.max_train_samples and round(args.max_train_samples / 0.8)
    parts, notes = load_training_splits(
        args.dataset_name,
        data_dir=args.data_dir,
        train_split=args.train_split,
        eval_split=args.eval_split,
        seed=args.split_seed,
        sample_size=sample_size,
        separator=args.separator,
    )
    if not getattr(args, "chat_template", False):
        notes.append(describe_joining(parts["train"].examples))
    for note in notes:
        announce(f"{args.dataset_name}: {note}")
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples,
              "test": args.max_eval_samples}  # fmt: skip
    for part, data in parts.items():
        limit = limits[part]
        if limit is not None and 0 <= limit < len(data.examples):
            chosen = np.random.default_rng(args.split_seed).choice(
                len(data.examples), limit, replace=False
            )
            data.examples[:] = [data.examples[i] for i in sorted(chosen)]
            announce(f"{args.dataset_name}: {part} limited to {limit} examples")
    return parts
