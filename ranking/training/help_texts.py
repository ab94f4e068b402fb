"""What is said of flags: of those that sft.py and dpo.py have, and of those that they do not."""

import re
from collections.abc import Mapping

# Flags of the original scripts, of TRL and of transformers that cannot be honoured → what to use
# now. Names are regular expressions. What the parser does not know is an error without these, too.
RETIRED = {
    "max_prompt_length": "--max_length: prompts are cut from the left so that both completions fit",
    "max_(target|completion)_length": "--max_length",
    "truncation_mode": "nothing: prompts are cut from the left (dpo.py), texts at the end (sft.py)",
    "logging_dir": "--output_dir",
    "no_cuda": "--use_cpu",
    "save_safetensors": "nothing: weights are always saved as safetensors",
    "warmup_ratio": "--warmup_steps, which takes a share of the steps below 1",
    "group_by_length": "--train_sampling_strategy=group_by_length",
    "auto_find_batch_size": "--tokens_per_batch, which is found by itself on a GPU",
    "torch_compile.*": "nothing: rows differ in length from step to step, each would be compiled",
    "lora_target_parameters": "--lora_target_modules",
    "tokenizer_name(_or_path)?": "nothing: the tokenizer is the model's",
    "model_init_kwargs": "--dtype, --attn_implementation and --model_revision",
    "do_train|do_predict": "nothing: the scripts train, and evaluate the test split at the end",
    "do_eval": "--eval_strategy",
    "hub_token": "the environment variable HF_TOKEN: all users see flags",
    "dataset_num_proc|dataset_kwargs|pad_token|length_column_name|logging_nan_inf_filter":
        "nothing: the scripts set it themselves",
}  # fmt: skip


# retired flags whose neutral value is true, that is, what is done anyway; of the others it is false
DONE_ANYWAY = {"do_train", "save_safetensors", "completion_only_loss", "padding_free",
               "precompute_ref_log_probs"}  # fmt: skip
COUNTS_AT_ZERO = re.compile("gamma|ld_alpha|max_.*")  # where 0 is no neutral value
UNSET = ("none", "null", "")
OFF = ("false", "f", "no", "n", "off", *UNSET)
ON = ("true", "t", "yes", "y", "on", "1", *UNSET)


