r"""Idealized ranking accuracy and the alignment gap (Theorem 3.1, Corollary 3.3, Tables 1 and 6).

    python calculate_upper_bound_rlhf.py --reference-examples results/gpt2.examples.jsonl \
        --output-dir results --output-filename gpt2_idealized.jsonl

How accurate could perfect RLHF or DPO make the ranking, starting from a reference model, and how
far from that is a tuned model? Writes NAME.jsonl (one line per dataset, normalization and β),
NAME.pairs.jsonl (one line per pair: log-ratio, α, critical β, loss needed), NAME.curve.jsonl (all
breakpoints of R*(β)), NAME.curve.png and NAME.required_loss.png.
"""

import argparse
import math
import sys
from collections import Counter
from importlib.metadata import version
from itertools import combinations

from ranking.data.examples import dataset_label
from ranking.data.hub import ALPACA_FARM
from ranking.data.schemas import read_votes
from ranking.metrics.accuracy import NORMALIZATIONS, is_cut, record_scores
from ranking.metrics.idealized import (
    BETAS,
    curve_row,
    pair_rows,
    preferred_proportion,
    summarize_idealized,
    summary_rows,
)
from ranking.plumbing.command_line import announce, make_parser, process_rank, run_script
from ranking.plumbing.result_files import (
    Record,
    check_inputs,
    lock_outputs,
    output_paths,
    part_files,
    row_key,
    write_json_lines,
)
from ranking.plumbing.wandb_runs import finishing_wandb, start_wandb
from ranking.reports.idealized import (
    log_idealized,
    report_idealized_ties,
    show_idealized,
    show_selected_pairs,
)
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


def pairs_of_record(
    record: Record, assumed_proportion: float | None, epsilon: float
) -> list[Record]:
    """Every pair of completions with votes: winner (the majority's choice), loser, α, tied.

    Without votes, `assumed_proportion` is the α of every pair whose ranks differ; None gives no
    pairs.
    """
    n = len(record["completions"])
    pairs = []
    if record["votes"]:
        for (i, j), (first, second) in read_votes(record["votes"], n).items():
            winner, loser = (i, j) if first >= second else (j, i)
            alpha = preferred_proportion(max(first, second), min(first, second), epsilon)
            pairs.append(
                {"winner": winner, "loser": loser, "alpha": alpha, "votes": [first, second]}
            )
    elif assumed_proportion is not None:
        ranks = record["ranks"]
        for i, j in combinations(range(n), 2):
            winner, loser = (i, j) if ranks[i] <= ranks[j] else (j, i)
            alpha = 0.5 if ranks[i] == ranks[j] else min(assumed_proportion, 1 - epsilon)
            pairs.append({"winner": winner, "loser": loser, "alpha": alpha, "votes": None})
    return [{**pair, "tied": pair["alpha"] == 0.5} for pair in pairs]


def dataset_key(record: Record) -> tuple[str, str | None]:
    """What results are grouped by: dataset and split."""
    return record["dataset"], record["split"]


def usable_pairs(record: Record, args: argparse.Namespace) -> tuple[list[Record], int]:
    """The pairs of a record that count, and how many tied ones do not."""
    pairs = pairs_of_record(record, args.assumed_proportion, args.epsilon)
    untied = [pair for pair in pairs if not pair["tied"]]
    return (pairs, 0) if args.include_ties else (untied, len(pairs) - len(untied))


def check_all_scored(
    reference: list[Record], policy: list[Record], args: argparse.Namespace
) -> None:
    """Raise ValueError where the policy's examples lack one of the reference's that counts."""
    keys = {row_key(record) for record in policy}
    missing = [r for r in reference if row_key(r) not in keys and usable_pairs(r, args)[0]]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(reference)} reference examples have no policy log-likelihood "
            f"(first: {missing[0]['dataset']}, row {missing[0]['row']}): score the same data"
        )


