"""The result files that a page is made of, and what lies beside them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ranking.plumbing.outputs import stem_of
from ranking.plumbing.result_files import Record, read_json_lines
from ranking.reports.dynamics_pictures import PICTURES_OF_RUN

# kind of a result file → columns by which it is known, and pictures that lie beside it
RANKING, IDEALIZED, WIN_RATE, DYNAMICS = "ranking", "idealized", "win rate", "dynamics"
KNOWN_BY = {
    DYNAMICS: {"step", "part", "group", "reward_margin"},
    WIN_RATE: {"win_rate", "against"},
    IDEALIZED: {"reference_model", "beta", "min_median_max"},
    RANKING: {"calib_property", "distance_metric", "model"},
}
PICTURES = {
    RANKING: ("png", "groups.png", "rewards.png", "compare.png"),
    IDEALIZED: ("curve.png", "groups.png", "required_loss.png"),
    WIN_RATE: ("png",),
}


class ResultFile(NamedTuple):
    """One result file with what was found beside it."""

    path: Path
    kind: str
    rows: list[Record]
    examples: list[Record]  # lines of the examples file of the model; []: not there
    rewards: list[Record]  # `RewardPair`s
    pairs: list[Record]  # `PairRow`s
    comparisons: list[Record]  # `ComparisonRow`s
    pictures: list[Path]
    missing: list[str]  # a sentence for each thing that is not there


def kind_of(path: Path, rows: Sequence[Record]) -> str:
    """What a result file is; ValueError where it is none that a page shows."""
    for kind, columns in KNOWN_BY.items():
        if rows and all(columns <= row.keys() for row in rows):
            return kind
    name, *more = path.name.removesuffix(".gz").removesuffix(".jsonl").split(".")
    summary = path.with_name(f"{name}.jsonl")
    give = f": give {summary}, beside which it is found" if more and summary.is_file() else ""
    raise ValueError(
        f"{path}: not a summary (NAME.jsonl) of the ranking, idealized or win-rate script, nor a "
        f"ranking_dynamics.jsonl{give}"
    )


def read_result_file(path: Path) -> ResultFile:
    """A result file, and beside it examples, rewards, pairs and pictures."""
    rows = read_json_lines(path)
    kind = kind_of(path, rows)
    missing: list[str] = []
    if kind == DYNAMICS:
        pictures = [path.with_name(name) for _, name in PICTURES_OF_RUN.values()]
    else:
        pictures = [beside(path, suffix) for suffix in PICTURES[kind]]
    found = [picture for picture in pictures if picture.is_file()]
    if not found:
        missing.append(f"no picture ({', '.join(p.name for p in pictures)})")
    examples: list[Record] = []
    rewards: list[Record] = []
    pairs: list[Record] = []
    comparisons: list[Record] = []
    if kind == RANKING:
        examples = read_examples(examples_files(path, rows), rows, missing)
        rewards = read_if_there(beside(path, "rewards.jsonl"))
        comparisons = read_if_there(beside(path, "compare.jsonl"))
        if not rewards and any(row["distance_metric"] == "reward_acc" for row in rows):
            missing.append(
                "no NAME.rewards.jsonl: pairs are shown without rewards, and without groups such "
                "as correct → incorrect"
            )
        elif not rewards:
            missing.append(
                "no reference was scored: no rewards, and no groups such as correct → incorrect"
            )
    elif kind == IDEALIZED:
        examples = policy_examples(path, rows, missing)
        pairs = read_if_there(beside(path, "pairs.jsonl"))
        if not pairs:
            missing.append("no NAME.pairs.jsonl: no vote shares, no critical β")
    elif kind == WIN_RATE:
        missing.append("judged answers are not shown here; they are in NAME.examples.jsonl")
    elif kind == DYNAMICS:
        missing.append("dynamics have no texts: their pairs are not shown here")
    return ResultFile(path, kind, rows, examples, rewards, pairs, comparisons, found, missing)


def beside(path: Path, suffix: str) -> Path:
    """NAME.<suffix> of NAME.jsonl or NAME.jsonl.gz."""
    summary = path.with_suffix("") if path.suffix == ".gz" else path
    return path.with_name(f"{stem_of(summary)}.{suffix}")


def read_if_there(path: Path) -> list[Record]:
    return read_json_lines(path) if path.is_file() else []


def examples_files(path: Path, rows: Sequence[Record]) -> list[Path]:
    """The examples files that rows name, as written or in the summary's folder; else NAME's."""
    named = dict.fromkeys(row["examples_file"] for row in rows if row.get("examples_file"))
    found = [p if p.is_file() else path.parent / p.name for p in map(Path, named)]
    return found or [beside(path, "examples.jsonl")]


def policy_examples(path: Path, rows: Sequence[Record], missing: list[str]) -> list[Record]:
    """Records of the policy of an idealized run: of the examples file that its rows name, else of
    what it scored itself."""
    if any(row.get("examples_file") for row in rows):
        return read_examples(examples_files(path, rows), rows, missing)
    for suffix in ("policy.examples.jsonl", "examples.jsonl"):
        records = read_if_there(beside(path, suffix))
        if records and {record["model"] for record in records} == {row["model"] for row in rows}:
            return records
    missing.append(
        "no examples file of its model is named in it, or lies beside it: no pairs of it"
    )
    return []


def read_examples(
    files: Sequence[Path], rows: Sequence[Record], missing: list[str]
) -> list[Record]:
    """Records of examples files that belong to a summary (by the hash of their configuration, else
    by their model), in the order of the data; to `missing` a sentence is added about each that is
    not there, or is of another run."""
    key = "config_hash" if any("config_hash" in row for row in rows) else "model"
    known = {row.get(key) for row in rows}
    records: list[Record] = []
    for file in files:
        if not file.is_file():
            missing.append(f"no {file.name}: no pairs are shown")
            continue
        found = read_json_lines(file)
        needed = {"id", "dataset", "prompt", "ranks", "completions"}
        for number, record in enumerate(found, start=1):
            if not needed <= record.keys():
                raise ValueError(f"{file}: row {number}: not an examples file")
        if {record.get(key) for record in found} <= known:
            records += found
        else:
            missing.append(f"{file.name} is of another run than the summary: no pairs are shown")
    return sorted(records, key=lambda record: (record["dataset"], record["row"], record["id"]))
