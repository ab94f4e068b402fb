"""A reward model for calculate_win_rate.py, trained on pairs that the policies have not seen.

    python reproduce/train_reward_model.py --lm-name-or-path SmolLM2-135M-Instruct \
        --dataset Anthropic/hh-rlhf --unless-trained-on 480 --output-dir results/reward_model

--unless-trained-on N leaves out the N training examples that `dpo.py --max_train_samples=N` draws
from this dataset (with its default --split_seed 0), and what is validated and tested there.
Dialogues are formatted with the tokenizer's chat template where there is one, as the judge does.
Writes the model, its tokenizer and accuracy.json: on pairs kept aside, how often the preferred
completion gets the higher reward.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from calculate_calibration_metrics import run_script
from data_utils import load_training_splits, preference_pairs
from judges import load_reward_model, reward_scores, reward_text
from model_loading import check_model_path, choose_device, load_tokenizer, resolve_model
from result_files import write_text_atomically


def unseen_pairs(args: argparse.Namespace) -> list[dict]:
    """Pairs of the training part that a policy trained on `unless_trained_on` examples never saw,
    neither itself nor another answer to its prompt."""
    parts, _ = load_training_splits(args.dataset, data_dir=args.data_dir)
    examples = parts["train"].examples
    if args.unless_trained_on >= len(examples):
        raise ValueError(f"--unless-trained-on: the training part has {len(examples)} examples")
    taken = np.random.default_rng(0).choice(len(examples), args.unless_trained_on, replace=False)
    seen = {examples[i].prompt_id for i in taken}
    pairs = preference_pairs([e for e in examples if e.prompt_id not in seen])
    separator = parts["train"].separator
    for pair in pairs:
        pair["prompt"] += separator
    return pairs


def conversation(tokenizer, pair: dict) -> dict[str, str]:
    """chosen and rejected as the judge will read them."""
    return {
        side: reward_text(tokenizer, pair["prompt"], pair[side].strip())
        for side in ("chosen", "rejected")
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--lm-name-or-path", required=True, help="language model to start from")
    parser.add_argument("--dataset", default="Anthropic/hh-rlhf", help="as in dpo.py")
    parser.add_argument("--data-dir")
    parser.add_argument(
        "--unless-trained-on", type=int, default=0, metavar="N", help="examples left to dpo.py"
    )
    parser.add_argument("--n-pairs", type=int, help="train on so many pairs (default: all)")
    parser.add_argument("--n-test-pairs", type=int, default=100, help="pairs kept aside")
    parser.add_argument("--max-length", type=int, default=512, help="tokens; longer pairs drop out")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, required=True)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    check_model_path(args.lm_name_or_path)
    if (args.output_dir / "config.json").exists():
        raise ValueError(f"{args.output_dir} holds a model: choose another --output-dir")
    set_seed(args.seed)
    pairs = unseen_pairs(args)
    np.random.default_rng(args.seed).shuffle(pairs)
    test, train = pairs[: args.n_test_pairs], pairs[args.n_test_pairs :]
    # a prompt is on one side only
    tested = {pair["prompt"] for pair in test}
    train = [pair for pair in train if pair["prompt"] not in tested][: args.n_pairs]
    if not train:
        raise ValueError(f"{len(pairs)} pairs leave none to train on after --n-test-pairs")
    print(f"{len(train)} pairs to train on, {len(test)} kept aside", file=sys.stderr)
    tokenizer = load_tokenizer(args.lm_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_model(args.lm_name_or_path), num_labels=1, dtype="float32"
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    device = choose_device(args.device)
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            str(args.output_dir), num_train_epochs=args.epochs, learning_rate=args.learning_rate,
            per_device_train_batch_size=args.batch_size, max_length=args.max_length,
            report_to="none", save_strategy="no", logging_steps=5, use_cpu=device == "cpu",
            bf16=device != "cpu", gradient_checkpointing=False, seed=args.seed, warmup_steps=5,
        ),
        train_dataset=Dataset.from_list([conversation(tokenizer, pair) for pair in train]),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(args.output_dir)

    judge, tokenizer = load_reward_model(str(args.output_dir), device, "float32")
    texts = [text for pair in test for text in conversation(tokenizer, pair).values()]
    rewards = np.zeros(len(texts))
    for index, reward in reward_scores(judge, tokenizer, texts):
        rewards[index] = reward
    accuracy = float(np.mean(rewards[::2] > rewards[1::2])) if test else None
    facts = {"n_train": len(train), "n_test": len(test), "accuracy": accuracy}
    write_text_atomically(args.output_dir / "accuracy.json", json.dumps(facts) + "\n")
    print(f"pairs kept aside ranked as annotators did: {facts}\nmodel     {args.output_dir}")


if __name__ == "__main__":
    run_script(main, parse_args())
