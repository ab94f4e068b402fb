"""Judges for tests: a reward model trained on the spot, an endpoint that answers as told."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from calculate_win_rate import GENERATION_FLAGS, main, parse_args
from ranking.data.preferences import load_preferences
from ranking.judging.responses import generation_settings
from ranking.judging.served_model import TRIAL
from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import hash_config, write_json_lines
from ranking.scoring.flags import take
from reproduce import train_reward_model


def flags(folder, judge, *more, name="wins.jsonl") -> list[str]:
    common = ["--judge", judge, "--output-dir", folder, "--output-filename", name]
    return [str(flag) for flag in (*common, *more)]


def run(*arguments) -> None:
    run_script(main, parse_args(list(arguments)))


def error_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1
    return lines[0]


def train_judge(model: Path, preferences: Path, folder: Path) -> Path:
    arguments = ["--lm-name-or-path", model, "--dataset", preferences, "--n-test-pairs",
                 "20", "--epochs", "12", "--learning-rate", "3e-3", "--output-dir", folder,
                 "--unless-trained-on", "10", "--device", "cpu"]  # fmt: skip
    train_reward_model.main(train_reward_model.parse_args([str(a) for a in arguments]))
    facts = json.loads((folder / "accuracy.json").read_text())
    assert facts["n_test"] == 20 and facts["accuracy"] >= 0.9
    return folder


def write_responses(path: Path, model, dataset: Path, side: str) -> Path:
    """A responses file in which `model` answers with the chosen or the rejected completions."""
    args = parse_args(flags(".", "openai:m", "--lm-name-or-path", model, "--against", "chosen"))
    settings = generation_settings(str(model), **take(vars(args), GENERATION_FLAGS))
    examples = load_preferences(str(dataset)).examples
    rows = [
        {**settings, "generation": hash_config(settings), "id": e.id, "finished": True, "n_tokens": 9,
         "response": e.completions[("chosen", "rejected").index(side)].strip()}
        for e in examples
    ]  # fmt: skip
    write_json_lines(path, rows)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def judge_line(answer):
    """An endpoint that gives `answer(body)`: (status, content). `seen`: bodies and keys of all
    requests but the trial; `over`: set when nothing more is asked."""

    class Line(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(content)
            if body["messages"] != TRIAL:
                line.seen.append((body, self.headers["Authorization"]))
            status, content = answer(body)
            with contextlib.suppress(ConnectionError):  # the client has given up
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    line = ThreadingHTTPServer(("127.0.0.1", 0), Line)
    line.seen, line.over = [], threading.Event()
    line.address = f"http://127.0.0.1:{line.server_address[1]}/v1"
    thread = threading.Thread(target=line.serve_forever)
    thread.start()
    try:
        yield line
    finally:
        line.over.set()
        line.shutdown()
        thread.join()
        line.server_close()


def completion(text: str) -> tuple[int, bytes]:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return 200, json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                            "choices": choices}).encode()  # fmt: skip
