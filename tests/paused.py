"""Run a script of ours that stops itself (SIGSTOP) in the middle: after so many calls of a function.

    python tests/paused.py ranking.plumbing.result_files:append_json_lines 1 calculate_calibration_metrics.py …

A test that waits for this acts on a run of which it knows how far it is, on any machine.
"""

import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS_WRITTEN = "ranking.plumbing.result_files:append_json_lines"
STEP_DONE = "transformers.trainer_callback:CallbackHandler.on_step_end"
CHECKPOINT_SAVED = "transformers.trainer_callback:CallbackHandler.on_save"


def paused_command(function: str, n_calls: int, script: Path | str, *arguments) -> list[str]:
    """The command line of a script that stops itself."""
    return [str(x) for x in (Path(__file__), function, n_calls, ROOT / script, *arguments)]


def start_paused(function: str, n_calls: int, script, *arguments, **how) -> subprocess.Popen:
    """A running script that has called the function so often and has stopped since."""
    command = [sys.executable, *paused_command(function, n_calls, script, *arguments)]
    process = subprocess.Popen(command, **how)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended before, with status {status}"
    return process


def stopped_processes(word: str, n: int, parent: subprocess.Popen) -> list[int]:
    """Ids of `n` processes that have stopped and hold `word` in their command line."""
    while True:
        assert parent.poll() is None, "it ended before"
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state == "T" and word in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:  # it has just ended
                continue
        if len(found) >= n:
            return found
        time.sleep(0.02)


def wait_for_signal(pid: int, number: int) -> None:
    """Return once a signal has reached a process that has stopped."""
    status = Path(f"/proc/{pid}/status")
    while True:
        pending = [line.split()[1] for line in status.read_text().splitlines() if "Pnd:" in line]
        if any(int(bits, 16) >> (number - 1) & 1 for bits in pending):
            return
        time.sleep(0.02)


def main() -> None:
    """What the command line above does."""
    sys.path[0] = str(ROOT)
    name, left = sys.argv[1], int(sys.argv[2])
    module, _, path = name.partition(":")
    owner = pkgutil.resolve_name(f"{module}:{path.rpartition('.')[0]}")
    function = pkgutil.resolve_name(name)

    def called(*arguments, **named):
        nonlocal left
        result = function(*arguments, **named)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return result

    setattr(owner, function.__name__, called)
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
