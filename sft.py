r"""Supervised fine-tuning on preferred completions (App. D), before DPO.

    python sft.py --model_name=gpt2 --dataset_name=Anthropic/hh-rlhf --dataset_text_field=chosen \
        --instruction_template="Human:" --response_template="Assistant:" \
        --output_dir=SFT_DIR --wandb_run_name=sft --learning_rate=1e-5 --num_train_epochs=1

Dialogues are trained on every response turn and nothing else; other data on the preferred
completion. The flags of TRL's SFTConfig and ModelConfig work too. Writes the model (or adapter) of
the last step, or with --load_best_model_at_end of the best one, tokenizer and checkpoints into the
output directory. The same command resumes a killed run.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ranking.plumbing.command_line import import_trainer_quietly, run_script, with_underscores
from ranking.training.early_checks import check_flags, model_source
from ranking.training.sft_flags import SFT, SFTDataArguments, SFTFlags

if __name__ == "__main__":
    check_flags(SFT, sys.argv[1:], __doc__)  # at once: what is imported below takes seconds
    import_trainer_quietly()

from datasets import Dataset
from trl import SFTConfig, get_peft_config

from ranking.data.examples import joining
from ranking.training.checkpoints import describe_step
from ranking.training.models import (
    ModelArguments,
    check_adapter,
    keep_adapters_in_float32,
    load_for_training,
    with_base,
)
from ranking.training.parsing import parse_flags
from ranking.training.saved_model import prepare_generation, save_merged
from ranking.training.sft_trainer import PackedSFTTrainer
from ranking.training.splits import by_dataset, load_parts, named_sets
from ranking.training.start_and_end import finish_and_publish, print_datasets, start_run
from ranking.training.stopping import train_and_evaluate
from ranking.training.templates import use_template
from ranking.training.texts import prepare_texts
from ranking.training.trackers import start_trackers


@dataclass
class SFTArguments(SFTFlags, SFTConfig):
    """SFTConfig with the original spellings."""


def parse_args(argv: list[str]) -> tuple[SFTDataArguments, ModelArguments, SFTArguments]:
    return parse_flags(SFT, (ModelArguments, SFTArguments), argv, __doc__)


def print_losses(
    losses: Mapping[str, dict[str, float]], texts: Mapping[str, Dataset], loss_type: str
) -> None:
    """The loss on validation and test (`eval` and `test` of `losses`), and on each dataset of
    several and each evaluation set."""
    unit = "nats per response token" if loss_type == "nll" else loss_type
    validation, test = losses["eval"]["eval_loss"], losses["test"]["test_loss"]
    print(f"validation loss {validation:.4f} {unit}, n = {len(texts['validation'])}")
    print_datasets(losses["eval"], named_sets(texts), prefix="eval")
    print(f"test       loss {test:.4f} {unit}, n = {len(texts['test'])}")
    print_datasets(losses["test"], by_dataset(texts["test"]))


def main(argv: list[str]) -> None:
    data_args, model_args, training_args = parse_args(argv)
    source = model_source(model_args.model_name_or_path, model_args.model_revision)
    parts = load_parts(**data_args.of_parts(), conversations=True)
    examples, chat = parts["train"].examples, data_args.of_chat()
    described = [data_args.of_description(), vars(model_args), training_args.to_dict()]
    run = start_run(
        SFT, described, [source], parts, **data_args.of_run(), **training_args.of_run(),
        local_base=model_args.local_base(),
    )  # fmt: skip
    how = {**model_args.of_loading(), **training_args.of_loading()}
    model, tokenizer = load_for_training(*source, **how, prefer_flash=training_args.bf16)
    lora = get_peft_config(model_args)
    check_adapter(lora, model)
    use_template(tokenizer, chat, source[0], examples)
    texts = prepare_texts(
        parts, model, tokenizer, templates=data_args.templates, chat=chat,
        add_eos=data_args.add_eos, max_length=training_args.max_length,
    )  # fmt: skip
    prepare_generation(model, tokenizer, chat, examples)
    lora = with_base(lora, model, tokenizer, source, run.folder)
    facts = {"joined_by": joining(examples), "truncation_mode": "texts at the end"}
    trackers, training_args.report_to = start_trackers(
        run.folder, run.settings | facts, checkpoint=run.checkpoint, default_project="sft",
        **data_args.of_trackers(), **training_args.of_trackers(),
    )  # fmt: skip
    training_args.push_to_hub = False  # by Trainer
    trainer = PackedSFTTrainer(
        model=model, args=training_args, train_dataset=texts["train"],
        eval_dataset=texts["validation"], processing_class=tokenizer, peft_config=lora,
        callbacks=[*trackers, *run.pushing],
        eval_sets=named_sets(texts, data_args.evaluate_test),
    )  # fmt: skip
    keep_adapters_in_float32(trainer.model)
    final = {"eval": None, "test": texts["test"]}
    saved, losses = train_and_evaluate(trainer, run.checkpoint, final, model_args.merge_adapter)
    if not trainer.is_world_process_zero():
        return
    if model_args.merge_adapter:
        print(save_merged(run.folder, trainer.model, tokenizer, **how))
    print_losses(losses, texts, training_args.loss_type)
    print(f"model      {run.folder}: {describe_step(saved)}")
    finish_and_publish(
        run, trackers, saved, losses["eval"], losses["test"], texts,
        data_commit=parts["train"].commit, pictures={}, tables={},
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main, sys.argv[1:], with_underscores)
