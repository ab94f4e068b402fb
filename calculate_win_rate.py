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
from collections.abc import Sequence
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

from ranking.data.examples import PreferenceData, fingerprint, joining
from ranking.data.preferences import load_preferences
from ranking.data.prompt_sets import load_prompts
from ranking.judging.responses import (
    Generation,
    generation_settings,
    preferred_answer,
    read_responses,
    unique_prompts,
)
from ranking.judging.verdicts import (
    KINDS,
    check_judge,
    collect_responses,
    judge_pairs,
    make_judge,
)
from ranking.metrics.win_rate import correlations, summarize_win_rate
from ranking.plumbing.command_line import (
    checked,
    count,
    make_parser,
    positive_int,
    run_script,
    sample_size,
)
from ranking.plumbing.outputs import Output, begin_run, plan_output
from ranking.plumbing.processes import announce, process_count
from ranking.plumbing.result_files import Record, write_json_lines
from ranking.plumbing.wandb_runs import finishing_wandb, start_wandb
from ranking.reports.style import draw
from ranking.reports.win_rate import log_win_rates, plot_win_rate, show_win_rates
from ranking.scoring.flags import (
    add_chat_arguments,
    add_columns_argument,
    add_trust_arguments,
    parse_text_args,
    take,
)
from ranking.scoring.models import DTYPES, REMOTE_CODE_FLAG, check_model_path

# flags by the functions they go to, which call them the same
PROMPT_FLAGS = ("sample_size", "seed", "data_dir", "columns")
GENERATION_FLAGS = (
    "temperature", "top_p", "max_new_tokens", "chat", "seed", "dtype", "device",
    "trust_remote_code",
)  # fmt: skip
JUDGE_FLAGS = (
    "judge_base_url", "judge_timeout", "judge_retries", "judge_concurrency", "judge_price",
    "device", "trust_remote_code", "allow_pickle",
)  # fmt: skip
LOADING_FLAGS = ("chat", "batch_size", "device", "allow_pickle")
SCORING_FLAGS = ("chat", "dtype", "device", "trust_remote_code", "allow_pickle")
NOT_GIVEN = 0  # of --sample-size
VERSIONS_OF = ("torch", "transformers", "tokenizers", "numpy", "statsmodels", "openai")


def find_policies(model: str | None, checkpoints: str | None) -> list[str]:
    """The model, or every checkpoint."""
    if checkpoints is None:
        check_model_path(model)
        return [model]
    if not Path(checkpoints).is_dir():
        raise ValueError(f"--checkpoints {checkpoints}: no such directory")
    from ranking.training.run_directory import find_checkpoints  # PyTorch

    return [str(path) for path in find_checkpoints(Path(checkpoints))]


def summaries(
    judged: Sequence[Record],
    policies: Sequence[Generation],
    data: PreferenceData,
    *,
    n_prompts: int,
    against: str,
    judge: str,
    seed: int,
) -> list[Any]:
    """The summary line of each policy, a WinRateRow. ValueError if no verdict is clear."""
    if all(row["win"] is None for row in judged):
        raise ValueError(f"no pair of responses got a clear verdict from {judge}")
    rows: list[Any] = []
    libraries = [*VERSIONS_OF, *["alpaca_eval"] * judge.startswith("alpaca_eval:")]
    for settings in policies:
        mine = [row for row in judged if row["model"] == settings["model"]]
        common = {
            "model": settings["model"],
            "against": against,
            "judge": judge,
            "dataset_name": data.name,
            "dataset_split": data.split,
            "dataset_commit": data.commit,
            "n_unanswered": n_prompts - len(mine),
            "dropped": data.dropped,
            "joined_by": None if settings["chat_template"] else joining(data.examples),
            "seed": seed,
            "generation": settings,
            "versions": {name: version(name) for name in libraries},
        }
        rows.append(summarize_win_rate(mine, common, seed))
    return rows


def show_results(rows: Sequence[Any], output: Output, picture: Path | None) -> None:
    """Print the table, with correlations if there are checkpoints, and where the results are."""
    show_win_rates(rows)
    print(f"summary   {output.summary}\nexamples  {output.examples}")
    if picture is not None:
        print(f"picture   {picture}")


