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

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback, set_seed

from command_line import announce, finishing_first, run_script
from data_utils import PreferenceData, joining, preference_pairs
from dpo_gamma_trainer import ALPHA_SCALING, DPOGammaConfig, DPOGammaTrainer
from log_likelihood import tokenize_examples
from model_loading import check_model_path, context_length
from plot_results import (
    lowest_loss_step,
    mean_of,
    plot_accuracy_against_distance,
    plot_dynamics,
    plot_loss_against_reference,
)
from ranking_dynamics import DYNAMICS_FILE, GROUPS, read_dynamics
from reference_cache import reference_logps
from training_directory import claim_directory, mark_run, run_description, write_test_results
from training_setup import (
    RETIRED,
    DataArguments,
    ModelArguments,
    TrainingDefaults,
    WandbConfig,
    check_number,
    check_revision,
    describe_step,
    load_for_training,
    load_parts,
    make_peft_config,
    parse_flags,
    start_training_wandb,
    train_until_stopped,
    whole_weights,
)
from wandb_runs import finishing_wandb

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


def tokenize_pairs(
    tokenizer, data: PreferenceData, args: DPODataArguments, max_length: int
) -> tuple[list[dict], list, dict[str, int]]:
    """Pairs that fit, their two TokenizedCompletions each, and how many were dropped by reason."""
    pairs = preference_pairs(data.examples)
    outcomes = tokenize_examples(
        tokenizer,
        [(pair["prompt"], (pair["chosen"], pair["rejected"])) for pair in pairs],
        separators=[pair["separators"] for pair in pairs],
        chat_template=args.chat_template,
        add_eos=args.add_eos,
        max_length=max_length,
    )
    dropped: dict[str, int] = {}
    for outcome in outcomes:
        if isinstance(outcome, str):
            dropped[outcome] = dropped.get(outcome, 0) + 1
    kept = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
    return [pairs[i] for i in kept], [outcomes[i] for i in kept], dropped


def make_dataset(pairs: list[dict], tokenized: list, logps: np.ndarray) -> Dataset:
    """The columns `DPOGammaTrainer` trains on; logps (n_pairs, 2) of the reference, nats."""
    rows = [
        {
            "pair": k, "id": pair["id"], "length": len(chosen.ids) + len(rejected.ids),
            "chosen_ids": chosen.ids, "chosen_start": chosen.start,
            "rejected_ids": rejected.ids, "rejected_start": rejected.start,
            "ref_chosen_logps": float(logps[k, 0]), "ref_rejected_logps": float(logps[k, 1]),
        }
        for k, (pair, (chosen, rejected)) in enumerate(zip(pairs, tokenized))
    ]  # fmt: skip
    return Dataset.from_list(rows)


def prepare_datasets(
    examples: dict[str, PreferenceData],
    data_args: DPODataArguments,
    training_args: DPOArguments,
    reference,
    tokenizer,
) -> tuple[dict[str, Dataset], dict[str, dict]]:
    """Tokenized parts with reference log-likelihoods, "dynamics" among them; texts by id."""
    limits = [x for x in (training_args.max_length, context_length(reference)) if x is not None]
    parts: dict[str, tuple[list, list]] = {}
    texts: dict[str, dict] = {}
    for part, data in examples.items():
        pairs, tokenized, dropped = tokenize_pairs(tokenizer, data, data_args, min(limits))
        n_truncated = sum(chosen.truncated for chosen, _ in tokenized)
        counts = ", ".join(f"{reason}: {n}" for reason, n in dropped.items()) or "none"
        announce(f"{part}: {len(pairs)} pairs, {n_truncated} with a cut prompt, dropped: {counts}")
        if not pairs:
            raise ValueError(f"{part}: no pair fits --max_length {min(limits)}")
        parts[part] = (pairs, tokenized)
        texts |= {pair["id"]: pair for pair in pairs}
    everything = [pair for _, tokenized in parts.values() for pair in tokenized]
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training_args.mixed_precision)
    logps = reference_logps(
        reference,
        everything,
        autocast=precision,
        tokens_per_batch=1024 if training_args.use_cpu else 16384,
    )
    datasets, first = {}, 0
    for part, (pairs, tokenized) in parts.items():
        datasets[part] = make_dataset(pairs, tokenized, logps[first : first + len(pairs)])
        first += len(pairs)
    followed = min(data_args.dynamics_sample_size, len(datasets["train"]))
    if followed:
        chosen = np.random.default_rng(0).choice(len(datasets["train"]), followed, replace=False)
        dynamics = datasets["train"].select(sorted(chosen))
        renumbered = dynamics.remove_columns("pair").add_column("pair", list(range(followed)))
        datasets["dynamics"] = renumbered
    return datasets, texts


