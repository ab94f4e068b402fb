"""What a DPOGammaTrainer is given, as it takes it (datasets, the reference), and what of it an
evaluation goes over: the validation set, named sets, training pairs."""

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.integrations import is_deepspeed_zero3_enabled


def whole_dataset(dataset):
    """A streamed evaluation set (or a dict of them) as a Dataset: each evaluation reads all of it,
    and counts its rows once whatever the number of processes."""
    if isinstance(dataset, dict):
        return {name: whole_dataset(part) for name, part in dataset.items()}
    if isinstance(dataset, IterableDataset):
        return Dataset.from_list(list(dataset), features=dataset.features)
    return dataset


def coarsest_rounding(datasets: Iterable[Any]) -> float:
    """Relative rounding error of the reference that the datasets' REFERENCE_COLUMNS come from, as
    their column `reference_dtype` has it ("bfloat16, nf4"; "float32, 8bit", whose products are in
    float16); of several the largest, 0 where nothing is said."""
    names: set[str] = set()
    for dataset in datasets:
        for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
            if isinstance(part, Dataset) and "reference_dtype" in part.column_names:
                said = [name for name in part.unique("reference_dtype") if name]
                names |= {name.split(",")[0] for name in said}
                names |= {"float16" for name in said if "8bit" in name}
    dtypes = [getattr(torch, name, None) for name in names]
    known = [dtype for dtype in dtypes if isinstance(dtype, torch.dtype)]
    return max((torch.finfo(t).eps for t in known if t.is_floating_point), default=0.0)


def refuse_images(dataset) -> None:
    """ValueError for rows with images, which shared-prefix rows do not take."""
    first = next(iter(dataset), None) if dataset is not None else None
    if first is not None and {"image", "images"} & first.keys():
        raise ValueError("rows with images are not supported: use TRL's DPOTrainer")


def initial_reference(model, ref_model, *, needed: bool, loading: dict[str, Any]):
    """The reference that DPOTrainer is given: the one asked for, a name or directory loaded with
    `loading`; of a model in memory that will change, a copy as it is now, where TRL would read
    its directory again; None where TRL itself knows (a model by its name, an adapter's base), and
    where none is `needed`."""
    if isinstance(ref_model, str):
        dtype = torch.float32 if isinstance(model, str) else model.dtype
        return AutoModelForCausalLM.from_pretrained(ref_model, **{"dtype": dtype, **loading})
    if ref_model is not None or not needed or isinstance(model, (str, PeftModel)):
        return ref_model
    if is_deepspeed_zero3_enabled():
        logging.getLogger(__name__).warning(
            "ZeRO-3: the reference is read again from "
            f"{model.config.name_or_path or 'the model directory'}: give ref_model if the weights "
            "of model are others"
        )
        return None
    reference = copy.deepcopy(model)
    if not hasattr(reference, "_hf_hook"):  # an earlier trainer's forward, bound to the policy
        vars(reference).pop("forward", None)
    reference.zero_grad()
    return reference.requires_grad_(False).eval()


# ---------------------------------------------------------------------------- what is evaluated
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
