"""Annotators of alpaca_eval: what they ask and understand, beside the package's own loop."""

import importlib.metadata
import importlib.util
import json
import sys

import pytest
import yaml
from judges import error_of, flags, judge_line, run, write_responses

from ranking.judging.alpaca_eval_annotator import (
    alpaca_eval_judge,
    fill_template,
    import_package,
    instruction_of,
    mean_of_orders,
    read_preference,
)
from ranking.judging.verdicts import make_judge
from ranking.plumbing.result_files import read_json_lines

NEEDS_PACKAGE = pytest.mark.skipif(
    importlib.util.find_spec("alpaca_eval") is None, reason="alpaca_eval is not installed"
)
# annotators by what they are read by: a list in Python, log-probabilities, a function, a pattern
CONFIGS = (
    "alpaca_eval_gpt4",
    "weighted_alpaca_eval_gpt4_turbo",
    "alpaca_eval_gpt4_fn",
    "gpt4_turbo",
)
PAIRS = [
    {"prompt": f"\n\nHuman: Question {k}?\n\nAssistant:", "policy_response": f"Long {'very ' * k}one",
     "other_response": "Short one"} for k in range(1, 7)
]  # fmt: skip


def chat_completion(
    text: str | None, arguments: str | None = None, logprobs=None
) -> tuple[int, bytes]:
    """As OpenAI answers, with its counts of tokens."""
    message = {"role": "assistant", "content": text}
    if arguments is not None:
        called = {"name": "make_leaderboard", "arguments": arguments}
        message["tool_calls"] = [{"id": "x", "type": "function", "function": called}]
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return 200, json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m",
                            "choices": [choice], "usage": usage}).encode()  # fmt: skip


def first_is_better(body: dict) -> bool:
    """Of the two replies in a request; about question 3 always the one that is shown first."""
    text = body["messages"][-1]["content"]
    return "Question 3" in text or text.rfind("Long very") < text.rfind("Short one")


def judged_by(body: dict) -> tuple[int, bytes]:
    """What each kind of annotator asks for."""
    first = first_is_better(body)
    ranking = [{"model": f"model_{k}", "rank": k if first else 3 - k} for k in (1, 2)]
    if body.get("logprobs"):
        tops = [{"token": t, "logprob": p, "bytes": [1]} for t, p in
                (("m", -0.1 if first else -1.5), ("M", -1.5 if first else -0.1), ("x", -9.0))]  # fmt: skip
        content = [{"token": "m", "logprob": -0.1, "bytes": [1], "top_logprobs": tops}]
        return chat_completion("m", logprobs={"content": content, "refusal": None})
    if body.get("tools"):
        return chat_completion(None, json.dumps({"ordered_models": ranking}))
    if "Output (a)" in body["messages"][-1]["content"]:
        return chat_completion("Output (a)" if first else "Output (b)")
    return chat_completion(str(ranking))


def judge_of(config: str, address: str):
    return make_judge(
        f"alpaca_eval:{config}", judge_base_url=address, judge_timeout=600, judge_retries=0,
        judge_concurrency=2, judge_price=None, device="cpu", trust_remote_code=False,
        allow_pickle=False,
    )  # fmt: skip


def request_of(body: dict) -> str:
    return json.dumps({k: v for k, v in body.items() if k != "top_p"}, sort_keys=True)


