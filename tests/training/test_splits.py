"""Mixtures: shares, labels, questions that two datasets share."""

import pytest
from dialogue_rows import dialogues, explicit, split_folder
from preference_rows import write

from ranking.training.splits import dataset_labels, load_parts, named_sets


def pairs(name: str, n: int) -> list[dict]:
    return [{"prompt": f"{name} {k}?", "chosen": f"yes {k}", "rejected": "no"} for k in range(n)]


def splits(folder, name: str, n: int) -> str:
    """A dataset of n training rows, two of validation, two of test."""
    for split, size in (("train", n), ("validation", 2), ("test", 2)):
        write(folder / name / f"{split}.jsonl", pairs(f"{name} {split}", size))
    return str(folder / name)


def counts(data) -> dict[str, int]:
    names = [example.dataset for example in data.examples]
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize(
    ("shares", "n_train", "kept"),
    [
        (None, None, {"one": 30, "two": 10}),
        ([0.5, 0.5], None, {"one": 10, "two": 10}),  # all of two, as many of one
        ([0.75, 0.25], None, {"one": 30, "two": 10}),
        ([0.9, 0.1], None, {"one": 30, "two": 3}),  # all of one, a tenth of 33.3
        ([0.5, 0.5], 8, {"one": 4, "two": 4}),
    ],
)
def test_shares_are_of_the_training_examples(tmp_path, capsys, shares, n_train, kept):
    names = [splits(tmp_path, "one", 30), splits(tmp_path, "two", 10)]
    parts = load_parts(names, shares=shares, n_train=n_train)
    assert counts(parts["train"]) == kept
    assert counts(parts["validation"]) == counts(parts["test"]) == {"one": 2, "two": 2}
    assert len({e.id for e in parts["train"].examples}) == sum(kept.values())
    again = load_parts(names, shares=shares, n_train=n_train)
    assert again["train"].examples == parts["train"].examples
    printed = capsys.readouterr().err
    if shares is not None:
        n = kept["two"]
        assert f"two: share {shares[1]:g} of the training examples, {n} of 10 drawn" in printed
    share = 100 * kept["one"] / sum(kept.values())
    assert f"train of all datasets: one {kept['one']} ({share:.1f} %), two " in printed


def test_most_training_examples_of_a_mixture_without_shares(tmp_path):
    names = [splits(tmp_path, "one", 30), splits(tmp_path, "two", 10)]
    assert len(load_parts(names, n_train=12)["train"].examples) == 12


def test_questions_that_another_dataset_trains_on_are_left_out(tmp_path, capsys):
    """Whatever notation they stand in."""
    rows = [explicit(row) for row in dialogues()]
    talks = split_folder(tmp_path / "talks", rows)
    trained = rows[0]["prompt"][0]["content"]
    for split, prompts in (
        ("train", ["Is it?", "Was it?"]), ("validation", [f"\n\nHuman: {trained}\n\nAssistant:", "x?"]),
        ("test", [trained, "y?"]),
    ):  # fmt: skip
        texts = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in prompts]
        write(tmp_path / "texts" / f"{split}.jsonl", texts)
    parts = load_parts([talks, str(tmp_path / "texts")])
    for part, left in (("validation", "x?"), ("test", "y?")):
        examples = [e for e in parts[part].examples if e.dataset == "texts"]
        assert [e.prompt for e in examples] == [left]
        line = f"texts: left out of {part} because another dataset trains on the question: 1 of 2"
        assert line in capsys.readouterr().err or part == "test"
    write(tmp_path / "texts" / "test.jsonl", texts[:1])
    with pytest.raises(ValueError, match="texts: no example of test is left beside the other"):
        load_parts([talks, str(tmp_path / "texts")])


@pytest.mark.parametrize("column", ["text", "completion"])
def test_a_mixture_of_texts_leaves_out_those_that_another_trains_on(tmp_path, capsys, column):
    """Texts ask nothing, and are none the same for that; a dialogue among them asks something."""

    def rows(texts):
        return [{"prompt": "", column: text} for text in texts]

    names = [str(tmp_path / name) for name in ("tA", "tB")]
    dialogue = "\n\nHuman: What is rust?\n\nAssistant: "
    for name, own in (("tA", ["A text 90"]), ("tB", ["B text 90", f"{dialogue}Iron."])):
        write(
            tmp_path / name / "train.jsonl",
            rows([*(f"{name[1]} text {k}" for k in range(30)), *own]),
        )
    held = ["B text 3", "A text 3", f"{dialogue}A language.", "A text 99"]
    for split in ("validation", "test"):
        write(tmp_path / "tA" / f"{split}.jsonl", rows(held))
        write(tmp_path / "tB" / f"{split}.jsonl", rows(["B text 98"]))
    parts = load_parts(names, conversations=True)
    assert [len(data.examples) for data in parts.values()] == [63, 3, 3]
    kept = {e.completions[0] for e in parts["validation"].examples}
    assert kept == {"A text 3", "A text 99", "B text 98"}
    assert capsys.readouterr().err.count("trains on the question: 2 of 4") == 2


