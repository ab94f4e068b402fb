r"""All tables and figures: the commands in order, each resumable, with a list of what failed.

    python reproduce/run.py --scale embedded --output-dir results/embedded
    python reproduce/run.py ranking idealized --scale embedded --data-dir DATA_DIR \
        --output-dir results/embedded
    python reproduce/run.py training --scale paper --output-dir results/paper --print

Steps: training (SFT, then DPO^γ for every γ and seed), ranking (every model × dataset), idealized,
win-rate, report (tables and pictures of the result files that are there). Without steps: all.
A part whose result exists is not run again; one that was killed resumes. Each part writes its own
log under OUTPUT_DIR/logs; a part that fails is listed at the end, and the others go on. --print
shows the commands instead, for a cluster's scheduler.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranking.data.hub import ALPACA_FARM
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import read_json_lines, write_text_atomically
from ranking.scoring.models import BUNDLED_MODEL

RUN_FILE = "run_config.json"  # of sft.py and dpo.py
ROOT = Path(__file__).parents[1]
HH, SHP = "Anthropic/hh-rlhf", "stanfordnlp/SHP"
TIES = "ties"  # a dataset entry scored with its tied pairs: votes are then drawn from all of them


class Part(NamedTuple):
    """One command; `done` exists when it has run to its end (and says so, of a training run).

    needs: files that other parts make. models: whose rows `done` must have, all of them.
    """

    name: str
    arguments: list[str]
    done: Path
    needs: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()


# ---------------------------------------------------------------------------- scales
PAPER_SFT = {  # App. C; the flags of the original command line
    "dataset_name": HH, "dataset_text_field": "chosen", "instruction_template": "Human:",
    "response_template": "Assistant:", "per_device_train_batch_size": 8, "learning_rate": 1e-5,
    "num_train_epochs": 1, "eval_strategy": "steps", "eval_steps": 500, "save_strategy": "steps",
    "save_steps": 500, "load_best_model_at_end": "true", "save_total_limit": 2, "max_length": 512,
    "bf16": "true",
}  # fmt: skip
PAPER_DPO = {
    "dataset_name": HH, "beta": 0.1, "loss_type": "alpha_scaling", "per_device_train_batch_size": 8,
    "learning_rate": 1e-6, "num_train_epochs": 5, "warmup_steps": 150, "bf16": "true",
    "max_length": 512, "eval_strategy": "steps", "eval_steps": 2000, "save_strategy": "steps",
    "save_steps": 2000, "load_best_model_at_end": "true", "optim": "rmsprop",
}  # fmt: skip  # 100,500 steps on HH-RLHF: 50 evaluations
EMBEDDED_SFT = {
    "dataset_name": "sample", "max_train_samples": 40, "max_length": 512, "num_train_epochs": 1,
    "per_device_train_batch_size": 8, "learning_rate": 1e-5, "logging_steps": 1,
    "report_to": "none", "save_strategy": "no",
}  # fmt: skip
EMBEDDED_DPO = {
    "dataset_name": "sample", "max_train_samples": 40, "beta": 0.1, "loss_type": "alpha_scaling",
    "max_length": 512, "num_train_epochs": 2, "per_device_train_batch_size": 8,
    "learning_rate": 2e-5, "warmup_steps": 3, "optim": "rmsprop", "bf16": "true",
    "eval_strategy": "epoch", "save_strategy": "epoch", "logging_steps": 3,
    "report_to": "none",
}  # fmt: skip
SCALES = {
    "paper": {
        "train": ["gpt2", "EleutherAI/pythia-2.8b", "meta-llama/Llama-2-7b-hf"],
        "sft": PAPER_SFT,
        "dpo": PAPER_DPO,
        "gammas": [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2],
        "seeds": [0, 1, 2],
        "models": [
            "gpt2", "EleutherAI/pythia-1.4b", "EleutherAI/pythia-2.8b", "google/gemma-7b",
            "google/gemma-7b-it", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf",
            "mistralai/Mistral-7B-v0.1", "allenai/OLMo-7B-hf", "allenai/tulu-2-7b",
            "allenai/tulu-2-dpo-7b", "lmsys/vicuna-7b-v1.5",
            "alignment-handbook/zephyr-7b-sft-full", "alignment-handbook/zephyr-7b-dpo-full",
        ],
        "datasets": [
            f"{HH}:test", f"{HH}:train", f"{SHP}:test", f"{SHP}:train", "openbmb/UltraFeedback",
            "Dahoas/synthetic-instruct-gptj-pairwise",
            "HuggingFaceH4/stack-exchange-preferences", ALPACA_FARM, TIES,
        ],
        "tuned_from": {
            "alignment-handbook/zephyr-7b-dpo-full": "alignment-handbook/zephyr-7b-sft-full",
            "allenai/tulu-2-dpo-7b": "allenai/tulu-2-7b",
            "google/gemma-7b-it": "google/gemma-7b",
            "meta-llama/Llama-2-7b-chat-hf": "meta-llama/Llama-2-7b-hf",
        },
        "sample_size": 1000,
        "beside": None,
        "at": "lowest-loss",
        "keeps_checkpoints": True,
        "win_rate": ["--dataset", f"{HH}:train", "--sample-size", "500"],
        "judge": "openai:gpt-4o",
    },
    "embedded": {
        "train": [BUNDLED_MODEL],
        "sft": EMBEDDED_SFT,
        "dpo": EMBEDDED_DPO,
        "gammas": [0, 0.5, 1, 1.5, 2],
        "seeds": [0, 1],
        "models": [BUNDLED_MODEL],
        "datasets": ["sample"],
        "datasets_on_disk": [HH, SHP, ALPACA_FARM, TIES],  # with --data-dir
        "tuned_from": {},
        "sample_size": 200,
        "beside": "gpt2",
        "at": "last",
        "keeps_checkpoints": False,
        "win_rate": ["--max-new-tokens", "64"],
        "judge": ["--dataset", "sample", "--unless-trained-on", "40", "--n-test-pairs", "40",
                  "--max-length", "512", "--learning-rate", "3e-5"],
    },
}  # fmt: skip


# ---------------------------------------------------------------------------- parts
def slug(text: str) -> str:
    """A name as part of a file name: the end of a path, without what shells dislike."""
    parts = text.rstrip("/").removesuffix(".gguf").split("/")
    n_parts = 2 if parts[-1].startswith("checkpoint-") else 1
    return "_".join(parts[-n_parts:]).replace(":", "-")


def run_folder(args: argparse.Namespace, model: str, gamma: float, seed: int) -> Path:
    runs = args.output_dir / f"{slug(model)}_dpo"
    return runs / f"{runs.name}_gamma{gamma:g}_seed{seed}"


def assignments(flags: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]


def training_parts(args: argparse.Namespace, scale: dict) -> list[Part]:
    """Fig. 2, 3, 5-8: SFT, then DPO^γ for every γ and seed. Where checkpoints are judged later, one
    run (γ = 1, the first seed) keeps them all, the others the best and the last."""
    judged = judged_run(args, scale) if scale["keeps_checkpoints"] else None
    data = [f"--data_dir={args.data_dir}"] if args.data_dir else []
    parts = []
    for model in args.train or scale["train"]:
        sft = args.output_dir / f"{slug(model)}_sft"
        parts.append(
            Part(f"SFT: {slug(model)}",
                 ["sft.py", f"--model_name={model}", f"--output_dir={sft}",
                  f"--wandb_run_name={sft.name}", *assignments(scale["sft"]), *data],
                 sft / RUN_FILE)
        )  # fmt: skip
        for gamma in args.gammas or scale["gammas"]:
            for seed in args.seeds or scale["seeds"]:
                folder = run_folder(args, model, gamma, seed)
                limit = [] if (gamma, seed) == judged else ["--save_total_limit=1"]
                parts.append(
                    Part(f"DPO: {slug(model)}, γ = {gamma:g}, seed {seed}",
                         ["dpo.py", f"--model_name_or_path={sft}", f"--output_dir={folder}",
                          f"--alpha={gamma:g}", f"--seed={seed}", f"--wandb_run_name={folder.name}",
                          *assignments(scale["dpo"]), *limit, *data],
                         folder / RUN_FILE, (sft / RUN_FILE,))
                )  # fmt: skip
    return parts


def judged_run(args: argparse.Namespace, scale: dict) -> tuple[float, int]:
    """(γ, seed) of the run that is ranked beside its reference and keeps all its checkpoints."""
    gammas, seeds = args.gammas or scale["gammas"], args.seeds or scale["seeds"]
    return (1 if 1 in gammas else gammas[0]), seeds[0]


def tuned_models(args: argparse.Namespace, scale: dict) -> dict[str, str]:
    """tuned → reference: the published pairs, of the models asked for, and DPO from its SFT."""
    gamma, seed = judged_run(args, scale)
    ours = {
        str(run_folder(args, model, gamma, seed)): str(args.output_dir / f"{slug(model)}_sft")
        for model in args.train or scale["train"]
    }
    named = args.models or scale["models"]
    published = {t: r for t, r in scale["tuned_from"].items() if t in named and r in named}
    return {**published, **ours}


def dataset_specs(args: argparse.Namespace, scale: dict) -> list[str]:
    on_disk = scale.get("datasets_on_disk", []) if args.data_dir else []
    return args.datasets or [*scale["datasets"], *on_disk]


def ranking_file(args: argparse.Namespace, model: str, dataset: str) -> Path:
    return args.output_dir / "ranking" / f"{slug(model)}_{slug(dataset)}.jsonl"


def ranked_models(args: argparse.Namespace, scale: dict) -> list[str]:
    named = [*(args.models or scale["models"])]
    ours = [name for pair in tuned_models(args, scale).items() for name in reversed(pair)]
    return list(dict.fromkeys([*named, *ours]))


def ranking_parts(args: argparse.Namespace, scale: dict) -> list[Part]:
    """Fig. 1, Tables 2-5: every model × dataset."""
    parts = []
    for model in ranked_models(args, scale):
        for dataset in dataset_specs(args, scale):
            file = ranking_file(args, model, dataset)
            ties = ["--include-ties"] if dataset == TIES else []
            data = ["--data-dir", args.data_dir] if args.data_dir else []
            data += ["--allow-pickle"] if args.allow_pickle else []
            parts.append(
                Part(f"ranking: {slug(model)} × {slug(dataset)}",
                     ["calculate_calibration_metrics.py", "--lm-name-or-path", model, "--dataset",
                      ALPACA_FARM if dataset == TIES else dataset, "--sample-size",
                      str(scale["sample_size"]), *ties, *data, "--output-dir", str(file.parent),
                      "--output-filename", file.name],
                     file)
            )  # fmt: skip
    return parts


def idealized_parts(args: argparse.Namespace, scale: dict) -> list[Part]:
    """Tables 1 and 6, Fig. 1: of every tuned model and its reference, on the data with votes."""
    parts = []
    with_votes = [d for d in dataset_specs(args, scale) if d in ("sample", ALPACA_FARM, TIES)]
    for tuned, reference in tuned_models(args, scale).items():
        for dataset in with_votes:
            examples = [
                str(ranking_file(args, model, dataset).with_suffix("")) + ".examples.jsonl"
                for model in (reference, tuned)
            ]
            file = args.output_dir / "idealized" / f"{slug(tuned)}_{slug(dataset)}.jsonl"
            ties = ["--include-ties"] if dataset == TIES else []
            parts.append(
                Part(f"idealized: {slug(tuned)} × {slug(dataset)}",
                     ["calculate_upper_bound_rlhf.py", "--reference-examples", examples[0],
                      "--policy-examples", examples[1], *ties, "--output-dir", str(file.parent),
                      "--output-filename", file.name],
                     file, tuple(ranking_file(args, m, dataset) for m in (reference, tuned)))
            )  # fmt: skip
    return parts


def win_rate_parts(args: argparse.Namespace, scale: dict) -> list[Part]:
    """Fig. 4, 9-12: the runs of the sweep, and the checkpoints of one, by a served judge or by a
    reward model that is trained first."""
    data = ["--data-dir", args.data_dir] if args.data_dir else []
    parts = []
    for model in args.train or scale["train"]:
        sft = args.output_dir / f"{slug(model)}_sft"
        judge, prompts = scale["judge"], []
        if isinstance(judge, list):
            folder = args.output_dir / f"{slug(model)}_reward_model"
            parts.append(
                Part(f"reward model: {slug(model)}",
                     ["reproduce/train_reward_model.py", "--lm-name-or-path", str(sft),
                      "--output-dir", str(folder), *judge, *data],
                     folder / "accuracy.json", (sft / RUN_FILE,))
            )  # fmt: skip
            judge = f"reward-model:{folder}"
            prompts = ["--dataset", str(folder / "policy_examples.jsonl")]
        runs = [
            run_folder(args, model, gamma, seed)
            for gamma in args.gammas or scale["gammas"]
            for seed in args.seeds or scale["seeds"]
        ]
        one = run_folder(args, model, *judged_run(args, scale))
        needed = {one.parent: runs, one: [one]}
        for folder in (one.parent, *([one] if scale["keeps_checkpoints"] else [])):
            file = args.output_dir / "win_rate" / f"{folder.name}.jsonl"
            every = tuple(map(str, runs)) if folder == one.parent else ()
            parts.append(
                Part(f"win rate: {folder.name}",
                     ["calculate_win_rate.py", "--checkpoints", str(folder),
                      "--reference-name-or-path", str(sft), "--judge", judge,
                      *scale["win_rate"], *prompts, *data, "--output-dir", str(file.parent),
                      "--output-filename", file.name],
                     file, tuple(run / RUN_FILE for run in needed[folder]), every)
            )  # fmt: skip
    return parts


# ---------------------------------------------------------------------------- report
def result_files(args: argparse.Namespace, scale: dict, folder: str, kind: str = "") -> list[str]:
    """NAME.jsonl, or NAME.<kind>.jsonl, of a folder: by model in the order they are ranked."""
    kinds = ("examples", "pairs", "curve", "responses", "reference", "policy")
    models = [slug(model) for model in ranked_models(args, scale)]

    def place(file: Path) -> tuple[int, str]:
        owners = [k for k, model in enumerate(models) if file.name.startswith(f"{model}_")]
        return (owners[-1] if owners else len(models), file.name)

    found = [
        file
        for file in (args.output_dir / folder).glob("*.jsonl")
        if file.name.endswith(f".{kind}.jsonl" if kind else ".jsonl")
        and (kind or file.name.split(".")[-2] not in kinds)
        and (not kind or file.with_name(file.name.replace(f".{kind}.", ".")).exists())  # whole
    ]
    return [str(file) for file in sorted(found, key=place)]


def report_parts(args: argparse.Namespace, scale: dict) -> list[Part]:
    """Tables (report/*.md) and pictures (report/*.png) of what is there; made anew each time."""
    report = args.output_dir / "report"
    beside = ["--beside", scale["beside"]] if scale["beside"] else []
    at = ["--at", scale["at"]]
    parts = []

    def table(name: str, script: str, arguments: list[str]) -> None:
        parts.append(Part(f"report: {name}.md", [script, *arguments], report / f"{name}.md"))

    def picture(name: str, figure: str, files: list[str], more: list[str] | None = None) -> None:
        file = report / f"{name}.png"
        arguments = ["plot_results.py", figure, *files, *(more or []), "--output", str(file)]
        parts.append(Part(f"report: {file.name}", arguments, file))

    if summaries := result_files(args, scale, "ranking"):
        examples = result_files(args, scale, "ranking", "examples")
        table("ranking", "reproduce/tables.py", ["ranking", *summaries, *beside])
        picture("ranking", "ranking-accuracy", summaries)
        for name, script, more in (
            ("conventions", "reproduce/conventions.py", beside),
            ("length", "reproduce/length_difference.py", []),
        ):
            output = ["--output", str(report / f"{name}.jsonl")]
            table(name, script, ["--examples", *examples, *more, *output])
        picture("length", "length-difference", [str(report / "length.jsonl")])
    if summaries := result_files(args, scale, "idealized"):
        table("idealized", "reproduce/tables.py", ["idealized", *summaries])
        for file in result_files(args, scale, "idealized", "curve"):
            picture(f"idealized_{Path(file).name.split('.curve')[0]}", "idealized-accuracy", [file])
        for file in result_files(args, scale, "idealized", "pairs"):
            picture(f"required_loss_{Path(file).name.split('.pairs')[0]}", "required-loss", [file])
    for model in args.train or scale["train"]:
        runs = [
            str(run_folder(args, model, gamma, seed) / "ranking_dynamics.jsonl")
            for gamma in args.gammas or scale["gammas"]
            for seed in args.seeds or scale["seeds"]
        ]
        runs = [run for run in runs if is_finished(Path(run).with_name(RUN_FILE))]
        if runs:
            table(f"{slug(model)}_sweep", "reproduce/tables.py", ["sweep", *runs, *at])
            picture(f"{slug(model)}_sweep", "sweep", runs, at)
        for run in runs:
            name = Path(run).parent.name
            table(f"{name}_dynamics", "reproduce/tables.py", ["dynamics", run])
            for figure in ("dynamics", "loss-against-reference", "accuracy-against-distance"):
                picture(f"{name}_{figure}", figure, [run])
    for file in result_files(args, scale, "win_rate"):
        table(f"{Path(file).stem}_win_rate", "reproduce/tables.py", ["win-rate", file])
        picture(f"{Path(file).stem}_win_rate", "win-rate", [file])
    return parts


STEPS = {
    "training": training_parts,
    "ranking": ranking_parts,
    "idealized": idealized_parts,
    "win-rate": win_rate_parts,
    "report": report_parts,
}


# ---------------------------------------------------------------------------- running
def check_names(parts: list[Part]) -> None:
    """ValueError where two parts would write one file: models whose names end alike."""
    owners: dict[Path, Part] = {}
    for part in parts:
        other = owners.setdefault(part.done, part)
        if other is not part:
            raise ValueError(f"two parts would write {part.done}: rename one of the models")


def is_finished(file: Path) -> bool:
    """Whether a result file is there; a training run says itself whether it has ended."""
    if file.name == RUN_FILE and file.exists():
        return json.loads(file.read_text())["finished"]
    return file.exists()


def is_done(part: Part) -> bool:
    """Whether its result is there, whole, and of all the models it should have."""
    if not is_finished(part.done):
        return False
    return not part.models or set(part.models) <= {
        row["model"] for row in read_json_lines(part.done)
    }


def run_part(part: Part, log: Path, launcher: list[str]) -> str | None:
    """None when the command succeeds, else its last line. Output goes to `log`; what a table
    printer says goes to the part's file. Ctrl-C and SIGTERM are handed on, once, so that the
    command saves what it has."""
    for needed in part.needs:
        if not is_finished(needed):
            return f"needs {needed}, which is not there yet"
    log.parent.mkdir(parents=True, exist_ok=True)
    part.done.parent.mkdir(parents=True, exist_ok=True)
    table = part.done.suffix == ".md"
    again = ["--overwrite"] if part.models and part.done.exists() else []  # some were missing
    with log.open("w") as file:
        process = subprocess.Popen(
            [*starter(part, launcher), *part.arguments, *again], cwd=ROOT, stderr=file, text=True,
            stdout=subprocess.PIPE if table else file, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:
            try:
                process.terminate()
                process.wait()
            except KeyboardInterrupt:  # asked twice: at once
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            raise
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {process.returncode}"
    if table:
        write_text_atomically(part.done, printed)
    return None


def starter(part: Part, launcher: list[str]) -> list[str]:
    """What starts the command: the launcher for training, else this Python."""
    return launcher if launcher and part.arguments[0] in ("sft.py", "dpo.py") else [sys.executable]


def run_parts(parts: list[Part], args: argparse.Namespace, always: bool) -> list[tuple[Part, str]]:
    """Run what is not done yet, with a line each; the parts that failed, and why."""
    failed = []
    width = len(str(len(parts)))
    for number, part in enumerate(parts, start=1):
        print(f"[{number:{width}}/{len(parts)}] {part.name} … ", end="", flush=True)
        if is_done(part) and not always:
            print("done before")
            continue
        begun = time.monotonic()
        log = args.output_dir / "logs" / f"{part.name.replace('/', '-').replace(' ', '_')}.log"
        problem = run_part(part, log, shlex.split(args.launcher))
        print(f"{time.monotonic() - begun:.0f} s" + (f", FAILED: {log}" if problem else ""))
        if problem:
            failed.append((part, problem))
    return failed


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument(
        "--scale",
        choices=SCALES,
        required=True,
        help="paper: the published models and settings; embedded: hours on a CPU",
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="directory of all results")
    parser.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    parser.add_argument("--train", nargs="+", metavar="MODEL", help="models to train")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="models to rank, beside ours")
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help=f"to rank; {TIES}: AlpacaFarm"
    )
    parser.add_argument(
        "--gammas", nargs="+", type=float, metavar="γ", help="of DPO^γ (default: the scale's)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="of training (default: the scale's)"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="rank models saved by pickle")
    parser.add_argument(
        "--launcher", default="", metavar="COMMAND",
        help="starts sft.py and dpo.py, e.g. 'accelerate launch --config_file FILE'",
    )  # fmt: skip
    parser.add_argument("--print", action="store_true", help="show the commands and stop")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    unknown = [step for step in args.steps if step not in STEPS]
    if unknown:
        raise ValueError(f"unknown step {unknown[0]}: choose from {', '.join(STEPS)}")
    args.output_dir = Path(os.path.abspath(args.output_dir))
    args.data_dir = os.path.abspath(args.data_dir) if args.data_dir else None
    for names in (args.train, args.models, args.datasets):  # commands run in the repository's root
        for k, name in enumerate(names or ()):
            if Path(name).exists():
                names[k] = os.path.abspath(name)
    scale = SCALES[args.scale]
    failed = []
    for step in args.steps or STEPS:
        parts = STEPS[step](args, scale)
        check_names(parts)
        if args.print:
            for part in parts:
                start = starter(part, shlex.split(args.launcher))
                start = ["python"] if start == [sys.executable] else start
                table = f" > {shlex.quote(str(part.done))}" if part.done.suffix == ".md" else ""
                print(shlex.join([*start, *part.arguments]) + table)
            continue
        if not parts:
            print(f"{step}: no result files under {args.output_dir} yet")
        failed += run_parts(parts, args, always=step == "report")
    if failed:
        for part, problem in failed:
            print(f"failed: {part.name}: {problem}", file=sys.stderr)
        raise ValueError(f"{len(failed)} parts failed; the same command tries them again")


if __name__ == "__main__":
    run_script(main, parse_args())
