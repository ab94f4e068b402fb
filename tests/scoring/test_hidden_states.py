"""Inner products of summed hidden states, and CHES from them, against float64 brute force."""

import json

import numpy as np
import pytest
import torch
from conftest import (
    DYNAMIC,
    FAMILIES,
    LONGROPE,
    SMALL,
    LimitedMemory,
    assert_documented,
    make_model,
    random_examples,
    score,
)

from calculate_calibration_metrics import main, parse_args
from ranking.metrics.ches import ches
from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import hash_config, read_json_lines
from ranking.scoring.comparable import check_comparable, read_scoring_run
from ranking.scoring.examples_file import ExampleRecord
from ranking.scoring.log_likelihood import PACKED, ScoringPath
from ranking.scoring.run_config import RunConfig
from ranking.scoring.score import token_logps_of_batches
from ranking.scoring.start_up_check import check_fast_path


def brute_force_sum(model, completion) -> np.ndarray:
    """S(y) = Σ_t h_t in float64, one prefix at a time."""
    states = []
    with torch.no_grad():
        for t in range(completion.start, len(completion.ids)):
            output = model(
                torch.tensor([completion.ids[:t]]), use_cache=False, output_hidden_states=True
            )
            states.append(output.hidden_states[-1][0, -1].double().numpy())
    return np.sum(states, axis=0)


def scored_products(model, tokenized, path, tokens=256, **how):
    products: dict = {}
    scores = {}
    for batch in token_logps_of_batches(
        model,
        tokenized,
        path=path,
        tokens_per_batch=tokens,
        batch_size=100,
        products=products,
        **how,
    ):
        scores.update(batch)
    assert products.keys() == scores.keys()
    return products, scores


def assert_equals_brute_force(products, tokenized, sums_of):
    for index, example in enumerate(tokenized):
        sums = [sums_of(completion) for completion in example]
        truth = np.array(sums) @ np.array(sums).T
        np.testing.assert_allclose(
            products[index], truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max()
        )
        for w, l in [(0, 1), (1, 0)]:  # noqa: E741
            found = ches(products[index], [len(c.ids) - c.start for c in example], w, l)
            means = [s / (len(c.ids) - c.start) for s, c in zip(sums, example)]
            for value, states in zip(found, (sums, means)):
                expected = states[w] @ states[l] - states[w] @ states[w]
                scale = states[w] @ states[w]
                assert value == pytest.approx(expected, abs=1e-4 * scale)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "segments"), ("llama", "alone"), ("bloom (ALiBi)", "plain"),
     ("gemma2 (window 8, soft caps)", "segments"), ("gemma2 (window 8, soft caps)", "plain")],
)  # fmt: skip
def test_products_equal_brute_force_on_every_path(family, kind):
    model_type, config, own = FAMILIES[family]
    model = make_model(model_type, config)
    tokenized = random_examples(n=3)
    assert check_fast_path(model, tokenized).kind == own
    products, scores = scored_products(model, tokenized, ScoringPath(kind))
    for index, logps in score(model, tokenized, ScoringPath(kind)).items():
        for a, b in zip(logps, scores[index], strict=True):
            np.testing.assert_array_equal(a, b)  # recording them changes no bit
    model.double()
    assert_equals_brute_force(products, tokenized, lambda c: brute_force_sum(model, c))


@pytest.mark.parametrize(("model_type", "config"), [("phi3", LONGROPE), ("llama", DYNAMIC)])
@pytest.mark.parametrize("kind", ["segments", "plain"])
def test_products_where_completions_have_passes_of_their_own(model_type, config, kind):
    """Frequencies depend on the length, so that a batch is several rows; the truth is of a new
    model for each completion, run once over all of it."""
    tokenized = random_examples(n=6)
    model = make_model(model_type, config)
    check_fast_path(model, tokenized)
    products, _ = scored_products(model, tokenized, ScoringPath(kind), tokens=2000)

    def sums_of(completion):
        fresh = make_model(model_type, config).double()
        with torch.no_grad():
            output = fresh(torch.tensor([completion.ids]), output_hidden_states=True)
        return output.hidden_states[-1][0, completion.start - 1 : -1].sum(0).numpy()

    assert_equals_brute_force(products, tokenized, sums_of)


