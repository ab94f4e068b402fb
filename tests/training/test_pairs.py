"""Forms of a pair; dialogues as TRL's DPOTrainer prepares and trains them."""

from functools import partial

import numpy as np
import pytest
from datasets import Dataset
from dialogue_rows import (
    CHATML,
    SMOLLM2,
    VOCABULARY,
    chat_tokenizer,
    dialogues,
    explicit,
    implicit,
    orca,
    sharegpt,
    split_folder,
    ultrafeedback_binarized,
)
from preference_rows import write
from test_dpo_gamma_trainer import losses_and_weights, tiny_model, trainer
from trl import DPOTrainer

from ranking.scoring.chat import ChatOptions
from ranking.training.pairs import collate_pairs, prepare_pairs
from ranking.training.splits import load_parts


def test_collate_pairs_masks_by_position():
    """Padding may equal EOS inside a completion; only positions decide."""
    rows = [
        {"pair": 4, "chosen_ids": [0, 7, 1, 1], "chosen_start": 2, "rejected_ids": [0, 7, 9],
         "rejected_start": 2, "ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}
    ]  # fmt: skip
    batch = partial(collate_pairs, pad_token_id=1)(rows)
    assert batch["input_ids"].tolist() == [[0, 7, 1, 1], [0, 7, 9, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert batch["ref_chosen_logps"].tolist() == [-1.5] and batch["pair"].tolist() == [4]


# ---------------------------------------------------------------------------- against TRL
@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))


def prepared(tokenizer, names, add_eos=None, **how) -> dict:
    """What dpo.py trains on, of datasets in files."""
    model = tiny_model(config=VOCABULARY)
    return prepare_pairs(
        load_parts(names, **how), model, tokenizer, chat=ChatOptions(), add_eos=add_eos,
        max_length=2048, n_followed=4, mixed_precision="no",
    )[0]  # fmt: skip


def assert_losses_equal_trl(folder, tokenizer, pairs, trl_rows):
    """Four steps of each, TRL with its own preparation of the rows."""
    make = partial(tiny_model, config=VOCABULARY)
    peer = trainer(folder, tokenizer, trl_rows, DPOTrainer, model=make(), ref_model=make(),
                   loss_type="sigmoid")  # fmt: skip
    ours = trainer(folder, tokenizer, pairs, model=make(), ref_model=make())
    its, own = losses_and_weights(peer)[0], losses_and_weights(ours)[0]
    assert len(own) == 4 and its.std() > 1e-4
    np.testing.assert_allclose(own, its, atol=1e-5)


@pytest.mark.parametrize("template", [CHATML, SMOLLM2], ids=["ChatML", "SmolLM2"])
@pytest.mark.parametrize("form", [ultrafeedback_binarized, explicit, implicit, orca, sharegpt])
def test_losses_of_dialogues_equal_trl(tmp_path, sample_text, form, template):
    """The same dialogues in five schemas, the end of their turns among what is trained."""
    tokenizer = chat_tokenizer(sample_text, template)
    rows = dialogues(system="Be brief." if form is orca else None)
    if form is orca:  # its dialogues have one turn
        rows = [{**row, "prompt": [row["prompt"][0], row["prompt"][-1]]} for row in rows]
    pairs = prepared(tokenizer, [split_folder(tmp_path / "data", [form(row) for row in rows])])
    texts = [tokenizer.decode(ids) for ids in pairs["train"]["chosen_ids"]]
    assert len(texts) == len(rows) and all(text.endswith("said.<|im_end|>\n") for text in texts)
    assert_losses_equal_trl(tmp_path, tokenizer, pairs["train"], [explicit(row) for row in rows])


def test_losses_of_a_mixture_equal_trl(tmp_path, sample_text):
    """Two datasets in two schemas, as TRL trains them one behind the other."""
    tokenizer = chat_tokenizer(sample_text, CHATML)
    rows = [dialogues(), dialogues(first=20, system="Be brief.")]
    names = [
        split_folder(tmp_path / form.__name__, [form(row) for row in own])
        for form, own in zip((sharegpt, implicit), rows)
    ]
    pairs = prepared(tokenizer, names)
    assert pairs["train"]["dataset"] == ["sharegpt"] * len(rows[0]) + ["implicit"] * len(rows[1])
    trl_rows = [explicit(row) for row in [*rows[0], *rows[1]]]
    assert_losses_equal_trl(tmp_path, tokenizer, pairs["train"], trl_rows)


def test_text_beside_dialogues_stays_as_it_is(tmp_path, sample_text):
    """No template, no end, unless asked for; and dialogues without their end, if asked for."""
    tokenizer = chat_tokenizer(sample_text, CHATML)
    row = {"prompt": "Q:", "chosen": "yes", "rejected": "no"}
    texts = write(tmp_path / "texts.jsonl", [{**row, "prompt": f"Q{k}:"} for k in range(40)])
    talks = split_folder(tmp_path / "talks", [explicit(row) for row in dialogues()])
    ends = {}
    for add_eos in (None, True, False):
        pairs = prepared(tokenizer, [texts, talks], add_eos)["train"]
        ids = dict(zip(pairs["dataset"], pairs["chosen_ids"]))
        ends[add_eos] = [tokenizer.decode(ids[name])[-12:] for name in ("texts", "talks")]
    answer = " you said."
    assert [text[-4:] for text, _ in ends.values()] == [" yes", "</s>", " yes"]
    closed = (answer + "<|im_end|>\n")[-12:]
    assert [talk for _, talk in ends.values()] == [closed, closed, ("as" + answer)[-12:]]


def test_metrics_of_each_dataset_of_a_mixture(tmp_path, sample_text):
    """By hand from the pairs of each; the joint ones are of all pairs."""
    tokenizer = chat_tokenizer(sample_text, CHATML)
    names = [
        split_folder(tmp_path / name, [explicit(row) for row in dialogues(first=first)], evaluated)
        for name, first, evaluated in (("one", 0, 5), ("two", 20, 3))
    ]
    pairs = prepared(tokenizer, names)
    policy, reference = (tiny_model(k, config=VOCABULARY) for k in (1, 0))
    run = trainer(tmp_path, tokenizer, pairs["train"], model=policy, ref_model=reference, alpha=0.5,
                  eval_dataset=pairs["validation"])  # fmt: skip
    metrics = run.evaluate()
    ids = {name: [] for name in ("one", "two")}
    for row in pairs["validation"]:
        ids[row["dataset"]].append(row)
    n = {name: len(rows) for name, rows in ids.items()}
    for name, rows in ids.items():
        alone = trainer(tmp_path, tokenizer, pairs["train"], model=policy, ref_model=reference, alpha=0.5,
                        eval_dataset=Dataset.from_list(rows))  # fmt: skip
        own = alone.evaluate()
        for key in ("loss", "ranking/accuracy", "rewards/margins", "logps/chosen"):
            assert metrics[f"eval_{name}/{key}"] == pytest.approx(own[f"eval_{key}"], abs=1e-5)
    for key in ("loss", "ranking/accuracy", "logps/rejected"):
        total = sum(n[name] * metrics[f"eval_{name}/{key}"] for name in n)
        assert metrics[f"eval_{key}"] == pytest.approx(total / sum(n.values()), abs=1e-5)
