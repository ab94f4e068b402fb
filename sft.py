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

from ranking.plumbing.command_line import run_script, with_underscores
from ranking.training.early_checks import check_flags, model_source
from ranking.training.sft_flags import SFT, SFTDataArguments, SFTFlags

if __name__ == "__main__":
    check_flags(SFT, sys.argv[1:], __doc__)  # at once: what is imported below takes seconds

from transformers import set_seed
from trl import SFTConfig, get_peft_config

from ranking.data.examples import joining
from ranking.plumbing.model_hub import push_results
from ranking.training.arguments import ModelArguments, parse_flags
from ranking.training.best_metric import check_best_metric
from ranking.training.checkpoints import describe_step
from ranking.training.config_file import save_config
from ranking.training.mixtures import MixtureTrainer, by_dataset, print_datasets
from ranking.training.models import (
    check_adapter,
    keep_adapters_in_float32,
    load_for_training,
    with_base,
)
from ranking.training.pushing import start_pushing
from ranking.training.run_card import write_card
from ranking.training.run_directory import claim_directory, finish_run, run_description
from ranking.training.saved_model import prepare_generation, save_merged
from ranking.training.splits import has_dialogues, load_parts, named_sets
from ranking.training.stopping import train_and_evaluate
from ranking.training.templates import use_template
from ranking.training.texts import prepare_texts
from ranking.training.trackers import finish_trackers, start_trackers


@dataclass
class SFTArguments(SFTFlags, SFTConfig):
    """SFTConfig with the original spellings."""


def parse_args(argv: list[str]) -> tuple[SFTDataArguments, ModelArguments, SFTArguments]:
    return parse_flags(SFT, (ModelArguments, SFTArguments), argv, __doc__)


def main(argv: list[str]) -> None:
    data_args, model_args, training_args = parse_args(argv)
    source = model_source(model_args.model_name_or_path, model_args.model_revision)
    chat = data_args.of_chat()
    parts = load_parts(**data_args.of_parts(), conversations=True)
    if training_args.eval_strategy != "no":
        check_best_metric(training_args.metric_for_best_model, parts, of_pairs=False)
    flags = [data_args.of_description(has_dialogues(parts)), model_args.of_description(),
             training_args.of_description()]  # fmt: skip
    settings = run_description(flags, [source], parts, SFT.retired)
    folder = Path(training_args.output_dir)
    checkpoint = claim_directory(
        folder, settings, data_args.overwrite_output_dir, training_args.resume_from_checkpoint,
        [source[0]],
    )  # fmt: skip
    save_config(data_args.save_config, data_args.given, "sft.py")
    pushing = start_pushing(training_args.of_hub(), model_args.local_base())
    training_args.push_to_hub = False  # by Trainer
    set_seed(training_args.seed)
    how = {**model_args.of_loading(), "device": str(training_args.device),
           "trust_remote_code": training_args.trust_remote_code}  # fmt: skip
    model, tokenizer = load_for_training(*source, **how, prefer_flash=training_args.bf16)
    lora = get_peft_config(model_args)
    check_adapter(lora, model)
    use_template(tokenizer, chat, source[0], parts["train"].examples)
    texts = prepare_texts(
        parts, model, tokenizer, templates=data_args.templates, chat=chat,
        add_eos=data_args.add_eos, max_length=training_args.max_length,
    )  # fmt: skip
    prepare_generation(model, tokenizer, chat, parts["train"].examples)
    lora = with_base(lora, model, tokenizer, source, folder)
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
        callbacks=[*trackers, *pushing], datasets=of_datasets,
        eval_sets=named_sets(texts, data_args.evaluate_test),
    )  # fmt: skip
    keep_adapters_in_float32(trainer.model)
    saved, losses = train_and_evaluate(trainer, checkpoint, {"eval": None, "test": texts["test"]})
    if not trainer.is_world_process_zero():
        return
    if model_args.merge_adapter:
        print(save_merged(folder, trainer.model, tokenizer, **how))
    finish_run(folder, settings, saved, losses["test"], len(texts["test"]))
    loss_type = training_args.loss_type
    unit = "nats per response token" if loss_type == "nll" else loss_type
    validation, test = losses["eval"]["eval_loss"], losses["test"]["test_loss"]
    print(f"validation loss {validation:.4f} {unit}, n = {len(texts['validation'])}")
    print_datasets(losses["eval"], {k: len(v) for k, v in named_sets(texts).items()}, prefix="eval")
    print(f"test       loss {test:.4f} {unit}, n = {len(texts['test'])}")
    print_datasets(losses["test"], {k: len(v) for k, v in of_datasets["test"].items()})
    print(f"model      {folder}: {describe_step(saved)}")
    write_card(
        folder, "sft.py", data_args.given, settings, saved, losses["eval"] | losses["test"], texts,
        data_commit=parts["train"].commit, pictures={},
    )  # fmt: skip
    for push in pushing:
        push_results(folder, push.repository, push.revision, push.jobs)
    finish_trackers(trackers, {}, {})


if __name__ == "__main__":
    run_script(main, sys.argv[1:], with_underscores)
