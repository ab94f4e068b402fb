"""How run_config.json has a run's flags: those of earlier runs stand as these wrote them, so that
they go on by the same command. A flag that came later is left out where it changes nothing."""

from collections.abc import Mapping
from typing import Any

LATER_FLAGS = (
    "eval_dataset_name", "evaluate_test", "dataset_shares", "columns", "chat_template_file",
    "chat_template_kwargs", "system",
)  # fmt: skip
LATER_MODEL_FLAGS = (
    "trust_remote_code", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type",
    "use_bnb_nested_quant", "bnb_4bit_quant_storage",
)  # fmt: skip
LATER_TRAINING_FLAGS = (
    "target_margin", "dpop_lambda", "early_stopping_patience", "early_stopping_threshold",
    "trust_remote_code",
)  # fmt: skip
SWITCH = {"true": "always", "false": "never"}  # when --chat_template was a switch
NOT_DESCRIBED = ("config", "save_config", "given")


def describe_data(
    values: Mapping[str, Any], template: str | None, with_dialogues: bool
) -> dict[str, Any]:
    """Of data flags. template: the text of --chat_template_file. with_dialogues: whether there are
    some in the data, without which --chat_template and --add_eos are the switches they were."""
    described = {name: value for name, value in values.items() if name not in NOT_DESCRIBED}
    for name in LATER_FLAGS:
        if described[name] in (None, False):
            del described[name]
    if len(described["dataset_name"]) == 1:
        (described["dataset_name"],) = described["dataset_name"]
    if "chat_template_file" in described:
        described["chat_template_file"] = template
    if not with_dialogues:
        described["chat_template"] = values["chat_template"] == "always"
        described["add_eos"] = bool(values["add_eos"])
    return described


def describe_model(values: Mapping[str, Any], quantized: bool) -> dict[str, Any]:
    """Of model and LoRA flags."""
    later = () if quantized else LATER_MODEL_FLAGS
    return {name: value for name, value in values.items() if name not in later}


def describe_training(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Of the trainer's flags."""
    return {
        name: value for name, value in values.items()
        if name not in LATER_TRAINING_FLAGS or value != defaults[name]
    }  # fmt: skip
