"""Train, validation and test parts share no prompt."""

import json

import pytest
from preference_rows import DATA_DIR

from ranking.data.sources import available_splits
from ranking.data.splits import load_evaluation_set, load_training_splits


def pair_rows(n, prefix="q"):
    return [{"prompt": f"{prefix}{k}?", "chosen": f"a{k}", "rejected": f"b{k}"} for k in range(n)]


def write_folder(folder, **splits):
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def prompts(parts):
    return {name: {e.prompt for e in data.examples} for name, data in parts.items()}


def test_one_split_is_divided_by_prompt_and_seed(tmp_path):
    """80/10/10 of the prompts; the several pairs of a prompt stay together."""
    rows = [{**row, "chosen": f"{row['chosen']}-{k}"} for row in pair_rows(50) for k in range(3)]
    spec = write_folder(tmp_path / "d", only=rows)
    parts, notes = load_training_splits(spec)
    found = prompts(parts)
    assert [len(found[name]) for name in ("train", "validation", "test")] == [40, 5, 5]
    assert len(set.union(*found.values())) == 50
    assert [len(data.examples) for data in parts.values()] == [120, 15, 15]
    assert notes[-1] == "train: 120, validation: 15, test: 15"
    assert prompts(load_training_splits(spec)[0]) == found
    assert prompts(load_training_splits(spec, seed=1)[0]) != found
    (tmp_path / "file.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prompts(load_training_splits(str(tmp_path / "file.jsonl"))[0]) == found


def test_evaluation_splits(tmp_path):
    """A lone test split is halved with seed 0; validation and test are taken as they are."""
    both = write_folder(tmp_path / "both", train=pair_rows(30, "r"), test=pair_rows(20, "s"))
    halved, notes = load_training_splits(both, seed=5)
    again, _ = load_training_splits(both, seed=6)
    assert prompts(halved) == prompts(again) and "test is halved" in notes[2]
    assert [len(d.examples) for d in halved.values()] == [30, 10, 10]
    whole = prompts(halved)["validation"] | prompts(halved)["test"]
    assert whole == {f"s{k}?" for k in range(20)}

    three = write_folder(tmp_path / "three", train=pair_rows(9, "r"), validation=pair_rows(4, "v"),
                         test=pair_rows(3, "s"))  # fmt: skip
    parts, _ = load_training_splits(three)
    assert {name: next(iter(p))[0] for name, p in prompts(parts).items()} == {
        "train": "r", "validation": "v", "test": "s"
    }  # fmt: skip
    parts, _ = load_training_splits(three, train_split="validation", eval_split="train")
    assert {name: next(iter(p))[0] for name, p in prompts(parts).items()} == {
        "train": "v", "validation": "r", "test": "s"
    }  # fmt: skip
    with pytest.raises(FileNotFoundError, match="split 'dev'"):
        load_training_splits(three, eval_split="dev")
    odd = write_folder(tmp_path / "odd", first=pair_rows(9), second=pair_rows(9))
    with pytest.raises(ValueError, match="choose one by --train_split"):
        load_training_splits(odd)
    held = write_folder(tmp_path / "held", train=pair_rows(9), held=pair_rows(9, "v"))
    with pytest.raises(ValueError, match="choose one by --eval_split"):
        load_training_splits(held)
    with pytest.raises(ValueError, match="names a split, and --train_split train another"):
        load_training_splits(f"{three}:test", train_split="train")
    with pytest.raises(ValueError, match="too few examples to divide"):
        load_training_splits(write_folder(tmp_path / "few", train=pair_rows(3)))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train_sft", "test_sft", "train_prefs", "test_prefs", "test_gen"], "train_prefs test_prefs"),
        (["train", "dev"], "train dev"),
        (["train", "eval", "test"], "train eval test"),
        (["train", "valid", "dev", "test"], "train valid test"),
        (["train_prefs", "validation_prefs", "test_prefs"], "train_prefs validation_prefs test_prefs"),
        (["training", "evaluation"], "training evaluation"),
        (["train_sft", "test_sft", "test"], "train_sft test_sft"),
        (["training", "test", "testing"], "training test"),
    ],
)  # fmt: skip
def test_splits_as_people_name_them(splits, expected, tmp_path):
    """The names of the splits that are read, by the first letters of their prompts."""
    folder = write_folder(tmp_path / "d", **{s: pair_rows(20, f"{s} ") for s in splits})
    parts, _ = load_training_splits(folder)
    read = [prompt.split()[0] for found in prompts(parts).values() for prompt in found]
    assert list(dict.fromkeys(read)) == expected.split()
    assert available_splits(folder) == sorted(splits)


