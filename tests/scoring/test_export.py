"""Exported pairs: their columns by hand, which are kept, and that they are read as they were
scored."""

import json
import math

import pyarrow.parquet as pq
import pytest
from conftest import assert_documented

from ranking.data.conversions import preference_pairs
from ranking.data.preferences import load_preferences
from ranking.metrics.tuned_loss import BestStep
from ranking.plumbing.result_files import read_json_lines
from ranking.scoring.export import (
    ExportedPair,
    check_keep,
    export_pairs,
    export_rows,
    group_names,
)
from ranking.scoring.rated_pairs import PairRules, add_tuned_losses, rated_pairs

CONFIG = {
    "dtype": "float32", "add_eos": True, "chat_template": False,
    "datasets": [{"name": "d", "config": None, "split": None, "separator": None, "examples": ""}],
}  # fmt: skip
TALK = [{"role": "user", "content": "Who?"}]


def record(logps=(-9.0, -5.0), votes=None, number=0, prompt="Who?", separators=None, **more):
    separators = separators or [" "] * len(logps)
    return {
        "id": f"id{number}-1", "prompt_id": f"p{number}", "dataset": "d", "dataset_config": None,
        "split": None, "row": number, "model": "ref", "config_hash": "c0", "prompt": prompt,
        "messages": None, "groups": {}, "ranks": list(range(1, 1 + len(logps))),
        "votes": votes or {"0,1": [3, 1]},
        "completions": [
            {"text": f"y{k}", "separator": s, "logp": x, "n_tokens": 3 + k, "n_chars": 2,
             "n_bytes": 2, "truncated": False}
            for k, (x, s) in enumerate(zip(logps, separators))
        ],
        **more,
    }  # fmt: skip


def pairs_of(*records, **rules):
    return rated_pairs(records, records, PairRules(**rules))[0]


def exported(file, *records, config=CONFIG, keep=None, share=None, **rules):
    """The rows of an export, read back."""
    export_pairs(file, pairs_of(*records, **rules), config, keep, share)
    return pq.read_table(file).to_pylist() if file.suffix == ".parquet" else read_json_lines(file)


def test_columns_of_a_pair_by_hand(tmp_path):
    """The second completion has more votes; c = −9 − (−5); log(0.75/0.25)/c is the critical β."""
    products = [[4.0, 1.0], [1.0, 9.0]]
    row = record(votes={"0,1": [1, 3]}, groups={"domain": "chat"}, hidden_products=products)
    want = {
        "id": "id0-1", "prompt_id": "p0", "dataset": "d", "dataset_config": None, "split": None,
        "prompt": "Who?", "chosen": " y1", "rejected": " y0", "ref_chosen_logps": -5.0, "ref_rejected_logps": -9.0,
        "n_chosen": 4, "n_rejected": 3, "n_chars_chosen": 2, "n_chars_rejected": 2, "c": -4.0,
        "critical_beta": None, "alpha": 0.75, "votes": [3.0, 1.0], "ches": 1.0 - 9.0,
        "ches_normalized": 1 / 12 - 9 / 16, "truncated": False, "reference_model": "ref",
        "reference_dtype": "float32", "add_eos": True, "template": None, "config_hash": "c0",
        "group_domain": "chat",
    }  # fmt: skip
    row["ranks"] = [2, 1]
    for name in ("x.parquet", "x.jsonl"):
        (got,) = exported(tmp_path / name, row)
        assert got == want and list(got) == list(want)
        del got["group_domain"]
        assert_documented([got], ExportedPair)
    (hard,) = exported(tmp_path / "y.jsonl", record())
    assert hard["critical_beta"] == pytest.approx(math.log(3) / 4) and hard["ches"] is None


