r"""Ranking accuracy of a language model on preference datasets (Fig. 1, Tables 2-5).

    python calculate_calibration_metrics.py --lm-name-or-path gpt2 \
        --output-dir results --output-filename gpt2.jsonl

Writes DIR/NAME.jsonl (one line per dataset, normalization and metric), NAME.examples.jsonl (one
line per example, with the log-likelihood of every completion), NAME.config.json and NAME.png, and
NAME.groups.png where the data have groups (subset, domain, …). A killed run resumes from the
examples file when the same command is given again. Many devices:

    torchrun --nproc_per_node 8 calculate_calibration_metrics.py …
"""

import argparse
from collections.abc import Sequence
from typing import Any

from ranking.data.hub import DATASETS
from ranking.metrics.accuracy import summarize_dataset
from ranking.metrics.benchmarks import summarize_benchmarks
from ranking.metrics.comparison import ComparisonRow, compare_models
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.outputs import Output, plan_output
from ranking.plumbing.processes import process_rank
from ranking.plumbing.result_files import write_json_lines
from ranking.plumbing.wandb_runs import finishing_wandb, start_wandb
from ranking.reports.accuracy import (
    log_accuracy,
    plot_accuracy_by_group,
    plot_ranking_accuracy,
    show_accuracy,
)
from ranking.reports.benchmarks import show_benchmarks
from ranking.reports.comparison import plot_comparison, show_comparison
from ranking.reports.groups import has_groups
from ranking.reports.style import draw
from ranking.scoring.comparable import (
    check_comparable,
    compared_runs,
    planned_scoring_run,
    read_scoring_run,
    shared_examples,
)
from ranking.scoring.datasets import load_datasets
from ranking.scoring.flags import (
    CONFIG_FLAGS,
    DATA_FLAGS,
    MODEL_FLAGS,
    add_scoring_arguments,
    parse_scoring_args,
    take,
)
from ranking.scoring.models import check_model_path, check_revision, find_model
from ranking.scoring.run_config import dataset_facts, make_run_config

COMPARED = ("compare.jsonl", "compare.png")
FILES_BESIDE = ("examples.jsonl", "config.json", "png", "groups.png", *COMPARED)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--lm-name-or-path", required=True,
        help="hub name, local directory, GGUF file, adapter directory, or SmolLM2-135M-Instruct",
    )  # fmt: skip
    add_scoring_arguments(parser, list(DATASETS))
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="EXAMPLES",
        help="examples files of other runs: every two models by McNemar's test",
    )  # fmt: skip
    args = parse_scoring_args(parser, argv)
    args.dataset = args.dataset or list(DATASETS)
    return args


def write_comparison(
    output: Output, runs: Sequence[tuple[str, Sequence[Any]]], seed: int
) -> list[ComparisonRow]:
    """Lines and picture of several runs on the same examples; the lines. None of a single run."""
    lines, picture = (output.beside(suffix) for suffix in COMPARED)
    if len(runs) == 1:
        for path in (lines, picture):
            path.unlink(missing_ok=True)  # of a run that was overwritten
        return []
    rows = compare_models(runs, seed)
    write_json_lines(lines, rows)
    draw(plot_comparison, rows, picture)
    return rows


def main(args: argparse.Namespace) -> None:
    flags = vars(args)
    others = [read_scoring_run(file) for file in args.compare]
    check_model_path(args.lm_name_or_path)
    check_revision("--revision", args.revision, args.lm_name_or_path)
    output = plan_output(
        args.output_dir,
        args.output_filename,
        args.overwrite,
        [*args.dataset, *args.compare],
        FILES_BESIDE,
    )
    datasets = load_datasets(args.dataset, **take(flags, DATA_FLAGS))
    found = find_model(args.lm_name_or_path, args.revision, args.dtype, args.device)
    config = make_run_config(found, datasets, **take(flags, CONFIG_FLAGS))
    planned = planned_scoring_run(found, datasets, config)._replace(name="this run")
    for other in others:
        check_comparable(planned, other, own_templates=True)
        if not shared_examples(planned.records, other.records):
            raise ValueError(f"--compare {other.name}: it has no example of this run")

    from ranking.scoring.score import score_datasets  # PyTorch: only when it is needed

    scored = score_datasets(
        found, datasets, output, config, args.overwrite, **take(flags, MODEL_FLAGS)
    )
    if process_rank() > 0:
        return  # the first process has all records and reports
    parts = [
        (result.records, {**dataset_facts(data, config), **result.facts})
        for data, result in zip(datasets, scored)
        if result.records
    ]
    records = [record for of_dataset, _ in parts for record in of_dataset]
    rows: list[Any] = []
    for of_dataset, common in parts:
        rows += summarize_dataset(of_dataset, common, args.include_ties, args.seed)
    rows += summarize_benchmarks(parts, args.seed)

    draw(plot_ranking_accuracy, rows, output.picture)
    groups = output.beside("groups.png") if has_groups(rows) else None
    if groups is not None:
        draw(plot_accuracy_by_group, rows, groups)
    else:
        output.beside("groups.png").unlink(missing_ok=True)  # of a run that was overwritten
    comparison = write_comparison(output, compared_runs(found.name, records, others), args.seed)
    write_json_lines(output.summary, rows)  # last: it marks the run as finished
    show_accuracy(rows)
    show_benchmarks(rows)
    print(f"summary   {output.summary}\nexamples  {output.examples}\npicture   {output.picture}")
    if groups is not None:
        print(f"groups    {groups}")
    if comparison:
        show_comparison(comparison)
        print("\n".join(f"compared  {output.beside(suffix)}" for suffix in COMPARED))
    if args.wandb_project:
        run = start_wandb(project=args.wandb_project, config=config)
        with finishing_wandb(run):
            log_accuracy(run, rows, records, output.picture, groups)


if __name__ == "__main__":
    run_script(main, parse_args())
