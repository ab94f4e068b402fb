r"""Ranking accuracy of a language model on preference datasets (Fig. 1, Tables 2-5).

    python calculate_calibration_metrics.py --lm-name-or-path gpt2 \
        --output-dir results --output-filename gpt2.jsonl

Writes DIR/NAME.jsonl (one line per dataset, normalization and metric), NAME.examples.jsonl (one
line per example, with the log-likelihood of every completion), NAME.config.json and NAME.png.
A killed run resumes from the examples file when the same command is given again. Many devices:

    torchrun --nproc_per_node 8 calculate_calibration_metrics.py …
"""

import argparse
import sys
from importlib.metadata import version

from ranking.data.examples import dataset_label, joining
from ranking.data.hub import DATASETS
from ranking.metrics.accuracy import compare_runs, summarize_dataset
from ranking.plumbing.command_line import make_parser, process_rank, run_script
from ranking.plumbing.result_files import (
    check_inputs,
    hash_config,
    output_paths,
    row_key,
    write_json_lines,
)
from ranking.plumbing.wandb_runs import finishing_wandb, start_wandb
from ranking.reports.accuracy import log_accuracy, show_accuracy, show_comparison
from ranking.scoring.comparable import Run, announce_uneven_cuts, check_comparable, shared_examples
from ranking.scoring.examples_file import (
    LIBRARIES,
    config_beside,
    load_examples,
    planned_records,
    scoring_settings,
)
from ranking.scoring.flags import add_scoring_arguments, check_scoring_arguments
from ranking.scoring.models import check_model_path, check_revision


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--lm-name-or-path", required=True,
        help="hub name, local directory, GGUF file, adapter directory, or SmolLM2-135M-Instruct",
    )  # fmt: skip
    add_scoring_arguments(parser, list(DATASETS))
    parser.add_argument(
        "--compare", metavar="EXAMPLES", help="examples file of another run: McNemar's test"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    check_scoring_arguments(args, list(DATASETS))
    other = load_examples(args.compare) if args.compare else None
    other_config = config_beside(args.compare, other) if other is not None else None
    check_model_path(args.lm_name_or_path)
    paths = output_paths(args.output_dir, args.output_filename)
    check_inputs(paths, [*args.dataset, args.compare])
    if paths["summary"].exists() and not args.overwrite:
        raise ValueError(
            f"{paths['summary']} exists: choose another --output-filename or pass --overwrite"
        )
    check_revision("--revision", args.revision, args.lm_name_or_path)
    from ranking.scoring.score import (
        load_datasets,
        prepare_outputs_once,
        run_config,
        score_to_file,
    )

    datasets = load_datasets(args)
    config = run_config(args, datasets, args.lm_name_or_path, args.revision)
    if other is not None:
        ours = Run("this run", planned_records(datasets), config, planned=True)
        check_comparable(ours, Run(args.compare, other, other_config, planned=False))
        if not {*map(row_key, ours.records)} & {*map(row_key, other)}:
            raise ValueError(f"--compare {args.compare}: it has no example of this run")
    earlier = prepare_outputs_once(paths, config, args.overwrite)
    records, facts = score_to_file(args, datasets, config, paths["examples"], earlier)
    if process_rank() > 0:
        return  # the first process has all records and reports

    rows = []
    for data, dropped in zip(datasets, facts.pop("dropped")):
        common = {
            "model": args.lm_name_or_path,
            "dataset_name": data.name,
            "dataset_config": data.config,
            "dataset_split": data.split,
            "dataset_commit": data.commit,
            "dropped": dropped,
            "joined_by": None if args.chat_template else joining(data.examples),
            "include_ties": args.include_ties,
            "seed": args.seed,
            "revision": args.revision,
            "config_hash": hash_config(config),
            **scoring_settings(config, data.name, data.split),
            **facts,
            "versions": {name: version(name) for name in LIBRARIES},
        }
        chosen = [r for r in records if (r["dataset"], r["split"]) == (data.name, data.split)]
        if not chosen:
            where = dataset_label(data.name, data.split)
            print(f"{where}: no example left to score ({dropped})", file=sys.stderr)
            continue
        rows += summarize_dataset(chosen, common, args.include_ties, args.seed)

    from ranking.reports.accuracy import plot_ranking_accuracy
    from ranking.reports.style import draw

    draw(plot_ranking_accuracy, rows, paths["picture"])
    write_json_lines(paths["summary"], rows)  # last: it marks the run as finished
    show_accuracy(rows)
    if other is not None:
        shared = shared_examples(records, other)
        announce_uneven_cuts(shared)
        show_comparison(compare_runs(shared), args.compare)
    print(
        f"summary   {paths['summary']}\nexamples  {paths['examples']}\npicture   {paths['picture']}"
    )
    if args.wandb_project:
        run = start_wandb(project=args.wandb_project, config=config)
        with finishing_wandb(run):
            log_accuracy(run, rows, records, paths["picture"])


if __name__ == "__main__":
    run_script(main, parse_args())
