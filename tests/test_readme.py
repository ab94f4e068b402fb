"""The pages' commands parse, those of README.md run; links, tables and versions are right."""

import ast
import importlib
import json
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ranking.judging.responses import Answer
from ranking.judging.verdicts import Judged
from ranking.metrics.accuracy import AccuracyRow
from ranking.metrics.benchmarks import BenchmarkPart, BenchmarkRow
from ranking.metrics.comparison import ComparedModel, ComparedPair, ComparisonRow
from ranking.metrics.groups import GroupMean, GroupValue
from ranking.metrics.idealized import CurveRow, IdealizedGroup, IdealizedRow, PairRow
from ranking.metrics.rewards import ChesPrediction, RewardGroupValue, RewardPair, RewardRow
from ranking.metrics.win_rate import WinRateRow
from ranking.reports.page_columns import COMPLETION_COLUMNS, PAIR_COLUMNS
from ranking.scoring.examples_file import ExampleRecord, ScoredCompletion
from ranking.scoring.flags import chat_options
from ranking.training.dynamics_file import DynamicsRow
from ranking.training.run_directory import Results, TrainingRun
from reproduce import update_readmes

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "docs/", "reproduce/", "reproduce/results/", "benchmarks/", "data/")
PAGES = [
    str(path.relative_to(ROOT)) for name in FOLDERS for path in sorted((ROOT / name).glob("*.md"))
]
MAKE = ("make", "-n", "VENV=.venv", "DEMO=results/demo")
LIBRARIES = ["torch", "transformers.trainer", "transformers.models.llama.modeling_llama", "datasets",
             "trl.trainer.dpo_trainer", "trl.trainer.sft_trainer", "peft", "matplotlib.pyplot"]  # fmt: skip
FEW = {  # flags that make a script's command short
    "calculate_calibration_metrics.py": ["--sample-size=4"],
    "calculate_upper_bound_rlhf.py": ["--sample-size=4"],
    "calculate_win_rate.py": ["--sample-size=4", "--max-new-tokens=4"],
    "sft.py": [
        "--max_train_samples=8",
        "--max_eval_samples=4",
        "--max_steps=1",
        "--report_to=none",
    ],
    "dpo.py": [
        "--max_train_samples=8",
        "--max_eval_samples=4",
        "--max_steps=1",
        "--report_to=none",
    ],
    "reproduce/run.py": ["--print"],
}


def page_text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def page_commands(page: str) -> list[list[str]]:
    """[launcher…, script, argument…] of every command that runs a script of ours, in the order of
    the page: lines of shell blocks, and `python …` within a sentence or a table."""
    text = page_text(page)
    ours = r"(?:-m (?:reproduce|benchmarks)\.|[^`]+\.py )"
    found = re.findall(rf"```(?:bash|sh)\n(.*?)```|(?<!`)`(python {ours}[^`]*)`", text, re.S)
    lines = [line for block, inline in found
             for line in (block.replace("\\\n", " ").splitlines() or [inline])]  # fmt: skip
    as_files = [re.sub(r"python -m (\w+)\.(\w+)", r"python \1/\2.py", line) for line in lines]
    commands = [shlex.split(line, comments=True) for line in as_files]
    launchers = ("python", "torchrun", "accelerate")
    ours = [command for command in commands if command and command[0] in launchers]
    return [command for command in ours if command[1] not in ("-c", "-m")]


def without_launcher(command: list[str]) -> list[str]:
    """[script, argument…]"""
    return command[next(i for i, word in enumerate(command) if word.endswith(".py")) :]


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page):
    for command in page_commands(page):
        script, *arguments = without_launcher(command)
        assert (ROOT / script).is_file(), script
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        module.parse_args(arguments)


def test_no_page_lost_its_commands():
    shown = {page: len(page_commands(page)) for page in PAGES}
    for page, least in (("README.md", 12), ("reproduce/README.md", 4), ("reproduce/results/README.md", 8), ("benchmarks/README.md", 8),
                        ("docs/evaluation.md", 3), ("docs/training.md", 2), ("docs/devices.md", 3),
                        ("docs/win_rate.md", 4), ("docs/reliability.md", 2)):  # fmt: skip
        assert shown[page] >= least, page


