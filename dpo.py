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
from dataclasses import dataclass, fields
from pathlib import Path

from transformers import set_seed
from trl import get_peft_config

from dpo_gamma_trainer import DPOGammaConfig, DPOGammaTrainer
from ranking.data.examples import joining
from ranking.metrics.losses import OWN_LOSSES
from ranking.plumbing.command_line import run_script
from ranking.plumbing.model_hub import push_results
from ranking.plumbing.processes import announce
from ranking.reports.dynamics import (
    DYNAMICS_FILE,
    draw_dynamics,
    dynamics_panels,
    read_dynamics,
    show_dynamics,
)
from ranking.training.checkpoints import describe_step
from ranking.training.flags import DataArguments, ModelArguments, TrainingDefaults, check_number
from ranking.training.mixtures import by_dataset, print_datasets
from ranking.training.models import (
    check_same_tokens,
    load_for_training,
    model_source,
    training_tokenizer,
    whole_weights,
    with_base,
)
from ranking.training.pairs import prepare_pairs
from ranking.training.parsing import RETIRED, parse_flags
from ranking.training.pushing import start_pushing
from ranking.training.run_card import metrics_at, write_card
from ranking.training.run_directory import claim_directory, finish_run, run_description
from ranking.training.splits import has_dialogues, load_parts, named_sets
from ranking.training.stopping import train_and_evaluate
from ranking.training.templates import use_template
from ranking.training.trackers import finish_trackers, start_trackers

DPO_RETIRED = {
    **RETIRED,
    "padding_free|pad_to_multiple_of": "nothing: rows are packed without padding",
    "precompute_ref_.*": "nothing: the reference is always computed once and cached",
    "sync_ref_model|ref_model_(mixup_alpha|sync_steps)":
        "nothing: the reference is fixed, as in the paper",
    "ld_alpha": "nothing: rankings are of whole completions",
    "dataloader_drop_last": "nothing: every pair is used and evaluated",
    "generate_during_eval": "nothing: completions are scored, not generated",
    "(model|ref)_adapter_name": "--ref_model_name_or_path",
    "reference_free": "--loss_type=alpha_scaling --alpha=0",
    "rpo_alpha": "--loss_type alpha_scaling sft --loss_weights 1 RPO_ALPHA",
    "gamma": "--alpha, as the original command line calls γ",
    "simpo_gamma": "--loss_type=alpha_scaling_norm --alpha=0 --target_margin=SIMPO_GAMMA",
}  # fmt: skip


# the losses of TRL, and those that use a flag of TRL which the others would ignore
TRL_LOSSES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair",
    "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
)  # fmt: skip
USED_BY: dict[str, set[str]] = {
    "label_smoothing": {"exo_pair", "robust", "aot", "aot_unpaired"},
    "discopop_tau": {"discopop"},
    "f_divergence_type": {
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop",
    },
    "label_smoothing_factor": set(),
}  # fmt: skip


@dataclass
class DPODataArguments(DataArguments):
    """Data flags of dpo.py."""

    ref_model_name_or_path: str | None = None
    ref_model_revision: str | None = None
    dynamics_sample_size: int = 1000

    def __post_init__(self):
        super().__post_init__()
        size = self.dynamics_sample_size
        check_number("dynamics_sample_size", size, size >= 0, "0 or more")


@dataclass
class DPOArguments(TrainingDefaults, DPOGammaConfig):
    """DPOGammaConfig with the original spellings."""

    eval_on_start: bool = True

    def __post_init__(self):
        check_number("alpha", self.alpha, self.alpha >= 0, "0 or more")
        check_number("beta", self.beta, self.beta > 0, "more than 0")
        if wrong := set(self.loss_type) - {*OWN_LOSSES, *TRL_LOSSES}:
            known = ", ".join((*OWN_LOSSES, *TRL_LOSSES))
            raise ValueError(f"--loss_type {wrong.pop()}: give one or more of {known}")
        super().__post_init__()
        defaults = {f.name: f.default for f in fields(self)}
        given = " ".join(self.loss_type)
        for name, users in USED_BY.items():
            if getattr(self, name) != defaults[name] and not users & set(self.loss_type):
                why = f"only {', '.join(sorted(users))} use it" if users else "no loss uses it"
                raise ValueError(f"--{name} has no effect on --loss_type {given}: {why}")
        coefficient = self.f_alpha_divergence_coef != defaults["f_alpha_divergence_coef"]
        if coefficient and self.f_divergence_type != "alpha_divergence":
            raise ValueError("--f_alpha_divergence_coef needs --f_divergence_type=alpha_divergence")
        if given == "sft" and self.beta != defaults["beta"]:
            announce("--beta has no part in --loss_type sft: only the reported Eq. 4 uses it")


