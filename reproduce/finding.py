r"""The paper's finding in one picture: what rankings are, could be, and stay under DPO.

    python -m reproduce.finding --idealized reproduce/results/smollm2_idealized_accuracy.jsonl \
        --dataset tatsu-lab/alpaca_eval --dynamics reproduce/results/claim/gamma1_seed0.jsonl.gz \
        --caption "SmolLM2-135M-Instruct after SFT, Anthropic/hh-rlhf, seed 0" \
        --output reproduce/results/finding.png

Left: observed ranking accuracy of one dataset and, between the smallest and the largest β, the
idealized one (Corollary 3.3). Right: DPO's training loss, and the share of followed training and of
validation pairs that are ranked wrongly, as percentages of where they began (§4).
"""

import argparse
from pathlib import Path

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ranking.metrics.dynamics import lowest_loss_step, means_by_step
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import read_json_lines
from ranking.reports.dynamics import read_dynamics
from ranking.reports.dynamics_pictures import name_run, run_caption
from ranking.reports.labels import plain, short
from ranking.reports.style import (
    BLUE,
    GREY,
    ORANGE,
    WIDTH,
    save_figure,
    subplots,
    whole_numbers,
)

SCORES = {  # calib_property → label, colour
    "ranks_length-normalized": ("per token, R̃", BLUE),
    "ranks_non-length-normalized": ("summed, R", ORANGE),
}
BELOW: dict = {"fontsize": 6, "loc": "upper center", "bbox_to_anchor": (0.5, -0.25)}  # legends


def draw_accuracies(axes, rows: list[dict]) -> None:
    """Observed accuracy as a mark, idealized accuracy as a bar with its median."""
    for y, (kind, (_, colour)) in enumerate(SCORES.items()):
        row = next(row for row in rows if row["calib_property"] == kind)
        low, median, high = (100 * x for x in row["min_median_max"])
        axes.barh(y, high - low, left=low, height=0.3, color=colour, alpha=0.3)
        axes.plot([median] * 2, [y - 0.15, y + 0.15], color=colour, linewidth=2)
        axes.plot(100 * row["observed_accuracy"], y, "o", color=colour, markersize=7)
    axes.axvline(50, color=GREY, linestyle="dashed", linewidth=1)
    legend = [
        Line2D([], [], marker="o", color=GREY, linestyle="none", label="observed"),
        Patch(color=GREY, alpha=0.3, label="ideal tuning, all β"),
        Line2D([], [], marker="|", color=GREY, linestyle="none", markersize=10, markeredgewidth=2,
               label="its median"),
        Line2D([], [], color=GREY, linestyle="dashed", label="a coin"),
    ]  # fmt: skip
    axes.legend(handles=legend, ncols=2, **BELOW)
    axes.set_yticks(range(2), [label for label, _ in SCORES.values()])
    axes.set_ylim(1.4, -0.4)
    shares = [x for row in rows for x in (row["observed_accuracy"], row["min_median_max"][0])]
    axes.set_xlim(min(30, 100 * min(shares) - 2), 102)
    axes.set_xlabel(f"pairs ranked as people did (%), n = {rows[0]['n']}")
    axes.set_title("what rankings are, and what they could be")
    axes.grid(False, axis="y")


def draw_training(axes, rows: list[dict]) -> None:
    """Loss and share of wrongly ranked pairs against the step, as shares of the first; of the
    validation pairs the latter, where some are wrong at first. ValueError where no training pairs
    are followed, or none was ranked wrongly at first."""
    means = means_by_step(rows, "train")
    wrong = {
        part: {step: 1 - mean["accuracy"] for step, mean in means_by_step(rows, part).items()}
        for part in ("train", "validation")
    }
    curves = [  # label, step → value, colour, marker, line
        ("training loss", {step: mean["loss"] for step, mean in means.items()}, GREY, "s", "-"),
        ("wrongly ranked training pairs", wrong["train"], ORANGE, "o", "-"),
        ("wrongly ranked validation pairs", wrong["validation"], ORANGE, "^", ":"),
    ]
    begins = [next(iter(values.values()), 0) for _, values, *_ in curves]
    if not all(begin > 0 for begin in begins[:2]):
        raise ValueError("no followed training pairs, or none that is ranked wrongly at first")
    for (label, values, colour, marker, line), begin in zip(curves, begins):
        if begin > 0:
            shares = [100 * value / begin for value in values.values()]
            axes.plot(list(values), shares, line, color=colour, marker=marker, label=label)
    axes.set_ylim(0, 115)
    axes.axvline(lowest_loss_step(rows), color=GREY, linestyle="dashed", linewidth=1,
                 label="lowest validation loss")  # fmt: skip
    axes.legend(ncols=2, **BELOW)
    axes.set_xlabel(f"step of DPO (n = {next(iter(means.values()))['n']} training pairs)")
    axes.set_ylabel("% of where it began")
    axes.set_title("what DPO lowers, and what it leaves")
    whole_numbers(axes.xaxis)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--idealized", required=True, type=Path,
                        help="summary of calculate_upper_bound_rlhf.py")  # fmt: skip
    parser.add_argument("--dataset", required=True, help="one of its datasets")
    parser.add_argument("--dynamics", required=True, type=Path,
                        help="ranking_dynamics.jsonl of dpo.py")  # fmt: skip
    parser.add_argument("--caption", help="model, data and seed of the dynamics")
    parser.add_argument("--output", required=True, type=Path, help=".png or .pdf")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    rows = [row for row in read_json_lines(args.idealized) if row["dataset_name"] == args.dataset]
    if not rows:
        raise ValueError(f"{args.idealized}: no row of {args.dataset}")
    dynamics = read_dynamics(args.dynamics)
    figure, (left, right) = subplots(1, 2, figsize=(WIDTH, 2.7))
    draw_accuracies(left, rows)
    draw_training(right, dynamics)
    run = run_caption(dynamics, args.caption or name_run(args.dynamics))
    where = f"{short(rows[0]['model'])}, {args.dataset}"
    save_figure(figure, args.output, f"left: {plain(where)}; right: {run}")
    print(args.output)


if __name__ == "__main__":
    run_script(main, parse_args())
