r"""Idealized ranking accuracy and the alignment gap (Theorem 3.1, Corollary 3.3, Tables 1 and 6).

    python calculate_upper_bound_rlhf.py --reference-examples results/gpt2.examples.jsonl \
        --output-dir results --output-filename gpt2_idealized.jsonl

How accurate could perfect RLHF or DPO make the ranking, starting from a reference model, and how
far from that is a tuned model? Writes NAME.jsonl (one line per dataset, normalization and β),
NAME.pairs.jsonl (one line per pair: log-ratio, α, critical β, loss needed), NAME.curve.jsonl (all
breakpoints of R*(β)), NAME.curve.png, NAME.required_loss.png and, where the data have groups
(subset, domain, …), NAME.groups.png. Models are scored into NAME.examples.jsonl and
NAME.policy.examples.jsonl. --dynamics joins the pairs with the losses of tuned models (Tables 7-9),
--export writes them with the reference's log-likelihoods as trainers read them.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranking.data.examples import PreferenceData, counts_text, dataset_label
from ranking.data.hub import ALPACA_FARM
from ranking.metrics.accuracy import NORMALIZATIONS
from ranking.metrics.idealized import (
    BETAS,
    curve_row,
    pair_rows,
    summarize_idealized,
    summary_rows,
)
from ranking.metrics.tuned_loss import BestStep
from ranking.plumbing.command_line import checked, count, make_parser, run_script
from ranking.plumbing.outputs import (
    Output,
    claim_file,
    claim_of,
    dataset_key,
    plan_file,
    plan_output,
    take_output,
)
from ranking.plumbing.processes import process_rank
from ranking.plumbing.result_files import Record, write_json_lines
from ranking.plumbing.wandb_runs import finishing_wandb, start_wandb
from ranking.reports.groups import has_groups
from ranking.reports.idealized import (
    log_idealized,
    plot_idealized_by_group,
    plot_idealized_curves,
    plot_required_loss,
    report_idealized_ties,
    show_idealized,
    show_selected_pairs,
)
from ranking.reports.style import draw
from ranking.scoring.comparable import (
    ScoringRun,
    announce_uneven_cuts,
    check_comparable,
    read_scoring_runs,
    refuse_same_file,
    shared_examples,
)
from ranking.scoring.datasets import load_datasets
from ranking.scoring.export import EXPORT_SUFFIXES, check_keep, export_pairs
from ranking.scoring.flags import (
    CONFIG_FLAGS,
    DATA_FLAGS,
    MODEL_FLAGS,
    add_scoring_arguments,
    parse_scoring_args,
    refuse_idle_flags,
    take,
)
from ranking.scoring.rated_pairs import (
    PairRules,
    add_tuned_losses,
    check_all_scored,
    check_assumed_proportion,
    check_some_pair_counts,
    rated_pairs,
    read_runs,
)
from ranking.scoring.runs import (
    check_models,
    check_ties_are_there,
    describe_two_runs,
    files_of_scoring,
    plan_runs,
    scored_runs,
)

WRITES = {  # of every run; more where a model is scored
    "pairs": "pairs.jsonl", "curve": "curve.jsonl", "picture": "curve.png",
    "losses": "required_loss.png", "groups": "groups.png",
}  # fmt: skip


# ---------------------------------------------------------------------------- reference and policy
def check_runs(reference: ScoringRun, policy: ScoringRun | None, rules: PairRules) -> None:
    """Raise ValueError where these runs and rules do not go together, before anything is scored."""
    for run in filter(None, (reference, policy)) if rules.include_ties else ():
        check_ties_are_there(run)
    if policy is not None:
        refuse_same_file(reference, policy)
        check_comparable(reference, policy)
        if policy.found is not None:
            check_all_scored(reference.records, policy.records, rules)
    check_assumed_proportion(reference.records, rules.assumed_proportion)
    check_some_pair_counts(reference.records, rules)


def idealized_rows(
    reference: ScoringRun,
    policy: ScoringRun,
    rules: PairRules,
    datasets: Sequence[PreferenceData],
    facts: Sequence[dict[tuple, Record]],
    runs: dict[str, BestStep],
    *,
    betas: Sequence[float],
    gamma: float,
    seed: int,
) -> tuple[list[Record], list[Any], list[Any], list[Any]]:
    """The pairs that count, and the lines of NAME.jsonl, .curve.jsonl and .pairs.jsonl.

    runs: by their files, tunings whose losses the pairs get.
    """
    announce_uneven_cuts(shared_examples(reference.records, policy.records))
    pairs, dropped = rated_pairs(reference.records, policy.records, rules)
    for key, drops in dropped.items():
        if drops:
            print(f"{dataset_label(*key)}: dropped {counts_text(drops)}", file=sys.stderr)
    add_tuned_losses(pairs, runs)
    rows, curves, per_pair = [], [], []
    for key in dict.fromkeys(dataset_key(pair["record"]) for pair in pairs):
        chosen = [pair for pair in pairs if dataset_key(pair["record"]) == key]
        common = describe_two_runs(key, reference, policy, rules, datasets, facts)
        common |= {"dropped_pairs": dict(dropped[key]), "seed": seed}
        by_kind = {kind: summarize_idealized(chosen, kind, betas, seed) for kind in NORMALIZATIONS}
        for kind, summary in by_kind.items():
            rows += summary_rows(summary, kind, common)
            curves.append(curve_row(summary, kind, common))
        per_pair += pair_rows(chosen, by_kind, betas, gamma)
    return pairs, rows, curves, per_pair


def write_results(output: Output, rows: list, curves: list, per_pair: list) -> dict[str, Path]:
    """Write lines and pictures, the summary last: it marks the run as finished. Where each is."""
    files = {name: output.beside(suffix) for name, suffix in WRITES.items()}
    take_output(output)
    write_json_lines(files["pairs"], per_pair)
    write_json_lines(files["curve"], curves)
    draw(plot_idealized_curves, curves, files["picture"])
    draw(plot_required_loss, per_pair, files["losses"])
    if has_groups(rows):
        draw(plot_idealized_by_group, rows, files["groups"])
    else:
        files.pop("groups").unlink(missing_ok=True)  # of a run that was overwritten
    write_json_lines(output.summary, rows)
    return {"summary": output.summary, **files}


def log_bounds(project: str, settings: Record, rows: list, files: dict[str, Path]) -> None:
    """Rows and pictures to wandb, these as their files are named: curve, required_loss, groups."""
    pictures = {p.stem.rpartition(".")[2]: p for p in files.values() if p.suffix == ".png"}
    run = start_wandb(project=project, config=settings)
    with finishing_wandb(run):
        log_idealized(run, rows, pictures)


# ---------------------------------------------------------------------------- command line
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    models = parser.add_argument_group(
        "reference (one of) and policy (at most one; default: reference)"
    )
    reference = models.add_mutually_exclusive_group(required=True)
    reference.add_argument("--lm-name-or-path", help="reference model, scored now")
    reference.add_argument("--reference-examples", help="examples file of an earlier run: no model")
    policy = models.add_mutually_exclusive_group()
    policy.add_argument("--policy-name-or-path", help="tuned model, scored on the same examples")
    policy.add_argument("--policy-examples", help="examples file of the tuned model")
    models.add_argument("--policy-revision", help="hub revision of --policy-name-or-path")
    scoring_flags = add_scoring_arguments(parser, [ALPACA_FARM])
    ideal = parser.add_argument_group("idealized accuracy")
    ideal.add_argument(
        "--betas", nargs="+", default=list(BETAS), help="β of the KL term",
        type=checked(float, lambda x: 1e-100 < x < 1e100, "a β between 1e-100 and 1e100"),
    )  # fmt: skip
    ideal.add_argument(
        "--epsilon", default=0.001, help="unanimous votes: α = 1 − ε",
        type=checked(float, lambda x: 0.5 < 1 - x < 1, "a number between 1e-16 and 0.5"),
    )  # fmt: skip
    ideal.add_argument(
        "--assumed-proportion", help="α of pairs without votes (default: none)",
        type=checked(float, lambda x: 0.5 < x <= 1, "a share in (0.5, 1]"),
    )  # fmt: skip
    ideal.add_argument(
        "--gamma", default=1.0, help="γ of DPO^γ for the required loss",
        type=checked(float, math.isfinite, "a finite number"),
    )  # fmt: skip
    ideal.add_argument(
        "--dynamics", nargs="+", default=[], metavar="FILE", help="ranking_dynamics.jsonl of runs "
        "of dpo.py from this reference (seeds of one setting): each pair gets its mean loss at "
        "their lowest validation loss, and in how many it is ranked correctly",
    )  # fmt: skip
    for flag, which in (
        ("--hardest", "largest c"), ("--easiest", "smallest c"),
        ("--easiest-to-flip", "smallest c > 0"),
    ):  # fmt: skip
        ideal.add_argument(
            flag, type=count, default=0, metavar="N", help=f"print N pairs of {which}"
        )
    export = parser.add_argument_group("export, for trainers")
    export.add_argument(
        "--export", metavar="FILE", help="write the pairs that count, chosen and rejected, with "
        f"the reference's log-likelihoods ({' or '.join(EXPORT_SUFFIXES)})",
    )  # fmt: skip
    export.add_argument(
        "--keep", metavar="CONDITION",
        help="export pairs of which this holds, as in 'c < 20 and alpha > 0.7'",
    )  # fmt: skip
    export.add_argument(
        "--keep-easiest", metavar="SHARE",
        help="export this share of the pairs (of those that --keep keeps), those of smallest c",
        type=checked(float, lambda x: 0 < x <= 1, "a share in (0, 1]"),
    )  # fmt: skip
    args = parse_scoring_args(parser, argv)
    if args.export is None and (args.keep is not None or args.keep_easiest is not None):
        parser.error("--keep and --keep-easiest choose what --export writes: give it too")
    if args.export is not None and not args.export.endswith(EXPORT_SUFFIXES):
        parser.error(f"--export {args.export}: give a name that ends with "
                     f"{' or '.join(EXPORT_SUFFIXES)}")  # fmt: skip
    if args.lm_name_or_path is None and args.policy_name_or_path is None:
        refuse_idle_flags(parser, vars(args), scoring_flags, "--reference-examples")
    args.dataset = args.dataset or [ALPACA_FARM]
    args.betas = list(dict.fromkeys(args.betas))  # each once
    return args


def main(args: argparse.Namespace) -> None:
    flags = vars(args)
    rules = PairRules(args.include_ties, args.assumed_proportion, args.epsilon)
    models = (args.lm_name_or_path, args.policy_name_or_path)
    revisions = (args.revision, args.policy_revision)
    examples = (args.reference_examples, args.policy_examples)
    check_models(models, revisions, ("--revision", "--policy-revision"))
    reads = [*args.dataset, *examples, *args.dynamics]
    writes = [*WRITES.values(), *files_of_scoring(dict(zip(("", "policy."), models)))]
    output = plan_output(args.output_dir, args.output_filename, args.overwrite, reads, writes)
    export = None
    if args.export is not None:
        export = plan_file(args.export, "--export", args.overwrite, reads, output, writes)
    output = output._replace(picture=output.beside(WRITES["picture"]))
    given, runs = read_scoring_runs(examples), read_runs(args.dynamics)
    datasets = load_datasets(args.dataset, **take(flags, DATA_FLAGS)) if any(models) else []
    how = take(flags, (*CONFIG_FLAGS, "dtype", "device"))
    reference, policy = plan_runs(given, models, revisions, datasets, **how)
    check_runs(reference, policy, rules)
    check_keep(args.keep, reference.records, bool(runs), policy is not None)

    (reference, of_reference), (policy, of_policy) = scored_runs(
        {"reference": reference, "policy": policy}, datasets, output, args.overwrite,
        take(flags, MODEL_FLAGS),
    )  # fmt: skip
    if process_rank() > 0:
        return  # the first process has all records and reports
    if given[1] is not None:
        check_all_scored(reference.records, policy.records, rules)
    pairs, rows, curves, per_pair = idealized_rows(
        reference, policy or reference, rules, datasets, (of_reference, of_policy), runs,
        betas=args.betas, gamma=args.gamma, seed=args.seed,
    )  # fmt: skip
    n_exported = 0
    if export is not None:
        take_output(output)
        claim_file(output, export)
        n_exported = export_pairs(
            export, pairs, reference.config, args.keep, args.keep_easiest, policy is not None
        )
    files = write_results(output, rows, curves, per_pair)
    claim_of(output).unlink(missing_ok=True)
    if n_exported:
        files["export"] = export
    show_idealized(rows)
    report_idealized_ties(rows, same_model=policy is None)
    show_selected_pairs(pairs, args.hardest, args.easiest, args.easiest_to_flip)
    print("\n".join(f"{name:9} {path}" for name, path in files.items()))
    if args.wandb_project:
        settings = {key: str(value) for key, value in flags.items()}
        log_bounds(args.wandb_project, settings, rows, files)


if __name__ == "__main__":
    run_script(main, parse_args())
