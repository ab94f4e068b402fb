"""Which runs go together, and what of them is compared."""

import pytest
from result_rows import scored_record

from ranking.scoring.comparable import (
    ScoringRun,
    check_comparable,
    check_compared,
    compared_runs,
    refuse_same_file,
)


def run_of(name, numbers, ranks=(1, 2), **changes) -> ScoringRun:
    """A run whose file has these examples, nobody knows how it was scored."""
    records = [
        {**scored_record(k, [-1.0 - k, -2.0], list(ranks)), "model": name, **changes}
        for k in numbers
    ]
    return ScoringRun(f"{name}.examples.jsonl", records, None)


def test_runs_that_share_nothing_among_all_are_refused_before_scoring():
    """Each shares an example with this run, but not the same one; or the shared ones are tied."""
    with pytest.raises(ValueError, match="no example with an untied pair is in all of them"):
        check_compared(run_of("a", range(4)), [run_of("b", [0]), run_of("c", [1])])
    tied = (1, 1)
    with pytest.raises(ValueError, match="no example with an untied pair is in all of them"):
        check_compared(run_of("a", [0, 1], tied), [run_of("b", [0, 1], tied)])
    check_compared(run_of("a", range(4)), [run_of("b", [0, 1]), run_of("c", [1])])
    check_compared(run_of("a", range(4)), [])


def test_what_is_not_compared_is_said(capsys):
    """A dataset that only others have, and one of which all share no example."""
    ours, second = run_of("a", range(4)), run_of("a", range(2), dataset="e")
    ours = ours._replace(records=ours.records + second.records)
    others = [
        run._replace(records=run.records + run_of(name, numbers, dataset="e").records
                     + run_of(name, [0], dataset="f").records)
        for name, numbers in (("b", [0]), ("c", [1]))
        for run in [run_of(name, range(3))]
    ]  # fmt: skip
    compared_runs("a", ours.records, others)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "e: not compared: no example with an untied pair is in all of a, b, c",
        "f: not compared: b has untied examples of it, and this run has none",
        "f: not compared: c has untied examples of it, and this run has none",
    ]


@pytest.mark.parametrize(
    "again", ["b.examples.jsonl", "./b.examples.jsonl", "x/../b.examples.jsonl"]
)
def test_one_file_is_not_two_runs(again):
    a, b = run_of("a", range(4)), run_of("b", range(4))
    for runs in ((a, [b, b._replace(name=again)]), (b, [a, b._replace(name=again)])):
        with pytest.raises(ValueError, match=f"^{again}: given twice"):
            check_compared(*runs)
    with pytest.raises(ValueError, match=f"^{again}: given twice"):
        refuse_same_file(b, b._replace(name=again))
    refuse_same_file(a, b)
    check_compared(a, [b])


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ([3, 1], {"0,1": [3, 1]}, True),
        ([3, 1], {"1,0": [1, 3]}, True),
        ({}, None, True),
        ([3, 1], {"0,1": [1, 3]}, False),
        ([3, 1], None, False),
    ],
)
def test_votes_are_compared_however_they_are_written(ours, theirs, same):
    runs = run_of("a", range(2), votes=ours), run_of("b", range(2), votes=theirs)
    if same:
        check_comparable(*runs)
    else:
        with pytest.raises(ValueError, match="row 0: its votes differ"):
            check_comparable(*runs)
