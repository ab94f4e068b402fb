"""The paper's figures from result files, and a page of everything that opens in a browser.

python plot_results.py ranking-accuracy results/gpt2.jsonl --output fig1.png
python plot_results.py rewards results/dpo.rewards.jsonl --output rewards.png
python plot_results.py dynamics DPO_DIR/ranking_dynamics.jsonl --output fig2.png
python plot_results.py flips DPO_DIR/ranking_dynamics.jsonl --output flips.png
python plot_results.py losses DPO_DIR*/ranking_dynamics.jsonl --output fig9b.png
python plot_results.py win-rate results/win_rate.jsonl --output fig4.png
python plot_results.py page results/gpt2.jsonl results/win_rate.jsonl --output report.html
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import read_json_lines
from ranking.reports.accuracy import (
    accuracies_of,
    plot_accuracy_by_group,
    plot_ranking_accuracy,
)
from ranking.reports.comparison import plot_comparison
from ranking.reports.dynamics import chosen_step_beside, read_dynamics
from ranking.reports.dynamics_pictures import (
    PICTURES_OF_RUN,
    name_run,
    name_runs,
    plot_sweep,
)
from ranking.reports.flips import plot_flips
from ranking.reports.idealized import (
    plot_critical_betas,
    plot_idealized_by_group,
    plot_idealized_curves,
    plot_required_loss,
)
from ranking.reports.length import plot_length_difference
from ranking.reports.loss_pictures import plot_losses
from ranking.reports.page import write_page
from ranking.reports.page_files import read_result_file
from ranking.reports.rewards import plot_rewards
from ranking.reports.win_rate import plot_win_rate

# figure → function, columns its files have, where they come from
SUMMARIES: dict[str, tuple[Callable, set[str], str]] = {
    "ranking-accuracy": (
        plot_ranking_accuracy, {"wilson_95"}, "calculate_calibration_metrics.py"
    ),
    "accuracy-by-group": (
        plot_accuracy_by_group, {"by_group"}, "calculate_calibration_metrics.py"
    ),
    "rewards": (
        plot_rewards, {"reward_margin", "model"}, "calculate_calibration_metrics.py, .rewards.jsonl"
    ),
    "idealized-accuracy": (
        plot_idealized_curves, {"critical_betas"}, "calculate_upper_bound_rlhf.py, .curve.jsonl"
    ),
    "critical-betas": (
        plot_critical_betas, {"critical_betas"}, "calculate_upper_bound_rlhf.py, .curve.jsonl"
    ),
    "idealized-by-group": (
        plot_idealized_by_group, {"by_group", "beta"}, "calculate_upper_bound_rlhf.py"
    ),
    "required-loss": (
        plot_required_loss, {"required_loss"}, "calculate_upper_bound_rlhf.py, .pairs.jsonl"
    ),
    "win-rate": (
        plot_win_rate, {"win_rate", "squared_distance"}, "calculate_win_rate.py --checkpoints"
    ),
    "comparison": (
        plot_comparison, {"tests"}, "calculate_calibration_metrics.py --compare, .compare.jsonl"
    ),
    "length-difference": (plot_length_difference, {"bins"}, "reproduce/length_difference.py"),
}  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "figure", choices=(*SUMMARIES, "sweep", *PICTURES_OF_RUN, "flips", "losses", "page"),
        help="which of the paper's figures; page: tables, pictures and pairs in one HTML file",
    )  # fmt: skip
    parser.add_argument(
        "files", nargs="+", type=Path,
        help="summaries of one or several runs; one ranking_dynamics.jsonl; for sweep and losses, "
        "several; for page, summaries and dynamics of any kind: what lies beside a summary "
        "(NAME.compare.jsonl, NAME.rewards.jsonl, NAME.examples.jsonl, …) it finds itself",
    )  # fmt: skip
    parser.add_argument(
        "--at", choices=("lowest-loss", "last"), default="lowest-loss",
        help="step of sweep and flips: of the lowest validation loss (the paper's), or the last",
    )  # fmt: skip
    parser.add_argument(
        "--caption",
        help="model, data and seed of dynamics (default: what run_config.json beside them says)",
    )
    parser.add_argument("--output", required=True, type=Path, help=".png or .pdf; of a page .html")
    args = parser.parse_args(argv)
    if args.at == "last" and args.figure not in ("sweep", "flips"):
        parser.error(f"--at: {args.figure} does not take it, sweep and flips do")
    if args.caption and args.figure not in (*PICTURES_OF_RUN, "sweep", "flips", "losses"):
        parser.error(f"--caption: {args.figure} does not take it, pictures of dynamics do")
    return args


def main(args: argparse.Namespace) -> None:
    suffixes = (".html",) if args.figure == "page" else (".png", ".pdf")
    if args.output.suffix not in suffixes or not args.output.parent.is_dir():
        raise ValueError(
            f"--output {args.output}: give a {' or '.join(suffixes)} in a directory that exists"
        )
    if args.figure == "page":
        try:
            write_page([read_result_file(file) for file in args.files], args.output)
        except KeyError as error:
            raise ValueError(
                f"no {error} in a line of one of these files: write them anew"
            ) from None
    elif args.figure in (*PICTURES_OF_RUN, "flips"):
        if len(args.files) > 1:
            raise ValueError(f"{args.figure} takes one dynamics file, found {len(args.files)}")
        followed, run = read_dynamics(args.files[0]), args.caption or name_run(args.files[0])
        if args.figure == "flips":
            plot_flips(followed, args.output, args.at, run)
        else:
            saved = chosen_step_beside(args.files[0])
            PICTURES_OF_RUN[args.figure][0](followed, args.output, run, saved)
    elif args.figure in ("sweep", "losses"):
        runs = {str(file): read_dynamics(file) for file in args.files}
        name = name_run(args.files[0]) if len(runs) == 1 else name_runs(args.files)
        run = args.caption or name
        if args.figure == "losses":
            plot_losses(runs, args.output, run)
        else:
            plot_sweep([*runs.values()], args.output, args.at, run)
    else:
        plot, columns, script = SUMMARIES[args.figure]
        rows: list[Any] = []
        for file in args.files:
            found: list[Any] = read_json_lines(file)
            if plot in (plot_ranking_accuracy, plot_accuracy_by_group):  # beside other metrics
                found = accuracies_of(found)
            if not found or not all(columns <= row.keys() for row in found):
                raise ValueError(f"{file}: not a file of {script}")
            rows += found
        try:
            plot(rows, args.output)
        except KeyError as error:
            names = ", ".join(map(str, args.files))
            raise ValueError(f"{names}: not a file of {script}: no {error}") from None
    print(args.output)


if __name__ == "__main__":
    run_script(main, parse_args())