def test_batches_processes_and_memory_change_no_product():
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=20)
    assert check_fast_path(model, tokenized) == PACKED
    truth, _ = scored_products(model, tokenized, PACKED, tokens=10_000)
    limited = LimitedMemory(model, 150)
    halved, _ = scored_products(limited, tokenized, PACKED, tokens=10_000)
    assert limited.failures > 0
    shared = {}
    for rank in range(3):
        shared |= scored_products(model, tokenized, PACKED, rank=rank, n_processes=3)[0]
    some, _ = scored_products(model, tokenized, PACKED, done=frozenset({0, 7}))
    assert sorted(some) == [k for k in range(20) if k not in (0, 7)]
    for other in (halved, shared, {**truth, **some}):
        assert sorted(other) == list(range(20))
        for index, products in truth.items():
            np.testing.assert_allclose(other[index], products, rtol=1e-4, atol=1e-3)


def test_what_is_not_finite_is_null():
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=2)
    check_fast_path(model, tokenized)
    with torch.no_grad():
        model.model.norm.weight[0] = float("inf")
    products, _ = scored_products(model, tokenized, PACKED)
    assert products == {0: None, 1: None}


def test_a_model_without_a_head_says_so():
    model = make_model("llama", SMALL)
    tokenized = random_examples(n=1)
    model.get_output_embeddings = lambda: None
    with pytest.raises(ValueError, match="--ches: the last hidden states of LlamaForCausalLM"):
        scored_products(model, tokenized, ScoringPath("plain"))
    model = make_model("llama", SMALL)
    model.get_output_embeddings = lambda: torch.nn.Linear(2, 2)  # it is not the one that is called
    with pytest.raises(ValueError, match="does not call its LM head"):
        scored_products(model, tokenized, ScoringPath("plain"))


def test_a_run_records_them_where_asked(tiny_model_directory, tmp_path, capsys):
    """Records and configuration have them; the two runs compare; they do not resume each other."""

    def run(name, *more):
        given = ["--lm-name-or-path", tiny_model_directory, "--output-dir", tmp_path, "--dataset",
                 "sample", "--sample-size", 6, "--output-filename", name, *more]  # fmt: skip
        run_script(main, parse_args([str(word) for word in given]))

    run("with.jsonl", "--ches")
    run("without.jsonl", "--compare", str(tmp_path / "with.examples.jsonl"))
    assert "McNemar" in capsys.readouterr().out
    found, plain = (
        read_json_lines(tmp_path / f"{name}.examples.jsonl") for name in ("with", "without")
    )
    configs = [json.loads((tmp_path / f"{n}.config.json").read_text()) for n in ("with", "without")]
    assert_documented(found, ExampleRecord)
    assert_documented(configs, RunConfig)
    assert configs[0] == {**configs[1], "ches": True}
    hashes = [{record.pop("config_hash") for record in records} for records in (found, plain)]
    assert hashes == [{hash_config(config)} for config in configs]
    for record, other in zip(found, plain, strict=True):
        products = np.array(record.pop("hidden_products"))
        assert products.shape == (len(record["ranks"]),) * 2 and (products == products.T).all()
        assert (np.linalg.eigvalsh(products) > -1e-6 * np.abs(products).max()).all()
        assert record == other
    check_comparable(*(read_scoring_run(str(tmp_path / f"{n}.examples.jsonl"))
                       for n in ("with", "without")))  # fmt: skip

    (tmp_path / "with.jsonl").unlink()  # as a killed run: another setting is refused
    with pytest.raises(SystemExit) as ended:
        run("with.jsonl")
    assert ended.value.code == 2
    lines = (tmp_path / "with.examples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "with.examples.jsonl").write_text("".join(lines[:3]))
    run("with.jsonl", "--ches")
    assert len(read_json_lines(tmp_path / "with.examples.jsonl")) == 6
    for before, after in zip(
        map(json.loads, lines), read_json_lines(tmp_path / "with.examples.jsonl")
    ):
        if before["id"] == after["id"]:
            np.testing.assert_allclose(
                before["hidden_products"], after["hidden_products"], rtol=1e-4
            )
