"""Pictures of ranking dynamics equal the rows of the dynamics file, and say what they are of."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from result_rows import evaluated_pairs
from statsmodels.stats.proportion import proportion_confint

from ranking.reports.dynamics_pictures import (
    draw_dynamics,
    name_run,
    name_runs,
    plot_accuracy_against_distance,
    plot_displacement,
    plot_dynamics,
    plot_loss_against_reference,
    plot_sweep,
    run_caption,
)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws, and returns the panels of the figure, which stays open."""
    monkeypatch.setattr(plt, "close", lambda figure: None)

    def draw(plot, rows=None, *more):
        path = tmp_path / "f.png"
        plot(evaluated_pairs() if rows is None else rows, path, *more)
        assert path.stat().st_size > 0
        return plt.gcf().axes

    return draw


def lines_of(axes) -> dict:
    return {line.get_label(): line for line in axes.lines}


def band_at(axes, number: int, x: float) -> list[float]:
    """Lowest and highest of a band at x."""
    vertices = axes.collections[number].get_paths()[0].vertices
    y = [b for a, b in vertices if a == x]
    return [min(y), max(y)]


def test_dynamics_figure(drawn):
    axes = drawn(plot_dynamics)
    assert len(axes) == 6 and axes[0].get_title() == "train pairs (n = 4)"
    share = lines_of(axes[0])
    assert list(share["correct → correct"].get_ydata()) == [50, 25, 50]
    assert list(share["correct → incorrect"].get_ydata()) == [0, 25, 0]
    assert list(share["incorrect → correct"].get_ydata()) == [0, 25, 50]
    assert list(share["lowest validation loss"].get_xdata()) == [5, 5]
    assert not share["correct → incorrect"].get_clip_on() and axes[0].get_ylim()[0] < 0
    wanted = 100 * np.array(proportion_confint(2, 4, method="wilson"))
    assert band_at(axes[0], 0, 0.0) == pytest.approx(wanted)  # correct → correct
    assert lines_of(axes[2])["incorrect → correct"].get_ydata()[1] == pytest.approx(0.4)
    for row in (0, 2, 4):  # the same quantity of train and validation, on the same axes
        assert axes[row].get_ylim() == axes[row + 1].get_ylim()
    axes[4].figure.canvas.draw()
    assert all(float(tick).is_integer() for tick in axes[4].get_xticks())


def test_shares_of_many_pairs_have_no_band(drawn):
    many = [{**row, "id": f"{row['id']}{k}"} for row in evaluated_pairs() for k in range(250)]
    axes = drawn(plot_dynamics, many)
    assert axes[0].get_title() == "train pairs (n = 1000)" and not axes[0].collections


def test_loss_against_reference_figure(drawn):
    axes = drawn(plot_loss_against_reference)
    correct, wrong = axes[0].collections
    assert correct.get_offsets().tolist() == [[2.0, 0.5], [-4.0, 0.4]]
    assert wrong.get_offsets().tolist() == [[-1.0, 0.6], [-7.0, 0.7]]
    (needed,) = axes[0].lines  # −log σ(γβc), c = −(log-ratio): 7 at the left end, −2 at the right
    ends = needed.get_ydata()[[0, -1]]
    assert ends == pytest.approx(np.log1p(np.exp([-0.7, 0.2])))
    assert axes[0].get_title() == "train pairs (n = 4, 2 correct), step 5"


def test_accuracy_against_distance_figure(drawn):
    (axes,) = drawn(plot_accuracy_against_distance)
    for line in axes.lines:
        assert list(line.get_xdata()) == [0, 25, 100] and list(line.get_ydata()) == [50, 50, 100]
    wanted = 100 * np.array(proportion_confint(4, 4, method="wilson"))
    assert band_at(axes, 0, 100.0) == pytest.approx(wanted)


def test_displacement_figure(drawn):
    axes = drawn(plot_displacement)
    assert len(axes) == 4
    changes, shares = (
        {label: list(line.get_ydata()) for label, line in lines_of(panel).items()}
        for panel in (axes[0], axes[2])
    )
    assert changes["chosen"] == [0, -1.5, 0] and changes["rejected"] == [-2.5, -4, -3.5]
    assert shares["chosen"] == shares["both"] == [0, 75, 0] and shares["rejected"] == [75, 75, 75]
    assert list(axes[2].lines[-1].get_xdata()) == [5, 5]
    nothing = [{**row, "chosen": None} for row in evaluated_pairs()]
    with pytest.raises(ValueError, match="no pair has finite log-likelihoods"):
        drawn(plot_displacement, nothing)


def test_pictures_of_another_loss_say_whose_the_column_is(drawn):
    for trained, label in (("ipo", "loss of Eq. 4 (nats)"), ("sigmoid", "loss (nats)")):
        rows = [{**row, "loss_type": trained} for row in evaluated_pairs()]
        axes = drawn(plot_dynamics, rows)
        assert axes[2].get_ylabel() == f"mean {label}"
        lowest = "lowest validation loss" + " of Eq. 4" * (trained == "ipo")
        assert axes[2].lines[-1].get_label() == lowest
        caption = plt.gcf().get_suptitle()
        assert ("trained by ipo" in caption) == (trained == "ipo")
        assert drawn(plot_loss_against_reference, rows)[0].get_ylabel() == label
    rows = [{**row, "loss_type": "ipo", "trained_loss": row["step"]} for row in evaluated_pairs()]
    panel = drawn(plot_dynamics, rows)[2]
    lines = lines_of(panel)
    assert list(lines["lowest validation loss of ipo"].get_xdata()) == [0, 0]
    assert panel.get_ylabel() == "mean loss of ipo"
    assert list(lines["correct → correct"].get_ydata()) == [0, 5, 10]


