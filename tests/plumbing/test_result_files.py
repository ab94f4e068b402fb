"""JSON lines as result files have them, read back."""

import gzip

import pytest

from ranking.plumbing.result_files import read_cached, read_json_lines, write_json_lines

ROWS = [{"dataset": "été", "loss": 0.5}, {"dataset": "b", "loss": None}]


def test_a_file_and_the_same_made_smaller(tmp_path):
    write_json_lines(tmp_path / "a.jsonl", ROWS)
    packed = gzip.compress((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    assert read_json_lines(tmp_path / "a.jsonl") == ROWS
    assert read_json_lines(tmp_path / "a.jsonl.gz") == ROWS
    for name, content in (
        ("torn", packed[:-9]),
        ("plain", b'{"a": 1}\n'),
        ("wrong", packed[:12] + b"x" * 40),
    ):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read .*{name}.jsonl.gz: "):
            read_json_lines(tmp_path / f"{name}.jsonl.gz")


def test_what_is_no_row_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(ValueError, match=r"a.jsonl: row 3: not a JSON object"):
        read_json_lines(tmp_path / "a.jsonl")


def test_what_is_no_line_of_a_cache_is_left_out(tmp_path):
    lines = ['["k", "A"]', "5", "null", '["a"]', '[["b"], "A"]', "\0\0", '["c", "B', '["d", "B"]']
    (tmp_path / "judge.jsonl").write_text("\n".join(lines))
    assert read_cached(tmp_path / "judge.jsonl") == {"k": "A", "d": "B"}
    assert read_cached(tmp_path / "none.jsonl") == {}
