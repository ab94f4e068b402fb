"""reproduce/length_difference.py against scipy."""

import numpy as np
import pytest
from result_rows import scored_record
from scipy import stats

from ranking.metrics.accuracy import TextColumns
from ranking.plumbing.result_files import read_json_lines, write_json_lines
from reproduce import length_difference


def test_length_difference_against_scipy(tmp_path, capsys):
    rng = np.random.default_rng(0)
    records = []
    for number in range(60):
        lengths = rng.integers(1, 20, 2)
        scores = (-lengths + rng.normal(0, 4, 2)).tolist()
        ranks = [1, 2] if number % 3 else [2, 1]
        records.append(scored_record(number, scores, ranks, str(number), n_tokens=lengths.tolist()))
    write_json_lines(tmp_path / "e.jsonl", records)
    arguments = ["--examples", str(tmp_path / "e.jsonl"), "--output", str(tmp_path / "l.jsonl")]
    length_difference.main(length_difference.parse_args(arguments))
    normalized, summed = read_json_lines(tmp_path / "l.jsonl")
    documented = length_difference.LengthRow.__annotations__.keys()
    assert documented - summed.keys() == TextColumns.__annotations__.keys()
    assert summed.keys() <= documented
    correct, difference = [], []
    for r in records:
        w, l = (0, 1) if r["ranks"] == [1, 2] else (1, 0)  # noqa: E741
        correct.append(r["completions"][w]["logp"] >= r["completions"][l]["logp"])
        difference.append(r["completions"][w]["n_tokens"] - r["completions"][l]["n_tokens"])
    expected = stats.pointbiserialr(correct, difference)
    assert summed["correlation"] == pytest.approx(expected.statistic) and expected.statistic < -0.3
    interval = summed[
        "correlation_95"
    ]  # one pair a prompt: the bootstrap is near Fisher's interval
    fisher = stats.pearsonr(correct, difference).confidence_interval(0.95)
    assert interval == pytest.approx(list(fisher), abs=0.08)
    shorter = np.array(difference) < 0
    assert summed["accuracy_shorter"] == pytest.approx(np.mean(np.array(correct)[shorter]))
    assert summed["n_shorter"] == shorter.sum() and sum(b["n"] for b in summed["bins"]) == 60
    shares = [b["n"] * b["accuracy"] for b in summed["bins"]]
    assert sum(shares) == pytest.approx(np.sum(correct))
    assert f"{summed['correlation']:+.2f}" in capsys.readouterr().out


def test_a_dataset_without_an_untied_pair_is_said(tmp_path, capsys):
    tied = scored_record(0, [-1.0, -2.0], [1, 1], dataset="ties")
    untied = [scored_record(k, [-1.0, -k], [1, 2], str(k), n_tokens=[1, k]) for k in (2, 3)]
    write_json_lines(tmp_path / "e.jsonl", [tied, *untied])
    arguments = ["--examples", str(tmp_path / "e.jsonl"), "--output", str(tmp_path / "l.jsonl")]
    length_difference.main(length_difference.parse_args(arguments))
    assert "ties: no untied pair, left out\n" in capsys.readouterr().err
    assert {row["dataset_name"] for row in read_json_lines(tmp_path / "l.jsonl")} == {"d"}
