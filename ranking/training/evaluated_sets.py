"""What DPOGammaTrainer evaluates: the validation set, named sets, training pairs."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from datasets import Dataset


class EvaluatedSet(NamedTuple):
    """What an evaluation goes over: pairs, how their metrics' names start, the part of the dynamics
    file that they are (None: not kept there), and whether the distance is measured with them."""

    start: str
    part: str | None
    dataset: Dataset | None
    leads: bool = False


def members_of_datasets(one: EvaluatedSet, order: list[int]) -> dict[str, np.ndarray]:
    """Of a mixture's evaluation: dataset → which of the pairs `order` are its own. Empty for one
    dataset, and for the training pairs that are followed."""
    if one.dataset is None or one.part == "train" or "dataset" not in one.dataset.column_names:
        return {}
    name_of = dict(zip(one.dataset["pair"][:], one.dataset["dataset"][:]))
    names = np.array([name_of[pair] for pair in order])
    several = dict.fromkeys(name_of.values())
    return {name: names == name for name in several} if len(several) > 1 else {}


def evaluated_sets(
    given, prefix: str, eval_dataset, eval_sets: Mapping[str, Dataset], followed: Dataset | None
) -> list[EvaluatedSet]:
    """What an evaluation of a DPOGammaTrainer goes over: `given`, or what is evaluated where
    nothing is given. Empty for several by name, each of which Trainer evaluates by itself.

    given: a dataset, the name of one in `eval_dataset`, or None. prefix: of the metrics' names.
    followed: the training pairs that go with what the constructor took.
    """
    whole, start = eval_dataset if given is None else given, f"{prefix}_"
    if isinstance(whole, Mapping):
        return []
    train = [EvaluatedSet("eval_train_", "train", followed)] if followed is not None else []
    if isinstance(whole, str):
        own = prefix == f"eval_{whole}"
        leads = own and whole == next(iter(eval_dataset))
        return [EvaluatedSet(start, whole if own else None, eval_dataset[whole], leads)]
    if train and whole is followed:
        return train
    if given is not None or prefix != "eval":
        return [EvaluatedSet(start, None, whole, leads=prefix == "eval")]
    more = [EvaluatedSet(f"eval_{name}/", name, dataset) for name, dataset in eval_sets.items()]
    return [EvaluatedSet(start, "validation", whole, leads=True), *more, *train]
