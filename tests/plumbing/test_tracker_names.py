"""Names that --report_to takes."""

import importlib.util

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ranking.plumbing.tracker_names import TRACKERS, check_trackers


def test_trackers_are_transformers():
    assert TRACKERS.keys() == INTEGRATION_TO_CALLBACK.keys()
    for names in (["none"], ["all"], ["wandb"], []):
        check_trackers(names)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wandb", "none"], "--report_to wandb none: none stands alone"),
        (["wandb", "tensorbord"], "swanlab; did you mean tensorboard?"),
        (["clearml"], "--report_to clearml is not installed: pip install clearml"),
        (["comet_ml"], "--report_to comet_ml is not installed: pip install comet-ml"),
    ],
)
def test_others_are_one_line(names, message):
    with pytest.raises(ValueError) as error:
        check_trackers(names)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_mlflow_without_a_database_needs_a_server(monkeypatch):
    found = {"mlflow": True, "sqlalchemy": None}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="which mlflow-skinny cannot: pip install mlflow"):
        check_trackers(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_trackers(["mlflow"])