# ---------------------------------------------------------------------------- reporting
def print_groups(rows: list[dict]) -> None:
    """Share, loss and reward margin of the four groups at the first, best and last evaluation."""
    best = lowest_loss_step(rows)
    table = Table(title="Ranking dynamics (reference → policy)")
    for column in (
        "part",
        "step",
        "n",
        "accuracy %",
        "flipped to correct",
        "loss",
        *GROUPS.values(),
    ):
        table.add_column(column.replace("_", " "), justify="left" if column == "part" else "right")
    steps = sorted({row["step"] for row in rows})
    for part in ("train", "validation"):
        for step in dict.fromkeys((steps[0], best, steps[-1])):
            chosen = [row for row in rows if (row["part"], row["step"]) == (part, step)]
            if not chosen:
                continue
            sizes = {g: sum(row["group"] == g for row in chosen) for g in GROUPS.values()}
            wrong = sizes["incorrect_to_correct"] + sizes["incorrect_to_incorrect"]
            correct = sizes["correct_to_correct"] + sizes["incorrect_to_correct"]
            table.add_row(
                part,
                f"{step}{' (lowest)' * (step == best)}",
                str(len(chosen)),
                f"{100 * correct / len(chosen):.1f}",
                f"{sizes['incorrect_to_correct']} of {wrong}",
                f"{mean_of(chosen, 'loss'):.4f}",
                *(f"{100 * n / len(chosen):.1f} %" for n in sizes.values()),
            )
    Console(width=None if sys.stdout.isatty() else 150, markup=False).print(table)


def draw_pictures(rows: list[dict], folder: Path) -> dict[str, Path]:
    """Fig. 2, Fig. 3 and accuracy against distance, from the dynamics file."""
    pictures = {
        "dynamics": folder / "ranking_dynamics.png",
        "loss_against_reference": folder / "loss_against_reference.png",
        "accuracy_against_distance": folder / "accuracy_against_distance.png",
    }
    plot_dynamics(rows, pictures["dynamics"])
    plot_loss_against_reference(rows, pictures["loss_against_reference"])
    plot_accuracy_against_distance(rows, pictures["accuracy_against_distance"])
    return pictures


class GroupedPanels(TrainerCallback):
    """Logs the metrics of an evaluation once more under names that wandb shows in sections of
    their own, e.g. `validation groups/…` and `train ranking/…`; Trainer puts all into `eval/`."""

    def __init__(self, run):
        self.run = run

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        names = {"eval_train_": "train ", "eval_": "validation ", "test_": "test "}
        grouped = {}
        for name, value in metrics.items():
            prefix = next((p for p in names if name.startswith(p)), None)
            if prefix and "/" in name:
                grouped[names[prefix] + name.removeprefix(prefix)] = value
        self.run.log({**grouped, "train/global_step": state.global_step})


def log_to_wandb(run, rows: list[dict], texts: dict[str, dict], pictures: dict[str, Path]) -> None:
    """Pictures, and a table of hardest, easiest and flipped pairs at the best step."""
    import wandb

    for name, path in pictures.items():
        run.log({f"figures/{name}": wandb.Image(str(path))})
    best = lowest_loss_step(rows)
    ranked = sorted(
        (
            row
            for row in rows
            if row["step"] == best and None not in (row["chosen"], row["rejected"])
        ),
        key=lambda row: row["chosen"] - row["rejected"],
    )
    kinds = {
        "hardest": ranked[:20],
        "easiest": ranked[-20:],
        "flipped to correct": [r for r in ranked if r["group"] == "incorrect_to_correct"][:50],
        "flipped to incorrect": [r for r in ranked if r["group"] == "correct_to_incorrect"][:50],
    }
    columns = ["kind", "part", "id", "prompt", "chosen", "rejected", "log-ratio (policy)",
               "log-ratio (reference)", "loss"]  # fmt: skip
    table = [
        [kind, row["part"], row["id"],
         *(texts[row["id"]][side] for side in ("prompt", "chosen", "rejected")),
         row["chosen"] - row["rejected"], row["ref_chosen"] - row["ref_rejected"], row["loss"]]
        for kind, chosen in kinds.items()
        for row in chosen
    ]  # fmt: skip
    run.log({"examples/pairs": wandb.Table(columns=columns, data=table)})


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
        datasets, texts = prepare_datasets(examples, data_args, training_args, model, tokenizer)
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
        pictures = draw_pictures(rows, folder)
        print_groups(rows)
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
                log_to_wandb(run, rows, texts, pictures)


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
