r"""Supervised fine-tuning on preferred completions (App. D), before DPO.

    python sft.py --model_name=gpt2 --dataset_name=Anthropic/hh-rlhf --dataset_text_field=chosen \
        --instruction_template="Human:" --response_template="Assistant:" \
        --output_dir=SFT_DIR --wandb_run_name=sft --learning_rate=1e-5 --num_train_epochs=1

Dialogues are trained on every response turn and nothing else; other data on the preferred
completion. Every flag of TRL's SFTConfig and ModelConfig works too. Writes the best model (or
adapter) and tokenizer into the output directory. The same command resumes a killed run.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed
from trl import SFTConfig, get_peft_config

from ranking.data.examples import joining
from ranking.plumbing.command_line import run_script
from ranking.plumbing.model_hub import push_results
from ranking.training.checkpoints import describe_step
from ranking.training.flags import DataArguments, ModelArguments, TrainingDefaults
from ranking.training.mixtures import MixtureTrainer, by_dataset, print_datasets
from ranking.training.models import load_for_training, model_source, with_base
from ranking.training.parsing import RETIRED, parse_flags
from ranking.training.pushing import start_pushing
from ranking.training.run_card import write_card
from ranking.training.run_directory import claim_directory, finish_run, run_description
from ranking.training.splits import has_dialogues, load_parts, named_sets
from ranking.training.stopping import train_and_evaluate
from ranking.training.templates import use_template
from ranking.training.texts import prepare_texts
from ranking.training.trackers import finish_trackers, start_trackers

SFT_RETIRED = {
    **RETIRED,
    "chat_template_path": "--chat_template_file",
    "eos_token": "--add_eos",
    "formatting_func": "--dataset_name with a file in a known schema",
    "padding_free": "--packing",
    "(completion|assistant)_only_loss": "nothing: only response turns are trained",
}


@dataclass
class SFTDataArguments(DataArguments):
    """Data flags of sft.py."""

    instruction_template: str | None = None
    response_template: str | None = None

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

    def of_description(self, with_dialogues: bool) -> dict[str, Any]:
        values = super().of_description(with_dialogues)
        if values["chat_template"] is False:
            del values["chat_template"]  # which earlier runs did not have
        return values

    @property
    def templates(self) -> tuple[str, str] | None:
        """What opens a user turn and a response turn, where it is given."""
        if self.instruction_template is None or self.response_template is None:
            return None
        return self.instruction_template, self.response_template


@dataclass
class SFTArguments(TrainingDefaults, SFTConfig):
    """SFTConfig with the original spellings."""

    dataset_text_field: str = "chosen"

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
    return parse_flags(types, argv, SFT_RETIRED, __doc__)


def main(argv: list[str]) -> None:
    data_args, model_args, training_args = parse_args(argv)
    source = model_source(model_args.model_name_or_path, model_args.model_revision)
    chat = data_args.of_chat()
    parts = load_parts(**data_args.of_parts(), conversations=True)
    flags = [data_args.of_description(has_dialogues(parts)), vars(model_args),
             training_args.to_dict()]  # fmt: skip
    settings = run_description(flags, [source], parts, SFT_RETIRED)
    folder = Path(training_args.output_dir)
    checkpoint = claim_directory(
        folder, settings, data_args.overwrite_output_dir, training_args.resume_from_checkpoint,
        [source[0]],
    )  # fmt: skip
    hub = training_args.of_hub()
    pushing = start_pushing(**hub) if hub else None
    training_args.push_to_hub = False  # by Trainer
    set_seed(training_args.seed)
    model, tokenizer = load_for_training(
        *source, **model_args.of_loading(), device=str(training_args.device),
        prefer_flash=training_args.bf16,
    )  # fmt: skip
    use_template(tokenizer, chat, source[0], parts["train"].examples)
    texts = prepare_texts(
        parts, model, tokenizer, templates=data_args.templates, chat=chat,
        add_eos=data_args.add_eos, max_length=training_args.max_length,
    )  # fmt: skip
    lora = with_base(get_peft_config(model_args), model, tokenizer, source, folder)
    facts = {"joined_by": joining(parts["train"].examples), "truncation_mode": "texts at the end"}
    trackers, training_args.report_to = start_trackers(
        training_args.report_to, folder, settings | facts, checkpoint=checkpoint,
        project=training_args.project, default_project="sft",
        wandb_project=data_args.wandb_project, wandb_entity=data_args.wandb_entity,
        name=training_args.run_name, trackio=training_args.of_trackio(),
    )  # fmt: skip
    of_datasets = {"eval": by_dataset(texts["validation"]), "test": by_dataset(texts["test"])}
    trainer = MixtureTrainer(
        model=model, args=training_args, train_dataset=texts["train"],
        eval_dataset=texts["validation"], processing_class=tokenizer, peft_config=lora,
        callbacks=[*trackers, *([pushing] if pushing else [])], datasets=of_datasets,
        eval_sets=named_sets(texts),
    )  # fmt: skip
    saved, losses = train_and_evaluate(trainer, checkpoint, {"eval": None, "test": texts["test"]})
    if not trainer.is_world_process_zero():
        return
    finish_run(folder, settings, saved, losses["test"], len(texts["test"]))
    loss_type = training_args.loss_type
    unit = "nats per response token" if loss_type == "nll" else loss_type
    validation, test = losses["eval"]["eval_loss"], losses["test"]["test_loss"]
    print(f"validation loss {validation:.4f} {unit}, n = {len(texts['validation'])}")
    print_datasets(losses["eval"], {k: len(v) for k, v in named_sets(texts).items()}, prefix="eval")
    print(f"test       loss {test:.4f} {unit}, n = {len(texts['test'])}")
    print_datasets(losses["test"], {k: len(v) for k, v in of_datasets["test"].items()})
    print(f"model      {folder}: {describe_step(saved)}")
    write_card(folder, "sft.py", argv, settings, saved, losses["eval"] | losses["test"], texts,
               data_commit=parts["train"].commit, pictures={})  # fmt: skip
    if pushing is not None:
        push_results(folder, pushing.repository, pushing.revision, pushing.jobs)
    finish_trackers(trackers, {}, {})


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
