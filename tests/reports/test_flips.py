"""The table and the picture of flips say what the rows of the dynamics files do."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from result_rows import tuned_rows

from ranking.metrics.flips import flipped_by_c, summarize_flips, wrong_pairs
from ranking.reports.flips import dynamics_names, flips_table, plot_flips


def test_flips_table():
    """A line of each part and step; the numbers are those of `summarize_flips`."""
    rows = [
        row
        for step, loss in ((3, 0.4), (6, 0.6))
        for row in tuned_rows(step=step, loss=loss, seed=step)
    ]
    rows[80:] = tuned_rows(step=6, loss=None, seed=6)
    rows[80]["loss"] = None
    columns, (best, last, other) = flips_table([("a", rows), ("b", tuned_rows(gamma=1.0))])
    assert [line[:4] for line in (best, last, other)] == [
        ["a", "0.5", "validation (80)", "3 (lowest)"], ["a", "0.5", "validation (80)", "6"],
        ["b", "1", "validation (80)", "7 (lowest)"]]  # fmt: skip
    found = summarize_flips(rows[80:])
    cells = dict(zip(columns, last))
    share = found["flipped_to_correct"]
    low, high = (f"{100 * bound:.1f}" for bound in share["wilson_95"])
    said = f"{share['k']} of {share['n']}: {100 * share['value']:.1f} [{low}, {high}]"
    assert cells["flipped to correct, %"] == said
    assert cells["ranking accuracy, %"].startswith(f"{100 * found['accuracy']['value']:.1f} [")
    assert found["n_reward_ties"] == 0 and cells["reward accuracy, %"].endswith("], 0.0 tied")
    assert cells["small c first, AUC"].startswith(f"{found['auc']:.2f} [")
    assert cells["against Theorem 4.1"] == "0, 1 open"
    assert other[-1] == str(summarize_flips(tuned_rows(gamma=1.0))["n_against_theorem"]) != "0"


def test_runs_are_called_by_their_folders():
    files = [Path("a/dpo_seed0/ranking_dynamics.jsonl"), Path("sweep/gamma0.5_seed0.jsonl")]
    zipped = [file.with_name(f"{file.name}.gz") for file in files]
    assert dynamics_names([*files, *zipped]) == ["dpo_seed0", "gamma0.5_seed0"] * 2


def test_flips_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    train = tuned_rows(n=200, part="train", seed=1)
    later = tuned_rows(step=9, loss=0.9)  # not of the lowest validation loss
    plot_flips([*train, *tuned_rows(), *later], tmp_path / "f.png", "lowest-loss", "a run")
    upper, other, lower, _ = plt.gcf().axes
    cs, ratios = wrong_pairs(train)
    flipped, stayed = (points.get_offsets() for points in upper.collections)
    assert flipped.tolist() == [[c, r] for c, r in zip(cs, ratios) if r >= 0]
    assert stayed.tolist() == [[c, r] for c, r in zip(cs, ratios) if r < 0]
    assert upper.get_title() == f"train: {len(flipped)} of {len(cs)} wrong pairs flipped"
    unmoved = upper.lines[0].get_xydata()
    assert np.allclose(unmoved[:, 1], -unmoved[:, 0])
    steps = lower.collections[0].get_segments()
    assert [[x for x, _ in step] for step in steps] == [
        pytest.approx([g["lowest"], g["highest"]]) for g in flipped_by_c(cs, ratios)
    ]
    assert [step[0][1] for step in steps] == pytest.approx(
        [100 * g["value"] for g in flipped_by_c(cs, ratios)]
    )
    assert other.get_title().startswith("validation: ")
    assert plt.gcf().get_suptitle() == r"a run, $\beta$ = 0.1, $\gamma$ = 0.5"
    assert "at step 7 (the lowest validation loss)" in plt.gcf().legends[0].get_title().get_text()
    right = [row for row in train if row["group"].startswith("correct")]
    with pytest.raises(ValueError, match="no pair is ranked wrongly by the reference at step 7"):
        plot_flips(right, tmp_path / "none.png")
