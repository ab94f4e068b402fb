"""The trackers that a training reports to: one run in each, the same one after a resume.

They are transformers' own callbacks. Of wandb, tensorboard, trackio and mlflow, the metrics of an
evaluation are named by `grouped_metrics`, the settings are the run's own, and the run goes on after
training: with the test split, the pictures and the tables.
"""

import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.integrations import (
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from ranking.plumbing.processes import announce
from ranking.plumbing.wandb_runs import finishing_wandb, start_wandb
from ranking.reports.metric_names import grouped_metrics
from ranking.reports.pairs import Columns
from ranking.reports.tables import as_markdown, as_texts, as_wandb
from ranking.training.checkpoints import checkpoint_state
from ranking.training.run_directory import read_run

PARAMETER_LENGTH = 6000  # most characters of a parameter in mlflow
COMPARED = ("eval/loss", "validation ranking/accuracy", "test/loss", "test ranking/accuracy")


class NamedOnce:
    """Mixin of transformers' callbacks: metrics go to `log_metrics` by the names of
    `grouped_metrics`, and only the rest to the callback itself."""

    step = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.step = state.global_step
        grouped, rest = grouped_metrics(logs)
        super().on_log(args, state, control, logs=rest, **kwargs)
        if grouped and state.is_world_process_zero:
            self.log_metrics(grouped)


class WandbRun(NamedOnce, WandbCallback):
    """A run of wandb, offline as `wandb_runs.start_wandb` says."""

    name = "wandb"

    def __init__(self, run, facts: Mapping[str, Any]):
        super().__init__()
        self.run, self.facts = run, facts

    def setup(self, *args, **kwargs):
        super().setup(*args, **kwargs)
        # over what Trainer knows of the run: it says how TRL would cut texts
        self.run.config.update(dict(self.facts), allow_val_change=True)

    def log_metrics(self, metrics):
        self.run.log({**metrics, "train/global_step": self.step})

    def finish(self, pictures, tables):
        import wandb

        with finishing_wandb(self.run):
            for name, path in pictures.items():
                self.run.log({f"figures/{name}": wandb.Image(str(path))})
            if tables:
                self.run.log({name: as_wandb(table) for name, table in tables.items()})


class TensorBoardRun(NamedOnce, TensorBoardCallback):
    """Event files in FOLDER/runs, or in TENSORBOARD_LOGGING_DIR. What a killed run logged there
    after the checkpoint it goes on from is hidden."""

    name = "tensorboard"

    def __init__(self, folder: Path, facts: Mapping[str, Any], resumed_at: int):
        super().__init__()
        self.facts = facts
        own = "TENSORBOARD_LOGGING_DIR" not in os.environ
        directory = str(folder / "runs") if own else self.logging_dir
        self.tb_writer = self._SummaryWriter(directory, purge_step=resumed_at + 1 if own else None)
        announce(f"tensorboard: see this run with `tensorboard --logdir {directory}`")

    def on_train_begin(self, *args, **kwargs):
        from torch.utils.tensorboard.summary import hparams

        super().on_train_begin(*args, **kwargs)
        self.tb_writer.add_text("settings", f"```\n{json.dumps(self.facts, indent=1)}\n```")
        values = {
            name: value if isinstance(value, str | bool | int | float) else json.dumps(value)
            for name, value in self.facts.items()
        }
        for summary in hparams(values, dict.fromkeys(COMPARED)):
            self.tb_writer.file_writer.add_summary(summary)

    def on_train_end(self, *args, **kwargs):
        pass  # the test split and the pictures are still to come

    def log_metrics(self, metrics):
        for name, value in metrics.items():
            self.tb_writer.add_scalar(name, value, self.step)
        self.tb_writer.flush()

    def finish(self, pictures, tables):
        import numpy as np
        from PIL import Image

        for name, path in pictures.items():
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self.tb_writer.add_image(f"figures/{name}", pixels, self.step, dataformats="HWC")
        for name, table in tables.items():
            self.tb_writer.add_text(name, as_markdown(table), self.step)
        self.tb_writer.close()


class TrackioRun(NamedOnce, TrackioCallback):
    """A run in trackio's database in FOLDER/trackio, in TRACKIO_DIR, or in a Space."""

    name = "trackio"

    def __init__(self, folder: Path, facts: Mapping[str, Any], project: str, name: str,
                 where: Mapping[str, Any]):  # fmt: skip
        directory = os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))
        super().__init__()  # imports trackio, which reads TRACKIO_DIR
        self.project = project
        with redirect_stdout(io.StringIO()):  # lines for a notebook, without TRACKIO_DIR
            self._trackio.init(
                project=project, name=name, config=dict(facts), embed=False, resume="allow", **where
            )
        self._space_id = self._trackio.context_vars.current_space_id.get()
        self._initialized = True
        show = f"with `TRACKIO_DIR={directory} trackio show --project {project}`"
        if self._space_id is not None:
            show = f"at https://huggingface.co/spaces/{self._space_id}"
        announce(f"trackio: see this run {show}")

    def on_train_end(self, args, state, control, **kwargs):
        args.project = self.project
        self.end = partial(super().on_train_end, args, state, control, **kwargs)

    def log_metrics(self, metrics):
        self._trackio.log({**metrics, "train/global_step": self.step})

    def finish(self, pictures, tables):
        images = {f"figures/{n}": self._trackio.Image(str(path)) for n, path in pictures.items()}
        texts = {name: self._trackio.Table(*as_texts(table)) for name, table in tables.items()}
        if images or texts:
            self._trackio.log({**images, **texts, "train/global_step": self.step})
        with redirect_stdout(io.StringIO()):
            self.end()


