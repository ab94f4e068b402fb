"""Idealized accuracy: the pairs of the votes, and the script itself."""

import gzip
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import assert_documented
from hypothesis import given, settings
from hypothesis import strategies as st
from paused import start_paused

from calculate_upper_bound_rlhf import main, parse_args
from ranking.metrics.idealized import (
    CurveRow,
    IdealizedGroup,
    IdealizedGroupMean,
    IdealizedRow,
    PairRow,
    idealized_correctness,
)
from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import hash_config, read_json_lines, write_json_lines
from ranking.scoring.examples_file import load_examples
from ranking.scoring.rated_pairs import PairRules, pairs_of_record, rated_pairs

ROOT = Path(__file__).parents[1]


def make_record(logps, votes, ranks, number=0, dataset="d", model="ref"):
    completions = [{"text": f"y{k}", "separator": " ", "logp": x, "n_tokens": 10 + k, "n_chars": 2, "n_bytes": 2,
                    "truncated": False} for k, x in enumerate(logps)]  # fmt: skip
    return {"id": f"id{number}", "prompt_id": f"p{number}", "dataset": dataset, "dataset_config": None,
            "split": None, "row": number, "model": model, "prompt": "x", "ranks": ranks,
            "votes": votes, "completions": completions}  # fmt: skip


@settings(max_examples=50)
@given(st.permutations(range(3)), st.integers(0, 1000))
def test_relabelling_changes_nothing_and_k_reduces_to_pairs(order, seed):
    rng = np.random.default_rng(seed)
    logps = rng.normal(-50, 20, size=3)
    counts = {(0, 1): (3, 1), (0, 2): (4, 0), (1, 2): (1, 3)}

    def outcome(permutation):
        """Pairs as sets of original labels, each with α and log-ratio of the winner."""
        votes = {}
        for (i, j), (a, b) in counts.items():
            votes[f"{permutation.index(i)},{permutation.index(j)}"] = [a, b]
        found = pairs_of_record(
            make_record([logps[k] for k in permutation], votes, [1, 2, 3]), PairRules()
        )
        return {(permutation[p["winner"]], permutation[p["loser"]]): (p["alpha"],) for p in found}

    assert outcome(list(order)) == {(0, 1): (0.75,), (0, 2): (0.999,), (2, 1): (0.75,)}


# ---------------------------------------------------------------------------- the script
def flags(folder, *more, name="ideal.jsonl"):
    return [str(x) for x in ("--output-dir", folder, "--output-filename", name, *more)]


def run(folder, *more, name="ideal.jsonl") -> None:
    run_script(main, parse_args(flags(folder, *more, name=name)))


