"""Pairs joined with the rows of several runs, on hand-worked files."""

import math

import numpy as np
import pytest

from ranking.metrics.tuned_loss import (
    best_step,
    check_one_setting,
    contradicts,
    matching_rows,
    tuned_columns,
)


def row(pair, step, loss, right=True, part="train", ref=(-100.0, -90.0), **more):
    return {"id": pair, "step": step, "part": part, "loss": loss, "beta": 0.1, "gamma": 1.0,
            "group": f"incorrect_to_{'correct' if right else 'incorrect'}", "reward_margin": 0.0,
            "ref_chosen": ref[0], "ref_rejected": ref[1], **more}  # fmt: skip


def run(losses, best=0.3):
    """Losses of training pairs at step 5, where that of the one validation pair is lowest."""
    rows = [
        row("v", step, loss, part="validation") for step, loss in ((0, 0.7), (5, best), (9, 0.5))
    ]
    rows += [row(pair, step, loss + (step != 5), loss < 0.2)
             for step in (0, 5, 9) for pair, loss in losses.items()]  # fmt: skip
    return best_step(rows)


REF = np.array([[-100.0, -90.0]] * 4)


def test_means_over_the_runs_that_follow_a_pair():
    one, two = run({"a": 0.1, "b": 0.5}), run({"a": 0.2, "c": 0.4})
    assert one.step == 5 and set(one.rows) == {"v", "a", "b"}
    rows = [matching_rows(["a", "b", "c", "d"], REF, each) for each in (one, two)]
    assert [n for _, n in rows] == [0, 0]
    found = [tuned_columns(own) for own in zip(*(matched for matched, _ in rows))]
    assert found[0] == {"tuned_loss": pytest.approx(0.15), "n_runs": 2, "flipped_in": 1}
    assert found[1] == {"tuned_loss": 0.5, "n_runs": 1, "flipped_in": 0}
    assert found[2] == {"tuned_loss": 0.4, "n_runs": 1, "flipped_in": 0}
    assert found[3] == {"tuned_loss": None, "n_runs": 0, "flipped_in": 0}


def test_a_tolerance_of_bfloat16():
    """S = 600: 8 · 2⁻⁷ √600 = 1.53 nats."""
    a = np.array([-300.0, -300.0, -300.0, math.nan])
    assert contradicts(a, a + [0.5, 1.5, 1.6, 0]).tolist() == [False, False, True, True]


def test_a_pair_that_bfloat16_moved_far_stays():
    """S = 201.6: 8 · 2⁻⁷ √S = 0.89 nats, which one of four pairs passes; three times that is 2.7."""
    one = run({"a": 0.1, "b": 0.5, "c": 0.4, "e": 0.3})
    moved = REF.copy()
    moved[1, 0] -= 1.6
    assert contradicts(moved, REF).sum() == 1
    assert matching_rows(["a", "b", "c", "e"], moved, one)[1] == 0
    moved[1, 0] -= 1.4
    assert matching_rows(["a", "b", "c", "e"], moved, one)[1] == 1


def test_another_reference_is_refused_and_a_text_cut_otherwise_left_out():
    one = run({"a": 0.1, "b": 0.5, "c": 0.4, "e": 0.3})
    odd = REF.copy()
    odd[1] += 20
    rows, n_left_out = matching_rows(["a", "b", "c", "e"], odd, one)
    assert n_left_out == 1 and rows[1] is None and rows[0]["id"] == "a"
    with pytest.raises(
        ValueError, match=r"of 4 of 4 pairs are not .* \(median difference 5 nats\)"
    ):
        matching_rows(["a", "b", "c", "e"], REF + 5, one)
    with pytest.raises(ValueError, match="none of its pairs is among the examples"):
        matching_rows(["x"], REF[:1], one)


def test_pairs_without_a_loss_are_left_out():
    rows = [row("a", 5, None), row("b", 5, 0.2), row("v", 5, 0.3, part="validation")]
    matched, n_left_out = matching_rows(["a", "b"], REF[:2], best_step(rows))
    assert matched[0] is None and matched[1]["id"] == "b" and n_left_out == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"beta": 1.0}, "one has β 0.1, two 1.0: a mean is over runs of one setting"),
        ({"gamma": 0.5}, "one has γ 1.0, two 0.5"),
        ({"loss_type": "ipo"}, "one has loss sigmoid, two ipo"),
        ({"target_margin": 2.0}, "one has target margin 0.5, two 2.0"),
    ],
)
def test_runs_of_several_settings_have_no_mean(more, message):
    one = best_step([row("a", 0, 0.7, loss_type="sigmoid", target_margin=0.5)])
    older = best_step([row("a", 0, 0.7)])
    check_one_setting({"one": one, "older": older})
    with pytest.raises(ValueError, match=message):
        check_one_setting({"one": one, "two": best_step([{**row("a", 0, 0.7), **more}])})
