"""What runs are called in tables and pictures, and what keeps two of them apart."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ranking.data.examples import dataset_label
from ranking.data.hub import DATASETS, is_only_a_path

ResultRow = Mapping[str, Any]  # a line of a result file
SYMBOLS = {"length-normalized": "R̃", "non-length-normalized": "R"}
DATASET_COLUMNS = ("dataset_name", "dataset_config", "dataset_split")
CHAT_COLUMNS = ("system", "chat_template_kwargs", "chat_template_file")
SCORING_COLUMNS = (
    "chat_template", "add_eos", "max_length", "separator", "sample_size", *CHAT_COLUMNS,
)  # fmt: skip


def dataset_of(row: ResultRow) -> str:
    """How lines name the dataset of a summary row."""
    return dataset_label(row["dataset_name"], row["dataset_split"], row.get("dataset_config"))


def setting_of(row: ResultRow) -> tuple:
    """Dataset, its part, whether ties count, and how it was scored (None: not given, or off)."""
    values = (row.get(key) for key in (*DATASET_COLUMNS, "include_ties", *SCORING_COLUMNS))
    return tuple(
        json.dumps(value) if isinstance(value, dict) else None if value is False else value
        for value in values
    )


def panel_names(rows: Iterable[ResultRow]) -> dict[str, str]:
    """`dataset_of` a row → how wandb's keys begin: the dataset's name, and its part where there are
    several."""
    parts = dict.fromkeys((row["dataset_name"], dataset_of(row)) for row in rows)
    names = [name for name, _ in parts]
    return {part: name if names.count(name) == 1 else part for name, part in parts}


def scoring_label(row: ResultRow, beside: Iterable[ResultRow] = ()) -> str:
    """How a summary row was scored where that is not the default (template, EOS, length), or not
    as the rows `beside` it of the same dataset (separator, sample size)."""
    parts = [
        "chat template" if row.get("chat_template") else "",
        f"given {json.dumps(given)}" if (given := row.get("chat_template_kwargs")) else "",
        f"from file {row['chat_template_file'][:6]}" if row.get("chat_template_file") else "",
        f"system message {json.dumps(row['system'][:30])}" if row.get("system") else "",
        "EOS scored" if row.get("add_eos") else "",
        f"at most {row['max_length']} tokens" if row.get("max_length") else "",
    ]
    others = [r for r in beside if all(r.get(key) == row.get(key) for key in DATASET_COLUMNS)]
    size, separator = row.get("sample_size", "unknown"), row.get("separator")
    raw = [r for r in others if "separator" in r and not r.get("chat_template")]
    if separator is not None and any(r.get("separator") != separator for r in raw):
        parts.append(f"separator {json.dumps(separator)}")
    if size != "unknown" and any(r.get("sample_size", "unknown") != size for r in others):
        parts.append("all examples" if size is None else f"sample of {size}")
    return ", ".join(filter(None, parts))


def run_label(rows: Sequence[ResultRow]) -> str:
    """How a run scored all of its datasets: in a chat template, some may be and some not."""
    labels = list(dict.fromkeys(scoring_label(row) for row in rows))
    if len(labels) == 1:
        return labels[0]
    rest = scoring_label({**rows[0], "chat_template": False})
    return ", ".join(filter(None, ("chat template where prompts are dialogues", rest)))


def setting_label(row: ResultRow, beside: Iterable[ResultRow] = ()) -> str:
    """The dataset with its split and, unless the hub's default, its configuration; ties; how it was
    scored, where that is not the default or not as the rows `beside` it. For tables."""
    name, config, split, _ = setting_of(row)[:4]
    default = DATASETS[name].config if name in DATASETS else None
    parts = [name, *(x for x in (config, split) if x not in (None, default))]
    return with_scoring(":".join(parts), row, beside)


def page_label(row: ResultRow, beside: Iterable[ResultRow] = ()) -> str:
    """The same with the dataset named as lines name it (`dataset_of`)."""
    return with_scoring(dataset_of(row), row, beside)


def with_scoring(label: str, row: ResultRow, beside: Iterable[ResultRow]) -> str:
    """A dataset's label, and after it ties and `scoring_label`."""
    ties = "ties included" if row.get("include_ties") else ""
    return ", ".join(filter(None, (label, ties, scoring_label(row, beside))))