def error_of(capsys, *arguments) -> str:
    """The one line by which the script refuses arguments."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and len(errors) == 1
    return errors[0]


@pytest.fixture
def files(tmp_path):
    """400 pairs of two log-likelihoods with votes, and a policy that moved them."""
    rng = np.random.default_rng(0)
    choices = [([4, 0], [1, 2]), ([3, 1], [1, 2]), ([1, 3], [2, 1]), ([2, 2], [1, 1])]
    reference, policy = [], []
    for number in range(400):
        votes, ranks = choices[rng.integers(4)]
        logps = rng.normal(-80, 15, size=2)
        groups = {"domain": ("chat", "code", "math")[number % 3]}
        made = make_record(logps.tolist(), {"0,1": votes}, ranks, number)
        reference.append({**made, "groups": groups})
        moved = (logps + rng.normal(0, 10, size=2)).tolist()
        policy.append(make_record(moved, {"0,1": votes}, ranks, number, model="tuned"))
    write_json_lines(tmp_path / "ref.jsonl", reference)
    write_json_lines(tmp_path / "policy.jsonl", policy)
    return tmp_path, reference, policy


def run_light(arguments) -> subprocess.CompletedProcess:
    """The script in a process that must not import torch, transformers or datasets."""
    code = (
        "import sys, runpy; sys.argv = ['calculate_upper_bound_rlhf.py', *sys.argv[1:]]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy import'\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished


def test_script_against_the_definition(files):
    """In a subprocess that imports neither torch, transformers nor datasets."""
    folder, reference, policy = files
    arguments = flags(folder, "--reference-examples", folder / "ref.jsonl", "--policy-examples",
                      folder / "policy.jsonl", "--hardest", 2, "--easiest", 1, "--easiest-to-flip", 1)  # fmt: skip
    finished = run_light(arguments)
    assert all(title in finished.stdout for title in ("Hardest", "Easiest:", "Easiest to flip"))
    rows = read_json_lines(folder / "ideal.jsonl")
    assert_documented(rows, IdealizedRow)
    assert_documented(read_json_lines(folder / "ideal.curve.jsonl"), CurveRow)
    assert_documented(read_json_lines(folder / "ideal.pairs.jsonl"), PairRow)
    assert len(rows) == 2 * 5
    for row in rows:
        summed = row["calib_property"] == "ranks_non-length-normalized"
        correct, observed, domains = [], [], []
        for ref, tuned in zip(reference, policy):
            a, b = ref["votes"]["0,1"]
            if a == b:
                continue
            w, l = (0, 1) if a > b else (1, 0)  # noqa: E741
            alpha = min(max(a, b) / (a + b), 0.999)
            scale = [1, 1] if summed else [10, 11]
            score = [[r["completions"][k]["logp"] / scale[k] for k in (0, 1)] for r in (ref, tuned)]
            correct.append(
                score[0][w] - score[0][l] + math.log(alpha / (1 - alpha)) / row["beta"] > 0
            )
            observed.append(score[1][w] >= score[1][l])
            domains.append(ref["groups"]["domain"])
        assert row["distance_metric_value_mean"] == pytest.approx(np.mean(correct))
        assert row["observed_accuracy"] == pytest.approx(np.mean(observed))
        assert row["gap"] == pytest.approx(np.mean(correct) - np.mean(observed))
        assert row["gap_95"][0] <= row["gap"] <= row["gap_95"][1]
        assert (row["n"], row["model"], row["reference_model"]) == (len(correct), "tuned", "ref")
        assert row["examples_file"] == str(folder / "policy.jsonl")
        assert row["reference_examples_file"] == str(folder / "ref.jsonl")
        assert_documented(row["by_group"], IdealizedGroup)
        assert_documented(row["mean_over_groups"], IdealizedGroupMean)
        for entry in row["by_group"]:
            own = np.array(domains) == entry["group"]
            assert entry["n"] == own.sum()
            assert entry["value"] == pytest.approx(np.array(correct)[own].mean())
            assert entry["observed_accuracy"] == pytest.approx(np.array(observed)[own].mean())
    for curve in read_json_lines(folder / "ideal.curve.jsonl"):
        for row in rows:
            if row["calib_property"] == curve["calib_property"]:
                above = sum(beta > row["beta"] for beta in curve["critical_betas"]) / curve["n"]
                total = above + curve["limit_beta_to_infinity"]
                assert total == pytest.approx(row["distance_metric_value_mean"])
    pairs = read_json_lines(folder / "ideal.pairs.jsonl")
    assert {pair["reference_model"] for pair in pairs} == {"ref"}
    assert pairs[0]["required_loss"]["0.1"] == pytest.approx(np.log1p(np.exp(-0.1 * pairs[0]["c"])))
    for picture in ("ideal.curve.png", "ideal.required_loss.png", "ideal.groups.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_wandb_run_is_written_offline(files, wandb_offline):
    from test_calculate_calibration_metrics import read_wandb_keys

    folder, *_ = files
    more = ["--reference-examples", folder / "ref.jsonl", "--wandb-project", "ideal"]
    run(folder, *more)
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    names = {"accuracy", "by_beta", "curve", "required_loss"}
    assert {f"idealized/{name}" for name in names} <= read_wandb_keys(log)


def tuned_run(folder, name, pairs, seed, beta=0.1, shift=0.0):
    """A dynamics file of these pairs; losses are lowest at step 5. Its losses there, by id."""
    rng = np.random.default_rng(seed)
    rows, losses = [], {}
    for number, (pair, ref) in enumerate(pairs.items()):
        for step in (0, 5, 10):
            policy = np.array(ref) + (step > 0) * rng.normal(0, 8, size=2)
            margin = beta * (policy[0] - policy[1] - ref[0] + ref[1])
            after = "correct" if policy[0] >= policy[1] else "incorrect"
            loss = float(np.logaddexp(0, -margin))
            if step == 5:
                losses[pair] = (loss, after == "correct")
            rows.append({
                "step": step, "part": "validation" if number % 2 else "train", "id": pair,
                "loss": loss + (step == 10), "reward_margin": margin, "beta": beta, "gamma": 1.0,
                "group": f"{'correct' if ref[0] >= ref[1] else 'incorrect'}_to_{after}",
                "chosen": policy[0], "rejected": policy[1], "ref_chosen": ref[0] + shift,
                "ref_rejected": ref[1], "squared_distance": None,
            })  # fmt: skip
    for row in rows:
        row["loss"] += 5 * (row["step"] == 0)
    write_json_lines(folder / name, rows)
    return losses


@pytest.fixture
def followed(files):
    """Pairs of the examples that runs follow: id → log-likelihoods of chosen and rejected."""
    folder, reference, _ = files
    pairs = {}
    for record in reference:
        logps = [c["logp"] for c in record["completions"]]
        better = record["ranks"].index(1)
        if record["ranks"] != [1, 1]:
            pairs[record["id"]] = (logps[better], logps[1 - better])
    return folder, pairs


def test_pairs_are_joined_with_the_losses_of_runs(followed, capsys):
    """Tables 7 to 9: means over the runs that follow a pair, at their lowest validation loss."""
    folder, pairs = followed
    half = dict(list(pairs.items())[: len(pairs) // 2])
    runs = [tuned_run(folder, "1.jsonl", pairs, 1), tuned_run(folder, "2.jsonl", half, 2)]
    more = ["--dynamics", folder / "1.jsonl", folder / "2.jsonl", "--hardest", 3]
    common = ["--reference-examples", folder / "ref.jsonl"]
    run(folder, *common, *more)
    out, err = capsys.readouterr()
    n = len(pairs)
    assert f"1.jsonl: step 5, {n} of {n} pairs joined" in err
    assert f"2.jsonl: step 5, {len(half)} of {n} pairs joined" in err
    rows = read_json_lines(folder / "ideal.pairs.jsonl")
    assert_documented(rows, PairRow)
    assert {row["id"] for row in rows} == set(pairs)
    for row in rows:
        found = [run[row["id"]] for run in runs if row["id"] in run]
        assert row["tuned_loss"] == pytest.approx(np.mean([loss for loss, _ in found]))
        assert row["n_runs"] == len(found)
        assert row["flipped_in"] == sum(right for _, right in found)
    for row in sorted(rows, key=lambda row: -row["c"])[:3]:
        assert f" {row['tuned_loss']:.3f} " in out
        assert f" {row['flipped_in']} of {row['n_runs']} " in out


def test_pairs_of_more_completions_are_joined_by_their_places(tmp_path, capsys):
    """Those that the run follows; the others show no loss."""
    record = make_record([-50.0, -60.0, -70.0], None, [2, 1, 3])
    write_json_lines(tmp_path / "e.jsonl", [record])
    losses = tuned_run(tmp_path, "1.jsonl", {"id0:1>0": (-60.0, -50.0), "id0:0>2": (-50, -70)}, 0)
    more = ["--assumed-proportion", 0.75, "--dynamics", tmp_path / "1.jsonl", "--easiest", 3]
    common = ["--reference-examples", tmp_path / "e.jsonl"]
    run(tmp_path, *common, *more)
    rows = {(r["winner"], r["loser"]): r for r in read_json_lines(tmp_path / "ideal.pairs.jsonl")}
    assert rows[1, 0]["tuned_loss"] == pytest.approx(losses["id0:1>0"][0])
    assert rows[0, 2]["tuned_loss"] == pytest.approx(losses["id0:0>2"][0])
    assert rows[1, 2]["tuned_loss"] is None and rows[1, 2]["n_runs"] == 0
    out, err = capsys.readouterr()
    assert " – " in out and "1.jsonl: step" in err and "2 of 3 pairs joined" in err
    assert err.count("2 of 3 pairs") == 1  # of a single run, said once
    twice = [*common, *more[:3], tmp_path / "1.jsonl", tmp_path / "2.jsonl", "--overwrite"]
    tuned_run(tmp_path, "2.jsonl", {"id0:1>2": (-60.0, -70.0)}, 0)
    run(tmp_path, *twice)
    assert "3 of 3 pairs are in at least one of the 2 runs" in capsys.readouterr().err


def test_runs_that_cannot_be_joined_are_refused(followed, capsys):
    folder, pairs = followed
    tuned_run(folder, "1.jsonl", pairs, 1)
    tuned_run(folder, "beta.jsonl", pairs, 1, beta=1.0)
    tuned_run(folder, "reference.jsonl", pairs, 1, shift=7.0)
    tuned_run(folder, "others.jsonl", {"x": (-3.0, -4.0)}, 1)
    for names, message in (
        (("1", "beta"), "1.jsonl has β 0.1, "),
        (("1", "1"), "--dynamics: a file is given twice"),
        (("reference",), f"reference.jsonl: its reference log-likelihoods of {len(pairs)} of"),
        (("others",), "others.jsonl: none of its pairs is among the examples"),
        (("policy",), "policy.jsonl: not a ranking_dynamics.jsonl of dpo.py"),
        (("missing",), "missing.jsonl"),
    ):
        more = ["--reference-examples", folder / "ref.jsonl", "--dynamics"]
        more += [folder / f"{name}.jsonl" for name in names]
        assert message in error_of(capsys, folder, *more)
        assert not (folder / "ideal.jsonl").exists()


def test_ties_follow_def_c1(tmp_path):
    """A tied pair is right iff the two log-scores differ by less than 0.01, whatever β is."""
    records = [
        make_record([-10.0, -10.005], {"0,1": [2, 2]}, [1, 1], 0),
        make_record([-10.0, -12.0], {"0,1": [2, 2]}, [1, 1], 1),
        make_record([-10.0, -12.0], {"0,1": [4, 0]}, [1, 2], 2),
    ]
    write_json_lines(tmp_path / "e.jsonl", records)
    common = ["--reference-examples", tmp_path / "e.jsonl"]
    run(tmp_path, *common, "--include-ties")
    for row in read_json_lines(tmp_path / "ideal.jsonl"):
        if row["calib_property"] == "ranks_non-length-normalized":
            assert row["example_distance_metric_values"] == [1.0, 0.0, 1.0]
    run(tmp_path, *common, name="no_ties.jsonl")
    assert {r["n"] for r in read_json_lines(tmp_path / "no_ties.jsonl")} == {1}


def test_assumed_proportion_only_on_demand(tmp_path, capsys):
    write_json_lines(tmp_path / "e.jsonl", [make_record([-9.0, -5.0], None, [1, 2])])
    common = ["--reference-examples", tmp_path / "e.jsonl"]
    assert "no votes: 1" in error_of(capsys, tmp_path, *common)
    more = ["--assumed-proportion", 0.75, "--betas", 0.27, 0.28]
    run(tmp_path, *common, *more)
    rows = read_json_lines(tmp_path / "ideal.jsonl")
    values = [r["distance_metric_value_mean"] for r in rows if "non-length" in r["calib_property"]]
    assert values == [1.0, 0.0]  # critical β = ln 3 / 4 = 0.2747
    assert {r["simulate_proportion"] for r in rows} == {0.75}


def test_pairs_of_lists_that_some_raters_saw(tmp_path, capsys):
    """Of three answers one pair was voted on: the two others have no α, or the assumed one; what
    does not count is counted in pairs, of a list without votes, too."""
    voted = make_record([-9.0, -5.0, -7.0], {"0,1": [3, 1]}, [1, 2, 2], 0)
    plain = make_record([-9.0, -5.0, -7.0], None, [1, 2, 3], 1)
    lost = make_record(
        [-9.0, -5.0, -7.0], {"0,1": [1, 3], "1,2": [4, 0], "0,2": [2, 2]}, [2, 1, 2], 2
    )
    write_json_lines(tmp_path / "e.jsonl", [voted, plain, lost])
    common = ["--reference-examples", tmp_path / "e.jsonl"]
    run(tmp_path, *common)
    assert "d: dropped no votes: 5, tied pair: 1" in capsys.readouterr().err
    row, *_ = read_json_lines(tmp_path / "ideal.jsonl")
    assert (row["n"], row["dropped_pairs"]) == (3, {"no votes": 5, "tied pair": 1})
    more = ["--assumed-proportion", 0.75]
    run(tmp_path, *common, *more, name="a.jsonl")
    row, *_ = read_json_lines(tmp_path / "a.jsonl")
    assert (row["n"], row["dropped_pairs"]) == (7, {"tied pair": 2})
    pairs = [(p["id"], p["winner"], p["loser"], p["alpha"], p["votes"])
             for p in read_json_lines(tmp_path / "a.pairs.jsonl")]  # fmt: skip
    assert pairs[:2] == [("id0", 0, 1, 0.75, [3, 1]), ("id0", 0, 2, 0.75, None)]
    found, dropped = rated_pairs([voted, plain, lost], [voted, plain], PairRules())
    assert len(found) == 1 and dropped["d", None, None] == {
        "no votes": 5, "tied pair": 1, "example not scored by the policy": 2}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--betas", "0"], "--betas"),
        (["--betas", "1e308"], "--betas 1e308: give a β between 1e-100 and 1e100"),  # no float holds β c
        (["--dataset", "sample"], "--dataset: the data are those of --reference-examples"),
        (["--max-length", "9"], "--max-length: the data are those of --reference-examples"),
        (["--sample-size", "-1"], "--sample-size: the data are those of --reference-examples"),
        (["--revision", "v1"], "--revision: the data are those of --reference-examples"),
        (["--policy-revision", "v1"], "--policy-revision v1: no model that it could be of is given"),
        (["--assumed-proportion", "0.8"], "--assumed-proportion 0.8 does nothing: every pair has votes"),
        (["--epsilon", "0.7"], "--epsilon 0.7"),
        (["--epsilon", "1e-17"], "--epsilon 1e-17"),  # 1 − ε would be 1, and its odds infinite
        (["--assumed-proportion", "0.5"], "--assumed-proportion 0.5"),
        (["--policy-examples", "missing.jsonl"], "cannot read missing.jsonl"),
        (["--policy-examples", "{other}"], "1 of 400 reference examples have no policy"),
        (["--policy-examples", "{broken}"], "row 1: not an examples file"),
        (["--policy-name-or-path", "./no-model"], "no such model directory: ./no-model"),
        (["--policy-examples", "{folder}/./ref.jsonl"], "ref.jsonl: given twice"),
    ],
)  # fmt: skip
def test_errors_are_one_line(files, capsys, more, message):
    folder, reference, _ = files
    needed = next(r for r in reference if r["ranks"] == [1, 2])  # a tied pair would not be
    write_json_lines(folder / "other.jsonl", [r for r in reference if r is not needed])
    write_json_lines(folder / "broken.jsonl", [{"id": 1}])
    names = {"other": folder / "other.jsonl", "broken": folder / "broken.jsonl", "folder": folder}
    more = [x.format(**names) for x in more]
    with pytest.raises(SystemExit) as stop:
        run(folder, "--reference-examples", folder / "ref.jsonl", *more)
    lines = [x for x in capsys.readouterr().err.splitlines() if "could not be checked" not in x]
    assert stop.value.code == 2 and len(lines) == 1 and message in lines[0]
    assert not (folder / "ideal.jsonl").exists()


def test_existing_output_is_refused(files, capsys):
    folder, *_ = files
    (folder / "ideal.jsonl").write_text("mine\n")
    given = ["--reference-examples", folder / "ref.jsonl"]
    assert "--overwrite" in error_of(capsys, folder, *given)
    assert (folder / "ideal.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["run", "run.policy"])
def test_an_examples_file_is_whole_when_a_summary_says_so(tmp_path, name):
    """That of its own name; of what --policy-name-or-path scored, the one without `.policy`."""
    examples = tmp_path / f"{name}.examples.jsonl"
    write_json_lines(examples, [make_record([-9.0, -5.0], None, [1, 2])])
    (tmp_path / f"{name}.config.json").write_text("{}")
    (tmp_path / "run").mkdir()  # no summary
    with pytest.raises(ValueError, match="is of an unfinished run"):
        load_examples(str(examples))
    (tmp_path / "run.jsonl").write_text("{}\n")
    assert len(load_examples(str(examples))) == 1


def without(record, key):
    return {k: v for k, v in record.items() if k != key}


def with_completion(record, **changes):
    first, *others = record["completions"]
    return {**record, "completions": [{**first, **changes}, *others]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {**r, "id": "id0", "row": 0}, "row 3: the example of row 1 again"),
        (lambda r: {**r, "model": "sft"}, "row 3: of sft, and row 1 of ref: give each model's file"),
        (lambda r: without(r, "votes"), "row 3: not an examples file of the ranking script"),
        (lambda r: without(r, "dataset_config"), "row 3: not an examples file of the ranking script (no dataset_config)"),
        (lambda r: {**r, "completions": None}, "row 3: completions and ranks should be lists"),
        (lambda r: {**r, "completions": ["a", "b"]}, "should have logp, n_tokens, separator, text"),
        (lambda r: {**r, "ranks": [1, 2, 3]}, "row 3: 2 completions, 3 ranks"),
        (lambda r: with_completion(r, n_tokens=0), "row 3: n_tokens 0 should be 1 or more"),
        (lambda r: with_completion(r, logp="-3"), "row 3: logp '-3' should be a finite number"),
        (lambda r: with_completion(r, logp=math.nan), "row 3: logp nan should be a finite number"),
        (lambda r: {**r, "votes": {"0,1": [0, 0]}}, "row 3: votes '0,1': counts [0, 0] should be"),
    ],
)  # fmt: skip
def test_rows_that_no_run_writes_are_named(tmp_path, change, message):
    """Two files put together, and what other programs write."""
    rows = [make_record([-9.0, -5.0], {"0,1": [3, 1]}, [1, 2], k) for k in range(3)]
    rows[2] = change(rows[2])
    path = tmp_path / "e.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: row 3: ") as error:
        load_examples(str(path))
    assert message in str(error.value)


def test_smaller_files_are_read_with_what_lies_beside_them(files, capsys):
    """gzip's NAME.examples.jsonl.gz has its configuration, and its summary smaller or not."""
    folder, reference, _ = files
    path = scored(folder, "a", reference[:9], max_length=77)
    smaller = folder / "a.examples.jsonl.gz"
    smaller.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    run(folder, "--reference-examples", smaller)
    assert read_json_lines(folder / "ideal.jsonl")[0]["max_length"] == 77
    assert "could not be checked" not in capsys.readouterr().err
    (folder / "a.jsonl").rename(folder / "a.jsonl.gz")
    assert len(load_examples(str(smaller))) == 9
    (folder / "a.jsonl.gz").unlink()
    with pytest.raises(ValueError, match="is of an unfinished run"):
        load_examples(str(smaller))