# ---------------------------------------------------------------------------- README.md's commands
def make_commands(*targets: str) -> list[list[str]]:
    """[script, argument…] of what `make TARGET…` runs with the Python that it sets up."""
    printed = subprocess.check_output([*MAKE, *targets], cwd=ROOT, text=True)
    commands = [shlex.split(line) for line in printed.replace("\\\n", " ").splitlines()]
    ours = [c for c in commands if c[:1] == [".venv/bin/python"] and c[1].endswith(".py")]
    return [command[1:] for command in ours]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, tiny_model_directory) -> Path:
    """A working directory with a tiny model, a judge, and data in the place of the hub's."""
    judge = AutoModelForSequenceClassification.from_pretrained(tiny_model_directory, num_labels=1)
    judge.save_pretrained(tmp_path / "judge")
    for file in tiny_model_directory.glob("tokenizer*"):
        (tmp_path / "judge" / file.name).write_bytes(file.read_bytes())
    rows = map(json.loads, page_text("data/sample_preferences.jsonl").splitlines())
    pairs = [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse}
        for row in rows if row["ranks"] == [1, 2] for better, worse in [row["completions"]]
    ]  # fmt: skip
    write_lines(tmp_path / "my_pairs.jsonl", pairs)
    hh = [{side: p["prompt"] + p[side] for side in ("chosen", "rejected")} for p in pairs]
    for split, part in (("train", hh[:20]), ("test", hh[20:])):
        write_lines(tmp_path / f"data/Anthropic/hh-rlhf/{split}.jsonl", part)
    votes = [
        {"instruction": p["prompt"], "output_1": p["chosen"], "output_2": p["rejected"],
         "preference": preference}
        for p in pairs for preference in (1, 1, 1, 2)
    ]  # fmt: skip
    alpaca = tmp_path / "data/tatsu-lab/alpaca_eval/alpaca_farm_human_crossannotations.json"
    alpaca.parent.mkdir(parents=True)
    alpaca.write_text(json.dumps(votes), encoding="utf-8")
    return tmp_path


def test_the_example_of_the_class_runs(folder, tiny_model_directory, monkeypatch, capsys):
    """docs/training.md's, in another directory, with a tiny model in the place of gpt2."""
    (code,) = re.findall(r"```python\n(.*?)```", page_text("docs/training.md"), re.S)
    assert len([line for line in code.splitlines() if line]) <= 18 and code.count('"gpt2"') == 2
    monkeypatch.chdir(folder)
    exec(code.replace('"gpt2"', repr(str(tiny_model_directory))), {})
    accuracy = float(capsys.readouterr().out.splitlines()[-1])
    rows = [json.loads(line) for line in (folder / "DPO_DIR/ranking_dynamics.jsonl").open()]
    right = [row["group"].endswith("_to_correct") for row in rows]
    assert {row["gamma"] for row in rows} == {0.5} and accuracy == sum(right) / len(right)
    assert AutoModelForCausalLM.from_pretrained(folder / "DPO_DIR").config.model_type == "llama"


def shortened(command: list[str], model: Path) -> list[str]:
    """The command with the tiny model, the local judge and data, and few examples."""
    named = re.compile(r"(?<![\w/.-])(gpt2|SmolLM2-135M-Instruct)$")
    script, *arguments = [named.sub(str(model), word) for word in command]
    arguments = [
        word.replace("alpaca_eval:alpaca_eval_gpt4", "reward-model:judge") for word in arguments
    ]
    if "--reference-examples" in arguments:  # nothing is scored
        return [script, *arguments]
    from_hub = not any(word.endswith(("sample", "my_pairs.jsonl")) for word in arguments)
    data = ["--data-dir=data"] if script in FEW and from_hub else []
    return [script, *arguments, *FEW.get(script, []), *data]


