"""The text of a training run's model card: README.md of its output directory, and on the hub.

Of values only; `ranking/training/start_and_end.py` takes them from a run and writes the file.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranking.data.hub import is_hub_name, split_name
from ranking.metrics.intervals import wilson_interval
from ranking.metrics.loss_names import OWN_LOSSES
from ranking.reports.labels import without_paths
from ranking.reports.tables import Table, as_markdown, percent, with_interval

CARD_MARK = "<!-- written by the run: it writes this file again, but no other README.md -->"
# titles of cards that peft and TRL write, which are a run's too
LIBRARY_CARDS = ("# Model Card for Model ID", "This model is a fine-tuned version of [")
CARD_FILE = "README.md"
LOSS_OF_EQUATION_4 = (
    "−log σ( β[ log π_θ(y_w|x)/π_θ(y_l|x) − γ log π_ref(y_w|x)/π_ref(y_l|x) ] )"
    " (Eq. 4 of [arXiv:2405.19534](https://arxiv.org/abs/2405.19534))"
)
CARD_SETTINGS = {  # of run_config.json → what the card calls them
    "learning_rate": "learning rate", "lr_scheduler_type": "schedule", "warmup_steps": "warm-up",
    "weight_decay": "weight decay", "max_grad_norm": "gradient norm, at most",
    "max_length": "tokens, at most", "dtype": "weights", "seed": "seed",
}  # fmt: skip
PATH_FLAGS = {  # whose values can be places on this machine
    "model_name_or_path", "ref_model_name_or_path", "dataset_name", "eval_dataset_name", "data_dir",
    "output_dir", "chat_template_file", "chat_template_path", "resume_from_checkpoint", "deepspeed",
    "fsdp_config", "accelerator_config", "logging_dir",
}  # fmt: skip


def is_run_card(text: str) -> bool:
    """Whether a README.md is what a run or its library wrote, not the user's own."""
    return CARD_MARK in text or any(title in text for title in LIBRARY_CARDS)


def shown_command(script: str, given: Mapping[str, Any]) -> str:
    """The command of a run with the flags given to it, wherever they stood; of directories on this
    machine the names only."""
    words = []
    for flag, value in given.items():
        values = value if isinstance(value, list) else [value]
        texts = [x if isinstance(x, str) else json.dumps(x) for x in values if x is not None]
        if flag in PATH_FLAGS:
            texts = [without_paths(text) for text in texts]
        if isinstance(value, list):
            words += [f"--{flag}", *texts]
        else:
            words += [f"--{flag}={text}" for text in texts]
    return f"python {script} {shlex.join(words)}"


# ---------------------------------------------------------------------------- results
def results_table(
    metrics: Mapping[str, float], sizes: Mapping[str, int], names: Mapping[str, str]
) -> Table:
    """Loss and, of pairs, how they are ranked, on each part.

    metrics: by Trainer's names, `eval_loss`, `test_A/ranking/accuracy`, …; sizes, names: pairs or
    texts, and what the table calls it, by how the metrics of a part begin (`eval_`, `test_A/`).
    """
    ranked = any(name.endswith("ranking/accuracy") for name in metrics)
    columns = ["part", "n", "loss"]
    if ranked:
        columns += ["R [95 %], %", "R of the reference, %", "R̃ [95 %], %", "R̃ of the reference, %"]
        columns += ["flipped to correct", "reward accuracy, %"]
    lines = []
    for prefix, n in sizes.items():
        found = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
        if "loss" not in found and "ranking/accuracy" not in found:
            continue
        loss = found.get("loss")
        line = [names[prefix], str(n), "–" if loss is None else f"{loss:.4f}"]
        if ranked:
            share = {name: found.get(f"groups/{name}_share", 0.0)
                     for name in ("incorrect_to_correct", "incorrect_to_incorrect")}  # fmt: skip
            for suffix in ("", "_normalized"):
                accuracy = found[f"ranking/accuracy{suffix}"]
                interval = wilson_interval(round(accuracy * n), n)
                line.append(with_interval(accuracy, interval, 1))
                line.append(percent(found[f"ranking/ref_accuracy{suffix}"]))
            flipped, wrong = share["incorrect_to_correct"], sum(share.values())
            line.append(f"{round(flipped * n)} of {round(wrong * n)}")
            line.append(percent(found.get("rewards/accuracies")))
        lines.append(line)
    return columns, lines


# ---------------------------------------------------------------------------- the run in words
def loss_lines(settings: Mapping[str, Any]) -> list[str]:
    """What is trained, from the settings of a run of dpo.py (which have a β) or sft.py."""
    given = settings.get("loss_type", "nll")
    types = [given] if isinstance(given, str) else list(given)
    weights = settings.get("loss_weights") or [1.0] * len(types)
    terms = " + ".join(
        name if weight == 1 else f"{weight:g} × {name}" for name, weight in zip(types, weights)
    )
    if "beta" not in settings:
        what = "negative log-likelihood of response tokens" if terms == "nll" else terms
        return [f"- loss: {what}"]
    options = {
        "β": (settings["beta"], True),
        "γ": (settings.get("alpha"), set(types) & set(OWN_LOSSES)),
        "target margin": (settings.get("target_margin", 0.0), "alpha_scaling_norm" in types),
        "λ": (settings.get("dpop_lambda", 50.0), "alpha_scaling_dpop" in types),
        "label smoothing": (settings.get("label_smoothing"), settings.get("label_smoothing")),
    }
    shown = ", ".join(
        f"{name} = {value:g}" for name, (value, is_used) in options.items() if is_used
    )
    lines = [f"- loss: `{terms}`, {shown}"]
    if types == ["alpha_scaling"]:
        lines.append(f"  - {LOSS_OF_EQUATION_4}")
    return lines


