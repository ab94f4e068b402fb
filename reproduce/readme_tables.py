"""The README's result tables, from result files and the published numbers.

python reproduce/readme_tables.py
"""

import json
from itertools import groupby
from pathlib import Path

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
