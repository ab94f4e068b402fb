"""Which trackers --report_to can name, and whether they are installed; no run of them is here."""

import importlib.util
import os
from collections.abc import Sequence

from ranking.plumbing.command_line import suggestion

TRACKERS = {  # name → modules one of which it needs (none: a service of the machine), pip package
    "wandb": (("wandb",), "wandb"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "mlflow": (("mlflow",), "mlflow"),
    "azure_ml": (("azureml",), "azureml-core"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "dagshub": (("dagshub",), "dagshub"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "kubeflow": ((), ""),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
}


def check_trackers(names: Sequence[str]) -> None:
    """ValueError unless these are trackers that are installed, or `none` or `all` alone."""
    for name in names:
        if name in ("none", "all"):
            if len(names) > 1:
                raise ValueError(f"--report_to {' '.join(names)}: {name} stands alone")
            continue
        if name not in TRACKERS:
            known = (*TRACKERS, "none", "all")
            raise ValueError(
                f"--report_to {name}: give none, or any of {', '.join(TRACKERS)}"
                + suggestion(name, known)
            )
        modules, package = TRACKERS[name]
        if modules and not any(importlib.util.find_spec(module) for module in modules):
            raise ValueError(f"--report_to {name} is not installed: pip install {package}")
    has_database = importlib.util.find_spec("sqlalchemy") is not None
    if "mlflow" in names and "MLFLOW_TRACKING_URI" not in os.environ and not has_database:
        raise ValueError(
            "--report_to mlflow: without MLFLOW_TRACKING_URI it keeps runs in a database, which "
            "mlflow-skinny cannot: pip install mlflow"
        )
