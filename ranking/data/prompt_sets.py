"""Prompts without a preference, to be answered: AlpacaEval's, Arena-Hard's and MT-bench's files,
lines of text, and any data with a column for the prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ranking.data.answers import answer_of
from ranking.data.cells import Dropped, Reading, Row, holds_nothing, is_empty, plain_name
from ranking.data.columns import (
    PREFERENCE_TARGETS,
    RenamedRows,
    check_known,
    group_columns,
    groups_of,
    names_of,
)
from ranking.data.conversations import ANSWERS
from ranking.data.dialogues import text_as_messages
from ranking.data.drawing import sampled_rows
from ranking.data.examples import PreferenceData, PreferenceExample, counts_text
from ranking.data.files import place
from ranking.data.folders import Part
from ranking.data.hub import Found, split_name
from ranking.data.messages import check_turns, has_messages
from ranking.data.preferences import dialogue_of, make_example, reason_not_text
from ranking.data.prompts import (
    DIALOGUES,
    PROMPT_COLUMNS,
    TEXTS,
    PromptColumns,
    find_prompt_columns,
    is_absent,
    make_reading,
    text_columns,
    unread,
)
from ranking.data.sources import read_dataset


def load_prompts(
    spec: str,
    *,
    sample_size: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> PreferenceData:
    """Load the prompts of a hub name, a local file or directory, or a .txt file with one a line.

    Each example is a dialogue: messages up to the last that is not the assistant's, text of turns,
    or one message of the user's; of several turns without roles (MT-bench), the first. It has one
    completion, the answer that stands beside the prompt (`output`, …), or none. What is dropped and
    what is left out is counted. Arguments as `load_preferences` takes them.
    Raises FileNotFoundError, OSError or ValueError with one line: file, row, what was found.
    """
    found = read_prompt_rows(spec, data_dir, sample_size, seed)
    name, file = split_name(spec)[0], found.origins[0][0]
    given = dict(columns or {})
    if wrong := PREFERENCE_TARGETS & given.keys():
        raise ValueError(f"--columns {min(wrong)}: prompts have no preference: give --dataset")
    check_known("--columns", given.values(), found.rows, file)
    rows = RenamedRows(found.rows, given) if given else found.rows
    if not len(rows):
        raise ValueError(f"{file}: no rows")
    answer = next((column for column in ANSWERS if column in names_of(rows)), None)
    asked, not_read = prompt_columns(rows, answer, file)
    grouped_by, notes = group_columns(found.rows, [given["group"]] if "group" in given else None)
    numbers = sampled_rows(len(rows), sample_size, seed, found.streamed)
    examples: list[PreferenceExample] = []
    dropped, remarks, occurrences = Counter[str](), Counter[str](), Counter[str]()
    for number in numbers:
        try:
            row = rows[number]
            if column := next((c for c in not_read if not is_absent(row, c)), None):
                raise ValueError(unread(column, sorted(asked.read())))
            reading = read_prompt(row, asked, answer)
            groups = groups_of(found.rows[number], grouped_by)
        except Dropped as drop:
            dropped[str(drop)] += 1
            continue
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place(found.origins, number)}: {error}") from None
        remarks.update(reading.remarks)
        dialogue = dialogue_of(reading)
        examples.append(make_example(reading, name, number, None, dialogue, groups, occurrences))
    if not examples:
        why = counts_text(dropped)
        raise ValueError(f"{file}: no usable prompt left of {len(numbers)} ({why})")
    read = f"prompts are read from {', '.join(sorted(asked.read()))}"
    notes[:0] = [read + (f", answers from {answer}" if answer else "")]
    notes += [f"{remark}: {n} prompts" for remark, n in remarks.items()]
    if sample_size is not None and sample_size > len(rows):
        notes.append(f"{len(rows)} prompts, fewer than the {sample_size} asked for: all taken")
    part, notes = found.part, [*notes, *found.notes]
    return PreferenceData(
        name, part.config, part.split, None, examples, dict(dropped), notes, found.commit
    )


def read_prompt_rows(
    spec: str, data_dir: str | Path | None, sample_size: int | None, seed: int
) -> Found:
    """The rows of a dataset, or one for each line of a .txt file that is not blank."""
    path = Path(spec)
    if path.suffix.lower() != ".txt":
        return read_dataset(spec, data_dir=data_dir, n_rows=sample_size, seed=seed)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    rows: list[Row] = [{"prompt": line} for line in lines if line.strip()]
    return Found(Part(None, None, [path.name], []), rows, [(path, len(rows))], None, False, [])


def prompt_columns(
    rows: Sequence[Row], answer: str | None, file: Path | str
) -> tuple[PromptColumns, list[str]]:
    """The columns that the prompts are read from, and those that are part of a prompt and cannot be
    read; ValueError where there are none to read. Other questions and dialogues beside the one that
    is read are left aside: they may repeat it."""
    names = names_of(rows)
    asked = find_prompt_columns(names, [answer] if answer else [])
    if asked.main is None:
        raise ValueError(
            f"{file}: no column for the prompt (found {', '.join(names)}): --columns "
            "prompt=COLUMN says which it is; preference data are for --dataset"
        )
    others = [c for c in names if plain_name(c) in PROMPT_COLUMNS - {*TEXTS, *DIALOGUES}]
    texts = text_columns(rows, [asked.main, *([answer] if answer else [])])
    not_read = [column for column in others if column not in asked.read()]
    return asked._replace(repeats=(), texts=texts), not_read


def read_prompt(row: Row, asked: PromptColumns, answer: str | None) -> Reading:
    """What a row asks, as messages, and the answer that it gives, if any. Dropped says why it
    cannot be asked."""
    if holds_nothing(row.get(asked.main)):
        raise Dropped("empty prompt")
    first, n_later = first_of_turns(row[asked.main])
    answers = []
    if answer is not None and not is_empty(row.get(answer)):
        answers = [answer_of(row[answer], f"column {answer!r}", answer in asked.texts)]
    reading = make_reading(row | {asked.main: first}, asked, answers, (1,) * len(answers))
    if reason := reason_not_text(reading):
        raise Dropped(reason)
    messages, remarks = reading.prompt, list(reading.remarks)
    if isinstance(messages, str):
        messages = text_as_messages(messages)
    n_asked = max((k for k, m in enumerate(messages, 1) if m["role"] != "assistant"), default=0)
    if not n_asked:
        raise Dropped("no turn of the user's")
    if n_later:
        remarks.append("turns after the first are left out")
    if n_asked < len(messages):
        remarks.append("answers after the last question are left out")
    check_turns(messages[:n_asked])
    return reading._replace(prompt=messages[:n_asked], remarks=tuple(remarks))


def first_of_turns(value: Any) -> tuple[Any, int]:
    """The first of the turns of one speaker that a cell lists, texts or {content} without a role,
    and how many come after it; a cell of anything else as it is."""
    if not isinstance(value, list) or has_messages(value):
        return value, 0
    texts = [turn.get("content") if isinstance(turn, dict) else turn for turn in value]
    if not texts or not all(isinstance(text, str) for text in texts):
        return value, 0
    return texts[0], len(texts) - 1