def run_as_script(command: list[str], folder: Path, log: Path) -> None:
    """In a process of its own: `python SCRIPT ARGUMENT…` in the folder; what it prints goes to `log`."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ["RANKING_ACC_CACHE"] = str(folder / "cache")
    sys.argv = command
    runpy.run_path(str(ROOT / command[0]), run_name="__main__")


@pytest.mark.slow
def test_readme_commands_run(folder, tiny_model_directory, monkeypatch):
    """In their order, as they stand but for model, judge, place of the data and number of examples:
    each ends with exit code 0, and the files that the page names are there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # forked processes cannot share a GPU
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(LIBRARIES)  # imported once for all commands
    shown = [without_launcher(command) for command in page_commands("README.md")]
    for number, command in enumerate([*make_commands("demo", "demo-train"), *shown]):
        command = shortened(command, tiny_model_directory)
        log = folder / f"{number}.log"
        process = processes.Process(target=run_as_script, args=(command, folder, log))
        process.start()
        process.join()
        assert process.exitcode == 0, f"{shlex.join(command)}\n{log.read_text()[-3000:]}"
    readme = page_text("README.md")
    named = set(re.findall(r"`(results/[\w./-]+)`", readme)) - {"results/paper/report/"}  # --print
    assert len(named) >= 6
    for name in (*named, "results/demo/dpo_gamma0/ranking_dynamics.jsonl", "results/gap.jsonl"):
        assert (folder / name).exists(), name
    for number, title in enumerate(("Ranking accuracy, % [95 % interval]", "R̃* min / med / max")):
        assert title in (folder / f"{number}.log").read_text() and title in readme


