"""reproduce/conventions.py: conventions by hand."""

import pytest
from result_rows import HH, ranking_rows, scored_record

from ranking.metrics.accuracy import TextColumns
from ranking.plumbing.result_files import write_json_lines
from reproduce import conventions, tables
from reproduce.records import records_by_dataset


def test_ranking_conventions_by_hand():
    """One post with a right and a wrong pair; a tied pair 4 % apart; a tied list in its order."""
    posts = [scored_record(0, [-1, -2], [1, 2]), scored_record(1, [-2, -1], [1, 2]),
             scored_record(2, [-1, -2], [1, 2], prompt="q")]  # fmt: skip
    found = conventions.ranking_conventions(posts, "non-length-normalized")
    assert found == {"definition": [1, 0, 1], "answers grouped by prompt": [0, 1]}
    ties = [scored_record(0, [-100, -104], [1, 1]), scored_record(1, [-1, -2], [1, 2], prompt="q"),
            scored_record(2, [-1, -1.005], [1, 1], prompt="r"), scored_record(3, [-1, -9], [1, 1], prompt="s")]  # fmt: skip
    found = conventions.ranking_conventions(ties, "non-length-normalized")
    assert found == {"definition": [0, 1, 1, 0], "ties within 5 %": [1, 1, 1, 0]}
    lists = [
        scored_record(0, [-1, -2, -3], [1, 2, 2]),
        scored_record(1, [-1, -2, -3], [1, 2, 3], prompt="q"),
    ]
    found = conventions.ranking_conventions(lists, "non-length-normalized")
    assert found == {"definition": [1, 1], "tied lists are wrong": [0, 1]}
    rows = conventions.convention_rows(
        [{**r, "dataset": "stanfordnlp/SHP"} for r in posts], "length-normalized", 0
    )
    documented = conventions.ConventionRow.__annotations__.keys()
    assert all(documented - r.keys() == TextColumns.__annotations__.keys() for r in rows)
    assert all(r.keys() <= documented for r in rows)
    assert [(r["convention"], r["n"], r["published"]) for r in rows] == [
        ("definition", 3, False), ("answers grouped by prompt", 2, True)]  # fmt: skip


def test_conventions_of_several_models_and_splits_stay_apart():
    records = [scored_record(k, [-1 - k % 2, -2 + k % 2], [1, 2], prompt=str(k)) for k in range(4)]
    rows = []
    for model, split in (("gpt2", "test"), ("gpt2", "train"), ("EleutherAI/pythia-1.4b", "test")):
        mine = [{**r, "model": model, "dataset": HH, "split": split} for r in records]
        for kind in ("length-normalized", "non-length-normalized"):
            rows += conventions.convention_rows(mine, kind, 0)
    _, lines = tables.conventions_table(rows)
    assert [line[1:3] for line in lines] == [
        [f"{HH}:test", "gpt2"], [f"{HH}:train", "gpt2"], [f"{HH}:test", "pythia-1.4b"]]  # fmt: skip
    assert [line[-1] for line in lines] == [
        "49.9, 46.0 (gpt2)",
        "52.7, 46.8 (gpt2)",
        "51.2, 46.2 (pythia-1.4b)",
    ]
    with pytest.raises(ValueError, match="two runs of gpt2"):
        tables.conventions_table(rows + rows)
    with pytest.raises(ValueError, match=f"two runs of gpt2 on {HH}:test"):
        tables.accuracy_beside_paper(ranking_rows() + ranking_rows())
    harmless = [{**row, "dataset_config": "harmless-base"} for row in ranking_rows()]
    _, (line,) = tables.accuracy_beside_paper(harmless)
    assert line[0] == f"{HH}:harmless-base:test" and line[4] == "–"  # a part has no published value


def test_configurations_of_a_dataset_are_datasets(tmp_path):
    """Two of one split in one file."""
    made = [
        {
            **scored_record(k, [-1 - k % 2, -2 + k % 2], [1, 2], str(k)),
            "dataset_config": "ab"[k % 2],
        }
        for k in range(6)
    ]
    path = tmp_path / "new.examples.jsonl"
    write_json_lines(path, made)
    rows = [
        conventions.convention_rows(records, "length-normalized", 0)[0]
        for records, _ in records_by_dataset([str(path)])
    ]
    assert [(r["dataset_config"], r["n"], r["value"]) for r in rows] == [
        ("a", 3, 1.0), ("b", 3, 0.0)]  # fmt: skip
