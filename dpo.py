r"""DPO and DPO^γ training (§4, Eq. 4), with the ranking dynamics of Fig. 2-7.

    python dpo.py --model_name_or_path=SFT_DIR --beta=0.1 --alpha=1 --loss_type=alpha_scaling \
        --output_dir=DPO_DIR --wandb_run_name=dpo --per_device_train_batch_size=8 \
        --evaluation_strategy=steps --eval_steps=50 --optim=rmsprop

--alpha is γ: 1 is DPO, 0 is reference-free. The flags of TRL's DPOConfig and ModelConfig work too.
Writes the best model (or adapter) and tokenizer, checkpoints, ranking_dynamics.jsonl with the
values of every followed pair at every evaluation, and three pictures, into the output directory.
The same command resumes a killed run.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from transformers import set_seed

from dpo_gamma_trainer import ALPHA_SCALING, DPOGammaConfig, DPOGammaTrainer
from ranking.data.examples import joining
from ranking.plumbing.command_line import announce, finishing_first, run_script
from ranking.plumbing.wandb_runs import finishing_wandb
from ranking.reports.dynamics import (
    DYNAMICS_FILE,
    draw_dynamics,
    log_dynamics,
    read_dynamics,
    show_dynamics,
)
from ranking.scoring.models import check_model_path
from ranking.training.flags import (
    RETIRED,
    DataArguments,
    ModelArguments,
    TrainingDefaults,
    check_number,
    check_revision,
    parse_flags,
)
from ranking.training.models import load_for_training, make_peft_config, whole_weights
from ranking.training.pairs import prepare_datasets
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
from ranking.training.wandb_panels import GroupedPanels

REPLACED = {
    **RETIRED,
    "seq_length": "--max_length",
    "padding_free": "nothing: rows are packed without padding",
    "precompute_ref_log_probs": "nothing: the reference is always computed once and cached",
    "precompute_ref_batch_size": "nothing: the reference is scored in packed rows",
    "sync_ref_model": "nothing: the reference is fixed, as in the paper",
    "ref_model_mixup_alpha": "nothing: the reference is fixed, as in the paper",
    "ref_model_sync_steps": "nothing: the reference is fixed, as in the paper",
    "pad_to_multiple_of": "nothing: rows are packed without padding",
    "ld_alpha": "nothing: rankings are of whole completions",
    "dataloader_drop_last": "nothing: every pair is used and evaluated",
    "generate_during_eval": "nothing: completions are scored, not generated",
    "model_adapter_name": "--ref_model_name_or_path",
    "ref_adapter_name": "--ref_model_name_or_path",
    "reference_free": "--loss_type=alpha_scaling --alpha=0",
    "rpo_alpha": "--loss_type alpha_scaling sft --loss_weights 1 RPO_ALPHA",
    "gamma": "--alpha, as the original command line calls γ",
}


TRL_LOSSES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair",
    "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
)  # fmt: skip


# flags of TRL that some of its losses ignore
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

    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reference model (default: the model before training)."}
    )
    ref_model_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of a reference model from the hub."},
    )
    dynamics_sample_size: int = field(
        default=1000, metadata={"help": "Training pairs followed at every evaluation; 0: none."}
    )
    chat_template: bool = field(
        default=False, metadata={"help": "Format prompts with the chat template."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.chat_template and self.separator is not None:
            raise ValueError("--separator: --chat_template joins prompt and completion, give one")
        size = self.dynamics_sample_size
        check_number("dynamics_sample_size", size, size >= 0, "0 or more")


@dataclass
class DPOArguments(TrainingDefaults, DPOGammaConfig):
    """DPOGammaConfig with the original spellings."""

    eval_on_start: bool = field(
        default=True, metadata={"help": "Evaluate before the first step, where the groups start."}
    )

    def __post_init__(self):
        check_number("alpha", self.alpha, self.alpha >= 0, "0 or more")
        check_number("beta", self.beta, self.beta > 0, "more than 0")
        if wrong := set(self.loss_type) - {ALPHA_SCALING, *TRL_LOSSES}:
            known = ", ".join((ALPHA_SCALING, *TRL_LOSSES))
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
    return parse_flags(types, argv, REPLACED, __doc__)


def main(argv: list[str]) -> None:
    data_args, model_args, training_args = parse_args(argv)
    policy_name = model_args.model_name_or_path
    reference_name = data_args.ref_model_name_or_path or policy_name
    for name in (policy_name, reference_name):
        check_model_path(name)
    revision = check_revision("--model_revision", model_args.model_revision, policy_name)
    reference_revision = revision if reference_name == policy_name else None
    if data_args.ref_model_revision is not None:
        reference_revision = check_revision(
            "--ref_model_revision", data_args.ref_model_revision, reference_name
        )
    policy, reference = (policy_name, revision), (reference_name, reference_revision)
    examples = load_parts(data_args)
    settings = run_description(
        data_args, model_args, training_args, models=(policy, reference), parts=examples,
        refused=REPLACED,
    )  # fmt: skip
    folder = Path(training_args.output_dir)
    checkpoint = claim_directory(
        folder,
        settings,
        data_args.overwrite_output_dir,
        training_args.resume_from_checkpoint,
        (policy_name, reference_name),
    )
    set_seed(training_args.seed)
    device = str(training_args.device)

    with whole_weights(training_args):
        model, tokenizer = load_for_training(model_args, *reference, device)
        precisions = {"bf16": torch.bfloat16, "fp16": torch.float16}
        datasets, texts = prepare_datasets(
            examples,
            model,
            tokenizer,
            chat_template=data_args.chat_template,
            add_eos=data_args.add_eos,
            max_length=training_args.max_length,
            n_followed=data_args.dynamics_sample_size,
            autocast=precisions.get(training_args.mixed_precision),
            tokens_per_batch=1024 if training_args.use_cpu else 16384,
        )
        if reference != policy:
            model, policy_tokenizer = load_for_training(model_args, *policy, device)
            if policy_tokenizer.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
                raise ValueError(
                    f"{reference_name} and {policy_name} have different tokenizers: the reference "
                    "must score the token ids that are trained on"
                )
    peft_config = make_peft_config(model_args, model, tokenizer, training_args.output_dir)

    run = start_training_wandb(data_args, training_args, "dpo")
    facts = {**settings, "ref_model_name_or_path": reference_name,
             "joined_by": None if data_args.chat_template else joining(examples["train"].examples),
             "truncation_mode": "prompts from the left"}  # fmt: skip
    training_args.precompute_ref_log_probs = True  # the datasets carry the reference
    training_args.eval_on_start &= training_args.eval_strategy != "no"
    trainer = DPOGammaTrainer(
        model=model,
        args=training_args,
        train_dataset=datasets["train"],
        eval_dataset=datasets["validation"],
        dynamics_dataset=datasets.get("dynamics"),
        dynamics_file=folder / DYNAMICS_FILE,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[GroupedPanels(run), WandbConfig(run, facts)] if run is not None else None,
    )
    announce(f"policy log-likelihoods: {trainer.path}")
    with finishing_first():
        saved = train_until_stopped(trainer, checkpoint)
        test = trainer.evaluate(datasets["test"], metric_key_prefix="test")
        trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    rows, pictures = [], {}
    if (folder / DYNAMICS_FILE).exists():
        rows = read_dynamics(folder / DYNAMICS_FILE)
        pictures = draw_dynamics(rows, folder)
        show_dynamics(rows)
        for path in (folder / DYNAMICS_FILE, *pictures.values()):
            print(path)
    n_test = len(datasets["test"])
    write_test_results(folder, test, n_test, saved)
    mark_run(folder, settings, finished=True, model=saved)
    print(
        f"test      loss {test['test_loss']:.4f}, ranking accuracy "
        f"{100 * test['test_ranking/accuracy']:.1f} % (reference: "
        f"{100 * test['test_ranking/ref_accuracy']:.1f} %), n = {n_test}"
    )
    for name in ("exact_ties", "exact_ties_normalized"):
        if test[f"test_ranking/{name}"]:
            announce(f"test: {name} {test[f'test_ranking/{name}']:.3f} of the pairs, which ranking "
                     "accuracy counts as right (Def. 2.3)")  # fmt: skip
    print(f"model     {folder}: {describe_step(saved)}")
    if run is not None:
        with finishing_wandb(run):
            if rows:
                log_dynamics(run, rows, texts, pictures)


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
