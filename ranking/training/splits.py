"""The parts that a run trains on, validates and tests, of one dataset or a mixture of several."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ranking.data.examples import PreferenceData, PreferenceExample, describe_joining
from ranking.data.hub import DATASETS, split_name
from ranking.data.splits import describe, load_evaluation_set, load_training_splits, opening
from ranking.plumbing.command_line import progress_bar
from ranking.plumbing.processes import announce

Parts = dict[str, PreferenceData]  # train, validation, test, and evaluation sets by their labels
TAKEN_NAMES = {"train", "validation", "test", "eval", "dynamics"}  # no dataset is so labelled


def load_parts(
    dataset_names: Sequence[str],
    *,
    eval_names: Sequence[str] = (),
    shares: Sequence[float] | None = None,
    data_dir: str | None = None,
    columns: Mapping[str, str] | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    seed: int = 0,
    n_train: int | None = None,
    n_eval: int = 1000,
    separator: str | None = None,
    chat_template: str = "auto",
    conversations: bool = False,
) -> Parts:
    """Train, validation and test examples; what was read, and where from, on stderr.

    n_train, n_eval: most examples of train, and of validation and test each (of each dataset),
    drawn by `seed`, which also divides data with one split; None or -1: all. chat_template: auto,
    always or never. conversations: data without a preference, for SFT, are read too.

    Several datasets are joined part by part, and each example's `dataset` is the label of its own.
    shares: of the training examples, each dataset's, drawn by `seed` without replacement, as many
    as there are in these shares. An example of validation or test whose first question is in
    another dataset's training examples is left out, and counted.

    eval_names: further datasets to evaluate on (`load_evaluation_sets`), beside the validation
    part; each is a part of its own.
    """
    how: dict[str, Any] = {"data_dir": data_dir, "columns": columns, "train_split": train_split,
           "eval_split": eval_split, "seed": seed, "n_train": n_train, "separator": separator,
           "chat_template": chat_template, "conversations": conversations}  # fmt: skip
    labels = dataset_labels(dataset_names)
    eval_labels = evaluation_labels(dataset_names, eval_names)
    loaded = [load_dataset_parts(name, **how) for name in dataset_names]
    trained = [{first_question(e) for e in parts["train"].examples} for parts in loaded]
    leave_out_shared(labels, loaded, trained)
    if len(loaded) == 1:
        limit_part(dataset_names[0], "train", loaded[0]["train"], n_train, seed)
    elif shares is not None:
        draw_shares(labels, [parts["train"] for parts in loaded], shares, n_train, seed)
    for name, parts in zip(dataset_names, loaded):
        for part in ("validation", "test"):
            limit_part(name, part, parts[part], n_eval, seed)
    more = load_evaluation_sets(
        dict(zip(eval_labels, eval_names)), set().union(*trained), n_eval=n_eval, seed=seed,
        data_dir=data_dir, columns=columns, separator=separator, conversations=conversations,
    )  # fmt: skip
    if len(loaded) == 1:
        return loaded[0] | more
    joined = join_parts(labels, loaded)
    if shares is None:
        limit_part("all datasets", "train", joined["train"], n_train, seed)
    for part, data in joined.items():
        announce(f"{part} of all datasets: {describe_mixture(data.examples)}")
    return joined | more


def load_dataset_parts(
    dataset_name: str, *, n_train: int | None, chat_template: str, **how: Any
) -> Parts:
    """The parts of one dataset, whole but for one of millions of rows, with lines that say what
    they are. how: as `load_training_splits` takes it."""
    sample_size = None
    if is_streamed(dataset_name):
        if how["data_dir"] is None and n_train is None:
            raise ValueError(
                f"{dataset_name} has 10 million rows: give --max_train_samples (or --data_dir)"
            )
        sample_size = n_train and round(n_train / 0.8)
    parts, notes = load_training_splits(
        dataset_name, sample_size=sample_size, progress=progress_bar, **how
    )
    texts = [e for e in parts["train"].examples if e.dialogue is None or chat_template == "never"]
    if texts and chat_template != "always":
        notes.append(describe_joining(texts))
    for note in notes:
        announce(f"{dataset_name}: {note}")
    return parts


def is_streamed(spec: str) -> bool:
    """Whether a dataset of the hub has millions of rows, of which the first are taken."""
    name = split_name(spec)[0]
    return name in DATASETS and DATASETS[name].streamed


def load_evaluation_sets(
    specs: Mapping[str, str], trained: set[str], *, n_eval: int, seed: int, **how: Any
) -> Parts:
    """The datasets `specs` (label → name) to evaluate on, at most `n_eval` examples of each (-1:
    all), with a line that says what they are.

    An example whose first question is among those `trained` on is left out, and counted; ValueError
    where none is left. how: as `load_evaluation_set` takes it.
    """
    parts = {}
    for label, spec in specs.items():
        n = n_eval if is_streamed(spec) and n_eval > 0 else None
        data = load_evaluation_set(spec, sample_size=n, progress=progress_bar, **how)
        kept = [example for example in data.examples if first_question(example) not in trained]
        n_left_out = len(data.examples) - len(kept)
        announce(
            f"{label}: evaluation set, {describe(data)}; left out because its question is trained "
            f"on: {n_left_out}"
        )
        if not kept:
            raise ValueError(
                f"--eval_dataset_name {spec}: "
                + ("all its questions are trained on" if n_left_out else "it has no example")
            )
        parts[label] = replace(data, examples=kept)
        limit_part(label, "the evaluation set", parts[label], n_eval, seed)
    return parts


def limit_part(name: str, part: str, data: PreferenceData, limit: int | None, seed: int) -> None:
    """Leave `limit` examples, drawn by `seed`, of a dataset's part (None or -1: all)."""
    if limit is not None and 0 <= limit < len(data.examples):
        draw_subset(data, limit, seed)
        announce(f"{name}: {part} limited to {limit} examples")