def setting_labels(rows: Sequence[ResultRow]) -> dict[tuple, str]:
    """setting → the dataset, with its split (a long one only beside another), its configuration
    where there are two or it is not the hub's default, "ties", and how it was scored. For
    pictures."""
    labels = {}
    for row in rows:
        name, config, split, ties = setting_of(row)[:4]
        parts = {
            key: {r.get(key) for r in rows if r["dataset_name"] == name} for key in DATASET_COLUMNS
        }
        default = DATASETS[name].config if name in DATASETS else None
        shown_config = config if len(parts["dataset_config"]) > 1 or config != default else None
        short_split = split is not None and len(split) <= 12
        shown_split = split if short_split or len(parts["dataset_split"]) > 1 else None
        label = dataset_label(name, shown_split, shown_config)
        how = scoring_label(row, rows)
        labels[setting_of(row)] = plain(label) + (", ties" if ties else "") + (
            f",\n{plain(how)}" if how else ""
        )  # fmt: skip
    return labels


def group_label(group: str) -> str:
    """A ranking group in words: how the reference ranks a pair → how the policy does."""
    return group.replace("_to_", " → ")


def short(name: str) -> str:
    """The last part of a model's path, and its parent where that says the training step."""
    path = Path(name)
    return "/".join(path.parts[-2:]) if path.name.startswith("checkpoint-") else path.name or name


def without_paths(name: str) -> str:
    """A name on the hub as it is; of a path, the last part."""
    is_path = Path(name).exists() or is_only_a_path(name)
    return Path(name).resolve().name if is_path else name


def model_names(models: Iterable[str]) -> dict[str, str]:
    """Model → what `short` calls it, or all of its name where two end alike."""
    ends = {model: short(model) for model in models}
    counts = Counter(ends.values())
    return {model: end if counts[end] == 1 else model for model, end in ends.items()}


def model_labels(models: Iterable[str]) -> dict[str, str]:
    """The same for pictures."""
    return {model: plain(name) for model, name in model_names(models).items()}


def plain(name: str) -> str:
    """A name that matplotlib prints as it stands: `$` opens no formula, and one that begins with an
    underscore stays in the legend."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


def refuse_two_runs(rows: Iterable[ResultRow], *columns: str) -> None:
    """Raise ValueError where two rows of a model and setting have the same values of `columns`."""
    seen = set()
    for row in rows:
        key = (row["model"], row.get("reference_model"), setting_of(row), *map(row.get, columns))
        if key in seen:
            raise ValueError(f"two runs of {row['model']} on {setting_label(row)}: give one")
        seen.add(key)


def normalization_of(row: ResultRow) -> str:
    """The key of SYMBOLS that a row of any result file is of."""
    return row.get("normalization") or row["calib_property"].partition("_")[2]


def symbol_of(row: ResultRow) -> str:
    """R̃ or R."""
    return SYMBOLS[normalization_of(row)]


def by_normalization(rows: Iterable[ResultRow], *columns: str) -> list[list[Any]]:
    """The rows of R̃ and R of each model, setting and values of `columns`, as they come. ValueError
    where one of the two is missing."""
    groups: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = (row.get("reference_model"), setting_of(row), row["model"], *map(row.get, columns))
        groups.setdefault(key, {})[normalization_of(row)] = row
    for pair in groups.values():
        if missing := [kind for kind in SYMBOLS if kind not in pair]:
            (row,) = pair.values()
            where = f"{row['model']} on {setting_label(row)}"
            raise ValueError(f"no {missing[0]} row of {where} beside the other: the file is cut")
    return [[pair[kind] for kind in SYMBOLS] for pair in groups.values()]
