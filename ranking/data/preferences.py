"""One dataset → preference examples: rows are read, drawn, converted; drops counted by reason."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ranking.data.cells import Dropped, Reading, Row
from ranking.data.columns import check_known, group_columns, groups_of, renamed
from ranking.data.conversations import plan_conversations
from ranking.data.dialogues import as_turns, parse_dialogue
from ranking.data.examples import (
    Dialogue,
    Message,
    PreferenceData,
    PreferenceExample,
    Votes,
    content_hash,
)
from ranking.data.files import Origins, place, read_path
from ranking.data.gathering import GRADES, expand_trees, group_graded
from ranking.data.hub import DATASETS, Source, hub_dataset_commit, read_hub, split_name
from ranking.data.joining import (
    are_whole_texts,
    ends_with_marker,
    separator_between,
    without_prompt,
)
from ranking.data.prompts import unread
from ranking.data.schemas import Plan, make_plan, unread_prompt_column
from ranking.data.votes import NumberedReading, describe_raters, group_raters

SAMPLE_FILE = Path(__file__).parents[2] / "data" / "sample_preferences.jsonl"
BAR_FROM = 20_000  # rows, from which on reading them shows its progress


def load_preferences(
    spec: str,
    *,
    sample_size: int | None = None,
    seed: int = 0,
    split: str | None = None,
    data_dir: str | Path | None = None,
    include_ties: bool = False,
    stream_shuffle_buffer: int = 0,
    separator: str | None = None,
    columns: Mapping[str, str] | None = None,
    group_by: Sequence[str] | None = None,
    progress: Callable[[str, int], Any] | None = None,
    conversations: bool = False,
) -> PreferenceData:
    """Load one dataset: a name of `DATASETS`, "sample", or a local file or directory.

    `sample_size` examples are drawn without replacement by `default_rng(seed)` before anything is
    dropped (streamed datasets: the first rows); None takes all. Dropped and counted by reason: no
    common prompt, empty completion, identical completions, missing score, no preference, fewer
    than two completions, lone surrogate, images, what is no turn of text, and, unless
    `include_ties`, all ranks tied.
    `separator` replaces what joins prompts and completions; in it, backslash and n are a newline
    (t: a tab), as a shell passes them. `columns`: what each of our columns is called in the data
    (`parse_columns`). `group_by`: columns whose values become `groups` (None: `GROUP_COLUMNS`).
    `conversations`: rows without a preference are read too (`plan_conversations`).
    `progress`: called with a text and the number of rows of a large set, gives a bar to update.
    Raises FileNotFoundError, OSError or ValueError with one line: file, row, what was found.
    """
    name, config, named_split = split_name(spec)
    split = named_split or split
    source = DATASETS.get(name)
    path = Path(name)
    if name == "sample":
        path = SAMPLE_FILE
    elif name in DATASETS:
        config, split = config or source.config, split or source.split
        path = Path(data_dir) / name if data_dir is not None else None
        if path is not None and config != source.config:
            raise ValueError(f"--dataset {spec}: --data-dir holds no configurations")
        if path is not None and not path.is_dir():
            raise FileNotFoundError(f"--data-dir {data_dir} has no folder {name}")
    elif data_dir is not None and not path.exists():
        path = Path(data_dir) / name
    if path is not None and not path.exists():
        raise FileNotFoundError(
            f"unknown dataset {name!r}: no such file, and not one of sample, {', '.join(DATASETS)}"
        )
    if path is None:
        rows = read_hub(name, source, config, split, sample_size, stream_shuffle_buffer, seed)
        origins: Origins = [(name, len(rows))]
    else:
        if path.is_file() and split is not None:
            raise ValueError(f"{name}, split {split}: {path.name} is one file, without splits")
        rows, origins = read_path(path, split)
    if not rows:
        raise ValueError(f"{path or name}: no rows")
    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    data = sample_and_convert(
        rows, origins, (name, config, split), source, sample_size, seed, include_ties, separator,
        columns, group_by, progress, conversations,
    )  # fmt: skip
    if path is not None:
        return data
    commit = hub_dataset_commit(name)
    data.notes.append(f"commit {commit or 'unknown'}")
    return replace(data, commit=commit)


def sample_and_convert(
    rows: list[Row],
    origins: Origins,
    names: tuple[str, str | None, str | None],
    source: Source | None,
    sample_size: int | None,
    seed: int,
    include_ties: bool,
    separator: str | None,
    columns: Mapping[str, str] | None = None,
    group_by: Sequence[str] | None = None,
    progress: Callable[[str, int], Any] | None = None,
    conversations: bool = False,
) -> PreferenceData:
    """Draw rows, turn them into examples, and count what is dropped by reason.

    `names`: of the dataset, its configuration and split.
    """
    file = origins[0][0]
    if columns:
        check_known("--columns", columns.values(), rows, file)
        if "group" in columns:
            group_by = [*(group_by or ()), columns["group"]]
    if group_by:
        check_known("--group-by", group_by, rows, file)
    grouped_by = group_columns(rows, group_by)
    originals, rows = rows, renamed(rows, columns) if columns else rows
    try:
        plan = make_plan(rows, columns)
    except ValueError as error:
        unpaired = plan_conversations(rows)
        if unpaired is None or not conversations:
            hint = "" if unpaired is None else f"; {unpaired.kind} are for sft.py"
            raise ValueError(f"{file}: {error}{hint}") from None
        plan = unpaired
    check_columns(rows, plan, origins)
    joint = source.separator if source is not None else plan.separator
    joint = joint if separator is None else separator
    notes = [plan.rule] if plan.rule else []
    items, more = gather(rows, plan, partial(place, origins))
    notes += more
    n_items = len(rows) if items is None else len(items)
    whole = sample_size is None or sample_size > n_items
    if whole and sample_size is not None:
        notes.append(f"{n_items} examples, fewer than the {sample_size} asked for: all taken")
    streamed = source is not None and source.streamed
    picked = range(n_items) if whole else sampled_rows(n_items, sample_size, seed, streamed)

    def read(index: int) -> tuple[int, Reading]:
        """Row number and what the item says. Raises Dropped, or ValueError naming the row."""
        number, reading = (index, None) if items is None else items[index]
        if isinstance(reading, Dropped):
            raise reading
        if reading is not None:
            return number, reading
        try:
            return number, plan.read(rows[number])
        except ValueError as error:
            raise ValueError(f"{place(origins, number)}: {error}") from None

    joined_texts = plan.separator is None
    whole_texts = joined_texts and are_whole_texts(n_items, lambda index: read(index)[1])
    of_the_paper = source is not None or names[0] == "sample" or plan.kind == "dialogue text"
    examples: list[PreferenceExample] = []
    dropped: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    known_groups: dict[tuple, dict[str, str]] = {}
    n_repeated = n_kept = 0
    bar = progress("rows read", len(picked)) if progress and len(picked) > BAR_FROM else None
    for index in picked:
        if bar is not None:
            bar.update(1)
        try:
            number, reading = read(index)
            prompt, completions, ranks, votes, cluster, *_ = reading
            messages = prompt if isinstance(prompt, list) else None
            text = as_turns(prompt) if isinstance(prompt, list) else prompt
            rest: list[str | None] = [None]
            if joined_texts and messages is None:
                rest = [without_prompt(text, c) for c in completions]
            repeated = None not in rest and (whole_texts or ends_with_marker(text.rstrip()))
            n_kept += not repeated and any(rest)
            completions = [t or "" for t in rest] if repeated else completions
            if not is_unicode([text, *completions]):
                raise Dropped("lone surrogate")
            if votes == {}:
                raise Dropped("no preference")
            paired = plan.gather != "single"
            if paired and (reason := reason_to_drop(completions, ranks, include_ties)):
                raise Dropped(reason)
        except Dropped as drop:
            dropped[str(drop)] += 1
            continue
        if contradiction := contradicting_pair(ranks, votes):
            raise ValueError(
                f"{place(origins, number)}: votes and ranks contradict each other for "
                f"{contradiction}"
            )
        n_repeated += repeated
        remarks.update(reading.remarks)
        if messages is None and not of_the_paper and is_dialogue_text(text):
            messages = parse_dialogue(text)
        try:
            groups = groups_of(originals[number], grouped_by)
        except ValueError as error:
            raise ValueError(f"{place(origins, number)}: {error}") from None
        content = content_hash([text, *completions])
        occurrences[content] += 1
        examples.append(
            PreferenceExample(
                id=f"{content}-{occurrences[content]}",
                prompt_id=content_hash([cluster or text]),
                prompt=text,
                completions=tuple(completions),
                separators=tuple(joints_of(text, completions, joint, isinstance(prompt, list))),
                ranks=tuple(ranks),
                votes=votes,
                dataset=names[0],
                row=int(number),
                dialogue=None if messages is None else as_dialogue(messages, reading),
                groups=known_groups.setdefault(tuple(groups.items()), groups),
            )
        )
    if bar is not None:
        bar.close()
    if n_repeated:
        notes.append(f"completions repeat the prompt, which is read once: {n_repeated} examples")
    if n_kept:
        notes.append(f"completions begin with the prompt, and stay as they are: {n_kept} examples")
    notes += [f"{remark}: {n} examples" for remark, n in remarks.items()]
    if plan.rule and plan.gather == "rows":
        notes.append(describe_raters(sum(e.votes[0, 1]) for e in examples if e.votes))
    if not examples:
        why = explain_drops(dropped, rows[0] if plan.kind == "dialogue text" else None)
        raise ValueError(f"{file}: no usable example left of {len(picked)} {why}")
    return PreferenceData(*names, joint, examples, dict(dropped), notes)


def gather(
    rows: list[Row], plan: Plan, where: Callable[[int], str]
) -> tuple[list[NumberedReading] | None, list[str]]:
    """What becomes an example where that is not a row by itself (else None), and notes."""

    def read(number: int) -> Reading | Dropped:
        try:
            return plan.read(rows[number])
        except Dropped as drop:
            return drop
        except ValueError as error:
            raise ValueError(f"{where(number)}: {error}") from None

    if plan.gather == "raters":
        return group_raters(rows, read, plan.rated)
    if plan.gather == "graded":
        grade = next(grade for grade in GRADES if grade in plan.needed)
        return group_graded(rows, read, grade, where)
    if plan.gather == "trees":
        return expand_trees(rows, where)
    return None, []


def joints_of(
    prompt: str, completions: Sequence[str], joint: str | None, messages: bool
) -> list[str]:
    """What joins each completion to a prompt: `joint`, or, between messages written as turns, a
    space, or, between texts, what `separator_between` says."""
    if joint is not None:
        return [joint] * len(completions)
    if messages:
        return ["" if not text or text[:1].isspace() else " " for text in completions]
    return [separator_between(prompt, text) for text in completions]


def as_dialogue(messages: Sequence[Message], reading: Reading) -> Dialogue:
    """A reading's prompt for a chat template."""
    tools = tuple(reading.tools) if reading.tools else None
    return Dialogue(tuple(messages), tools, reading.template_kwargs or {})


