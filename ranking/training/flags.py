"""Flags of sft.py and dpo.py beyond TRL's: old spellings, defaults, and checks of their values.

What each of them means stands in `help_texts.FLAG_GROUPS`, which --help shows. Checked twice, by
the same code: with TRL's flags as `known_flags` knows them, at once (`early_checks`), and as fields
of TRL's classes, of which these are mixins. What one script alone has: `sft_flags`, `dpo_flags`. A
command line becomes values in `parsing`, with the file of --config in `config_file`.
"""

import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ranking.data.columns import parse_columns
from ranking.plumbing.model_hub import check_hub_access
from ranking.plumbing.processes import announce
from ranking.plumbing.tracker_names import check_trackers
from ranking.plumbing.wandb_runs import check_wandb
from ranking.scoring.chat import TEMPLATE_MODES, ChatOptions
from ranking.scoring.flags import chat_options
from ranking.scoring.models import DTYPES, is_local

JSON_FLAGS = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs",
              "lr_scheduler_kwargs")  # fmt: skip
JSON_OR_FILE_FLAGS = ("accelerator_config", "fsdp_config", "deepspeed")
SWITCH = {"true": "always", "false": "never"}  # when --chat_template was a switch
NOT_DESCRIBED = ("config", "save_config", "given")


def flag(default: Any, *aliases: str, **how: Any) -> Any:
    """A field that is a flag of this default; aliases: other spellings; how: as argparse takes it
    (nargs, const, choices, action)."""
    return field(default=default, metadata={"aliases": list(aliases), **how})


@dataclass
class DataArguments:
    """Data, output and wandb flags of both scripts."""

    dataset_name: list[str] | None = flag(None, action="extend")
    dataset_shares: list[float] | None = None
    eval_dataset_name: list[str] | None = flag(None, action="extend")
    data_dir: str | None = None
    columns: list[str] | None = flag(None, action="extend")
    train_split: str | None = None
    eval_split: str | None = None
    split_seed: int = 0
    sanity_check: bool = False
    max_train_samples: int | None = None
    max_eval_samples: int = 1000
    evaluate_test: bool = False
    separator: str | None = None
    chat_template: str = flag("auto", nargs="?", const="always")
    chat_template_file: str | None = None
    chat_template_kwargs: str | None = None
    system: str | None = None
    add_eos: bool | None = flag(None, nargs="?", const=True)
    overwrite_output_dir: bool = False
    config: str | None = None
    save_config: str | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None
    # the flags given, in the order of FLAG_GROUPS, which --save_config writes
    given: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self):
        self.dataset_name = self.dataset_name or ["Anthropic/hh-rlhf"]
        check_number("split_seed", self.split_seed, self.split_seed >= 0, "0 or more")
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1 and (name, value) != ("max_eval_samples", -1):
                raise ValueError(f"--{name} {value}: give a positive number")
        if self.dataset_shares is not None:
            check_shares(self.dataset_shares, self.dataset_name)
        self.chat_template = SWITCH.get(self.chat_template.lower(), self.chat_template)
        if self.chat_template not in TEMPLATE_MODES:
            raise ValueError(f"--chat_template {self.chat_template}: give auto, always or never")
        if self.chat_template == "always" and self.separator is not None:
            raise ValueError("--separator: --chat_template joins prompt and completion, give one")
        parse_columns(self.columns)
        self.of_chat()
        if self.wandb_project:
            check_wandb(self.wandb_project)
        if self.sanity_check:
            self.max_train_samples = min(1000, self.max_train_samples or 1000)

    def of_parts(self) -> dict[str, Any]:
        """What `load_parts` takes."""
        shares = self.dataset_shares
        return {
            "dataset_names": self.dataset_name, "eval_names": self.eval_dataset_name or [],
            "shares": shares and [share / sum(shares) for share in shares],
            "data_dir": self.data_dir, "columns": parse_columns(self.columns),
            "train_split": self.train_split, "eval_split": self.eval_split,
            "seed": self.split_seed, "separator": self.separator,
            "n_train": self.max_train_samples, "n_eval": self.max_eval_samples,
            "chat_template": self.chat_template,
        }  # fmt: skip

    def of_run(self) -> dict[str, Any]:
        """What of them `start_run` takes."""
        return {"given": self.given, "save_config_to": self.save_config,
                "overwrite": self.overwrite_output_dir}  # fmt: skip

    def of_trackers(self) -> dict[str, Any]:
        """What of them `start_trackers` takes."""
        return {"wandb_project": self.wandb_project, "wandb_entity": self.wandb_entity}

    def of_chat(self) -> ChatOptions:
        """How dialogues are rendered."""
        return chat_options(vars(self))

    def of_description(self) -> dict[str, Any]:
        """The flags for run_config.json, with the template itself for its file."""
        described = {name: value for name, value in vars(self).items() if name not in NOT_DESCRIBED}
        if len(self.dataset_name) == 1:
            (described["dataset_name"],) = self.dataset_name
        return described | {"chat_template_file": self.of_chat().template}


