r"""DPO and DPO^γ training (§4, Eq. 4), with the ranking dynamics of Fig. 2-7.

    python dpo.py --model_name_or_path=SFT_DIR --beta=0.1 --alpha=1 --loss_type=alpha_scaling \
        --output_dir=DPO_DIR --wandb_run_name=dpo --per_device_train_batch_size=8 \
        --evaluation_strategy=steps --eval_steps=50 --optim=rmsprop

--alpha is γ: 1 is DPO, 0 is reference-free. The flags of TRL's DPOConfig and ModelConfig work too.
Writes the best model (or adapter) and tokenizer, checkpoints, ranking_dynamics.jsonl with the
values of every followed pair at every evaluation, and four pictures, into the output directory.
The same command resumes a killed run.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from ranking.plumbing.command_line import run_script, with_underscores
from ranking.training.dpo_flags import DPO, DPODataArguments, DPOFlags
from ranking.training.early_checks import check_flags, model_source

if __name__ == "__main__":
    check_flags(DPO, sys.argv[1:], __doc__)  # at once: what is imported below takes seconds

from transformers import set_seed
from trl import get_peft_config

from dpo_gamma_trainer import DPOGammaConfig, DPOGammaTrainer
from ranking.data.examples import joining
from ranking.plumbing.model_hub import push_results
from ranking.plumbing.processes import announce
from ranking.reports.dynamics import (
    DYNAMICS_FILE,
    dynamics_panels,
    read_dynamics,
    show_dynamics,
)
from ranking.reports.dynamics_pictures import draw_dynamics, name_run
from ranking.training.arguments import ModelArguments, parse_flags
from ranking.training.best_metric import check_best_metric
from ranking.training.checkpoints import describe_step
from ranking.training.config_file import save_config
from ranking.training.mixtures import by_dataset, print_datasets
from ranking.training.models import (
    check_adapter,
    check_same_tokens,
    keep_adapters_in_float32,
    load_for_training,
    training_tokenizer,
    whole_weights,
    with_base,
)
from ranking.training.pairs import prepare_pairs
from ranking.training.pushing import start_pushing
from ranking.training.run_card import metrics_at, write_card
from ranking.training.run_directory import claim_directory, finish_run, run_description
from ranking.training.saved_model import prepare_generation, save_merged
from ranking.training.splits import has_dialogues, load_parts, named_sets
from ranking.training.stopping import train_and_evaluate
from ranking.training.templates import use_template
from ranking.training.trackers import finish_trackers, start_trackers


@dataclass
class DPOArguments(DPOFlags, DPOGammaConfig):
    """DPOGammaConfig with the original spellings."""


def parse_args(argv: list[str]) -> tuple[DPODataArguments, ModelArguments, DPOArguments]:
    return parse_flags(DPO, (ModelArguments, DPOArguments), argv, __doc__)


def report_dynamics(file: Path) -> tuple[list[dict], dict[str, Path]]:
    """Table and pictures of a dynamics file, where there is one; its rows and the pictures."""
    if not file.exists():
        return [], {}
    rows = read_dynamics(file)
    pictures = draw_dynamics(rows, file.parent, name_run(file))
    show_dynamics(rows)
    for path in (file, *pictures.values()):
        print(path)
    return rows, pictures


def print_test(test: dict[str, float], n: int) -> None:
    """Loss and ranking accuracy on the test split, and exact ties on stderr."""
    accuracy, ref_accuracy = (100 * test[f"test_ranking/{x}accuracy"] for x in ("", "ref_"))
    print(
        f"test      loss {test['test_loss']:.4f}, ranking accuracy {accuracy:.1f} % (reference: "
        f"{ref_accuracy:.1f} %), n = {n}"
    )
    for name in ("exact_ties", "exact_ties_normalized"):
        if share := test[f"test_ranking/{name}"]:
            announce(f"test: {name} {share:.3f} of the pairs, which ranking accuracy counts as "
                     "right (Def. 2.3)")  # fmt: skip


def main(argv: list[str]) -> None:
    data_args, model_args, training_args = parse_args(argv)
    policy = model_source(model_args.model_name_or_path, model_args.model_revision)
    ref_name = data_args.ref_model_name_or_path or policy[0]
    ref_revision = data_args.ref_model_revision or (policy[1] if ref_name == policy[0] else None)
    reference = model_source(ref_name, ref_revision, "--ref_model_revision")
    chat = data_args.of_chat()
    parts = load_parts(**data_args.of_parts())
    if training_args.eval_strategy != "no":
        check_best_metric(training_args.metric_for_best_model, parts, of_pairs=True)
    flags = [data_args.of_description(has_dialogues(parts)), model_args.of_description(),
             training_args.of_description()]  # fmt: skip
    settings = run_description(flags, [policy, reference], parts, DPO.retired)
    folder = Path(training_args.output_dir)
    checkpoint = claim_directory(
        folder, settings, data_args.overwrite_output_dir, training_args.resume_from_checkpoint,
        [policy[0], reference[0]],
    )  # fmt: skip
    save_config(data_args.save_config, data_args.given, "dpo.py")
    pushing = start_pushing(training_args.of_hub(), model_args.local_base())
    training_args.push_to_hub = False  # by Trainer
    set_seed(training_args.seed)
    lora = get_peft_config(model_args)
    trusted = training_args.trust_remote_code
    how = {**model_args.of_loading(), "device": str(training_args.device),
           "trust_remote_code": trusted}  # fmt: skip
    with whole_weights(training_args.deepspeed_plugin):
        model, tokenizer = load_for_training(*reference, **how)
        if reference != policy:  # whose template is the one to learn
            own_tokenizer = training_tokenizer(*policy, trusted)
            check_same_tokens(reference[0], tokenizer, policy[0], own_tokenizer)
            tokenizer = own_tokenizer
        else:
            check_adapter(lora, model)
        use_template(tokenizer, chat, policy[0], parts["train"].examples)
        pairs, texts = prepare_pairs(
            parts, model, tokenizer, chat=chat, add_eos=data_args.add_eos,
            max_length=training_args.max_length, n_followed=data_args.dynamics_sample_size,
            mixed_precision=training_args.mixed_precision,
        )  # fmt: skip
        if reference != policy:
            model, _ = load_for_training(*policy, **how)
            check_adapter(lora, model)
    prepare_generation(model, tokenizer, chat, parts["train"].examples)
    lora = with_base(lora, model, tokenizer, policy, folder)
    by_template = data_args.chat_template == "always"
    facts = {"joined_by": None if by_template else joining(parts["train"].examples),
             "truncation_mode": "prompts from the left",
             "ref_model_name_or_path": reference[0]}  # fmt: skip
    trackers, training_args.report_to = start_trackers(
        training_args.report_to, folder, settings | facts, checkpoint=checkpoint,
        project=training_args.project, default_project="dpo",
        wandb_project=data_args.wandb_project, wandb_entity=data_args.wandb_entity,
        name=training_args.run_name, trackio=training_args.of_trackio(),
    )  # fmt: skip
    training_args.precompute_ref_log_probs = True  # the datasets carry the reference
    training_args.eval_on_start &= training_args.eval_strategy != "no"
    trainer = DPOGammaTrainer(
        model=model, args=training_args, train_dataset=pairs["train"],
        eval_dataset=pairs["validation"], eval_sets=named_sets(pairs, data_args.evaluate_test),
        dynamics_dataset=pairs.get("dynamics"),
        dynamics_file=folder / DYNAMICS_FILE, processing_class=tokenizer, peft_config=lora,
        callbacks=[*trackers, *pushing],
    )  # fmt: skip
    keep_adapters_in_float32(trainer.model)
    announce(f"policy log-likelihoods: {trainer.path}")
    saved, metrics = train_and_evaluate(trainer, checkpoint, {"test": pairs["test"]})
    if not trainer.is_world_process_zero():
        return
    rows, pictures = report_dynamics(folder / DYNAMICS_FILE)
    if model_args.merge_adapter:
        print(save_merged(folder, trainer.model, tokenizer, **how))
    finish_run(folder, settings, saved, metrics["test"], len(pairs["test"]))
    print_test(metrics["test"], len(pairs["test"]))
    counts = {name: len(part) for name, part in by_dataset(pairs["test"]).items()}
    print_datasets(metrics["test"], counts, "ranking/accuracy")
    print(f"model     {folder}: {describe_step(saved)}")
    validation = metrics_at(trainer.state.log_history, saved["step"])
    write_card(
        folder, "dpo.py", data_args.given, settings, saved, validation | metrics["test"], pairs,
        data_commit=parts["train"].commit, pictures=pictures,
    )  # fmt: skip
    for push in pushing:
        push_results(folder, push.repository, push.revision, push.jobs)
    finish_trackers(trackers, pictures, dynamics_panels(rows, texts) if rows else {})


if __name__ == "__main__":
    run_script(main, sys.argv[1:], with_underscores)
