"""What trackers hold of a run that was killed after its first checkpoint, and of its pictures."""

import importlib.util
import json
import shutil
import sqlite3

import pytest
from checkpoint_files import make_checkpoint
from training_runs import as_killed
from training_runs import dpo_command as command
from transformers import TrainerControl, TrainerState, TrainingArguments

from dpo import main
from ranking.training.run_directory import mark_run
from ranking.training.trackers import TrackioRun, finish_trackers, mlflow_name, start_trackers

METRICS = {"train/loss", "eval/loss", "train pairs/loss", "test/loss", "validation ranking/accuracy",
           "validation groups/correct_to_correct_share", "train ranking/accuracy",
           "test ranking/accuracy", "validation distance/squared"}  # fmt: skip
FIGURES = {"dynamics", "loss_against_reference", "accuracy_against_distance", "displacement"}
DATABASES = {"tensorboard": "tensorboard", "trackio": "trackio", "mlflow": "sqlalchemy"}


def is_there(tracker: str) -> bool:
    return all(importlib.util.find_spec(name) for name in (tracker, DATABASES[tracker]))


@pytest.fixture(scope="module")
def run(tiny_model_directory, tmp_path_factory):
    """Two steps with all trackers that are installed, the second one twice."""
    names = [name for name in DATABASES if is_there(name)]
    if not names:
        pytest.skip("no tracker is installed: pip install tensorboard trackio mlflow")
    folder = tmp_path_factory.mktemp("tracked") / "run"
    more = ["--bf16=false", "--warmup_steps=0", "--max_train_samples=4", "--max_eval_samples=2",
            "--max_steps=2", "--eval_steps=1", "--save_steps=1", "--logging_steps=1",
            "--report_to", *names]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("TRACKIO_DIR", "MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR"):
            patch.setenv(variable, "")  # which undo takes away, whatever a tracker sets
            patch.delenv(variable)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        main(command(tiny_model_directory, folder, *more))
        shutil.rmtree(as_killed(folder, folder) / "checkpoint-2")
        main(command(tiny_model_directory, folder, *more))
    return folder


def needs(tracker: str):
    return pytest.mark.skipif(not is_there(tracker), reason=f"pip install {tracker}")


def assert_once(names) -> None:
    """Each metric by one name: none is an evaluation's under Trainer's name too."""
    assert names >= METRICS
    assert not [
        name for name in names if name.startswith(("eval/", "test/")) and name.count("/") > 1
    ]


@pytest.mark.slow
@needs("tensorboard")
def test_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "runs"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert_once(set(tags["scalars"]))
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    logged = {e["step"]: e["eval_ranking/accuracy"] for e in history if "eval_loss" in e}
    shown = [(e.step, e.value) for e in events.Scalars("validation ranking/accuracy")]
    assert shown == [(step, pytest.approx(value)) for step, value in sorted(logged.items())]
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2]  # step 2 was logged twice
    assert {name.removeprefix("figures/") for name in tags["images"]} == FIGURES
    assert "dynamics/groups/text_summary" in tags["tensors"]
    (text,) = events.Tensors("settings/text_summary")[-1].tensor_proto.string_val
    settings = json.loads(text.decode().strip("`\n"))
    assert settings["truncation_mode"] == "prompts from the left" and settings["alpha"] == 0.5
    assert any(b"hparams" in file.read_bytes() for file in (run / "runs").iterdir())


@pytest.mark.slow
@needs("trackio")
def test_trackio(run):
    rows = sqlite3.connect(run / "trackio/dpo.db").execute("select run_name, metrics from metrics")
    rows = [(name, json.loads(metrics)) for name, metrics in rows]
    assert {name for name, _ in rows} == {"second"}  # one run, resumed
    assert_once({key for _, metrics in rows for key in metrics})
    figures = [metrics for _, metrics in rows if "figures/dynamics" in metrics]
    assert {name.removeprefix("figures/") for name in figures[-1] if "figures" in name} == FIGURES
    assert figures[-1]["figures/dynamics"]["_type"] == "trackio.image"
    assert figures[-1]["dynamics/groups"]["_type"] == "trackio.table"


@needs("trackio")
def test_trackio_says_one_line(tmp_path, monkeypatch, capfd):
    """How to see the run: its own lines name no TRACKIO_DIR."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    run = TrackioRun(tmp_path, {}, "dpo", "first", {})
    run.on_train_end(TrainingArguments(str(tmp_path)), TrainerState(), TrainerControl())
    run.finish({}, {})
    out, err = capfd.readouterr()
    assert out == ""
    assert err == (
        f"trackio: see this run with `TRACKIO_DIR={tmp_path} trackio show --project dpo`\n"
    )


@needs("tensorboard")
@pytest.mark.parametrize("name", ["checkpoint-4", "last-checkpoint", "copied"])
def test_a_checkpoint_of_any_name_is_gone_on_from(tmp_path, monkeypatch, name):
    """The hub has last-checkpoint. What was logged after its step is hidden."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.compat.proto.event_pb2 import SessionLog

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    mark_run(tmp_path, {}, finished=False)
    checkpoint = make_checkpoint(tmp_path / "other", 4).rename(tmp_path / name)
    ((run,), others) = start_trackers(
        tmp_path, {}, report_to=["tensorboard", "comet_ml"], checkpoint=str(checkpoint), project=None,
        default_project="dpo", wandb_project=None, wandb_entity=None, name=None, trackio={},
    )  # fmt: skip
    run.tb_writer.close()
    (file,) = (tmp_path / "runs").iterdir()
    events = EventFileLoader(str(file)).Load()
    hidden = [e.step for e in events if e.session_log.status == SessionLog.START]
    assert others == ["comet_ml"] and hidden == [5]


@pytest.mark.slow
@needs("mlflow")
def test_mlflow(run):
    import mlflow

    uri = f"sqlite:///{run / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("dpo")
    (found,) = client.search_runs([experiment.experiment_id])  # one run, resumed
    assert found.info.status == "FINISHED" and found.info.run_name == "second"
    names = set(found.data.metrics)
    assert names >= {name for name in METRICS if " " in name} | {"loss", "eval_loss", "test_loss"}
    assert not [name for name in names if name.startswith(("eval_", "test_")) and "/" in name]
    assert found.data.params["truncation_mode"] == "prompts from the left"
    assert found.data.params["alpha"] == "0.5"
    figures = [file.path for file in client.list_artifacts(found.info.run_id, "figures")]
    assert len(figures) == len(FIGURES)
    table = next((run / "mlartifacts").glob("*/artifacts/dynamics/groups.json"))
    assert "loss" in json.loads(table.read_text())["columns"]


class Gone:
    name = "mlflow"

    def finish(self, pictures, tables):
        raise RuntimeError("the server is gone\nand more")


class Kept:
    given: tuple = ()

    def finish(self, *given):
        self.given = given


def test_a_tracker_that_fails_costs_a_line(capsys):
    """The others get everything."""
    kept = Kept()
    finish_trackers([Gone(), kept], {"a": "picture"}, {"b": "table"})
    line = "mlflow: the server is gone; all results are in the output files\n"
    assert capsys.readouterr().err == line and kept.given == ({"a": "picture"}, {"b": "table"})


def test_names_that_mlflow_takes():
    assert mlflow_name("validation a (β)/x_1-2.3") == "validation a ___/x_1-2.3"
