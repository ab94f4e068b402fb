"""What `sft.py` and `dpo.py` share: flags and their old spellings, data, model, output directory,
wandb. The training itself is in the scripts and in `dpo_gamma_trainer.py`."""

import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import HfArgumentParser, TrainerCallback
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from trl import ModelConfig, get_peft_config

from command_line import Stopped, finishing_first, stop_requested, suggestion
from data_utils import PreferenceData, content_hash, load_training_splits, split_name
from model_loading import load_model, load_tokenizer, model_fingerprint
from result_files import lock_outputs, write_text_atomically
from wandb_runs import start_wandb

RUN_FILE = "run_config.json"
# flags of earlier transformers, TRL and of the original scripts → what to use now
RETIRED = {
    "max_prompt_length": "--max_length: prompts are cut from the left so that both completions fit",
    "max_target_length": "--max_length",
    "max_completion_length": "--max_length",
    "truncation_mode": "nothing: prompts are cut from the left (dpo.py), texts at the end (sft.py)",
    "dataset_num_proc": "nothing: tokenization is batched",
    "dataset_kwargs": "nothing: the data module does not need it",
    "pad_token": "nothing: padding is masked by position",
    "model_init_kwargs": "--dtype, --attn_implementation and --model_revision",
    "trust_remote_code": "nothing: only models that transformers implements are loaded",
    "load_in_4bit": "--dtype=bfloat16 with --use_peft: quantized training is not supported",
    "load_in_8bit": "--dtype=bfloat16 with --use_peft: quantized training is not supported",
    "overwrite_cache": "nothing: caches are keyed by content",
    "logging_dir": "--output_dir",
    "no_cuda": "--use_cpu",
    "evaluate_during_training": "--eval_strategy=steps",
    "per_gpu_train_batch_size": "--per_device_train_batch_size",
    "per_gpu_eval_batch_size": "--per_device_eval_batch_size",
    "use_auth_token": "the environment variable HF_TOKEN",
    "save_safetensors": "nothing: weights are always saved as safetensors",
    "tokenizer_name": "nothing: the tokenizer is the model's",
    "tokenizer_name_or_path": "nothing: the tokenizer is the model's",
    "warmup_ratio": "--warmup_steps, which takes a share of the steps below 1",
    "group_by_length": "--train_sampling_strategy=group_by_length",
    "auto_find_batch_size": "--per_device_train_batch_size",
    "lora_target_parameters": "--lora_target_modules",
}
# what a resumed run may change
HARMLESS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name", "report_to",
    "wandb_project", "wandb_entity", "log_level", "log_level_replica", "disable_tqdm",
    "logging_nan_inf_filter", "save_total_limit", "hub_token", "local_rank", "ddp_timeout",
    "dataloader_num_workers", "dataloader_pin_memory",
}  # fmt: skip


