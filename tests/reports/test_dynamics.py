"""What is shown of ranking dynamics equals the rows of the dynamics file."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from result_rows import evaluated_pairs

from ranking.reports.dynamics import (
    displacement_table,
    dynamics_table,
    plot_accuracy_against_distance,
    plot_displacement,
    plot_dynamics,
    plot_loss_against_reference,
    plot_sweep,
    read_dynamics,
    sweep_table,
)


def test_dynamics_and_sweep_tables():
    """Of the two correct and two wrong pairs at step 5, one each changes; the loss is lowest there."""
    _, lines = dynamics_table(evaluated_pairs())
    assert lines[1] == ["train (4)", "5 (lowest)", "0.550", "50.0 %", "1 of 2 (50.0 %)", "1 of 2",
                        "0.50"]  # fmt: skip
    columns, lines = dynamics_table(evaluated_pairs(), alone=True)  # on the screen: each group
    assert columns[-4:] == ["correct to correct", "correct to incorrect", "incorrect to correct",
                            "incorrect to incorrect"]  # fmt: skip
    assert lines[1][2:] == ["0.5500", "50.0 %", "1 of 2 (50.0 %)", *["25.0 %"] * 4]
    other = [{**row, "gamma": 0.0} for row in evaluated_pairs()]
    _, sweep = sweep_table([evaluated_pairs(), other, other], "last")
    assert [line[:3] for line in sweep] == [
        ["0", "2", "train (4)"], ["0", "2", "validation (4)"],
        ["1", "1", "train (4)"], ["1", "1", "validation (4)"]]  # fmt: skip
    assert sweep[0][3:] == ["100.0", "100.0", "0.725", "100.00"]


def drawn(monkeypatch, plot, path):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    plot(evaluated_pairs(), path)
    assert path.stat().st_size > 0
    return plt.gcf().axes


def test_dynamics_figure(tmp_path, monkeypatch):
    axes = drawn(monkeypatch, plot_dynamics, tmp_path / "f.png")
    assert len(axes) == 6
    share = {line.get_label(): line for line in axes[0].lines}
    assert list(share["correct → correct"].get_ydata()) == [50, 25, 50]
    assert list(share["correct → incorrect"].get_ydata()) == [0, 25, 0]
    assert list(share["incorrect → correct"].get_ydata()) == [0, 25, 50]
    assert list(share["lowest validation loss"].get_xdata()) == [5, 5]
    loss = {line.get_label(): line for line in axes[1].lines}
    assert loss["incorrect → correct"].get_ydata()[1] == pytest.approx(0.4)


def test_loss_against_reference_figure(tmp_path, monkeypatch):
    axes = drawn(monkeypatch, plot_loss_against_reference, tmp_path / "f.png")
    correct, wrong = axes[0].collections
    assert correct.get_offsets().tolist() == [[2.0, 0.5], [-4.0, 0.4]]
    assert wrong.get_offsets().tolist() == [[-1.0, 0.6], [-7.0, 0.7]]
    (needed,) = axes[0].lines  # −log σ(γβc), c = −(log-ratio): 7 at the left end, −2 at the right
    ends = needed.get_ydata()[[0, -1]]
    assert ends == pytest.approx(np.log1p(np.exp([-0.7, 0.2])))


def test_accuracy_against_distance_figure(tmp_path, monkeypatch):
    (axes,) = drawn(monkeypatch, plot_accuracy_against_distance, tmp_path / "f.png")
    for line in axes.lines:
        assert list(line.get_xdata()) == [0, 25, 100] and list(line.get_ydata()) == [50, 50, 100]


def test_displacement_table():
    """At step 5 the chosen changed by 0, −1, −2, −3 nats, the rejected by 1, −1, −7, −9."""
    columns, lines = displacement_table(evaluated_pairs())
    assert columns[2:] == ["chosen fell", "rejected fell", "both fell", "chosen, nats",
                           "rejected, nats"]  # fmt: skip
    assert lines[:6] == [
        ["train (4)", "5 (lowest)", "75.0 %", "75.0 %", "75.0 %", "-1.50", "-4.00"],
        ["  correct → correct (1)", "", "0.0 %", "0.0 %", "0.0 %", "+0.00", "+1.00"],
        ["  correct → incorrect (1)", "", "100.0 %", "100.0 %", "100.0 %", "-1.00", "-1.00"],
        ["  incorrect → correct (1)", "", "100.0 %", "100.0 %", "100.0 %", "-2.00", "-7.00"],
        ["  incorrect → incorrect (1)", "", "100.0 %", "100.0 %", "100.0 %", "-3.00", "-9.00"],
        ["train (4)", "10", "0.0 %", "75.0 %", "0.0 %", "+0.00", "-3.50"],
    ]
    assert [line[0] for line in lines[6:8]] == [
        "  correct → correct (2)",
        "  incorrect → correct (2)",
    ]
    assert [line[0] for line in lines[8:]] == [
        "validation (4)", *(line[0] for line in lines[1:5]), "validation (4)", lines[6][0],
        lines[7][0]]  # fmt: skip


def test_displacement_figure(tmp_path, monkeypatch):
    axes = drawn(monkeypatch, plot_displacement, tmp_path / "f.png")
    assert len(axes) == 4
    changes = {line.get_label(): list(line.get_ydata()) for line in axes[0].lines}
    shares = {line.get_label(): list(line.get_ydata()) for line in axes[1].lines}
    assert changes["chosen"] == [0, -1.5, 0] and changes["rejected"] == [-2.5, -4, -3.5]
    assert shares["chosen"] == shares["both"] == [0, 75, 0] and shares["rejected"] == [75, 75, 75]
    assert list(axes[1].lines[-1].get_xdata()) == [5, 5]
    nothing = [{**row, "chosen": None} for row in evaluated_pairs()]
    with pytest.raises(ValueError, match="no pair has finite log-likelihoods"):
        plot_displacement(nothing, tmp_path / "f.png")


def test_pictures_of_another_loss_say_whose_the_column_is(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    other = "loss of Eq. 4 (nats)\nwhere ipo is trained"
    for trained, label in (("ipo", other), ("sigmoid", "loss (nats)")):
        rows = [{**row, "loss_type": trained} for row in evaluated_pairs()]
        plot_dynamics(rows, tmp_path / "d.png")
        assert plt.gcf().axes[1].get_ylabel() == f"mean {label}"
        lowest = "lowest validation loss" + " of Eq. 4" * (trained == "ipo")
        assert plt.gcf().axes[1].lines[-1].get_label() == lowest
        plot_loss_against_reference(rows, tmp_path / "l.png")
        assert plt.gcf().axes[0].get_ylabel() == label
    rows = [{**row, "loss_type": "ipo", "trained_loss": row["step"]} for row in evaluated_pairs()]
    plot_dynamics(rows, tmp_path / "d.png")
    line = plt.gcf().axes[1].lines[-1]
    assert line.get_label() == "lowest validation loss of ipo" and list(line.get_xdata()) == [0, 0]


def test_sweep_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    other = [{**row, "gamma": 0.0} for row in evaluated_pairs()]
    worse = [{**row, "group": row["group"].split("_to_")[0] + "_to_incorrect"} for row in other]
    plot_sweep([evaluated_pairs(), other, worse], tmp_path / "s.png", "last")
    accuracy, flipped, distance = plt.gcf().axes
    train = {line.get_label(): line for line in accuracy.lines}["train (n = 4)"]
    assert list(train.get_xdata()) == [0, 1] and list(train.get_ydata()) == [50, 100]
    band = accuracy.collections[0].get_paths()[0].vertices  # 0 to 100 % at γ = 0
    assert {y for x, y in band if x == 0} == {0, 100} and {y for x, y in band if x == 1} == {100}
    assert list(distance.lines[0].get_ydata()) == [100, 100] and len(distance.lines) == 1
    assert list(flipped.lines[0].get_ydata()) == [50, 100]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="x.jsonl: not a ranking_dynamics.jsonl of dpo.py"):
        read_dynamics(path)


def test_a_named_evaluation_set_has_its_lines_and_panels(tmp_path, monkeypatch):
    named = [{**r, "part": "A"} for r in evaluated_pairs() if r["part"] == "validation"]
    rows = [*named[:8], *evaluated_pairs()]  # not evaluated at step 10
    _, lines = dynamics_table(rows)
    assert [line[:2] for line in lines[-2:]] == [["A (4)", "0"], ["A (4)", "5 (lowest)"]]
    assert "A (4)" in {line[0] for line in displacement_table(rows)[1]}
    _, sweep = sweep_table([evaluated_pairs(), rows], "lowest-loss")
    assert [line[2] for line in sweep] == ["train (4)", "validation (4)", "A (4)"]
    monkeypatch.setattr(plt, "close", lambda figure: None)
    for plot, n in ((plot_dynamics, 9), (plot_loss_against_reference, 3), (plot_displacement, 6)):
        plot(rows, tmp_path / "f.png")
        assert len(plt.gcf().axes) == n
    plot_accuracy_against_distance(rows, tmp_path / "f.png")
    lines = plt.gcf().axes[0].lines
    assert list(lines[2].get_ydata()) == [50, 50] and len({x.get_color() for x in lines}) == 3
