"""Real processes stopped by signals, started twice, and writing where they cannot."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paused import ROWS_WRITTEN, start_paused

from ranking.plumbing import command_line
from ranking.plumbing.command_line import Stopped, run_script, until_stopped
from ranking.plumbing.outputs import lock_outputs, release_outputs
from ranking.plumbing.result_files import read_json_lines

ROOT = Path(__file__).parents[2]
EVALUATION = ("calculate_calibration_metrics", "calculate_upper_bound_rlhf", "calculate_win_rate")


def scoring_command(model, folder, *more) -> list[str]:
    arguments = ["--lm-name-or-path", model, "--dataset", "sample", "--batch-size", "1",
                 "--sample-size", "60", "--output-dir", folder, "--output-filename", "run.jsonl"]  # fmt: skip
    script = ROOT / "calculate_calibration_metrics.py"
    return [str(word) for word in (sys.executable, script, *arguments, *more)]


def start_scoring(model, folder) -> subprocess.Popen:
    """A scoring process that has written its first rows and waits for SIGCONT."""
    return start_paused(ROWS_WRITTEN, 3, *scoring_command(model, folder)[1:],
                        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # fmt: skip


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    """As `| head -1`: no line of ours, and the exit code of a closed pipe."""
    program = "from ranking.plumbing.command_line import run_script\n"
    program += "run_script(lambda _: [print('x' * 999, flush=True) for _ in range(9999)], None)"
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert run.stdout.readline() == "x" * 999 + "\n"
    run.stdout.close()
    assert run.wait() == 128 + signal.SIGPIPE and run.stderr.read() == ""


# ---------------------------------------------------------------------------- signals
def test_the_batch_at_hand_is_used_before_the_stop():
    used = []
    with pytest.raises(SystemExit) as stop:

        def main(args):
            for batch in until_stopped(iter(range(5)), lambda: f"{len(used)} are saved"):
                if batch == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                used.append(batch)

        run_script(main, None)
    assert used == [0, 1, 2] and stop.value.code == 143
    before = signal.getsignal(signal.SIGTERM)
    assert before == signal.SIG_DFL  # put back


def test_a_second_signal_stops_at_once():
    used = []

    def main(args):
        for batch in until_stopped(iter(range(5)), lambda: ""):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            used.append(batch)

    with pytest.raises(SystemExit) as stop:
        run_script(main, None)
    assert used == [] and stop.value.code == 130


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_stopped_scoring_says_what_is_saved_and_resumes(
    tiny_model_directory, tmp_path, number, code
):
    process = start_scoring(tiny_model_directory, tmp_path)
    if number == signal.SIGTERM:  # a second process on the same output is refused meanwhile
        second = subprocess.run(
            scoring_command(tiny_model_directory, tmp_path), capture_output=True, text=True
        )
        assert second.returncode == 2
        assert f"error: another process is writing {tmp_path / 'run.jsonl'}" in second.stderr
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, stderr = process.communicate()
    assert process.returncode == code, stderr
    n_saved = (tmp_path / "run.examples.jsonl").read_bytes().count(b"\n")
    line = stderr.splitlines()[-1]
    assert f"stopped by {number.name}: {n_saved} of " in line and "the same command resumes" in line
    assert (tmp_path / "run.examples.jsonl").read_bytes().endswith(b"\n") and n_saved < 59
    finished = subprocess.run(
        scoring_command(tiny_model_directory, tmp_path), capture_output=True, text=True
    )
    assert finished.returncode == 0 and f"resuming: {n_saved} of " in finished.stderr


@pytest.mark.parametrize(("closed", "code"), [("", 129), ("trap '' HUP; ", 0)])
def test_a_closed_terminal_stops_and_nohup_goes_on(closed, code):
    script = (
        "import os, signal, sys; sys.path.insert(0, '.'); from ranking.plumbing.command_line import run_script\n"
        "run_script(lambda args: os.kill(os.getpid(), signal.SIGHUP), None)"
    )
    ended = subprocess.run(
        ["bash", "-c", f'{closed}exec "$0" -c "$1"', sys.executable, script], cwd=ROOT,
        capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup's children ignore it
    )  # fmt: skip
    assert ended.returncode == code, ended.stderr


def test_a_second_signal_does_not_wait_for_threads():
    script = """
