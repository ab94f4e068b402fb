"""Labels of hand-marked dialogues; padded and packed losses by hand."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from dialogue_rows import (
    CHATML,
    MARKED,
    SMOLLM2,
    SPEAKERS,
    VOCABULARY,
    chat_tokenizer,
    dialogues,
    explicit,
    implicit,
    orca,
    said,
    split_folder,
)
from marked_texts import marked
from test_dpo_gamma_trainer import tiny_model
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from ranking.data.conversions import sft_texts
from ranking.data.dialogues import as_turns
from ranking.data.examples import Dialogue, PreferenceExample
from ranking.data.splits import load_training_splits
from ranking.scoring.chat import ChatOptions
from ranking.scoring.tokenization import exact_offset_tokenizer, tokenize_examples
from ranking.training.splits import load_parts
from ranking.training.texts import IGNORED, response_spans, tokenize_texts, trained_spans

HH = ("Human:", "Assistant:")


@pytest.mark.parametrize(
    "text",
    [
        "\n\nHuman: Hi there\n\nAssistant:⟦ Hello. How are you?⟧",
        "\n\nHuman: a\n\nAssistant:⟦ b⟧\n\nHuman: c\n\nAssistant:⟦ d\n\nstill d⟧",
        # a template inside a turn opens nothing, nor one that follows a single newline
        "\n\nHuman: say Assistant: now\n\nAssistant:⟦ The word Assistant: and Human: too\nHuman: x⟧",
        "Human: no leading blank\n\nAssistant:⟦ yes⟧",
        "\n\nHuman: a\n\nAssistant:⟦ b⟧\n\nHuman: the text ends on a user turn",
        "\n\nHuman: a\n\nAssistant:\n\nHuman: an empty response\n\nAssistant:⟦ b⟧",
        "\n\nHuman: no response at all",
    ],
)
def test_response_spans(text):
    plain, spans = marked(text)
    assert response_spans(plain, *HH) == spans


def test_which_spans_are_trained():
    dialogue, turns = marked("\n\nHuman: a\n\nAssistant:⟦ b⟧\n\nHuman: c\n\nAssistant:⟦ d⟧")
    n = len(dialogue) - 2
    assert trained_spans(dialogue, n, None) == turns == trained_spans(dialogue, n, HH)
    assert trained_spans("Question: what?\nAnswer: this", 24, None) == [(24, 28)]
    assert trained_spans("Question: what?\nAnswer: this", 24, HH) == []
    assert trained_spans("### In\nq\n\n### Out\na", 16, ("### In", "### Out")) == [(17, 19)]


def decode_trained(tokenizer, row) -> list[str]:
    """The texts of the runs of trained tokens."""
    runs, previous = [], IGNORED
    for label in row["labels"]:
        if label != IGNORED:
            runs[-1:] = [[*runs[-1], label]] if previous != IGNORED else [*runs[-1:], [label]]
        previous = label
    return [tokenizer.decode(run) for run in runs]


def test_labels_are_the_response_turns(sample_text):
    text, spans = marked(
        "\n\nHuman: How do vaccines work?\n\nAssistant:⟦ They train cells.⟧\n\nHuman: And then?"
        "\n\nAssistant:⟦ You are immune, Human: or not.⟧"
    )
    row = {"id": "a", "text": text, "n_prompt_characters": spans[-1][0]}
    for bos in (False, True):
        tok = make_tokenizer(sample_text, bos, split_words=True)
        (plain,), dropped = tokenize_texts(tok, [row], None, 512, add_eos=False)
        assert decode_trained(tok, plain) == [text[a:b] for a, b in spans] and not dropped
        assert plain["input_ids"] == tok(text)["input_ids"]
        assert all(b in (a, IGNORED) for a, b in zip(plain["input_ids"], plain["labels"]))
        (ended,), _ = tokenize_texts(tok, [row], None, 512, add_eos=True)
        assert ended["labels"] == [*plain["labels"], tok.eos_token_id]
        twice = {**row, "text": f"{text}</s>\n"}  # a text that ends with EOS gets no second one
        assert tokenize_texts(tok, [twice], None, 512, add_eos=True)[0] == [ended]
        empty = {"id": "b", "text": "Q</s></s>", "n_prompt_characters": 5}
        assert tokenize_texts(tok, [empty], None, 512, True) == ([], {"no response turn": 1})


def test_token_across_the_start_of_a_turn_counts(tokenizer):
    """As in scoring: a token that begins before a turn and ends inside it belongs to the turn."""
    text, ((start, _),) = marked("\n\nHuman: a\n\nAssistant:⟦ They train cells.⟧")
    encoding = exact_offset_tokenizer(tokenizer).encode(text)
    across = [a < start < b for a, b in encoding.offsets]
    assert sum(across) == 1
    row = {"id": "a", "text": text, "n_prompt_characters": start}
    ((plain,), _) = tokenize_texts(tokenizer, [row], None, 512, add_eos=False)
    k = across.index(True)
    assert plain["labels"] == [IGNORED] * k + encoding.ids[k:]


def test_truncation_and_drops(sample_text):
    tokenizer = make_tokenizer(sample_text, bos=True, split_words=True)
    text, (first, second) = marked(
        "\n\nHuman: a b\n\nAssistant:⟦ one two⟧\n\nHuman: c\n\nAssistant:⟦ three⟧"
    )
    row = {"id": "a", "text": text, "n_prompt_characters": second[0]}
    ids = tokenizer(text)["input_ids"]
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    start = next(t for t, (_, end) in enumerate(offsets) if end > first[0])
    (cut,), dropped = tokenize_texts(tokenizer, [row], None, start + 2, add_eos=False)
    assert cut["input_ids"] == ids[: start + 2] and not dropped  # in the middle of the first turn
    assert cut["labels"] == [IGNORED] * start + ids[start : start + 2]
    assert tokenize_texts(tokenizer, [row], None, start, False) == ([], {"too long": 1})
    alone = {"id": "c", "text": "a", "n_prompt_characters": 0}  # nothing predicts its one token
    bare = make_tokenizer(sample_text, bos=False, split_words=True)
    assert tokenize_texts(bare, [alone], None, 512, False) == ([], {"no token of context": 1})
    other = {"id": "b", "text": "no turn", "n_prompt_characters": 3}
    rows, dropped = tokenize_texts(tokenizer, [row, other, other], HH, 512, add_eos=False)
    assert len(rows) == 1 and dropped == {"no response turn": 2}


def test_other_data_trains_on_the_preferred_completion(tokenizer, tmp_path):
    rows = [
        {"prompt": f"Q{k}?", "completions": ["bad", "good", "fine"], "ranks": [3, 1, 2]}
        for k in range(20)
    ]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts, _ = load_training_splits(str(path))
    texts = sft_texts(parts["train"].examples)
    (first, *_), _ = tokenize_texts(tokenizer, texts, None, 512, add_eos=False)
    assert decode_trained(tokenizer, first) == [" good"]


# ---------------------------------------------------------------------------- dialogues
def test_messages_without_a_template_are_turns(sample_text):
    """Every assistant turn, whatever the messages hold; nothing ends it unless asked for."""
    tokenizer = make_tokenizer(sample_text, bos=False, split_words=True)
    said = (("system", "Be brief."), ("user", "Say \n\nHuman: x\n\nAssistant: y"),
            ("assistant", "No."), ("user", "Why?"), ("assistant", "So.\n\nHuman: z"))  # fmt: skip
    messages = tuple({"role": role, "content": text} for role, text in said)
    example = PreferenceExample(
        "a", "p", as_turns(messages), ("",), ("",), (1,), None, "d", 0, Dialogue(messages)
    )
    ((row,), dropped) = tokenize_texts(tokenizer, sft_texts([example]), None, 512, None)
    assert decode_trained(tokenizer, row) == [" No.", " So.\n\nHuman: z"] and not dropped
    ((ended,), _) = tokenize_texts(tokenizer, sft_texts([example]), None, 512, True)
    assert ended["labels"] == [*row["labels"], tokenizer.eos_token_id]
    # the same dialogue as a preference
    paired = replace(example, prompt=as_turns(messages[:-1]), separators=(" ", " "), ranks=(2, 1),
                     completions=("bad", messages[-1]["content"]),
                     dialogue=Dialogue(messages[:-1]))  # fmt: skip
    assert tokenize_texts(tokenizer, sft_texts([paired]), None, 512, None)[0] == [row]
    calls = ({"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"name": "f"}]})
    called = replace(example, dialogue=Dialogue(calls))
    assert tokenize_texts(tokenizer, sft_texts([called]), None, 512, None) == (
        [], {"tool calls without text or a chat template": 1},
    )  # fmt: skip


def trl_rows(folder, tokenizer, rows, **how) -> SFTTrainer:
    """TRL's trainer with its own preparation of the rows."""
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=4, logging_steps=1,
        optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", report_to="none", seed=3,
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, max_length=2048,
        gradient_checkpointing=False, max_grad_norm=1e9, **how,
    )  # fmt: skip
    return SFTTrainer(model=tiny_model(config=VOCABULARY), args=arguments,
                      train_dataset=Dataset.from_list(rows), processing_class=tokenizer)  # fmt: skip


