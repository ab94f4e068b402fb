"""A policy against its reference: the script with two models, two files, and one of each; TRL's own
rewards; kills, wrong flags, cost."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_documented
from datasets import Dataset
from paused import ROWS_WRITTEN, start_paused
from test_calculate_calibration_metrics import SCRIPT, launch, read_wandb_keys
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from calculate_calibration_metrics import main, parse_args
from ranking.metrics.benchmarks import BenchmarkRow
from ranking.metrics.rewards import RewardPair, RewardRow
from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import hash_config, read_json_lines, write_json_lines

ROOT = Path(__file__).parents[1]
DATA = ("--dataset", "sample", "--sample-size", 14)
LIGHT = (
    "import sys, runpy; sys.argv = ['calculate_calibration_metrics.py', *sys.argv[1:]]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy import'\n"
)


def words(folder, *more, name="run.jsonl") -> list[str]:
    return [str(x) for x in ("--output-dir", folder, "--output-filename", name, *more)]


def run(folder, *more, name="run.jsonl") -> None:
    run_script(main, parse_args(words(folder, *more, name=name)))


def error_of(capsys, folder, *more, name="run.jsonl") -> str:
    """The one line with which a wrong command ends."""
    with pytest.raises(SystemExit) as stop:
        run(folder, *more, name=name)
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and len(errors) == 1
    return errors[0]


@pytest.fixture(scope="module")
def tuned(tiny_model_directory, tmp_path_factory) -> Path:
    """The tiny model with other weights, as after training."""
    folder = tmp_path_factory.mktemp("tuned")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.abs().mean() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_directory).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def both(tuned, tiny_model_directory, tmp_path_factory) -> Path:
    """A run that scored policy and reference."""
    folder = tmp_path_factory.mktemp("both")
    reference = ("--reference-name-or-path", tiny_model_directory)
    run(folder, "--lm-name-or-path", tuned, *reference, *DATA, "--beta", 0.5)
    return folder


def files_of(folder: Path) -> tuple[Path, Path]:
    """Examples files of policy and reference."""
    return folder / "run.examples.jsonl", folder / "run.reference.examples.jsonl"


def reward_rows(file: Path) -> list[dict]:
    return [row for row in read_json_lines(file) if row["distance_metric"] == "reward_acc"]


def test_files_hold_what_the_two_examples_files_say(both, tuned, tiny_model_directory):
    pairs, rows = read_json_lines(both / "run.rewards.jsonl"), reward_rows(both / "run.jsonl")
    assert_documented(pairs, RewardPair)
    assert_documented(rows, RewardRow)
    policy, reference = ({r["id"]: r for r in read_json_lines(f)} for f in files_of(both))
    margins, right, ranked = [], [], []
    for key, record in policy.items():
        ranks = record["ranks"]
        after, before = (
            np.array([c["logp"] for c in r["completions"]]) for r in (record, reference[key])
        )
        for i, j in ((i, j) for i in range(len(ranks)) for j in range(len(ranks))):
            if ranks[i] < ranks[j]:
                margin = 0.5 * ((after - before)[i] - (after - before)[j])
                margins.append(margin)
                right.append(margin > 0)
                ranked.append(after[i] >= after[j])
    assert len(pairs) == len(margins) > 20
    assert sorted(p["reward_margin"] for p in pairs) == pytest.approx(sorted(margins))
    (row,) = [r for r in rows if r["calib_property"] == "ranking_non-length-normalized"]
    assert row["distance_metric_value_mean"] == pytest.approx(np.mean(right))
    assert row["mean_margin"] == pytest.approx(np.mean(margins))
    table = row["ranking_and_reward"]
    assert table["both_right"] == sum(a and b for a, b in zip(ranked, right))
    assert (row["model"], row["reference_model"]) == (str(tuned), str(tiny_model_directory))
    assert row["not_shared"] == {"policy": 0, "reference": 0} and row["beta"] == 0.5
    configs = [json.loads((both / f"run{x}.config.json").read_text()) for x in ("", ".reference")]
    assert [row["config_hash"], row["reference_config_hash"]] == list(map(hash_config, configs))
    assert row["reference_examples_file"] is None and "examples_file" not in row
    for picture in ("run.png", "run.rewards.png"):
        assert (both / picture).read_bytes().startswith(b"\x89PNG")


def test_says_which_model_is_scored_and_what_each_file_is(both, tuned, tmp_path, capsys):
    """Data and picture of one thing have one name; paths stand below each other."""
    reference = files_of(both)[1]
    run(tmp_path, "--lm-name-or-path", tuned, "--reference-examples", reference, *DATA)
    said = capsys.readouterr()
    assert said.err.count(f"scoring the policy, {tuned}\n") == 1
    assert "scoring the reference" not in said.err
    names = {
        "summary": "run.jsonl", "picture": "run.png", "groups picture": "run.groups.png",
        "rewards": "run.rewards.jsonl", "rewards picture": "run.rewards.png",
        "examples": "run.examples.jsonl",
    }  # fmt: skip
    listed = said.out.splitlines()[-len(names) :]
    assert listed == [f"{name:15} {tmp_path / file}" for name, file in names.items()]


def test_two_files_give_the_same_and_import_nothing_heavy(both, tmp_path):
    policy, reference = files_of(both)
    from_files = ("--policy-examples", policy, "--reference-examples", reference, "--beta", 0.5)
    command = [sys.executable, "-c", LIGHT, *words(tmp_path, *from_files)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for title in ("Ranking accuracy, %", "Implicit rewards, %", "β = 0.5",
                  "Ranking by log-likelihood and by implicit reward"):  # fmt: skip
        assert title in finished.stdout
    assert {file.name for file in tmp_path.glob("run.*")} == {
        "run.jsonl", "run.png", "run.groups.png", "run.rewards.jsonl", "run.rewards.png"}  # fmt: skip
    ours, theirs = (read_json_lines(f / "run.rewards.jsonl") for f in (tmp_path, both))
    assert ours == theirs
    ours, theirs = (read_json_lines(f / "run.jsonl") for f in (tmp_path, both))
    for row, other in zip(ours, theirs, strict=True):
        assert row.pop("examples_file") == str(policy)
        assert row.pop("reference_examples_file", str(reference)) == str(reference)
        other.pop("reference_examples_file", None)
        assert row == other


def test_a_file_alone_gives_the_summary_of_its_run(both, tmp_path):
    run(tmp_path, "--policy-examples", files_of(both)[0])
    ours = read_json_lines(tmp_path / "run.jsonl")
    theirs = [r for r in read_json_lines(both / "run.jsonl") if "reference_model" not in r]
    for row, other in zip(ours, theirs, strict=True):
        assert row["distance_metric_value_mean"] == pytest.approx(
            other["distance_metric_value_mean"]
        )
        for key in ("dropped", "path", "dtype", "config_hash", "joined_by", "separator", "n"):
            assert row[key] == other[key], key
    assert not (tmp_path / "run.rewards.jsonl").exists()


def test_a_model_against_a_file_and_a_file_against_a_model(
    both, tuned, tiny_model_directory, tmp_path
):
    policy, reference = files_of(both)
    run(tmp_path, "--lm-name-or-path", tuned, "--reference-examples", reference, *DATA,
        "--beta", 0.5, name="a.jsonl")  # fmt: skip
    run(tmp_path, "--policy-examples", policy, "--reference-name-or-path", tiny_model_directory,
        *DATA, "--beta", 0.5, name="b.jsonl")  # fmt: skip
    expected = reward_rows(both / "run.jsonl")
    for name in ("a", "b"):
        for row, other in zip(reward_rows(tmp_path / f"{name}.jsonl"), expected, strict=True):
            for key in ("mean_margin", "auc", "distance_metric_value_mean", "n"):
                assert row[key] == pytest.approx(other[key]), key
    assert (tmp_path / "a.examples.jsonl").exists()
    assert not (tmp_path / "a.reference.examples.jsonl").exists()
    assert not (tmp_path / "b.examples.jsonl").exists()
    again = ("--policy-examples", policy, "--reference-examples",
             tmp_path / "b.reference.examples.jsonl", "--beta", 0.5)  # fmt: skip
    run(tmp_path, *again, name="c.jsonl")  # the reference's file is whole: b.jsonl says so
    assert reward_rows(tmp_path / "c.jsonl")[0]["auc"] == pytest.approx(expected[0]["auc"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "one of the arguments --lm-name-or-path --policy-examples is required"),
        (["--policy-examples", "{policy}", "--lm-name-or-path", "gpt2"], "not allowed with argument"),
        (["--policy-examples", "{policy}", "--reference-examples", "{reference}",
          "--reference-name-or-path", "gpt2"], "not allowed with argument"),
        (["--policy-examples", "{policy}", "--beta", "1"], "--beta: rewards need --reference-name-or-path"),
        (["--policy-examples", "{policy}", "--reference-examples", "{reference}", "--beta", "0"],
         "--beta 0: give a β between 1e-100 and 1e100"),
        (["--policy-examples", "{policy}", "--dataset", "sample"],
         "--dataset: the data are those of --policy-examples, nothing is scored"),
        (["--policy-examples", "{policy}", "--dtype", "float16"], "--dtype: the data are those of"),
        (["--policy-examples", "{policy}", "--reference-examples", "{reference}", "--max-length", "9"],
         "--max-length: the data are those of --policy-examples"),
        (["--policy-examples", "{policy}", "--revision", "v1"], "--revision: the data are those of"),
        (["--policy-examples", "{policy}", "--reference-revision", "v1"],
         "--reference-revision v1: no model that it could be of is given"),
        (["--policy-examples", "missing.examples.jsonl"], "cannot read missing.examples.jsonl"),
        (["--policy-examples", "{policy}", "--reference-examples", "none.jsonl"], "cannot read none.jsonl"),
        (["--policy-examples", "{policy}", "--reference-examples", "{summary}"], "not an examples file"),
        (["--policy-examples", "{policy}", "--include-ties"], "was scored without: its ties are missing"),
        (["--policy-examples", "{policy}", "--reference-name-or-path", "./no-model"],
         "no such model directory: ./no-model"),
        (["--policy-examples", "{policy}", "--reference-examples", "{elsewhere}"],
         "have no example in common"),
        (["--policy-examples", "{policy}", "--reference-examples", "{policy}"],
         "run.examples.jsonl: given twice"),
        (["--policy-examples", "{policy}", "--compare", "{policy}"],
         "run.examples.jsonl: given twice"),
    ],
)  # fmt: skip
def test_wrong_commands_are_one_line(both, tmp_path, capsys, more, message):
    policy, reference = files_of(both)
    elsewhere = tmp_path / "elsewhere.jsonl"
    write_json_lines(elsewhere, [{**r, "dataset": "other"} for r in read_json_lines(reference)])
    names = {"policy": policy, "reference": reference, "summary": both / "run.jsonl",
             "elsewhere": elsewhere}  # fmt: skip
    assert message in error_of(capsys, tmp_path, *(word.format(**names) for word in more))
    assert not (tmp_path / "run.jsonl").exists()


def changed(folder: Path, file: Path, records=None, **settings) -> Path:
    """A copy of an examples file with other settings or records, its config beside it."""
    config = json.loads(Path(str(file).replace(".examples.jsonl", ".config.json")).read_text())
    config |= settings
    records = read_json_lines(file) if records is None else records
    rows = [{**record, "config_hash": hash_config(config)} for record in records]
    write_json_lines(folder / "changed.examples.jsonl", rows)
    (folder / "changed.config.json").write_text(json.dumps(config))
    (folder / "changed.jsonl").write_text("{}\n")
    return folder / "changed.examples.jsonl"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": True, "template": "0"}, "sample: chat_template false and"),
        ({"add_eos": True}, "with add_eos false and"),
        ({"system": "Be brief."}, "with system null and"),
    ],
)
def test_what_was_scored_otherwise_is_refused(both, tmp_path, capsys, settings, message):
    policy, reference = files_of(both)
    other = changed(tmp_path, reference, **settings)
    error = error_of(capsys, tmp_path, "--policy-examples", policy, "--reference-examples", other)
    assert "not the same text: " in error and "score both alike" in error
    assert message.replace("sample: chat_template", "with sample: chat_template") in error
    assert not (tmp_path / "run.jsonl").exists()


def test_two_templates_are_refused(both, tmp_path, capsys):
    policy, reference = files_of(both)
    (tmp_path / "a").mkdir()
    one = changed(tmp_path / "a", policy, chat_template=True, template="1")
    two = changed(tmp_path, reference, chat_template=True, template="2")
    error = error_of(capsys, tmp_path, "--policy-examples", one, "--reference-examples", two)
    assert 'with the chat template "1" and' in error


def test_examples_of_one_model_only_are_counted_and_precision_is_the_coarser(
    both, tmp_path, capsys
):
    policy, reference = files_of(both)
    kept = read_json_lines(reference)[3:]
    other = changed(tmp_path, reference, kept, dtype="bfloat16", model_fingerprint=f"commit {'a' * 40}",
                    revision="v3")  # fmt: skip
    from_files = ("--policy-examples", policy, "--reference-examples", other, "--beta", 0.5)
    run(tmp_path, *from_files)
    said = capsys.readouterr()
    assert "sample: examples scored 3 by the policy only, 0 by the reference only" in said.err
    (row, _) = reward_rows(tmp_path / "run.jsonl")
    assert row["not_shared"] == {"policy": 3, "reference": 0}
    assert row["n_examples"] == len(kept)
    assert (row["reference_model_commit"], row["reference_revision"]) == ("a" * 40, "v3")
    assert (row["dtype"], row["reference_dtype"]) == ("float32", "bfloat16")
    exact, _ = reward_rows(both / "run.jsonl")
    assert row["n_within_rounding"] > exact["n_within_rounding"]
    assert re.search(r"pairs differ by no more than rounding may make \(0 not at all\)", said.out)


def test_ties_of_a_file_count_only_where_they_are_asked_for(tiny_model_directory, tmp_path):
    pair = {"prompt": "Which?", "completions": [" Yes", " No"]}
    rows = [{**pair, "ranks": [1, 2]}, {**pair, "prompt": "So?", "ranks": [1, 1]}]
    write_json_lines(tmp_path / "d.jsonl", rows)
    more = ("--lm-name-or-path", tiny_model_directory, "--dataset", tmp_path / "d.jsonl")
    run(tmp_path, *more, "--include-ties")
    examples = tmp_path / "run.examples.jsonl"
    reference = changed(tmp_path, examples)
    for name, flag, dropped in (("a", ("--include-ties",), {}), ("b", (), {"all ranks tied": 1})):
        run(tmp_path, "--policy-examples", examples, "--reference-examples", reference, *flag,
            name=f"{name}.jsonl")  # fmt: skip
        found = read_json_lines(tmp_path / f"{name}.jsonl")
        (row,) = [r for r in found if r["distance_metric"] == "acc"][:1]
        assert (row["n"], row["dropped"]) == (2 - len(dropped), dropped)
        assert reward_rows(tmp_path / f"{name}.jsonl")[0]["n"] == 1


@pytest.mark.slow
def test_killed_while_the_reference_is_scored(both, tuned, tiny_model_directory, tmp_path):
    more = words(tmp_path, "--lm-name-or-path", tuned, "--reference-name-or-path",
                 tiny_model_directory, *DATA, "--beta", 0.5, "--batch-size", 1)  # fmt: skip
    n = len(read_json_lines(files_of(both)[0]))
    silent = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = start_paused(ROWS_WRITTEN, n + 3, SCRIPT, *more, **silent)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    policy, reference = files_of(tmp_path)
    before = policy.read_bytes(), reference.read_bytes()
    assert before[0].count(b"\n") == n and 0 < before[1].count(b"\n") < n
    command = [sys.executable, SCRIPT, *more]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert policy.read_bytes() == before[0] and reference.read_bytes().startswith(before[1])
    for row, other in zip(
        reward_rows(tmp_path / "run.jsonl"), reward_rows(both / "run.jsonl"), strict=True
    ):
        assert row["mean_margin"] == pytest.approx(other["mean_margin"], abs=1e-3)
        assert row["n"] == other["n"]


@pytest.mark.slow
def test_two_processes_score_both(both, tuned, tiny_model_directory, tmp_path):
    more = words(tmp_path, "--lm-name-or-path", tuned, "--reference-name-or-path",
                 tiny_model_directory, *DATA, "--beta", 0.5)  # fmt: skip
    finished = subprocess.run(launch(2, SCRIPT, *more), cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Implicit rewards, %") == 1
    assert not list(tmp_path.glob("*.part*"))
    for row, other in zip(
        reward_rows(tmp_path / "run.jsonl"), reward_rows(both / "run.jsonl"), strict=True
    ):
        assert row["auc"] == pytest.approx(other["auc"], abs=1e-3) and row["n"] == other["n"]


def test_a_run_that_is_overwritten_leaves_no_rewards(both, tmp_path, capsys):
    policy, reference = files_of(both)
    run(tmp_path, "--policy-examples", policy, "--reference-examples", reference)
    assert "--overwrite" in error_of(capsys, tmp_path, "--policy-examples", policy)
    run(tmp_path, "--policy-examples", policy, "--overwrite")
    assert not list(tmp_path.glob("run.rewards.*")) and not reward_rows(tmp_path / "run.jsonl")


def test_rewards_are_those_that_trl_logs(tuned, tiny_model_directory, tmp_path):
    """One evaluation of TRL's DPOTrainer, which appends EOS, with the same policy and reference."""
    rows = [
        {"prompt": f"Question {k}: what is it?", "chosen": f" It is {k} and {k * k}.",
         "rejected": f" Nobody knows, ask {k} times."}
        for k in range(12)
    ]  # fmt: skip
    write_json_lines(tmp_path / "pairs.jsonl", rows)
    config = DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.3, per_device_eval_batch_size=12, use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, max_length=None,
    )  # fmt: skip
    model, reference = map(AutoModelForCausalLM.from_pretrained, (tuned, tiny_model_directory))
    trainer = DPOTrainer(
        model=model, ref_model=reference, args=config, train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tuned),
    )  # fmt: skip
    logged = trainer.evaluate()
    run(tmp_path, "--lm-name-or-path", tuned, "--reference-name-or-path", tiny_model_directory,
        "--dataset", tmp_path / "pairs.jsonl", "--separator", "", "--add-eos", "--beta", 0.3)  # fmt: skip
    pairs = read_json_lines(tmp_path / "run.rewards.jsonl")
    assert len(pairs) == 12
    (row,) = [
        r for r in reward_rows(tmp_path / "run.jsonl")
        if r["calib_property"] == "ranking_non-length-normalized"
    ]  # fmt: skip
    ours = {
        "chosen": 0.3 * np.mean([pair["chosen_change"] for pair in pairs]),
        "rejected": 0.3 * np.mean([pair["rejected_change"] for pair in pairs]),
        "margins": row["mean_margin"],
        "accuracies": row["distance_metric_value_mean"],
    }
    for name, value in ours.items():
        assert value == pytest.approx(logged[f"eval_rewards/{name}"], abs=1e-4), name
    assert 0 < row["distance_metric_value_mean"] < 1 and abs(row["mean_margin"]) > 1e-2