@dataclass
class DataArguments:
    """Data, output and wandb flags of both scripts."""

    dataset_name: str = field(
        default="Anthropic/hh-rlhf",
        metadata={"help": "Hub name, `sample`, or a local file or directory in a known schema."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Look for DATA_DIR/<hub name>/ instead of the hub."}
    )
    train_split: str | None = field(
        default=None, metadata={"help": "Split to train on (default: train, or the only one)."}
    )
    eval_split: str | None = field(
        default=None,
        metadata={"help": "Split to validate on (default: validation, or half of test)."},
    )
    split_seed: int = field(
        default=0, metadata={"help": "Seed that divides data with one split, and draws subsets."}
    )
    sanity_check: bool = field(default=False, metadata={"help": "Train on 1000 examples only."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on a random subset of so many examples."}
    )
    max_eval_samples: int = field(
        default=1000, metadata={"help": "Most examples of validation and of test; -1: all."}
    )
    separator: str | None = field(
        default=None, metadata={"help": "Between prompt and completion (default: per dataset)."}
    )
    add_eos: bool = field(
        default=False, metadata={"help": "End completions with the end-of-text token."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Discard the earlier run in the output directory."}
    )
    wandb_project: str | None = field(
        default=None, metadata={"help": "wandb project (default: sft or dpo)."}
    )
    wandb_entity: str | None = field(default=None, metadata={"help": "wandb user or team."})

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1 and (name, value) != ("max_eval_samples", -1):
                raise ValueError(f"--{name} {value}: give a positive number")
        if self.sanity_check:
            self.max_train_samples = min(1000, self.max_train_samples or 1000)


@dataclass
class ModelArguments(ModelConfig):
    """TRL's model and LoRA flags, with the original spellings."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "aliases": ["--model_name"],
            "help": "Hub name, directory, GGUF file, adapter, or SmolLM2-135M-Instruct.",
        },
    )
    dtype: str | None = field(
        default="float32",
        metadata={
            "aliases": ["--torch_dtype"],
            "help": "Of the weights; --bf16 is the precision of the arithmetic.",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )

    allow_pickle: bool = field(
        default=False, metadata={"help": "Read weights saved by pickle, which can run code."}
    )

    def __post_init__(self):
        super().__post_init__()
        targets = self.lora_target_modules
        if isinstance(targets, str) and targets.isidentifier():
            self.lora_target_modules = [targets]  # TRL makes a regular expression of a lone name
        if self.model_name_or_path is None:
            raise ValueError("--model_name_or_path is required")


@dataclass
class TrainingDefaults:
    """Mixin for TrainingArguments: original spellings, and defaults that hold on any machine."""

    eval_strategy: str = field(
        default="no",
        metadata={"aliases": ["--evaluation_strategy"], "help": "no, steps or epoch."},
    )
    run_name: str | None = field(
        default=None, metadata={"aliases": ["--wandb_run_name"], "help": "Name of the wandb run."}
    )
    max_length: int = field(
        default=1024,
        metadata={"aliases": ["--seq_length", "--max_seq_length"], "help": "Tokens per sequence."},
    )
    report_to: list[str] = field(
        default_factory=lambda: ["wandb"], metadata={"help": "wandb, none, …"}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Trade a third of the speed for memory."}
    )

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it --bf16 is refused on a machine without GPU
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16
        super().__post_init__()


# ---------------------------------------------------------------------------- flags
class Parser(HfArgumentParser):
    """Errors are one line, not a page of usage."""

    def error(self, message: str):
        raise ValueError(message)


def parse_flags(
    types: Sequence[type], argv: Sequence[str], retired: dict[str, str], description: str
) -> tuple:
    """An instance of each dataclass; ValueError for unknown and retired flags, with a successor."""
    parser = Parser(types, description=description, allow_abbrev=False)
    known = {option for option in parser._option_string_actions if option.startswith("--")}
    for argument in argv:
        flag = argument.split("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in retired:
            raise ValueError(f"{flag} cannot be honoured; use {retired[name]}")
        if flag.startswith("--") and flag not in known:
            raise ValueError(f"unknown flag {flag}" + suggestion(flag, known))
    return parser.parse_args_into_dataclasses(list(argv), look_for_args_file=False)


# ---------------------------------------------------------------------------- data and model
def load_parts(args: DataArguments) -> dict[str, PreferenceData]:
    """Train, validation and test examples, cut to the sizes asked for; sizes on stderr."""
    sample_size = None
    if split_name(args.dataset_name)[0] == "HuggingFaceH4/stack-exchange-preferences":
        if args.data_dir is None and args.max_train_samples is None:
            raise ValueError(
                f"{args.dataset_name} has 10 million rows: give --max_train_samples (or --data_dir)"
            )
        sample_size = args.max_train_samples and round(args.max_train_samples / 0.8)
    parts, notes = load_training_splits(
        args.dataset_name,
        data_dir=args.data_dir,
        train_split=args.train_split,
        eval_split=args.eval_split,
        seed=args.split_seed,
        sample_size=sample_size,
    )
    for note in notes:
        announce(f"{args.dataset_name}: {note}")
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples,
              "test": args.max_eval_samples}  # fmt: skip
    for part, data in parts.items():
        limit = limits[part]
        if limit is not None and 0 <= limit < len(data.examples):
            chosen = np.random.default_rng(args.split_seed).choice(
                len(data.examples), limit, replace=False
            )
            data.examples[:] = [data.examples[i] for i in sorted(chosen)]
            announce(f"{args.dataset_name}: {part} limited to {limit} examples")
    return parts


@contextmanager
def whole_weights(training_args) -> Iterator[None]:
    """Inside, models are loaded whole, where DeepSpeed ZeRO-3 would share out their weights at
    once: the reference is scored first."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(training_args.deepspeed_plugin.dschf)


def load_for_training(args: ModelArguments, name: str, device: str):
    """Model in evaluation mode with every adapter merged, and its tokenizer."""
    revision = None if args.model_revision == "main" else args.model_revision
    tokenizer = load_tokenizer(name, revision)
    model = load_model(
        name, dtype=args.dtype, device=device, revision=revision,
        attn_implementation=args.attn_implementation, allow_pickle=args.allow_pickle,
    )  # fmt: skip
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload().requires_grad_(True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def make_peft_config(args: ModelArguments, model, tokenizer, output_dir: str):
    """TRL's LoRA configuration, or None. Where the model to tune is itself an adapter, the merged
    weights are saved as OUTPUT_DIR/base, so that the new adapter has a base to be loaded on."""
    peft_config = get_peft_config(args)
    name = args.model_name_or_path
    if peft_config is None:
        return None
    if (Path(name) / "adapter_config.json").is_file():
        name = str(Path(output_dir) / "base")
        if PartialState().is_main_process:
            model.save_pretrained(name)
            tokenizer.save_pretrained(name)
        PartialState().wait_for_everyone()
        model.config._name_or_path = model.name_or_path = name
    elif args.model_revision != "main":
        peft_config.revision = args.model_revision
    return peft_config


def announce(message: str) -> None:
    """One line on stderr, from the main process only."""
    if PartialState().is_main_process:
        print(message, file=sys.stderr)


# ---------------------------------------------------------------------------- training
class StopAfterStep(TrainerCallback):
    """After Ctrl-C or SIGTERM: finish the step, save a checkpoint to resume from, end.

    `stopped` is set in all processes at the same step, or in none.
    """

    stopped = False

    def on_step_end(self, args, state, control, **kwargs):
        stop = torch.tensor(float(stop_requested() is not None), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(stop, torch.distributed.ReduceOp.MAX)
        if stop.item() and state.global_step < state.max_steps:  # else it is done anyway
            self.stopped = control.should_save = control.should_training_stop = True
            args.load_best_model_at_end = args.save_only_model = False
            args.save_total_limit = None  # nothing is deleted for it

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped and state.epoch % 1 > 1e-6:  # Trainer comes here after a broken-off epoch
            control.should_evaluate = control.should_save = False


def train_until_stopped(trainer, checkpoint: str | None) -> None:
    """Train to the end; after a signal, raise `Stopped` when the step's checkpoint is saved.

    A signal during the last step or evaluation lets the run end: what is left takes less time than
    doing it again.
    """
    stopping = StopAfterStep()
    trainer.add_callback(stopping)
    with finishing_first():
        trainer.train(resume_from_checkpoint=checkpoint)
    if stopping.stopped:
        step = trainer.state.global_step
        saved = f"checkpoint-{step} is saved in {trainer.args.output_dir}"
        raise Stopped(stop_requested() or signal.SIGTERM, saved)


# ---------------------------------------------------------------------------- output directory
def run_description(
    *arguments, model_names: Sequence[str], parts: dict[str, PreferenceData]
) -> dict[str, Any]:
    """Every setting a resumed run must share, with fingerprints of the models and the data."""
    settings: dict[str, Any] = {
        "model_fingerprints": [model_fingerprint(name) for name in model_names],
        "data_fingerprints": {
            part: content_hash([example.id for example in data.examples])
            for part, data in parts.items()
        },
    }
    for argument in arguments:
        values = argument.to_dict() if hasattr(argument, "to_dict") else vars(argument)
        names = {f.name for f in fields(argument)} - HARMLESS
        settings |= {name: values[name] for name in sorted(names & values.keys())}
    return json.loads(json.dumps(settings, default=str))


def prepare_output_dir(
    output_dir: str,
    settings: dict[str, Any],
    overwrite: bool,
    checkpoint: str | None,
    model_names: Sequence[str],
) -> str | None:
    """Claim the directory; return the checkpoint to resume from, or None to start from scratch.

    The same command resumes an unfinished run from its last whole checkpoint. ValueError where
    the directory holds something else or a model that is read; nothing is discarded without
    `overwrite`.
    """
    folder, run_file = Path(output_dir), Path(output_dir) / RUN_FILE
    state = PartialState()
    for name in model_names:
        path = Path(name).resolve()
        if path.exists() and folder.resolve() in (path, *path.parents):
            raise ValueError(f"the model {name} lies in --output_dir {folder}: choose another")
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        lock_outputs(folder / RUN_FILE)
    if overwrite and state.is_main_process:
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        shutil.rmtree(folder / "base", ignore_errors=True)
        for pattern in (RUN_FILE, "ranking_dynamics.jsonl", "trainer_state.json", "config.json",
                        "adapter_*", "model*.safetensors*"):  # fmt: skip
            for old in folder.glob(pattern):
                old.unlink()
    state.wait_for_everyone()
    if run_file.exists():
        earlier = json.loads(run_file.read_text())
        differing = [k for k in settings if settings[k] != earlier["settings"].get(k)]
        if earlier["finished"]:
            raise ValueError(
                f"{folder} holds a finished run: choose another --output_dir, or pass "
                "--overwrite_output_dir"
            )
        if differing and checkpoint is None:
            raise ValueError(
                f"{folder} holds an unfinished run with other settings ({', '.join(differing)} "
                "differ): use the same flags, another --output_dir, or --overwrite_output_dir"
            )
        checkpoint = checkpoint or last_checkpoint(folder)
        announce(
            f"resuming from {checkpoint}" if checkpoint else "no checkpoint yet: starting over"
        )
        return checkpoint
    if not overwrite and checkpoint is None and folder.is_dir():
        for name in (
            "config.json",
            "adapter_config.json",
            *(p.name for p in folder.glob("checkpoint-*")),
        ):
            if (folder / name).exists():
                raise ValueError(
                    f"{folder} holds a model ({name}): choose another --output_dir, or pass "
                    "--overwrite_output_dir"
                )
    state.wait_for_everyone()
    if state.is_main_process:
        mark_run(output_dir, settings, finished=False)
    state.wait_for_everyone()
    return checkpoint


def mark_run(output_dir: str, settings: dict[str, Any], finished: bool) -> None:
    """Record the run's settings, its wandb id, and whether it is finished."""
    path = Path(output_dir) / RUN_FILE
    earlier = json.loads(path.read_text()) if path.exists() else {}
    run_id = earlier.get("wandb_id") or uuid.uuid4().hex[:8]
    record = {"finished": finished, "wandb_id": run_id, "settings": settings}
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint with optimizer state, saved to the end (trainer_state.json is last)."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((path / "trainer_state.json").read_text())
            if any(path.glob("optimizer*")) or any(path.glob("global_step*")):
                return str(path)
            announce(f"{path} has no optimizer state (--save_only_model): not resumed from")
        except (OSError, ValueError):
            announce(f"{path} was not saved to the end: skipped")
    return None


# ---------------------------------------------------------------------------- wandb
def start_training_wandb(args: DataArguments, training_args, default_project: str):
    """The wandb run the Trainer will log to, the same one after a resume; None without wandb.

    Offline as `wandb_runs.start_wandb` says.
    """
    if "wandb" not in training_args.report_to or not PartialState().is_main_process:
        return None
    folder = training_args.output_dir
    return start_wandb(
        project=args.wandb_project or os.environ.get("WANDB_PROJECT", default_project),
        entity=args.wandb_entity,
        name=training_args.run_name,
        id=json.loads((Path(folder) / RUN_FILE).read_text())["wandb_id"],
        resume="allow",
        dir=os.environ.get("WANDB_DIR", folder),
    )