def test_a_β_given_twice_counts_once(files):
    folder, *_ = files
    common = ["--reference-examples", folder / "ref.jsonl", "--betas", 10, 0.1, 1, 10.0]
    run(folder, *common)
    assert [row["beta"] for row in read_json_lines(folder / "ideal.jsonl")] == [0.1, 1, 10] * 2


def test_models_are_scored_when_no_file_is_given(tiny_model_directory, tmp_path):
    more = ["--lm-name-or-path", tiny_model_directory, "--dataset", "sample", "--sample-size", 20]
    run(tmp_path, *more)
    again = ["--reference-examples", tmp_path / "ideal.examples.jsonl", "--policy-name-or-path",
             tiny_model_directory, "--dataset", "sample", "--sample-size", 20]  # fmt: skip
    run(tmp_path, *again, name="again.jsonl")
    first, second = (read_json_lines(tmp_path / f"{n}.jsonl") for n in ("ideal", "again"))
    key = "distance_metric_value_mean"
    assert [r[key] for r in first] == [r[key] for r in second]
    assert first[0]["observed_accuracy"] == second[0]["observed_accuracy"]


def scored(folder, name, records, **changes):
    """An examples file with the config of its scoring beside it."""
    config = {
        "model": records[0]["model"], "revision": None, "sample_size": 1000, "seed": 0,
        "include_ties": False, "dtype": "float32", "max_length": None, "chat_template": False,
        "add_eos": False, "datasets": [{"name": "d", "split": None, "separator": " "}], **changes,
    }  # fmt: skip
    rows = [{**record, "config_hash": hash_config(config)} for record in records]
    write_json_lines(folder / f"{name}.examples.jsonl", rows)
    (folder / f"{name}.config.json").write_text(json.dumps(config))
    (folder / f"{name}.jsonl").write_text("{}\n")
    return folder / f"{name}.examples.jsonl"