def collect_pairs(
    reference: list[Record], policy: list[Record], args: argparse.Namespace
) -> tuple[list[Record], dict[tuple, Counter[str]]]:
    """Pairs with reference and policy log-ratios (both normalizations); drops by dataset.

    ValueError where the policy's file lacks examples of the reference's, or nothing is left.
    """
    policy_of = {row_key(r): r for r in policy}
    if not args.policy_name_or_path:  # else its data were compared before it was scored
        check_all_scored(reference, policy, args)
    pairs: list[Record] = []
    dropped: dict[tuple, Counter[str]] = {dataset_key(record): Counter() for record in reference}
    for record in reference:
        drops = dropped[dataset_key(record)]
        found, n_tied = usable_pairs(record, args)
        if n_tied:
            drops["tied pair"] += n_tied
        elif not found:
            drops["no votes"] += 1
        if found and row_key(record) not in policy_of:
            drops["example not scored by the policy"] += 1
            continue
        for pair in found:
            tuned = policy_of[row_key(record)]
            for name in ("ref_logratio", "policy_logratio"):
                source = record if name == "ref_logratio" else tuned
                for normalization in NORMALIZATIONS:
                    scores = record_scores(source, normalization)
                    pair[f"{name} {normalization}"] = scores[pair["winner"]] - scores[pair["loser"]]
            if not math.isfinite(pair["ref_logratio non-length-normalized"]):
                drops["non-finite reference"] += 1
                continue
            pairs.append({"record": record, **pair})
    if not pairs:
        total = sum(dropped.values(), Counter())
        counts = ", ".join(f"{reason}: {n}" for reason, n in total.items())
        raise ValueError(
            f"no usable pair ({counts}): idealized accuracy needs votes, or --assumed-proportion"
        )
    return pairs, dropped


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
    add_scoring_arguments(parser, [ALPACA_FARM])
    ideal = parser.add_argument_group("idealized accuracy")
    ideal.add_argument(
        "--betas", type=float, nargs="+", default=list(BETAS), help="β of the KL term"
    )
    ideal.add_argument("--epsilon", type=float, default=0.001, help="unanimous votes: α = 1 − ε")
    ideal.add_argument(
        "--assumed-proportion", type=float, help="α of pairs without votes (default: none)"
    )
    ideal.add_argument("--gamma", type=float, default=1.0, help="γ of DPO^γ for the required loss")
    ideal.add_argument(
        "--hardest", type=int, default=0, metavar="N", help="print N pairs of largest c"
    )
    ideal.add_argument(
        "--easiest", type=int, default=0, metavar="N", help="print N pairs of smallest c"
    )
    ideal.add_argument(
        "--easiest-to-flip",
        type=int,
        default=0,
        metavar="N",
        help="print N pairs of smallest c > 0",
    )
    return parser.parse_args(argv)


def check_nothing_asks_for_scoring(args: argparse.Namespace) -> None:
    """Raise ValueError for a flag of how to score, where both files hold log-likelihoods."""
    parser = argparse.ArgumentParser()
    add_scoring_arguments(parser, [])
    defaults = vars(parser.parse_args(["--output-dir", "", "--output-filename", ""]))
    of_results = {"output_dir", "output_filename", "overwrite", "wandb_project", "loglevel",
                  "seed", "include_ties"}  # fmt: skip
    for name in defaults:
        if name not in of_results and getattr(args, name) != defaults[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag}: the data are those of --reference-examples, nothing is scored"
            )