def training_lines(settings: Mapping[str, Any], step: Mapping[str, Any]) -> list[str]:
    """Settings that matter, and which step the saved model is."""
    accumulation = settings.get("gradient_accumulation_steps", 1)
    processes = settings.get("n_processes", 1)
    device = settings["per_device_train_batch_size"]
    batch = device * accumulation * processes
    saved = f"step {step['step']} of {step['max_steps']}"
    if step["chosen_by"] == "last":
        saved += ", the last"
    else:
        saved += f", the best by `{step['chosen_by']}` ({step['value']:.4f})"
    lines = [
        f"- saved model: {saved}",
        f"- batch: {batch} ({device} × {accumulation} accumulated × {processes} "
        f"process{'es' * (processes != 1)})",
        f"- optimizer: {settings['optim']}",
    ]
    if settings.get("max_steps", -1) <= 0:
        lines.append(f"- epochs: {settings['num_train_epochs']:g}")
    for name, title in CARD_SETTINGS.items():
        if settings.get(name) is not None:
            lines.append(f"- {title}: {settings[name]}")
    precision = [name for name in ("bf16", "fp16") if settings.get(name)]
    lines.append(f"- arithmetic: {', '.join(precision) or 'the weights’'}")
    if settings.get("use_peft"):
        lines.append(f"- LoRA: r = {settings['lora_r']}, α = {settings['lora_alpha']}")
    return lines


def model_text(name: str, fingerprint: str) -> str:
    """A model with its commit, and a link, or its fingerprint."""
    found = re.match("commit (\\w+)", fingerprint)
    if found:
        return f"[{name}](https://huggingface.co/{name}) at commit `{found[1][:12]}`"
    return f"{without_paths(name)} (fingerprint `{fingerprint}`)"


def data_text(settings: Mapping[str, Any], commit: str | None, n_trained: int) -> str:
    """The datasets, at the hub's commit where it is known, and the fingerprints of their parts."""
    names = settings["dataset_name"]
    names = [names] if isinstance(names, str) else names
    shown = " and ".join(map(without_paths, names)) + (
        f" at commit `{commit[:12]}`" if commit else ""
    )
    prints = ", ".join(f"{part} `{x}`" for part, x in settings["data_fingerprints"].items())
    what = "pairs" if "beta" in settings else "texts"
    return f"{shown}; {n_trained} {what} trained on; fingerprints: {prints}"


def model_card(
    title: str,
    script: str,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    step: Mapping[str, Any],
    results: Table,
    *,
    data_commit: str | None,
    pictures: Sequence[str],
    versions: Mapping[str, str],
    n_trained: int,
    own_base: bool = False,
) -> str:
    """The card's text, with what the hub reads at its head.

    given: flags, as --save_config writes them. settings: what `run_description` says of the run.
    step: `SavedStep`. data_commit: of a hub dataset. pictures: files beside the card. n_trained:
    pairs or texts. own_base: whether the model to tune was an adapter, which is merged in base/
    beside the card.
    """
    from huggingface_hub import ModelCardData

    data = settings["dataset_name"]
    datasets = [split_name(n)[0] for n in ([data] if isinstance(data, str) else data)]
    tuning = "dpo" if "beta" in settings else "sft"
    base = settings["model_name_or_path"]
    is_of_hub = settings["model_fingerprints"][0].startswith("commit ")
    head = ModelCardData(
        base_model=base if is_of_hub else None,
        datasets=[n for n in datasets if is_hub_name(n) and not Path(n).exists()] or None,
        library_name="peft" if settings.get("use_peft") else "transformers",
        pipeline_tag="text-generation",
        tags=[tuning, "trl", "ranking-accuracy", *(["lora"] if settings.get("use_peft") else [])],
    )
    fingerprints = settings["model_fingerprints"]
    lines = ["---", head.to_yaml(), "---", CARD_MARK, "", f"# {title}", ""]
    lines += [f"- base model: {model_text(base, fingerprints[0])}"]
    if own_base:
        lines[-1] += ", itself an adapter: merged into its base it is in `base/` of this "
        lines[-1] += "directory, on which this adapter is to be loaded"
    elif settings.get("use_peft") and not is_of_hub:
        lines[-1] += ", on which this adapter is to be loaded"
    if tuning == "dpo":
        reference = settings.get("ref_model_name_or_path") or base
        same = "the base model" if reference == base else model_text(reference, fingerprints[1])
        lines.append(f"- reference: {same}")
    lines.append(f"- data: {data_text(settings, data_commit, n_trained)}")
    lines += [*loss_lines(settings), "", "## Results", "", as_markdown(results), ""]
    if tuning == "dpo":
        lines += [
            "R is the share of pairs whose preferred completion is at least as likely as the other "
            "(log-likelihoods summed over tokens); R̃ compares means per token. *Flipped*: ranked "
            "wrongly by the reference, rightly by this model.", "",
        ]  # fmt: skip
    lines += [f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in pictures]
    lines += [""] * bool(pictures)
    lines += ["## Training", "", *training_lines(settings, step)]
    lines.append("- versions: " + ", ".join(f"{name} {v}" for name, v in versions.items()))
    lines += ["", "```bash", shown_command(script, given), "```", ""]
    return "\n".join(lines)