import os, signal, sys, threading
sys.path.insert(0, ".")
from ranking.plumbing.command_line import run_script, until_stopped

def main(args):
    threading.Thread(target=sys.stdin.read).start()  # a judge that does not answer
    for batch in until_stopped(iter(range(5)), lambda: ""):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

run_script(main, None)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE) as ended:
        assert ended.wait() == 143


# ---------------------------------------------------------------------------- two at once
def test_a_lock_dies_with_its_owner(tmp_path):
    """Held by another process it refuses; killed with -9, it does not."""
    code = (
        "import sys; from pathlib import Path; from ranking.plumbing.outputs import lock_outputs;"
        "lock_outputs(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "run.jsonl"
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another process is writing .*run.jsonl"):
        lock_outputs(path)
    owner.kill()
    owner.wait()
    lock_outputs(path)
    lock_outputs(path)  # ours already
    release_outputs()


# ---------------------------------------------------------------------------- places to write
def test_a_full_disk_is_one_line_and_nothing_is_lost(tiny_model_directory, tmp_path):
    """The limit on the size of files, which the system enforces as it does a full disk."""
    limited = "ulimit -f 24 && exec " + " ".join(scoring_command(tiny_model_directory, tmp_path))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("COV")}  # coverage writes too
    stopped = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, env=clean)
    assert stopped.returncode == 2, stopped.stderr
    errors = [line for line in stopped.stderr.splitlines() if "error" in line.lower()]
    assert errors == [stopped.stderr.splitlines()[-1]] and "File too large" in errors[0]
    rows = (tmp_path / "run.examples.jsonl").read_bytes()
    assert rows.count(b"\n") > 3 and not (tmp_path / "run.jsonl").exists()
    finished = subprocess.run(
        scoring_command(tiny_model_directory, tmp_path), capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    ids = [row["id"] for row in read_json_lines(tmp_path / "run.examples.jsonl")]
    assert len(ids) == len(set(ids)) > rows.count(b"\n")


@pytest.mark.parametrize("place", ["/proc/results", "/dev/null/results", "file"])
def test_where_nothing_can_be_written(place, tiny_model_directory, tmp_path, capsys):
    from calculate_calibration_metrics import main, parse_args

    (tmp_path / "file").write_text("mine")
    folder = tmp_path / place if place == "file" else Path(place)
    with pytest.raises(SystemExit) as stop:
        run_script(main, parse_args(scoring_command(tiny_model_directory, folder)[2:]))
    errors = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and errors[-1].startswith("error: ") and place in errors[-1]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write everywhere"
)
def test_a_read_only_directory(tiny_model_directory, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    command = scoring_command(tiny_model_directory, tmp_path / "locked")
    if os.geteuid() == 0:  # without the right to write everywhere
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode == 2, stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "Permission denied" in last and "locked" in last


# ---------------------------------------------------------------------------- flags
@pytest.mark.parametrize("script", [*EVALUATION, "plot_results", "reproduce.tables"])
def test_a_misspelt_flag_names_the_right_one(script, capsys):
    module = importlib.import_module(script)
    required = {
        "calculate_calibration_metrics": ["--lm-name-or-path", "m"],
        "calculate_upper_bound_rlhf": ["--lm-name-or-path", "m"],
        "calculate_win_rate": ["--lm-name-or-path", "m", "--judge", "openai:m"],
        "plot_results": ["ranking-accuracy", "f", "--output", "o"],
        "reproduce.tables": ["ranking", "f", "--fromat", "latex"],
    }[script]
    wrong, right = "--sampel-size", "--sample-size"
    if script in EVALUATION:
        required += ["--output-dir", "o", "--output-filename", "f", wrong, "3"]
    elif script == "plot_results":
        required, wrong, right = [*required, "--ta", "last"], "--ta", "--at"
    else:
        wrong, right = "--fromat", "--format"
    with pytest.raises(SystemExit) as stop:
        module.parse_args(required)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line.startswith(f"error: unknown flag {wrong}; did you mean {right}?")


def test_an_unknown_flag_is_said_before_a_missing_one(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("plot_results").parse_args(["win-rate", "f", "--ouput", "a.png"])
    assert "unknown flag --ouput; did you mean --output?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, said",
    [
        (["--dataset", "a", "b"], "b after --dataset: it takes one value; give it again for another, as in --dataset A --dataset B"),
        (["--seed=1", "2"], "2 after --seed: it takes one value"),
        (["--overwrite", "yes"], "yes after --overwrite: it takes no value"),
        (["-x"], "unknown flag -x"),
    ],
)  # fmt: skip
def test_a_word_too_many_names_the_flag_before_it(given, said, capsys):
    required = ["--lm-name-or-path", "m", "--output-dir", "o", "--output-filename", "f"]
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("calculate_calibration_metrics").parse_args([*required, *given])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said} (")


def test_help_in_a_terminal_without_these_characters():
    run = subprocess.run(
        [sys.executable, "calculate_win_rate.py", "--help"], cwd=ROOT, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert run.returncode == 0 and b"?" in run.stdout


def test_an_empty_argument_is_one_line(capsys):
    module = importlib.import_module("plot_results")
    with pytest.raises(SystemExit):
        module.parse_args(["win-rate", "f", "--output", "o", "--at", "last", "--x", ""])
    with pytest.raises(SystemExit):
        importlib.import_module("reproduce.update_readmes").parse_args([""])
    assert capsys.readouterr().err.count("error: ") == 2


@pytest.mark.parametrize("script", EVALUATION)
def test_help_has_an_example_and_groups(script, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).parse_args(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"python {script}.py --" in text
    assert all(f"\n{group}:\n" in text for group in ("output", "data", "compute"))


SCRIPTS = (*EVALUATION, "plot_results", *(
    f"{p.parent.name}.{p.stem}" for folder in ("reproduce", "benchmarks")
    for p in sorted((ROOT / folder).glob("*.py")) if "parse_args" in p.read_text()
))  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_says_what_it_is(script, monkeypatch):
    silent = []
    monkeypatch.setattr(
        command_line.Parser, "format_help",
        lambda self: silent.extend(a.dest for a in self._actions if not a.help) or "",
    )  # fmt: skip
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse_args(["--help"])
    assert silent == []


def test_stopped_is_an_interrupt():
    """Libraries that catch Exception must not swallow it."""
    assert issubclass(Stopped, KeyboardInterrupt) and not issubclass(Stopped, Exception)
    assert json.dumps(str(Stopped(signal.SIGTERM))) == '"SIGTERM"'


@pytest.mark.parametrize(
    "script, flag, default",
    [
        ("calculate_calibration_metrics", "--sample-size SAMPLE_SIZE", "1000"),
        ("calculate_upper_bound_rlhf", "--betas BETAS [BETAS ...]", "0.01 0.1 1.0 5.0 10.0"),
        ("calculate_win_rate", "--max-new-tokens MAX_NEW_TOKENS", "256"),
        ("calculate_win_rate", "--seed SEED", "0"),
        ("plot_results", "--at {lowest-loss,last}", "lowest-loss"),
    ],
)
def test_help_says_defaults(script, flag, default, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse_args(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    of_flag = words.split(f" {flag} ")[1].split(" --")[0]
    assert of_flag.endswith(f"(default: {default})") or f"(default: {default}) " in of_flag
    assert "default: None" not in words and "default: False" not in words