# what --help shows of the flags that a script has, where it differs by the script's name
FLAG_GROUPS: dict[str, dict[str, str | dict[str, str]]] = {
    "model": {
        "model_name_or_path": "Hub name, directory, GGUF file, adapter, or SmolLM2-135M-Instruct.",
        "model_revision": "Branch, tag or commit of a hub model.",
        "ref_model_name_or_path": "Reference model (default: the model before training).",
        "ref_model_revision": "Branch, tag or commit of a reference model from the hub.",
        "dtype": "Of the weights: float32, bfloat16, float16; --bf16 is of the arithmetic.",
        "attn_implementation": "sdpa, eager, flash_attention_2, … (default: the model's).",
        "allow_pickle": "Read weights saved by pickle, which can run code.",
        "merge_adapter": "Save the trained adapter merged into its base too, in OUTPUT_DIR/merged.",
        "trust_remote_code": "Run Python files that come with the model.",
        "use_peft": "Train a LoRA adapter; also --lora_r, --lora_alpha, --lora_target_modules, …",
        "load_in_4bit": "QLoRA: the adapter's base in 4 bits, by bitsandbytes (nf4; also "
        "--bnb_4bit_quant_type, --use_bnb_nested_quant, --bnb_4bit_quant_storage).",
        "load_in_8bit": "The same in 8 bits.",
    },
    "data": {
        "dataset_name": "Hub name, `sample`, or a local file or directory in a known schema; "
        "several are joined (default: Anthropic/hh-rlhf).",
        "eval_dataset_name": "Further datasets to evaluate on, each by itself: the split named "
        "(NAME:SPLIT), else validation, else test, whole.",
        "dataset_shares": "Of several datasets: share of the training examples, each one's.",
        "data_dir": "Look for DATA_DIR/<hub name>/ instead of the hub.",
        "columns": "Which column is what: prompt=question chosen=answer_a rejected=answer_b.",
        "train_split": "Split to train on (default: train, or the only one).",
        "eval_split": "Split to validate on (default: validation, else test), halved where no "
        "other is left to test on.",
        "split_seed": "Seed that divides data with one split, and draws subsets.",
        "max_train_samples": "Train on a random subset of so many examples.",
        "max_eval_samples": "Most examples of a dataset's validation and test, each, and of an "
        "evaluation set; -1: all.",
        "evaluate_test": "Evaluate the test part with the validation part (Fig. 9b): eval_test/….",
        "sanity_check": "Train on 1000 examples only.",
        "max_length": {
            "dpo.py": "Most tokens of prompt and completion.",
            "sft.py": "Most tokens of a text.",
        },
        "dataset_text_field": "The text to train on: chosen, the preferred answer.",
        "separator": "Between prompt and completion (default: per dataset).",
        "chat_template": "auto (dialogues go through the tokenizer's, where it has one), always "
        "(which the bare flag means: text prompts too) or never.",
        "chat_template_file": "Use this template, and save it with the tokenizer.",
        "chat_template_kwargs": 'JSON for the template, e.g. {"enable_thinking": false}.',
        "system": "System message of dialogues that have none.",
        "add_eos": "End completions as the template ends a turn, or with the end-of-text token "
        "(default: of dialogues through a template); --no_add_eos.",
        "instruction_template": "What opens a user turn (default: Human: where it does).",
        "response_template": "What opens a response turn (default: Assistant:).",
        "packing": "Does nothing where texts are packed anyway; else fills rows with several.",
    },
    "training": {
        "loss_type": {
            "dpo.py": "alpha_scaling is Eq. 4 (kin: alpha_scaling_norm, …_dpop, …_ipo), "
            "sigmoid is TRL's DPO; several are summed.",
            "sft.py": "nll, dft or chunked_nll.",
        },
        "loss_weights": "Of several --loss_type: the weight of each (default: 1).",
        "beta": "KL strength β of Eq. 4.",
        "alpha": "γ of Eq. 4: 1 is DPO, 0 is reference-free.",
        "target_margin": "Margin that alpha_scaling_norm asks for (SimPO's γ).",
        "dpop_lambda": "λ of alpha_scaling_dpop's penalty (default: 50, as in its paper).",
        "learning_rate": "Peak learning rate.",
        "num_train_epochs": "Passes over the data.",
        "max_steps": "Optimizer steps instead of epochs (default: by epochs).",
        "per_device_train_batch_size": {
            "dpo.py": "Pairs per batch and process.",
            "sft.py": "Texts per batch and process.",
        },
        "gradient_accumulation_steps": "Batches per optimizer step: only the product with the "
        "batch size matters, memory depends on --tokens_per_batch.",
        "tokens_per_batch": {
            script: f"Tokens of a forward pass, into which a step's {what} are packed: memory, not "
            "the loss, depends on it (default: by device)."
            for script, what in (("dpo.py", "pairs"), ("sft.py", "texts"))
        },
        "warmup_steps": "Steps of rising learning rate; below 1: share of all steps.",
        "optim": "adamw_torch, rmsprop (the paper's for DPO), …",
        "seed": "Of the order of the data and of dropout.",
        "bf16": "bfloat16 arithmetic (default: on a GPU).",
        "gradient_checkpointing": "Trade a third of the speed for memory.",
        "use_cpu": "Stay on the CPU where there is a GPU.",
    },
    "evaluation and checkpoints": {
        "eval_strategy": "no, steps or epoch.",
        "eval_steps": "Steps between evaluations.",
        "eval_on_start": {
            "dpo.py": "Evaluate before the first step, where the groups start.",
            "sft.py": "Evaluate before the first step.",
        },
        "per_device_eval_batch_size": {
            script: f"{what} per batch and process, at least, where they are packed; "
            "--tokens_per_batch is what memory depends on."
            for script, what in (("dpo.py", "Pairs"), ("sft.py", "Texts"))
        },
        "dynamics_sample_size": "Training pairs followed at every evaluation; 0: none.",
        "save_strategy": "no, steps, epoch or best.",
        "save_steps": "Steps between checkpoints.",
        "save_total_limit": "Keep so many checkpoints (default: all).",
        "load_best_model_at_end": "End with the checkpoint of the lowest validation loss.",
        "metric_for_best_model": {
            "dpo.py": "Another criterion, e.g. eval_ranking/accuracy.",
            "sft.py": "Another criterion, e.g. the loss of NAME of "
            "--eval_dataset_name: eval_NAME/loss.",
        },
        "early_stopping_patience": "End after so many evaluations without a better "
        "--metric_for_best_model (default: never).",
        "early_stopping_threshold": "Better by at most this counts as no better (default: 0).",
        "resume_from_checkpoint": "Begin from this checkpoint of another run; the same command "
        "resumes its own run by itself.",
    },
    "output": {
        "config": "YAML file of flags by name; those of the command line override it.",
        "save_config": "Write the flags given, here and by --config, to a file that --config "
        "takes, and go on.",
        "output_dir": "Directory for model, checkpoints and records (required).",
        "overwrite_output_dir": "Discard a run there that is finished or has other settings.",
        "report_to": "Any of wandb, tensorboard, trackio, mlflow, …; none (default: wandb).",
        "run_name": "Name of the run in trackers.",
        "project": {
            "dpo.py": "Its project or experiment in trackers (default: dpo).",
            "sft.py": "Its project or experiment in trackers (default: sft).",
        },
        "wandb_project": "Its project in wandb, if not --project.",
        "wandb_entity": "wandb user or team.",
        "logging_steps": "Steps between logged losses.",
        "push_to_hub": "Push checkpoints and results to the hub; the token is HF_TOKEN.",
        "hub_model_id": "Repository to push to (default: the name of --output_dir).",
        "hub_strategy": "end, every_save (models of checkpoints), checkpoint (the last one's state "
        "too) or all_checkpoints.",
        "hub_private_repo": "Create it as a private one.",
        "hub_revision": "Branch to push to (default: main).",
    },
}


METAVARS = {
    "config": "FILE", "save_config": "FILE", "chat_template_file": "FILE", "output_dir": "DIR",
    "data_dir": "DIR", "resume_from_checkpoint": "DIR", "chat_template_kwargs": "JSON",
    "system": "TEXT", "separator": "TEXT", "instruction_template": "TEXT",
    "response_template": "TEXT", "columns": "TARGET=COLUMN",
}  # fmt: skip


def successor(name: str, retired: Mapping[str, str]) -> str | None:
    """What to use instead of a retired flag; None for other flags."""
    return next((text for names, text in retired.items() if re.fullmatch(names, name)), None)


def is_neutral(name: str, value: str) -> bool:
    """Whether a retired flag of this value asks for what is done without it."""
    if name in DONE_ANYWAY:
        return value.lower() in ON
    is_zero = re.fullmatch(r"0+\.?0*", value) and not COUNTS_AT_ZERO.fullmatch(name)
    return value.lower() in OFF or bool(is_zero)


def of_other_script(name: str, script: str) -> str:
    """`: it is one of dpo.py` after an unknown name that is a flag there; else nothing."""
    other = "dpo.py" if script == "sft.py" else "sft.py"
    is_shown = any(name in texts for texts in FLAG_GROUPS.values())
    return f": it is one of {other}" if is_shown else ""
