"""What conventions.py and length_difference.py share: examples files by dataset."""

from collections.abc import Iterator, Sequence

from ranking.metrics.accuracy import TextColumns
from ranking.scoring.comparable import read_scoring_run
from ranking.scoring.run_config import scoring_settings
from ranking.scoring.runs import group_records


class ScoredDataset(TextColumns, total=False):
    """What a row is about."""

    model: str
    dataset_name: str
    dataset_config: str | None
    dataset_split: str | None
    include_ties: bool  # whether examples without an untied pair are among them
    normalization: str  # "length-normalized" (R̃, Eq. 15) or "non-length-normalized" (R, Eq. 13)


def records_by_dataset(files: Sequence[str]) -> Iterator[tuple[list[dict], dict]]:
    """The records of each dataset, split and configuration of each examples file, and how they were
    scored."""
    for run in map(read_scoring_run, files):
        for key, records in group_records(run.records).items():
            yield records, scoring_settings(run.config, key) if run.config is not None else {}


def has_tied_examples(records: list[dict]) -> bool:
    """Whether the records were scored with --include-ties: otherwise such examples drop out."""
    return any(len(set(record["ranks"])) == 1 for record in records)


def scored_dataset(records: list[dict], normalization: str) -> dict:
    """The own keys of `ScoredDataset`."""
    first = records[0]
    return {
        "model": first["model"],
        "dataset_name": first["dataset"],
        "dataset_config": first.get("dataset_config"),
        "dataset_split": first["split"],
        "include_ties": has_tied_examples(records),
        "normalization": normalization,
    }
