"""Log-likelihoods of a reference in the data: read with the pair, whose texts they are of."""

from dataclasses import replace

import pytest
from preference_rows import write

from ranking.data.conversions import preference_pairs
from ranking.data.examples import GivenScores, fingerprint
from ranking.data.given_scores import REFERENCE_COLUMNS, given_scores
from ranking.data.preferences import load_preferences

ROW = {"prompt": "p", "chosen": "a", "rejected": "b", "ref_chosen_logps": -1.5,
       "ref_rejected_logps": -2}  # fmt: skip
BESIDE = {"n_chosen": 3, "n_rejected": 4, "truncated": True, "reference_model": "m",
          "reference_dtype": "bfloat16", "add_eos": False}  # fmt: skip
TURNS = "\n\nHuman: q\n\nAssistant:"


def load(folder, *rows, name="x.jsonl", **how):
    return load_preferences(write(folder / name, rows), **how).examples


def test_trl_columns_alone_and_what_an_export_says_beside(tmp_path):
    (example,) = load(tmp_path, ROW)
    assert example.reference == GivenScores((-1.5, -2.0))
    (example,) = load(tmp_path, {**ROW, **BESIDE})
    assert example.reference == GivenScores((-1.5, -2.0), (3, 4), True, "m", "bfloat16", False)
    assert preference_pairs([example])[0]["reference"] == example.reference


def test_csv_and_nothing(tmp_path):
    """Text that is a number counts; without both numbers there is none."""
    (tmp_path / "x.csv").write_text(
        "prompt,chosen,rejected,ref_chosen_logps,ref_rejected_logps\np,a,b,-1.5,-2\nq,a,b,-1,\n"
    )
    first, second = load_preferences(str(tmp_path / "x.csv")).examples
    assert first.reference == GivenScores((-1.5, -2.0)) and second.reference is None
    rows = [{**ROW, "ref_chosen_logps": x} for x in (None, -3.0)]
    assert [e.reference is None for e in load(tmp_path, *rows)] == [True, False]
    with pytest.raises(ValueError, match="row 1: column 'ref_chosen_logps' should be a number"):
        load(tmp_path, {**ROW, "ref_chosen_logps": "much"})


@pytest.mark.parametrize("nothing", [None, float("nan"), "", "nan"])
def test_nothing_beside_them_is_not_known(tmp_path, nothing):
    (tmp_path / "x.csv").write_text(
        "prompt,chosen,rejected,ref_chosen_logps,ref_rejected_logps,truncated,add_eos,n_chosen\n"
        "p,a,b,-1.5,-2,False,True,3\nq,a,b,-1.5,-2,true,0,3.0\nr,a,b,-1.5,-2,,,\n"
    )
    found = [e.reference for e in load_preferences(str(tmp_path / "x.csv")).examples]
    assert [(r.truncated, r.add_eos) for r in found] == [
        (False, True), (True, False), (False, None)]  # fmt: skip
    row = {**ROW, **BESIDE, "n_chosen": nothing, "truncated": nothing, "add_eos": nothing}
    assert given_scores(row) == GivenScores((-1.5, -2.0), None, False, "m", "bfloat16", None)


def test_what_is_no_truth_and_no_count_is_refused():
    for column, value, why in (
        ("truncated", "maybe", "column 'truncated' should be true or false, found 'maybe'"),
        ("n_chosen", 3.5, "column 'n_chosen' should be a whole number, found 3.5"),
        ("n_rejected", float("inf"), "column 'n_rejected' should be a whole number, found inf"),
    ):
        with pytest.raises(ValueError, match=why):
            given_scores({**ROW, **BESIDE, column: value})


def test_texts_are_joined_as_they_stand(tmp_path):
    """They are what was scored: no space is put between them, turns stay text, and a prompt that
    the completions repeat is there twice."""
    for prompt, chosen in (("p", "a"), (TURNS, " a"), ("p q", "p q a")):
        row = {**ROW, "prompt": prompt, "chosen": chosen}
        (example,) = load(tmp_path, row)
        joined = example.prompt + example.separators[0] + example.completions[0]
        assert joined == prompt + chosen and example.dialogue is None
    plain = {key: ROW[key] for key in ("prompt", "chosen", "rejected")}
    (example,) = load(tmp_path, plain, name="plain.jsonl")
    assert example.separators == (" ", " ") and example.reference is None
    assert load(tmp_path, ROW, separator=" ")[0].separators == (" ", " ")


