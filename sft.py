r"""Supervised fine-tuning on preferred completions (App. D), before DPO.

    python sft.py --model_name=gpt2 --dataset_name=Anthropic/hh-rlhf --dataset_text_field=chosen \
        --instruction_template="Human:" --response_template="Assistant:" \
        --output_dir=SFT_DIR --wandb_run_name=sft --learning_rate=1e-5 --num_train_epochs=1

Dialogues are trained on every response turn and nothing else; other data on the preferred
completion. Every flag of TRL's SFTConfig and ModelConfig works too. Writes the best model (or
adapter) and tokenizer into the output directory. The same command resumes a killed run.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from ranking.data.examples import joining
from ranking.plumbing.command_line import finishing_first, run_script
from ranking.plumbing.processes import announce
from ranking.plumbing.wandb_runs import finishing_wandb
from ranking.scoring.loading import context_length
from ranking.scoring.models import check_model_path
from ranking.scoring.rotary import length_class
from ranking.scoring.tokenization import check_vocabulary
from ranking.training.flags import (
    RETIRED,
    DataArguments,
    ModelArguments,
    TrainingDefaults,
    check_revision,
    parse_flags,
)
from ranking.training.models import load_for_training, make_peft_config
from ranking.training.run_directory import (
    WandbConfig,
    claim_directory,
    mark_run,
    run_description,
    start_training_wandb,
    write_test_results,
)
from ranking.training.splits import load_parts
from ranking.training.stopping import describe_step, train_until_stopped
from ranking.training.texts import check_packing, texts_dataset

REPLACED = {
    **RETIRED,
    "chat_template_path": "nothing: texts are dialogues as they stand",
    "eos_token": "--add_eos",
    "padding_free": "--packing",
    "completion_only_loss": "nothing: only response turns are trained",
    "assistant_only_loss": "nothing: only response turns are trained",
    "formatting_func": "--dataset_name with a file in a known schema",
}


@dataclass
class SFTDataArguments(DataArguments):
    """Data flags of sft.py."""

    instruction_template: str | None = field(
        default=None, metadata={"help": "What opens a user turn (default: Human: where it does)."}
    )
    response_template: str | None = field(
        default=None, metadata={"help": "What opens a response turn (default: Assistant:)."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("instruction_template", "response_template"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.strip("\"'").strip())
                if not getattr(self, name):
                    raise ValueError(f"--{name} is empty")
        if (self.instruction_template is None) != (self.response_template is None):
            raise ValueError("--instruction_template and --response_template go together")


@dataclass
class SFTArguments(TrainingDefaults, SFTConfig):
    """SFTConfig with the original spellings."""

    dataset_text_field: str = field(
        default="chosen", metadata={"help": "The text to train on: chosen, the preferred answer."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataset_text_field != "chosen":
            raise ValueError(
                f"--dataset_text_field {self.dataset_text_field}: only `chosen` is trained on; "
                "other columns are found by the dataset's schema"
            )
        if self.packing and self.packing_strategy != "bfd":
            raise ValueError(
                f"--packing_strategy {self.packing_strategy} lets packed texts see each other or "
                "splits them: use bfd"
            )


def parse_args(argv: list[str]) -> tuple[SFTDataArguments, ModelArguments, SFTArguments]:
    types = (SFTDataArguments, ModelArguments, SFTArguments)
    return parse_flags(types, argv, REPLACED, __doc__)


def main(argv: list[str]) -> None:
    data_args, model_args, training_args = parse_args(argv)
    name = model_args.model_name_or_path
    check_model_path(name)
    revision = check_revision("--model_revision", model_args.model_revision, name)
    examples = load_parts(data_args)
    settings = run_description(
        data_args, model_args, training_args, models=[(name, revision)], parts=examples,
        refused=REPLACED,
    )  # fmt: skip
    folder = Path(training_args.output_dir)
    checkpoint = claim_directory(
        folder,
        settings,
        data_args.overwrite_output_dir,
        training_args.resume_from_checkpoint,
        [name],
    )
    set_seed(training_args.seed)
    if model_args.attn_implementation is None and torch.cuda.is_available():
        has_flash = importlib.util.find_spec("flash_attn") is not None and training_args.bf16
        model_args.attn_implementation = "flash_attention_2" if has_flash else None
    model, tokenizer = load_for_training(model_args, name, revision, str(training_args.device))
    limits = [x for x in (training_args.max_length, context_length(model)) if x is not None]
    templates = None
    if data_args.response_template is not None:
        templates = (data_args.instruction_template, data_args.response_template)
    parts = {
        part: texts_dataset(tokenizer, data, templates, min(limits), data_args.add_eos, part)
        for part, data in examples.items()
    }
    check_vocabulary(model, (ids for part in parts.values() for ids in part["input_ids"]))
    classes = {length_class(model, len(x)) for part in parts.values() for x in part["input_ids"]}
    if len(classes) > 1:
        announce(
            "this model's rotary frequencies depend on the length of a forward pass (LongRoPE, "
            "dynamic): in training and evaluation, all texts of a batch get those of its longest; "
            "batches of 1 give each its own"
        )
    if training_args.packing:
        check_packing(model, parts["train"])
    peft_config = make_peft_config(model_args, model, tokenizer, training_args.output_dir)
    run = start_training_wandb(data_args, training_args, "sft")
    facts = {**settings, "joined_by": joining(examples["train"].examples),
             "truncation_mode": "texts at the end"}  # fmt: skip
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[WandbConfig(run, facts)] if run is not None else None,
    )
    with finishing_first():
        saved = train_until_stopped(trainer, checkpoint)
        validation = trainer.evaluate()
        test = trainer.evaluate(parts["test"], metric_key_prefix="test")
        trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    n_test = len(parts["test"])
    write_test_results(folder, test, n_test, saved)
    mark_run(folder, settings, finished=True, model=saved)
    unit = (
        "nats per response token" if training_args.loss_type == "nll" else training_args.loss_type
    )
    print(f"validation loss {validation['eval_loss']:.4f} {unit}, n = {len(parts['validation'])}")
    print(f"test       loss {test['test_loss']:.4f} {unit}, n = {n_test}")
    print(f"model      {folder}: {describe_step(saved)}")
    if run is not None:
        with finishing_wandb(run):
            pass  # the trainer has logged everything


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
