"""Reference log-likelihoods from the data: taken where they are right, scored where they cannot be,
and refused, with what to do, where they are wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SMALL, make_model
from datasets import load_dataset
from dialogue_rows import CHATML, VOCABULARY, chat_tokenizer, dialogues, explicit
from preference_rows import write
from test_dpo_gamma_trainer import losses_and_weights, tiny_model, trainer
from trl import DPOTrainer

import calculate_calibration_metrics
import calculate_upper_bound_rlhf
from ranking.data.examples import GivenScores
from ranking.data.preferences import load_preferences
from ranking.plumbing.outputs import release_outputs
from ranking.scoring.chat import ChatOptions
from ranking.scoring.examples_file import load_examples
from ranking.training import reference_cache
from ranking.training.given_reference import check_log_likelihoods, pairs_to_check
from ranking.training.pairs import REFERENCE_COLUMNS, prepare_pairs
from ranking.training.splits import load_parts

CONFIG = {**SMALL, "max_position_embeddings": 2048}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model():
    return make_model("llama", CONFIG)


def prepared(model, tokenizer, *names, add_eos=None, max_length=2048):
    """What dpo.py trains on: prompt → row, in one dictionary for each part."""
    datasets, texts = prepare_pairs(
        load_parts(names), model, tokenizer, chat=ChatOptions(), add_eos=add_eos,
        max_length=max_length, n_followed=4, mixed_precision="no",
    )  # fmt: skip
    return {
        part: {texts[row["id"]]["prompt"]: row for row in data} for part, data in datasets.items()
    }


def text_rows(n=40, first=0):
    return [
        {"prompt": f"Question {k}: how much is {k} and {k}?", "chosen": f"It is {2 * k}, I say.",
         "rejected": f"That is {k} or so"}
        for k in range(first, first + n)
    ]  # fmt: skip


def with_scores(rows, parts, **more):
    """The rows with the log-likelihoods and numbers of tokens of what was trained on, written so
    that nothing has to be put between prompt and completion."""
    known = {prompt: row for part in ("train", "validation", "test") for prompt, row in parts[part].items()}  # fmt: skip
    found = []
    for row in rows:
        own = known[row["prompt"]]
        counts = {
            f"n_{side}": len(own[f"{side}_ids"]) - own[f"{side}_start"]
            for side in ("chosen", "rejected")
        }
        joined = {side: " " + row[side] for side in ("chosen", "rejected")}
        found.append({**row, **joined, **counts, **{c: own[c] for c in REFERENCE_COLUMNS}, **more})
    return found


def test_taken_as_they_are_and_a_few_scored_again(model, tokenizer, tmp_path, counted, capsys):
    plain = write(tmp_path / "plain.jsonl", text_rows())
    before = prepared(model, tokenizer, plain)
    assert counted == [40]
    rows = with_scores(text_rows(), before, reference_model="the model")
    shifted = [{**row, REFERENCE_COLUMNS[0]: row[REFERENCE_COLUMNS[0]] + 1e-3} for row in rows]
    given = write(tmp_path / "given.jsonl", shifted)
    reference_cache.cache_file(model, None).unlink()
    capsys.readouterr()
    after = prepared(model, tokenizer, given)
    assert counted == [40, 8]
    said = capsys.readouterr().err
    assert (
        "40 of 40 pairs from ref_chosen_logps and ref_rejected_logps of the data (the model" in said
    )
    assert "8 scored again differ by 0.001 nats" in said
    for part, own in before.items():
        assert after[part].keys() == own.keys()  # parts are divided alike
        for prompt, row in own.items():
            got = after[part][prompt]
            assert got["chosen_ids"] == row["chosen_ids"]
            assert got["ref_chosen_logps"] == row["ref_chosen_logps"] + 1e-3
            assert got["ref_rejected_logps"] == row["ref_rejected_logps"]


def test_of_a_mixture_only_the_file_without_is_scored(model, tokenizer, tmp_path, counted, capsys):
    plain = [write(tmp_path / f"{k}.jsonl", text_rows(first=100 * k)) for k in (0, 1)]
    before = prepared(model, tokenizer, *plain)
    write(tmp_path / "1.jsonl", with_scores(text_rows(first=100), before))
    reference_cache.cache_file(model, None).unlink()
    after = prepared(model, tokenizer, *plain)
    assert counted == [80, 8, 40]
    assert "scored here: 40 pairs (without: 40)" in capsys.readouterr().err
    for part, own in before.items():
        for prompt, row in own.items():
            for column in REFERENCE_COLUMNS:
                assert after[part][prompt][column] == pytest.approx(row[column], abs=1e-4)


def test_cut_prompts_are_scored_here(model, tokenizer, tmp_path, counted, capsys):
    """Cut in this run, or in the run that scored them: the numbers are of other prompts."""
    rows = text_rows()
    for row in rows[::4]:
        row["prompt"] = "Once more, and once again, " * 10 + row["prompt"]
    plain = write(tmp_path / "plain.jsonl", rows)
    whole, cut = (prepared(model, tokenizer, plain, max_length=n) for n in (2048, 100))
    given = with_scores(rows, whole)
    given[1]["truncated"] = True
    given[1][REFERENCE_COLUMNS[0]] += 5
    counted.clear()
    after = prepared(model, tokenizer, write(tmp_path / "x.jsonl", given), max_length=100)
    assert "pairs (with a cut prompt: 11)" in capsys.readouterr().err
    for part, own in cut.items():
        for prompt, row in own.items():
            for column in REFERENCE_COLUMNS:
                assert after[part][prompt][column] == pytest.approx(row[column], abs=1e-4)
    short = write(tmp_path / "y.jsonl", [{**row, "truncated": True} for row in given])
    prepared(model, tokenizer, short)
    assert "are not used: all 40 prompts are cut" in capsys.readouterr().err


def test_what_the_reference_was_computed_in_goes_on_to_the_trainer(model, tokenizer, tmp_path):
    """Of pairs whose log-likelihoods are taken; where the data do not say, there is no column."""
    plain = write(tmp_path / "plain.jsonl", text_rows())
    before = prepared(model, tokenizer, plain)
    assert all("reference_dtype" not in row for own in before.values() for row in own.values())
    rows = with_scores(text_rows(), before, reference_dtype="bfloat16")
    for k, row in enumerate(rows):
        row["truncated"] = k == 3
    after = prepared(model, tokenizer, write(tmp_path / "x.jsonl", rows))
    found = {prompt: row for own in after.values() for prompt, row in own.items()}
    for row in rows:
        want = None if row["truncated"] else "bfloat16"
        assert found[row["prompt"]]["reference_dtype"] == want


def test_log_likelihoods_of_other_tokens_are_refused(model, tokenizer, tmp_path):
    plain = write(tmp_path / "plain.jsonl", text_rows())
    by_end = {end: prepared(model, tokenizer, plain, add_eos=end) for end in (False, True)}
    for scored, asked, what in (
        (False, True, "score with --add-eos, train with --no_add_eos, or take the columns out"),
        (True, False, r"scored with --add-eos: train with --add_eos, or take the columns out"),
    ):
        rows = with_scores(text_rows(), by_end[scored], add_eos=scored)
        with pytest.raises(ValueError, match=f"in 40 of 40 pairs .*{what}"):
            prepared(model, tokenizer, write(tmp_path / "x.jsonl", rows), add_eos=asked)
        prepared(model, tokenizer, write(tmp_path / "x.jsonl", rows), add_eos=scored)
    rows = with_scores(text_rows(), by_end[False])
    rows[7]["n_rejected"] += 2
    with pytest.raises(ValueError, match="in 1 of 40 pairs .*another tokenizer, chat template"):
        prepared(model, tokenizer, write(tmp_path / "y.jsonl", rows))


def test_log_likelihoods_of_another_model_are_refused(model, tokenizer, tmp_path):
    plain = write(tmp_path / "plain.jsonl", text_rows())
    rows = with_scores(text_rows(), prepared(model, tokenizer, plain), reference_model="another")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    with pytest.raises(
        ValueError, match="do not fit the reference .* nats, and .* They are of anot"
    ):
        prepared(model, tokenizer, write(tmp_path / "x.jsonl", rows))


def pair(logps, number=0, dataset="d", **more):
    return {"id": f"{number}", "dataset": dataset, "reference": GivenScores(logps, **more)}


def test_how_much_rounding_explains():
    """In float32 0.01 nats and a ten-thousandth; with half precision on either side √S / 16, which
    for S = |a| + |b| = 401 nats is 1.25."""
    scored = np.array([[-100.0, -200.0]])
    how = {"reference_name": "m", "in_float32": True}
    assert check_log_likelihoods([pair((-100.01, -200.0))], scored, **how) == pytest.approx(0.01)
    close, far = pair((-100.0, -201.0)), pair((-100.0, -202.0))
    with pytest.raises(ValueError, match=r"ref_rejected_logps of pair 0 is -201.00 nats, and -200"):
        check_log_likelihoods([close], scored, **how)
    half = replace(close["reference"], dtype="bfloat16")
    assert check_log_likelihoods([{**close, "reference": half}], scored, **how) == 1
    assert check_log_likelihoods([close], scored, reference_name="m", in_float32=False) == 1
    for wrong in (far, pair((float("nan"), -200.0))):
        for in_float32 in (True, False):
            with pytest.raises(ValueError):
                check_log_likelihoods([wrong], scored, reference_name="m", in_float32=in_float32)


def test_a_tuned_model_does_not_pass_as_its_reference_in_half_precision():
    """What a short DPO run moves, some nats of hundreds, and no more than 2 % of any."""
    scored = np.array([[-420.0, -510.0], [-300.0, -250.0]])
    moved = scored + np.array([[-2.0, -8.4], [1.5, -3.0]])
    assert (abs(moved - scored) < 0.02 * abs(scored)).all()
    tuned = [pair(tuple(logps), k, dtype="bfloat16") for k, logps in enumerate(moved)]
    with pytest.raises(ValueError, match="ref_rejected_logps of pair 0 is -518.40 nats, and -510"):
        check_log_likelihoods(tuned, scored, reference_name="m", in_float32=False)


def test_every_dataset_and_reference_is_checked():
    pairs = [pair((0.0, 0.0), k, "ab"[k >= 20], model="xy"[k % 20 > 15]) for k in range(40)]
    chosen = pairs_to_check(pairs, range(40))
    kinds = [(pairs[k]["dataset"], pairs[k]["reference"].model) for k in chosen]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("a", "x"): 8, ("a", "y"): 4, ("b", "x"): 8, ("b", "y"): 4}  # fmt: skip
    assert pairs_to_check(pairs[:3], [0, 2]) == [0, 2]


# ---------------------------------------------------------------------------- TRL's own trainer
class GivenReference(DPOTrainer):
    """As the docs have it."""

    def _precompute_ref_logps(self, dataset, name, batch_size):
        return dataset  # which holds them


def export(model_directory, data, folder, name, *more) -> str:
    """What the script exports of data that a saved model has scored."""
    file = folder / name
    arguments = ["--lm-name-or-path", model_directory, "--dataset", data, "--output-dir", folder,
                 "--output-filename", f"{file.stem}.scores.jsonl", "--export", file,
                 "--assumed-proportion", 1, "--sample-size", -1, *more]  # fmt: skip
    script = calculate_upper_bound_rlhf
    script.main(script.parse_args([str(x) for x in arguments]))
    release_outputs()
    return str(file)


@pytest.mark.parametrize("form, kind", [("text", "jsonl"), ("messages", "parquet")])
def test_trl_takes_the_file_and_scores_no_reference(tmp_path, sample_text, form, kind, monkeypatch):
    """Losses of four steps equal those of TRL with its reference at hand; the policy is another."""
    tokenizer = chat_tokenizer(sample_text, CHATML)
    reference = tiny_model(0, config=VOCABULARY)
    reference.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = (
        text_rows(16) if form == "text" else [explicit(row) for row in dialogues() + dialogues(8)]
    )
    data = write(tmp_path / "data.jsonl", rows)
    file = export(tmp_path / "model", data, tmp_path, f"x.{kind}", "--add-eos")
    dataset = load_dataset(
        "json" if kind == "jsonl" else kind, data_files=file, split="train", cache_dir=tmp_path
    )
    assert len(dataset) == 16
    bare = dataset.select_columns(["prompt", "chosen", "rejected"])

    def losses(kind, rows, **more):
        policy = tiny_model(1, config=VOCABULARY)
        run = trainer(tmp_path, tokenizer, rows, kind, model=policy, loss_type="sigmoid", **more)
        return losses_and_weights(run)[0]

    online = losses(DPOTrainer, bare, ref_model=reference)
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", None)  # nothing may call it
    given = losses(GivenReference, dataset, ref_model=None, precompute_ref_log_probs=True)
    assert online.std() > 1e-2 and len(online) == 4
    np.testing.assert_allclose(given, online, atol=1e-4)


# ---------------------------------------------------------------------------- scored once more
@pytest.mark.parametrize(
    "form, kind",
    [("hh", "parquet"), ("turns", "jsonl"), ("separator", "parquet"), ("messages", "parquet"),
     ("asked", "jsonl")],
)  # fmt: skip
def test_an_export_read_as_data_has_the_same_log_likelihoods(tmp_path, sample_text, form, kind):
    """By the ranking script with the same model, whatever the data were: HH's dialogues, which stay
    text for a chat model, turns as text and messages, which go through its template, and text that
    nothing joins."""
    tokenizer = chat_tokenizer(sample_text, CHATML)
    tiny_model(0, config=VOCABULARY).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    talk = "\n\nHuman: Is {} odd?\n\nAssistant:"
    rows = [
        {"prompt": talk.format(k), "chosen": f" Well, {k} is.", "rejected": f" {k}\n"}
        for k in range(6)
    ]
    more = []
    if form == "hh":
        rows = [{side: r["prompt"] + r[side] for side in ("chosen", "rejected")} for r in rows]
    elif form == "separator":
        rows, more = text_rows(6), ["--separator", ""]
    elif form == "messages":
        rows = [explicit(row) for row in dialogues(system="Be brief.")]
    elif form == "asked":
        rows, more = text_rows(6), ["--chat-template", "always", "--add-eos", "--system", "Hm."]
    file = export(tmp_path / "model", write(tmp_path / "data.jsonl", rows), tmp_path, f"x.{kind}", *more)  # fmt: skip
    script = calculate_calibration_metrics
    end = ["--add-eos"] if form == "asked" else []
    arguments = ["--lm-name-or-path", tmp_path / "model", "--dataset", file, "--sample-size", -1,
                 "--output-dir", tmp_path, "--output-filename", "again.jsonl", *end]  # fmt: skip
    script.main(script.parse_args([str(x) for x in arguments]))
    release_outputs()
    exported = load_preferences(file).examples
    records = load_examples(str(tmp_path / "again.examples.jsonl"))
    before = load_examples(str(tmp_path / "x.scores.examples.jsonl"))
    assert len(exported) == len(records) == len(before) == len(rows)
    for example, record, first in zip(exported, records, before):
        logps = [c["logp"] for c in record["completions"]]
        assert logps == pytest.approx(example.reference.logps, abs=1e-4)
        assert logps == pytest.approx([c["logp"] for c in first["completions"]], abs=1e-4)
        counts = [c["n_tokens"] for c in record["completions"]]
        assert tuple(counts) == example.reference.n_tokens
