"""The commands of each step, as `python -m reproduce.run` runs them."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from ranking.data.hub import ALPACA_FARM
from ranking.reports.dynamics import DYNAMICS_FILE
from reproduce.scales import HH, TIES, Plan, slug

RUN_FILE = "run_config.json"  # of sft.py and dpo.py; says whether the run has ended
WITH_VOTES = ("sample", ALPACA_FARM, TIES)
BESIDE_SUMMARIES = {".examples", ".pairs", ".curve", ".responses", ".reference", ".policy"}


class Part(NamedTuple):
    """One command. It is done when `done` is there, finished and with rows of all `models`.

    done: its result; a table (.md) is what it prints. needs: results of other parts. may_diverge:
    a training run of a search, which is done with, too, when its loss was not finite.
    """

    name: str
    command: list[str]
    done: Path
    needs: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    may_diverge: bool = False


def is_finished(file: Path) -> bool:
    """Whether a result file is there; a training run says itself whether it has ended."""
    if file.name == RUN_FILE and file.exists():
        return json.loads(file.read_text())["finished"]
    return file.exists()


def has_diverged(file: Path) -> bool:
    """Whether a training run ended with a loss that is not finite, as its RUN_FILE says."""
    return file.exists() and "diverged" in json.loads(file.read_text())


def is_tested(dynamics_file: Path) -> bool:
    """Whether the run evaluated its test pairs with the validation pairs."""
    settings = json.loads(dynamics_file.with_name(RUN_FILE).read_text()).get("settings", {})
    return bool(settings.get("evaluate_test"))


def evaluation(name: str, script: str, words: list, done: Path, needs=(), models=()) -> Part:
    words = ["python", script, *words, "--output-dir", done.parent, "--output-filename", done.name]
    return Part(name, [str(word) for word in words], done, (*needs,), (*models,))


def training_part(plan: Plan, name: str, script: str, flags: dict, needs=()) -> Part:
    """A run of sft.py or dpo.py into its output_dir."""
    folder = Path(flags["output_dir"])
    flags = flags | {"wandb_run_name": folder.name}
    flags |= {"data_dir": plan.data_dir} if plan.data_dir else {}
    words = [f"--{flag}={value}" for flag, value in flags.items()]
    return Part(name, [*plan.launcher, f"{script}.py", *words], folder / RUN_FILE, needs)


def training_parts(plan: Plan) -> Iterator[Part]:
    """Fig. 2, 3, 5-8, 9b: SFT, then DPO^γ for every γ and seed, with what a search chose; where one
    was begun, not before it has chosen for both. Where checkpoints are judged later, the chosen run
    keeps them all, the others the best and the last.
    """
    for model in plan.train:
        begun = plan.search_folder(model).exists()
        searched = (plan.search_file(model, "dpo"),) if begun else ()
        values = plan.chosen_values(model, "sft")
        for seed in plan.seeds if plan.sft_per_seed else [None]:
            sft = plan.sft_folder(model, seed)
            flags = {"model_name": model, "output_dir": sft, **plan.flags(model, "sft", **values)}
            flags |= {"seed": seed} if plan.sft_per_seed else {}
            of_seed = f", seed {seed}" if plan.sft_per_seed else ""
            yield training_part(plan, f"SFT: {slug(model)}{of_seed}", "sft", flags, searched)
        values = plan.chosen_values(model, "dpo")
        for (gamma, seed), run in plan.runs(model).items():
            sft = plan.sft_folder(model, seed)
            flags = {"model_name_or_path": sft, "output_dir": run, "alpha": f"{gamma:g}",
                     "seed": seed, **plan.flags(model, "dpo", **values),
                     "evaluate_test": "true"}  # fmt: skip
            if not plan.keeps_checkpoints or run != plan.chosen_run(model):
                flags["save_total_limit"] = 1
            name = f"DPO: {slug(model)}, γ = {gamma:g}, seed {seed}"
            yield training_part(plan, name, "dpo", flags, (*searched, sft / RUN_FILE))


def search_parts(plan: Plan) -> Iterator[Part]:
    """App. D.1: SFT at every point of its grid, of which the lowest validation loss chooses, then
    DPO (γ = 1) from the chosen model; on the first seed. The chosen SFT run becomes the one that
    training would make."""
    for model in plan.train:
        sft, folder = plan.sft_folder(model), plan.search_folder(model)
        check_not_trained(plan, model)
        starts: dict[str, dict] = {
            "sft": {"model_name": model},
            "dpo": {"model_name_or_path": sft, "alpha": "1"},
        }
        for script, start in starts.items():
            grid, points = plan.training(model, script).grid, []
            for values in product(*grid.values()):
                point = dict(zip(grid, values))
                place = folder / "_".join([script, *(f"{k}{v:g}" for k, v in point.items())])
                flags = {**start, "output_dir": place, **plan.flags(model, script, **point)}
                flags |= {"seed": plan.seeds[0], "save_total_limit": 1}
                if script == "sft" and not plan.sft_per_seed:
                    del flags["seed"]
                words = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in point.items())
                name = f"search: {script.upper()}: {slug(model)}, {words}"
                needs = (sft / RUN_FILE,) if script == "dpo" else ()
                part = training_part(plan, name, script, flags, needs)
                yield part._replace(may_diverge=True)
                points.append(str(place))
            done = plan.search_file(model, script)
            command = ["python", "-m", "reproduce.search", *points, "--output", str(done)]
            command += ["--link", str(sft)] if script == "sft" else []
            yield Part(f"search: {script.upper()} of {slug(model)}, choice", command, done)


def check_not_trained(plan: Plan, model: str) -> None:
    """ValueError where runs of `training` are there that a search would contradict."""
    if plan.search_file(model, "dpo").exists():
        return
    sft = [folder for folder in (plan.sft_folder(model, seed) for seed in plan.seeds)
           if folder.exists() and not folder.is_symlink()]  # fmt: skip
    runs = [folder for folder in plan.runs(model).values() if folder.exists()]
    if found := [*sft, *runs]:
        raise ValueError(f"{found[0]} was trained without a search: move it away, or search in "
                         "another --output-dir")  # fmt: skip


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
    with_votes = [name for name in plan.datasets if name in WITH_VOTES]
    for (tuned, reference), dataset in product(plan.tuned().items(), with_votes):
        ranked = [plan.ranking_file(model, dataset) for model in (reference, tuned)]
        examples = [file.with_name(f"{file.stem}.examples.jsonl") for file in ranked]
        words = ["--reference-examples", examples[0], "--policy-examples", examples[1]]
        words += ["--include-ties"] * (dataset == TIES)
        name = f"idealized: {slug(tuned)} × {slug(dataset)}"
        done = plan.out / "idealized" / f"{slug(tuned)}_{slug(dataset)}.jsonl"
        yield evaluation(name, "calculate_upper_bound_rlhf.py", words, done, ranked)


def pairs_parts(plan: Plan) -> Iterator[Part]:
    """Tables 7-9: all pairs of the evaluation split with c under each SFT model, and the losses of
    the seeds' runs of one γ. An α has to be assumed without votes; neither depends on it."""
    for model in plan.train:
        dataset = plan.trained_on(model)
        words = ["--dataset", f"{HH}:test" if dataset == HH else dataset, "--sample-size", "-1"]
        words += [*["--assumed-proportion", "0.75"] * (dataset not in WITH_VOTES)]
        of_gamma = plan.runs_of_gamma(model)
        for folder in dict.fromkeys(run.parent for run in of_gamma.values()):
            seeds = [seed for seed, run in of_gamma.items() if run.parent == folder]
            runs, sft = [of_gamma[seed] for seed in seeds], plan.sft_folder(model, seeds[0])
            flags = ["--lm-name-or-path", sft, *words, *plan.data_flags(), "--dynamics"]
            flags += [run / DYNAMICS_FILE for run in runs]
            needs = [run / RUN_FILE for run in runs]
            done = plan.out / "pairs" / f"{folder.name}.jsonl"
            script = "calculate_upper_bound_rlhf.py"
            yield evaluation(f"pairs: {folder.name}", script, flags, done, needs)


