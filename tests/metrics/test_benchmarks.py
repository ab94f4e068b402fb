"""Protocols of benchmarks against hand-worked values and their definitions in other words."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_rows import scored_record

from ranking.metrics.benchmarks import summarize_benchmarks
from ranking.metrics.protocols import REWARD_BENCH, benchmark_of


def record(number, logps, ranks, dataset="d", split=None, prompt=None, **groups):
    made = scored_record(number, logps, ranks, prompt or f"prompt {number}", dataset)
    return {**made, "split": split, "groups": groups}


def row_of(*datasets, **columns):
    """The row of the only benchmark (summed log-likelihoods)."""
    rows = summarize_benchmarks([(records, columns) for records in datasets], 0)
    (row,) = [r for r in rows if r["calib_property"] == "ranking_non-length-normalized"]
    return row


def values_of(row):
    return {part["part"]: part["value"] for part in row["parts"]}


RIGHT, WRONG, EQUAL = [-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0]


def test_reward_bench_sections_are_weighted_and_ties_are_wrong():
    """Chat: easy 1 of 2 (weight 100), mt-bench-med 1 of 1 (40). Reasoning: math-prm 0 (984) and
    hep-go 1 (164). An equal pair is wrong."""
    pairs = [("alpacaeval-easy", RIGHT), ("alpacaeval-easy", EQUAL), ("mt-bench-med", RIGHT),
             ("math-prm", WRONG), ("hep-go", RIGHT)]  # fmt: skip
    records = [record(k, logps, [1, 2], subset=s) for k, (s, logps) in enumerate(pairs)]
    row = row_of(records)
    values = values_of(row)
    assert (row["benchmark"], row["n"], row["chance"]) == ("RewardBench", 5, 0.5)
    assert values["alpacaeval-easy"] == 0.5
    chat, reasoning = (0.5 * 100 + 40) / 140, 164 / (984 + 164)
    assert values["Chat"] == pytest.approx(chat)
    assert values["Reasoning"] == pytest.approx(reasoning)
    assert row["distance_metric_value_mean"] == pytest.approx((chat + reasoning) / 2)
    assert row["missing"] == ["Chat Hard", "Safety"]
    assert [part["wilson_95"][0] is None for part in row["parts"][-3:]] == [True] * 3


def test_reward_bench_weights_are_numbers_of_examples():
    """2985 examples, of which 447 of math-prm weigh as much as the 984 of code."""
    weights = [w for section in REWARD_BENCH.values() for w in section.values()]
    assert len(weights) == 23 and sum(weights) == 2985 - 447 + 984
    assert sum(w for s, w in REWARD_BENCH["Reasoning"].items() if s != "math-prm") == 984


def test_prior_sets_are_half_a_section():
    core = [record(0, RIGHT, [1, 2], subset="alpacaeval-easy", dataset="allenai/reward-bench")]
    prior = [
        record(k, logps, [1, 2], split=split, dataset="allenai/preference-test-sets")
        for k, (split, logps) in enumerate((("shp", WRONG), ("summarize", RIGHT)), start=1)
    ]
    row = row_of(core, prior, dataset_name="x")
    assert row["distance_metric_value_mean"] == pytest.approx((1 + 0.5 * 0.5) / 1.5)
    assert row["datasets"] == ["allenai/preference-test-sets", "allenai/reward-bench"]
    assert row["n_left_out"] == 0


def test_reward_bench_2_is_best_of_four():
    records = [
        record(0, [-1, -2, -3, -4], [1, 2, 2, 2], subset="Math"),
        record(1, [-2, -1, -3, -4], [1, 2, 2, 2], subset="Math"),
        record(
            3, [-1, -2, -3, -4], [1, 1, 2, 2], subset="Focus"
        ),  # two right answers: another form
    ]
    row = row_of(records)
    assert values_of(row) == {"Math": 0.5, "mean": 0.5}
    assert (row["n"], row["n_left_out"]) == (2, 1)
    assert row["chance"] == pytest.approx(1 / 4)
    assert row["missing"] == ["Factuality", "Precise IF", "Safety", "Focus", "Ties"]


@pytest.mark.parametrize(
    "logps, share",
    [
        ([-1, -1, -3, -4], 1 / 2),
        ([-1, -1, -1, -1], 1 / 4),
        ([-1, -2, -2, -2], 1),
        ([-2, -1, -1, -3], 0),
        ([-2, -1, -2, -2], 0),
        ([-1, -1, -3, None], 0),
    ],
)
def test_best_of_four_is_shared_by_equal_scores(logps, share):
    """1/m of m equal best ones, by hand; a share is no count of right examples and has no Wilson
    interval."""
    best = [record(k, RIGHT + [-9, -9], [1, 2, 2, 2], subset="Focus") for k in range(3)]
    row = row_of([*best, record(3, logps, [1, 2, 2, 2], subset="Focus")])
    assert row["distance_metric_value_mean"] == pytest.approx((3 + share) / 4)
    assert (row["parts"][0]["wilson_95"] == (None, None)) is (share not in (0, 1))


def ties_by_definition(pairs):
    """Of (ref right, ref wrong, tied right, tied wrong) scores, as the card describes it."""
    accuracy_ref = np.mean([min(a) > max(b) for a, b, _, _ in pairs])
    accuracy_tied = np.mean([min(c) > max(d) for _, _, c, d in pairs])
    margin, hard, ratio = [], [], []
    for a, b, c, d in pairs:
        gap_ref, gap_tied, spread = min(a) - max(b), min(c) - max(d), max(c) - min(c)
        margin.append(gap_tied > spread)
        hard.append(gap_tied > spread and gap_ref > spread)
        ratio.append(math.tanh(min(gap_ref, gap_tied) / spread - 1))
    return (0.3 * accuracy_tied + 0.3 * accuracy_ref + 0.2 * np.mean(margin) + 0.2 * np.mean(hard)
            + 0.01 * np.mean(ratio))  # fmt: skip


def ties_records(pairs):
    """The two questions of each pair have one prompt_id."""
    records = []
    for k, (a, b, c, d) in enumerate(pairs):
        for right, wrong in ((a, b), (c, d)):
            ranks = [1] * len(right) + [2] * len(wrong)
            made = record(len(records), [*right, *wrong], ranks, "allenai/reward-bench-2",
                          prompt=str(k), subset="Ties")  # fmt: skip
            records.append(made)
    return records


def test_ties_of_reward_bench_2():
    """First: gaps 3 and 4, spread 1: all right. Second: gap 1 below the spread 2. Third: wrong."""
    pairs = [
        ([-1.0], [-4.0, -5.0], [-1.0, -2.0], [-6.0, -7.0, -8.0]),
        ([-1.0], [-9.0, -9.5], [-1.0, -3.0], [-4.0]),
        ([-5.0], [-4.0, -5.0], [-1.0, -3.0], [-2.0]),
    ]
    row = row_of(ties_records(pairs))
    by_hand = 0.3 * 2 / 3 + 0.3 * 2 / 3 + 0.2 / 3 + 0.2 / 3
    by_hand += 0.01 * (math.tanh(3 - 1) + math.tanh(0.5 - 1) + math.tanh(-0.5 - 1)) / 3
    assert values_of(row)["Ties"] == pytest.approx(by_hand)
    assert row["chance"] is None and row["parts"][0]["n"] == 6
    assert values_of(row)["Ties"] == pytest.approx(ties_by_definition(pairs))


SCORE = st.floats(-50, 0).map(lambda x: round(x, 2))


def test_ties_whose_right_answers_score_alike():
    """A spread of 0: the code's gap / spread is ±∞, whose tanh is ±1, and NaN, its 0, for no gap."""
    for wrong, ratio, right in ((-4.0, 1, 1), (-1.0, -1, 0), (-2.0, 0, 0)):
        row = row_of(ties_records([([-2.0], [-9.0], [-2.0, -2.0], [wrong])]))
        by_hand = 0.3 + (0.3 + 0.2 + 0.2) * right + 0.01 * ratio
        assert values_of(row)["Ties"] == pytest.approx(by_hand)


