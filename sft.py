r"""Supervised fine-tuning on preferred completions (App. D), before DPO.

    python sft.py --model_name=gpt2 --dataset_name=Anthropic/hh-rlhf --dataset_text_field=chosen \
        --instruction_template="Human:" --response_template="Assistant:" \
        --output_dir=SFT_DIR --wandb_run_name=sft --learning_rate=1e-5 --num_train_epochs=1

Dialogues are trained on every response turn and nothing else; other data on the preferred
completion. Every flag of TRL's SFTConfig and ModelConfig works too. Writes the best model (or
adapter) and tokenizer into the output directory. The same command resumes a killed run.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from command_line import announce, finishing_first, run_script
from data_utils import PreferenceData, joining, sft_texts
from log_likelihood import (
    check_vocabulary,
    encode_texts,
    exact_offset_tokenizer,
    length_class,
    without_endings,
)
from model_loading import check_model_path, context_length
from training_directory import claim_directory, mark_run, run_description, write_test_results
from training_setup import (
    RETIRED,
    DataArguments,
    ModelArguments,
    TrainingDefaults,
    WandbConfig,
    check_revision,
    describe_step,
    load_for_training,
    load_parts,
    make_peft_config,
    parse_flags,
    start_training_wandb,
    train_until_stopped,
)
from wandb_runs import finishing_wandb

REPLACED = {
    **RETIRED,
    "chat_template_path": "nothing: texts are dialogues as they stand",
    "eos_token": "--add_eos",
    "padding_free": "--packing",
    "completion_only_loss": "nothing: only response turns are trained",
    "assistant_only_loss": "nothing: only response turns are trained",
    "formatting_func": "--dataset_name with a file in a known schema",
}
TEMPLATES = ("Human:", "Assistant:")  # HH-RLHF's
IGNORED = -100  # a label that does not count


@dataclass
class SFTDataArguments(DataArguments):
    """Data flags of sft.py."""

    instruction_template: str | None = field(
        default=None, metadata={"help": "What opens a user turn (default: Human: where it does)."}
    )
    response_template: str | None = field(
        default=None, metadata={"help": "What opens a response turn (default: Assistant:)."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("instruction_template", "response_template"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.strip("\"'").strip())
                if not getattr(self, name):
                    raise ValueError(f"--{name} is empty")
        if (self.instruction_template is None) != (self.response_template is None):
            raise ValueError("--instruction_template and --response_template go together")


@dataclass
class SFTArguments(TrainingDefaults, SFTConfig):
    """SFTConfig with the original spellings."""

    dataset_text_field: str = field(
        default="chosen", metadata={"help": "The text to train on: chosen, the preferred answer."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.dataset_text_field != "chosen":
            raise ValueError(
                f"--dataset_text_field {self.dataset_text_field}: only `chosen` is trained on; "
                "other columns are found by the dataset's schema"
            )
        if self.packing and self.packing_strategy != "bfd":
            raise ValueError(
                f"--packing_strategy {self.packing_strategy} lets packed texts see each other or "
                "splits them: use bfd"
            )


def parse_args(argv: list[str]) -> tuple[SFTDataArguments, ModelArguments, SFTArguments]:
    types = (SFTDataArguments, ModelArguments, SFTArguments)
    return parse_flags(types, argv, REPLACED, __doc__)


def response_spans(text: str, instruction: str, response: str) -> list[tuple[int, int]]:
    """Character spans of the response turns of a dialogue, without the templates.

    A turn opens where a template stands at the start of the text or after a blank line, and ends
    before the blank line of the next turn; a template inside a turn opens nothing.
    """
    opening = re.compile(rf"(?:\A\s*|\n\n)({re.escape(instruction)}|{re.escape(response)})")
    turns = list(opening.finditer(text))
    ends = [turn.start() for turn in turns[1:]] + [len(text)]
    return [
        (turn.end(), end)
        for turn, end in zip(turns, ends)
        if turn.group(1) == response and text[turn.end() : end].strip()
    ]


def trained_spans(
    text: str, n_prompt_characters: int, templates: tuple[str, str] | None
) -> list[tuple[int, int]]:
    """Spans to train on: by `templates` if given; else HH's turns if the prompt ends with one, or
    the completion."""
    if templates is not None:
        return response_spans(text, *templates)
    if re.search(rf"(?:\A|\n\n){TEMPLATES[1]}\s*\Z", text[:n_prompt_characters]):
        return response_spans(text, *TEMPLATES)
    return [(n_prompt_characters, len(text))] if text[n_prompt_characters:].strip() else []


def mask_labels(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Labels: the ids of tokens that reach into a span, IGNORED elsewhere.

    As in scoring, a token that begins before a span and ends inside it belongs to the span.
    """
    labels = [IGNORED] * len(ids)
    for t, (first, last) in enumerate(offsets):
        if any(first < end and last > start for start, end in spans):
            labels[t] = ids[t]
    return labels


