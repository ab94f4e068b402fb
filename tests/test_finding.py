"""reproduce/finding.py: what it draws of accuracies and of dynamics, and what it cannot draw."""

import matplotlib.pyplot as plt
import pytest
from result_rows import evaluated_pairs, idealized_rows

from ranking.plumbing.result_files import write_json_lines
from reproduce import finding


def drawn(folder, pairs, **changes):
    """The two panels, of idealized rows with `changes`."""
    write_json_lines(folder / "i.jsonl", [{**row, **changes} for row in idealized_rows()])
    write_json_lines(folder / "d.jsonl", pairs)
    finding.main(finding.parse_args(
        ["--idealized", str(folder / "i.jsonl"), "--dataset", "d", "--dynamics",
         str(folder / "d.jsonl"), "--output", str(folder / "f.png")]
    ))  # fmt: skip
    return plt.gcf().axes


def test_the_two_panels(tmp_path, monkeypatch):
    """Observed 5 % is inside of the axis; the loss goes from 0.7 by 0.55 to 0.725, wrong pairs from
    half by half to none, the two of validation that are kept from both by one to none."""
    pairs = [row for row in evaluated_pairs() if row["part"] == "train" or row["id"] in "23"]
    monkeypatch.setattr(plt, "close", lambda figure: None)
    left, right = drawn(tmp_path, pairs, observed_accuracy=0.05)
    low, high = left.get_xlim()
    marks = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert marks == [5, 5] and low < 5 and high > 100
    loss, wrong, of_validation = (line.get_ydata() for line in right.lines[:3])
    assert list(loss) == pytest.approx([100, 55 / 0.7, 72.5 / 0.7])
    assert list(wrong) == pytest.approx([100, 100, 0])
    assert list(of_validation) == pytest.approx([100, 50, 0])


def test_without_wrong_training_pairs_it_is_one_line(tmp_path):
    validated = [row for row in evaluated_pairs() if row["part"] == "validation"]
    right = [{**row, "group": "correct_to_correct"} for row in evaluated_pairs()]
    for pairs in (validated, right):
        with pytest.raises(ValueError, match="no followed training pairs, or none that is ranked"):
            drawn(tmp_path, pairs)