def answers(at_least, at_most):
    return st.lists(SCORE, min_size=at_least, max_size=at_most, unique=True)


@given(st.lists(st.tuples(answers(1, 1), answers(1, 4), answers(2, 36), answers(1, 4)),
                min_size=1, max_size=5))  # fmt: skip
def test_ties_agree_with_the_definition(pairs):
    assert values_of(row_of(ties_records(pairs)))["Ties"] == pytest.approx(
        ties_by_definition(pairs)
    )


def test_ties_without_their_pairs_have_no_score():
    """The margins compare two questions."""
    lone = record(0, [-1.0, -2.0], [1, 2], subset="Ties", dataset="allenai/reward-bench-2")
    assert summarize_benchmarks([([lone], {})], 0) == []
    row = row_of([lone, record(1, [-1, -2, -3, -4], [1, 2, 2, 2], subset="Math")])
    assert "Ties" in row["missing"] and values_of(row)["mean"] == 1


def test_infinite_log_likelihoods_are_wrong():
    pairs = [([-1.0], [None, -5.0], [-1.0, None], [-6.0])]
    assert values_of(row_of(ties_records(pairs)))["Ties"] == 0


@given(st.lists(st.tuples(st.sampled_from(["chat", "code", "safety-refuse", "safety-response"]),
                          st.lists(SCORE, min_size=6, max_size=6)), min_size=1, max_size=12))  # fmt: skip