def draw_subset(data: PreferenceData, n: int, seed: int) -> None:
    """Leave n examples drawn without replacement, in the order of the data."""
    chosen = np.random.default_rng(seed).choice(len(data.examples), n, replace=False)
    data.examples[:] = [data.examples[i] for i in sorted(chosen)]


def draw_shares(
    labels: Sequence[str],
    parts: Sequence[PreferenceData],
    shares: Sequence[float],
    n_train: int | None,
    seed: int,
) -> None:
    """Leave of each dataset's training examples its share of as many as the shares allow (at most
    `n_train`)."""
    whole = min(len(data.examples) / share for data, share in zip(parts, shares))
    whole = whole if n_train is None or n_train < 0 else min(whole, n_train)
    for label, data, share in zip(labels, parts, shares):
        n, n_kept = len(data.examples), max(1, int(whole * share + 1e-6))
        draw_subset(data, n_kept, seed)
        announce(f"{label}: share {share:g} of the training examples, {n_kept} of {n} drawn")


def dataset_labels(specs: Sequence[str]) -> list[str]:
    """Short names by which the metrics of several datasets are told apart: the last part of each
    hub name or path, or the whole where two would be the same; of one called as a part of the data
    (test.jsonl) with its folder's name before it. ValueError for one given twice."""
    short = []
    for spec in specs:
        path = Path(spec)
        last = spec.rstrip("/").split("/")[-1]
        short.append(last.split(".")[0] or last if path.exists() else last)
    twice = [spec for spec in specs if list(specs).count(spec) > 1]
    if twice:
        raise ValueError(f"--dataset_name {twice[0]} is given twice")
    labels = [name if short.count(name) == 1 else spec for spec, name in zip(specs, short)]
    return [
        f"{Path(spec).resolve().parent.name}/{label}" if label in TAKEN_NAMES else label
        for spec, label in zip(specs, labels)
    ]


def evaluation_labels(dataset_names: Sequence[str], eval_names: Sequence[str]) -> list[str]:
    """Short names of the evaluation sets as `dataset_labels`, other than those of the training
    datasets. ValueError for one that is trained on, or given twice."""
    for spec in eval_names:
        if spec in dataset_names:
            raise ValueError(
                f"--eval_dataset_name {spec} is --dataset_name, whose validation part is evaluated "
                "anyway: name a split (NAME:SPLIT), or leave it out"
            )
        if list(eval_names).count(spec) > 1:
            raise ValueError(f"--eval_dataset_name {spec} is given twice")
    return dataset_labels([*dataset_names, *eval_names])[len(dataset_names) :]


def first_question(example: PreferenceExample) -> str:
    """What the user says first, or a text that asks nothing: by this, the same prompt is found in
    other notations too."""
    if example.dialogue is not None:
        users = [m.get("content") for m in example.dialogue.messages if m["role"] == "user"]
        if users and isinstance(users[0], str):
            return users[0].strip()
    return opening(example).strip().removeprefix("Human:").strip()


def leave_out_shared(
    labels: Sequence[str], loaded: Sequence[Parts], trained: Sequence[set[str]]
) -> None:
    """Take the examples out of validation and test whose first question another dataset trains on;
    trained: those of each. ValueError where none is left."""
    for k, (label, parts) in enumerate(zip(labels, loaded)):
        others = set().union(*trained[:k], *trained[k + 1 :])
        for part in ("validation", "test"):
            examples = parts[part].examples
            kept = [e for e in examples if first_question(e) not in others]
            if len(kept) == len(examples):
                continue
            announce(
                f"{label}: left out of {part} because another dataset trains on the question: "
                f"{len(examples) - len(kept)} of {len(examples)}"
            )
            if not kept:
                raise ValueError(f"{label}: no example of {part} is left beside the other datasets")
            examples[:] = kept


def join_parts(labels: Sequence[str], loaded: Sequence[Parts]) -> Parts:
    """One dataset of several: examples in order, with their dataset's label and ids that differ."""
    ids: set[str] = set()
    joined = {}
    for part in loaded[0]:
        examples = []
        for label, parts in zip(labels, loaded):
            for example in parts[part].examples:
                id_ = example.id if example.id not in ids else f"{example.id}@{label}"
                ids.add(id_)
                examples.append(replace(example, id=id_, dataset=label))
        joined[part] = PreferenceData(", ".join(labels), None, None, None, examples, {}, [])
    return joined


def describe_mixture(examples: Sequence[PreferenceExample]) -> str:
    """How many examples of each dataset, with their shares."""
    names = [example.dataset for example in examples]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{name} {n} ({100 * n / len(names):.1f} %)" for name, n in counts.items())


def by_dataset(dataset: Dataset | None) -> dict[str, Dataset]:
    """The rows of each dataset of a mixture, by the column `dataset`; none where there is one."""
    if dataset is None or "dataset" not in dataset.column_names:
        return {}
    rows: dict[str, list[int]] = {}
    for k, name in enumerate(dataset["dataset"][:]):  # a list: row by row takes seconds
        rows.setdefault(name, []).append(k)
    return {name: dataset.select(own) for name, own in rows.items()}


def named_sets(parts: Mapping[str, Any], with_test: bool = False) -> dict[str, Any]:
    """The evaluation sets among the parts of the data, by their labels; `with_test`: the test part
    too, for its loss beside the validation loss (Fig. 9b)."""
    tested = {"test": parts["test"]} if with_test else {}
    return tested | {name: part for name, part in parts.items() if name not in TAKEN_NAMES}
