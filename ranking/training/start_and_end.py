"""What sft.py and dpo.py do alike before a model is loaded, and when all results are on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import set_seed

from ranking.plumbing.model_hub import push_results
from ranking.reports.pairs import Columns
from ranking.training.best_metric import check_best_metric
from ranking.training.checkpoints import SavedStep
from ranking.training.config_file import save_config
from ranking.training.parsing import FlagSet
from ranking.training.pushing import PushCheckpoints, start_pushing
from ranking.training.run_card import write_card
from ranking.training.run_directory import claim_directory, finish_run, run_description
from ranking.training.splits import Parts
from ranking.training.trackers import finish_trackers


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
    write_card(
        run.folder, run.script, run.given, run.settings, saved, {**validation, **test}, parts,
        data_commit=data_commit, pictures=pictures,
    )  # fmt: skip
    finish_run(run.folder, run.settings, saved, test, len(parts["test"]))
    for push in run.pushing:
        push_results(run.folder, push.repository, push.revision, push.jobs)
    finish_trackers(trackers, pictures, tables)
