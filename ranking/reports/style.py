"""How pictures look: colours that colour-blind readers tell apart, labels, saving."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from ranking.plumbing.command_line import announce
from ranking.plumbing.result_files import DATASET, SCORING, Record, scoring_label, values_of

matplotlib.use("Agg")


BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"  # Okabe-Ito: distinct for colour-blind readers


GREEN, PINK = "#009E73", "#CC79A7"


MODEL_COLOURS = (BLUE, ORANGE, GREEN, PINK, "#56B4E9", "#E69F00", "#000000")


MODEL_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


SAVE = {"dpi": 160, "bbox_inches": "tight", "metadata": {"Software": None}}


def plain(name: str) -> str:
    """A name that matplotlib prints as it stands: `$` opens no formula."""
    return name.replace("$", r"\$")


def draw(plot, rows: list[Record], path: Path) -> None:
    """Draw a picture beside results; where it cannot be drawn, a line says so, and they stay."""
    try:
        plot(rows, path)
    except ValueError as error:
        announce(f"no picture {path}: {str(error).splitlines()[0]}")


def setting_of(row: Record) -> tuple:
    """Dataset, its part, whether ties count, and how it was scored (not given: the default)."""
    return values_of(row, (*DATASET, "include_ties", *SCORING))


def setting_labels(rows: list[Record]) -> dict[tuple, str]:
    """setting → the dataset, with its split (a long one only beside another), its configuration
    where there are two, "ties", and how it was scored."""
    labels = {}
    for row in rows:
        name, config, split, ties = setting_of(row)[:4]
        parts = {key: {r.get(key) for r in rows if r["dataset_name"] == name} for key in DATASET}
        label = name if config is None or len(parts["dataset_config"]) < 2 else f"{name}:{config}"
        if split is not None and (len(split) <= 12 or len(parts["dataset_split"]) > 1):
            label += f", {split}"
        how = scoring_label(row, rows)
        labels[setting_of(row)] = plain(label) + (", ties" if ties else "") + (
            f",\n{plain(how)}" if how else ""
        )  # fmt: skip
    return labels


def model_labels(models: Iterable[str]) -> dict[str, str]:
    """The last part of each model's path, or all of it where two end alike."""
    ends = [Path(model).name for model in models]
    return {m: plain(e if ends.count(e) == 1 else m) for m, e in zip(models, ends)}


def refuse_two_runs(rows: list[Record], column: str) -> None:
    """Raise ValueError where two rows would be drawn over each other."""
    seen = set()
    for row in rows:
        key = (row["model"], row.get("reference_model"), setting_of(row), row[column])
        if key in seen:
            raise ValueError(f"two runs of {row['model']} on {row['dataset_name']}: give one")
        seen.add(key)


def save_figure(figure, path: Path) -> None:
    """Write a figure whole or not at all, and close it."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    figure.savefig(partial, **(SAVE if path.suffix == ".png" else {"bbox_inches": "tight"}))
    plt.close(figure)
    partial.replace(path)
