r"""DPO and DPO^γ training (§4, Eq. 4), with the ranking dynamics of Fig. 2-7.

    python dpo.py --model_name_or_path=SFT_DIR --beta=0.1 --alpha=1 --loss_type=alpha_scaling \
        --output_dir=DPO_DIR --wandb_run_name=dpo --per_device_train_batch_size=8 \
        --evaluation_strategy=steps --eval_steps=50 --optim=rmsprop

--alpha is γ: 1 is DPO, 0 is reference-free. The flags of TRL's DPOConfig and ModelConfig work too.
Writes the model (or adapter) of the last step, or with --load_best_model_at_end of the best one,
tokenizer, checkpoints, ranking_dynamics.jsonl with the values of every followed pair at every
evaluation, and four pictures, into the output directory. The same command resumes a killed run.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from ranking.plumbing.command_line import import_trainer_quietly, run_script, with_underscores
from ranking.training.dpo_flags import DPO, DPODataArguments, DPOFlags
from ranking.training.early_checks import check_flags, model_source

if __name__ == "__main__":
    check_flags(DPO, sys.argv[1:], __doc__)  # at once: what is imported below takes seconds
    import_trainer_quietly()

from datasets import Dataset
from trl import get_peft_config

from dpo_gamma_trainer import DPOGammaConfig, DPOGammaTrainer
from ranking.data.examples import joining
from ranking.plumbing.processes import announce
from ranking.reports.dynamics import (
    DYNAMICS_FILE,
    chosen_step,
    dynamics_panels,
    read_dynamics,
    show_dynamics,
)
from ranking.reports.dynamics_pictures import draw_dynamics, name_run
from ranking.training.checkpoints import describe_step
from ranking.training.models import (
    ModelArguments,
    check_adapter,
    check_same_tokens,
    keep_adapters_in_float32,
    load_for_training,
    training_tokenizer,
    whole_weights,
    with_base,
)
from ranking.training.pairs import prepare_pairs
from ranking.training.parsing import parse_flags
from ranking.training.saved_model import prepare_generation, save_merged
from ranking.training.splits import by_dataset, load_parts, named_sets
from ranking.training.start_and_end import (
    finish_and_publish,
    metrics_at,
    print_datasets,
    start_run,
)
from ranking.training.stopping import train_and_evaluate
from ranking.training.templates import use_template
from ranking.training.trackers import start_trackers


@dataclass
class DPOArguments(DPOFlags, DPOGammaConfig):
    """DPOGammaConfig with the original spellings."""


def parse_args(argv: list[str]) -> tuple[DPODataArguments, ModelArguments, DPOArguments]:
    return parse_flags(DPO, (ModelArguments, DPOArguments), argv, __doc__)


def reference_source(
    policy: tuple[str, str | None], name: str | None, revision: str | None
) -> tuple[str, str | None]:
    """Name and revision of the reference: those asked for, else the policy's."""
    name = name or policy[0]
    revision = revision or (policy[1] if name == policy[0] else None)
    return model_source(name, revision, "--ref_model_revision")


def load_reference(reference: tuple[str, str | None], policy: tuple[str, str | None], how: dict):
    """The reference model, and the policy's tokenizer, whose template is the one to learn."""
    model, tokenizer = load_for_training(*reference, **how)
    if reference == policy:
        return model, tokenizer
    own_tokenizer = training_tokenizer(*policy, how["trust_remote_code"])
    check_same_tokens(reference[0], tokenizer, policy[0], own_tokenizer)
    return model, own_tokenizer


def report_dynamics(file: Path, saved: int | None) -> tuple[list[dict], dict[str, Path]]:
    """Table and pictures of a dynamics file, where there is one; its rows and the pictures. saved:
    the step of the saved model, where a metric chose it."""
    if not file.exists():
        return [], {}
    rows = read_dynamics(file)
    pictures = draw_dynamics(rows, file.parent, name_run(file), saved)
    show_dynamics(rows, saved)
    for path in (file, *pictures.values()):
        print(path)
    return rows, pictures


