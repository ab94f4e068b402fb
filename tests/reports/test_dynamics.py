"""What is shown of ranking dynamics equals the rows of the dynamics file."""

import json

import pytest
from result_rows import evaluated_pairs

from ranking.reports.dynamics import (
    chosen_step_beside,
    displacement_table,
    dynamics_table,
    read_dynamics,
    sweep_table,
)


def test_dynamics_and_sweep_tables():
    """Of the two correct and two wrong pairs at step 5, one each changes; the loss is lowest there."""
    columns, lines = dynamics_table(evaluated_pairs())
    assert columns[2] == "loss"
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


def test_the_saved_step_is_marked_where_the_loss_is_not_lowest(tmp_path):
    """Of a run whose model another metric chose; `evaluated_pairs` are of steps 0, 5 and 10."""
    rows = evaluated_pairs()
    between = [{**row, "step": 7} for row in rows if row["step"] == 10]
    for saved, steps in ((7, ["0", "5 (lowest)", "7 (saved)", "10"]), (5, ["0", "5 (lowest)", "10"]),
                         (10, ["0", "5 (lowest)", "10 (saved)"]), (6, ["0", "5 (lowest)", "10"]),
                         (None, ["0", "5 (lowest)", "10"])):  # fmt: skip
        _, lines = dynamics_table([*rows, *between], saved=saved)
        assert [line[1] for line in lines] == 2 * steps
        _, lines = displacement_table([*rows, *between], saved=saved)
        assert [line[1] for line in lines if line[1]] == 2 * steps[1:]
    file = tmp_path / "ranking_dynamics.jsonl"
    assert chosen_step_beside(file) is None
    for chosen_by, step in (("eval_rewards/accuracies", 7), ("last", None)):
        run = {"model": {"step": 7, "max_steps": 10, "chosen_by": chosen_by}}
        (tmp_path / "run_config.json").write_text(json.dumps(run))
        assert chosen_step_beside(file) == step


def test_the_loss_of_a_table_is_equation_4s_where_another_trained():
    rows = [{**row, "loss_type": "ipo"} for row in evaluated_pairs()]
    assert dynamics_table(rows)[0][2] == "loss (Eq. 4)" == sweep_table([rows], "last")[0][5]


def test_losses_that_are_not_finite_are_dashes():
    """A run that diverged: of its last step nothing is known, and so of a mean over seeds."""
    rows = evaluated_pairs()
    nothing = {"loss": None, "reward_margin": None}
    diverged = [{**row, **nothing} if row["step"] == 10 else row for row in rows]
    (*_, loss, _, _, _, margin), *_ = dynamics_table(diverged)[1][2:3]
    assert (loss, margin) == ("–", "–")
    _, sweep = sweep_table([rows, diverged], "last")
    assert [line[5] for line in sweep] == ["–", "–"] and sweep[0][3] == "100.0"
    _, sweep = sweep_table([rows, diverged], "lowest-loss")
    assert sweep[0][5] == "0.550"


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


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="x.jsonl: not a ranking_dynamics.jsonl of dpo.py"):
        read_dynamics(path)


def test_a_named_evaluation_set_has_its_lines():
    named = [{**r, "part": "A"} for r in evaluated_pairs() if r["part"] == "validation"]
    rows = [*named[:8], *evaluated_pairs()]  # not evaluated at step 10
    _, lines = dynamics_table(rows)
    assert [line[:2] for line in lines[-2:]] == [["A (4)", "0"], ["A (4)", "5 (lowest)"]]
    assert "A (4)" in {line[0] for line in displacement_table(rows)[1]}
    _, sweep = sweep_table([evaluated_pairs(), rows], "lowest-loss")
    assert [line[2] for line in sweep] == ["train (4)", "validation (4)", "A (4)"]