@dataclass
class ModelFlags:
    """Mixin for TRL's ModelConfig: original spellings, and what model and LoRA flags ask for."""

    model_name_or_path: str | None = flag(None, "--model_name")
    dtype: str | None = flag("float32", "--torch_dtype", choices=DTYPES)
    allow_pickle: bool = False
    merge_adapter: bool = False

    def check(self: Any):
        """ValueError for values that no run can have."""
        if self.model_name_or_path is None:
            raise ValueError("--model_name_or_path is required")
        check_number("lora_r", self.lora_r, self.lora_r >= 1, "at least 1")
        check_number("lora_alpha", self.lora_alpha, self.lora_alpha > 0, "more than 0")
        dropout = self.lora_dropout
        check_number("lora_dropout", dropout, 0 <= dropout < 1, "from 0 to less than 1")
        if self.dtype == "auto":
            raise ValueError(
                "--dtype auto: give float32 (bfloat16 weights, which most checkpoints have, lose "
                "small steps; --bf16 computes in bfloat16), or bfloat16 for them all the same"
            )
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("--load_in_4bit and --load_in_8bit: give one of them")
        if self.quantization is None:
            return
        name = f"--load_in_{self.quantization}"
        if not self.use_peft:
            raise ValueError(
                f"{name} without --use_peft: quantized weights cannot be trained, an adapter can"
            )
        if self.use_dora:
            raise ValueError(f"{name} with --use_dora: what it adds to a weight is not known")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"{name} needs bitsandbytes: pip install bitsandbytes")

    @property
    def quantization(self: Any) -> str | None:
        """4bit or 8bit, None for weights as they are."""
        return "4bit" if self.load_in_4bit else "8bit" if self.load_in_8bit else None

    def local_base(self: Any) -> str | None:
        """The model of this machine that an adapter is trained on, unless it is merged."""
        alone = self.use_peft and not self.merge_adapter and is_local(self.model_name_or_path)
        return self.model_name_or_path if alone else None

    def of_loading(self: Any) -> dict[str, Any]:
        """What `load_for_training` takes."""
        names = ("dtype", "attn_implementation", "allow_pickle", "quantization")
        values = {name: getattr(self, name) for name in names}
        if self.load_in_4bit:
            values["quantization_options"] = {
                "bnb_4bit_quant_type": self.bnb_4bit_quant_type,
                "bnb_4bit_use_double_quant": self.use_bnb_nested_quant,
                "bnb_4bit_quant_storage": self.bnb_4bit_quant_storage,
            }
        return values

    def check_given(self: Any, given: set[str]) -> None:
        """ValueError for flags of LoRA, or of 4-bit weights, among those given, where neither is
        asked for."""
        if self.merge_adapter and not self.use_peft:
            raise ValueError("--merge_adapter without --use_peft: the whole model is saved anyway")
        for pattern, asking, asked, what in (
            ("lora_|use_(rslora|dora)", "use_peft", self.use_peft, "all weights would be trained"),
            ("(use_)?bnb_", "load_in_4bit", self.load_in_4bit, "nothing would be quantized"),
        ):
            names = [name for name in sorted(given) if re.match(pattern, name)]
            names = [name for name in names if getattr(self, name) not in (None, False)]
            if names and not asked:
                raise ValueError(f"--{names[0]} without --{asking}: {what}")


