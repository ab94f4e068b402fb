"""The README's result tables, from result files and the published numbers.

python reproduce/readme_tables.py
"""

import json
import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from plot_results import lowest_loss_step, means_by_step

HERE = Path(__file__).parent


def read_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / "results" / name).read_text().splitlines()]


def percent_interval(row: dict) -> str:
    low, high = (100 * x for x in row["wilson_95"])
    return f"{100 * row['distance_metric_value_mean']:.1f} [{low:.0f}, {high:.0f}]"


def print_ranking_table() -> None:
    """R̃ and R of SmolLM2 beside the published rows of two models."""
    published = json.loads((HERE / "paper_tables.json").read_text())["ranking_accuracy"]
    print("| dataset | n | chance | SmolLM2 R̃ | SmolLM2 R | GPT-2 R̃ / R | Pythia-1.4B R̃ / R |")
    print("|---|---|---|---|---|---|---|")
    rows = [r for r in read_rows("smollm2_ranking_accuracy.jsonl") if r["distance_metric"] == "acc"]
    for name, pair in groupby(rows, key=lambda row: row["dataset_name"]):
        normalized, summed = pair
        key = f"{name}:{summed['dataset_split']}"
        paper = [
            " / ".join(str(x) for x in published[model][key])
            for model in ("gpt2", "EleutherAI/pythia-1.4b")
        ]
        cells = [name, str(summed["n"]), f"{100 * summed['chance']:.1f}"]
        cells += [percent_interval(normalized), percent_interval(summed), *paper]
        print(f"| {' | '.join(cells)} |")


def print_idealized_table() -> None:
    """R̃, R̃*, R and R* of SmolLM2 on real votes beside Table 1."""
    published = json.loads((HERE / "paper_tables.json").read_text())["idealized_table1"]
    print("| model, data | pairs | R̃ | R̃* min/med/max | R | R* min/med/max |")
    print("|---|---|---|---|---|---|")
    for name, group in groupby(
        read_rows("smollm2_idealized_accuracy.jsonl"), key=lambda row: row["dataset_name"]
    ):
        rows = list(group)
        cells = []
        for kind in ("length-normalized", "non-length-normalized"):
            row = next(r for r in rows if r["calib_property"] == f"ranks_{kind}")
            triple = " / ".join(f"{100 * x:.1f}" for x in row["min_median_max"])
            cells += [f"{100 * row['observed_accuracy']:.1f}", triple]
        print(f"| SmolLM2, {name} | {rows[0]['n']} | {' | '.join(cells)} |")
    for model, row in published.items():
        triples = (" / ".join(map(str, row[key])) for key in ("R_norm_star", "R_star"))
        normalized, summed = triples
        print(f"| paper: {model} | – | {row['R_norm']} | {normalized} | {row['R']} | {summed} |")


def print_dynamics_table(name: str) -> None:
    """The four groups at the start, at the lowest validation loss, and at the end."""
    rows = read_rows(name)
    best = lowest_loss_step(rows)
    print("| pairs | step | loss | accuracy | flipped to correct | → incorrect | reward margin |")
    print("|---|---|---|---|---|---|---|")
    for part in ("train", "validation"):
        summary = means_by_step(rows, part)
        for step in sorted({min(summary), best, max(summary)}):
            chosen = [row for row in rows if (row["part"], row["step"]) == (part, step)]
            counts = {group: 0 for group in summary[step]["share"]}
            for row in chosen:
                counts[row["group"]] += 1
            wrong = counts["incorrect_to_correct"] + counts["incorrect_to_incorrect"]
            right = len(chosen) - wrong
            margin = sum(row["reward_margin"] for row in chosen) / len(chosen)
            cells = [
                f"{part} ({len(chosen)})",
                f"{step}{' (lowest)' if step == best else ''}",
                f"{summary[step]['loss']:.3f}",
                f"{100 * summary[step]['accuracy']:.1f} %",
                f"{counts['incorrect_to_correct']} of {wrong} "
                f"({100 * counts['incorrect_to_correct'] / wrong:.1f} %)",
                f"{counts['correct_to_incorrect']} of {right}",
                f"{margin:.2f}",
            ]
            print(f"| {' | '.join(cells)} |")


def parse_args(argv: list[str] | None = None):
    import argparse

    return argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)


if __name__ == "__main__":
    parse_args()
    print_ranking_table()
    print()
    print_idealized_table()
    print()
    print_dynamics_table("smollm2_dpo_dynamics.jsonl")
