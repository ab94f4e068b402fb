"""What `python -m reproduce.run` runs at each scale: models, data and hyperparameters."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ranking.data.hub import ALPACA_FARM
from ranking.plumbing.result_files import read_json_lines
from ranking.scoring.models import BUNDLED_MODEL
from reproduce.settings import PAPER_MODELS, paper_flags, paper_grid, paper_settings

HH, SHP = "Anthropic/hh-rlhf", "stanfordnlp/SHP"
TIES = "ties"  # AlpacaFarm with its tied pairs: votes are then drawn from all of them
ANY = "any model"  # settings of those that have none of their own


def slug(text: str) -> str:
    """A name as part of a file name: the end of a path, without what shells dislike."""
    parts = text.rstrip("/").removesuffix(".gguf").split("/")
    n_parts = 2 if parts[-1].startswith("checkpoint-") else 1
    return "_".join(parts[-n_parts:]).replace(":", "-")


class Training(NamedTuple):
    """How one model is trained by sft.py or dpo.py. batch_size: of all processes together."""

    flags: dict[str, Any]  # and batch_size
    grid: dict[str, list]  # flag or batch_size → what `search` tries


@dataclass(frozen=True)
class Plan:
    """A scale, of which flags of run.py replace some, and where its files go."""

    train: list[str]  # models that are trained
    sft: dict[str, Training]  # by the name of the model, or ANY
    dpo: dict[str, Training]
    gammas: list[float]
    seeds: list[int]
    models: list[str]  # ranked, beside those that were trained
    datasets: list[str]  # to rank
    sample_size: int  # examples of each
    at: str  # the step that stands for a run in tables of a sweep
    sft_per_seed: bool  # else the DPO runs of all seeds start from one SFT model
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
    processes: int = 1  # that it starts, one on each GPU

    def training(self, model: str, script: str) -> Training:
        """How sft.py or dpo.py trains a model, also where it lies in a folder of its name."""
        known = getattr(self, script)
        found = {slug(name): one for name, one in known.items()}.get(slug(model), known.get(ANY))
        if found is None:
            raise ValueError(f"--train {model}: the paper's settings are of {', '.join(known)}")
        return found

    def flags(self, model: str, script: str, **values: Any) -> dict[str, Any]:
        """The flags of that, with other values where given."""
        flags = self.training(model, script).flags | values
        batch, rest = divmod(flags.pop("batch_size"), self.processes)
        if rest or not batch:
            raise ValueError(f"--processes {self.processes} do not divide batches of "
                             f"{batch * self.processes + rest}")  # fmt: skip
        return {**flags, "per_device_train_batch_size": batch}

    def search_file(self, model: str, script: str) -> Path:
        """The points of a search, of which one is chosen."""
        return self.out / "search" / f"{slug(model)}_{script}.jsonl"

    def search_folder(self, model: str) -> Path:
        """Where the runs of its searches are."""
        return self.out / "search" / slug(model)

    def chosen_values(self, model: str, script: str) -> dict[str, Any]:
        """flag (or batch_size) → what the search chose; {} without a search."""
        file = self.search_file(model, script)
        if not file.exists():
            return {}
        (point,) = [row for row in read_json_lines(file) if row["chosen"]]
        return {name: point[name] for name in self.training(model, script).grid}

    def sft_folder(self, model: str, seed: int | None = None) -> Path:
        """Where the SFT model is from which the runs of a seed start; None: of the first one."""
        seed = self.seeds[0] if seed is None else seed
        return self.out / (f"{slug(model)}_sft" + f"_seed{seed}" * self.sft_per_seed)

    def dpo_folder(self, model: str, seed: int) -> Path:
        """Where the runs are that start from one SFT model."""
        return self.out / (f"{slug(model)}_dpo" + f"_seed{seed}" * self.sft_per_seed)

    def runs(self, model: str) -> dict[tuple[float, int], Path]:
        """(γ, seed) → folder."""
        return {
            (g, seed): self.dpo_folder(model, seed) / f"{slug(model)}_dpo_gamma{g:g}_seed{seed}"
            for g, seed in product(self.gammas, self.seeds)
        }

    def chosen_run(self, model: str) -> Path:
        """The run that is ranked beside its reference, and may keep all its checkpoints."""
        return self.runs_of_gamma(model)[self.seeds[0]]

    def runs_of_gamma(self, model: str) -> dict[int, Path]:
        """seed → folder, of the γ of the chosen run."""
        gamma = 1 if 1 in self.gammas else self.gammas[0]
        return {seed: run for (g, seed), run in self.runs(model).items() if g == gamma}

    def trained_on(self, model: str) -> str:
        """The data of its DPO runs."""
        return self.training(model, "dpo").flags["dataset_name"]

    def test_part(self, dataset: str) -> Path:
        """The part of the data of DPO runs that they are tested on, as a file."""
        return self.out / f"{slug(dataset)}_test_part.jsonl"

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


def paper_training(script: str) -> dict[str, Training]:
    return {m: Training(paper_flags(m, script), paper_grid(m, script)) for m in PAPER_MODELS}


OF_DPO = paper_settings(PAPER_MODELS[0], "dpo")
SCALES = {
    "paper": Plan(
        train=PAPER_MODELS,
        sft=paper_training("sft"),
        dpo=paper_training("dpo"),
        gammas=OF_DPO["gammas"]["value"],
        seeds=OF_DPO["seeds"]["value"],
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
        sft_per_seed=True,
        keeps_checkpoints=True,
        win_rate=[
            "--dataset", f"{HH}:train", "--sample-size", "500",
            "--judge-price", "30", "60",  # dollars per million tokens of GPT-4
        ],
        judge="alpaca_eval:alpaca_eval_gpt4",
    ),
    "embedded": Plan(
        train=[BUNDLED_MODEL],
        sft={ANY: Training(
            {
                "dataset_name": "sample", "max_train_samples": 40, "max_length": 512,
                "num_train_epochs": 1, "batch_size": 8, "learning_rate": 1e-5,
                "logging_steps": 1, "report_to": "none", "save_strategy": "no",
            },
            {"learning_rate": [1e-5, 3e-5]},
        )},
        dpo={ANY: Training(
            {
                "dataset_name": "sample", "max_train_samples": 40, "beta": 0.1,
                "loss_type": "alpha_scaling", "max_length": 512, "num_train_epochs": 2,
                "batch_size": 8, "learning_rate": 2e-5, "warmup_steps": 3,
                "optim": "rmsprop", "bf16": "true", "eval_strategy": "epoch",
                "save_strategy": "epoch", "logging_steps": 3, "report_to": "none",
            },
            {"learning_rate": [5e-6, 2e-5]},
        )},
        gammas=[0, 0.5, 1, 1.5, 2],
        seeds=[0, 1],
        models=[BUNDLED_MODEL],
        datasets=["sample"],
        on_disk=[HH, SHP, ALPACA_FARM, TIES],
        sample_size=200,
        at="last",
        sft_per_seed=False,
        keeps_checkpoints=False,
        win_rate=["--max-new-tokens", "64"],
        judge=["--dataset", "sample", "--unless-trained-on", "40", "--n-test-pairs", "40",
               "--max-length", "512", "--learning-rate", "3e-5"],
        beside="gpt2",
    ),
}  # fmt: skip