def check_assumed_proportion(reference: list[Record], assumed: float | None) -> None:
    """Raise ValueError where every example has votes; a line names the datasets where all have."""
    if assumed is None:
        return
    without = {dataset_key(r) for r in reference if not r["votes"]}
    if not without:
        raise ValueError(f"--assumed-proportion {assumed} does nothing: every example has votes")
    for key in dict.fromkeys(map(dataset_key, reference)):
        if key not in without:
            announce(f"--assumed-proportion does nothing for {dataset_label(*key)}: all have votes")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for values no run can honour."""
    if not (args.lm_name_or_path or args.policy_name_or_path):
        check_nothing_asks_for_scoring(args)
    check_revision("--revision", args.revision, args.lm_name_or_path)
    check_revision("--policy-revision", args.policy_revision, args.policy_name_or_path)
    check_scoring_arguments(args, [ALPACA_FARM])
    if not all(0 < beta < math.inf for beta in args.betas):
        raise ValueError("--betas: every β must be positive and finite")
    if not 0 < args.epsilon < 0.5:
        raise ValueError(f"--epsilon {args.epsilon}: give a number between 0 and 0.5")
    if args.assumed_proportion is not None and not 0.5 < args.assumed_proportion <= 1:
        raise ValueError(
            f"--assumed-proportion {args.assumed_proportion}: give a share in (0.5, 1]"
        )
    if not math.isfinite(args.gamma):
        raise ValueError(f"--gamma {args.gamma}: give a finite number")
    for name in ("hardest", "easiest", "easiest_to_flip"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 0 or more")
    for name in (args.lm_name_or_path, args.policy_name_or_path):
        if name is not None:
            check_model_path(name)


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    paths = output_paths(args.output_dir, args.output_filename)
    stem = paths["examples"].name.removesuffix(".examples.jsonl")
    files = {
        key: paths["summary"].with_name(f"{stem}.{suffix}")
        for key, suffix in (
            ("pairs", "pairs.jsonl"), ("curve", "curve.jsonl"),
            ("picture", "curve.png"), ("losses", "required_loss.png"),
        )
    }  # fmt: skip
    written = {"summary": paths["summary"], **files}
    for name, output_name in (
        (args.lm_name_or_path, stem),
        (args.policy_name_or_path, f"{stem}.policy"),
    ):
        if name is not None:
            written |= {f"{output_name} {kind}": paths["summary"].with_name(f"{output_name}.{kind}")
                        for kind in ("examples.jsonl", "config.json")}  # fmt: skip
    check_inputs(written, [*args.dataset, args.reference_examples, args.policy_examples])
    finished = paths["summary"].exists()
    if finished and not args.overwrite:
        raise ValueError(
            f"{paths['summary']} exists: choose another --output-filename or pass --overwrite"
        )
    datasets = None
    scored: list[Record] = []
    if args.lm_name_or_path or args.policy_name_or_path:
        from ranking.scoring.score import (
            load_datasets,
            prepare_outputs_once,
            run_config,
            score_to_file,
        )

        datasets = load_datasets(args)

    def prepared(model_name: str | None, examples_file: str | None, revision: str | None) -> Run:
        if model_name is None:
            records = load_examples(examples_file)
            return Run(examples_file, records, config_beside(examples_file, records), False)
        config = run_config(args, datasets, model_name, revision)
        return Run(model_name, planned_records(datasets), config, planned=True)

    def records_of(run: Run, output_name: str) -> list[Record]:
        if not run.planned:
            return run.records
        outputs = {
            "summary": paths["summary"],
            "examples": paths["summary"].with_name(f"{output_name}.examples.jsonl"),
            "config": paths["summary"].with_name(f"{output_name}.config.json"),
        }
        if (
            finished and scored and process_rank() == 0
        ):  # the summary went with the reference's rows
            for path in (outputs["examples"], *part_files(outputs["examples"])):
                path.unlink(missing_ok=True)
        earlier = prepare_outputs_once(outputs, run.config, args.overwrite)
        records, found = score_to_file(args, datasets, run.config, outputs["examples"], earlier)
        scored.append(found)
        return records

    def facts_of(key: tuple) -> Record:
        """dtype, path and commit of the model scored here last (the policy, where both were), and
        what the first dropped of the data; what only the policy dropped is counted in pairs."""
        facts = dict(scored[-1], dropped=scored[0]["dropped"]) if scored else {}
        if args.lm_name_or_path:
            facts["reference_model_commit"] = scored[0]["model_commit"]
        by_name = {(data.name, data.split): n for n, data in enumerate(datasets or ())}
        drops = facts.pop("dropped", None)
        if drops is not None:
            facts["dropped_examples"] = drops[by_name[key]] if key in by_name else None
        return facts

    runs = [prepared(args.lm_name_or_path, args.reference_examples, args.revision)]
    if args.policy_name_or_path or args.policy_examples:
        tuned = (args.policy_name_or_path, args.policy_examples, args.policy_revision)
        runs.append(prepared(*tuned))
        check_comparable(*runs)
        if args.policy_name_or_path:
            check_all_scored(runs[0].records, runs[1].records, args)
    for run in runs:
        if args.include_ties and run.config is not None and not run.config.get("include_ties"):
            raise ValueError(f"--include-ties: {run.name} was scored without: its ties are missing")
    check_assumed_proportion(runs[0].records, args.assumed_proportion)
    reference = records_of(runs[0], stem)
    policy = records_of(runs[1], f"{stem}.policy") if len(runs) > 1 else reference
    if process_rank() > 0:
        return  # the first process has all records and reports
    announce_uneven_cuts(shared_examples(reference, policy))
    pairs, dropped = collect_pairs(reference, policy, args)
    for key, drops in dropped.items():
        if drops:
            counts = ", ".join(f"{reason}: {n}" for reason, n in drops.items())
            print(f"{dataset_label(*key)}: dropped {counts}", file=sys.stderr)

    rows, curves, per_pair = [], [], []
    for key in dict.fromkeys(dataset_key(pair["record"]) for pair in pairs):
        chosen = [pair for pair in pairs if dataset_key(pair["record"]) == key]
        dataset = key[0]
        first = chosen[0]["record"]
        config, policy_config = runs[0].config, runs[-1].config
        n_truncated = [
            sum(is_cut(r) for r in records if dataset_key(r) == key)
            for records in (reference, policy)
        ]
        common = {
            "model": policy[0]["model"],
            "reference_model": first["model"],
            "dataset_name": dataset,
            "dataset_config": first.get("dataset_config"),
            "dataset_split": first["split"],
            "dataset_commit": {d.name: d.commit for d in datasets or ()}.get(dataset),
            "revision": (policy_config or {}).get("revision"),
            "reference_revision": (config or {}).get("revision"),
            **(scoring_settings(config, *key) if config is not None else {}),
            "simulate_proportion": args.assumed_proportion,
            "epsilon": args.epsilon,
            "include_ties": args.include_ties,
            "dropped_pairs": dict(dropped[key]),
            "seed": args.seed,
            "reference_config_hash": first.get("config_hash"),
            **facts_of(key),
            "n_truncated_prompts": n_truncated[1],
            "reference_n_truncated_prompts": n_truncated[0],
            "versions": {name: version(name) for name in LIBRARIES},
        }
        summaries = {
            n: summarize_idealized(chosen, n, args.betas, args.seed) for n in NORMALIZATIONS
        }
        for normalization, summary in summaries.items():
            rows += summary_rows(summary, normalization, common)
            curves.append(curve_row(summary, normalization, common))
        per_pair += pair_rows(chosen, summaries, args.betas, args.gamma)

    from ranking.reports.idealized import plot_idealized_curves, plot_required_loss
    from ranking.reports.style import draw

    paths["summary"].parent.mkdir(parents=True, exist_ok=True)
    lock_outputs(paths["summary"])
    write_json_lines(files["pairs"], per_pair)
    write_json_lines(files["curve"], curves)
    draw(plot_idealized_curves, curves, files["picture"])
    draw(plot_required_loss, per_pair, files["losses"])
    write_json_lines(paths["summary"], rows)  # last: it marks the run as finished
    show_idealized(rows)
    report_idealized_ties(rows, same_model=len(runs) == 1)
    show_selected_pairs(pairs, args.hardest, args.easiest, args.easiest_to_flip)
    for name, path in (("summary", paths["summary"]), *files.items()):
        print(f"{name:9} {path}")
    if args.wandb_project:
        settings = {key: str(value) for key, value in vars(args).items()}
        run = start_wandb(project=args.wandb_project, config=settings)
        with finishing_wandb(run):
            log_idealized(run, rows, files["picture"], files["losses"])


if __name__ == "__main__":
    run_script(main, parse_args())
