"""Models whose names end alike are told apart."""

from ranking.reports.labels import model_labels


def test_models_whose_paths_end_alike_have_different_labels():
    assert model_labels(["a/checkpoint-4", "b/checkpoint-4", "b/dpo"]) == {
        "a/checkpoint-4": "a/checkpoint-4", "b/checkpoint-4": "b/checkpoint-4", "b/dpo": "dpo"}  # fmt: skip