def test_benchmarks_are_given_by_implicit_reward_too(tuned, tiny_model_directory, tmp_path, capsys):
    rows = [{"prompt": f"Q{k}?", "chosen": f" yes {k}", "rejected": f" no {k}"} for k in range(9)]
    (tmp_path / "LLMBar").mkdir()
    data = tmp_path / "LLMBar/natural.jsonl"
    write_json_lines(data, rows)
    run(tmp_path, "--lm-name-or-path", tuned, "--reference-name-or-path", tiny_model_directory,
        "--dataset", data)  # fmt: skip
    printed = capsys.readouterr().out
    assert "LLMBar, by likelihood, %" in printed and "LLMBar, by implicit reward, %" in printed
    found = read_json_lines(tmp_path / "run.jsonl")
    benchmarks = [row for row in found if row["distance_metric"] == "benchmark"]
    assert_documented(benchmarks, BenchmarkRow)
    accuracy = {row["calib_property"]: row["distance_metric_value_mean"]
                for row in found if row["distance_metric"] == "reward_acc"}  # fmt: skip
    by_reward = {row["calib_property"]: row["distance_metric_value_mean"]
                 for row in benchmarks if row["scored_by"] == "implicit reward"}  # fmt: skip
    assert len(benchmarks) == 4 and by_reward == pytest.approx(accuracy)