def test_a_configuration_is_trained_on_by_its_name(tmp_path):
    for config in ("chat", "code"):
        write_folder(tmp_path / config, train=pair_rows(9, config), dev=pair_rows(8, f"{config}-v"))
    parts, _ = load_training_splits(f"{tmp_path}:code")
    assert [len(data.examples) for data in parts.values()] == [9, 4, 4]
    assert all(p.startswith("code") for found in prompts(parts).values() for p in found)
    parts, _ = load_training_splits(f"{tmp_path}:code:dev", eval_split="train")
    assert {p[:6] for p in prompts(parts)["train"]} == {"code-v"}


def test_too_few_prompts_are_divided_by_example(tmp_path):
    """One prompt and 30 answers; a test split of one prompt."""
    rows = [{"prompt": "p", "chosen": f"a{k}", "rejected": f"b{k}"} for k in range(30)]
    parts, notes = load_training_splits(write_folder(tmp_path / "one", only=rows))
    assert [len(data.examples) for data in parts.values()] == [24, 3, 3]
    found = [e.completions[0] for data in parts.values() for e in data.examples]
    assert sorted(found) == sorted(row["chosen"] for row in rows)
    assert "divided by example into 80/10/10 % (seed 0): too few prompts to divide" in notes[1]
    spec = write_folder(tmp_path / "half", train=pair_rows(9), test=rows)
    parts, notes = load_training_splits(spec)
    assert [len(data.examples) for data in parts.values()] == [9, 15, 15]
    assert "test is halved by example (seed 0): too few prompts" in notes[2]


def test_dialogues_that_go_on_in_train_are_left_out(tmp_path):
    """A dialogue and its continuation are two prompts; none is trained on and validated."""
    rows = []
    for k in range(60):
        prompt = f"\n\nHuman: q{k}\n\nAssistant:"
        rows.append({"prompt": prompt, "chosen": " a", "rejected": " b"})
        rows.append(
            {"prompt": f"{prompt} a\n\nHuman: and?\n\nAssistant:", "chosen": " c", "rejected": " d"}
        )
    parts, notes = load_training_splits(write_folder(tmp_path / "d", only=rows))
    first = {
        name: {p.split("\n\nAssistant:")[0] for p in found}
        for name, found in prompts(parts).items()
    }
    assert not first["train"] & (first["validation"] | first["test"])
    n_left = sum(len(data.examples) for data in parts.values())
    assert f"also in train: {120 - n_left}" in notes[1] and 96 < n_left < 120


@pytest.mark.parametrize("column", ["text", "completion"])
def test_texts_are_divided_by_themselves(tmp_path, column):
    """They ask nothing: equal ones, and dialogues that open alike, are in one part."""
    talks = [f"\n\nHuman: q{k}\n\nAssistant: {a}" for k in range(20) for a in ("yes", "no")]
    texts = [f"text {k}" for k in range(20)]
    rows = [{"prompt": "", column: text} for text in (*talks, *texts, *texts)]
    spec = write_folder(tmp_path / "d", only=rows)
    parts, notes = load_training_splits(spec, conversations=True)
    assert "divided by prompt into 80/10/10 %" in notes[1]
    found = [
        {e.completions[0].split("\n\nAssistant:")[0] for e in d.examples} for d in parts.values()
    ]
    assert not found[0] & (found[1] | found[2])
    copies = [[e.completions[0] for e in d.examples if "Human" not in e.completions[0]]
              for d in parts.values()]  # fmt: skip
    assert sorted(text for part in copies for text in part) == sorted(2 * texts)
    assert all(part.count(text) == 2 for part in copies for text in part)


@pytest.mark.skipif(not DATA_DIR.is_dir(), reason="needs DATA_DIR")
def test_real_hh_is_divided():
    parts, notes = load_training_splits("Anthropic/hh-rlhf", data_dir=DATA_DIR)
    found = prompts(parts)
    assert not found["train"] & found["validation"] and not found["train"] & found["test"]
    assert len(parts["validation"].examples) + len(parts["test"].examples) == 1985
    assert not found["validation"] & found["test"] and "test is halved" in notes[2]


def test_all_files_of_a_folder_are_divided(tmp_path):
    """Files that are no splits, read together."""
    spec = write_folder(tmp_path / "parts", chat=pair_rows(30, "c"), code=pair_rows(20, "d"))
    parts, notes = load_training_splits(f"{spec}:*")
    found = set.union(*prompts(parts).values())
    assert len(found) == 50 and "divided by prompt" in notes[1]
    assert len(load_evaluation_set(f"{spec}:*").examples) == 50
    with pytest.raises(ValueError, match="has the splits chat, code: choose one by --train_split"):
        load_training_splits(spec)