def judge_name(text: str) -> str:
    """An argparse type: KIND:NAME."""
    kind, _, name = text.partition(":")
    if kind not in KINDS or not name:
        raise argparse.ArgumentTypeError(
            f"{text}: give reward-model:NAME_OR_PATH, openai:MODEL or alpaca_eval:CONFIG[:MODEL]"
        )
    return text


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
        help="the reference's responses, or the dataset's preferred completions (of --prompts: the "
        "column output, response or completion)",
    )  # fmt: skip
    sides.add_argument(
        "--responses", action="append", metavar="FILE", default=[],
        help="responses file of an earlier run, used where model and settings agree; repeatable",
    )  # fmt: skip
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge", required=True, type=judge_name, metavar="KIND:NAME",
        help="reward-model:NAME_OR_PATH, openai:MODEL (key from OPENAI_API_KEY), or "
        "alpaca_eval:CONFIG[:MODEL], an annotator of the package alpaca_eval, by another MODEL",
    )  # fmt: skip
    judge.add_argument("--judge-base-url", help="of an OpenAI-compatible endpoint")
    judge.add_argument(
        "--judge-concurrency", type=positive_int, default=8, help="calls at the same time"
    )
    judge.add_argument(
        "--judge-retries", type=count, default=5, help="per call, with growing pauses"
    )
    judge.add_argument(
        "--judge-timeout", type=checked(float, lambda x: 0 < x < math.inf, "a positive number"),
        default=60.0, help="seconds per call",
    )  # fmt: skip
    judge.add_argument(
        "--judge-price", type=float, nargs=2, metavar=("IN", "OUT"),
        help="dollars per million tokens asked and answered, for the estimate",
    )  # fmt: skip
    data = parser.add_argument_group("data")
    prompts = data.add_mutually_exclusive_group()
    prompts.add_argument(
        "--dataset", default="Anthropic/hh-rlhf:train", metavar="NAME[:[CONFIG:]SPLIT]",
        help="preference data whose prompts are asked (default: Anthropic/hh-rlhf:train, as in the "
        "paper)",
    )  # fmt: skip
    prompts.add_argument(
        "--prompts", metavar="NAME[:[CONFIG:]SPLIT]",
        help="prompts without a preference instead: any hub name, file or folder with a column for "
        "them (AlpacaEval's, Arena-Hard's, MT-bench's: the first turn), or lines of a .txt file",
    )  # fmt: skip
    data.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    data.add_argument(
        "--sample-size", type=sample_size, default=NOT_GIVEN,
        help="examples; -1: all (default: 500, of --prompts all)",
    )  # fmt: skip
    data.add_argument("--seed", type=count, default=0, help="of the sample, generation, bootstrap")
    add_columns_argument(data)
    text = parser.add_argument_group("responses")
    text.add_argument("--temperature", type=float, default=1.0, help="0: greedy")
    text.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling")
    text.add_argument(
        "--max-new-tokens", type=positive_int, default=256, help="tokens of a response"
    )
    add_chat_arguments(text)
    compute = parser.add_argument_group("compute")
    compute.add_argument("--batch-size", type=positive_int, default=32, help="prompts per batch")
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
    args = parse_text_args(parser, argv)
    if args.sample_size == NOT_GIVEN:
        args.sample_size = 500 if args.prompts is None else None
    if args.checkpoints and args.prompts:
        parser.error(
            "--checkpoints ranks the pairs whose prompts it asks: --dataset, not --prompts"
        )
    if args.judge.startswith("reward-model:") and args.judge_base_url:
        parser.error("--judge-base-url: a reward model runs here, without an endpoint")
    if args.reference_name_or_path is None and (args.against == "reference" or args.checkpoints):
        parser.error("give --reference-name-or-path (without --checkpoints: or --against chosen)")
    if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
        parser.error("--temperature must be finite and ≥ 0, --top-p lies in (0, 1]")
    return args


def main(args: argparse.Namespace) -> None:
    flags, reference = vars(args), args.reference_name_or_path
    if process_count() > 1:
        raise ValueError("win rates are computed by one process: start it without torchrun")
    if args.trust_remote_code:
        announce(
            f"{REMOTE_CODE_FLAG}: Python files that come with policy, reference or judge are run"
        )
    policies = find_policies(args.lm_name_or_path, args.checkpoints)
    if reference is not None:
        check_model_path(reference)
    check_judge(args.judge, args.judge_base_url)
    known = [row for file in args.responses for row in read_responses(file)]
    output = plan_output(
        args.output_dir, args.output_filename, args.overwrite,
        reads=[args.prompts or args.dataset, *args.responses],
        writes=("examples.jsonl", "responses.jsonl", "config.json", "png"),
    )  # fmt: skip
    load = load_preferences if args.prompts is None else load_prompts
    data = load(args.prompts or args.dataset, **take(flags, PROMPT_FLAGS))
    prompts = unique_prompts(data, args.chat)
    if args.against == "chosen" and not any(map(preferred_answer, prompts)):
        raise ValueError(f"--against chosen: {data.name} has no answers beside its prompts")
    dialogues = any(prompt.dialogue is not None for prompt in prompts)
    how = take(flags, GENERATION_FLAGS) | {"dialogues": dialogues}
    own, other = [generation_settings(policy, **how) for policy in policies], None
    if args.against == "reference":  # a model against itself: two draws
        other = generation_settings(reference, draw=int(reference in policies), **how)
    against = reference if other else "chosen"
    judge, judge_facts = make_judge(args.judge, **take(flags, JUDGE_FLAGS))
    config = {
        "against": against, **judge_facts, "dataset": data.name, "split": data.split,
        "examples": fingerprint(data.examples), "policies": own, "other": other,
    }  # fmt: skip
    earlier = begin_run(output, config, args.overwrite, key=itemgetter("model", "id"))

    pairs = collect_responses(
        prompts, own, other, data, known, output.beside("responses.jsonl"),
        **take(flags, LOADING_FLAGS),
    )  # fmt: skip
    judged = judge_pairs(judge, pairs, earlier, output.examples)
    rows = summaries(
        judged, own, data, n_prompts=len(prompts), against=against, judge=args.judge, seed=args.seed
    )
    picture = None
    if args.checkpoints:
        from ranking.training.checkpoint_facts import checkpoint_facts  # PyTorch

        facts = checkpoint_facts(policies, reference, data, **take(flags, SCORING_FLAGS))
        rows = [row | more for row, more in zip(rows, facts)]
        rows[-1]["correlations"] = correlations(rows)
        draw(plot_win_rate, rows, picture := output.picture)
    write_json_lines(output.summary, rows)  # last: it marks the run as finished
    show_results(rows, output, picture)
    if args.wandb_project:
        run = start_wandb(project=args.wandb_project, config=config)
        with finishing_wandb(run):
            log_win_rates(run, rows, judged, picture)


if __name__ == "__main__":
    run_script(main, parse_args())