def test_wandb_keys(both, tmp_path, wandb_offline):
    policy, reference = files_of(both)
    run(tmp_path, "--policy-examples", policy, "--reference-examples", reference,
        "--wandb-project", "rewards")  # fmt: skip
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert {
        "sample/reward_accuracy", "sample/reward_margin_per_token", "sample/reward_chosen_fell",
        "sample/reward_only_ranking_right", "rewards/table", "rewards/ranking_and_reward",
        "rewards/figure",
        "sample/ranking_length-normalized/acc",
    } <= read_wandb_keys(log)  # fmt: skip


@pytest.mark.slow
def test_what_1000_examples_cost(tmp_path, capsys):
    """Seconds for all of it, with a reference and without: printed, on a machine that others use."""
    rng = np.random.default_rng(0)
    for name in ("policy", "reference"):
        rows = [
            {"id": str(k), "prompt_id": f"p{k}", "dataset": "d", "dataset_config": None, "split": None,
             "row": k, "model": name, "prompt": f"prompt {k}", "ranks": [1, 2], "votes": None,
             "groups": {"domain": str(k % 5)},
             "completions": [
                 {"text": f"{side} {k}", "separator": " ", "logp": float(rng.normal(-80, 15)),
                  "n_tokens": 40, "n_chars": 90, "n_bytes": 90, "truncated": False}
                 for side in ("yes", "no")]}
            for k in range(1000)
        ]  # fmt: skip
        write_json_lines(tmp_path / f"{name}.examples.jsonl", rows)
    seconds = {}
    policy = ("--policy-examples", tmp_path / "policy.examples.jsonl")
    reference = ("--reference-examples", tmp_path / "reference.examples.jsonl")
    for name, more in (("alone", policy), ("with a reference", (*policy, *reference))):
        begun = time.monotonic()
        command = [sys.executable, SCRIPT, *words(tmp_path, *more, name=f"{name}.jsonl")]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        seconds[name] = round(time.monotonic() - begun, 1)
    with capsys.disabled():
        print(f"\n1000 examples, s: {seconds}")
    assert reward_rows(tmp_path / "with a reference.jsonl")[0]["n"] == 1000


