"""The picture of lengths equals the result rows."""

import matplotlib.pyplot as plt
import pytest

from ranking.reports.length import plot_length_difference


def test_length_difference_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    bins = [{"mean_difference": x, "accuracy": y, "wilson_95": [y - 0.1, y + 0.1]}
            for x, y in ((-5, 0.9), (5, 0.2))]  # fmt: skip
    row = {"model": "m", "dataset_name": "d", "dataset_split": "test", "include_ties": False, "n": 9,
           "normalization": "non-length-normalized", "bins": bins}  # fmt: skip
    ties = {**row, "include_ties": True, "bins": bins[::-1]}  # its untied pairs are not drawn twice
    plot_length_difference([row, ties], tmp_path / "l.png")
    normalized, summed = plt.gcf().axes
    assert not normalized.containers and len(summed.containers) == 1
    assert list(summed.containers[0].lines[0].get_ydata()) == pytest.approx([90, 20])
    assert list(summed.containers[0].lines[0].get_xdata()) == [-5, 5]
