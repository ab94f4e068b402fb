"""Tables and pictures of lengths equal the result rows."""

import matplotlib.pyplot as plt
import pytest
from result_rows import scored_record

from ranking.metrics.accuracy import summarize_dataset
from ranking.reports.accuracy import show_accuracy
from ranking.reports.length import baseline_table, plot_length_difference, with_baselines


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


def rows_of(records, include_ties=False, name="d", model="m"):
    common = {"model": model, "dataset_name": name, "dataset_split": None, "dropped": {},
              "include_ties": include_ties}  # fmt: skip
    return summarize_dataset(records, common, include_ties, 0)


# three right (differences −3, −1, 2), one wrong (1): at equal length the regression decides
PAIRS = [
    scored_record(k, [score, -2.0], [1, 2], str(k), n_tokens=(n, 5))
    for k, (score, n) in enumerate([(-1.0, 2), (-1.0, 4), (-1.0, 7), (-3.0, 6)])
]
LISTS = [
    scored_record(k, [-1.0, -2.0, -3.0], [1, 2, 3], str(k), n_tokens=(1, 2, 2)) for k in (0, 1)
]


def test_table_of_baselines():
    rows = rows_of(PAIRS) + rows_of(LISTS, name="lists")
    columns, lines = baseline_table(rows)
    assert columns == ["dataset", "shorter", "longer", "R̃", "R̃ at equal length", "r (R̃)", "R",
                       "R at equal length", "r (R)"]  # fmt: skip
    pairs, whole, untied = lines
    row = next(r for r in rows if r["distance_metric"] == "acc" and "non" in r["calib_property"])
    low, high = row["at_equal_length_95"]
    assert pairs[:3] == ["d", "50.0", "50.0"] and pairs[6] == "75.0"
    assert pairs[7] == f"{100 * row['at_equal_length']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert pairs[8] == f"{row['length_correlation']:+.2f}"
    # per token the first two of each list are equal, which is wrong
    assert whole == ["lists", "50.0", "0.0", "0.0", "–", "–", "100.0", "–", "–"]
    assert untied[:3] == ["  untied pairs", "83.3", "16.7"] and untied[6:] == ["100.0", "–", "–"]
    columns, lines = baseline_table([*rows_of(PAIRS), *rows_of(PAIRS, model="other")])
    assert columns[1] == "model" and [line[1] for line in lines] == ["m", "other"]
    with pytest.raises(ValueError, match="score them again"):
        baseline_table([{**row, "baselines": None}])


def test_groups_have_their_baselines():
    grouped = [{**record, "groups": {"side": "ab"[k // 2]}} for k, record in enumerate(PAIRS)]
    _, lines = baseline_table(rows_of(grouped))
    assert [line[:3] for line in lines] == [
        ["d", "50.0", "50.0"], ["  side: a", "100.0", "0.0"], ["  side: b", "0.0", "100.0"],
        ["  side: mean over 2", "50.0", "50.0"]]  # fmt: skip
    assert [line[6] for line in lines] == ["75.0", "100.0", "50.0", "75.0"]


def test_with_ties_untied_pairs_have_baselines(capsys):
    tied = rows_of([*PAIRS, scored_record(9, [-1.0, -2.0], [1, 1], "9")], include_ties=True)
    (line,) = baseline_table(tied)[1]
    assert line[:3] == ["d, untied pairs", "50.0", "50.0"] and line[6] == "75.0"
    assert not with_baselines(rows_of([scored_record(0, [-1.0, -2.0], [1, 1])], include_ties=True))
    show_accuracy(rows_of(LISTS))
    assert "d: no R̃ at equal length, all are right" in capsys.readouterr().out


def test_says_in_the_tables_words_that_length_decides(capsys):
    """R is right for the shorter of the two, by 2 tokens; with longer ones preferred, R̃ as well."""
    short = [scored_record(k, [-2.0, -4.0], [1, 2], str(k), n_tokens=[2, 4]) for k in range(3)]
    long = [scored_record(k, [-4.0, -2.0], [1, 2], str(k), n_tokens=[4, 2]) for k in range(3, 6)]
    show_accuracy(rows_of([*short, *long]))
    said = capsys.readouterr().out
    assert ("d: no R at equal length, R is decided by length there, right iff the preferred "
            "completion is short enough against the other") in said  # fmt: skip
    flipped = [
        {**record, "completions": [{**c, "logp": -6.0 - c["logp"]} for c in record["completions"]]}
        for record in (*short, *long)
    ]
    show_accuracy(rows_of(flipped))
    assert "right iff the preferred completion is long enough" in capsys.readouterr().out


def test_a_model_that_the_first_panel_lacks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    rows = [
        {"model": model, "dataset_name": dataset, "normalization": kind, "n": 9,
         "bins": [{"mean_difference": 1.0, "accuracy": 0.5, "wilson_95": [0.2, 0.8]}]}
        for model, dataset in (("a", "d"), ("a", "e"), ("b", "e"))
        for kind in ("length-normalized", "non-length-normalized")
    ]  # fmt: skip
    plot_length_difference(rows, tmp_path / "l.png")
    assert [text.get_text() for text in plt.gcf().legends[0].get_texts()] == ["a", "b"]
