r"""Largest difference between an examples file and one-at-a-time float64 scoring of it.

    python -m benchmarks.scoring_accuracy --lm-name-or-path SmolLM2-135M-Instruct \
        --examples results/hh.examples.jsonl

Every completion is scored alone, without padding, packing, shared prefixes or slicing, by the
model in float64; then both ranking accuracies are computed from either set of log-likelihoods.
Covers runs without chat template, EOS and truncation.
"""

import argparse
from pathlib import Path

import numpy as np

from ranking.metrics.accuracy import NORMALIZATIONS, ranking_accuracy, record_scores
from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import read_json_lines


def score_alone(model, fast_tokenizer, prompt: str, text: str) -> float:
    """Σ log π(y_t | x, y_<t) of one completion in float64, nats."""
    import torch

    encoding = fast_tokenizer.encode(prompt + text)
    ids = torch.tensor([encoding.ids])
    start = next(t for t, (_, end) in enumerate(encoding.offsets) if end > len(prompt))
    with torch.inference_mode():
        logps = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
    return logps.gather(1, ids[0, start:, None]).sum().item()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--lm-name-or-path", required=True, help="model that was scored")
    parser.add_argument("--examples", required=True, type=Path, help="its NAME.examples.jsonl")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ranking.scoring.loading import load_model, load_tokenizer
    from ranking.scoring.tokenization import exact_offset_tokenizer

    records = read_json_lines(args.examples)
    model = load_model(args.lm_name_or_path, dtype="float32", device="cpu").double()
    fast_tokenizer = exact_offset_tokenizer(load_tokenizer(args.lm_name_or_path))
    differences, agree = [], {key: [0, 0] for key in NORMALIZATIONS}
    for record in tqdm(records, unit="example", mininterval=10):
        truth = {**record, "completions": []}
        for completion in record["completions"]:
            text = completion["separator"] + completion["text"]
            logp = score_alone(model, fast_tokenizer, record["prompt"], text)
            differences.append(abs(logp - completion["logp"]))
            truth["completions"].append({**completion, "logp": logp})
        for key, counts in agree.items():
            counts[0] += ranking_accuracy(record_scores(record, key), record["ranks"])
            counts[1] += ranking_accuracy(record_scores(truth, key), record["ranks"])
    print(f"{len(differences)} completions: largest difference {max(differences):.2g} nats, "
          f"mean {np.mean(differences):.2g}")  # fmt: skip
    for key, (ours, exact) in agree.items():
        print(f"{key}: {ours} of {len(records)} ranked correctly, {exact} in float64")


if __name__ == "__main__":
    run_script(main, parse_args())
