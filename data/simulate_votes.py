"""Simulate the raters of sample_preferences.jsonl: python data/simulate_votes.py

Every completion carries its author's `quality` (0 to 4). Each of four raters draws one utility per
completion, quality + Gumbel noise of scale 0.8, and prefers the higher utility in every pair; so
each pairwise vote follows Bradley-Terry with log-odds Δquality / 0.8. A prompt's four raters are
redrawn until the majorities form an order (possibly with ties), which gives `ranks`. Reads and
rewrites the file in place; the seed is the line number, so a second run changes nothing.
"""

import json
from itertools import combinations
from pathlib import Path

import numpy as np

N_RATERS, NOISE_SCALE = 4, 0.8
FILE = Path(__file__).with_name("sample_preferences.jsonl")


def simulate(
    quality: list[float], rng: np.random.Generator
) -> tuple[list[int], dict[str, list[int]]]:
    """Ranks (1 = best, equal = tied) and votes {"i,j": [v_i, v_j]} of one prompt."""
    n = len(quality)
    while True:
        utilities = np.asarray(quality) + rng.gumbel(scale=NOISE_SCALE, size=(N_RATERS, n))
        votes = {}
        wins = np.zeros((n, n), dtype=int)  # wins[i, j]: raters who prefer i to j
        for i, j in combinations(range(n), 2):
            wins[i, j] = int((utilities[:, i] > utilities[:, j]).sum())
            wins[j, i] = N_RATERS - wins[i, j]
            votes[f"{i},{j}"] = [int(wins[i, j]), int(wins[j, i])]
        majority = wins > wins.T
        ranks = [1 + int(majority[:, i].sum()) for i in range(n)]
        pairs = combinations(range(n), 2)
        if all(np.sign(wins[i, j] - wins[j, i]) == np.sign(ranks[j] - ranks[i]) for i, j in pairs):
            return ranks, votes


def main() -> None:
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["ranks"], row["votes"] = simulate(row["quality"], np.random.default_rng(number))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
