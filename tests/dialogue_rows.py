"""The same dialogues in the columns that files have, and as TRL takes them."""

import json
import re
from pathlib import Path
from typing import Any

from conftest import SMALL, make_tokenizer
from preference_rows import write
from transformers import PreTrainedTokenizerFast

QUESTIONS = [
    "How do vaccines work?", "Name a prime number.", "What is rust?", "Who wrote Faust?",
    "Is it late?", "Why is the sky blue?", "Do cats swim?", "What did you mean by that?",
]  # fmt: skip
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# as SmolLM2's, with a system message of its own where there is none
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant.<|im_end|>\n{% endif %}" + CHATML.partition("%}")[2]
)
# with the marks by which TRL and transformers find the assistant's turns
MARKED = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>\\n' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""  # noqa: E501
# which ends no turn
SPEAKERS = """{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}{%
if add_generation_prompt %}assistant: {% endif %}"""
VOCABULARY = {**SMALL, "vocab_size": 640, "max_position_embeddings": 2048}


def chat_tokenizer(text: str, template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer with ChatML's special tokens, whose other tokens end with their word."""
    tokenizer = make_tokenizer(text, bos=False, split_words=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def dialogues(first: int = 0, system: str | None = None) -> list[dict[str, Any]]:
    """Prompt messages, some of several turns, with a preferred and another answer."""
    rows = []
    for k, question in enumerate(QUESTIONS, start=first):
        prompt = [said("user", f"{question} ({k})")]
        if k % 3 == 2:
            prompt = [said("user", "Hello there."), said("assistant", f"Hi, {k}."), *prompt]
        if system is not None:
            prompt.insert(0, said("system", system))
        rows.append({"prompt": prompt, "chosen": f"It is {k}, as you said.", "rejected": f"No {k}"})
    return rows


def split_folder(folder: Path, train: list[dict], n_evaluated: int = 4) -> str:
    """A dataset of files, whose evaluation rows are the training rows with questions of their
    own."""
    for name, marker in (("validation", "?"), ("test", "!")):
        rows = json.dumps(train[:n_evaluated])
        write(folder / f"{name}.jsonl", json.loads(re.sub(r" \((\d+)\)", rf" (\1{marker})", rows)))
    write(folder / "train.jsonl", train)
    return str(folder)


def explicit(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's messages, with the prompt apart."""
    return {"prompt": row["prompt"],
            **{k: [said("assistant", row[k])] for k in ("chosen", "rejected")}}  # fmt: skip


def implicit(row: dict[str, Any]) -> dict[str, Any]:
    """TRL's messages, each list whole."""
    return {k: [*row["prompt"], said("assistant", row[k])] for k in ("chosen", "rejected")}


def ultrafeedback_binarized(row: dict[str, Any]) -> dict[str, Any]:
    whole = implicit(row)
    question = next(m["content"] for m in row["prompt"] if m["role"] == "user")
    return {"prompt": question, "prompt_id": question[:8], **whole, "messages": whole["chosen"],
            "score_chosen": 8.0, "score_rejected": 5.5}  # fmt: skip


def orca(row: dict[str, Any]) -> dict[str, Any]:
    """System and question apart: dialogues of one turn."""
    system, question = (m["content"] for m in row["prompt"])
    return {"system": system, "question": question, "chosen": row["chosen"],
            "rejected": row["rejected"]}  # fmt: skip


def sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in row["prompt"]]
    return {"conversations": turns,
            **{k: {"from": "gpt", "value": row[k]} for k in ("chosen", "rejected")}}  # fmt: skip
