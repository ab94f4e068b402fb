"""Flags of sft.py and dpo.py: old spellings, defaults, checks, and --help in groups."""

import argparse
import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser
from trl import ModelConfig

from ranking.plumbing.command_line import suggestion
from ranking.plumbing.processes import announce
from ranking.plumbing.wandb_runs import check_wandb
from ranking.scoring.models import is_local

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
    "bnb_4bit_quant_type": "--dtype=bfloat16 with --use_peft: training is not quantized",
    "use_bnb_nested_quant": "--dtype=bfloat16 with --use_peft: training is not quantized",
    "lora_target_parameters": "--lora_target_modules",
    "logging_nan_inf_filter": "nothing: a loss that is not finite ends the run",
    "do_train": "nothing: both scripts train",
    "do_eval": "--eval_strategy",
    "do_predict": "nothing: the test split is evaluated at the end",
    "length_column_name": "nothing: it is `length`",
    "hub_token": "the environment variable HF_TOKEN: flags are seen in process lists",
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push",
         "hub_revision", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "nothing: models and results stay in --output_dir",
    ),
}  # fmt: skip
# retired flags whose neutral value is true, that is, what is done anyway; of the others it is OFF
DONE_ANYWAY = {"do_train", "save_safetensors", "completion_only_loss", "padding_free",
               "precompute_ref_log_probs"}  # fmt: skip
COUNTS_AT_ZERO = re.compile("gamma|ld_alpha|seq_length|max_.*")  # where 0 is no neutral value
UNSET = ("none", "null", "")
OFF = ("false", "f", "no", "n", "off", *UNSET)
ON = ("true", "t", "yes", "y", "on", "1")
REPORTS = ("wandb", "none")
# what --help shows, where a script has it; None: the text at the flag's definition
FLAG_GROUPS: dict[str, dict[str, str | None]] = {
    "model": {
        "model_name_or_path": None,
        "model_revision": "Branch, tag or commit of a hub model.",
        "ref_model_name_or_path": None,
        "ref_model_revision": None,
        "dtype": None,
        "attn_implementation": "sdpa, eager, flash_attention_2, … (default: the model's).",
        "allow_pickle": None,
        "use_peft": "Train a LoRA adapter; also --lora_r, --lora_alpha, --lora_target_modules, …",
    },
    "data": {
        "dataset_name": None,
        "data_dir": None,
        "train_split": None,
        "eval_split": None,
        "split_seed": None,
        "max_train_samples": None,
        "max_eval_samples": None,
        "sanity_check": None,
        "max_length": "Most tokens of prompt and completion (dpo.py), of a text (sft.py).",
        "separator": None,
        "chat_template": None,
        "add_eos": None,
        "instruction_template": None,
        "response_template": None,
        "packing": "Fill rows with several texts, which do not see each other.",
    },
    "training": {
        "loss_type": "dpo.py: alpha_scaling is Eq. 4, sigmoid is TRL's DPO, … (sft.py: nll).",
        "beta": "KL strength β of Eq. 4.",
        "alpha": "γ of Eq. 4: 1 is DPO, 0 is reference-free.",
        "learning_rate": "Peak learning rate.",
        "num_train_epochs": "Passes over the data.",
        "max_steps": "Optimizer steps instead of epochs (default: by epochs).",
        "per_device_train_batch_size": "Pairs or texts per step and process.",
        "gradient_accumulation_steps": "Batches per optimizer step.",
        "warmup_steps": "Steps of rising learning rate; below 1: share of all steps.",
        "optim": "adamw_torch, rmsprop (the paper's for DPO), …",
        "seed": "Of the order of the data and of dropout.",
        "bf16": "bfloat16 arithmetic (default: on a GPU).",
        "gradient_checkpointing": None,
        "use_cpu": "Stay on the CPU where there is a GPU.",
    },
    "evaluation and checkpoints": {
        "eval_strategy": None,
        "eval_steps": "Steps between evaluations.",
        "eval_on_start": None,
        "per_device_eval_batch_size": "Pairs or texts per batch and process.",
        "dynamics_sample_size": None,
        "save_strategy": "no, steps, epoch or best.",
        "save_steps": "Steps between checkpoints.",
        "save_total_limit": "Keep so many checkpoints (default: all).",
        "load_best_model_at_end": "End with the checkpoint of the lowest validation loss.",
        "metric_for_best_model": "Another criterion, e.g. eval_ranking/accuracy (dpo.py).",
        "resume_from_checkpoint": "Begin from this checkpoint of another run; the same command "
        "resumes its own run by itself.",
    },
    "output": {
        "output_dir": "Directory for model, checkpoints and records (required).",
        "overwrite_output_dir": None,
        "report_to": None,
        "run_name": None,
        "wandb_project": None,
        "wandb_entity": None,
        "logging_steps": "Steps between logged losses.",
    },
}


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
        default=False,
        metadata={"help": "Discard a run there that is finished or has other settings."},
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
        if self.wandb_project:
            check_wandb(self.wandb_project)
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
            "help": "Of the weights: float32, bfloat16, float16; --bf16 is of the arithmetic.",
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
        default_factory=lambda: ["wandb"], metadata={"help": "wandb or none."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Trade a third of the speed for memory."}
    )

    def __post_init__(self):
        if not self.output_dir:
            raise ValueError("--output_dir is required")
        for name in ("max_length", "per_device_train_batch_size", "per_device_eval_batch_size",
                     "gradient_accumulation_steps"):  # fmt: skip
            check_number(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        check_number("learning_rate", self.learning_rate, self.learning_rate >= 0, "0 or more")
        steps_fit = self.max_steps > 0 or self.max_steps == -1
        check_number("max_steps", self.max_steps, steps_fit, "1 or more (-1: by epochs)")
        length = max(self.num_train_epochs, self.max_steps)
        check_number("num_train_epochs", self.num_train_epochs, length > 0, "more than 0")
        if wrong := set(self.report_to) - set(REPORTS):
            raise ValueError(f"--report_to {wrong.pop()}: give {' or '.join(REPORTS)}")
        for name in ("eval", "save", "logging"):
            steps = getattr(self, f"{name}_steps")
            if getattr(self, f"{name}_strategy") == "steps" and steps is not None:
                what = f"more than 0 (--{name}_strategy=no for none)"
                check_number(f"{name}_steps", steps, steps > 0, what)
        if self.save_total_limit is not None:
            check_number("save_total_limit", self.save_total_limit, self.save_total_limit >= 1,
                         "at least 1 (all are kept without it)")  # fmt: skip
        check_best(self)
        ignoring = ("constant", "reduce_lr_on_plateau", "greedy")
        if self.lr_scheduler_type in ignoring and self.warmup_steps:
            raise ValueError(
                f"--warmup_steps {self.warmup_steps}: --lr_scheduler_type "
                f"{self.lr_scheduler_type} has no warm-up, constant_with_warmup has"
            )
        of_bitsandbytes = "bnb" in self.optim or "8bit" in self.optim
        if of_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"--optim {self.optim}: pip install bitsandbytes")
        self.logging_nan_inf_filter = False  # it would hide a diverged run
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it --bf16 is refused on a machine without GPU
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and not self.fp16
        super().__post_init__()


