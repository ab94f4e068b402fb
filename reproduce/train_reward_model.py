r"""A reward model for calculate_win_rate.py, trained on pairs that the policies have not seen.

    python reproduce/train_reward_model.py --lm-name-or-path SmolLM2-135M-Instruct \
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
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranking.data.conversions import preference_pairs
from ranking.data.examples import PreferenceExample
from ranking.data.splits import load_training_splits, opening
from ranking.judging.reward_model import load_reward_model, longest_text, reward_ids, reward_scores
from ranking.plumbing.command_line import announce, make_parser, run_script
from ranking.plumbing.outputs import lock_outputs
from ranking.plumbing.result_files import write_json_lines, write_text_atomically
from ranking.scoring.models import check_model_path, choose_device, load_tokenizer, resolve_model
from ranking.scoring.rotary import length_class


def divided_examples(args: argparse.Namespace) -> tuple[list[PreferenceExample], list]:
    """The `unless_trained_on` training examples of dpo.py, the training examples that share neither
    a prompt nor a dialogue's opening with them."""
    parts, _ = load_training_splits(args.dataset, data_dir=args.data_dir)
    examples = parts["train"].examples
    if args.unless_trained_on >= len(examples):
        raise ValueError(f"--unless-trained-on: the training part has {len(examples)} examples")
    taken = np.random.default_rng(0).choice(len(examples), args.unless_trained_on, replace=False)
    policy = [examples[i] for i in sorted(taken)]
    seen = {example.prompt_id for example in policy} | {opening(example) for example in policy}
    unseen = [e for e in examples if e.prompt_id not in seen and opening(e) not in seen]
    return policy, unseen


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


def add_pad_token(tokenizer, model) -> None:
    """A pad token of its own, with an embedding."""
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--lm-name-or-path", required=True, help="language model to start from")
    parser.add_argument("--dataset", default="Anthropic/hh-rlhf", help="as in dpo.py")
    parser.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    parser.add_argument(
        "--unless-trained-on", type=int, default=0, metavar="N", help="examples left to dpo.py"
    )
    parser.add_argument("--n-pairs", type=int, help="train on so many pairs (default: all)")
    parser.add_argument("--n-test-pairs", type=int, default=100, help="pairs kept aside")
    parser.add_argument("--max-length", type=int, default=512, help="tokens; longer pairs drop out")
    parser.add_argument(
        "--epochs", type=float, default=1.0, help="passes over the pairs (default: 1)"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="peak (default: 1e-5)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per step (default: 8)")
    parser.add_argument("--bf16", action="store_true", help="autocast on a CPU too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the pairs and of training (default: 0)"
    )
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="of the model and its records"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    check_model_path(args.lm_name_or_path)
    for name in ("n_pairs", "n_test_pairs", "unless_trained_on"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give 0 or more")
    done, left_out = (args.output_dir / n for n in ("accuracy.json", "policy_examples.jsonl"))
    foreign = (args.output_dir / "config.json").exists() and not left_out.exists()
    if done.exists() or foreign:  # an unfinished run is started over
        raise ValueError(f"{args.output_dir} holds a model: choose another --output-dir")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    lock_outputs(args.output_dir / "reward_model")
    set_seed(args.seed)
    policy, unseen = divided_examples(args)
    test, train = keep_aside(unseen, args.n_test_pairs, args.seed)
    train = train[: args.n_pairs]
    if not train:
        raise ValueError(f"{len(unseen)} examples leave no pair to train on after --n-test-pairs")
    print(f"{len(train)} pairs to train on, {len(test)} kept aside", file=sys.stderr)
    write_json_lines(
        left_out,
        [{"prompt": e.prompt, "ranks": e.ranks,
          "completions": [s + c for s, c in zip(e.separators, e.completions)]}
         for e in policy],
    )  # fmt: skip
    tokenizer = load_tokenizer(args.lm_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_model(args.lm_name_or_path),
        num_labels=1,
        dtype="float32",
        trust_remote_code=False,
        use_safetensors=True,
    )
    device = choose_device(args.device)
    train_rows = tokenized_pairs(tokenizer, train)
    if not train_rows:
        raise ValueError(f"the chat template of {args.lm_name_or_path} refuses every dialogue")
    ends = {ids[-1] for row in train_rows for ids in row.values()}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        add_pad_token(tokenizer, model)  # the score head takes what ends a text for padding
    limit = min(args.max_length, longest_text(model, tokenizer))
    if len({length_class(model, len(ids)) for row in train_rows for ids in row.values()}) > 1:
        announce("training batches give all texts the rotary frequencies of the longest (LongRoPE)")
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            str(args.output_dir), num_train_epochs=args.epochs, learning_rate=args.learning_rate,
            per_device_train_batch_size=args.batch_size, max_length=limit,
            report_to="none", save_strategy="no", logging_steps=5, use_cpu=device == "cpu",
            bf16=args.bf16 or device != "cpu", gradient_checkpointing=False, seed=args.seed,
            warmup_steps=5,
        ),
        train_dataset=Dataset.from_list(train_rows),
        processing_class=tokenizer,
    )  # fmt: skip
    n_train = len(trainer.train_dataset)
    announce(f"dropped, longer than {limit} tokens: {len(train_rows) - n_train} pairs")
    if n_train == 0:
        raise ValueError(f"no pair fits --max-length {limit}")
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(args.output_dir)

    judge, tokenizer = load_reward_model(str(args.output_dir), device, "float32")
    test_rows = tokenized_pairs(tokenizer, test)
    texts = [ids for row in test_rows for ids in row.values()]
    rewards = np.zeros(len(texts))
    for index, reward in reward_scores(judge, tokenizer, texts):
        rewards[index] = reward
    accuracy = float(np.mean(rewards[::2] > rewards[1::2])) if texts else None
    facts = {"n_train": n_train, "n_test": len(test_rows), "accuracy": accuracy}
    write_text_atomically(done, json.dumps(facts) + "\n")
    print(f"pairs kept aside ranked as annotators did: {facts}\nmodel     {args.output_dir}")
    print(f"examples it has not seen: {left_out}")


if __name__ == "__main__":
    run_script(main, parse_args())