@dataclass
class TrainingDefaults:
    """Mixin for TrainingArguments: original spellings, and defaults that hold on any machine."""

    eval_strategy: str = flag("no", "--evaluation_strategy", choices=["no", "steps", "epoch"])
    run_name: str | None = flag(None, "--wandb_run_name")
    max_length: int = flag(1024, "--seq_length", "--max_seq_length")
    report_to: list[str] = field(default_factory=lambda: ["wandb"])
    project: str | None = None
    gradient_checkpointing: bool = False
    early_stopping_patience: int | None = None
    early_stopping_threshold: float | None = None
    tokens_per_batch: int | None = None

    def check(self):
        """ValueError for values that no run can have."""
        if not self.output_dir:
            raise ValueError("--output_dir is required")
        for name in ("max_length", "per_device_train_batch_size", "per_device_eval_batch_size",
                     "gradient_accumulation_steps", "eval_accumulation_steps",
                     "tokens_per_batch"):  # fmt: skip
            value = getattr(self, name)
            check_number(name, value, value is None or value >= 1, "at least 1")
        workers = self.dataloader_num_workers
        check_number("dataloader_num_workers", workers, workers >= 0, "0 or more")
        check_number("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295")
        kept = self.save_total_limit
        check_number("save_total_limit", kept, kept is None or kept >= 1,
                     "at least 1 (all are kept without it)")  # fmt: skip
        if self.fp16 and self.bf16:
            raise ValueError("--fp16 and --bf16: give one of them")
        check_number("learning_rate", self.learning_rate, self.learning_rate >= 0, "0 or more")
        steps_fit = self.max_steps > 0 or self.max_steps == -1
        check_number("max_steps", self.max_steps, steps_fit, "1 or more (-1: by epochs)")
        length = max(self.num_train_epochs, self.max_steps)
        check_number("num_train_epochs", self.num_train_epochs, length > 0, "more than 0")
        for name in ("eval", "save", "logging"):
            if getattr(self, f"{name}_strategy") == "steps":
                steps = getattr(self, f"{name}_steps")
                what = f"more than 0 (--{name}_strategy=no for none)"
                check_number(f"{name}_steps", steps, steps is None or steps > 0, what)
        check_trackers(self.report_to)
        if self.project and "wandb" in self.report_to:
            check_wandb(self.project)
        if self.push_to_hub:
            check_hub_access()
        self.check_best()
        ignoring = ("constant", "reduce_lr_on_plateau", "greedy")
        if self.lr_scheduler_type in ignoring and self.warmup_steps:
            raise ValueError(
                f"--warmup_steps {self.warmup_steps}: --lr_scheduler_type "
                f"{self.lr_scheduler_type} has no warm-up, constant_with_warmup has"
            )
        of_bitsandbytes = "bnb" in self.optim or "8bit" in self.optim
        if of_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"--optim {self.optim}: pip install bitsandbytes")
        for name in (*JSON_FLAGS, *JSON_OR_FILE_FLAGS):
            check_json(name, getattr(self, name))
        for name, value in vars(self).items():
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and math.isnan(number):
                    raise ValueError(f"--{name} nan: give a number")

    def __post_init__(self):
        import torch

        self.check()
        self.logging_nan_inf_filter = False  # it would hide a diverged run
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it --bf16 is refused on a machine without GPU
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16
        for name in ("checkpointing", "checkpointing_kwargs"):  # the old spelling has a warning
            if getattr(self, f"activation_{name}") is None:
                setattr(self, f"activation_{name}", getattr(self, f"gradient_{name}"))
        super().__post_init__()

    def of_run(self):
        """What of them `start_run` takes."""
        best = self.metric_for_best_model if self.eval_strategy != "no" else None
        return {"folder": Path(self.output_dir), "asked_checkpoint": self.resume_from_checkpoint,
                "best_metric": best, "seed": self.seed, "hub": self.of_hub()}  # fmt: skip

    def of_hub(self):
        """What `start_pushing` takes; None where nothing is pushed."""
        if not self.push_to_hub:
            return None
        return {"name": self.hub_model_id or Path(self.output_dir).resolve().name,
                "private": self.hub_private_repo, "revision": self.hub_revision,
                "strategy": self.hub_strategy, "always": self.hub_always_push}  # fmt: skip

    def of_loading(self):
        """What of them `load_for_training` takes."""
        return {"device": str(self.device), "trust_remote_code": self.trust_remote_code}

    def of_trackers(self):
        """What of them `start_trackers` takes."""
        trackio = {"space_id": self.trackio_space_id, "bucket_id": self.trackio_bucket_id,
                   "private": self.hub_private_repo}  # fmt: skip
        return {"report_to": self.report_to, "name": self.run_name, "project": self.project,
                "trackio": trackio}  # fmt: skip

    def check_best(self):
        """ValueError where the best model is asked for and cannot be known or is not saved."""
        self.check_early_stopping()
        best_saved = self.save_strategy == "best"
        flag = "--save_strategy=best" if best_saved else "--load_best_model_at_end"
        if not (best_saved or self.load_best_model_at_end):
            return
        if self.eval_strategy == "no":
            raise ValueError(f"{flag} needs evaluations: --eval_strategy=steps or epoch")
        if self.save_strategy not in ("best", self.eval_strategy):
            raise ValueError(
                f"--load_best_model_at_end with --eval_strategy={self.eval_strategy} needs "
                f"--save_strategy={self.eval_strategy} or best, not {self.save_strategy}"
            )
        self.metric_for_best_model = self.metric_for_best_model or "loss"

    def check_early_stopping(self):
        """ValueError where early stopping has nothing to go by."""
        patience, threshold = self.early_stopping_patience, self.early_stopping_threshold
        check_number("early_stopping_patience", patience, patience is None or patience >= 1,
                     "at least 1 evaluation")  # fmt: skip
        check_number("early_stopping_threshold", threshold, threshold is None or threshold >= 0,
                     "0 or more")  # fmt: skip
        if patience is None:
            if threshold is not None:
                raise ValueError("--early_stopping_threshold without --early_stopping_patience")
            return
        if self.eval_strategy == "no":
            raise ValueError(
                "--early_stopping_patience needs evaluations: --eval_strategy=steps or epoch"
            )
        by_best = self.load_best_model_at_end or self.save_strategy == "best"
        if self.metric_for_best_model is None and not by_best:
            raise ValueError(
                "--early_stopping_patience needs --metric_for_best_model (loss, or another "
                "criterion), or --load_best_model_at_end"
            )

    def check_given(self, given):
        """A line for each name of `given` flags that changes nothing beside the others' values."""
        unused = {}
        if self.log_level == "info":
            self.log_level = "warning"
            unused["log_level"] = "info is libraries' lines for programmers (debug shows them all)"
        for name in ("eval", "save", "logging"):
            strategy = getattr(self, f"{name}_strategy")
            if strategy != "steps":
                unused[f"{name}_steps"] = f"--{name}_strategy is {strategy.value}"
        if self.eval_strategy == "no":
            names = ("eval_delay", "eval_on_start", "dynamics_sample_size")
            unused |= dict.fromkeys(names, "--eval_strategy is no")
        if self.save_strategy == "no":
            unused["save_total_limit"] = "--save_strategy is no"
        on_plateau = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        by_best = self.load_best_model_at_end or self.save_strategy == "best"
        if not (by_best or on_plateau or self.early_stopping_patience is not None):
            reason = "--load_best_model_at_end is not given"
            unused |= dict.fromkeys(("metric_for_best_model", "greater_is_better"), reason)
        hub = (name for name in vars(self) if name.startswith("hub_"))
        if not self.push_to_hub:
            unused |= dict.fromkeys(hub, "--push_to_hub is not given")
        if "trackio" not in self.report_to:
            names = (name for name in vars(self) if name.startswith("trackio_"))
            unused |= dict.fromkeys(names, "--report_to trackio is not given")
        if self.max_steps > 0:
            unused["num_train_epochs"] = f"--max_steps {self.max_steps} is the length of the run"
        for name in sorted(given & unused.keys()):
            announce(f"--{name} has no effect: {unused[name]}")


