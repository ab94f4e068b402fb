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
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranking.data.examples import dataset_label
from ranking.data.hub import DATASETS
from ranking.metrics.accuracy import summarize_dataset
from ranking.metrics.benchmarks import IMPLICIT_REWARD, summarize_benchmarks
from ranking.metrics.comparison import ComparisonRow, compare_models
from ranking.metrics.rewards import (
    BETA,
    RewardPair,
    reward_pairs,
    reward_records,
    rounding_of,
    summarize_rewards,
)
from ranking.plumbing.command_line import checked, make_parser, run_script
from ranking.plumbing.outputs import Output, plan_output, take_output
from ranking.plumbing.processes import announce, process_rank
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
    announce_uneven_cuts,
    check_comparable,
    check_compared,
    compared_runs,
    read_scoring_run,
    refuse_same_file,
    shared_examples,
    with_configurations,
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
from ranking.scoring.models import check_model_path, check_revision
from ranking.scoring.rated_pairs import dataset_key
from ranking.scoring.runs import (
    announce_uneven_tokens,
    check_ties_are_there,
    describe_run,
    group_records,
    plan_run,
    reference_columns,
    scored_run,
    that_count,
)

FILES_OF_SCORING = ("examples.jsonl", "config.json")  # what scoring a model writes
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


def implicit_rewards(
    parts: Sequence[tuple[list[Record], Record]],
    policy: ScoringRun,
    reference: ScoringRun,
    *,
    beta: float,
    include_ties: bool,
    seed: int,
) -> tuple[list[RewardPair], list[Any]]:
    """The pairs that both models scored, and lines of NAME.jsonl about their implicit rewards.

    parts: the policy's records of each dataset, and what every line says of it.
    """
    of_reference = group_records(reference.records)
    about_reference = reference_columns(reference, beta)
    rounding = rounding_of(*((run.config or {}).get("dtype") for run in (policy, reference)))
    pairs: list[RewardPair] = []
    rows: list[Any] = []
    rewarded = []
    for records, common in parts:
        key = dataset_key(records[0])
        theirs = that_count(of_reference.get(key, []), include_ties)
        shared = shared_examples(records, theirs)
        alone = {"policy": len(records) - len(shared), "reference": len(theirs) - len(shared)}
        if any(alone.values()):
            said = ", ".join(f"{n} by the {which} only" for which, n in alone.items())
            announce(f"{dataset_label(*key)}: examples scored {said}: they have no rewards")
        announce_uneven_cuts(shared)
        announce_uneven_tokens(shared)
        columns = {**common, **about_reference, "not_shared": alone}
        of_dataset = list(reward_pairs(shared, beta))
        pairs += of_dataset
        sizes = [len(record["ranks"]) for record, _ in shared]
        rows += summarize_rewards(of_dataset, sizes, columns, rounding, seed)
        if shared:
            rewarded.append((reward_records(shared, beta), columns))
    return pairs, rows + summarize_benchmarks(rewarded, seed, IMPLICIT_REWARD)


def write_accuracy(
    output: Output,
    rows: list[Any],
    pairs: Sequence[RewardPair],
    comparison: Sequence[ComparisonRow],
) -> dict[str, Path]:
    """Write lines and pictures, the summary last: it marks the run as finished. Where each is.

    What a run that is overwritten had, and this one has not, is removed.
    """
    lines: dict[str, Sequence[Any]] = {"rewards": pairs, "comparison": comparison}
    drawn: dict[str, tuple[Any, Sequence[Any]]] = {
        "picture": (plot_ranking_accuracy, rows),
        "groups picture": (plot_accuracy_by_group, rows if has_groups(rows) else []),
        "rewards picture": (plot_rewards, pairs),
        "comparison picture": (plot_comparison, comparison),
    }
    files = {name: output.beside(suffix) for name, suffix in FILES_BESIDE.items()}
    take_output(output)
    for name in FILES_BESIDE:
        plot, found = drawn.get(name) or (None, lines[name])
        if not found:
            files.pop(name).unlink(missing_ok=True)
        elif plot is None:
            write_json_lines(files[name], found)
        else:
            draw(plot, found, files[name])
    write_json_lines(output.summary, rows)
    return {"summary": output.summary, **files}


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
        type=checked(float, lambda x: 0 < x < math.inf, "a positive and finite β"),
    )  # fmt: skip
    scoring_flags = add_scoring_arguments(parser, list(DATASETS))
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="EXAMPLES",
        help="examples files of other runs: every two models by McNemar's test",
    )  # fmt: skip
    args = parse_scoring_args(parser, argv)
    has_reference = args.reference_name_or_path or args.reference_examples
    if args.beta is not None and not has_reference:
        parser.error("--beta: rewards need --reference-name-or-path or --reference-examples")
    if not (args.lm_name_or_path or args.reference_name_or_path):
        refuse_idle_flags(parser, vars(args), scoring_flags, "--policy-examples")
    args.dataset = args.dataset or list(DATASETS)
    args.beta = args.beta or BETA
    return args


