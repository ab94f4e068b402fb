"""reproduce/search.py: which run of a grid is chosen, and what is shown of the others."""

import json
from pathlib import Path

import pytest

from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import read_json_lines
from reproduce import search, tables


def write_run(folder: Path, losses: list[float], learning_rate=1e-6, finished=True, **more) -> Path:
    """A run that evaluated every 10 steps from step 0 on. more: of its settings, or `diverged`."""
    folder.mkdir()
    run = {"finished": finished, "wandb_id": "x"}
    run |= {"diverged": more.pop("diverged")} if "diverged" in more else {}
    settings = {
        "model_name_or_path": "models/gpt2_sft", "seed": 0, "learning_rate": learning_rate,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "n_processes": 4,
    }  # fmt: skip
    (folder / "run_config.json").write_text(json.dumps({**run, "settings": settings | more}))
    history = [{"step": 10 * k, "eval_loss": loss} for k, loss in enumerate(losses)]
    state = {"max_steps": 30, "log_history": [{"step": 10, "loss": 0.1}, *history]}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_the_lowest_validation_loss_chooses(tmp_path, capsys):
    """Step 0 is no result of a run; the first of equal losses counts; NaN is not low; a run that
    diverged after a low loss is not chosen."""
    nan = float("nan")
    runs = [
        write_run(tmp_path / "a", [0.1, 0.7, 0.6, 0.65], beta=0.1),
        write_run(tmp_path / "b", [0.1, 0.5, 0.5, nan], 1e-5, beta=1.0),
        write_run(tmp_path / "c", [0.1, 0.2], finished=False, diverged=17, beta=10.0),
        write_run(tmp_path / "d", [0.1, nan, nan, nan], 1e-3, beta=10.0),
    ]
    out, link = tmp_path / "points.jsonl", tmp_path / "chosen"
    words = [*map(str, runs), "--output", str(out), "--link", str(link)]
    search.main(search.parse_args(words))
    printed = capsys.readouterr().out
    assert "4 runs, 2 diverged" in printed and "different functions" in printed
    rows = read_json_lines(out)
    assert [(r["lowest_loss"], r["step"], r["diverged"], r["chosen"]) for r in rows] == [
        (0.6, 20, False, False), (0.5, 10, False, True), (None, None, True, False),
        (None, None, True, False),
    ]  # fmt: skip
    assert {row["batch_size"] for row in rows} == {64} and rows[1]["learning_rate"] == 1e-5
    assert link.is_symlink() and link.resolve() == runs[1].resolve()
    tables.main(tables.parse_args(["search", str(out)]))
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == (
        "| model | learning rate | batch size | beta | lowest validation loss | step | chosen |"
    )
    assert shown[2] == "| gpt2_sft | 1e-05 | 64 | 1 | 0.5000 | 10 of 30 | yes |"
    assert [line.split(" | ")[4] for line in shown[3:]] == ["0.6000", "diverged", "diverged"]
    again = tmp_path / "moved"  # both may be moved, and the choice may change
    again.mkdir()
    for name in ("a", "b", "chosen"):
        (tmp_path / name).rename(again / name)
    assert link.parent / "moved" / "b" == (again / "chosen").resolve()
    search.replace_link(again / "chosen", again / "a")
    assert (again / "chosen").resolve() == (again / "a").resolve()


def test_the_loaded_best_model_is_no_evaluation_of_the_last_step(tmp_path):
    """Its loss, evaluated again after training, may round below what chose it."""
    folder = write_run(tmp_path / "a", [0.1, 0.5, 0.6, 0.7])
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"].append({"step": 30, "eval_loss": 0.5 - 1e-7})
    (folder / "trainer_state.json").write_text(json.dumps(state))
    point = search.search_point(folder)
    assert (point["lowest_loss"], point["step"]) == (0.5, 10)


def refused(*words) -> None:
    run_script(search.main, search.parse_args([str(word) for word in words]))


def test_what_cannot_be_chosen_from_is_one_line(tmp_path, capsys):
    whole = write_run(tmp_path / "whole", [0.1, 0.5])
    going = write_run(tmp_path / "going", [0.1, 0.5], finished=False)
    other = write_run(tmp_path / "other", [0.1, 0.5], seed=1)
    never = write_run(tmp_path / "never", [0.1])
    lost = write_run(tmp_path / "lost", [], finished=False, diverged=3)
    out = ["--output", tmp_path / "points.jsonl"]
    for words, error in (
        ([whole, going, *out], f"{going} has not ended"),
        ([whole, other, *out], "runs of several values of seed"),
        ([never, *out], f"{never}: no validation loss"),
        ([lost, *out], "all 1 runs diverged"),
        ([whole, *out, "--link", other], f"--link {other} is a folder of its own"),
    ):
        with pytest.raises(SystemExit) as stop:
            refused(*words)
        printed = capsys.readouterr().err
        assert stop.value.code == 2 and printed.startswith(f"error: {error}")
        assert printed.count("\n") == 1 and not out[1].exists()


def test_sft_and_dpo_in_one_table():
    """SFT has no β."""
    point = {"model": "m", "learning_rate": 1e-5, "batch_size": 8, "lowest_loss": 0.5, "step": 1,
             "max_steps": 2, "diverged": False, "chosen": True}  # fmt: skip
    columns, lines = search.search_table([{**point, "beta": None}, {**point, "beta": 0.1}])
    assert [line[columns.index("beta")] for line in lines] == ["–", "0.1"]
