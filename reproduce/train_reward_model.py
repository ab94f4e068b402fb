r"""A reward model for calculate_win_rate.py, trained on pairs that the policies have not seen.

    python -m reproduce.train_reward_model --lm-name-or-path SmolLM2-135M-Instruct \
        --dataset Anthropic/hh-rlhf --unless-trained-on 480 --output-dir results/reward_model

--unless-trained-on N leaves out the N training examples that `dpo.py --max_train_samples=N` draws
from this dataset (with its default --split_seed 0), every dialogue that opens like one of them, and
what is validated and tested there. The N examples are written to policy_examples.jsonl: give that
to calculate_win_rate.py as --dataset, so that the judge has not seen its prompts.
Dialogues become the token ids that the judge reads: by the tokenizer's chat template where it has
one.
Writes the model, its tokenizer and accuracy.json: on pairs kept aside, how often the preferred
completion gets the higher reward. A killed run starts over.
"""

import argparse
import contextlib
import json
import math
import sys
from pathlib import Path
from typing import TypedDict

import numpy as np

from ranking.data.conversions import preference_pairs
from ranking.data.examples import PreferenceExample
from ranking.data.splits import load_training_splits, opening
from ranking.judging.reward_model import load_reward_model, longest_text, reward_ids, reward_scores
from ranking.plumbing.command_line import (
    checked,
    count,
    import_trainer_quietly,
    make_parser,
    positive_int,
    run_script,
)
from ranking.plumbing.outputs import lock_outputs
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import write_json_lines, write_text_atomically
from ranking.scoring.loading import load_tokenizer
from ranking.scoring.models import check_model_path, choose_device, resolve_model
from ranking.scoring.rotary import length_class

ACCURACY, POLICY_EXAMPLES = "accuracy.json", "policy_examples.jsonl"


class Accuracy(TypedDict):
    """accuracy.json, written last: it marks the run as finished."""

    n_train: int  # pairs trained on
    n_test: int  # pairs kept aside
    accuracy: float | None  # share of these whose preferred completion gets the higher reward


def divided_examples(
    dataset: str, data_dir: str | None, n_policy: int
) -> tuple[list[PreferenceExample], list[PreferenceExample]]:
    """The `n_policy` training examples of dpo.py, the training examples that share neither a prompt
    nor a dialogue's opening with them."""
    parts, notes = load_training_splits(dataset, data_dir=data_dir)
    for note in notes:
        announce(f"{dataset}: {note}")
    examples = parts["train"].examples
    if n_policy >= len(examples):
        raise ValueError(f"--unless-trained-on: the training part has {len(examples)} examples")
    taken = np.random.default_rng(0).choice(len(examples), n_policy, replace=False)
    policy = [examples[i] for i in sorted(taken)]
    seen = {example.prompt_id for example in policy} | {opening(example) for example in policy}
    unseen = [e for e in examples if e.prompt_id not in seen and opening(e) not in seen]
    if not unseen:
        raise ValueError(
            f"--unless-trained-on {n_policy}: all other dialogues open like one of these: give less"
        )
    return policy, unseen


def policy_example(example: PreferenceExample) -> dict:
    """A line of policy_examples.jsonl, as calculate_win_rate.py reads it."""
    completions = [s + c for s, c in zip(example.separators, example.completions)]
    return {"prompt": example.prompt, "ranks": example.ranks, "completions": completions}


def keep_aside(examples: list[PreferenceExample], n_pairs: int, seed: int) -> tuple[list, list]:
    """Shuffled pairs: those to test on, and those of dialogues that open none of them."""
    examples = list(examples)
    np.random.default_rng(seed).shuffle(examples)
    openings: set[str] = set()
    test: list[dict] = []
    for example in examples:
        if len(test) >= n_pairs:
            break
        openings.add(opening(example))
        test += preference_pairs([example])
    train = preference_pairs([e for e in examples if opening(e) not in openings])
    return test[:n_pairs], train


def tokenized_pairs(tokenizer, pairs: list[dict]) -> list[dict[str, list[int]]]:
    """chosen_ids and rejected_ids of each pair as the judge will read them, in the columns that
    RewardTrainer takes as they are; pairs that the chat template refuses drop out."""
    rows = []
    for pair in pairs:
        with contextlib.suppress(ValueError):
            rows.append(
                {
                    f"{side}_ids": reward_ids(tokenizer, pair["prompt"], pair[side])
                    for side in ("chosen", "rejected")
                }
            )
    if len(rows) < len(pairs):
        announce(f"dropped, refused by the chat template: {len(pairs) - len(rows)} pairs")
    return rows