def first_changed(records, **changes):
    return [{**records[0], **changes}, *records[1:]]


@pytest.mark.parametrize(
    ("changes", "rows", "more", "message"),
    [
        ({"add_eos": True}, {}, [], "a.examples.jsonl with add_eos false and {b} with add_eos true"),
        ({"chat_template": True}, {}, [], "not the same text: "),
        ({}, {"joined": True}, [], "with d: separators [\"\", \"\"]"),
        ({"max_length": 9}, {"cut": True}, [], "{b} with max_length 9: score both alike"),
        ({}, {"votes": {"0,1": [0, 9]}}, [], "d, row 0: its votes differ between"),
        ({}, {"ranks": [7, 8]}, [], "d, row 0: its ranks differ between"),
        ({}, {"prompt": "y"}, [], "d, row 0: its prompt differ between"),
        ({"include_ties": True}, {}, ["--include-ties"], "a.examples.jsonl was scored without"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_compared_are_refused(files, capsys, changes, rows, more, message):
    folder, reference, policy = files
    if rows == {"cut": True}:
        rows = {"completions": [{**c, "truncated": True} for c in policy[0]["completions"]]}
    if rows == {"joined": True}:
        rows = {"completions": [{**c, "separator": ""} for c in policy[0]["completions"]]}
    a = scored(folder, "a", reference)
    b = scored(folder, "b", first_changed(policy, **rows), **changes)
    both = ["--reference-examples", a, "--policy-examples", b]
    assert message.format(b=b) in error_of(capsys, folder, *both, *more)
    assert not (folder / "ideal.jsonl").exists()


def test_files_that_differ_harmlessly_are_compared_and_rows_say_how(files, capsys):
    """The limit cut nothing; the policy has more examples, in another precision."""
    folder, reference, policy = files
    a = scored(folder, "a", reference[:300], sample_size=300, max_length=4096)
    b = scored(folder, "b", policy, dtype="bfloat16", revision="v2")
    run(folder, "--reference-examples", a, "--policy-examples", b)
    said = capsys.readouterr().err
    assert "differ in dtype float32 and bfloat16, sample_size 300 and 1000" in said
    row = read_json_lines(folder / "ideal.jsonl")[0]
    assert [row[key] for key in ("chat_template", "add_eos", "separator", "max_length", "sample_size",
                                 "reference_revision", "revision")] == [
        False, False, " ", 4096, 300, None, "v2"]  # fmt: skip


def test_flags_of_the_policy_are_compared_before_it_is_scored(files, tiny_model_directory, capsys):
    folder, *_ = files
    more = ["--dataset", "sample", "--sample-size", 8, "--lm-name-or-path", tiny_model_directory]
    run(folder, *more)
    more[-2:] = ["--reference-examples", folder / "ideal.examples.jsonl"]
    for flag, message in (
        (["--add-eos"], "add_eos"), (["--max-length", 64], "max_length"),
        (["--seed", 1], "have no policy log-likelihood"),
        (["--policy-revision", "v1"], "is a local model, without revisions"),
        (["--revision", "v1"], "--revision v1: no model that it could be of is given"),
    ):  # fmt: skip
        policy = ["--policy-name-or-path", tiny_model_directory, *flag]
        assert message in error_of(capsys, folder, *more, *policy, "--output-filename", "p.jsonl")
        assert not list(folder.glob("p.*"))


def test_splits_are_named_and_drawn_apart(tmp_path, capsys, monkeypatch):
    records = [{**make_record([-9.0, -5.0 - 6 * k], {"0,1": [3, 1]}, [1, 2], k), "split": split}
               for k, split in enumerate(("test", "train"))]  # fmt: skip
    write_json_lines(tmp_path / "e.jsonl", records)
    plt.close("all")  # of other tests
    monkeypatch.setattr(plt, "close", lambda figure: None)
    run(tmp_path, "--reference-examples", tmp_path / "e.jsonl")
    printed = capsys.readouterr().out
    assert "d (test)" in printed and "d (train)" in printed
    assert [r["split"] for r in read_json_lines(tmp_path / "ideal.pairs.jsonl")] == [
        "test",
        "train",
    ]
    figure = next(f for f in map(plt.figure, plt.get_fignums()) if len(f.axes) == 2)
    assert [axes.get_title() for axes in figure.axes] == [
        "d (test) (n = 1 pairs)", "d (train) (n = 1 pairs)"]  # fmt: skip
    observed = [[line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
                for axes in figure.axes]  # fmt: skip
    assert observed == [[0, 0], [100, 100]]


def test_exact_ties_are_counted_and_said(tmp_path, caplog):
    """Of four untied pairs the policy scores two alike (one of them ranked), the reference none."""
    reference = [make_record([-9.0, -5.0 - k], {"0,1": [3, 1]}, [1, 2], k) for k in range(4)]
    policy = [make_record([-9.0, other], {"0,1": [3, 1]}, [1, 2], k, model="tuned")
              for k, other in enumerate((-9.0, -9.0, -8.0, -10.0))]  # fmt: skip
    for name, records in (("r", reference), ("p", policy)):
        write_json_lines(tmp_path / f"{name}.jsonl", records)
    both = ["--reference-examples", tmp_path / "r.jsonl", "--policy-examples", tmp_path / "p.jsonl"]
    run(tmp_path, *both)
    rows = [r for r in read_json_lines(tmp_path / "ideal.jsonl") if "non-l" in r["calib_property"]]
    assert {(r["n_exact_ties"], r["reference_n_exact_ties"]) for r in rows} == {(2, 0)}
    assert rows[0]["observed_accuracy"] == 0.75
    assert "observed accuracy 75.0 % as Def. 2.3 counts them (right), 25.0 %" in caplog.text


def test_assumed_proportion_is_said_to_do_nothing_where_all_have_votes(tmp_path, capsys):
    records = [make_record([-9.0, -5.0], {"0,1": [3, 1]}, [1, 2], 0, "voted"),
               make_record([-9.0, -5.0], None, [1, 2], 1, "plain")]  # fmt: skip
    write_json_lines(tmp_path / "e.jsonl", records)
    more = ["--reference-examples", tmp_path / "e.jsonl", "--assumed-proportion", 0.75]
    run(tmp_path, *more)
    said = capsys.readouterr().err
    assert "--assumed-proportion does nothing for voted: all have votes" in said
    assert "for plain" not in said


# ---------------------------------------------------------------------------- --export
def test_export_of_scored_files_needs_no_torch(files):
    """In a subprocess, as a table; the rows are the pairs of NAME.pairs.jsonl that are kept."""
    import pyarrow.parquet as pq

    folder, reference, _ = files
    write_json_lines(folder / "ref.jsonl", reference)
    file = folder / "new" / "pairs.parquet"
    arguments = flags(folder, "--reference-examples", folder / "ref.jsonl", "--export", file,
                      "--keep", "c < 20 and alpha > 0.7", "--keep-easiest", 0.5)  # fmt: skip
    finished = run_light(arguments)
    pairs = read_json_lines(folder / "ideal.pairs.jsonl")
    kept = [pair for pair in pairs if pair["c"] < 20 and pair["alpha"] > 0.7]
    kept = sorted(kept, key=lambda pair: pair["c"])[: math.ceil(len(kept) / 2)]
    rows = pq.read_table(file).to_pylist()
    assert {row["id"]: row["c"] for row in rows} == {pair["id"]: pair["c"] for pair in kept}
    beta_of = {p["id"]: p["non-length-normalized"]["critical_beta"] for p in kept}
    assert {row["id"]: row["critical_beta"] for row in rows} == pytest.approx(beta_of)
    assert {row["group_domain"] for row in rows} == {"chat", "code", "math"}
    assert f"{file}: {len(kept)} of {len(pairs)} pairs kept, left out: by --keep: " in (
        finished.stdout
    )


def test_exports_that_cannot_be_are_refused_before_anything_is_written(files, capsys):
    folder, reference, _ = files
    write_json_lines(folder / "ref.jsonl", reference)
    given = ["--reference-examples", folder / "ref.jsonl"]
    (folder / "there.jsonl").write_text("{}")
    before = sorted(path.name for path in folder.iterdir())
    for more, why in (
        (["--keep", "c < 1"], "choose what --export writes"),
        (["--keep-easiest", 0.5], "choose what --export writes"),
        (["--export", folder / "x.csv"], "give a name that ends with .parquet or .jsonl"),
        (["--export", folder / "x.jsonl", "--keep-easiest", 0], "give a share in (0, 1]"),
        (["--export", folder / "x.jsonl", "--keep", "alhpa > 1"], "'alhpa' (nearest: alpha"),
        (["--export", folder / "there.jsonl"], "exists: choose another name or pass --overwrite"),
        (["--export", folder / "ref.jsonl", "--overwrite"], "is read, and would be overwritten"),
        (["--export", folder / "ideal.pairs.jsonl"], "is another file of this run"),
    ):
        assert why in error_of(capsys, folder, *given, *more), more
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert left == before


@pytest.mark.parametrize("n_files", [1, 2, 3])
def test_a_run_killed_behind_its_export_goes_on(files, n_files, capsys):
    """Killed when it has written the export, and before its summary."""
    folder, reference, _ = files
    write_json_lines(folder / "ref.jsonl", reference)
    arguments = ["--reference-examples", folder / "ref.jsonl", "--export", folder / "x.jsonl"]
    written = "ranking.plumbing.result_files:write_json_lines"
    script = "calculate_upper_bound_rlhf.py"
    process = start_paused(written, n_files, script, *flags(folder, *arguments))
    process.kill()
    process.wait()
    before = (folder / "x.jsonl").read_bytes()
    (folder / "x.jsonl").write_bytes(before[:1000])
    assert not (folder / "ideal.jsonl").exists()
    run(folder, *arguments)
    assert (folder / "x.jsonl").read_bytes() == before and (folder / "ideal.jsonl").exists()
    assert f"export    {folder}/x.jsonl" in capsys.readouterr().out
    assert not [path for path in folder.iterdir() if "claim" in path.name]
    again = [*arguments, "--output-filename", "another.jsonl"]
    assert "x.jsonl exists: choose another name" in error_of(capsys, folder, *again)


def test_a_summary_is_written_though_no_pair_is_left_to_export(files, capsys):
    folder, reference, _ = files
    write_json_lines(folder / "ref.jsonl", reference)
    more = ["--export", folder / "x.jsonl", "--keep", "c > 1e9"]
    run(folder, "--reference-examples", folder / "ref.jsonl", *more)
    printed = capsys.readouterr()
    assert "x.jsonl: not written, no pair is left of" in printed.err
    assert (folder / "ideal.jsonl").exists() and not (folder / "x.jsonl").exists()
    assert "export " not in printed.out


def test_export_of_data_without_votes_needs_a_proportion(tmp_path, capsys):
    records = [make_record([-9.0, -5.0], None, [1, 2], k) for k in range(3)]
    write_json_lines(tmp_path / "e.jsonl", records)
    more = ["--reference-examples", tmp_path / "e.jsonl", "--export", tmp_path / "x.jsonl"]
    error = error_of(capsys, tmp_path, *more)
    assert "no usable pair (no votes: 3)" in error and "or --assumed-proportion" in error
    run(tmp_path, *more, "--assumed-proportion", 0.75)
    rows = read_json_lines(tmp_path / "x.jsonl")
    assert [(row["alpha"], row["votes"]) for row in rows] == [(0.75, None)] * 3


def test_votes_are_asked_for_only_where_they_are_missing(tmp_path, capsys):
    """A reference whose log-likelihoods are not finite leaves no pair, however people voted."""
    records = [make_record([None, -5.0], {"0,1": [3, 1]}, [1, 2], k) for k in range(3)]
    write_json_lines(tmp_path / "e.jsonl", records)
    error = error_of(capsys, tmp_path, "--reference-examples", tmp_path / "e.jsonl")
    assert error.endswith("no usable pair (non-finite reference: 3)")


def test_data_without_votes_are_refused_before_a_model_scores_them(
    tiny_model_directory, tmp_path, capsys
):
    rows = [{"prompt": f"Question {k}?", "chosen": "Yes.", "rejected": "No."} for k in range(3)]
    write_json_lines(tmp_path / "pairs.jsonl", rows)
    more = ["--lm-name-or-path", tiny_model_directory, "--dataset", tmp_path / "pairs.jsonl"]
    error = error_of(capsys, tmp_path, *more)
    assert "no usable pair (no votes: 3)" in error and "or --assumed-proportion" in error
    assert not (tmp_path / "ideal.examples.jsonl").exists()


def test_conventions_script(files, capsys):
    from reproduce import conventions

    folder, *_ = files
    arguments = ["--examples", str(folder / "ref.jsonl"), "--output", str(folder / "c.jsonl")]
    conventions.main(conventions.parse_args(arguments))
    rows = [r for r in read_json_lines(folder / "c.jsonl") if r["what"] == "idealized"]
    names = ["definition", "quotient", "votes sampled first", "both"]
    assert [row["convention"] for row in rows[::2]] == names
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in names)
    # log-likelihoods -8 (preferred) and -4: the quotient 2 > 1 counts as right whatever the votes
    better, worse = np.array([-8.0]), np.array([-4.0])
    assert conventions.quotient_correctness(better, worse, np.array([0.6]), 10).all()
    assert not idealized_correctness(better - worse, np.array([0.6]), 10).any()
    assert json.loads((folder / "ref.jsonl").read_text().splitlines()[0])["votes"]


def test_what_only_the_reference_can_score_is_dropped_and_counted(
    tiny_model_directory, tmp_path, capsys
):
    short = tmp_path / "short"
    shutil.copytree(tiny_model_directory, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200}))
    more = ["--lm-name-or-path", tiny_model_directory, "--policy-name-or-path", short,
            "--dataset", "sample", "--sample-size", 20]  # fmt: skip
    run(tmp_path, *more)
    rows = read_json_lines(tmp_path / "ideal.jsonl")
    assert_documented(rows, IdealizedRow)
    scored = [read_json_lines(tmp_path / f"ideal{x}.examples.jsonl") for x in ("", ".policy")]
    kept = {record["id"] for record in scored[1]}
    lost = sum(len(r["votes"]) for r in scored[0] if r["id"] not in kept)  # each pair has votes
    assert lost > len(scored[0]) - len(scored[1]) > 0
    assert f"example not scored by the policy: {lost}" in capsys.readouterr().err
    assert rows[0]["dropped_pairs"]["example not scored by the policy"] == lost


def test_a_run_that_is_overwritten_leaves_no_examples_of_other_models(
    files, tiny_model_directory, capsys
):
    folder, *_ = files
    data = ["--dataset", "sample", "--sample-size", 4]
    two = ["--lm-name-or-path", tiny_model_directory, "--policy-name-or-path", tiny_model_directory]
    run(folder, *two, *data)
    own, of_policy = (folder / f"ideal.{side}examples.jsonl" for side in ("", "policy."))
    again = ["--reference-examples", own, *two[2:], *data, "--overwrite"]
    assert "is read, and of the run that --overwrite" in error_of(capsys, folder, *again)
    assert own.exists() and (folder / "ideal.jsonl").exists()
    run(folder, *two[:2], *data, "--overwrite")
    assert own.exists() and not list(folder.glob("ideal.policy.*"))
    other = ["--reference-examples", folder / "ref.jsonl", "--overwrite"]
    run(folder, *other)
    assert not own.exists() and not (folder / "ideal.config.json").exists()