def test_captions_say_what_else_a_loss_has():
    rows = [{**row, "target_margin": 1.5, "dpop_lambda": 50.0} for row in evaluated_pairs()]
    assert run_caption(rows, "").endswith(r"$\gamma$ = 1, target margin = 1.5, $\lambda$ = 50")
    rows[0]["dpop_lambda"] = 5.0  # of a sweep over it
    assert run_caption(rows, "").endswith(r"$\gamma$ = 1, target margin = 1.5")


def test_a_named_evaluation_set_has_its_panels(drawn):
    named = [{**r, "part": "A"} for r in evaluated_pairs() if r["part"] == "validation"]
    rows = [*named[:8], *evaluated_pairs()]  # not evaluated at step 10
    for plot, n in ((plot_dynamics, 9), (plot_loss_against_reference, 3), (plot_displacement, 6)):
        assert len(drawn(plot, rows)) == n
    (axes,) = drawn(plot_accuracy_against_distance, rows)
    assert list(axes.lines[2].get_ydata()) == [50, 50]
    assert len({line.get_color() for line in axes.lines}) == 3


def test_sweep_figure(drawn):
    other = [{**row, "gamma": 0.0} for row in evaluated_pairs()]
    worse = [{**row, "group": row["group"].split("_to_")[0] + "_to_incorrect"} for row in other]
    accuracy, flipped, distance = drawn(plot_sweep, [evaluated_pairs(), other, worse], "last")
    train = lines_of(accuracy)["train pairs (n = 4)"]
    assert list(train.get_xdata()) == [0, 1] and list(train.get_ydata()) == [50, 100]
    assert band_at(accuracy, 0, 0.0) == [0, 100] and band_at(accuracy, 0, 1.0) == [100, 100]
    assert list(distance.lines[0].get_ydata()) == [100, 100] and len(distance.lines) == 1
    assert list(flipped.lines[0].get_ydata()) == [50, 100]
    assert plt.gcf().get_suptitle() == r"$\beta$ = 0.1"  # γ is on the axis
    title = plt.gcf().legends[0].get_title().get_text()
    assert title.endswith("mean and range of 1 to 2 seeds")
    drawn(plot_sweep, [evaluated_pairs(), other], "last")
    assert plt.gcf().legends[0].get_title().get_text().endswith("range of 1 seed")


def test_the_saved_step_is_marked_where_the_loss_is_not_lowest(drawn):
    for plot, n in ((plot_dynamics, 6), (plot_displacement, 4)):
        axes = drawn(plot, None, "", 10)
        assert [list(lines_of(panel)["saved model"].get_xdata()) for panel in axes] == n * [
            [10, 10]
        ]
        for saved in (None, 5):  # 5: the lowest validation loss
            assert not any(
                "saved model" in lines_of(panel) for panel in drawn(plot, None, "", saved)
            )
    texts = drawn(plot_accuracy_against_distance, None, "", 10)[0].texts
    assert {text.get_text() for text in texts} == {"step 0", "step 10 (saved)"}
    for saved, title in ((10, "the saved model is of step 10"), (5, "")):
        drawn(plot_loss_against_reference, None, "", saved)
        assert plt.gcf().legends[0].get_title().get_text() == title


def test_each_picture_says_of_which_run_it_is(tmp_path, monkeypatch):
    """The run_config.json of dpo.py, and that of sft.py where the model is one of its runs."""
    settings = {"sft": {"model_name_or_path": "some/gpt2"},
                "dpo": {"model_name_or_path": str(tmp_path / "sft"), "seed": 3,
                        "dataset_name": ["Anthropic/hh-rlhf", str(tmp_path / "a_b$c")]}}  # fmt: skip
    for name, values in settings.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run_config.json").write_text(json.dumps({"settings": values}))
    file = tmp_path / "dpo/ranking_dynamics.jsonl"
    said = "sft (from gpt2), Anthropic/hh-rlhf + a_b$c"
    assert name_run(file) == f"{said}, seed 3"
    assert name_runs([file, file]) == said
    other = tmp_path / "ranking_dynamics.jsonl"
    assert name_run(other) == name_runs([file, other]) == ""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw_dynamics(evaluated_pairs(), tmp_path, name_run(file))
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert len(figures) == 4
    for figure in figures:
        caption = figure.get_suptitle().replace("\n", " ")
        assert caption == (
            r"sft (from gpt2), Anthropic/hh-rlhf + a_b\$c, seed 3, $\beta$ = 0.1, $\gamma$ = 1"
        )


def test_losses_that_are_not_finite_cost_no_more_than_their_panel(drawn, tmp_path, capsys):
    """Of one part; of all, the others of the four pictures are there, and a line says why."""

    def without(parts):
        return [{**row, "loss": None} if row["part"] in parts else row for row in evaluated_pairs()]

    (axes,) = drawn(plot_loss_against_reference, without({"train"}))
    assert axes.get_title() == "validation pairs (n = 4, 2 correct), step 5"
    pictures = draw_dynamics(without({"train", "validation"}), tmp_path, "")
    assert pictures.keys() == {"dynamics", "accuracy_against_distance", "displacement"}
    assert all(path.exists() for path in pictures.values())
    assert "no picture" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert "loss_against_reference.png: no pair has a finite loss at step 0" in said