def check_shares(shares: Sequence[float], names: Sequence[str]) -> None:
    """ValueError unless there is a positive share for each of several datasets."""
    given = " ".join(f"{share:g}" for share in shares)
    if len(names) < 2 or len(shares) != len(names):
        raise ValueError(
            f"--dataset_shares {given}: give one for each of several datasets, there "
            f"{'is 1' if len(names) == 1 else f'are {len(names)}'} ({', '.join(names)})"
        )
    for share in shares:
        check_number("dataset_shares", share, share > 0, "more than 0")


def check_number(name: str, value: float | None, holds: bool, what: str) -> None:
    """ValueError unless a flag's value is None, or finite and `holds`."""
    if value is not None and not (holds and math.isfinite(value)):
        raise ValueError(f"--{name} {value}: give a finite number, {what}")


def check_json(name: str, value: Any) -> None:
    """ValueError unless a flag's text is a JSON object or, where it can be, an existing file."""
    if not isinstance(value, str):
        return
    if value.startswith("{"):
        try:
            json.loads(value)
        except ValueError as error:
            raise ValueError(f"--{name} {value}: not JSON ({error})") from None
    elif name in JSON_FLAGS:
        raise ValueError(f"--{name} {value}: give a JSON object, such as {{}}")
    elif not Path(value).is_file():
        raise FileNotFoundError(f"--{name} {value}: no such file")
