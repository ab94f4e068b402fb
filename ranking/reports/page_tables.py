"""The tables of a page: what was scored and how, and models × datasets × groups."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ranking.reports.accuracy import accuracies_of
from ranking.reports.groups import groups_to_show
from ranking.reports.labels import (
    by_normalization,
    dataset_of,
    model_names,
    page_label,
    refuse_two_runs,
    setting_of,
)
from ranking.reports.page_files import ResultFile
from ranking.reports.tables import Table, interval_of, percent, with_interval


def run_table(files: Sequence[ResultFile]) -> Table:
    """What was scored, and how: a line per file."""
    columns = ["file", "written", "model", "commit", "reference", "computed in", "texts"]
    lines = []
    for file in files:
        written = datetime.fromtimestamp(file.path.stat().st_mtime, UTC)
        row, models = file.rows[0], dict.fromkeys(row.get("model", "–") for row in file.rows)
        model = ", ".join(models) if len(models) < 4 else f"{len(models)}, from {row['model']} on"
        references = [r.get("reference_model") or r.get("against") for r in file.rows]
        where = [row.get(key) for key in ("dtype", "device", "quantization", "path")]
        commit = row.get("model_commit") or row.get("revision") or ""
        texts = [
            f"chat template: {'yes' if row['chat_template'] else 'no'}"
            if "chat_template" in row else "",
            f"EOS scored: {'yes' if row['add_eos'] else 'no'}" if "add_eos" in row else "",
            f"at most {row['max_length']} tokens" if row.get("max_length") else "",
        ]  # fmt: skip
        lines.append(
            [file.path.name, f"{written:%Y-%m-%d %H:%M}", model, shown(commit[:12]),
             shown(next(filter(None, references), None)),
             shown(", ".join(filter(None, where))), shown(", ".join(filter(None, texts)))]
        )  # fmt: skip
    return columns, lines


def data_table(files: Sequence[ResultFile]) -> Table:
    """Which data: a line per file and dataset."""
    columns = ["file", "dataset", "data commit", "n", "sample", "joined by", "dropped",
               "prompts cut"]  # fmt: skip
    lines = []
    for file in files:
        by_dataset: dict[str, Any] = {}
        for row in file.rows:
            if row.get("dataset_name") and "benchmark" not in row:
                # the first: others are of fewer examples (correlations), or of pairs (rewards)
                by_dataset.setdefault(dataset_of(row), row)
        for dataset, row in by_dataset.items():
            size = "all" if row.get("sample_size") is None else str(row["sample_size"])
            drops: dict[str, int] = {}
            for key in ("dropped", "dropped_examples", "dropped_pairs"):
                drops |= row.get(key) or {}
            joined = row.get("joined_by") or {}
            lines.append(
                [file.path.name, dataset, shown((row.get("dataset_commit") or "")[:12]),
                 str(row["n"]),
                 f"{size}, seed {row['seed']}" if "seed" in row else "–",
                 shown(", ".join(f"{json.dumps(s)} ({n})" for s, n in joined.items())),
                 ", ".join(f"{reason}: {n}" for reason, n in drops.items()) or "0",
                 shown(row.get("n_truncated_prompts"))]
            )  # fmt: skip
    return columns, lines


def shown(value: Any) -> str:
    return "–" if value in (None, "") else str(value)


def result_table(rows: Sequence[Any]) -> Table:
    """Models × datasets × groups with R̃, R, chance; baselines and reward accuracy where any row
    has them."""
    accuracies = accuracies_of(rows)
    refuse_two_runs(accuracies, "calib_property")
    names = model_names(row["model"] for row in accuracies)
    rewards = {
        (row["model"], setting_of(row), row["calib_property"]): row
        for row in rows
        if row["distance_metric"] == "reward_acc"
    }
    baselines = any(row.get("baselines") for row in accuracies)
    at_equal_length = any(row.get("at_equal_length") is not None for row in accuracies)
    columns = ["model", "dataset", "group", "n", "chance", "R̃ (per token)", "R (summed)"]
    columns += ["shorter", "longer"] * baselines
    columns += ["R̃ at equal length", "R at equal length"] * at_equal_length
    columns += ["reward accuracy per token", "reward accuracy"] * bool(rewards)
    lines = []
    for pair in by_normalization(accuracies):
        row = pair[1]
        own = [rewards.get((r["model"], setting_of(r), r["calib_property"])) for r in pair]
        line = [names[row["model"]], page_label(row, accuracies), ""]
        lines.append(line + number_cells(pair, own, columns))
        for label, entries in groups_to_show(pair):
            numbers = [""] * (len(columns) - 3)
            if entries:
                numbers = number_cells(
                    entries, [group_of(reward, entries[0]) for reward in own], columns
                )
            lines.append([*line[:2], label.strip(), *numbers])
    return columns, lines


def group_of(row: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry of a row's groups, or of its means over groups, for the same group."""
    kind = "by_group" if "group" in entry else "mean_over_groups"
    for other in (row or {}).get(kind, []):
        if (other["column"], other.get("group")) == (entry["column"], entry.get("group")):
            return other
    return None


def number_cells(
    both: Sequence[Mapping[str, Any]],
    rewards: Sequence[Mapping[str, Any] | None],
    columns: Sequence[str],
) -> list[str]:
    """Cells from n on. both: rows of R̃ and R, or entries of a group; rewards: the same of reward
    accuracy."""
    baselines = both[-1].get("baselines") or {}
    cells = {
        "n": str(both[-1].get("n", "")),
        "chance": percent(both[-1]["chance"]),
        "R̃ (per token)": share_cell(both[0]),
        "R (summed)": share_cell(both[1]),
        "shorter": percent(baselines.get("shorter")),
        "longer": percent(baselines.get("longer")),
        "R̃ at equal length": equal_length_cell(both[0]),
        "R at equal length": equal_length_cell(both[1]),
        "reward accuracy per token": share_cell(rewards[0]),
        "reward accuracy": share_cell(rewards[1]),
    }
    return [cells[column] for column in columns if column in cells]


def share_cell(found: Mapping[str, Any] | None) -> str:
    """The share of a row, or of an entry of a group, with its interval, in percent."""
    if found is None:
        return "–"
    value = found.get("distance_metric_value_mean", found.get("value"))
    return with_interval(value, interval_of(found), digits=1)


def equal_length_cell(row: Mapping[str, Any]) -> str:
    interval = row.get("at_equal_length_95") or (None, None)
    return with_interval(row.get("at_equal_length"), interval, digits=1)


def metric_table(rows: Sequence[Any]) -> Table:
    """Lists of more than two completions by the other metrics."""
    names = model_names(row["model"] for row in rows)
    lines = []
    for pair in by_normalization(rows, "distance_metric"):
        row = pair[1]
        cells = [f"{of_kind['distance_metric_value_mean']:.3f}" for of_kind in pair]
        what = [names[row["model"]], page_label(row, rows), row["distance_metric"]]
        lines.append([*what, str(row["n"]), *cells])
    return ["model", "dataset", "metric", "n", "R̃ (per token)", "R (summed)"], lines