def test_what_a_policy_and_tuned_runs_add_is_written_and_named(tmp_path):
    """The ranking group of reference → policy, and the losses of --dynamics."""
    reference = [record((-9.0, -5.0), number=k) for k in range(3)] + [record((-1.0, -5.0), None, 3)]
    policy = [
        record((a, -5.0), number=k, model="p") for k, a in enumerate((-4.0, -5.0, -6.0, -7.0))
    ]
    pairs, _ = rated_pairs(reference, policy, PairRules())
    followed = {f"id{k}-1": {"loss": k / 4, "group": "incorrect_to_correct", "ref_chosen": -9.0,
                             "ref_rejected": -5.0} for k in range(3)}  # fmt: skip
    add_tuned_losses(pairs, {"d.jsonl": BestStep(1, followed)})
    groups = ["incorrect_to_correct"] * 2 + ["incorrect_to_incorrect", "correct_to_incorrect"]
    for name in ("x.parquet", "x.jsonl"):
        assert export_pairs(tmp_path / name, pairs, CONFIG, None, None, has_policy=True) == 4
        rows = (pq.read_table(tmp_path / name).to_pylist() if "parquet" in name
                else read_json_lines(tmp_path / name))  # fmt: skip
        assert [row["group"] for row in rows] == groups
        assert [row["tuned_loss"] for row in rows] == [0.0, 0.25, 0.5, None]
        assert [(row["n_runs"], row["flipped_in"]) for row in rows] == [(1, 1)] * 3 + [(0, 0)]
        assert_documented(rows, ExportedPair)
    keep = "tuned_loss < 0.5 and flipped_in == n_runs and group == 'incorrect_to_correct'"
    check_keep(keep, reference, has_dynamics=True, has_policy=True)
    assert export_pairs(tmp_path / "y.jsonl", pairs, CONFIG, keep, None, has_policy=True) == 2
    for keep, has in (
        ("tuned_loss < 1", {"has_policy": True}),
        ("group == 'x'", {"has_dynamics": True}),
    ):
        with pytest.raises(ValueError, match="no column"):
            check_keep(keep, reference, **has)
    with pytest.raises(ValueError, match="compares group, a text, with 1"):
        check_keep("group == 1", reference, has_policy=True)


def test_every_voted_pair_of_a_list_is_a_row(tmp_path):
    """Their ids are those that dpo.py gives them; ties are left out, and counted."""
    votes = {"0,1": [3, 1], "0,2": [2, 2], "1,2": [0, 4]}
    row = record((-3.0, -4.0, -5.0), votes) | {"ranks": [1, 3, 1]}
    rows = exported(tmp_path / "x.jsonl", row, include_ties=True)
    assert [(r["id"], r["chosen"], r["rejected"], r["alpha"]) for r in rows] == [
        ("id0-1:0>1", " y0", " y1", 0.75), ("id0-1:2>1", " y2", " y1", 0.999)]  # fmt: skip
    assert len({r["prompt_id"] for r in rows}) == 1


def test_texts_are_joined_as_they_were_scored(tmp_path, capsys):
    """What is read back is what was scored, to the letter, whatever stood between."""
    rows = [
        record(number=0, separators=["", " "]),
        record(number=1, prompt="\n\nHuman: Who?\n\nAssistant:", separators=["", ""]),
        record(number=2, prompt="ends ", separators=["\n\n", ""]),
    ]
    for name in ("x.parquet", "x.jsonl"):
        written = exported(tmp_path / name, *rows, assumed_proportion=None)
        examples = load_preferences(str(tmp_path / name)).examples
        for example, own, row in zip(examples, written, rows, strict=True):
            sides = zip(example.separators, example.completions)
            got = [example.prompt + separator + text for separator, text in sides]
            want = [row["prompt"] + c["separator"] + c["text"] for c in row["completions"]]
            assert got == want == [own["prompt"] + own[k] for k in ("chosen", "rejected")]
            assert example.dialogue is None and example.ranks == (1, 2)
            assert example.reference.logps == (-9.0, -5.0)
            assert example.reference.n_tokens == (3, 4) and example.reference.add_eos
            assert example.votes == {(0, 1): (3, 1)}
    # by the rule for texts that were not made to stand side by side, a space would be put there
    assert load_preferences(str(tmp_path / "x.jsonl"), separator=" ").examples[0].separators[0]


def test_what_is_trained_on_has_the_ids_of_what_was_scored(tmp_path):
    """So --dynamics finds the pairs of a run on an export, of two completions and of more."""
    votes = {"0,1": [3, 1], "1,2": [0, 4]}
    rows = [record(votes={"0,1": [1, 3]}) | {"ranks": [2, 1]}, record((-3.0, -4.0, -5.0), votes, 1)]
    rows[1]["ranks"] = [1, 3, 1]
    scored = pairs_of(*rows)
    for name in ("x.parquet", "x.jsonl"):
        written = exported(tmp_path / name, *rows)
        examples = load_preferences(str(tmp_path / name)).examples
        trained = preference_pairs(examples)
        assert [pair["id"] for pair in trained] == [row["id"] for row in written]
        assert [e.prompt_id for e in examples] == ["p0", "p1", "p1"]
        followed = {
            row["id"]: {
                "id": row["id"], "loss": 0.5, "group": "correct_to_correct",
                "ref_chosen": row["ref_chosen_logps"], "ref_rejected": row["ref_rejected_logps"],
            }
            for row in written
        }  # fmt: skip
        add_tuned_losses(scored, {"d.jsonl": BestStep(1, followed)})
        assert [pair["n_runs"] for pair in scored] == [1, 1, 1]


