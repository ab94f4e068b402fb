"""What sft.py and dpo.py do alike before a model is loaded, and when all results are on disk."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import set_seed

from ranking.plumbing.model_hub import push_results
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import write_text_atomically
from ranking.reports.model_card import CARD_FILE, model_card, results_table
from ranking.reports.pairs import Columns
from ranking.training.best_metric import check_best_metric
from ranking.training.checkpoints import SavedStep
from ranking.training.config_file import save_config
from ranking.training.models import is_adapter
from ranking.training.parsing import FlagSet
from ranking.training.pushing import PushCheckpoints, start_pushing
from ranking.training.run_directory import (
    claim_directory,
    finish_run,
    has_run_card,
    run_description,
)
from ranking.training.splits import Parts, by_dataset, named_sets
from ranking.training.trackers import finish_trackers

CARD_LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets")


class Run(NamedTuple):
    """A run whose directory is claimed."""

    script: str  # sft.py or dpo.py
    given: Mapping[str, Any]  # the flags given, by name
    folder: Path
    settings: dict[str, Any]  # those of run_config.json
    checkpoint: str | None  # from which it goes on; None: from the start
    pushing: list[PushCheckpoints]  # callbacks of Trainer


def start_run(
    flags: FlagSet,
    described: Sequence[Mapping[str, Any]],
    models: Sequence[tuple[str, str | None]],
    parts: Parts,
    *,
    given: Mapping[str, Any],
    save_config_to: str | None,
    overwrite: bool,
    folder: Path,
    asked_checkpoint: str | None,
    best_metric: str | None,
    seed: int,
    hub: Mapping[str, Any] | None,
    local_base: str | None,
) -> Run:
    """Claim the output directory, open the repository to push to, and seed the random numbers.

    described: the values of data, model and training flags, for run_config.json. models: names and
    revisions. best_metric: --metric_for_best_model, where there are evaluations. The others as
    `save_config`, `claim_directory` and `start_pushing` take them. ValueError or OSError where the
    run cannot be.
    """
    check_best_metric(best_metric, parts, of_pairs=flags.script == "dpo.py")
    settings = run_description(described, models, parts, flags.retired)
    names = [name for name, _ in models]
    checkpoint = claim_directory(folder, settings, overwrite, asked_checkpoint, names)
    save_config(save_config_to, given, flags.script)
    pushing = start_pushing(hub, local_base)
    set_seed(seed)
    return Run(flags.script, given, folder, settings, checkpoint, pushing)


def print_datasets(
    metrics: Mapping[str, float],
    datasets: Mapping[str, Dataset],
    what: str = "loss",
    prefix: str = "test",
) -> None:
    """A line for each dataset of a mixture, or named set: its part of the metrics."""
    for name, dataset in datasets.items():
        value = metrics[f"{prefix}_{name}/{what}"]
        print(f"  {name}: {what} {value:.4f}, n = {len(dataset)}")


def metrics_at(history: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """The metrics of the last evaluation at a step, by Trainer's names; none where there was
    none."""
    found = [entry for entry in history if entry["step"] == step and "eval_loss" in entry]
    return dict(found[-1]) if found else {}


def write_card(
    run: Run,
    saved: SavedStep,
    metrics: Mapping[str, float],
    parts: Mapping[str, Dataset],
    *,
    data_commit: str | None,
    pictures: Mapping[str, Path],
) -> None:
    """Write README.md into the output directory, unless one is there that is the user's own.

    metrics: of validation (eval_…, of the saved step) and test (test_…). parts: what was trained on
    and evaluated, train, validation, test and evaluation sets by their names.
    """
    file = run.folder / CARD_FILE
    if file.exists() and not has_run_card(run.folder):
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
    is_tuned_again = run.settings.get("use_peft") and is_adapter(run.settings["model_name_or_path"])
    card = model_card(
        run.folder.resolve().name, run.script, run.given, run.settings, saved,
        results_table(metrics, sizes, names), data_commit=data_commit,
        pictures=[path.name for path in pictures.values()],
        versions={"Python": platform.python_version(), **{x: version(x) for x in CARD_LIBRARIES}},
        n_trained=len(parts["train"]), own_base=bool(is_tuned_again),
    )  # fmt: skip
    write_text_atomically(file, card)


def finish_and_publish(
    run: Run,
    trackers: Sequence[Any],
    saved: SavedStep,
    validation: Mapping[str, float],
    test: dict[str, float],
    parts: Mapping[str, Dataset],
    *,
    data_commit: str | None,
    pictures: Mapping[str, Path],
    tables: Mapping[str, Columns],
) -> None:
    """Write a run's model card and test results, with which it is finished; then push it to the hub
    and give its trackers pictures and tables.

    validation, test: metrics by Trainer's names. parts, pictures: as `write_card` takes them.
    """
    metrics = {**validation, **test}
    write_card(run, saved, metrics, parts, data_commit=data_commit, pictures=pictures)
    finish_run(run.folder, run.settings, saved, test, len(parts["test"]))
    for push in run.pushing:
        push_results(run.folder, push.repository, push.revision, push.jobs)
    finish_trackers(trackers, pictures, tables)