def tokenize_texts(
    tokenizer,
    texts: list[dict],
    templates: tuple[str, str] | None,
    max_length: int,
    add_eos: bool,
) -> tuple[list[dict], dict[str, int]]:
    """{input_ids, labels} of texts cut at `max_length` tokens, and what was dropped by reason."""
    eos = tokenizer.eos_token_id
    if add_eos and eos is None:
        raise ValueError("--add_eos: this tokenizer has no EOS token")
    fast = exact_offset_tokenizer(tokenizer)
    rows, dropped = [], {"no response turn": 0, "too long": 0}
    whole = [t["text"] for t in texts]
    if add_eos:
        starts = [t["n_prompt_characters"] for t in texts]
        whole = [
            text[:n] + without_endings(tokenizer, text[n:], eos) for text, n in zip(whole, starts)
        ]
    for text, given, encoding in zip(whole, texts, encode_texts(fast, whole)):
        spans = trained_spans(text, given["n_prompt_characters"], templates)
        end = len(encoding.ids)
        while end and encoding.special_tokens_mask[end - 1]:
            end -= 1  # appended by the tokenizer's template
        ids, labels = encoding.ids[:end], mask_labels(encoding.ids, encoding.offsets, spans)[:end]
        if add_eos:
            ids, labels = [*ids, eos], [*labels, eos]
        ids, labels = ids[:max_length], labels[:max_length]
        if not spans:
            dropped["no response turn"] += 1
        elif all(label == IGNORED for label in labels[1:]):
            dropped["too long"] += 1
        else:
            rows.append({"input_ids": ids, "labels": labels})
    return rows, {reason: n for reason, n in dropped.items() if n}


def make_dataset(
    tokenizer, data: PreferenceData, args: SFTDataArguments, max_length: int, part: str
) -> Dataset:
    """The tokenized texts of one part; what was dropped and cut is announced."""
    templates = None
    if args.response_template is not None:
        templates = (args.instruction_template, args.response_template)
    texts = sft_texts(data.examples)
    rows, dropped = tokenize_texts(tokenizer, texts, templates, max_length, args.add_eos)
    counts = ", ".join(f"{reason}: {n}" for reason, n in dropped.items()) or "none"
    n_tokens = sum(label != IGNORED for row in rows for label in row["labels"])
    n_cut = sum(len(row["input_ids"]) == max_length for row in rows)
    announce(
        f"{part}: {len(rows)} texts with {n_tokens} response tokens, {n_cut} cut at {max_length} "
        f"tokens, dropped: {counts}"
    )
    if not rows:
        hint = "leave the templates out, or check them; " if "no response turn" in dropped else ""
        raise ValueError(f"{part}: no text left to train on ({hint}dropped: {counts})")
    return Dataset.from_list(rows)


def check_packing(model, dataset: Dataset) -> None:
    """ValueError if a text packed behind another is not predicted as it is alone."""
    first, second = (dataset[k]["input_ids"][:64] for k in (0, len(dataset) - 1))
    positions = [*range(len(first)), *range(len(second))]
    with torch.inference_mode():
        ids, positions = (
            torch.tensor([x], device=model.device) for x in (first + second, positions)
        )
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        alone = model(input_ids=ids[:, len(first) :], use_cache=False).logits
    difference = (packed[:, len(first) :] - alone).float().abs().max().item()
    limit = 1e-3 if alone.dtype == torch.float32 else 0.5
    if not difference <= limit * max(1.0, alone.float().abs().max().item()):
        raise ValueError(
            "--packing: this model's attention lets packed texts see each other "
            f"(logits differ by {difference:.2g}): leave it out"
        )


def main(argv: list[str]) -> None:
    data_args, model_args, training_args = parse_args(argv)
    name = model_args.model_name_or_path
    check_model_path(name)
    revision = check_revision("--model_revision", model_args.model_revision, name)
    examples = load_parts(data_args)
    settings = run_description(
        data_args, model_args, training_args, models=[(name, revision)], parts=examples,
        refused=REPLACED,
    )  # fmt: skip
    folder = Path(training_args.output_dir)
    checkpoint = claim_directory(
        folder,
        settings,
        data_args.overwrite_output_dir,
        training_args.resume_from_checkpoint,
        [name],
    )
    set_seed(training_args.seed)
    if model_args.attn_implementation is None and torch.cuda.is_available():
        has_flash = importlib.util.find_spec("flash_attn") is not None and training_args.bf16
        model_args.attn_implementation = "flash_attention_2" if has_flash else None
    model, tokenizer = load_for_training(model_args, name, revision, str(training_args.device))
    limits = [x for x in (training_args.max_length, context_length(model)) if x is not None]
    parts = {
        part: make_dataset(tokenizer, data, data_args, min(limits), part)
        for part, data in examples.items()
    }
    check_vocabulary(model, (ids for part in parts.values() for ids in part["input_ids"]))
    classes = {length_class(model, len(x)) for part in parts.values() for x in part["input_ids"]}
    if len(classes) > 1:
        announce(
            "this model's rotary frequencies depend on the length of a forward pass (LongRoPE, "
            "dynamic): in training and evaluation, all texts of a batch get those of its longest; "
            "batches of 1 give each its own"
        )
    if training_args.packing:
        check_packing(model, parts["train"])
    peft_config = make_peft_config(model_args, model, tokenizer, training_args.output_dir)
    run = start_training_wandb(data_args, training_args, "sft")
    facts = {**settings, "joined_by": joining(examples["train"].examples),
             "truncation_mode": "texts at the end"}  # fmt: skip
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[WandbConfig(run, facts)] if run is not None else None,
    )
    with finishing_first():
        saved = train_until_stopped(trainer, checkpoint)
        validation = trainer.evaluate()
        test = trainer.evaluate(parts["test"], metric_key_prefix="test")
        trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    n_test = len(parts["test"])
    write_test_results(folder, test, n_test, saved)
    mark_run(folder, settings, finished=True, model=saved)
    unit = (
        "nats per response token" if training_args.loss_type == "nll" else training_args.loss_type
    )
    print(f"validation loss {validation['eval_loss']:.4f} {unit}, n = {len(parts['validation'])}")
    print(f"test       loss {test['test_loss']:.4f} {unit}, n = {n_test}")
    print(f"model      {folder}: {describe_step(saved)}")
    if run is not None:
        with finishing_wandb(run):
            pass  # the trainer has logged everything


if __name__ == "__main__":
    run_script(main, sys.argv[1:])