def template_config(**more):
    return {**CONFIG, "chat_template": True, "template": "t0", **more}


def test_dialogues_stay_messages_with_what_the_template_was_given(tmp_path):
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"a": {}}}}]
    talk = record(
        messages=TALK, prompt="\n\nHuman: Who?\n\nAssistant:", tools=tools,
        template_kwargs={"thinking": True},
    )  # fmt: skip
    config = template_config(chat_template_kwargs={"thinking": False, "x": 1}, system="Be brief.")
    (row,) = exported(tmp_path / "x.parquet", talk, config=config)
    assert row["prompt"] == [{"role": "system", "content": "Be brief."}, *TALK]
    assert row["chosen"] == [{"role": "assistant", "content": "y0"}]
    assert json.loads(row["tools"]) == tools and row["template"] == "t0"
    assert row["chat_template_kwargs"] == {"thinking": True, "x": 1}
    (example,) = load_preferences(str(tmp_path / "x.parquet")).examples
    assert list(example.dialogue.messages) == row["prompt"] and not example.dialogue.of_text
    assert list(example.dialogue.tools) == tools
    assert example.dialogue.template_kwargs == row["chat_template_kwargs"]
    assert example.completions == ("y0", "y1") and example.reference.logps == (-9.0, -5.0)
    # scored as text, the same dialogue is the text that it was scored as
    (row,) = exported(tmp_path / "y.jsonl", talk, config={**CONFIG, "system": "Be brief."})
    assert row["prompt"] == "Be brief.\n\nHuman: Who?\n\nAssistant:" and row["chosen"] == " y0"
    assert row["template"] is None and "tools" not in row


def test_text_that_went_through_the_template_is_its_turns(tmp_path):
    """With --chat-template always, and of text that is read as a dialogue: without white space."""
    text = "\n\nHuman: Who?\n\nAssistant:"
    rows = [record(prompt=text), record(prompt=text, messages=TALK, messages_of_text=True)]
    for row in rows:
        row["completions"][0]["text"] = " y0\n"
    for row in rows:
        (got,) = exported(tmp_path / "x.jsonl", row, config=template_config())
        assert got["prompt"] == TALK and got["chosen"][0]["content"] == "y0"


def test_text_and_messages_do_not_go_into_one_file(tmp_path, capsys):
    talk = record(messages=TALK, number=1) | {"dataset": "talks"}
    text = {"name": "d", "config": None, "split": None, "separator": " ", "in_template": 0}
    config = template_config(datasets=[text, {**text, "name": "talks", "in_template": 1}])
    with pytest.raises(ValueError, match="d as text, talks as messages: export each dataset by it"):
        exported(tmp_path / "x.jsonl", record(), talk, config=config)
    assert not (tmp_path / "x.jsonl").exists()
    keep = "dataset == 'talks'"
    assert len(exported(tmp_path / "x.jsonl", record(), talk, config=config, keep=keep)) == 1


# ---------------------------------------------------------------------------- which pairs
def ten(**more):
    """c = 5, 4, …, −4; a third domain each."""
    return [
        record((-10.0, -5.0 - k), number=k, groups={"domain": ("chat", "code", "math")[k % 3]})
        for k in range(10)
    ]


def test_keep_and_then_the_easiest(tmp_path, capsys):
    rows = exported(tmp_path / "a.jsonl", *ten(), keep="c < 4 and group_domain in ['chat', 'code']")
    want = [5 - k for k in range(10) if 5 - k < 4 and k % 3 < 2]
    assert [row["c"] for row in rows] == want == [2, 1, -1, -2, -4]
    assert (
        f"{tmp_path}/a.jsonl: 5 of 10 pairs kept, left out: by --keep: 5" in capsys.readouterr().out
    )
    keep = "c < 4 and group_domain != 'math'"
    rows = exported(tmp_path / "b.jsonl", *ten(), keep=keep, share=0.5)
    assert [row["c"] for row in rows] == [-1, -2, -4]  # half of five, rounded up
    assert "left out: by --keep: 5, by --keep-easiest: 2" in capsys.readouterr().out
    rows = exported(tmp_path / "c.jsonl", *ten(), keep="critical_beta > 1")
    assert [row["c"] for row in rows] == [c for c in range(5, -5, -1) if c <= 0 or 1.0986 / c > 1]
    (tmp_path / "d.jsonl").write_text("of a run that is overwritten")
    assert export_pairs(tmp_path / "d.jsonl", pairs_of(*ten()), CONFIG, "c > 9", 0.5) == 0
    said = capsys.readouterr().err
    assert "d.jsonl: not written, no pair is left of 10 (left out: by --keep: 10)" in said
    assert not (tmp_path / "d.jsonl").exists()