def test_ches_of_the_reference_says_which_completions_fall(
    tuned, tiny_model_directory, tmp_path, capsys
):
    run(tmp_path, "--lm-name-or-path", tuned, "--reference-name-or-path", tiny_model_directory,
        "--dataset", "sample", "--sample-size", 6, "--ches")  # fmt: skip
    pairs = read_json_lines(tmp_path / "run.rewards.jsonl")
    (row, _) = reward_rows(tmp_path / "run.jsonl")
    assert row["ches"]["ches"]["n"] == len(pairs)
    products = {r["id"]: r["hidden_products"] for r in read_json_lines(files_of(tmp_path)[1])}
    for pair in pairs:
        w, other = pair["winner"], pair["loser"]
        expected = products[pair["id"]][w][other] - products[pair["id"]][w][w]
        assert pair["ches"] == pytest.approx(expected)
    assert "does CHES tell which?" in capsys.readouterr().out


def test_tables_and_picture_of_result_files(both, tmp_path, capsys):
    import plot_results
    from reproduce import tables

    picture = tmp_path / "r.pdf"
    words = ["rewards", str(both / "run.rewards.jsonl"), "--output", str(picture)]
    plot_results.main(plot_results.parse_args(words))
    assert picture.read_bytes().startswith(b"%PDF")
    for name, column in (("rewards", "margin [95 %]"),
                         ("displacement", "fell: chosen / rejected / both"),
                         ("ranking-and-reward", "only ranking")):  # fmt: skip
        tables.main(tables.parse_args([name, str(both / "run.jsonl")]))
        assert f"| {column} |" in capsys.readouterr().out