def test_only_they_change_the_fingerprint(tmp_path):
    """So a run on other log-likelihoods is another run; data without them are as they were."""
    with_scores = load(tmp_path, ROW)
    changed = load(tmp_path, {**ROW, "ref_chosen_logps": -1.25})
    none = load(tmp_path, {**ROW, "ref_chosen_logps": None})
    assert len({fingerprint(e) for e in (with_scores, changed, none)}) == 3
    row = {key: ROW[key] for key in ("prompt", "chosen", "rejected")}
    (example,) = load(tmp_path, row, name="plain.jsonl")
    assert fingerprint([example]) == "c0280aa07da5f62c"  # as before there were any


def test_texts_under_an_id_of_the_file_change_the_fingerprint(tmp_path):
    """So scores of the old text are not gone on with; an id that is their hash says it already."""
    named = {**ROW, "id": "e-1"}
    texts = [load(tmp_path, {**named, "chosen": chosen}) for chosen in ("a", "another")]
    assert texts[0][0].id == texts[1][0].id
    assert fingerprint(texts[0]) != fingerprint(texts[1])
    hashed = load(tmp_path, {**ROW, "id": load(tmp_path, ROW)[0].id})
    assert fingerprint(hashed) == "f3fb748ef539343a"  # as of the first exports


def test_ids_of_the_file_are_taken_with_the_scores_and_stay_unique(tmp_path):
    own = {"id": "e-1", "prompt_id": "p"}
    rows = [{**ROW, **own}, {**ROW, **own}, {**ROW, **own, "ref_chosen_logps": None}, ROW]
    first, again, unscored, bare = load(tmp_path, *rows)
    assert (first.id, again.id, first.prompt_id, again.prompt_id) == ("e-1", "e-1-2", "p", "p")
    assert unscored.id.split("-")[0] == bare.id.split("-")[0] != "e"  # of their texts
    assert unscored.prompt_id == bare.prompt_id != "p"


def test_a_row_without_them_is_read_as_if_the_columns_were_not_there(tmp_path):
    """Joined by a space, a prompt that is repeated read once; as in a file of the texts alone."""
    rows = [{**ROW, "prompt": p, "chosen": c, "rejected": r}
            for p, c, r in (("p", "a", "b"), ("p q", "p q a", "p q b"), (TURNS, "a", "b"))]  # fmt: skip
    for given in ({}, {**BESIDE, "id": "x"}):
        empty = [{**row, **given, **dict.fromkeys(REFERENCE_COLUMNS)} for row in rows]
        plain = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
        want, got = load(tmp_path, *plain, name="plain.jsonl"), load(tmp_path, *empty)
        assert [replace(example, dataset="") for example in got] == [
            replace(example, dataset="") for example in want
        ]
    one, other = load(tmp_path, ROW, {**ROW, "ref_rejected_logps": None})
    assert (one.separators[0], other.separators[0]) == ("", " ")


@pytest.mark.parametrize("prompt", [TURNS, "The capital of France is"])
def test_whole_texts_without_a_prompt_have_them_too(tmp_path, prompt):
    """As HH's dialogues: the prompt is what both begin with."""
    row = {**ROW, "chosen": f"{prompt} Paris.", "rejected": f"{prompt} Rome."}
    del row["prompt"]
    (example,) = load(tmp_path, {**row, **BESIDE})
    assert example.reference.logps == (-1.5, -2.0) and example.reference.n_tokens == (3, 4)
    (plain,) = load(tmp_path, {k: row[k] for k in ("chosen", "rejected")}, name="plain.jsonl")
    assert (example.prompt, example.completions) == (plain.prompt, plain.completions)
    assert example.separators == plain.separators == ("", "")