def win_rate_parts(plan: Plan) -> Iterator[Part]:
    """Fig. 4, 9-12: the runs of the sweep, and the checkpoints of one, by a served judge or by a
    reward model that is trained first; on training and on test prompts. The models were trained on
    text: no chat template."""
    for dataset in dict.fromkeys(map(plan.trained_on, plan.train)):
        file = plan.test_part(dataset)
        command = ["python", "-m", "reproduce.write_part", "--dataset", dataset]
        command += [*plan.data_flags(), "--output", str(file)]
        yield Part(f"test prompts: {slug(dataset)}", command, file)
    for model in plan.train:
        chosen, runs, judge = plan.chosen_run(model), plan.runs(model), plan.judge
        words: list = ["--chat-template", "never", "--judge"]
        if isinstance(judge, str):
            words += [judge, *plan.win_rate]
        else:
            sft, folder = plan.sft_folder(model), plan.out / f"{slug(model)}_reward_model"
            command = ["python", "-m", "reproduce.train_reward_model", "--lm-name-or-path"]
            command += [str(sft), "--output-dir", str(folder), *judge, *plan.data_flags()]
            done = folder / "accuracy.json"
            yield Part(f"reward model: {slug(model)}", command, done, (sft / RUN_FILE,))
            unseen = folder / "policy_examples.jsonl"
            words += [f"reward-model:{folder}", *plan.win_rate, "--dataset", unseen]
        groups: dict[Path, tuple[Path, list[Path]]] = {}  # folder → reference, runs
        for (_, seed), run in runs.items():
            groups.setdefault(run.parent, (plan.sft_folder(model, seed), []))[1].append(run)
        if plan.keeps_checkpoints:
            groups[chosen] = plan.sft_folder(model), []
        tested = plan.test_part(plan.trained_on(model))
        for (folder, (sft, models)), on_test in product(groups.items(), (False, True)):
            stem = folder.name + "_test" * on_test
            flags = ["--checkpoints", folder, "--reference-name-or-path", sft, *words]
            flags += [*plan.data_flags(), *["--dataset", tested] * on_test]
            needs = [run / RUN_FILE for run in models or [folder]] + [tested] * on_test
            name, done = f"win rate: {stem}", plan.out / "win_rate" / f"{stem}.jsonl"
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
        if found := beside(files, "examples"):
            examples = ["--examples", *map(str, found)]
            of_rules, length = report / "conventions.jsonl", report / "length.jsonl"
            yield table("conventions", "conventions", *examples, *published, "--output", of_rules)
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
        files = [run / DYNAMICS_FILE for run in finished]
        if files:
            yield table(f"{slug(model)}_sweep", "tables", "sweep", *files, "--at", plan.at)
            yield picture(f"{slug(model)}_sweep", "sweep", *files, "--at", plan.at)
            yield table(f"{slug(model)}_flips", "tables", "flips", *files)
        if len(tested := [file for file in files if is_tested(file)]) > 1:
            yield picture(f"{slug(model)}_losses", "losses", *tested)
        for file in files:
            yield table(f"{file.parent.name}_dynamics", "tables", "dynamics", file)
            figures = ["dynamics", "loss-against-reference", "accuracy-against-distance"]
            for figure in figures + ["losses"] * (file in tested):
                yield picture(f"{file.parent.name}_{figure}", figure, file)
            yield picture(f"{file.parent.name}_flips", "flips", file, "--at", plan.at)
        names = {run.parent.name for run in plan.runs_of_gamma(model).values()}
        found = [plan.out / "pairs" / f"{name}.jsonl" for name in sorted(names)]
        if pairs := beside([file for file in found if file.exists()], "pairs"):
            yield table(
                f"{slug(model)}_pairs", "tables", "pairs", *pairs, *beside(found, "examples")
            )
    for file in sorted((plan.out / "search").glob("*.jsonl")):
        yield table(f"{file.stem}_search", "tables", "search", file)
    for file in summaries(plan, "win_rate"):
        yield table(f"{file.stem}_win_rate", "tables", "win-rate", file)
        yield picture(f"{file.stem}_win_rate", "win-rate", file)


STEPS = {
    "search": search_parts, "training": training_parts, "ranking": ranking_parts,
    "idealized": idealized_parts, "pairs": pairs_parts, "win-rate": win_rate_parts,
    "report": report_parts,
}  # fmt: skip


def is_paid(plan: Plan) -> bool:
    """Whether the judge is a served model, which is paid for by the call, and no reward model."""
    return isinstance(plan.judge, str)


def steps_by_default(plan: Plan) -> list[str]:
    """All but the search and what a paid judge is asked for."""
    left_out = {"search", "win-rate"} if is_paid(plan) else {"search"}
    return [step for step in STEPS if step not in left_out]
