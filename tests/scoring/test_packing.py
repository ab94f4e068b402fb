"""Rows hold every shared token once and stay within their budget."""

import random

from conftest import random_examples

from ranking.scoring.packing import build_row, deal_batches, pack_rows
from ranking.scoring.tokenization import TokenizedCompletion


def test_rows_compute_every_shared_token_once():
    """Distinct prefixes of the inputs, counted as a set, are exactly the tokens of the row."""
    for seed in range(20):
        completions = [c for example in random_examples(seed) for c in example]
        row = build_row(completions)
        inputs = [c.ids[:-1] for c in completions]
        assert len(row.input_ids) == len(
            {ids[:t] for ids in inputs for t in range(1, len(ids) + 1)}
        )
        for predictors, completion in zip(row.predictors, completions):
            before = [completion.ids[t - 1] for t in range(completion.start, len(completion.ids))]
            assert row.input_ids[predictors].tolist() == before
            assert row.position_ids[predictors].tolist() == list(
                range(completion.start - 1, len(completion.ids) - 1)
            )


def test_packing_keeps_budget_sharers_and_everyone():
    tokenized = random_examples(n=60)
    rows = pack_rows(tokenized, 120, 5)
    assert sorted(i for row in rows for i in row) == list(range(60))
    for row in rows:
        assert len(row) <= 5
        assert (
            len(row) == 1 or len(build_row([c for i in row for c in tokenized[i]]).input_ids) <= 120
        )
    prompt = tuple(range(40, 80))
    pair = [
        [TokenizedCompletion((0, *prompt, 100 + i, 7 + k), 41, False) for k in range(2)]
        for i in range(2)
    ]
    filler = [[TokenizedCompletion((0, 5 + i, *range(300, 320)), 2, False)] * 2 for i in range(8)]
    together = pack_rows([pair[0], *filler, pair[1]], 64, 100)
    assert any({0, 9} <= set(row) for row in together)


def test_pairs_of_one_prompt_are_computed_once():
    """8 pairs of 5 answers to each of 3 prompts, 1.2 rows per prompt: no token is computed twice."""
    rng = random.Random(0)
    tokenized, unique = [], 0
    for number in range(3):
        prompt = (0, number + 2, *(rng.randrange(10, 600) for _ in range(300)))
        answers = [tuple(rng.randrange(10, 600) for _ in range(60)) for _ in range(5)]
        pairs = [(i, j) for i in range(5) for j in range(i)][:8]
        tokenized += [
            [TokenizedCompletion(prompt + answers[k], len(prompt), False) for k in pair]
            for pair in pairs
        ]
        unique += len(prompt) + 5 * 59  # the last token is not an input
    rows = pack_rows(tokenized[::2] + tokenized[1::2], 512, 100)
    order = [*range(0, 24, 2), *range(1, 24, 2)]
    built = [build_row([c for i in row for c in tokenized[order[i]]]) for row in rows]
    # the first token is common to the prompts, and in different rows
    assert sum(len(row.input_ids) for row in built) == unique


def test_small_common_beginnings_do_not_lengthen_rows():
    """Where little is shared (a system prompt), rows keep to their budget."""
    rng = random.Random(0)
    system = tuple(rng.randrange(10, 600) for _ in range(20))
    tokenized = [
        [TokenizedCompletion(system + tuple(rng.randrange(10, 600) for _ in range(80)), 60, False)]
        for _ in range(20)
    ]
    for row in pack_rows(tokenized, 200, 100):
        assert len(build_row([c for i in row for c in tokenized[i]]).input_ids) <= 200


def test_each_example_is_in_the_first_row_with_room_the_largest_first():
    """Of examples that share nothing, row by row."""
    rng = random.Random(0)
    sizes = [rng.randrange(2, 60) for _ in range(300)]
    tokenized = [[TokenizedCompletion((number, *range(1000, 1000 + size)), 1, False)]
                 for number, size in enumerate(sizes)]  # fmt: skip
    rows: list[list[int]] = []
    for number in sorted(range(300), key=lambda number: -sizes[number]):
        there = [row for row in rows if len(row) < 5
                 and sum(sizes[i] for i in row) + sizes[number] <= 100]  # fmt: skip
        there[0].append(number) if there else rows.append([number])
    assert pack_rows(tokenized, 100, 5) == rows


def test_dealt_batches_are_all_there_once_and_balanced():
    rng = random.Random(0)
    n_tokens = [rng.randrange(1, 400) for _ in range(200)]
    batches = [list(range(i, i + 5)) for i in range(0, 200, 5)]
    for n_processes in (1, 2, 3, 7):
        shares = deal_batches(batches, n_tokens, n_processes)
        assert sorted(b for share in shares for b in share) == batches
        loads = [sum(n_tokens[i] for batch in share for i in batch) for share in shares]
        largest = max(sum(n_tokens[i] for i in batch) for batch in batches)
        assert max(loads) - min(loads) <= largest
    assert deal_batches(batches[:1], n_tokens, 3).count([]) == 2  # more processes than batches