def test_rm_bench_is_a_matrix(examples):
    """Rows: style of the right answer; hard: above the diagonal. Means over domains."""
    row = row_of([record(k, s, [1] * 3 + [2] * 3, domain=d) for k, (d, s) in enumerate(examples)])
    matrices = {}
    for domain, scores in examples:
        right, wrong = np.array(scores[:3]), np.array(scores[3:])
        matrices.setdefault(domain[:4], []).append(right[:, None] > wrong[None, :])
    means = {domain: np.mean(found, axis=0) for domain, found in matrices.items()}
    matrix = np.mean(list(means.values()), axis=0)
    values = values_of(row)
    assert np.array(row["matrix"]) == pytest.approx(matrix)
    assert values["hard"] == pytest.approx(matrix[np.triu_indices(3, 1)].mean())
    assert values["normal"] == pytest.approx(matrix.diagonal().mean())
    assert values["easy"] == pytest.approx(matrix[np.tril_indices(3, -1)].mean())
    assert values["mean"] == pytest.approx(matrix.mean())
    for domain, mean in means.items():
        name = "safety" if domain == "safe" else domain
        assert values[name] == pytest.approx(mean.mean())
    assert row["chance"] == 0.5 and row["n"] == len(examples)


def test_rm_bench_richer_style_is_easy():
    """A model that scores by style alone has easy 1, normal 0, hard 0."""
    row = row_of([record(0, [-3, -2, -1] * 2, [1] * 3 + [2] * 3, domain="math")])
    assert {k: values_of(row)[k] for k in ("easy", "normal", "hard")} == {
        "easy": 1, "normal": 0, "hard": 0}  # fmt: skip
    assert values_of(row)["mean"] == pytest.approx(1 / 3)


def test_rm_bench_files_are_one_benchmark():
    """Domains by the names of its files; one line for the run."""
    ranks = [1] * 3 + [2] * 3
    chat = [record(0, [-1] * 3 + [-2] * 3, ranks, dataset="x/RM-Bench/chat_filtered.jsonl.gz")]
    code = [record(1, [-2] * 3 + [-1] * 3, ranks, dataset="x/RM-Bench/code_filtered.jsonl.gz",
                   language="go")]  # fmt: skip
    row = row_of(chat, code)
    assert values_of(row)["chat"] == 1 and values_of(row)["code"] == 0
    assert len(row["datasets"]) == 2 and row["missing"] == ["math", "safety"]


