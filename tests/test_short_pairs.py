"""reproduce/short_pairs.py on rows in the columns of HH-RLHF."""

import json

import pytest
from transformers import AutoTokenizer

from ranking.plumbing.result_files import read_json_lines
from reproduce.short_pairs import main, parse_args

ASKED = "\n\nHuman: What is it?\n\nAssistant:"


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data" / "Anthropic/hh-rlhf"
    folder.mkdir(parents=True)
    rows = [{"chosen": f"{ASKED} {'a ' * k}end", "rejected": f"{ASKED} {'b ' * (20 - k)}end"}
            for k in range(1, 20)]  # fmt: skip
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path / "data"


def test_both_dialogues_are_short(tiny_model_directory, data_dir, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_directory)
    rows = read_json_lines(data_dir / "Anthropic/hh-rlhf/train.jsonl")
    longest = [max(len(tokenizer(text).input_ids) for text in row.values()) for row in rows]
    limit = sorted(longest)[4]
    flags = [f"--lm-name-or-path={tiny_model_directory}", f"--max-tokens={limit}",
             f"--data-dir={data_dir}", f"--output-dir={tmp_path / 'short'}"]  # fmt: skip
    main(parse_args(flags))
    expected = [row for row, n in zip(rows, longest) if n <= limit]
    assert 5 <= len(expected) < len(rows)
    for split in ("train", "test"):
        assert read_json_lines(tmp_path / f"short/Anthropic/hh-rlhf/{split}.jsonl") == expected
    assert f"{len(expected)} of 19 pairs" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is there already"):
        main(parse_args(flags))


def test_nothing_is_written_before_both_splits_are_read(tiny_model_directory, data_dir, tmp_path):
    (data_dir / "Anthropic/hh-rlhf/test.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    flags = [f"--lm-name-or-path={tiny_model_directory}", "--max-tokens=99",
             f"--data-dir={data_dir}", f"--output-dir={tmp_path / 'short'}"]  # fmt: skip
    with pytest.raises(ValueError, match="test has no rows of chosen, rejected"):
        main(parse_args(flags))
    assert not (tmp_path / "short").exists()


def test_none_is_short_enough(tiny_model_directory, data_dir, tmp_path):
    flags = [f"--lm-name-or-path={tiny_model_directory}", "--max-tokens=3",
             f"--data-dir={data_dir}", f"--output-dir={tmp_path / 'short'}"]  # fmt: skip
    with pytest.raises(ValueError, match="--max-tokens 3: no pair of train is so short"):
        main(parse_args(flags))
    assert not (tmp_path / "short").exists()
