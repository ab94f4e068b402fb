"""Every kind of preference data, a row of each and what it says, worked out by hand."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preference_rows import write

from ranking.data.preferences import load_preferences
from ranking.data.schemas import SCHEMAS, make_plan

ROOT = Path(__file__).parents[2]
ASK, BEST, WORST = "Name a tree.", "An oak.", "A spoon."


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def shared(name: str, text: str) -> dict:
    return {"from": name, "value": text}


USER, GOOD, BAD = said("user", ASK), said("assistant", BEST), said("assistant", WORST)
PAIR = {"chosen": BEST, "rejected": WORST}
TURNS = "\n\nHuman: " + ASK + "\n\nAssistant:"
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": None}}]
SCORES = {"score_chosen": 8.0, "score_rejected": 3.0}
POST = {"post": "It fell.", "title": "A tree", "subreddit": "garden"}


def arena(winner: str, **more) -> dict:
    sides = {"conversation_a": [USER, GOOD], "conversation_b": [USER, BAD]}
    return sides | {"winner": winner} | more


def replies(*texts: str) -> list[dict]:
    return [{"text": t, "role": "assistant", "rank": k} for k, t in enumerate(texts)]


# example dataset: its rows, and the first example: what is asked (text, or messages), completions
# in their order, ranks, votes
T = ASK
M = [USER]
EXPECTED = {
    "Dahoas/synthetic-instruct-gptj-pairwise": ([{"prompt": ASK, **PAIR}], T, (1, 2), None),
    "allenai/reward-bench": ([{"prompt": ASK, **PAIR, "subset": s, "id": 1} for s in ("x", "y")], T, (1, 2), None),
    "Anthropic/hh-rlhf": ([{"chosen": TURNS + " An oak.", "rejected": TURNS + " A spoon."}], TURNS, (1, 2), None),
    "trl-internal-testing/zen (implicit)": (
        [{"chosen": "A tree that is tall: An oak.", "rejected": "A tree that is tall: A spoon."}],
        "A tree that is tall:", (1, 2), None),
    "trl-lib/ultrafeedback-prompt": ([{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}], M, (1, 2), None),
    "Skywork/Skywork-Reward-Preference-80K-v0.2": (
        [{"chosen": [USER, GOOD], "rejected": [USER, BAD], "source": s} for s in "ab"], M, (1, 2), None),
    "HuggingFaceH4/ultrafeedback_binarized": (
        [{"prompt": ASK, "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD], **SCORES}], M, (1, 2), None),
    "allenai/preference-test-sets": ([{"prompt": [USER], **PAIR}], M, (1, 2), None),
    "Intel/orca_dpo_pairs": (
        [{"system": s, "question": ASK, **PAIR} for s in ("Be brief.", "")],
        [said("system", "Be brief."), USER], (1, 2), None),
    "hiyouga/LLaMA-Factory (alpaca)": (
        [{"instruction": "Answer.", "input": i, "output": WORST, **PAIR} for i in (ASK, "")],
        "Answer.\n" + ASK, (1, 2), None),
    "llamafactory/DPO-En-Zh-20k": (
        [{"conversations": [shared("human", ASK)], "chosen": shared("gpt", BEST), "rejected": shared("gpt", WORST)}],
        M, (1, 2), None),
    "openbmb/UltraInteract_pair": ([{"trajectory": [shared("user", ASK)], **PAIR}], M, (1, 2), None),
    "OpenAI preference fine-tuning files": (
        [{"input": {"messages": [USER], "tools": TOOLS}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}],
        M, (1, 2), None),
    "shibing624/MedicalGPT": (
        [{"system": "", "history": [["Hi", "Hello"]], "question": ASK, "response_chosen": BEST, "response_rejected": WORST}],
        [said("user", "Hi"), said("assistant", "Hello"), USER], (1, 2), None),
    "lvwerra/stack-exchange-paired": ([{"question": ASK, "response_j": BEST, "response_k": WORST}], T, (1, 2), None),
    "ernie-research/TARA": (
        [{"question": ASK, "pos_answer": {"answer": BEST, "score": 1}, "neg_answer": {"answer": WORST, "score": -1}}],
        T, (1, 2), None),
    "wyy-1112/Plan-RewardBench": (
        [{"query": ASK, "tools": TOOLS, "chosen": {"messages": [USER, GOOD]}, "reject": {"messages": [USER, BAD]}}],
        M, (1, 2), None),
    "PKU-Alignment/PKU-SafeRLHF": (
        [{"prompt": ASK + "!" * k, "response_0": BEST, "response_1": WORST, "better_response_id": 1 - k, "safer_response_id": 1} for k in (0, 1)],
        T, (2, 1), None),
    "lmarena-ai/PPE-Human-Preference-V1": (
        [{"prompt": ASK + "!" * k, "response_1": BEST, "response_2": WORST, "winner": w, "language": w}
         for k, w in enumerate(("model_b", "tie (bothbad)", "model_a"))], T, (2, 1), None),
    "ScalerLab/JudgeBench": (
        [{"question": ASK + "!" * k, "response_A": BEST, "response_B": WORST, "label": w, "source": w}
         for k, w in enumerate(("B>A", "A>B", "A=B"))],
        T, (2, 1), None),
    "openai/webgpt_comparisons": (
        [{"question": {"full_text": ASK, "id": "x"}, "answer_0": BEST, "answer_1": WORST, "score_0": 0.5, "score_1": -0.5}],
        T, (1, 2), None),
    "princeton-nlp/LLMBar": (
        [{"input": ASK + str(k), "output_1": BEST, "output_2": WORST, "label": k} for k in (2, 1)], T + "2", (2, 1), None),
    "RewardMATH/RewardMATH_pairwise": (
        [{"problem": ASK, "answer": ASK, "eval_solution_A": [BEST], "eval_solution_B": [WORST], "chosen_position": "B"}],
        T, (2, 1), None),
    "lmarena-ai/arena-human-preference-140k": (
        [{**arena("model_a", language="en"), "conversation_a": [said("user", [{"type": "text", "text": ASK}]), GOOD]},
         {**arena("both_bad", language="fr"), "conversation_a": [USER, said("assistant", "No.")]}], M, (1, 2), None),
    "lmsys/mt_bench_human_judgments": (
        [arena("model_a", judge="e1", turn=1), arena("tie", judge="e2", turn=1),
         {"conversation_a": [USER, BAD, USER, BAD], "conversation_b": [USER, GOOD, USER, BAD], "winner": "model_a", "judge": "e3", "turn": 1},
         arena("error", judge="e4", turn=1)],
        M, (1, 1), {(0, 1): (1.5, 1.5)}),
    "lfqa_eval (experts)": (
        [{"question": ASK, "answer_a": BEST, "answer_b": WORST, "overall_preference": p} for p in (-1, 1, -1)],
        T, (1, 2), {(0, 1): (2, 1)}),
    "allenai/multipref": (
        [{"text": ASK, "completion_a": BEST, "completion_b": WORST, "source": s, "category": "only",
          "normal_worker_annotations": [{"overall_pref": "A-is-clearly-better"}, {"overall_pref": "Tie"}],
          "expert_worker_annotations": [{"overall_pref": "A-is-slightly-better"}, {"overall_pref": "B-is-slightly-better"}]}
         for s in "ab"], T, (1, 2), {(0, 1): (2.5, 1.5)}),
    "nvidia/HelpSteer3": (
        [{"context": [USER], "response1": BEST, "response2": WORST, "overall_preference": 1, "domain": d, "language": "en",
          "individual_preference": [{"score": -3}, {"score": 0}, {"score": -1}]} for d in ("code", "stem")],
        M, (1, 2), {(0, 1): (2.5, 0.5)}),
    "nvidia/HelpSteer2 (preference)": (
        [{"prompt": ASK, "response_1": BEST, "response_2": WORST, "preference_strength": 2,
          "all_preferences_unprocessed": [{"strength": 2}, {"strength": 1}, {"strength": -1}]}],
        T, (2, 1), {(0, 1): (1, 2)}),
    "WeOpenML/PandaLM": (
        [{"instruction": ASK, "input": "", "response1": BEST, "response2": WORST, "annotator1": 1, "annotator2": 1, "annotator3": 0}],
        T, (1, 2), {(0, 1): (2.5, 0.5)}),
    "openai/summarize_from_feedback": (
        [{"info": POST, "summaries": [{"text": BEST}, {"text": WORST}], "choice": c, "worker": str(k)} for k, c in enumerate((0, 1, 0))],
        "SUBREDDIT: r/garden\n\nTITLE: A tree\n\nPOST: It fell.\n\nTL;DR:", (1, 2), {(0, 1): (2, 1)}),
    "tatsu-lab/alpaca_eval": (
        [{"instruction": "Answer.", "input": ASK, "output_1": BEST, "output_2": WORST, "preference": p} for p in (1, 1.25)],
        "Answer.\n" + ASK, (1, 2), {(0, 1): (1.75, 0.25)}),
    "stanfordnlp/SHP-2": (
        [{"post_id": "x", "domain": d, "history": ASK, "human_ref_A": BEST, "human_ref_B": WORST, "labels": 1} for d in "ab"],
        T, (1, 2), None),
    "sample": ([{"prompt": ASK, "completions": [BEST, WORST], "ranks": [1, 2], "votes": [3, 1]}], T, (1, 2), {(0, 1): (3, 1)}),
    "lists of text with scores": ([{"prompt": ASK, "responses": [BEST, WORST], "scores": [0.1, 0.9]}], T, (2, 1), None),
    "berkeley-nest/Nectar": (
        [{"prompt": TURNS + " ", "answers": [{"answer": BEST, "model": "m", "rank": 2.0}, {"answer": WORST, "model": "n", "rank": 1.0}],
          "source": [s]} for s in "ab"], M, (2, 1), None),
    "NeMo-RL preference data": (
        [{"context": [USER], "completions": [{"rank": 0, "completion": [GOOD]}, {"rank": 1, "completion": [BAD]}]}],
        M, (1, 2), None),
    "openbmb/UltraFeedback": (
        [{"instruction": ASK, "completions": [{"response": BEST, "overall_score": 9}, {"response": WORST, "overall_score": 2}]}],
        T, (1, 2), None),
    "HuggingFaceH4/stack-exchange-preferences": (
        [{"qid": 1, "question": ASK, "answers": [{"text": BEST, "pm_score": 4}, {"text": WORST, "pm_score": 0}]}], T, (1, 2), None),
    "allenai/reward-bench-2": (
        [{"prompt": ASK, "chosen": [BEST], "rejected": [WORST, "A cup.", "A fork."], "subset": s, "num_correct": 1} for s in "ab"],
        T, (1, 2, 2, 2), None),
    "THU-KEG/RM-Bench": (
        [{"prompt": ASK, "chosen": [BEST, "Oak", "**Oak**"], "rejected": [WORST, "Cup", "**Cup**"], "domain": d} for d in ("chat", "code")],
        T, (1, 1, 1, 2, 2, 2), None),
    "HuggingFaceH4/hhh_alignment": ([{"input": ASK, "targets": {"choices": [BEST, WORST], "labels": [1, 0]}}], T, (1, 2), None),
    "nvidia/HelpSteer2": (
        [{"prompt": ASK, "response": text, "helpfulness": h, "correctness": 1} for text, h in ((BEST, [4, 3, 1]), (WORST, [2, 3, 2]))],
        T, (1, 1), {(0, 1): (1.5, 1.5)}),
    "OpenAssistant/oasst (trees)": (
        [{"message_tree_id": "x", "prompt": {"text": ASK, "role": "prompter", "replies": replies(BEST, WORST)}}], M, (1, 2), None),
    "OpenAssistant/oasst1": (
        [{"message_id": "q", "parent_id": None, "text": ASK, "role": "prompter", "rank": None},
         {"message_id": "b", "parent_id": "q", "text": BEST, "role": "assistant", "rank": 1.0},
         {"message_id": "w", "parent_id": "q", "text": WORST, "role": "assistant", "rank": 0.0}], M, (2, 1), None),
}  # fmt: skip


def documented_kinds() -> dict[str, dict[str, str]]:
    """Example → the cells of its line in the table of docs/data.md, by column."""
    section = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("\n## Kinds\n")[2]
    lines = re.findall(r"^\| (.*) \|$", section.partition("\n## ")[0], re.M)
    columns, _, *rows = (re.split(r" \| ", line) for line in lines)
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    assert len({row["example"] for row in found}) == len(found)
    return {row["example"]: row for row in found}


KINDS = documented_kinds()


@pytest.mark.parametrize("name", KINDS)
def test_a_row_of_each_kind(name, tmp_path):
    kind, (rows, asked, ranks, votes) = KINDS[name], EXPECTED[name]
    data = load_preferences(write(tmp_path / "rows.jsonl", rows), include_ties=True)
    example = data.examples[0]
    assert [text.strip() for text in example.completions[:1]] == [BEST]
    assert (example.completions[-1].strip() == WORST) == (len(ranks) == 2)
    assert example.ranks == ranks and example.votes == votes
    assert bool(kind["votes"].strip()) == (votes is not None)
    dialogue = isinstance(asked, list)
    assert (
        (example.dialogue is not None) == dialogue == kind["how it is read"].startswith("dialogue")
    )
    if dialogue:
        assert list(example.dialogue.messages) == asked
        assert example.prompt.endswith(
            "\n\nHuman: " + ASK + "\n\nAssistant:" + " " * (name == "berkeley-nest/Nectar")
        )
    else:
        assert example.prompt == asked
    assert not any("\n" in note for note in data.notes)
    named = {name for e in data.examples for name in e.groups}
    assert named <= set(kind["groups"].replace(",", " ").split())


def test_the_docs_name_each_kind_and_all_schemas_are_among_them():
    assert KINDS.keys() == EXPECTED.keys()
    assert {make_plan(rows).kind for rows, *_ in EXPECTED.values()} == {s.kind for s in SCHEMAS}


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS | st.sampled_from([USER, GOOD, [USER, GOOD], [BEST], {"messages": [USER]}]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "x"]), x, max_size=3),
)  # fmt: skip


@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(data=st.data())
def test_damaged_rows_are_counted_or_one_line(data, tmp_path):
    """Anything JSON can say, in any column of any kind."""
    rows = [dict(row) for row in EXPECTED[data.draw(st.sampled_from(sorted(EXPECTED)))][0]]
    for row in rows:
        for key in data.draw(st.lists(st.sampled_from(sorted(row)), max_size=2)):
            row[key] = data.draw(VALUES)
    path = write(tmp_path / "rows.jsonl", rows)
    try:
        loaded = load_preferences(path, include_ties=True)
    except ValueError as error:
        assert str(error).startswith(path) and "\n" not in str(error)
        return
    for example in loaded.examples:
        texts = [example.prompt, *example.completions]
        texts += [m["content"] for m in (example.dialogue.messages if example.dialogue else ())]
        assert all(isinstance(text, str) for text in texts)


def test_groups_are_kept(tmp_path):
    rows, *_ = EXPECTED["nvidia/HelpSteer3"]
    path = write(tmp_path / "rows.jsonl", rows)
    assert [e.groups for e in load_preferences(path).examples] == [
        {"domain": "code"},
        {"domain": "stem"},
    ]
    asked = load_preferences(path, group_by=["language", "overall_preference"])
    assert asked.examples[0].groups == {"language": "en", "overall_preference": "1"}
    with pytest.raises(ValueError, match="--group-by domian: no such column .*did you mean domain"):
        load_preferences(path, group_by=["domian"])
    with pytest.raises(ValueError, match="row 1: column 'context' holds a list: no group"):
        load_preferences(path, group_by=["context"])
    nested = [{"prompt": ASK, **PAIR, "metadata": {"domain": "a"}}]
    by = load_preferences(write(tmp_path / "nested.jsonl", nested), group_by=["metadata.domain"])
    assert by.examples[0].groups == {"metadata.domain": "a"}


def test_rm_bench_files_are_named_by_their_domain(tmp_path):
    rows, *_ = EXPECTED["THU-KEG/RM-Bench"]
    rows = [{k: v for k, v in row.items() if k != "domain"} for row in rows]
    data = load_preferences(write(tmp_path / "safety-refuse_filtered.jsonl", rows))
    assert data.examples[0].groups == {"domain": "safety-refuse"}
    assert data.examples[0].completions == (BEST, "Oak", "**Oak**", WORST, "Cup", "**Cup**")


def test_trees_give_an_example_for_each_prompt_with_ranked_answers(tmp_path):
    follow_up = {"text": "Why?", "role": "prompter", "replies": [*replies("Leaves.", "Bark.", "It is."),
                 {"text": "Spam.", "role": "assistant", "rank": 3, "deleted": True}]}  # fmt: skip
    single = {"text": "And?", "role": "prompter", "replies": replies("No more.")}
    first = {"text": BEST, "role": "assistant", "rank": 1, "replies": [follow_up, single]}
    root = {"text": ASK, "role": "prompter", "replies": [first, *replies(WORST)]}
    tree = {"message_tree_id": "x", "prompt": root}
    data = load_preferences(write(tmp_path / "trees.jsonl", [tree]))
    top, below = data.examples
    assert top.completions == (BEST, WORST) and top.ranks == (2, 1)
    assert list(below.dialogue.messages) == [USER, GOOD, said("user", "Why?")]
    assert below.completions == ("Leaves.", "Bark.", "It is.") and below.ranks == (1, 2, 3)
    assert below.prompt == TURNS + " An oak.\n\nHuman: Why?\n\nAssistant:"
    assert data.notes == ["prompts of the trees without two ranked answers: 1"]
    alone = {"message_tree_id": "x", "prompt": single}
    with pytest.raises(ValueError, match=r"left of 0 \(prompts of the trees without two .*: 1\)"):
        load_preferences(write(tmp_path / "trees.jsonl", [alone]))
    tree["prompt"]["role"] = "system"
    with pytest.raises(ValueError, match="row 1: not a tree of messages"):
        load_preferences(write(tmp_path / "trees.jsonl", [tree]))


REFUSED_ROWS = {
    "unpaired": ({"messages": [USER, GOOD], "label": True}, "unpaired, as for KTO"),
    "unpaired beside a list": ({"prompt": ASK, "completion": BEST, "label": False, "answers": [BEST]}, "unpaired, as for KTO"),
    "unpaired text": ({"prompt": ASK, "completion": BEST, "label": False}, "unpaired, as for KTO"),
    "pictures only": ({"winner": "a.jpg", "loser": "b.jpg"}, "no text to rank"),
    "pictures": ({"prompt": ASK, "images": ["a.jpg"], **PAIR}, r"no usable example left of 1 .images: 1"),
    "a picture in a message": (
        {"chosen": [said("user", [{"type": "image_url", "image_url": "x"}]), GOOD], "rejected": [USER, BAD]}, "images: 1"),
    "ratings": ({"info": {"article": "x"}, "summary": {"text": "y", "axes": {"overall": 3}}}, "one summary a row"),
    "verdicts": ({"question_id": 1, "g1_winner": "tie", "g1_user_prompt": "x", "judge": ["gpt-4"]}, "hold the answers inside"),
    "two schemas": (
        {"prompt": ASK, **PAIR, "response_a": BEST, "response_b": WORST, "label": "A"},
        "two schemas fit, chosen/rejected and response_a/response_b/label: .*--columns"),
    "0 and 1": ({"prompt": ASK, "output_1": BEST, "output_2": WORST, "label": 0}, "column 'label' holds 0: which answer"),
    "a word": ({"prompt": ASK, "response_a": BEST, "response_b": WORST, "label": "idea"}, "row 1: column 'label': 'idea' says neither"),
    "no prompt": ({"response_a": BEST, "response_b": WORST, "label": "A"}, "missing column prompt .*--columns"),
    "tools": ({"prompt": ASK, "tools": "none", **PAIR}, "row 1: column 'tools' should be JSON"),
    "a document": ({"prompt": ASK, "document": "A long text.", **PAIR}, "row 1: column 'document' is part of the prompt"),
    "another question": ({"prompt": ASK, "question": "Why?", **PAIR}, "row 1: column 'question' is part of the prompt"),
    "answers without ranks": ({"prompt": ASK, "completions": [BEST, WORST], "order": [1, 2]}, "missing column ranks .*--columns ranks=COLUMN$"),
    "votes without ranks": ({"instruction": ASK, "completions": [BEST, WORST], "votes": {"0,1": [3, 1]}}, "missing column ranks .*1 for the best, beside votes too"),
    "answers that are no list": ({"prompt": ASK, "completions": BEST}, "first row's completions hold something else than the kind .list of objects."),
    "answers that are no text": ({"prompt": ASK, "responses": [GOOD, BAD], "scores": [1, 0]}, "responses and scores hold something else than the kind .scored list."),
    "a role": ({"prompt": [said("critic", ASK)], **PAIR}, "row 1: column 'prompt': the role of a message should be one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_ROWS)
def test_what_cannot_be_read_is_one_line(case, tmp_path):
    row, message = REFUSED_ROWS[case]
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=message) as error:
        load_preferences(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


DROPPED = {
    "completion of several turns": {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
    "no common prompt": {"chosen": [USER, GOOD], "rejected": [said("user", "Hm?"), BAD]},
    "a message that is not text": {"chosen": [USER, said("assistant", [{"type": 5, "text": "a"}])], "rejected": [USER, BAD]},
    "completion is a tool call": {
        "chosen": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], "rejected": [USER, BAD]},
    "completion is not the assistant's": {"chosen": [USER, USER], "rejected": [USER, BAD]},
    "empty completion": {"chosen": [USER, said("assistant", " ")], "rejected": [USER, BAD]},
    "empty turn": {"chosen": [said("user", ""), GOOD], "rejected": [said("user", ""), BAD]},
    "tool result without text": {
        "chosen": [USER, GOOD, said("tool", ""), GOOD], "rejected": [USER, GOOD, said("tool", ""), BAD]},
}  # fmt: skip


def test_rows_of_messages_that_cannot_be_used_are_counted(tmp_path):
    good = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    data = load_preferences(write(tmp_path / "rows.jsonl", [good, *DROPPED.values()]))
    assert len(data.examples) == 1 and data.dropped == dict.fromkeys(DROPPED, 1)


def test_what_messages_hold_is_kept_for_the_template(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "7", "x": None}]}
    result = {"role": "tool", "content": "Oaks.", "tool_call_id": "7", "name": None}
    parts = said("user", [{"type": "text", "value": "Name "}, {"type": "text", "text": "a tree."}])
    row = {"prompt": [{**parts, "loss_weight": 0.0}, call, result], "chosen": GOOD, "rejected": BAD,
           "tools": json.dumps(TOOLS), "chat_template_kwargs": {"enable_thinking": False, "x": None}}  # fmt: skip
    (example,) = load_preferences(write(tmp_path / "rows.jsonl", [row])).examples
    assert list(example.dialogue.messages) == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "7", "x": None} | {}]}
        | {"tool_calls": [{"id": "7"}]},
        {"role": "tool", "content": "Oaks.", "tool_call_id": "7"},
    ]
    assert example.dialogue.tools == ({"type": "function", "function": {"name": "look_up"}},)
    assert example.dialogue.template_kwargs == {"enable_thinking": False}


def test_earlier_turns_and_context(tmp_path):
    history = [USER, GOOD]
    rows = [
        {"prompt": "Why?", "context": history, **PAIR},
        {"prompt": ASK, "context": [USER], **PAIR},
        {"prompt": "Why?", "context": [], **PAIR},
    ]
    first, second, third = load_preferences(write(tmp_path / "c.jsonl", rows)).examples
    assert list(first.dialogue.messages) == [*history, said("user", "Why?")]
    assert list(second.dialogue.messages) == [USER]  # which the context holds already
    assert third.prompt == "Why?" and third.dialogue is None
    pairs = [
        {"prompt": "Why?", "history": h, **PAIR}
        for h in ([[ASK, BEST]], [{"input": ASK, "output": BEST}])
    ]
    for example in load_preferences(write(tmp_path / "h.jsonl", pairs)).examples:
        assert list(example.dialogue.messages) == [*history, said("user", "Why?")]
    numbered = [{"prompt": ASK, "turns": 1, **PAIR}]  # a number is no part of the prompt
    assert load_preferences(write(tmp_path / "n.jsonl", numbered)).examples[0].prompt == ASK
    text = [{"prompt": ASK, "context": "Trees are tall.", **PAIR}]
    (example,) = load_preferences(write(tmp_path / "c.jsonl", text)).examples
    assert example.prompt == "Trees are tall.\n\n" + ASK and example.dialogue is None


def test_lists_that_differ_from_the_prompt_are_read(tmp_path):
    row = {"prompt": "Something else", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    data = load_preferences(write(tmp_path / "rows.jsonl", [row]))
    assert list(data.examples[0].dialogue.messages) == [USER]
    assert data.notes == ["the prompt differs from the message lists, which are read: 1 examples"]
    explicit = {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    data = load_preferences(write(tmp_path / "rows.jsonl", [explicit]))
    assert data.examples[0].completions == (BEST, WORST)
    assert data.notes == ["messages repeat the prompt, which is read once: 1 examples"]


def test_one_pair_is_the_same_in_every_notation(tmp_path):
    """A question, a good and a bad answer: the same prompt as turns, and the same completions."""
    names = ("trl-lib/ultrafeedback-prompt", "HuggingFaceH4/ultrafeedback_binarized",
             "llamafactory/DPO-En-Zh-20k", "OpenAI preference fine-tuning files",
             "allenai/preference-test-sets", "NeMo-RL preference data")  # fmt: skip
    written = [
        {"prompt": ASK, "chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])}
    ]
    silent = [{"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]}]
    turns = [{"prompt": TURNS, "chosen": [GOOD], "rejected": [BAD]}]
    found = set()
    for rows in (written, silent, turns, *(EXPECTED[name][0] for name in names)):
        (e,) = load_preferences(write(tmp_path / "rows.jsonl", rows)).examples
        found.add((e.prompt, e.separators, e.completions, e.ranks, str(e.dialogue.messages)))
    assert len(found) == 1 and found.pop()[:2] == (TURNS, (" ", " "))


def test_spaces_in_front_of_an_answer_stay(tmp_path):
    rows = [{"prompt": "def f():", "chosen": "    return 1", "rejected": "    return 2"},
            {"system": "s", "prompt": "x", "chosen": " one", "rejected": "two"}]  # fmt: skip
    (code,) = load_preferences(write(tmp_path / "a.jsonl", rows[:1])).examples
    assert code.completions == ("    return 1", "    return 2") and code.separators == ("", "")
    (spaced,) = load_preferences(write(tmp_path / "b.jsonl", rows[1:])).examples
    assert spaced.completions == (" one", "two") and spaced.separators == ("", " ")
