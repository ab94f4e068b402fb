"""What `python -m reproduce.run` runs at each scale: models, data and hyperparameters."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from ranking.data.hub import ALPACA_FARM
from ranking.scoring.models import BUNDLED_MODEL

HH, SHP = "Anthropic/hh-rlhf", "stanfordnlp/SHP"
TIES = "ties"  # AlpacaFarm with its tied pairs: votes are then drawn from all of them


def slug(text: str) -> str:
    """A name as part of a file name: the end of a path, without what shells dislike."""
    parts = text.rstrip("/").removesuffix(".gguf").split("/")
    n_parts = 2 if parts[-1].startswith("checkpoint-") else 1
    return "_".join(parts[-n_parts:]).replace(":", "-")


@dataclass(frozen=True)
class Plan:
    """A scale, of which flags of run.py replace some, and where its files go."""

    train: list[str]  # models that are trained
    sft: dict  # flags of sft.py
    dpo: dict  # flags of dpo.py
    gammas: list[float]
    seeds: list[int]
    models: list[str]  # ranked, beside those that were trained
    datasets: list[str]  # to rank
    sample_size: int  # examples of each
    at: str  # the step that stands for a run in tables of a sweep
    keeps_checkpoints: bool  # whether the chosen run keeps them all, which are then judged
    win_rate: list[str]  # flags of calculate_win_rate.py
    judge: str | list[str]  # a served model, or the flags that train a reward model
    tuned_from: dict[str, str] = field(default_factory=dict)  # published models: tuned → base
    beside: str | None = None  # the model whose published numbers stand beside ours
    on_disk: list[str] = field(default_factory=list)  # ranked too where there is a --data-dir
    out: Path = Path("results")
    data_dir: str | None = None
    allow_pickle: bool = False
    launcher: tuple[str, ...] = ("python",)  # starts sft.py and dpo.py

    def sft_folder(self, model: str) -> Path:
        return self.out / f"{slug(model)}_sft"

    def runs(self, model: str) -> dict[tuple[float, int], Path]:
        """(γ, seed) → folder."""
        folder = self.out / f"{slug(model)}_dpo"
        pairs = product(self.gammas, self.seeds)
        return {(g, seed): folder / f"{folder.name}_gamma{g:g}_seed{seed}" for g, seed in pairs}

    def chosen_run(self, model: str) -> Path:
        """The run that is ranked beside its reference, and may keep all its checkpoints."""
        return self.runs(model)[1 if 1 in self.gammas else self.gammas[0], self.seeds[0]]

    def tuned(self) -> dict[str, str]:
        """tuned → reference: the published pairs, of the models asked for, and DPO from its SFT."""
        published = {t: r for t, r in self.tuned_from.items() if {t, r} <= {*self.models}}
        return published | {str(self.chosen_run(m)): str(self.sft_folder(m)) for m in self.train}

    def ranked(self) -> list[str]:
        ours = [name for pair in self.tuned().items() for name in reversed(pair)]
        return list(dict.fromkeys([*self.models, *ours]))

    def ranking_file(self, model: str, dataset: str) -> Path:
        return self.out / "ranking" / f"{slug(model)}_{slug(dataset)}.jsonl"

    def data_flags(self) -> list[str]:
        return ["--data-dir", self.data_dir] if self.data_dir else []


SCALES = {
    "paper": Plan(
        train=["gpt2", "EleutherAI/pythia-2.8b", "meta-llama/Llama-2-7b-hf"],
        sft={  # learning rate, epochs, batch and steps between evaluations are ours
            "dataset_name": HH, "dataset_text_field": "chosen", "instruction_template": "Human:",
            "response_template": "Assistant:", "per_device_train_batch_size": 8,
            "learning_rate": 1e-5, "num_train_epochs": 1, "eval_strategy": "steps",
            "eval_steps": 500, "save_strategy": "steps", "save_steps": 500,
            "load_best_model_at_end": "true", "save_total_limit": 2, "max_length": 512,
            "bf16": "true",
        },
        dpo={  # the same; 100,500 steps on HH-RLHF: 50 evaluations
            "dataset_name": HH, "beta": 0.1, "loss_type": "alpha_scaling",
            "per_device_train_batch_size": 8, "learning_rate": 1e-6, "num_train_epochs": 5,
            "warmup_steps": 150, "bf16": "true", "max_length": 512, "eval_strategy": "steps",
            "eval_steps": 2000, "save_strategy": "steps", "save_steps": 2000,
            "load_best_model_at_end": "true", "optim": "rmsprop",
        },
        gammas=[0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2],
        seeds=[0, 1, 2],
        models=[
            "gpt2", "EleutherAI/pythia-1.4b", "EleutherAI/pythia-2.8b", "google/gemma-7b",
            "google/gemma-7b-it", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf",
            "mistralai/Mistral-7B-v0.1", "allenai/OLMo-7B-hf", "allenai/tulu-2-7b",
            "allenai/tulu-2-dpo-7b", "lmsys/vicuna-7b-v1.5",
            "alignment-handbook/zephyr-7b-sft-full", "alignment-handbook/zephyr-7b-dpo-full",
        ],
        tuned_from={
            "alignment-handbook/zephyr-7b-dpo-full": "alignment-handbook/zephyr-7b-sft-full",
            "allenai/tulu-2-dpo-7b": "allenai/tulu-2-7b",
            "google/gemma-7b-it": "google/gemma-7b",
            "meta-llama/Llama-2-7b-chat-hf": "meta-llama/Llama-2-7b-hf",
        },
        datasets=[
            f"{HH}:test", f"{HH}:train", f"{SHP}:test", f"{SHP}:train", "openbmb/UltraFeedback",
            "Dahoas/synthetic-instruct-gptj-pairwise",
            "HuggingFaceH4/stack-exchange-preferences", ALPACA_FARM, TIES,
        ],
        sample_size=1000,
        at="lowest-loss",
        keeps_checkpoints=True,
        win_rate=["--dataset", f"{HH}:train", "--sample-size", "500"],
        judge="openai:gpt-4o",
    ),
    "embedded": Plan(
        train=[BUNDLED_MODEL],
        sft={
            "dataset_name": "sample", "max_train_samples": 40, "max_length": 512,
            "num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-5,
            "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        },
        dpo={
            "dataset_name": "sample", "max_train_samples": 40, "beta": 0.1,
            "loss_type": "alpha_scaling", "max_length": 512, "num_train_epochs": 2,
            "per_device_train_batch_size": 8, "learning_rate": 2e-5, "warmup_steps": 3,
            "optim": "rmsprop", "bf16": "true", "eval_strategy": "epoch",
            "save_strategy": "epoch", "logging_steps": 3, "report_to": "none",
        },
        gammas=[0, 0.5, 1, 1.5, 2],
        seeds=[0, 1],
        models=[BUNDLED_MODEL],
        datasets=["sample"],
        on_disk=[HH, SHP, ALPACA_FARM, TIES],
        sample_size=200,
        at="last",
        keeps_checkpoints=False,
        win_rate=["--max-new-tokens", "64"],
        judge=["--dataset", "sample", "--unless-trained-on", "40", "--n-test-pairs", "40",
               "--max-length", "512", "--learning-rate", "3e-5"],
        beside="gpt2",
    ),
}  # fmt: skip
