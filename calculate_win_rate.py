r"""Win rate of a model's responses against a reference's, by a judge (Section 5, Fig. 4, 9-12).

    python calculate_win_rate.py --lm-name-or-path DPO_DIR --reference-name-or-path SFT_DIR \
        --judge reward-model:RM_DIR --output-dir results --output-filename win_rate.jsonl

With --checkpoints DIR, the output directory of dpo.py or a directory of such, the same for every
checkpoint, beside its ranking accuracy and ‖θ_t − θ_0‖². Writes DIR/NAME.jsonl (a line per
policy), NAME.examples.jsonl (a line per policy and prompt), NAME.responses.jsonl, NAME.config.json
and, for checkpoints, NAME.png. The same command resumes a killed run.
"""

import argparse
import math
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np

from ranking.data.examples import PreferenceData, fingerprint, joining
from ranking.judging.responses import (
    generation_settings,
    load_prompts,
    pair_responses,
    read_responses,
    respond,
    trust,
)
from ranking.judging.reward_model import load_reward_model
from ranking.judging.served_model import make_client
from ranking.judging.verdicts import judged_rows
from ranking.metrics.accuracy import exact_ties, ranking_accuracy
from ranking.metrics.win_rate import correlations, summarize
from ranking.plumbing.command_line import (
    announce,
    make_parser,
    progress_bar,
    run_script,
    until_stopped,
)
from ranking.plumbing.outputs import begin_run, claim_output
from ranking.plumbing.result_files import (
    Record,
    append_json_lines,
    drop_torn_line,
    write_json_lines,
)
from ranking.plumbing.wandb_runs import check_wandb, finishing_wandb, start_wandb
from ranking.reports.win_rate import log_to_wandb, print_table
from ranking.scoring.flags import add_trust_arguments
from ranking.scoring.models import (
    DTYPES,
    REMOTE_CODE_FLAG,
    check_model_path,
    choose_device,
    context_length,
    load_model,
    load_tokenizer,
    model_fingerprint,
)
from ranking.training.run_directory import find_checkpoints, gamma_of

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "statsmodels", "openai")