# ---------------------------------------------------------------------------- links, names, tables
def anchors(page: Path) -> set[str]:
    """Of the page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    """Every relative link leads to a file of the checkout, and to a heading of it."""
    text = re.sub(r"```.*?```", "", page_text(page), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_one_screen():
    """At most 150 lines, a picture, a link to each page of docs/; each name of the tree exists."""
    readme = page_text("README.md")
    assert len(readme.splitlines()) <= 150
    for page, least in (("README.md", 1), ("reproduce/results/README.md", 8)):
        assert len(re.findall(r"!\[[^]]*\]\([^)]+\.png\)", page_text(page))) >= least
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, page.name
    tree = re.findall(r"^\| (`.*?`) \| .*\|$", readme.split("| the tree |")[1], re.M)
    names = [name for cell in tree for name in re.findall(r"`([\w./]+)`", cell)]
    heart = re.findall(r"(?<![\w/])((?:ranking/)?[\w/]+\.py)\b", readme)
    assert "ranking/scoring" in names and "dpo.py" in heart
    for name in [*names, *heart]:
        assert (ROOT / name).exists(), name


def columns_of_tables() -> set[str]:
    """Texts in lists that functions of ranking/reports call `columns`, without intervals and R̃."""
    found = set()
    for file in (ROOT / "ranking/reports").glob("[!p]*.py"):  # the page has a legend of its own
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef) or not function.name.endswith("_table"):
                continue
            for node in ast.walk(function):
                named = getattr(node, "targets", [getattr(node, "target", None)])
                if [getattr(name, "id", None) for name in named] == ["columns"]:
                    texts = [n for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
                    found |= {n.value for n in texts if isinstance(n.value, str)}
    return {re.sub(r" \[95 %\]|, %$|^\W*(?=\w)", "", text).strip() for text in found} - {""}


def test_every_column_is_defined_in_the_page_on_reading():
    """Those of the tables on the screen, of the page's and wandb's pairs, and of completions."""
    text = page_text("docs/reading.md")
    titles = columns_of_tables() | {column.title for column in PAIR_COLUMNS}
    assert {"chance", "AUC", "both fell", "win rate", "log-ratio, nats"} <= titles
    assert [title for title in sorted(titles) if title not in text] == []
    for column in COMPLETION_COLUMNS:
        assert column.title.removesuffix(", %") in text, column.title


ACCURACY, IDEALIZED = "Ranking accuracy", "Idealized ranking accuracy"
OF_FILES = [  # sections of docs/outputs.md, and what the lines of their files are
    ([ACCURACY], (ExampleRecord, ScoredCompletion, AccuracyRow, BenchmarkRow, BenchmarkPart)),
    ([ACCURACY], (RewardRow, RewardPair, RewardGroupValue, ChesPrediction, GroupValue, GroupMean)),
    ([ACCURACY], (ComparisonRow, ComparedModel, ComparedPair)),
    ([IDEALIZED, ACCURACY], (IdealizedRow, IdealizedGroup, CurveRow)),
    ([IDEALIZED], (PairRow,)),
    (["Training"], (DynamicsRow, TrainingRun, Results)),
    (["Win rate"], (WinRateRow, Judged, Answer)),
]


@pytest.mark.parametrize(
    "sections, kind", [(sections, kind) for sections, kinds in OF_FILES for kind in kinds]
)
def test_every_key_of_a_result_file_is_documented(sections, kind):
    text = page_text("docs/outputs.md")
    found = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.S | re.M))
    code = re.findall(r"`([^`\n]+)`", "".join(found[section] for section in sections))
    words = set(re.findall(r"\w+", " ".join(code)))
    assert kind.__required_keys__ | kind.__optional_keys__ <= words


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("accelerate_configs/*.yaml")), ids=lambda p: p.stem
)
def test_launch_files_are_accelerates(path):
    """accelerate reads each of them (it refuses unknown keys), and docs/ shows its command."""
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 and config.num_machines == 1
    assert f"--config_file accelerate_configs/{path.name} dpo.py" in path.read_text()
    assert f"accelerate_configs/{path.name}" in page_text("docs/devices.md")


@pytest.mark.parametrize("readme", update_readmes.READMES)
def test_tables_of_the_readmes_are_those_of_the_result_files(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert "<!-- tables.py " in text
    assert update_readmes.updated(text) == text


def source_of(script: str) -> str:
    """A script, if one is named, with all that it may call."""
    files = [ROOT / script] if script else []
    return "".join(file.read_text() for file in [*files, *ROOT.glob("ranking/*/*.py")])


def test_every_flag_is_read():
    """No dead flags: each destination appears as args.<name> (or getattr) somewhere in the scripts."""
    scoring = (ROOT / "ranking/scoring/flags.py").read_text()
    for script, shared in (("calculate_calibration_metrics", scoring),
                           ("calculate_upper_bound_rlhf", scoring),
                           ("calculate_win_rate", ""), ("plot_results", "")):  # fmt: skip
        source = (ROOT / f"{script}.py").read_text() + shared
        for flag in re.findall(r'"--([a-z][a-z0-9-]*)"', source):
            name = flag.replace("-", "_")
            assert re.search(rf'args\.{name}\b|"{name}"', source + source_of("")), flag


def test_every_training_flag_is_read():
    """Each field that the training scripts add to TRL's is used somewhere in their source; those of
    the template, by their names, in what both kinds of scripts read them with."""
    import dataclasses
    import inspect

    from dpo import DPODataArguments
    from sft import SFTDataArguments

    for script, kind in (("dpo", DPODataArguments), ("sft", SFTDataArguments)):
        source = source_of(f"{script}.py")
        for field in dataclasses.fields(kind):
            read = rf'args\.{field.name}\b|self\.{field.name}\b|== "--{field.name}"'
            of_chat = f'"{field.name}"' in inspect.getsource(chat_options)
            assert re.search(read, source) or of_chat, field.name


@pytest.mark.parametrize("name", ["environment.yaml", "environment_dpo.yaml"])
def test_environment_files(name):
    environment = yaml.safe_load((ROOT / name).read_text())
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    for entry in pip:
        assert (ROOT / entry.removeprefix("-r ")).is_file()
    assert (
        f"conda env create -f {name} -n {environment['name']}" in (ROOT / "README.md").read_text()
    )


def test_installed_versions_are_the_pinned_ones():
    for name in ("requirements.txt", "requirements_trl.txt"):
        for package, pinned in re.findall(r"^([\w-]+)==(\S+)", (ROOT / name).read_text(), re.M):
            assert version(package) == pinned