def test_columns_of_several_datasets():
    """What differs is null, drops add up; two that share examples are two benchmarks."""
    one = [record(0, RIGHT, [1, 2], subset="hep-go")]
    two = [record(1, RIGHT, [1, 2], subset="hep-js")]
    columns = [{"model": "m", "dataset_split": s, "dropped": {"too long": n}} for s, n in
               (("a", 1), ("b", 2))]  # fmt: skip
    row = summarize_benchmarks(list(zip((one, two), columns)), 0)[0]
    assert (row["model"], row["dataset_split"], row["dropped"]) == ("m", None, {"too long": 3})
    rows = summarize_benchmarks(list(zip((one, [*one, *two]), columns)), 0)
    assert [(r["dataset_split"], r["n"]) for r in rows] == [("a", 1)] * 2 + [("b", 2)] * 2


def test_judge_bench_sources():
    sources = ["mmlu-pro-math", "mmlu-pro-law", "livebench-math", "livecodebench"]
    scores = [RIGHT, WRONG, RIGHT, RIGHT]
    records = [
        record(k, s, [1, 2], dataset="ScalerLab/JudgeBench", source=source)
        for k, (source, s) in enumerate(zip(sources, scores))
    ]
    row = row_of(records)
    assert values_of(row) == {"knowledge": 0.5, "math": 1, "coding": 1, "all": 0.75}
    assert row["missing"] == ["reasoning"]


def test_ppe_leaves_ties_out_and_reports_every_group():
    name = "lmarena-ai/PPE-Human-Preference-V1"
    records = [
        record(0, RIGHT, [1, 2], dataset=name, language="English", hard_prompt="True"),
        record(1, WRONG, [1, 2], dataset=name, language="English", hard_prompt="False"),
        record(2, RIGHT, [1, 1], dataset=name, language="Czech", hard_prompt="True"),
    ]
    row = row_of(records)
    assert values_of(row) == {"hard_prompt: False": 0, "hard_prompt: True": 1,
                              "language: English": 0.5, "all": 0.5}  # fmt: skip
    assert (row["n"], row["n_left_out"]) == (2, 1)


def test_llmbar_sets():
    """Natural 1, Neighbor 0, Manual 1/2: Adversarial is 1/4, the mean 1/2."""
    at = "data/princeton-nlp/LLMBar/"
    natural = [record(0, RIGHT, [1, 2], dataset=at + "Natural/dataset.json")]
    neighbor = [record(1, WRONG, [1, 2], dataset=at + "Adversarial_Neighbor/test.jsonl")]
    manual = [record(k, s, [1, 2], dataset="princeton-nlp/LLMBar", split="Adversarial_Manual")
              for k, s in ((2, RIGHT), (3, WRONG))]  # fmt: skip
    row = row_of(natural, neighbor, manual)
    assert values_of(row) == {"Natural": 1, "Neighbor": 0, "Manual": 0.5, "Adversarial": 0.25,
                              "mean": 0.5}  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "groups", "dataset", "benchmark"),
    [
        ([1, 2], {"subset": "hep-go"}, "mine.jsonl", "RewardBench"),
        ([1, 2], {"subset": "Math"}, "mine.jsonl", None),
        ([1, 2, 2, 2], {"subset": "Math"}, "mine.jsonl", "RewardBench 2"),
        ([1, 2, 3, 4], {"subset": "Math"}, "mine.jsonl", None),
        ([1, 1, 1, 2, 2, 2], {"domain": "math"}, "mine.jsonl", "RM-Bench"),
        ([1, 1, 1, 2, 2, 2], {}, "mine.jsonl", None),
        ([1, 2], {}, "someone/Reward-Bench-2", "RewardBench 2"),
        ([1, 2], {}, "someone/not-judgebench", None),
    ],
)
def test_benchmarks_are_recognized(ranks, groups, dataset, benchmark):
    made = record(0, [-1.0] * len(ranks), ranks, dataset, **groups)
    assert benchmark_of(made) == benchmark


def test_intervals_are_of_prompts():
    """200 pairs of two subsets, half right: the bootstrap of the mean is near ±1.96 · 0.5 / √200."""
    records = [
        record(k, RIGHT if k % 2 else WRONG, [1, 2], subset="hep-go" if k % 4 < 2 else "hep-js")
        for k in range(200)
    ]
    low, high = row_of(records)["bootstrap_95"]
    half = 1.96 * 0.5 / math.sqrt(200)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.015)