def parse_args(argv: list[str]) -> tuple[DPODataArguments, ModelArguments, DPOArguments]:
    types = (DPODataArguments, ModelArguments, DPOArguments)
    return parse_flags(types, argv, DPO_RETIRED, __doc__)


def report_dynamics(file: Path) -> tuple[list[dict], dict[str, Path]]:
    """Table and pictures of a dynamics file, where there is one; its rows and the pictures."""
    if not file.exists():
        return [], {}
    rows = read_dynamics(file)
    pictures = draw_dynamics(rows, file.parent)
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
    flags = [data_args.of_description(has_dialogues(parts)), vars(model_args),
             training_args.of_description()]  # fmt: skip
    settings = run_description(flags, [policy, reference], parts, DPO_RETIRED)
    folder = Path(training_args.output_dir)
    checkpoint = claim_directory(
        folder, settings, data_args.overwrite_output_dir, training_args.resume_from_checkpoint,
        [policy[0], reference[0]],
    )  # fmt: skip
    hub = training_args.of_hub()
    pushing = start_pushing(**hub) if hub else None
    training_args.push_to_hub = False  # by Trainer
    set_seed(training_args.seed)
    how = {**model_args.of_loading(), "device": str(training_args.device)}
    with whole_weights(training_args.deepspeed_plugin):
        model, tokenizer = load_for_training(*reference, **how)
        if reference != policy:  # whose template is the one to learn
            own_tokenizer = training_tokenizer(*policy)
            check_same_tokens(reference[0], tokenizer, policy[0], own_tokenizer)
            tokenizer = own_tokenizer
        use_template(tokenizer, chat, policy[0], parts["train"].examples)
        pairs, texts = prepare_pairs(
            parts, model, tokenizer, chat=chat, add_eos=data_args.add_eos,
            max_length=training_args.max_length, n_followed=data_args.dynamics_sample_size,
            mixed_precision=training_args.mixed_precision,
        )  # fmt: skip
        if reference != policy:
            model, _ = load_for_training(*policy, **how)
    lora = with_base(get_peft_config(model_args), model, tokenizer, policy, folder)
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
        eval_dataset=pairs["validation"], eval_sets=named_sets(pairs),
        dynamics_dataset=pairs.get("dynamics"),
        dynamics_file=folder / DYNAMICS_FILE, processing_class=tokenizer, peft_config=lora,
        callbacks=[*trackers, *([pushing] if pushing else [])],
    )  # fmt: skip
    announce(f"policy log-likelihoods: {trainer.path}")
    saved, metrics = train_and_evaluate(trainer, checkpoint, {"test": pairs["test"]})
    if not trainer.is_world_process_zero():
        return
    rows, pictures = report_dynamics(folder / DYNAMICS_FILE)
    finish_run(folder, settings, saved, metrics["test"], len(pairs["test"]))
    print_test(metrics["test"], len(pairs["test"]))
    counts = {name: len(part) for name, part in by_dataset(pairs["test"]).items()}
    print_datasets(metrics["test"], counts, "ranking/accuracy")
    print(f"model     {folder}: {describe_step(saved)}")
    validation = metrics_at(trainer.state.log_history, saved["step"])
    write_card(folder, "dpo.py", argv, settings, saved, validation | metrics["test"], pairs,
               data_commit=parts["train"].commit, pictures=pictures)  # fmt: skip
    if pushing is not None:
        push_results(folder, pushing.repository, pushing.revision, pushing.jobs)
    finish_trackers(trackers, pictures, dynamics_panels(rows, texts) if rows else {})


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
