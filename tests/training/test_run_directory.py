"""Who may have an output directory, what is discarded there, and where a run begins."""

import json

import pytest
from checkpoint_files import make_checkpoint

from ranking.data.preferences import load_preferences
from ranking.plumbing.outputs import release_outputs
from ranking.plumbing.result_files import write_json_lines
from ranking.training.run_directory import (
    claim_directory,
    gamma_of,
    mark_run,
    run_description,
)

SETTINGS = {"beta": 0.1, "n_processes": 1}


@pytest.fixture(autouse=True)
def locks():
    yield
    release_outputs()


def claim(folder, settings=None, overwrite=False, checkpoint=None):
    return claim_directory(folder, settings or SETTINGS, overwrite, checkpoint, [])


def test_an_unfinished_run_goes_on_with_or_without_overwrite(tmp_path):
    folder = tmp_path / "run"
    assert claim(folder) is None
    make_checkpoint(folder, 4)
    last = make_checkpoint(folder, 12)
    (folder / "checkpoint-best").mkdir()  # not ours
    assert claim(folder) == claim(folder, overwrite=True) == str(last)
    with pytest.raises(ValueError, match=r"other settings \(n_processes differ\)"):
        claim(folder, {**SETTINGS, "n_processes": 2})
    assert claim(folder, {**SETTINGS, "later_flag": False}) == str(last)  # of an earlier version
    with pytest.raises(ValueError, match=r"other settings \(later_flag differ\)"):
        claim(folder, {**SETTINGS, "later_flag": 1.5})


def test_changed_labels_are_other_settings(tmp_path):
    row, described = {"prompt": "p", "completions": ["a", "b"]}, []
    for ranks in ([1, 2], [2, 1]):
        write_json_lines(tmp_path / "data.jsonl", [{**row, "ranks": ranks}])
        parts = {"train": load_preferences(str(tmp_path / "data.jsonl"))}
        described.append(run_description([], models=[], parts=parts))
    claim(tmp_path / "run", described[0])
    make_checkpoint(tmp_path / "run", 4)
    with pytest.raises(ValueError, match=r"other settings \(data_fingerprints differ\)"):
        claim(tmp_path / "run", described[1])


def test_a_run_that_trained_nothing_gives_way(tmp_path, capsys):
    """But not one that left a checkpoint, a model, or evaluations."""
    folder = tmp_path / "run"
    claim(folder)
    (folder / "ranking_dynamics.jsonl").write_text("")
    (folder / "base").mkdir()
    (folder / "base/thesis.txt").write_text("mine")
    assert claim(folder, {**SETTINGS, "beta": 0.2}) is None
    assert "other settings (beta) and trained nothing: starting anew" in capsys.readouterr().err
    assert json.loads((folder / "run_config.json").read_text())["settings"]["beta"] == 0.2
    assert (folder / "base/thesis.txt").exists()
    for name in ("ranking_dynamics.jsonl", "model.safetensors", "checkpoint-4/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=r"other settings \(beta differ\)"):
            claim(folder, SETTINGS)
        (folder / name).unlink()


def test_overwrite_discards_what_a_run_wrote_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    claim(folder)
    make_checkpoint(folder, 4)
    mark_run(folder, SETTINGS, finished=True)
    (folder / "model.safetensors").write_text("")
    (folder / "thesis.txt").write_text("mine")
    (folder / "checkpoint-best").mkdir()
    with pytest.raises(ValueError, match="holds a finished run"):
        claim(folder)
    assert claim(folder, overwrite=True) is None
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"run_config.json", "thesis.txt", "checkpoint-best"}
    assert not json.loads((folder / "run_config.json").read_text())["finished"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_somebody_else_is_refused(tmp_path, overwrite):
    make_checkpoint(tmp_path, 500)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds a model \(checkpoint-500\) that no run"):
        claim(tmp_path, overwrite=overwrite)
    assert (tmp_path / "base/thesis.txt").exists() and (tmp_path / "checkpoint-500").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"finished": true, "settings": {}}', "\xff"])
def test_a_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / "run_config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="run_config.json is not what a training run wrote"):
        claim(tmp_path, overwrite=True)


def test_where_a_run_begins(tmp_path):
    """A checkpoint of another run, until there is one of its own; never one that is not there."""
    other = str(make_checkpoint(tmp_path / "other", 8))
    folder = tmp_path / "run"
    for wrong in ("true", str(tmp_path / "none")):
        with pytest.raises(ValueError, match="is no directory: leave the flag out"):
            claim(folder, checkpoint=wrong)
    assert not folder.exists()
    assert claim(folder, checkpoint=other) == other == claim(folder, checkpoint=other)
    first, own = make_checkpoint(folder, 2), make_checkpoint(folder, 10)
    assert claim(folder, checkpoint=other) == str(own)
    with pytest.raises(ValueError, match="checkpoint-10 is newer than --resume_from_checkpoint"):
        claim(folder, checkpoint=str(first))
    mark_run(folder, SETTINGS, finished=True)
    with pytest.raises(ValueError, match="would be discarded by --overwrite_output_dir"):
        claim(folder, checkpoint=str(own), overwrite=True)
    assert own.exists()


def test_settings_stand_in_the_order_of_their_flags():
    """A fingerprint of a trained model covers the file: data, model and training flags, by name."""
    flags = [{"z_data": 0, "a_data": 1, "output_dir": "d"}, {"b_model": 2}, {"a_training": 3}]
    described = run_description(flags, models=[], parts={})
    assert list(described)[3:] == ["a_data", "z_data", "b_model", "a_training"]


@pytest.mark.parametrize(
    ("name", "what"),
    [("ranking_dynamics.jsonl", "results"), ("test_results.json", "results"),
     ("model-00001-of-00002.safetensors", "a model"), ("adapter_config.json", "a model")],
)  # fmt: skip
def test_what_no_run_wrote_is_never_written_over(tmp_path, name, what):
    """A run would empty the dynamics and replace the others."""
    (tmp_path / name).write_text("{}\n")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=rf"holds {what} \({name}\) that no run of this"):
            claim(tmp_path, overwrite=overwrite)
    assert (tmp_path / name).read_text() == "{}\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": 3}', '{"settings": {}}', "\xff"])
def test_gamma_of_a_directory_that_does_not_say_it(tmp_path, content):
    assert gamma_of(tmp_path) is None
    (tmp_path / "run_config.json").write_bytes(content.encode("latin-1"))
    assert gamma_of(tmp_path) is None