def test_examples_in_two_datasets_keep_their_own_ids(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name / "train.jsonl", pairs("the same", 3))
        for split in ("validation", "test"):
            write(tmp_path / name / f"{split}.jsonl", pairs(f"{name} {split}", 2))
    train = load_parts([str(tmp_path / "one"), str(tmp_path / "two")])["train"]
    ids = [example.id for example in train.examples]
    assert len(set(ids)) == 6 and ids[3:] == [f"{id_}@two" for id_ in ids[:3]]


def test_labels(tmp_path):
    path = write(tmp_path / "data" / "my.pairs.jsonl", pairs("p", 2))
    hub = ["org/a-b", "other/a-b", "org/c:test", path]
    assert dataset_labels(hub) == ["org/a-b", "other/a-b", "c:test", "my"]
    part = write(tmp_path / "data" / "train.jsonl", pairs("p", 2))  # eval_train is something else
    assert dataset_labels([part, "org/test", "org/a"]) == ["data/train", "org/test", "a"]
    with pytest.raises(ValueError, match="--dataset_name org/a is given twice"):
        dataset_labels(["org/a", "org/b", "org/a"])


def test_evaluation_sets(tmp_path, capsys):
    """A whole split each: the one named, else validation, else test, else the only one; examples
    whose question is trained on are left out, and counted; at most n_eval."""
    train = splits(tmp_path, "own", 30)
    three = splits(tmp_path, "three", 5)
    write(tmp_path / "two/train.jsonl", pairs("two train", 4))
    write(tmp_path / "two/test.jsonl", [*pairs("two", 3), *pairs("own train", 2)])
    alone = write(tmp_path / "more" / "test.jsonl", pairs("alone", 9))
    specs = [three, f"{tmp_path / 'three'}:test", str(tmp_path / "two"), alone]
    parts = load_parts([train], eval_names=specs, n_eval=4)
    sizes = {name: len(data.examples) for name, data in parts.items()}
    labels = {"three": 2, "three:test": 2, "two": 3, "more/test": 4}
    assert sizes == {"train": 30, "validation": 2, "test": 2, **labels}
    assert named_sets(parts) == {name: parts[name] for name in labels}
    prompts = {name: {e.prompt for e in parts[name].examples} for name in labels}
    assert prompts["three"] == {"three validation 0?", "three validation 1?"}
    assert prompts["three:test"] == {"three test 0?", "three test 1?"}
    assert prompts["two"] == {"two 0?", "two 1?", "two 2?"}
    printed = capsys.readouterr().err
    assert "two: evaluation set, split test: 5 examples, dropped: none" in printed
    assert "left out because its question is trained on: 2\n" in printed
    assert "more/test: the evaluation set limited to 4 examples" in printed
    joined = load_parts([train, str(tmp_path / "two")], eval_names=[three], n_eval=4)
    assert list(joined) == ["train", "validation", "test", "three"]
    for wrong, message in (
        ([train], "is --dataset_name, whose validation part is evaluated anyway"),
        ([f"{train}:train"], "all its questions are trained on"),
        ([alone, alone], "is given twice"),
    ):
        with pytest.raises(ValueError, match=f"--eval_dataset_name .* *{message}"):
            load_parts([train], eval_names=wrong)


def test_evaluation_sets_do_not_depend_on_how_many_examples_are_trained_on(tmp_path):
    """What is left out is the questions of the whole training part."""
    train = splits(tmp_path, "own", 30)
    other = write(tmp_path / "o.jsonl", [*pairs("own train", 30), *pairs("o", 3)])
    found = [load_parts([train], eval_names=[other], n_train=n)["o"].examples for n in (None, 5)]
    assert found[0] == found[1] and len(found[0]) == 3
