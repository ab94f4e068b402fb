r"""All tables and figures: the commands in order, each resumable, with a list of what failed.

    python -m reproduce.run --scale embedded --output-dir results/embedded
    python -m reproduce.run ranking idealized --scale embedded --data-dir DATA_DIR \
        --output-dir results/embedded
    python -m reproduce.run training --scale paper --output-dir results/paper --print

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
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ranking.data.hub import ALPACA_FARM
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import read_json_lines, write_text_atomically
from reproduce.scales import SCALES, TIES, Plan, slug

RUN_FILE = "run_config.json"  # of sft.py and dpo.py; says whether the run has ended
ROOT = Path(__file__).parents[1]
BESIDE_SUMMARIES = {".examples", ".pairs", ".curve", ".responses", ".reference", ".policy"}


class Part(NamedTuple):
    """One command. It is done when `done` is there, finished and with rows of all `models`.

    done: its result; a table (.md) is what it prints. needs: results of other parts.
    """

    name: str
    command: list[str]
    done: Path
    needs: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()


def evaluation(name: str, script: str, words: list, done: Path, needs=(), models=()) -> Part:
    words = ["python", script, *words, "--output-dir", done.parent, "--output-filename", done.name]
    return Part(name, [str(word) for word in words], done, (*needs,), (*models,))


# ---------------------------------------------------------------------------- steps
def training_parts(plan: Plan) -> Iterator[Part]:
    """Fig. 2, 3, 5-8: SFT, then DPO^γ for every γ and seed. Where checkpoints are judged later, the
    chosen run keeps them all, the others the best and the last."""

    def part(name: str, script: str, folder: Path, flags: dict, needs=()) -> Part:
        flags |= {"data_dir": plan.data_dir} if plan.data_dir else {}
        words = [f"--{flag}={value}" for flag, value in flags.items()]
        return Part(name, [*plan.launcher, script, *words], folder / RUN_FILE, needs)

    for model in plan.train:
        sft = plan.sft_folder(model)
        flags = {"model_name": model, "output_dir": sft, "wandb_run_name": sft.name, **plan.sft}
        yield part(f"SFT: {slug(model)}", "sft.py", sft, flags)
        for (gamma, seed), run in plan.runs(model).items():
            flags = {"model_name_or_path": sft, "output_dir": run, "alpha": f"{gamma:g}",
                     "seed": seed, "wandb_run_name": run.name, **plan.dpo}  # fmt: skip
            if not plan.keeps_checkpoints or run != plan.chosen_run(model):
                flags["save_total_limit"] = 1
            name = f"DPO: {slug(model)}, γ = {gamma:g}, seed {seed}"
            yield part(name, "dpo.py", run, flags, (sft / RUN_FILE,))


def ranking_parts(plan: Plan) -> Iterator[Part]:
    """Fig. 1, Tables 2-5: every model × dataset."""
    for model, dataset in product(plan.ranked(), plan.datasets):
        data = [ALPACA_FARM if dataset == TIES else dataset, "--sample-size", plan.sample_size]
        data += [*["--include-ties"] * (dataset == TIES), *plan.data_flags()]
        words = ["--lm-name-or-path", model, "--dataset", *data]
        words += ["--allow-pickle"] * plan.allow_pickle
        name = f"ranking: {slug(model)} × {slug(dataset)}"
        done = plan.ranking_file(model, dataset)
        yield evaluation(name, "calculate_calibration_metrics.py", words, done)


def idealized_parts(plan: Plan) -> Iterator[Part]:
    """Tables 1 and 6, Fig. 1: of every tuned model and its reference, on the data with votes."""
    with_votes = [name for name in plan.datasets if name in ("sample", ALPACA_FARM, TIES)]
    for (tuned, reference), dataset in product(plan.tuned().items(), with_votes):
        ranked = [plan.ranking_file(model, dataset) for model in (reference, tuned)]
        examples = [file.with_name(f"{file.stem}.examples.jsonl") for file in ranked]
        words = ["--reference-examples", examples[0], "--policy-examples", examples[1]]
        words += ["--include-ties"] * (dataset == TIES)
        name = f"idealized: {slug(tuned)} × {slug(dataset)}"
        done = plan.out / "idealized" / f"{slug(tuned)}_{slug(dataset)}.jsonl"
        yield evaluation(name, "calculate_upper_bound_rlhf.py", words, done, ranked)


def win_rate_parts(plan: Plan) -> Iterator[Part]:
    """Fig. 4, 9-12: the runs of the sweep, and the checkpoints of one, by a served judge or by a
    reward model that is trained first."""
    for model in plan.train:
        sft, chosen, judge = plan.sft_folder(model), plan.chosen_run(model), plan.judge
        words: list = ["--reference-name-or-path", sft, "--judge"]
        if isinstance(judge, str):
            words += [judge, *plan.win_rate]
        else:
            folder = plan.out / f"{slug(model)}_reward_model"
            command = ["python", "-m", "reproduce.train_reward_model", "--lm-name-or-path"]
            command += [str(sft), "--output-dir", str(folder), *judge, *plan.data_flags()]
            done = folder / "accuracy.json"
            yield Part(f"reward model: {slug(model)}", command, done, (sft / RUN_FILE,))
            unseen = folder / "policy_examples.jsonl"
            words += [f"reward-model:{folder}", *plan.win_rate, "--dataset", unseen]
        sweeps = [(chosen.parent, [*plan.runs(model).values()]), (chosen, [])]
        for folder, models in sweeps[: 1 + plan.keeps_checkpoints]:
            name, done = f"win rate: {folder.name}", plan.out / "win_rate" / f"{folder.name}.jsonl"
            flags = ["--checkpoints", folder, *words, *plan.data_flags()]
            needs = [run / RUN_FILE for run in models or [folder]]
            yield evaluation(name, "calculate_win_rate.py", flags, done, needs, map(str, models))


def summaries(plan: Plan, folder: str) -> list[Path]:
    """The summaries of a folder, by model in the order they are ranked."""
    models = [f"{slug(model)}_" for model in plan.ranked()]

    def place(file: Path) -> tuple[int, str]:
        owners = [k for k, model in enumerate(models) if file.name.startswith(model)]
        return (max(owners, default=len(models)), file.name)

    files = (plan.out / folder).glob("*.jsonl")
    return sorted((f for f in files if BESIDE_SUMMARIES.isdisjoint(f.suffixes)), key=place)


def beside(files: list[Path], kind: str) -> list[Path]:
    """NAME.<kind>.jsonl of every summary NAME.jsonl that has one."""
    found = [file.with_name(f"{file.stem}.{kind}.jsonl") for file in files]
    return [file for file in found if file.exists()]


def report_parts(plan: Plan) -> Iterator[Part]:
    """Tables (report/*.md) and pictures (report/*.png) of what is there; made anew each time."""
    report = plan.out / "report"
    published = ["--beside", plan.beside] if plan.beside else []

    def table(name: str, script: str, *words: str | Path) -> Part:
        command = ["python", "-m", f"reproduce.{script}", *map(str, words)]
        return Part(f"report: {name}.md", command, report / f"{name}.md")

    def picture(name: str, figure: str, *words: str | Path) -> Part:
        file = report / f"{name}.png"
        command = ["python", "plot_results.py", figure, *map(str, words), "--output", str(file)]
        return Part(f"report: {file.name}", command, file)

    if files := summaries(plan, "ranking"):
        yield table("ranking", "tables", "ranking", *files, *published)
        yield picture("ranking", "ranking-accuracy", *files)
        examples = ["--examples", *map(str, beside(files, "examples"))]
        conventions, length = report / "conventions.jsonl", report / "length.jsonl"
        yield table("conventions", "conventions", *examples, *published, "--output", conventions)
        yield table("length", "length_difference", *examples, "--output", length)
        yield picture("length", "length-difference", length)
    if files := summaries(plan, "idealized"):
        yield table("idealized", "tables", "idealized", *files)
        for kind, name, figure in (("curve", "idealized", "idealized-accuracy"),
                                   ("pairs", "required_loss", "required-loss")):  # fmt: skip
            for file in beside(files, kind):
                yield picture(f"{name}_{file.name.removesuffix(f'.{kind}.jsonl')}", figure, file)
    for model in plan.train:
        finished = [run for run in plan.runs(model).values() if is_finished(run / RUN_FILE)]
        files = [run / "ranking_dynamics.jsonl" for run in finished]
        if files:
            yield table(f"{slug(model)}_sweep", "tables", "sweep", *files, "--at", plan.at)
            yield picture(f"{slug(model)}_sweep", "sweep", *files, "--at", plan.at)
        for file in files:
            yield table(f"{file.parent.name}_dynamics", "tables", "dynamics", file)
            for figure in ("dynamics", "loss-against-reference", "accuracy-against-distance"):
                yield picture(f"{file.parent.name}_{figure}", figure, file)
    for file in summaries(plan, "win_rate"):
        yield table(f"{file.stem}_win_rate", "tables", "win-rate", file)
        yield picture(f"{file.stem}_win_rate", "win-rate", file)


STEPS = {"training": training_parts, "ranking": ranking_parts, "idealized": idealized_parts,
         "win-rate": win_rate_parts, "report": report_parts}  # fmt: skip


# ---------------------------------------------------------------------------- running
def check_names(parts: list[Part]) -> None:
    """ValueError where two parts would write one file: models whose names end alike."""
    files = [part.done for part in parts]
    if twice := [file for file in files if files.count(file) > 1]:
        raise ValueError(f"two parts would write {twice[0]}: rename one of the models")


def is_finished(file: Path) -> bool:
    """Whether a result file is there; a training run says itself whether it has ended."""
    if file.name == RUN_FILE and file.exists():
        return json.loads(file.read_text())["finished"]
    return file.exists()


def is_done(part: Part) -> bool:
    if not is_finished(part.done) or not part.models:
        return is_finished(part.done)
    return {*part.models} <= {row["model"] for row in read_json_lines(part.done)}


def run_part(part: Part, log: Path) -> str | None:
    """None when the command succeeds, else its last line. Output goes to `log`, a table to the
    part's file. Ctrl-C and SIGTERM are handed on, once, so that the command saves what it has."""
    for needed in part.needs:
        if not is_finished(needed):
            return f"needs {needed}, which is not there yet"
    for file in (log, part.done):
        file.parent.mkdir(parents=True, exist_ok=True)
    table = part.done.suffix == ".md"
    starter, *words = part.command
    words += ["--overwrite"] if part.models and part.done.exists() else []  # some were missing
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable if starter == "python" else starter, *words], cwd=ROOT, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if table else out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        finally:
            if process.poll() is None:  # asked twice: at once
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {process.returncode}"
    if table:
        write_text_atomically(part.done, printed)
    return None


def run_parts(parts: list[Part], logs: Path, always: bool) -> list[tuple[str, str]]:
    """Run what is not done yet, with a line each; the names of the parts that failed, and why."""
    failed = []
    for number, part in enumerate(parts, start=1):
        counter = f"{number:{len(str(len(parts)))}}/{len(parts)}"
        print(f"[{counter}] {part.name} … ", end="", flush=True)
        if is_done(part) and not always:
            print("done before")
            continue
        log, begun = logs / f"{part.name.replace('/', '-').replace(' ', '_')}.log", time.monotonic()
        problem = run_part(part, log)
        print(f"{time.monotonic() - begun:.0f} s" + (f", FAILED: {log}" if problem else ""))
        failed += [(part.name, problem)] if problem else []
    return failed


def print_parts(parts: list[Part]) -> None:
    for part in parts:
        table = f" > {shlex.quote(str(part.done))}" if part.done.suffix == ".md" else ""
        print(shlex.join(part.command) + table)


def from_anywhere(name: str) -> str:
    """Absolute if it is a path: commands run in the repository's root."""
    return os.path.abspath(name) if Path(name).exists() else name


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    names: dict[str, Any] = {"nargs": "+", "type": from_anywhere, "metavar": "NAME"}
    add("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    add("--scale", choices=SCALES, required=True,
        help="paper: the published models and settings; embedded: hours on a CPU")  # fmt: skip
    add("--output-dir", type=os.path.abspath, required=True, help="directory of all results")
    add("--data-dir", type=os.path.abspath, help="look for DATA_DIR/<hub name>/ instead of the hub")
    add("--train", **names, help="models to train")
    add("--models", **names, help="models to rank, beside ours")
    add("--datasets", **names, help=f"to rank; {TIES}: AlpacaFarm")
    add("--gammas", nargs="+", type=float, metavar="γ", help="of DPO^γ (default: the scale's)")
    add("--seeds", nargs="+", type=int, metavar="SEED", help="of training (default: the scale's)")
    add("--allow-pickle", action="store_true", help="rank models saved by pickle")
    add("--launcher", type=shlex.split, metavar="COMMAND",
        help="starts sft.py and dpo.py, e.g. 'accelerate launch --config_file FILE'")  # fmt: skip
    add("--print", action="store_true", help="show the commands and stop")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    unknown = [step for step in args.steps if step not in STEPS]
    if unknown:
        raise ValueError(f"unknown step {unknown[0]}: choose from {', '.join(STEPS)}")
    scale = SCALES[args.scale]
    choices = {name: getattr(args, name) for name in ("train", "models", "gammas", "seeds")}
    choices["datasets"] = args.datasets or scale.datasets + scale.on_disk * bool(args.data_dir)
    choices["launcher"] = args.launcher
    plan = replace(
        scale, out=Path(args.output_dir), data_dir=args.data_dir, allow_pickle=args.allow_pickle,
        **{name: choice for name, choice in choices.items() if choice},
    )  # fmt: skip
    failed = []
    for step in args.steps or STEPS:
        parts = list(STEPS[step](plan))
        check_names(parts)
        if args.print:
            print_parts(parts)
            continue
        if not parts:
            print(f"{step}: no result files under {args.output_dir} yet")
        failed += run_parts(parts, plan.out / "logs", always=step == "report")
    for name, problem in failed:
        print(f"failed: {name}: {problem}", file=sys.stderr)
    if failed:
        raise ValueError(f"{len(failed)} parts failed; the same command tries them again")


if __name__ == "__main__":
    run_script(main, parse_args())
