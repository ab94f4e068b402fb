r"""All tables and figures: the commands in order, each resumable, with a list of what failed.

    python -m reproduce.run --scale embedded --output-dir results/embedded
    python -m reproduce.run ranking idealized --scale embedded --data-dir DATA_DIR \
        --output-dir results/embedded
    python -m reproduce.run training --scale paper --output-dir results/paper --print
    python -m reproduce.run search training --scale paper --output-dir results/paper --train gpt2

Steps: search (the grids of SFT and DPO on the first seed, of which training takes the points of the
lowest validation loss), training (SFT, then DPO^γ for every γ and seed), ranking (every model ×
dataset), idealized, pairs (hard and easy ones with the losses of γ = 1), win-rate (on training and
on test prompts), report (tables and pictures of the result files that are there).
Without steps: all but search and, where the judge is paid by the call, win-rate; with the defaults
of --scale paper that is some 460,000 calls, of about 30 dollars per 1000:

    python -m reproduce.run win-rate report --scale paper --output-dir results/paper

Training waits for a search of its model that was begun; OUTPUT_DIR/search moved away, it does not.
A part whose result exists is not run again; one that was killed resumes. Each part writes its own
log under OUTPUT_DIR/logs; a part that fails is listed at the end, and the others go on. --print
shows the commands instead, for a cluster's scheduler; those of training are with the values that a
search chose once it has ended.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ranking.plumbing.command_line import make_parser, positive_int, run_script
from ranking.plumbing.result_files import read_json_lines, write_text_atomically
from reproduce.scales import SCALES, TIES
from reproduce.steps import (
    STEPS,
    Part,
    has_diverged,
    is_finished,
    is_paid,
    steps_by_default,
)

ROOT = Path(__file__).parents[1]


def check_names(parts: list[Part]) -> None:
    """ValueError where two parts would write one file: models whose names end alike, or a model,
    dataset or seed given twice."""
    files = [part.done for part in parts]
    if twice := [file for file in files if files.count(file) > 1]:
        raise ValueError(f"two parts would write {twice[0]}: give models, datasets and seeds once, "
                         "and rename models whose names end alike")  # fmt: skip


def is_done(part: Part) -> bool:
    if part.may_diverge and has_diverged(part.done):
        return True
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


def drop_checkpoints(part: Part) -> None:
    """Of a run of a search that is done with: nothing resumes from them, and a grid fills disks."""
    for folder in part.done.parent.glob("checkpoint-*"):
        shutil.rmtree(folder)


def run_parts(parts: list[Part], logs: Path, always: bool) -> list[tuple[str, str]]:
    """Run what is not done yet, with a line each; the names of the parts that failed, and why."""
    failed = []
    for number, part in enumerate(parts, start=1):
        counter = f"{number:{len(str(len(parts)))}}/{len(parts)}"
        print(f"[{counter}] {part.name} … ", end="", flush=True)
        if is_done(part) and not always:
            print(
                "diverged before" if part.may_diverge and has_diverged(part.done) else "done before"
            )
            continue
        log, begun = logs / f"{part.name.replace('/', '-').replace(' ', '_')}.log", time.monotonic()
        problem = run_part(part, log)
        if part.may_diverge and is_done(part):
            drop_checkpoints(part)
        seconds = f"{time.monotonic() - begun:.0f} s"
        if problem and is_done(part):
            print(f"{seconds}, {problem}")
            continue
        print(seconds + (f", FAILED: {log}" if problem else ""))
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
    add("--datasets", **names, help=f"to rank; {TIES}: AlpacaFarm, its tied pairs too")
    add("--gammas", nargs="+", type=float, metavar="γ", help="of DPO^γ (default: the scale's)")
    add("--seeds", nargs="+", type=int, metavar="SEED", help="of training (default: the scale's)")
    add("--allow-pickle", action="store_true", help="rank models saved by pickle")
    add("--launcher", type=shlex.split, metavar="COMMAND",
        help="starts sft.py and dpo.py, e.g. 'accelerate launch --config_file FILE'")  # fmt: skip
    add("--processes", type=positive_int, default=1,
        help="of --launcher, which share a step's batch (default: 1)")  # fmt: skip
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
    if args.processes > 1 and not args.launcher:
        raise ValueError(f"--processes {args.processes} without --launcher, which starts them")
    plan = replace(
        scale, out=Path(args.output_dir), data_dir=args.data_dir, allow_pickle=args.allow_pickle,
        processes=args.processes,
        **{name: choice for name, choice in choices.items() if choice},
    )  # fmt: skip
    if not args.steps and is_paid(plan):
        print(f"win-rate left out: its judge, {plan.judge}, is paid by the call; name the step to "
              "run it", file=sys.stderr)  # fmt: skip
    failed = []
    for step in args.steps or steps_by_default(plan):
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