def is_dialogue_text(prompt: str) -> bool:
    """Whether a prompt is text of turns that ends where the assistant's begins."""
    opened = prompt.startswith("Human:") or "\n\nHuman:" in prompt
    return opened and prompt.rstrip().endswith("\n\nAssistant:")


def check_columns(rows: Sequence[Row], plan: Plan, origins: Origins) -> None:
    """Raise ValueError for the first row without a column that is needed, or with a part of its
    prompt in one that is not read."""
    needed = set(plan.needed)
    for number, row in enumerate(rows):
        if not needed <= row.keys():
            missing = ", ".join(column for column in plan.needed if column not in row)
            raise ValueError(
                f"{place(origins, number)}: missing column {missing} (found {', '.join(row)})"
            )
        if plan.unread and (column := unread_prompt_column(row, plan)) is not None:
            raise ValueError(f"{place(origins, number)}: {unread(column, plan.needed)}")


def sampled_rows(n_rows: int, sample_size: int, seed: int, streamed: bool) -> Sequence[int]:
    """Row numbers of a sample without replacement; the first rows, where they were streamed."""
    if streamed:
        return range(sample_size)
    return np.random.default_rng(seed).choice(n_rows, sample_size, replace=False).tolist()


def explain_drops(dropped: Counter[str], whole_dialogue: Row | None) -> str:
    """The reasons with their counts, and, for whole dialogues, what they have to be."""
    counts = ", ".join(f"{reason}: {n}" for reason, n in dropped.items())
    if whole_dialogue is None or set(dropped) != {"no common prompt"}:
        return f"({counts})"
    return (
        f"({counts}); without a column `prompt`, chosen and rejected are whole dialogues that "
        f"share all up to the last '\\n\\nAssistant:' (found {', '.join(whole_dialogue)})"
    )


def is_unicode(texts: Sequence[str]) -> bool:
    """False if a text holds half of a surrogate pair, which no tokenizer takes."""
    return not any("\ud800" <= character <= "\udfff" for text in texts for character in text)


def reason_to_drop(
    completions: Sequence[str], ranks: Sequence[int], include_ties: bool
) -> str | None:
    """Why an example cannot be ranked, or None."""
    if len(completions) < 2:
        return "fewer than two completions"
    if any(not text.strip() for text in completions):
        return "empty completion"
    first_rank: dict[str, int] = {}
    contradictory = any(first_rank.setdefault(t, r) != r for t, r in zip(completions, ranks))
    if contradictory or len(set(completions)) == 1:
        return "identical completions"
    if len(set(ranks)) == 1 and not include_ties:
        return "all ranks tied"
    return None


def contradicting_pair(ranks: Sequence[int], votes: Votes | None) -> tuple[int, int] | None:
    """The first pair whose majority (or tie) differs from the order of its ranks."""
    for (i, j), (first, second) in (votes or {}).items():
        if np.sign(first - second) != np.sign(ranks[j] - ranks[i]):
            return i, j
    return None
