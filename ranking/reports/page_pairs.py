"""The pairs of a page: one line per untied pair and model, with texts and numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ranking.metrics.dynamics import GROUPS
from ranking.metrics.rewards import is_right
from ranking.plumbing.outputs import dataset_key, row_key
from ranking.plumbing.result_files import Record
from ranking.reports.labels import group_label, model_names, run_label
from ranking.reports.page_files import IDEALIZED, ResultFile
from ranking.reports.pairs import (
    lines_of_record,
    pair_example,
    rewards_by_place,
    rounded,
    without_unknown,
)


def run_names(files: Sequence[ResultFile]) -> dict[Path, str]:
    """File → its model and how it was scored; with the file's name where another of that name
    scored one of its examples too."""
    models = model_names(row["model"] for file in files for row in file.rows)
    labels = [
        ", ".join(filter(None, (models[file.rows[0]["model"]], run_label(file.rows))))
        for file in files
    ]
    scored = [set(map(row_key, file.examples)) for file in files]
    names = {}
    for k, file in enumerate(files):
        alike = [places for j, places in enumerate(scored) if j != k and labels[j] == labels[k]]
        shared = any(places & scored[k] for places in alike)
        names[file.path] = f"{labels[k]} ({file.path.name})" if shared else labels[k]
    return names


class PagePairs(NamedTuple):
    """What is embedded of pairs, as JSON; `pairs` refer to `examples` by their number."""

    examples: list[Record]
    pairs: list[Record]


def shown_once(files: Sequence[ResultFile]) -> list[ResultFile]:
    """The files, idealized ones without the examples of a model that another file has: what they
    say of a pair stands there."""

    def keys_of(file: ResultFile) -> set[tuple]:
        return {(r["model"], r.get("config_hash"), *row_key(r)) for r in file.examples}

    seen = set().union(*(keys_of(file) for file in files if file.kind != IDEALIZED))
    kept = []
    for file in files:
        if file.kind == IDEALIZED:
            own = keys_of(file)
            file = file._replace(examples=[] if own <= seen else file.examples)
            seen |= own
        kept.append(file)
    return kept


def page_pairs(files: Sequence[ResultFile]) -> PagePairs:
    """Every untied pair of the examples of each file, with what rewards and votes say of it."""
    scored = [file for file in shown_once(files) if file.examples]
    names = run_names(scored) if scored else {}
    rated = rated_pairs_of(files)
    numbers: dict[tuple, int] = {}
    examples: list[Record] = []
    pairs: list[Record] = []
    for file in scored:
        rewards = rewards_by_place(file.rewards)
        model = file.rows[0]["model"]
        for record in file.examples:
            place = row_key(record)
            if place not in numbers:
                numbers[place] = len(examples)
                examples.append(pair_example(record))
            for line in lines_of_record(record, rewards):
                sides = (line["chosen"]["place"], line["rejected"]["place"])
                rated_pair = rated.get((model, *dataset_key(record), record["id"], *sides))
                pairs.append(
                    {"example": numbers[place], "model": names[file.path], **line,
                     **(rated_pair or {})}
                )  # fmt: skip
    return PagePairs(examples, pairs)


def rated_pairs_of(files: Sequence[ResultFile]) -> dict[tuple, Record]:
    """What idealized runs say of pairs: by policy, `dataset_key`, id, winner and loser."""
    found = {}
    for file in files:
        if file.kind != IDEALIZED:
            continue
        model, reference = file.rows[0]["model"], file.rows[0]["reference_model"]
        for pair in file.pairs:
            summed = pair["non-length-normalized"]
            line: Record = {
                "alpha": rounded(pair["alpha"], 4),
                "critical_beta": rounded(summed["critical_beta"], 6),
                "tuned_loss": rounded(pair.get("tuned_loss"), 4),
                "flipped_in": pair.get("flipped_in"),
            }
            if reference != model and not pair["tied"]:
                group = GROUPS[is_right(summed["ref_logratio"]), summed["observed_correct"]]
                line["group"] = group_label(group)
            key = (*dataset_key(pair), pair["id"], pair["winner"], pair["loser"])
            found[model, *key] = without_unknown(line)
    return found