def new_reward_model(name: str, rows: list[dict[str, list[int]]], tokenizer):
    """The language model with a new score head, in float32, and with a pad token: one of its own
    where the score head would take what ends a text for padding."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_model(name), num_labels=1, dtype="float32", trust_remote_code=False,
        use_safetensors=True,
    )  # fmt: skip
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ends = {ids[-1] for row in rows for ids in row.values()}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    if len({length_class(model, len(ids)) for row in rows for ids in row.values()}) > 1:
        announce("training batches give all texts the rotary frequencies of the longest (LongRoPE)")
    return model


def train(model, tokenizer, rows: list[dict], folder: Path, max_length: int, **settings) -> int:
    """Train the model and save it in `folder`; the number of pairs that were short enough."""
    import_trainer_quietly()
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            str(folder), report_to="none", save_strategy="no", logging_steps=5, warmup_steps=5,
            gradient_checkpointing=False, max_length=max_length, **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    n_train = len(trainer.train_dataset)
    announce(f"dropped, longer than {max_length} tokens: {len(rows) - n_train} pairs")
    if n_train == 0:
        raise ValueError(f"no pair fits --max-length {max_length}")
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(folder)
    return n_train


def accuracy_on(pairs: list[dict], folder: Path, device: str) -> tuple[int, float | None]:
    """(pairs, share that the saved model ranks as annotators did)."""
    judge, tokenizer = load_reward_model(str(folder), device)
    rows = tokenized_pairs(tokenizer, pairs)
    texts = [ids for row in rows for ids in row.values()]
    found = dict(reward_scores(judge, tokenizer, texts))
    rewards = np.array([found[i] for i in range(len(texts))])
    return len(rows), float(np.mean(rewards[::2] > rewards[1::2])) if texts else None


def claim_folder(folder: Path) -> None:
    """Make it, for this process alone. ValueError where it holds a finished or foreign model; an
    unfinished run is started over."""
    foreign = (folder / "config.json").exists() and not (folder / POLICY_EXAMPLES).exists()
    if (folder / ACCURACY).exists() or foreign:
        raise ValueError(f"{folder} holds a model: choose another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    lock_outputs(folder / "reward_model")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--lm-name-or-path", required=True, help="language model to start from")
    add("--dataset", default="Anthropic/hh-rlhf", help="as in dpo.py")
    add("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    add("--unless-trained-on", type=count, default=0, metavar="N", help="examples left to dpo.py")
    add("--n-pairs", type=positive_int, help="train on so many pairs (default: all)")
    add("--n-test-pairs", type=count, default=100, help="pairs kept aside")
    add("--max-length", type=positive_int, default=512, help="tokens; longer pairs drop out")
    positive = checked(float, lambda x: 0 < x < math.inf, "a positive number")
    add("--epochs", type=positive, default=1.0, help="passes over the pairs (default: 1)")
    add("--learning-rate", type=positive, default=1e-5, help="peak (default: 1e-5)")
    add("--batch-size", type=positive_int, default=8, help="pairs per step (default: 8)")
    add("--bf16", action="store_true", help="autocast on a CPU too")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="cuda: the first GPU that CUDA_VISIBLE_DEVICES names (default: auto)")  # fmt: skip
    add("--seed", default=0, help="of the pairs and of training (default: 0)",
        type=checked(int, lambda n: 0 <= n < 2**32, "a number from 0 to 4294967295"))  # fmt: skip
    add("--output-dir", type=Path, required=True, help="of the model and its records")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from transformers import set_seed

    check_model_path(args.lm_name_or_path)
    claim_folder(args.output_dir)
    device = choose_device(args.device)
    set_seed(args.seed)
    policy, unseen = divided_examples(args.dataset, args.data_dir, args.unless_trained_on)
    test_pairs, train_pairs = keep_aside(unseen, args.n_test_pairs, args.seed)
    train_pairs = train_pairs[: args.n_pairs]
    if not train_pairs:
        raise ValueError(
            f"--n-test-pairs {args.n_test_pairs} keeps all pairs of {len(unseen)} examples aside: "
            "give less, so that some are left to train on"
        )
    print(f"{len(train_pairs)} pairs to train on, {len(test_pairs)} kept aside", file=sys.stderr)
    write_json_lines(args.output_dir / POLICY_EXAMPLES, map(policy_example, policy))

    tokenizer = load_tokenizer(args.lm_name_or_path)
    rows = tokenized_pairs(tokenizer, train_pairs)
    if not rows:
        raise ValueError(f"the chat template of {args.lm_name_or_path} refuses every dialogue")
    model = new_reward_model(args.lm_name_or_path, rows, tokenizer)
    limit = min(args.max_length, longest_text(model, tokenizer))
    n_train = train(
        model, tokenizer, rows, args.output_dir, limit, num_train_epochs=args.epochs,
        learning_rate=args.learning_rate, per_device_train_batch_size=args.batch_size,
        use_cpu=device == "cpu", bf16=args.bf16 or device != "cpu", seed=args.seed,
    )  # fmt: skip
    n_test, accuracy = accuracy_on(test_pairs, args.output_dir, device)
    facts: Accuracy = {"n_train": n_train, "n_test": n_test, "accuracy": accuracy}
    write_text_atomically(args.output_dir / ACCURACY, json.dumps(facts) + "\n")
    print(f"pairs kept aside ranked as annotators did: {facts}\nmodel     {args.output_dir}")
    print(f"examples it has not seen: {args.output_dir / POLICY_EXAMPLES}")


if __name__ == "__main__":
    run_script(main, parse_args())
