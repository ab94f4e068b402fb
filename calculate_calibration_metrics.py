r"""Ranking accuracy of a language model on preference datasets (Fig. 1, Tables 2-5), and its
implicit rewards against a reference (Remark 2.5).

    python calculate_calibration_metrics.py --lm-name-or-path gpt2 \
        --output-dir results --output-filename gpt2.jsonl

Writes DIR/NAME.jsonl (one line per dataset, normalization and metric), NAME.examples.jsonl (one
line per example, with the log-likelihood of every completion), NAME.config.json and NAME.png, and
NAME.groups.png where the data have groups (subset, domain, …). With a reference, scored now into
NAME.reference.examples.jsonl or read from the examples file of an earlier run, also
NAME.rewards.jsonl (one line per pair) and NAME.rewards.png. A killed run resumes from the examples
files when the same command is given again. Many devices:

    torchrun --nproc_per_node 8 calculate_calibration_metrics.py …
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranking.data.hub import DATASETS
from ranking.metrics.accuracy import summarize_dataset
from ranking.metrics.benchmarks import summarize_benchmarks
from ranking.metrics.comparison import ComparisonRow, compare_models
from ranking.metrics.rewards import BETA, RewardPair
from ranking.plumbing.command_line import checked, make_parser, run_script
from ranking.plumbing.outputs import Output, plan_output, take_output
from ranking.plumbing.processes import process_rank
from ranking.plumbing.result_files import Record, write_json_lines
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
from ranking.reports.rewards import log_rewards, plot_rewards, show_rewards
from ranking.reports.style import draw
from ranking.scoring.comparable import (
    ScoringRun,
    check_comparable,
    check_compared,
    compared_runs,
    read_scoring_runs,
    refuse_same_file,
    shared_examples,
)
from ranking.scoring.datasets import load_datasets
from ranking.scoring.flags import (
    CONFIG_FLAGS,
    DATA_FLAGS,
    MODEL_FLAGS,
    add_scoring_arguments,
    parse_scoring_args,
    refuse_idle_flags,
    take,
)
from ranking.scoring.implicit_rewards import implicit_rewards
from ranking.scoring.runs import (
    check_models,
    check_ties_are_there,
    describe_run,
    files_of_scoring,
    plan_runs,
    scored_runs,
)

EXAMPLES = {"examples": "examples.jsonl", "reference examples": "reference.examples.jsonl"}
FILES_BESIDE = {
    "picture": "png", "groups picture": "groups.png",
    "rewards": "rewards.jsonl", "rewards picture": "rewards.png",
    "comparison": "compare.jsonl", "comparison picture": "compare.png",
}  # fmt: skip


def check_all_runs(
    policy: ScoringRun,
    reference: ScoringRun | None,
    others: Sequence[ScoringRun],
    include_ties: bool,
) -> None:
    """Raise ValueError where these runs do not go together, before anything is scored.

    others: the runs that --compare names.
    """
    if include_ties and policy.found is None:
        check_ties_are_there(policy)
    if reference is not None:
        refuse_same_file(policy, reference)
        check_comparable(policy, reference)
        if not shared_examples(policy.records, reference.records):
            raise ValueError(f"{policy.name} and {reference.name} have no example in common")
    check_compared(policy, others)


def write_accuracy(
    output: Output,
    rows: list[Any],
    pairs: Sequence[RewardPair],
    comparison: Sequence[ComparisonRow],
) -> dict[str, Path]:
    """Write lines and pictures, the summary last: it marks the run as finished. Where each is.

    What a run that is overwritten had, and this one has not, is removed.
    """
    made: dict[str, tuple[Sequence[Any], Any]] = {  # rows, and what draws them
        "picture": (rows, plot_ranking_accuracy),
        "groups picture": (rows if has_groups(rows) else [], plot_accuracy_by_group),
        "rewards": (pairs, None),
        "rewards picture": (pairs, plot_rewards),
        "comparison": (comparison, None),
        "comparison picture": (comparison, plot_comparison),
    }
    files = {name: output.beside(suffix) for name, suffix in FILES_BESIDE.items()}
    take_output(output)
    for name, (found, plot) in made.items():
        if not found:
            files.pop(name).unlink(missing_ok=True)
        elif plot is None:
            write_json_lines(files[name], found)
        else:
            draw(plot, found, files[name])
    write_json_lines(output.summary, rows)
    return {"summary": output.summary, **files}


def show_rankings(
    rows: list[Any],
    comparison: Sequence[ComparisonRow],
    written: dict[str, Path],
    scored: dict[str, Path],
) -> None:
    """The tables, and where each file is: what was written, and the examples that were scored."""
    show_accuracy(rows)
    show_rewards(rows)
    show_benchmarks(rows)
    if comparison:
        show_comparison(comparison)
    files = {**written, **scored}
    width = max(map(len, files))
    print("\n".join(f"{name:{width}} {path}" for name, path in files.items()))


def log_rankings(
    project: str,
    settings: Record,
    rows: list[Any],
    records: list[Record],
    written: dict[str, Path],
    pairs: Sequence[RewardPair],
) -> None:
    """Rows, pairs and pictures to wandb."""
    run = start_wandb(project=project, config=settings)
    with finishing_wandb(run):
        pictures = written["picture"], written.get("groups picture")
        log_accuracy(run, rows, records, *pictures, pairs)
        log_rewards(run, rows, written.get("rewards picture"))


# ---------------------------------------------------------------------------- command line
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    models = parser.add_argument_group("model (one of) and reference (at most one; default: none)")
    policy = models.add_mutually_exclusive_group(required=True)
    policy.add_argument(
        "--lm-name-or-path",
        help="hub name, local directory, GGUF file, adapter directory, or SmolLM2-135M-Instruct",
    )
    policy.add_argument(
        "--policy-examples", metavar="EXAMPLES", help="examples file of an earlier run: no model"
    )
    reference = models.add_mutually_exclusive_group()
    reference.add_argument(
        "--reference-name-or-path", help="model that it was tuned from, scored on the same examples"
    )
    reference.add_argument(
        "--reference-examples", metavar="EXAMPLES", help="examples file of that model"
    )
    models.add_argument("--reference-revision", help="hub revision of --reference-name-or-path")
    models.add_argument(
        "--beta", help=f"β of the implicit rewards β log π/π_ref (default: {BETA})",
        type=checked(float, lambda x: 1e-100 < x < 1e100, "a β between 1e-100 and 1e100"),
    )  # fmt: skip
    scoring_flags = add_scoring_arguments(parser, list(DATASETS))
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="EXAMPLES",
        help="examples files of other runs: every two models by McNemar's test",
    )  # fmt: skip
    args = parse_scoring_args(parser, argv)
    has_reference = (args.reference_name_or_path, args.reference_examples) != (None, None)
    if args.beta is not None and not has_reference:
        parser.error("--beta: rewards need --reference-name-or-path or --reference-examples")
    if args.lm_name_or_path is None and args.reference_name_or_path is None:
        refuse_idle_flags(parser, vars(args), scoring_flags, "--policy-examples")
    args.dataset = args.dataset or list(DATASETS)
    args.beta = args.beta or BETA
    return args


def main(args: argparse.Namespace) -> None:
    flags = vars(args)
    models = (args.lm_name_or_path, args.reference_name_or_path)
    revisions = (args.revision, args.reference_revision)
    files = (args.policy_examples, args.reference_examples)
    given, others = read_scoring_runs(files), read_scoring_runs(args.compare)
    check_models(models, revisions, ("--revision", "--reference-revision"))
    of_scoring = files_of_scoring(dict(zip(("", "reference."), models)))
    output = plan_output(
        args.output_dir, args.output_filename, args.overwrite,
        reads=[*args.dataset, *files, *args.compare],
        writes=[*FILES_BESIDE.values(), *of_scoring],
    )  # fmt: skip
    datasets = load_datasets(args.dataset, **take(flags, DATA_FLAGS)) if any(models) else []
    how = take(flags, (*CONFIG_FLAGS, "dtype", "device"))
    planned = plan_runs(given, models, revisions, datasets, **how)
    policy, reference = planned
    check_all_runs(policy, reference, others, args.include_ties)

    (policy, facts), (reference, _) = scored_runs(
        {"policy": policy, "reference": reference}, datasets, output, args.overwrite,
        take(flags, MODEL_FLAGS),
    )  # fmt: skip
    if process_rank() > 0:
        return  # the first process has all records and reports
    parts = describe_run(policy, datasets, facts, args.include_ties, args.seed)
    rows: list[Any] = []
    for of_dataset, common in parts:
        rows += summarize_dataset(of_dataset, common, args.include_ties, args.seed)
    rows += summarize_benchmarks(parts, args.seed)
    pairs: list[RewardPair] = []
    if reference is not None:
        how = take(flags, ("beta", "include_ties", "seed"))
        pairs, about_rewards = implicit_rewards(parts, policy, reference, **how)
        rows += about_rewards
    records = [record for of_dataset, _ in parts for record in of_dataset]
    compared = compared_runs(records[0]["model"], records, others)
    comparison = compare_models(compared, args.seed)
    written = write_accuracy(output, rows, pairs, comparison)
    show_rankings(rows, comparison, written, {
        name: output.beside(file) for name, file in EXAMPLES.items() if file in of_scoring
    })  # fmt: skip
    if args.wandb_project:
        settings = {**(policy.config or {}), **{k: str(v) for k, v in flags.items()}}
        log_rankings(args.wandb_project, settings, rows, records, written, pairs)


if __name__ == "__main__":
    run_script(main, parse_args())