def checkpoint_facts(args: argparse.Namespace, policy: Path, data: PreferenceData) -> Record:
    """Ranking accuracy on the sampled examples, and ‖θ − θ_ref‖² from the reference."""
    import torch

    from ranking.scoring.score import score_examples
    from ranking.scoring.start_up_check import check_fast_path
    from ranking.scoring.tokenization import tokenize_examples
    from ranking.training.distance import initial_weights, squared_distance, trained_weights

    def whole_model(name: str):
        """In float32, for half precision would round the differences away; adapters merged."""
        model = load_model(name, dtype="float32", device="cpu", **trust(args))
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        return model.requires_grad_(True)

    initial = initial_weights(whole_model(args.reference_name_or_path))
    tuned = whole_model(str(policy))
    shapes = [{k: tuple(v.shape) for k, v in weights.items()}
              for weights in (initial, dict(trained_weights(tuned)))]  # fmt: skip
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{policy} and {args.reference_name_or_path} have different weights: no distance"
        )
    distance = squared_distance(tuned, initial)
    del initial, tuned
    model = load_model(str(policy), dtype=args.dtype, device=args.device, **trust(args))
    kept, tokenized, _ = tokenize_examples(
        load_tokenizer(str(policy), trust_remote_code=args.trust_remote_code),
        data.examples,
        chat_template=args.chat_template,
        max_length=context_length(model),
    )
    path = check_fast_path(model, tokenized)
    correct, n_equal = [], 0
    for batch in score_examples(
        model, tokenized, path=path, batch_size=128,
        tokens_per_batch=16384 if torch.cuda.is_available() else 1024,
    ):  # fmt: skip
        for i, sums in batch:
            ranks = data.examples[kept[i]].ranks
            correct.append(ranking_accuracy(sums, ranks))
            n_equal += exact_ties(sums, ranks)
    if n_equal:
        announce(f"{policy}: {n_equal} untied pairs have exactly equal scores, right by Def. 2.3")
    name = policy.name
    return {
        "step": int(name.split("-")[1]) if name.startswith("checkpoint-") else None,
        "gamma": gamma_of(policy),
        "ranking_accuracy": float(np.mean(correct)),
        "n_ranked": len(correct),
        "n_exact_ties": n_equal,
        "squared_distance": distance,
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    sides = parser.add_argument_group("sides")
    policy = sides.add_mutually_exclusive_group(required=True)
    policy.add_argument("--lm-name-or-path", help="policy: hub name, directory, GGUF file, adapter")
    policy.add_argument(
        "--checkpoints", metavar="DIR", help="every checkpoint-* of DIR, or every run in it"
    )
    sides.add_argument("--reference-name-or-path", help="the model whose responses it is against")
    sides.add_argument(
        "--against", choices=("reference", "chosen"), default="reference",
        help="the reference's responses, or the dataset's preferred completions",
    )  # fmt: skip
    sides.add_argument(
        "--responses", action="append", metavar="FILE", default=[],
        help="responses file of an earlier run, used where model and settings agree; repeatable",
    )  # fmt: skip
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge", required=True, metavar="KIND:NAME",
        help="reward-model:NAME_OR_PATH, or openai:MODEL (key from OPENAI_API_KEY)",
    )  # fmt: skip
    judge.add_argument("--judge-base-url", help="of an OpenAI-compatible endpoint")
    judge.add_argument("--judge-concurrency", type=int, default=8, help="calls at the same time")
    judge.add_argument("--judge-retries", type=int, default=5, help="per call, with growing pauses")
    judge.add_argument("--judge-timeout", type=float, default=60.0, help="seconds per call")
    judge.add_argument(
        "--judge-price", type=float, nargs=2, metavar=("IN", "OUT"),
        help="dollars per million tokens asked and answered, for the estimate",
    )  # fmt: skip
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", default="Anthropic/hh-rlhf:train", metavar="NAME[:[CONFIG:]SPLIT]",
        help="whose prompts (default: Anthropic/hh-rlhf:train, as in the paper)",
    )  # fmt: skip
    data.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    data.add_argument("--sample-size", type=int, default=500, help="examples; -1: all")
    data.add_argument("--seed", type=int, default=0, help="of the sample, generation, bootstrap")
    text = parser.add_argument_group("responses")
    text.add_argument("--temperature", type=float, default=1.0, help="0: greedy")
    text.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling")
    text.add_argument("--max-new-tokens", type=int, default=256, help="tokens of a response")
    text.add_argument(
        "--chat-template", action="store_true", help="format prompts with the chat template"
    )
    compute = parser.add_argument_group("compute")
    compute.add_argument("--batch-size", type=int, default=32, help="prompts per batch")
    compute.add_argument("--dtype", default="auto", choices=DTYPES, help="auto: by device")
    add_trust_arguments(compute)
    compute.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", required=True, help="directory for all result files")
    output.add_argument("--output-filename", required=True, help="name of the summary")
    output.add_argument(
        "--overwrite", action="store_true", help="discard earlier results (responses are kept)"
    )
    output.add_argument("--wandb-project", help="also log to this wandb project")
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for values no run can honour, before anything is loaded."""
    kind, _, name = args.judge.partition(":")
    if kind not in ("reward-model", "openai") or not name:
        raise ValueError(f"--judge {args.judge}: give reward-model:NAME_OR_PATH or openai:MODEL")
    if kind == "reward-model":
        check_model_path(name)
        if args.judge_base_url:
            raise ValueError("--judge-base-url: a reward model runs here, without an endpoint")
    if args.reference_name_or_path is None and (args.against == "reference" or args.checkpoints):
        raise ValueError(
            "give --reference-name-or-path (without --checkpoints: or --against chosen)"
        )
    for model in (args.lm_name_or_path, args.reference_name_or_path):
        if model is not None:
            check_model_path(model)
    if args.checkpoints and not Path(args.checkpoints).is_dir():
        raise ValueError(f"--checkpoints {args.checkpoints}: no such directory")
    if args.sample_size == 0 or args.sample_size < -1:
        raise ValueError(f"--sample-size {args.sample_size}: give a positive number, or -1 for all")
    args.sample_size = None if args.sample_size == -1 else args.sample_size
    for flag in ("max_new_tokens", "batch_size", "judge_concurrency"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag.replace('_', '-')}: give a positive number")
    if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
        raise ValueError("--temperature must be finite and ≥ 0, --top-p lies in (0, 1]")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: give 0 or more")
    if args.wandb_project:
        check_wandb(args.wandb_project)


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    kind, _, judge_name = args.judge.partition(":")
    if args.trust_remote_code:
        announce(
            f"{REMOTE_CODE_FLAG}: Python files that come with policy, reference or judge are run"
        )
    if kind == "openai":
        judge = make_client(args.judge_base_url, args.judge_timeout, args.judge_retries)
    policies = (
        [str(path) for path in find_checkpoints(Path(args.checkpoints))]
        if args.checkpoints
        else [args.lm_name_or_path]
    )
    known = [row for file in args.responses for row in read_responses(file)]
    data, prompts = load_prompts(args)
    output = claim_output(
        args.output_dir, args.output_filename, args.overwrite, [args.dataset, *args.responses],
        writes=("examples.jsonl", "responses.jsonl", "config.json", "png"),
    )  # fmt: skip
    responses_file = output.beside("responses.jsonl")
    own_settings = {policy: generation_settings(args, policy) for policy in policies}
    against, other_settings = "chosen", None
    if args.against == "reference":  # a model against itself: two draws
        against = args.reference_name_or_path
        other_settings = generation_settings(args, against, draw=int(against in policies))
    config = {
        "against": against,
        "judge": args.judge,
        "judge_fingerprint": model_fingerprint(judge_name) if kind == "reward-model" else None,
        "judge_base_url": str(judge.base_url) if kind == "openai" else None,
        "dataset": data.name,
        "split": data.split,
        "examples": fingerprint(data.examples),
        "policies": list(own_settings.values()),
        "other": other_settings,
    }
    if kind == "reward-model":  # in float32: half precision would round differences to ties
        judge = load_reward_model(judge_name, choose_device(args.device), "float32", **trust(args))
    judged = begin_run(output, config, args.overwrite, key=lambda row: (row["model"], row["id"]))
    if responses_file.exists():  # also with --overwrite: used where model and settings agree
        drop_torn_line(responses_file)
        known += read_responses(str(responses_file))

    pairs: dict[str, list[Record]] = {}
    with responses_file.open("ab") as file:
        other = {prompt["id"]: prompt["chosen"] for prompt in prompts}
        if other_settings is not None:
            other = respond(args, other_settings, prompts, known, file)
        for policy in policies:
            own = respond(args, own_settings[policy], prompts, known, file)
            pairs[policy] = pair_responses(prompts, policy, own, other, data)
    silent = [
        policy
        for policy, mine in pairs.items()
        if not any(pair["policy_response"] for pair in mine)
    ]
    if silent == policies:
        raise ValueError(f"every response of {', '.join(silent)} is empty: nothing to judge")
    for policy in silent:
        announce(f"every response of {policy} is empty: it gets no win rate")
    done = {(row["model"], row["id"]) for row in judged}
    waiting = [p for mine in pairs.values() for p in mine if (p["model"], p["id"]) not in done]
    unjudged = ({**pair, "win": None} for pair in waiting if pair["model"] in silent)
    asked = [pair for pair in waiting if pair["model"] not in silent]
    with (
        output.examples.open("ab") as file,
        progress_bar("judged", len(waiting) + len(done), len(done)) as progress,
    ):
        verdicts = chain(unjudged, judged_rows(args, asked, judge))
        for row in until_stopped(
            verdicts, lambda: f"{progress.n} verdicts are saved in {file.name}"
        ):
            append_json_lines(file, [row])
            judged.append(row)
            progress.update()
    if all(row["win"] is None for row in judged):
        raise ValueError(f"no pair of responses got a clear verdict from {args.judge}")

    rows = []
    for policy in policies:
        common = {
            "model": policy,
            "against": against,
            "judge": args.judge,
            "dataset_name": data.name,
            "dataset_split": data.split,
            "dataset_commit": data.commit,
            "n_unanswered": len(prompts) - len(pairs[policy]),
            "dropped": data.dropped,
            "joined_by": None if args.chat_template else joining(data.examples),
            "seed": args.seed,
            **(checkpoint_facts(args, Path(policy), data) if args.checkpoints else {}),
            "generation": own_settings[policy],
            "versions": {name: version(name) for name in LIBRARIES},
        }
        mine = [row for row in judged if row["model"] == policy]
        rows.append(summarize(mine, common, args.seed))

    picture = None
    if args.checkpoints:
        from ranking.reports.style import draw
        from ranking.reports.win_rate import plot_win_rate

        picture = output.picture
        for found in correlations(rows):
            value = found["spearmanr"]
            text = "undefined" if value is None else f"{value:.2f} (p = {found['p_value']:.2g})"
            print(f"Spearman, accuracy and win rate, {found['part']} ({found['n']}): {text}")
            rows[-1].setdefault("correlations", []).append(found)
    if picture is not None:
        draw(plot_win_rate, rows, picture)
    write_json_lines(output.summary, rows)  # last: it marks the run as finished
    print_table(rows)
    print(f"summary   {output.summary}\nexamples  {output.examples}")
    if picture is not None:
        print(f"picture   {picture}")
    if args.wandb_project:
        run = start_wandb(project=args.wandb_project, config=config)
        with finishing_wandb(run):
            log_to_wandb(run, rows, judged, picture)


if __name__ == "__main__":
    run_script(main, parse_args())