class MlflowRun(NamedOnce, MLflowCallback):
    """A run of mlflow at MLFLOW_TRACKING_URI, else in a database in FOLDER."""

    name = "mlflow"

    def __init__(self, folder: Path, facts: Mapping[str, Any], experiment: str, name: str,
                 run_id: str):  # fmt: skip
        super().__init__()
        self._async_log = True  # a server that goes away does not stop the training
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        try:
            self.start(folder.resolve(), facts, experiment, name, run_id)
        except self._ml_flow.MlflowException as error:
            raise OSError(f"mlflow: {str(error).splitlines()[0]}") from None
        self._initialized = True  # `setup` would start another run, and refuse changed parameters

    def start(self, folder, facts, experiment, name, run_id):
        mlflow, artifacts = self._ml_flow, None
        if not mlflow.is_tracking_uri_set():
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            artifacts = (folder / "mlartifacts").as_uri()
            announce(
                "mlflow: see this run with `mlflow ui --backend-store-uri "
                f"{mlflow.get_tracking_uri()}`"
            )
        if mlflow.get_experiment_by_name(experiment) is None:
            mlflow.create_experiment(experiment, artifact_location=artifacts)
        mlflow.set_experiment(experiment)
        earlier = mlflow.search_runs(
            filter_string=f"tags.run_config_id = '{run_id}'", output_format="list"
        )
        if earlier:
            mlflow.start_run(run_id=earlier[0].info.run_id)
            return
        mlflow.start_run(run_name=name, tags={"run_config_id": run_id})
        values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
        fitting = {k: v for k, v in values.items() if len(v) <= PARAMETER_LENGTH}
        names = list(fitting)
        for start in range(0, len(names), self._MAX_PARAMS_TAGS_PER_BATCH):
            batch = names[start : start + self._MAX_PARAMS_TAGS_PER_BATCH]
            mlflow.log_params({k: fitting[k] for k in batch})
        mlflow.log_dict(dict(facts), "settings.json")

    def log_metrics(self, metrics):
        allowed = {mlflow_name(name): value for name, value in metrics.items()}
        self._ml_flow.log_metrics(allowed, step=self.step, synchronous=False)

    def finish(self, pictures, tables):
        self._ml_flow.flush_async_logging()
        for path in pictures.values():
            self._ml_flow.log_artifact(str(path), "figures")
        for name, (columns, lines) in ((n, as_texts(table)) for n, table in tables.items()):
            data = {column: [line[k] for line in lines] for k, column in enumerate(columns)}
            self._ml_flow.log_table(data, f"{name}.json")
        self._ml_flow.end_run()


def mlflow_name(name: str) -> str:
    """A metric's name with the characters that mlflow refuses as underscores."""
    return "".join(c if c.isascii() and c.isalnum() or c in "_-. :/" else "_" for c in name)


def start_trackers(
    folder: Path,
    facts: Mapping[str, Any],
    *,
    report_to: Sequence[str],
    checkpoint: str | None,
    project: str | None,
    default_project: str,
    wandb_project: str | None,
    wandb_entity: str | None,
    name: str | None,
    trackio: Mapping[str, Any],
) -> tuple[list[Any], list[str]]:
    """Callbacks with a run in each of the trackers of `report_to` that show groups and pictures,
    in the main process; and the names of the other trackers, which Trainer starts by itself.

    facts: the run's settings. checkpoint: what it goes on from. project, name: of the run.
    trackio: space_id, bucket_id and private of its `init`. The runs go on after a resume.
    """
    own = ("tensorboard", "trackio", "mlflow", "wandb")  # wandb last: it may end the script
    others = [tracker for tracker in report_to if tracker not in own]
    if not PartialState().is_main_process:
        return [], others
    run_id = read_run(folder)["wandb_id"]
    title = name or f"{folder.resolve().name}-{run_id}"
    resumed_at = checkpoint_state(checkpoint).global_step if checkpoint else -1
    trackers: list[Any] = []
    for tracker in own:
        if tracker not in report_to:
            continue
        if tracker == "tensorboard":
            trackers.append(TensorBoardRun(folder, facts, resumed_at))
        elif tracker == "trackio":
            trackers.append(TrackioRun(folder, facts, project or default_project, title, trackio))
        elif tracker == "mlflow":
            experiment = project or os.environ.get("MLFLOW_EXPERIMENT_NAME", default_project)
            trackers.append(MlflowRun(folder, facts, experiment, title, run_id))
        else:
            given = wandb_project or project
            run = start_wandb(
                project=given or os.environ.get("WANDB_PROJECT", default_project),
                entity=wandb_entity, name=name, id=run_id, resume="allow",
                dir=os.environ.get("WANDB_DIR", str(folder)),
            )  # fmt: skip
            trackers.append(WandbRun(run, facts))
    return trackers, others


def finish_trackers(
    trackers: Sequence[Any], pictures: Mapping[str, Path], tables: Mapping[str, Columns]
) -> None:
    """Give the trackers of `start_trackers` the pictures and tables, and end their runs.

    For when all results are on disk: a tracker that fails costs a line.
    """
    for tracker in trackers:
        try:
            tracker.finish(pictures, tables)
        except Exception as error:  # whatever its library raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            announce(f"{tracker.name}: {reason}; all results are in the output files")