def conversation(row) -> list[dict]:
    return [*row["prompt"], said("assistant", row["chosen"])]


@pytest.mark.parametrize(
    ("template", "ours", "theirs", "how"),
    [
        (MARKED, lambda r: {"messages": conversation(r)}, lambda r: {"messages": conversation(r)},
         {"assistant_only_loss": True}),
        (MARKED, implicit, lambda r: {"messages": conversation(r)}, {"assistant_only_loss": True}),
        (MARKED, lambda r: {"conversations": [{"from": m["role"], "value": m["content"]}
                                              for m in conversation(r)]},
         lambda r: {"messages": conversation(r)}, {"assistant_only_loss": True}),
        (SMOLLM2, lambda r: {"prompt": r["prompt"][-1:], "completion": explicit(r)["chosen"]},
         lambda r: {"prompt": r["prompt"][-1:], "completion": explicit(r)["chosen"]}, {}),
        (CHATML, lambda r: orca({**r, "prompt": [said("system", "Be brief."), r["prompt"][-1]]}),
         lambda r: {"prompt": [said("system", "Be brief."), r["prompt"][-1]],
                    "completion": explicit(r)["chosen"]}, {}),
    ],
    ids=["messages", "preferences", "ShareGPT", "prompt and completion", "orca"],
)  # fmt: skip
def test_losses_of_dialogues_equal_trl(tmp_path, sample_text, template, ours, theirs, how):
    """Labels and four steps' losses, TRL with its own preparation of the same dialogues."""
    tokenizer = chat_tokenizer(sample_text, template)
    name = split_folder(tmp_path / "data", [ours(row) for row in dialogues()])
    data = load_parts([name], conversations=True)["train"]
    rows, dropped = tokenize_texts(
        tokenizer, sft_texts(data.examples), None, 2048, None, ChatOptions()
    )
    assert not dropped
    peer = trl_rows(tmp_path, tokenizer, [theirs(row) for row in dialogues()], **how)
    for mine, its in zip(rows, peer.train_dataset, strict=True):
        assert mine == {"input_ids": its["input_ids"], "labels": its["labels"]}
    losses = []
    for run in (peer, trl_rows(tmp_path, tokenizer, rows)):
        run.train()
        losses.append([e["loss"] for e in run.state.log_history if "loss" in e])
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("add_eos", [None, True, False])
def test_a_turn_that_the_template_does_not_close_ends_with_eos(sample_text, add_eos):
    """As it is scored, and trained by DPO; the last of a conversation, as in text."""
    tokenizer = chat_tokenizer(sample_text, SPEAKERS)
    asked = Dialogue((said("user", "Is it?"),))
    example = PreferenceExample(
        "a", "p", "\n\nHuman: Is it?\n\nAssistant:", ("yes", "no"), (" ", " "), (1, 2), None, "d", 0,
        asked,
    )  # fmt: skip
    ((row,), dropped) = tokenize_texts(
        tokenizer, sft_texts([example]), None, 512, add_eos, ChatOptions()
    )
    trained = " yes" if add_eos is False else " yes\n</s>"
    assert decode_trained(tokenizer, row) == [trained] and not dropped
    ((scored, _),) = tokenize_examples(
        tokenizer, [example], ChatOptions(), add_eos=add_eos is not False
    ).completions
    assert row["input_ids"][: len(scored.ids)] == list(scored.ids)
    assert row["labels"][: len(scored.ids)] == [IGNORED] * scored.start + list(
        scored.ids[scored.start :]
    )
    talk = (
        *asked.messages,
        said("assistant", "yes"),
        said("user", "Why?"),
        said("assistant", "So."),
    )
    whole = replace(example, prompt=as_turns(talk), completions=("",), separators=("",), ranks=(1,),
                    dialogue=Dialogue(talk))  # fmt: skip
    ((row,), _) = tokenize_texts(tokenizer, sft_texts([whole]), None, 512, add_eos, ChatOptions())
    ends = ("", "") if add_eos is False else ("\n", "\n</s>")
    assert decode_trained(tokenizer, row) == [f" yes{ends[0]}", f" So.{ends[1]}"]