def main(args: argparse.Namespace) -> None:
    flags = vars(args)
    models = (args.lm_name_or_path, args.reference_name_or_path)
    files = (args.policy_examples, args.reference_examples)
    policy, reference = (read_scoring_run(file) if file is not None else None for file in files)
    others = [read_scoring_run(file) for file in args.compare]
    for name in filter(None, models):
        check_model_path(name)
    check_revision("--revision", args.revision, args.lm_name_or_path)
    check_revision("--reference-revision", args.reference_revision, args.reference_name_or_path)
    sides = [side for name, side in zip(models, ("", "reference.")) if name is not None]
    of_scoring = [f"{side}{file}" for side in sides for file in FILES_OF_SCORING]
    output = plan_output(
        args.output_dir, args.output_filename, args.overwrite,
        reads=[*args.dataset, *files, *args.compare],
        writes=[*FILES_BESIDE.values(), *of_scoring],
    )  # fmt: skip
    datasets = load_datasets(args.dataset, **take(flags, DATA_FLAGS)) if any(models) else []
    how_planned = take(flags, (*CONFIG_FLAGS, "dtype", "device"))
    if models[0]:
        policy = plan_run(models[0], args.revision, datasets, **how_planned)
    if models[1]:
        reference = plan_run(models[1], args.reference_revision, datasets, **how_planned)
    policy = with_configurations(policy, [reference, *others])
    if reference is not None:
        reference = with_configurations(reference, [policy])
    others = [with_configurations(other, [policy]) for other in others]
    check_all_runs(policy, reference, others, args.include_ties)

    how = (args.overwrite, take(flags, MODEL_FLAGS))
    roles = ("policy", "reference") if reference is not None else (None, None)
    policy, facts = scored_run(policy, datasets, output, *how, role=roles[0])
    if reference is not None:
        examples, config = (output.beside(f"reference.{file}") for file in FILES_OF_SCORING)
        beside = output._replace(examples=examples, config=config)
        reference, _ = scored_run(reference, datasets, beside, *how, role=roles[1])
    if process_rank() > 0:
        return  # the first process has all records and reports
    parts = describe_run(policy, datasets, facts, args.include_ties, args.seed)
    records = [record for of_dataset, _ in parts for record in of_dataset]
    if not records:
        raise ValueError(f"{policy.name}: every example is tied: give --include-ties")
    rows: list[Any] = []
    for of_dataset, common in parts:
        rows += summarize_dataset(of_dataset, common, args.include_ties, args.seed)
    rows += summarize_benchmarks(parts, args.seed)
    pairs: list[RewardPair] = []
    if reference is not None:
        pairs, about_rewards = implicit_rewards(
            parts, policy, reference,
            beta=args.beta, include_ties=args.include_ties, seed=args.seed,
        )  # fmt: skip
        rows += about_rewards

    runs = compared_runs(records[0]["model"], records, others)
    comparison = compare_models(runs, args.seed) if others else []
    written = write_accuracy(output, rows, pairs, comparison)
    show_accuracy(rows)
    show_rewards(rows)
    show_benchmarks(rows)
    if comparison:
        show_comparison(comparison)
    for name, side in zip(("examples", "reference examples"), ("", "reference.")):
        if side in sides:
            written[name] = output.beside(f"{side}examples.jsonl")
    width = max(map(len, written))
    print("\n".join(f"{name:{width}} {path}" for name, path in written.items()))
    if args.wandb_project:
        settings = {**(policy.config or {}), **{k: str(v) for k, v in flags.items()}}
        run = start_wandb(project=args.wandb_project, config=settings)
        with finishing_wandb(run):
            log_accuracy(run, rows, records, written["picture"], written.get("groups picture"),
                         pairs)  # fmt: skip
            log_rewards(run, rows, written.get("rewards picture"))


if __name__ == "__main__":
    run_script(main, parse_args())