def test_equal_c_goes_by_id(tmp_path):
    rows = [record(number=n) for n in (3, 1, 2, 0)]
    got = exported(tmp_path / "x.jsonl", *rows, share=0.5)
    assert [row["id"] for row in got] == ["id1-1", "id0-1"]  # in the order of the data


def test_keep_is_checked_before_anything_is_scored():
    records = [{"groups": {"domain": "x"}}]
    check_keep("group_domain == 'x' and not truncated", records)
    check_keep(None, records)
    for keep, why in (
        (
            "domain == 'x'",
            r"--keep \"domain == 'x'\": no column 'domain' \(nearest: .*group_domain",
        ),
        ("prompt == 'x'", "no column 'prompt'"),
        ("group_domain != 1", "compares group_domain, a text, with 1, a number"),
        ("template == c", "compares template, a text, with c"),
        ("c <", "--keep 'c <': no condition"),
        ("len(id) > 3", r"len\(id\) is not read"),
    ):
        with pytest.raises(ValueError, match=why):
            check_keep(keep, records)


def test_names_of_groups_do_not_clash():
    groups = [{"a.b": "1", "a b": "2"}, {"a_b": "3", "id": "4"}]
    assert group_names(groups) == {
        "a.b": "group_a_b", "a b": "group_a_b_2", "a_b": "group_a_b_3", "id": "group_id"}  # fmt: skip
    pairs = pairs_of(*(record(number=k, groups=own) for k, own in enumerate(groups)))
    first, second = export_rows(pairs, CONFIG)
    assert [first[f"group_{x}"] for x in ("a_b", "a_b_2", "a_b_3", "id")] == ["1", "2", None, None]
    assert (second["group_id"], second["id"]) == ("4", "id1-1")


@pytest.mark.parametrize(
    "more, config, said",
    [
        ({}, {**CONFIG, "add_eos": False}, "TRL's trainer puts EOS behind each completion, which"),
        ({}, None, "(scored nobody knows how) do not count"),
        ({"truncated": True}, CONFIG, "1 pairs were scored with a cut prompt: dpo.py scores them"),
        ({"begun": True}, template_config(), "1 prompts end inside an assistant's turn"),
        ({}, CONFIG, ""),
    ],
)
def test_what_a_trainer_has_to_know_is_said(tmp_path, capsys, more, config, said):
    row = record()
    if more.get("begun"):
        row["messages"] = [*TALK, {"role": "assistant", "content": "It"}]
    for completion in row["completions"]:
        completion["truncated"] = more.get("truncated", False)
    exported(tmp_path / "x.jsonl", row, config=config)
    printed = capsys.readouterr().err
    assert said in printed and (said or not printed)


def test_what_a_parquet_file_cannot_hold_is_one_line(tmp_path):
    mixed = [
        record(number=k, messages=[{**TALK[0], "name": name}]) for k, name in enumerate(("a", 1))
    ]
    config = template_config()
    with pytest.raises(ValueError, match=r"x.parquet: column 'prompt': .*\.jsonl can hold it"):
        exported(tmp_path / "x.parquet", *mixed, config=config)
    assert list(tmp_path.iterdir()) == []
    assert len(exported(tmp_path / "x.jsonl", *mixed, config=config)) == 2


def test_template_arguments_of_different_keys_stay_apart(tmp_path, capsys):
    """{} is not {"thinking": None}: what no key was given stays without one."""
    mixed = [record(number=k, messages=TALK, template_kwargs=own)
             for k, own in enumerate(({}, {"thinking": False}))]  # fmt: skip
    with pytest.raises(ValueError, match="x.parquet: column 'chat_template_kwargs': its objects"):
        exported(tmp_path / "x.parquet", *mixed, config=template_config())
    assert list(tmp_path.iterdir()) == []
    rows = exported(tmp_path / "x.jsonl", *mixed, config=template_config())
    assert [row["chat_template_kwargs"] for row in rows] == [{}, {"thinking": False}]
    assert "chat_template_kwargs differ between rows: `datasets`" in capsys.readouterr().err
    examples = load_preferences(str(tmp_path / "x.jsonl")).examples
    assert [e.dialogue.template_kwargs for e in examples] == [{}, {"thinking": False}]
    (same, *_) = exported(tmp_path / "y.parquet", mixed[1], config=template_config())
    assert same["chat_template_kwargs"] == {"thinking": False}
