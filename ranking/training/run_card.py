"""Writes a training run's model card (`ranking/reports/model_card.py` is its text), and finds the
results that it shows."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import write_text_atomically
from ranking.reports.model_card import CARD_FILE, model_card, results_table
from ranking.training.checkpoints import SavedStep
from ranking.training.mixtures import by_dataset
from ranking.training.models import is_adapter
from ranking.training.run_directory import has_run_card
from ranking.training.splits import named_sets

CARD_LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")


def metrics_at(history: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """The metrics of the last evaluation at a step, by Trainer's names; none where there was
    none."""
    found = [entry for entry in history if entry["step"] == step and "eval_loss" in entry]
    return dict(found[-1]) if found else {}


def write_card(
    folder: Path,
    script: str,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    saved: SavedStep,
    metrics: Mapping[str, float],
    parts: Mapping[str, Dataset],
    *,
    data_commit: str | None,
    pictures: Mapping[str, Path],
) -> None:
    """Write README.md into the output directory, unless one is there that is the user's own.

    given: the flags. metrics: of validation (eval_…, of the saved step) and test (test_…). parts:
    what was trained on and evaluated, train, validation, test and evaluation sets by their names.
    """
    file = folder / CARD_FILE
    if file.exists() and not has_run_card(folder):
        announce(f"{file} is your own: no model card is written")
        return
    shown = {}  # how the metrics of a part begin → what it is called, its rows
    for part, prefix in (("validation", "eval_"), ("test", "test_")):
        shown[prefix] = part, parts[part]
        for name, rows in by_dataset(parts[part]).items():
            shown[f"{prefix}{name}/"] = f"{part} {name}", rows
        if part == "validation":
            shown |= {f"eval_{name}/": (name, rows) for name, rows in named_sets(parts).items()}
    sizes = {prefix: len(rows) for prefix, (_, rows) in shown.items()}
    names = {prefix: name for prefix, (name, _) in shown.items()}
    card = model_card(
        folder.resolve().name, script, given, settings, saved,
        results_table(metrics, sizes, names), data_commit=data_commit,
        pictures=[path.name for path in pictures.values()],
        versions={"Python": platform.python_version(), **{x: version(x) for x in CARD_LIBRARIES}},
        n_trained=len(parts["train"]),
        own_base=bool(settings.get("use_peft")) and is_adapter(settings["model_name_or_path"]),
    )  # fmt: skip
    write_text_atomically(file, card)