def test_an_end_that_no_token_is_for(sample_text):
    """EOS is asked of the tokenizer only where it is needed."""
    text = {"id": "a", "text": "Q: A", "n_prompt_characters": 2}
    talk = {**text, "dialogue": Dialogue((said("user", "Q"),))}
    tokenizer = chat_tokenizer(sample_text, CHATML)
    tokenizer.eos_token = None
    for row, template in ((text, CHATML), (talk, SPEAKERS)):
        with pytest.raises(ValueError, match="--add_eos: this tokenizer has no EOS token"):
            tokenize_texts(tokenizer, [row], None, 512, True, ChatOptions(template=template))
    ((row,), _) = tokenize_texts(tokenizer, [talk], None, 512, True, ChatOptions())
    assert decode_trained(tokenizer, row)[0].endswith("A<|im_end|>\n")


# ---------------------------------------------------------------------------- losses
def test_loss_and_packing_without_contamination(tiny_model_directory, tokenizer, tmp_path):
    """The packed and the padded loss both equal cross-entropy by hand in float64, text by text."""
    parts, _ = load_training_splits("sample")
    texts = sft_texts(parts["validation"].examples)
    rows, _ = tokenize_texts(tokenizer, texts, None, 256, add_eos=False)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    nll, n = 0.0, 0
    double = AutoModelForCausalLM.from_pretrained(tiny_model_directory).double()
    for row in rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        with torch.no_grad():
            logps = double(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        nll -= logps[labels[1:] != IGNORED].sum().item()
        n += int((labels[1:] != IGNORED).sum())
    for packing in (False, True):
        arguments = SFTConfig(
            output_dir=str(tmp_path), per_device_eval_batch_size=len(rows), report_to="none",
            use_cpu=True, bf16=False, packing=packing, max_length=4096, disable_tqdm=True,
            gradient_checkpointing=False,
        )  # fmt: skip
        data = Dataset.from_list(rows)
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data,
                             processing_class=tokenizer)  # fmt: skip
        assert trainer.evaluate()["eval_loss"] == pytest.approx(nll / n, rel=1e-5)