def test_a_run_that_is_overwritten_leaves_no_examples_of_other_models(
    both, tiny_model_directory, tmp_path, capsys
):
    """NAME.jsonl is of the models whose examples lie beside it; a run that is read stays."""
    policy, reference = files_of(both)
    two = ("--lm-name-or-path", tiny_model_directory, "--reference-name-or-path",
           tiny_model_directory, *DATA)  # fmt: skip
    run(tmp_path, *two)
    own, of_reference = files_of(tmp_path)
    again = ("--policy-examples", own, *two[2:], "--overwrite")
    assert "is read, and of the run that --overwrite discards" in error_of(capsys, tmp_path, *again)
    assert own.exists() and (tmp_path / "run.jsonl").exists()
    run(tmp_path, *two[:2], *two[4:], "--overwrite")
    assert own.exists() and not list(tmp_path.glob("run.reference.*"))
    run(tmp_path, "--policy-examples", own, "--reference-examples", reference, "--overwrite")
    assert own.exists() and (tmp_path / "run.config.json").exists()
    run(tmp_path, "--policy-examples", policy, "--overwrite")
    assert not own.exists() and not (tmp_path / "run.config.json").exists()
    assert read_json_lines(tmp_path / "run.jsonl")[0]["examples_file"] == str(policy)
