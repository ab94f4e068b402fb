"""Whether two runs scored the same texts in the same way."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ranking.data.cells import read_votes
from ranking.data.examples import dataset_label
from ranking.metrics.accuracy import is_cut
from ranking.metrics.comparison import common_examples, records_by_dataset
from ranking.plumbing.outputs import dataset_key, row_key
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record
from ranking.scoring.examples_file import (
    config_beside,
    load_examples,
    stem_of_examples,
)
from ranking.scoring.models import FoundModel
from ranking.scoring.run_config import record_in_template


class ScoringRun(NamedTuple):
    """Rows of a run, read from a file or planned, and how they are scored."""

    name: str
    records: list[Record]
    config: Mapping[str, Any] | None  # None: not known
    found: FoundModel | None = None  # what is to score it; None: it was read from a file


def read_scoring_run(path: str) -> ScoringRun:
    """The run that wrote an examples file. Raises ValueError as `load_examples`."""
    records = load_examples(path)
    return ScoringRun(path, records, config_beside(path, records))


def read_scoring_runs(paths: Sequence[str | None]) -> list[ScoringRun]:
    """`read_scoring_run` of each path; None, for none, is None."""
    return [read_scoring_run(path) if path is not None else None for path in paths]


def label_of(record: Record) -> str:
    """How lines name the dataset of a record."""
    return dataset_label(*dataset_key(record))


def shared_examples(records: Sequence[Any], other: Sequence[Any]) -> list[tuple[Record, Record]]:
    """The records of two runs for each example that both scored, in the order of the first."""
    by_key = {row_key(record): record for record in other}
    return [(r, by_key[row_key(r)]) for r in records if row_key(r) in by_key]


def of_record(record: Record, key: str) -> Any:
    """What two records of an example have to share, however their files write it."""
    if key == "completions":
        return [completion["text"] for completion in record[key]]
    if key == "votes":
        return read_votes(record[key], len(record["completions"])) if record[key] else {}
    return record.get(key)


def check_comparable(first: ScoringRun, second: ScoringRun, own_templates: bool = False) -> None:
    """Raise ValueError where two runs scored an example, but not as the same text, or not with the
    same ranks and votes. A line says what else differs. `own_templates`: each model may have its
    dialogues in a chat template of its own, which a line says."""
    pairs = shared_examples(first.records, second.records)
    for a, b in pairs:
        for key in ("prompt", "completions", "ranks", "votes", "messages"):
            if of_record(a, key) != of_record(b, key):
                raise ValueError(
                    f"{label_of(a)}, row {a['row']}: its {key} differ "
                    f"between {first.name} and {second.name}: score the same data"
                )
    one, two = first.config, second.config
    if one is None or two is None or not pairs:
        return

    def refuse(setting: str, values: tuple) -> None:
        said = " and ".join(
            f"{run.name} with {setting} {json.dumps(value)}"
            for run, value in zip((first, second), values)
        )
        raise ValueError(f"not the same text: {said}: score both alike")

    for key in ("add_eos", "system", "chat_template_kwargs"):
        if one.get(key) != two.get(key):
            refuse(key, (one.get(key), two.get(key)))
    templates = one.get("template"), two.get("template")  # where one is used
    if None not in templates and templates[0] != templates[1]:
        if not own_templates:
            refuse("the chat template", templates)
        announce(f"{first.name} and {second.name} have dialogues in different chat templates")
    for a, b in pairs:
        where = label_of(a)
        rendered = (record_in_template(a, one), record_in_template(b, two))
        if rendered[0] != rendered[1]:
            refuse(f"{where}: chat_template", rendered)
        ours, theirs = ([c["separator"] for c in record["completions"]] for record in (a, b))
        if not rendered[0] and ours != theirs:
            refuse(f"{where}: separators", (ours, theirs))
    limits = [config.get("max_length") or math.inf for config in (one, two)]
    cut = any(map(is_cut, (record for pair in pairs for record in pair)))
    tighter = first if limits[0] < limits[1] else second
    if limits[0] != limits[1] and (cut or tighter.found):
        refuse("max_length", (one.get("max_length"), two.get("max_length")))
    harmless = [
        f"{key} {one.get(key)} and {two.get(key)}"
        for key in ("dtype", "quantization", "sample_size", "seed", "include_ties")
        if one.get(key) != two.get(key)
    ]
    if harmless:
        announce(f"{first.name} and {second.name} differ in {', '.join(harmless)}; the same "
                 f"{len(pairs)} examples are in both")  # fmt: skip


def announce_uneven_cuts(shared: list[tuple[Record, Record]]) -> None:
    """A line where a prompt lost its beginning in one of two runs only."""
    n = sum(is_cut(record) != is_cut(other) for record, other in shared)
    if n:
        announce(f"{n} prompts were cut from the left in one of the two runs only")


def refuse_same_file(*runs: ScoringRun) -> None:
    """Raise ValueError where two runs were read from one file, whatever it is called."""
    read: set[Path] = set()
    for run in (run for run in runs if run.found is None):
        file = Path(run.name).resolve()
        if file in read:
            raise ValueError(f"{run.name}: given twice: give the files of different runs")
        read.add(file)


def check_compared(policy: ScoringRun, others: Sequence[ScoringRun]) -> None:
    """Raise ValueError where the runs that --compare names cannot be compared with this one."""
    names = [other.name for other in others]
    refuse_same_file(policy, *others)
    for other in others:
        check_comparable(policy._replace(name="this run"), other, own_templates=True)
        if not shared_examples(policy.records, other.records):
            raise ValueError(f"--compare {other.name}: it has no example of this run")
    runs = [("this run", policy.records), *((run.name, run.records) for run in others)]
    if others and not any(shared for _, shared in common_examples(runs).values()):
        raise ValueError(
            f"--compare {' '.join(names)}: no example with an untied pair is in all of them and "
            "in this run: score the same examples, or compare fewer runs"
        )


def compared_runs(
    name: str, records: Sequence[Any], others: Sequence[ScoringRun]
) -> list[tuple[str, Sequence[Any]]]:
    """This run and others by the names of their models, with those of their files where two models
    have one name. Lines say what is not compared."""
    names = [name, *(run.records[0]["model"] for run in others)]
    paths = ["this run", *(run.name for run in others)]
    files = [Path(stem_of_examples(path)).name for path in paths]
    labels = [
        n if names.count(n) == 1 else f"{n} ({f if files.count(f) == 1 else path})"
        for n, f, path in zip(names, files, paths)
    ]
    for run in others:
        announce_uneven_cuts(shared_examples(records, run.records))
    runs = list(zip(labels, [records, *(run.records for run in others)]))
    announce_left_out(runs)
    return runs


def announce_left_out(runs: Sequence[tuple[str, Sequence[Any]]]) -> None:
    """A line for each dataset of the first run or another one that is not compared."""
    for key, (of_model, shared) in common_examples(runs).items():
        if not shared:
            announce(f"{dataset_label(*key)}: not compared: no example with an "
                     f"untied pair is in all of {', '.join(of_model)}")  # fmt: skip
    ours = records_by_dataset(runs[0][1])
    for name, records in runs[1:]:
        for key in records_by_dataset(records):
            if key not in ours:
                announce(f"{dataset_label(*key)}: not compared: {name} has "
                         "untied examples of it, and this run has none")  # fmt: skip