def check_number(name: str, value: float, holds: bool, what: str) -> None:
    """ValueError unless a flag's value is finite and `holds`."""
    if not (holds and math.isfinite(value)):
        raise ValueError(f"--{name} {value}: give a finite number, {what}")


def check_best(args) -> None:
    """ValueError where the best model is asked for and cannot be known or is not saved."""
    best_saved = args.save_strategy == "best"
    flag = "--save_strategy=best" if best_saved else "--load_best_model_at_end"
    if not (best_saved or args.load_best_model_at_end):
        return
    if args.eval_strategy == "no":
        raise ValueError(f"{flag} needs evaluations: --eval_strategy=steps or epoch")
    if args.save_strategy not in ("best", args.eval_strategy):
        raise ValueError(
            f"--load_best_model_at_end with --eval_strategy={args.eval_strategy} needs "
            f"--save_strategy={args.eval_strategy} or best, not {args.save_strategy}"
        )
    args.metric_for_best_model = args.metric_for_best_model or "loss"


class FlagFormatter(argparse.RawDescriptionHelpFormatter):
    """Flags once, as `--max_length, --seq_length N`, with defaults where the text has none."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, max_help_position=32, **kwargs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(name for name in action.option_strings if "-" not in name.lstrip("-"))
        few = action.choices is not None and len(list(action.choices)) <= 5
        if action.nargs in (0, "?") or few:  # a switch, or its choices are in the text
            return names
        return f"{names} {'N' if action.type in (int, float) else 'NAME'}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, argparse.SUPPRESS) or "default" in text.lower():
            return text
        return f"{text} (default: %(default)s)"


class Parser(HfArgumentParser):
    """Errors are one line; --help shows FLAG_GROUPS, --help-all every other flag too."""

    def error(self, message: str):
        raise ValueError(message)

    def format_help(self, everything: bool = False) -> str:
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        rest = dict.fromkeys(self._actions)
        for title, texts in FLAG_GROUPS.items():
            formatter.start_section(title)
            for name, text in texts.items():
                if action := self._option_string_actions.get(f"--{name}"):
                    action.help = text or action.help
                    formatter.add_arguments([action])
                    rest.pop(action)
            formatter.end_section()
        if everything:
            formatter.start_section("of transformers and TRL")
            formatter.add_arguments([a for a in rest if a.dest not in self.refused | {"help"}])
            formatter.end_section()
        else:
            formatter.add_text("--help-all: also the flags of transformers and TRL, which work too")
        return formatter.format_help()

    refused: set[str] = set()


def parse_flags(
    types: Sequence[type], argv: Sequence[str], retired: dict[str, str], description: str
) -> tuple:
    """An instance of each dataclass; ValueError for unknown and retired flags, with a successor."""
    parser = Parser(
        types, description=description, allow_abbrev=False, formatter_class=FlagFormatter
    )
    parser.refused = set(retired)
    if "--help-all" in argv:
        print(parser.format_help(everything=True))
        raise SystemExit(0)
    argv = without_neutral(argv, retired)
    actions = parser._option_string_actions
    known = {option for option in actions if option.startswith("--")}
    given = set()
    for argument in argv:
        flag = argument.split("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in retired:
            raise ValueError(f"{flag} cannot be honoured; use {retired[name]}")
        if flag.startswith("--") and flag not in known:
            raise ValueError(f"unknown flag {flag}" + suggestion(flag, known))
        if flag.startswith("--"):
            given.add(actions[flag].dest)
    parsed = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    check_ignored(given, *parsed)
    return parsed


def without_neutral(argv: Sequence[str], retired: dict[str, str]) -> list[str]:
    """The arguments without retired flags that ask for nothing, e.g. --push_to_hub=false."""
    kept: list[str] = []
    words = list(argv)
    while words:
        flag, equals, value = words[0].partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        apart = not equals and len(words) > 1 and not words[1].startswith("--")
        size = 2 if apart else 1
        value = words[1] if apart else value if equals else "true"
        neutral = value.lower() in ((*ON, *UNSET) if name in DONE_ANYWAY else OFF)
        if re.fullmatch(r"0+\.?0*", value) and name not in DONE_ANYWAY:
            neutral = COUNTS_AT_ZERO.fullmatch(name) is None
        if not (flag.startswith("--") and name in retired and neutral):
            kept += words[:1]
            size = 1
        words = words[size:]
    return kept


def check_ignored(given: set[str], data, model: ModelArguments, training) -> None:
    """ValueError for LoRA's flags without LoRA; one line for each other flag without effect."""
    lora = [name for name in sorted(given) if re.match("lora_|use_rslora|use_dora", name)]
    lora = [name for name in lora if getattr(model, name) not in (None, False)]
    if lora and not model.use_peft:
        raise ValueError(f"--{lora[0]} without --use_peft: all weights would be trained")
    strategies = {
        name: getattr(training, f"{name}_strategy") for name in ("eval", "save", "logging")
    }
    unused = {
        f"{name}_steps": f"--{name}_strategy is {strategy.value}"
        for name, strategy in strategies.items()
        if strategy != "steps"
    }
    if training.eval_strategy == "no":
        names = ("eval_delay", "eval_on_start", "dynamics_sample_size")
        unused |= dict.fromkeys(names, "--eval_strategy is no")
    if training.save_strategy == "no":
        unused["save_total_limit"] = "--save_strategy is no"
    on_plateau = training.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    if not (training.load_best_model_at_end or training.save_strategy == "best" or on_plateau):
        reason = "--load_best_model_at_end is not given"
        unused |= dict.fromkeys(("metric_for_best_model", "greater_is_better"), reason)
    if training.max_steps > 0:
        unused["num_train_epochs"] = f"--max_steps {training.max_steps} is the length of the run"
    for name in sorted(given & unused.keys()):
        announce(f"--{name} has no effect: {unused[name]}")


def check_revision(flag: str, revision: str | None, name: str) -> str | None:
    """The revision to load, None for the main branch; ValueError where a local model has none."""
    if revision in (None, "main"):
        return None
    if is_local(name):
        raise ValueError(f"{flag} {revision}: {name} is a local model, without revisions")
    return revision
