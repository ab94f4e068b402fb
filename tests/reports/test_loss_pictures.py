"""Fig. 9b shows the mean losses of the dynamics files, and asks for what is missing."""

import matplotlib.pyplot as plt
import pytest
from result_rows import tuned_rows

from ranking.reports.loss_pictures import plot_losses

LOSSES = {"train": (0.7, 0.3, 0.1), "validation": (0.7, 0.5, 0.6), "test": (0.7, 0.55, 0.8)}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws runs by their names, and returns the axes of the figure, which stays open."""
    monkeypatch.setattr(plt, "close", lambda figure: None)

    def draw(runs):
        plot_losses(runs, tmp_path / "f.png", "a run")
        (axes,) = plt.gcf().axes
        return axes, {line.get_label(): line for line in axes.lines}

    return draw


def run_rows(losses=LOSSES, gamma=1.0):
    return [
        row
        for part, values in losses.items()
        for step, loss in enumerate(values)
        for row in tuned_rows(3, gamma=gamma, part=part, step=step, loss=loss)
    ]


def test_losses_of_a_run(drawn):
    axes, lines = drawn({"a": run_rows()})
    for part, losses in LOSSES.items():
        line = lines[f"{part} pairs (n = 3)"]
        assert list(line.get_xdata()) == [0, 1, 2]
        assert list(line.get_ydata()) == pytest.approx(losses)
    assert list(lines["lowest validation loss, step 1"].get_xdata()) == [1, 1]
    assert axes.get_ylabel() == "mean loss (nats)"
    trained = [{**r, "loss_type": "ipo", "trained_loss": 2 * r["loss"]} for r in run_rows()]
    axes, lines = drawn({"a": trained})
    assert list(lines["test pairs (n = 3)"].get_ydata()) == pytest.approx([1.4, 1.1, 1.6])
    assert axes.get_ylabel() == "mean loss of ipo"


def test_losses_of_runs_at_their_lowest_validation_loss(drawn):
    """A point of each run; the second's validation loss is lowest at its last step."""
    second = {**LOSSES, "validation": (0.7, 0.5, 0.4)}
    runs = {"a": run_rows(), "b": run_rows(second), "c": run_rows(second, gamma=0.5)}
    axes, lines = drawn(runs)
    points = {label: line.get_xydata().tolist() for label, line in lines.items()}
    approx = pytest.approx
    assert points[r"train, $\gamma$ = 1"] == [approx([0.5, 0.3]), approx([0.4, 0.1])]
    assert points[r"test, $\gamma$ = 1"] == [approx([0.5, 0.55]), approx([0.4, 0.8])]
    assert points[r"test, $\gamma$ = 0.5"] == [approx([0.4, 0.8])]
    assert axes.get_ylim()[1] > 0.8 and axes.get_xlim()[0] >= 0


def test_what_is_missing_is_one_line(drawn):
    untested = {part: LOSSES[part] for part in ("train", "validation")}
    with pytest.raises(ValueError, match="^b.jsonl: no losses of test pairs.*--evaluate_test$"):
        drawn({"a.jsonl": run_rows(), "b.jsonl": run_rows(untested)})
    alone = {part: LOSSES[part] for part in ("train", "test")}
    with pytest.raises(ValueError, match="^a.jsonl: no losses of validation pairs"):
        drawn({"a.jsonl": run_rows(alone)})
    unfollowed = {part: LOSSES[part] for part in ("validation", "test")}
    assert "train pairs (n = 3)" not in drawn({"a": run_rows(unfollowed)})[1]
    with pytest.raises(ValueError, match="^b.jsonl: no losses of train.*--dynamics_sample_size"):
        drawn({"a.jsonl": run_rows(), "b.jsonl": run_rows(unfollowed)})
    trained = [{**r, "loss_type": "ipo", "trained_loss": r["loss"]} for r in run_rows()]
    with pytest.raises(ValueError, match="several losses, loss .nats. and loss of ipo"):
        drawn({"a": run_rows(), "b": trained})