def print_test(test: dict[str, float], pairs: Dataset) -> None:
    """Loss and ranking accuracy on the test split and each of its datasets, where there are
    several; exact ties on stderr."""
    accuracy, ref_accuracy = (100 * test[f"test_ranking/{x}accuracy"] for x in ("", "ref_"))
    print(
        f"test      loss {test['test_loss']:.4f}, ranking accuracy {accuracy:.1f} % (reference: "
        f"{ref_accuracy:.1f} %), n = {len(pairs)}"
    )
    for name in ("exact_ties", "exact_ties_normalized"):
        if share := test[f"test_ranking/{name}"]:
            announce(f"test: {name} {share:.3f} of the pairs, which ranking accuracy counts as "
                     "right (Def. 2.3)")  # fmt: skip
    print_datasets(test, by_dataset(pairs), "ranking/accuracy")


def main(argv: list[str]) -> None:
    data_args, model_args, training_args = parse_args(argv)
    policy = model_source(model_args.model_name_or_path, model_args.model_revision)
    asked = data_args.ref_model_name_or_path, data_args.ref_model_revision
    reference = reference_source(policy, *asked)
    parts = load_parts(**data_args.of_parts())
    examples, chat = parts["train"].examples, data_args.of_chat()
    described = [data_args.of_description(), vars(model_args), training_args.to_dict()]
    run = start_run(
        DPO, described, [policy, reference], parts, **data_args.of_run(), **training_args.of_run(),
        local_base=model_args.local_base(),
    )  # fmt: skip
    how = {**model_args.of_loading(), **training_args.of_loading()}
    lora = get_peft_config(model_args)
    with whole_weights(training_args.deepspeed_plugin):
        model, tokenizer = load_reference(reference, policy, how)
        if reference == policy:
            check_adapter(lora, model)
        use_template(tokenizer, chat, policy[0], examples)
        pairs, texts = prepare_pairs(
            parts, model, tokenizer, chat=chat, add_eos=data_args.add_eos,
            max_length=training_args.max_length, n_followed=data_args.dynamics_sample_size,
            mixed_precision=training_args.mixed_precision,
        )  # fmt: skip
        if reference != policy:
            model, _ = load_for_training(*policy, **how)
            check_adapter(lora, model)
    prepare_generation(model, tokenizer, chat, examples)
    lora = with_base(lora, model, tokenizer, policy, run.folder)
    facts = {"joined_by": None if chat.mode == "always" else joining(examples),
             "truncation_mode": "prompts from the left",
             "ref_model_name_or_path": reference[0]}  # fmt: skip
    trackers, training_args.report_to = start_trackers(
        run.folder, run.settings | facts, checkpoint=run.checkpoint, default_project="dpo",
        **data_args.of_trackers(), **training_args.of_trackers(),
    )  # fmt: skip
    training_args.push_to_hub = False  # by Trainer
    training_args.precompute_ref_log_probs = True  # the datasets carry the reference
    training_args.eval_on_start &= training_args.eval_strategy != "no"
    trainer = DPOGammaTrainer(
        model=model, args=training_args, train_dataset=pairs["train"],
        eval_dataset=pairs["validation"], eval_sets=named_sets(pairs, data_args.evaluate_test),
        dynamics_dataset=pairs.get("dynamics"), dynamics_file=run.folder / DYNAMICS_FILE,
        processing_class=tokenizer, peft_config=lora, callbacks=[*trackers, *run.pushing],
    )  # fmt: skip
    keep_adapters_in_float32(trainer.model)
    announce(f"policy log-likelihoods: {trainer.path}")
    saved, metrics = train_and_evaluate(
        trainer, run.checkpoint, {"test": pairs["test"]}, model_args.merge_adapter
    )
    if not trainer.is_world_process_zero():
        return
    chosen = chosen_step(saved)
    rows, pictures = report_dynamics(run.folder / DYNAMICS_FILE, chosen)
    if model_args.merge_adapter:
        print(save_merged(run.folder, trainer.model, tokenizer, **how))
    print_test(metrics["test"], pairs["test"])
    print(f"model     {run.folder}: {describe_step(saved)}")
    validation = metrics_at(trainer.state.log_history, saved["step"])
    finish_and_publish(
        run, trackers, saved, validation, metrics["test"], pairs,
        data_commit=parts["train"].commit, pictures=pictures,
        tables=dynamics_panels(rows, texts, chosen) if rows else {},
    )  # fmt: skip


if __name__ == "__main__":
    run_script(main, sys.argv[1:], with_underscores)