@NEEDS_PACKAGE
@pytest.mark.parametrize("config", CONFIGS)
def test_requests_and_verdicts_are_the_packages(config, tmp_path, monkeypatch):
    """Its own loop asks one order by chance: the same request as one of our two, and what it makes
    of the answer is what we do. It adds top_p = 1 to a request, which changes nothing."""
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    with judge_line(judged_by) as line:
        judge, facts = judge_of(config, line.address)
        ours = sorted(judge(PAIRS), key=lambda row: row["prompt"])
        seen = {request_of(body): None for body, _ in line.seen}
        assert len(seen) == 12 and facts["judge_fingerprint"] is not None
        line.seen.clear()
        clients = tmp_path / "clients.yaml"
        clients.write_text(
            yaml.safe_dump({"default": [{"api_key": "x", "base_url": line.address}]})
        )
        annotators = import_package("alpaca_eval.annotators")
        versions = import_package("alpaca_eval.utils")  # which it asks pkg_resources for
        monkeypatch.setattr(versions, "get_package_version", importlib.metadata.version)
        annotator = annotators.PairwiseAnnotator(annotators_config=config, caching_path=None)
        asked = [
            {"instruction": f"Question {k}?", "output_1": pair["policy_response"],
             "output_2": pair["other_response"]} for k, pair in enumerate(PAIRS, 1)
        ]  # fmt: skip
        theirs = annotator(asked, client_config_path=clients, num_procs=1)
        sent = {body["messages"][-1]["content"]: request_of(body) for body, _ in line.seen}
    assert len(sent) == 6 and set(sent.values()) <= seen.keys()
    orders = set()
    for row, its in zip(ours, theirs):
        (text,) = [text for text in sent if its["instruction"] in text]
        policy_first = text.rfind("Long very") < text.rfind("Short one")
        orders.add(policy_first)
        verdict = row["verdicts"][0] if policy_first else 1 - row["verdicts"][1]
        assert 2 - its["preference"] == pytest.approx(verdict, abs=1e-12)
        sure = 1 / (1 + 2.718281828459045 ** (-1.4)) if "weighted" in config else 1.0
        assert row["win"] == pytest.approx(0.5 if "Question 3" in row["prompt"] else sure)
        assert all("top_logprobs" not in answer for answer in row["answers"])
    assert orders == {True, False}


@NEEDS_PACKAGE
def test_a_whole_run_resumes_and_stays_with_its_judge(
    preferences, two_models, tmp_path, monkeypatch, capsys
):
    """Paid answers are kept; an unfinished run of one judge is not gone on with by another."""
    good, bad = two_models
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    more = ["--lm-name-or-path", good, "--reference-name-or-path", bad, "--dataset", preferences,
            "--sample-size", "6", "--judge-price", "30", "60"]  # fmt: skip
    for folder, side in ((good, "chosen"), (bad, "rejected")):
        more += [
            "--responses",
            write_responses(tmp_path / f"{side}.jsonl", folder, preferences, side),
        ]

    def answer(body):
        first = "thank you" in body["messages"][-1]["content"].partition('"model_2"')[0]
        return chat_completion(
            str([{"model": "model_1", "rank": 2 - first}, {"model": "model_2", "rank": 1 + first}])
        )

    with judge_line(answer) as line:
        more += ["--judge-base-url", line.address]
        judge = "alpaca_eval:alpaca_eval_gpt4:m"
        run(*flags(tmp_path, judge, *more))
        assert len(line.seen) == 12 and {body["model"] for body, _ in line.seen} == {"m"}
        captured = capsys.readouterr()
        assert "judge: 12 calls (0 more" in captured.err and "USD" in captured.err
        assert f"by {judge}" in " ".join(captured.out.split())
        (row,) = read_json_lines(tmp_path / "wins.jsonl")
        assert (row["win_rate"], row["n_wins"], row["judge"]) == (1.0, 6, judge)
        assert row["order_disagreement"] == 0.0 and "alpaca_eval" in row["versions"]
        (cache,) = (tmp_path / "cache" / "judge").iterdir()
        cache.write_bytes(b"".join(cache.read_bytes().splitlines(keepends=True)[:-3]))
        examples = tmp_path / "wins.examples.jsonl"
        examples.write_bytes(b"".join(examples.read_bytes().splitlines(keepends=True)[:2]))
        (tmp_path / "wins.jsonl").unlink()  # killed, with three of the answers not yet written
        line.seen.clear()
        message = error_of(capsys, *flags(tmp_path, "openai:m", *more))
        assert "another configuration (judge, judge_fingerprint differ)" in message
        message = error_of(capsys, *flags(tmp_path, "alpaca_eval:gpt4_turbo:m", *more))
        assert "another configuration (judge, judge_fingerprint differ)" in message
        assert not line.seen
        run(*flags(tmp_path, judge, *more))
        assert read_json_lines(tmp_path / "wins.jsonl") == [row]
        assert 1 <= len(line.seen) <= 3


