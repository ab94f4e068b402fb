"""Scoring, SFT and DPO as this repository does them, and TRL's trainers beside them."""

import numpy as np


def row_size(device: str) -> int:
    """Tokens of a row, as the scripts choose them."""
    return 1024 if device == "cpu" else 16384


def score(model, tokenized: list, tokens_per_batch: int, batch_size: int = 128) -> list:
    """log π(y|x), nats, per example and completion; start-up check included."""
    from ranking.scoring.score import score_examples
    from ranking.scoring.start_up_check import check_fast_path

    path = check_fast_path(model, tokenized)
    if not path.is_packed:
        raise ValueError(f"shared prefixes are off: {path}")
    how = {"path": path, "tokens_per_batch": tokens_per_batch, "batch_size": batch_size}
    scores = dict(item for batch in score_examples(model, tokenized, **how) for item in batch)
    return [scores[i] for i in range(len(tokenized))]


def n_computed(tokenized: list, tokens_per_batch: int) -> int:
    """Tokens that the rows of these examples hold."""
    from ranking.scoring.packing import build_row, pack_rows

    rows = pack_rows(tokenized, tokens_per_batch, 128)
    return sum(len(build_row([c for i in row for c in tokenized[i]]).input_ids) for row in rows)


def differences(scores: list[list[float]], expected: list[list[float]]) -> np.ndarray:
    """|difference| of every completion's log-likelihood, nats: (n_completions,)."""
    return np.concatenate(
        [np.abs(np.subtract(a, b)) for a, b in zip(scores, expected, strict=True)]
    )


def n_reordered(scores: list[list[float]], expected: list[list[float]]) -> int:
    """Examples whose completions are ranked differently."""
    orders = [[np.argsort(x, kind="stable").tolist() for x in side] for side in (scores, expected)]
    return sum(a != b for a, b in zip(*orders))


def first_pairs(dataset: str, data_dir: str | None, n: int):
    """The first training pairs, in the columns of DPO trainers."""
    from datasets import Dataset

    from ranking.data.conversions import preference_pairs
    from ranking.data.splits import load_training_splits

    parts, _ = load_training_splits(dataset, data_dir=data_dir)
    pairs = preference_pairs(parts["train"].examples)[:n]
    keys = ("prompt", "chosen", "rejected")
    return Dataset.from_list([{key: pair[key] for key in keys} for pair in pairs])


def first_texts(dataset: str, data_dir: str | None, tokenizer, max_length: int, counts: list[int]):
    """The first texts of SFT as token ids and labels: a dataset of each of `counts`, in a row."""
    from datasets import Dataset

    from ranking.data.conversions import sft_texts
    from ranking.data.splits import load_training_splits
    from ranking.training.texts import tokenize_texts

    parts, _ = load_training_splits(dataset, data_dir=data_dir)
    texts = sft_texts(parts["train"].examples)[: 2 * sum(counts)]  # some have nothing to train on
    rows, _ = tokenize_texts(tokenizer, texts, None, max_length, False)
    if len(rows) < sum(counts):
        raise ValueError(f"{dataset} has {len(rows)} texts to train on, {sum(counts)} are needed")
    ends = np.cumsum(counts).tolist()
    return [Dataset.from_list(rows[end - n : end]) for n, end in zip(counts, ends)]


def sft_trainer(model, tokenizer, texts: list, folder: str, by_trl: bool = False, **settings):
    """SFT for one epoch in the order of the data, a line of the log per step, by this repository's
    trainer or TRL's. texts: of training and evaluation; settings: SFTConfig's, and for ours
    tokens_per_batch."""
    from trl import SFTConfig, SFTTrainer

    from ranking.training.sft_trainer import PackedSFTTrainer

    tokens_per_batch = settings.pop("tokens_per_batch", None)
    config = SFTConfig(
        folder,
        **{
            "num_train_epochs": 1, "logging_steps": 1, "learning_rate": 1e-5, "report_to": "none",
            "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
            "train_sampling_strategy": "sequential", "max_length": None,
            "use_cpu": model.device.type == "cpu", **settings,
        },
    )  # fmt: skip
    config.tokens_per_batch = tokens_per_batch
    train, evaluated = texts
    given = {
        "model": model, "args": config, "train_dataset": train, "eval_dataset": evaluated,
        "processing_class": tokenizer,
    }  # fmt: skip
    return SFTTrainer(**given) if by_trl else PackedSFTTrainer(**given)


def dpo_trainer(models: list, tokenizer, pairs, folder: str, by_trl: bool = False, **settings):
    """DPO (γ = 1) for one epoch, a line of the log per step, by this repository's trainer or TRL's.

    models: the policy and its reference, on their device.
    """
    from trl import DPOConfig, DPOTrainer

    from dpo_gamma_trainer import DPOGammaConfig, DPOGammaTrainer

    settings = {
        "beta": 0.1, "max_length": 512, "num_train_epochs": 1, "logging_steps": 1,
        "optim": "rmsprop", "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": models[0].device.type == "cpu", **settings,
    }  # fmt: skip
    config = (
        DPOConfig(folder, loss_type="sigmoid", **settings)
        if by_trl
        else DPOGammaConfig(folder, loss_type="alpha_scaling", alpha=1.0, **settings)
    )
    return (DPOTrainer if by_trl else DPOGammaTrainer)(
        model=models[0],
        ref_model=models[1],
        args=config,
        train_dataset=pairs,
        processing_class=tokenizer,
    )
