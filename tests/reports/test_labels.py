"""Models whose names end alike are told apart, and what a model is called; R̃ and R of one run belong together."""

import pytest
from result_rows import idealized_rows, ranking_rows

from ranking.reports.accuracy import accuracy_table
from ranking.reports.idealized import idealized_table
from ranking.reports.labels import model_labels, setting_labels, short


def test_models_whose_paths_end_alike_have_different_labels():
    assert model_labels(["a/checkpoint-4", "b/checkpoint-4", "b/dpo"]) == {
        "a/checkpoint-4": "a/checkpoint-4", "b/checkpoint-4": "b/checkpoint-4", "b/dpo": "dpo"}  # fmt: skip


def test_what_a_model_is_called():
    names = {"org/gpt2": "gpt2", "runs/a/checkpoint-4": "a/checkpoint-4", ".": ".", "/": "/"}
    assert {name: short(name) for name in names} == names


def test_a_file_that_has_one_of_two_rows_is_one_line():
    with pytest.raises(ValueError, match="no non-length-normalized row of gpt2 on Anthropic/hh-rl"):
        accuracy_table(ranking_rows()[:1], lambda row: None)
    with pytest.raises(ValueError, match="no length-normalized row of a/dpo on d"):
        idealized_table(idealized_rows()[1:2])


def test_pictures_name_a_configuration_unless_it_is_the_default():
    farm = ("tatsu-lab/alpaca_eval", "alpaca_farm_human_crossannotations")
    for (dataset, config), label in {
        ("princeton-nlp/LLMBar", "Natural"): "princeton-nlp/LLMBar (Natural, test)",
        ("princeton-nlp/LLMBar", None): "princeton-nlp/LLMBar (test)",
        farm: f"{farm[0]} (test)",
    }.items():
        rows = [{**row, "dataset_config": config} for row in ranking_rows(dataset=dataset)]
        assert [*setting_labels(rows).values()] == [label]