@NEEDS_PACKAGE
def test_an_endpoint_without_log_probabilities_cannot_weigh(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKING_ACC_CACHE", str(tmp_path / "cache"))
    with judge_line(lambda body: chat_completion("m")) as line:
        judge, _ = judge_of("weighted_alpaca_eval_gpt4_turbo", line.address)
        with pytest.raises(ValueError, match="gives no log-probabilities, from which"):
            list(judge(PAIRS))
        assert not line.seen  # but for the trial


@NEEDS_PACKAGE
@pytest.mark.parametrize(
    ("name", "expected"),
    [("alpaca_eval_gtp4", "has no such configuration; it has alpaca_eval_gpt4, "),
     ("../alpaca_eval_gpt4", "has no such configuration"),
     ("alpaca_farm", "a pool of 13 annotators"),
     ("alpaca_farm_greedy_gpt4", "it asks about 5 pairs at a time"),
     ("claude_ranking", "it is asked by anthropic_completions"),
     ("text_davinci_003", "its prompt is not for a chat model")],
)  # fmt: skip
def test_annotators_that_cannot_judge_are_one_line(name, expected):
    with pytest.raises(ValueError, match=f"--judge alpaca_eval:{name}: .*{expected}") as error:
        alpaca_eval_judge(name)
    assert "\n" not in str(error.value)


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "alpaca_eval", None)  # as if it were not installed
    with pytest.raises(ValueError, match="pip install alpaca_eval$"):
        alpaca_eval_judge("alpaca_eval_gpt4")


def test_texts_are_filled_in_as_they_stand():
    template = [{"role": "system", "content": "Rank."},
                {"role": "user", "content": "{instruction}|{output_1}|{output_2}"}]  # fmt: skip
    assert fill_template(template, "{output_1}<|im_end|>", r"\1", "{instruction}") == [
        {"role": "system", "content": "Rank."},
        {"role": "user", "content": r"{output_1}<|im_end|>|\1|{instruction}"},
    ]


def test_the_instruction_is_what_the_user_says_where_that_is_all():
    turns = [{"role": "user", "content": " Why?"}]
    assert instruction_of({"prompt": "x", "messages": turns}) == " Why?"
    assert instruction_of({"prompt": "\n\nHuman: Why?\n\nAssistant:"}) == "Why?"
    assert instruction_of({"prompt": "Why? "}) == "Why?"
    longer = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And?\n\nAssistant:"
    assert instruction_of({"prompt": longer}) == longer.strip()
    system = [{"role": "system", "content": "Be brief."}, *turns]
    asked = {"prompt": "Be brief.\n\nHuman: Why?\n\nAssistant:", "messages": system}
    assert instruction_of(asked) == asked["prompt"]


@pytest.mark.parametrize(
    ("parsed", "share"),
    [([1], 1.0), ([2], 0.0), ([0], 0.5), ([1.5], 0.5), ([1.25], 0.75), ([float("nan")], None),
     ([], None), ([1, 2], None), ([3], None), (["?"], None), (None, None)],
)  # fmt: skip
def test_preferences_are_shares_of_the_win(parsed, share):
    assert read_preference(lambda answer: parsed, False, "text") == share
    assert read_preference(lambda choice: [choice["text"]], True, '{"text": 1}') == 1.0
    assert read_preference(lambda choice: [1], True, "no JSON") is None


def test_both_orders_count_alike():
    """1.25 for the policy first, 1.4 for it second: shares of 0.75 and 0.4."""
    assert mean_of_orders(0.75, 0.6) == pytest.approx((0.75 + 0.4) / 2)
    assert mean_of_orders(1.0, 1.0) == 0.5 and mean_of_orders(0.0, 1.0) == 0.0
    assert mean_of_orders(None, 1.0) is None is mean_of_orders(0.5, None)
