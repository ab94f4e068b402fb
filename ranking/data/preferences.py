"""One dataset → preference examples: rows are read, drawn, converted; drops counted by reason."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ranking.data.examples import PreferenceData, PreferenceExample, Votes, content_hash
from ranking.data.files import Origins, Progress, Rows, place
from ranking.data.hub import DATASETS, Source, split_name
from ranking.data.joining import (
    are_whole_texts,
    ends_with_marker,
    separator_between,
    without_prompt,
)
from ranking.data.schemas import (
    Dropped,
    Row,
    group_votes,
    read_hh,
    read_list,
    read_pair,
    read_rated_pair,
    recognize_schema,
    unread_prompt_column,
)
from ranking.data.sources import SAMPLE_FILE as SAMPLE_FILE
from ranking.data.sources import read_dataset


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
    progress: Progress | None = None,
) -> PreferenceData:
    """Load one dataset: "sample", a hub name, or a local file or directory.

    `sample_size` examples are drawn without replacement by `default_rng(seed)` before anything is
    dropped (streamed datasets: the first rows); None takes all. Dropped and counted by reason: no
    common prompt, empty completion, identical completions, missing score, no preference, fewer
    than two completions, lone surrogate, and, unless `include_ties`, all ranks tied.
    `separator` replaces what joins prompts and completions; in it, backslash and n are a newline
    (t: a tab), as a shell passes them. `progress` makes the bar of a large file.
    Raises FileNotFoundError, OSError or ValueError with one line: file, row, what was found.
    """
    found = read_dataset(spec, split, data_dir, sample_size, stream_shuffle_buffer, seed, progress)
    name = split_name(spec)[0]
    if not len(found.rows):
        raise ValueError(f"{found.origins[0][0]}: no rows")
    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    data = sample_and_convert(
        found.rows, found.origins, (name, found.part.config, found.part.split), DATASETS.get(name),
        sample_size, seed, include_ties, separator, streamed=found.streamed,
    )  # fmt: skip
    return replace(data, notes=[*data.notes, *found.notes], commit=found.commit)


def sample_and_convert(
    rows: Rows,
    origins: Origins,
    names: tuple[str, str | None, str | None],
    source: Source | None,
    sample_size: int | None,
    seed: int,
    include_ties: bool,
    separator: str | None,
    streamed: bool = False,
) -> PreferenceData:
    """Draw rows, turn them into examples, and count what is dropped by reason.

    `names`: of the dataset, its configuration and split.
    """
    file = origins[0][0]
    try:
        needed, reader, joint = recognize_schema(list(rows[0]))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    joint = source.separator if source is not None else joint
    joint = joint if separator is None else separator
    if isinstance(rows, list) or reader is read_rated_pair:
        check_columns(rows, range(len(rows)), needed, origins)
    notes = []
    if reader is read_rated_pair:
        rows, n_missing = group_votes(rows, partial(place, origins))
        if n_missing:
            notes.append(f"rater rows without a preference: {n_missing}")
    whole = sample_size is None or sample_size > len(rows)
    if whole and sample_size is not None:
        notes.append(f"{len(rows)} examples, fewer than the {sample_size} asked for: all taken")
    streamed = streamed or (source is not None and source.streamed)
    picked = range(len(rows)) if whole else sampled_rows(len(rows), sample_size, seed, streamed)
    drawn = rows if isinstance(rows, list) else [rows[index] for index in picked[:1000]]
    if not isinstance(rows, list):  # of a table, the rows that are drawn are made
        check_columns((rows[index] for index in picked), picked, needed, origins)
    joined_texts = reader in (read_pair, read_list)
    whole_texts = joined_texts and are_whole_texts(drawn)
    examples: list[PreferenceExample] = []
    dropped: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    n_repeated = n_kept = 0
    for index in picked:
        number = rows[index]["row"] if reader is read_rated_pair else index
        try:
            prompt, completions, ranks, votes, cluster = reader(rows[index])
            rest = [without_prompt(prompt, c) for c in completions] if joined_texts else [None]
            repeated = None not in rest and (whole_texts or ends_with_marker(prompt.rstrip()))
            n_kept += not repeated and any(rest)
            completions = [text or "" for text in rest] if repeated else completions
            if not is_unicode([prompt, *completions]):
                raise Dropped("lone surrogate")
            if reason := reason_to_drop(completions, ranks, include_ties):
                raise Dropped(reason)
        except Dropped as drop:
            dropped[str(drop)] += 1
            continue
        except ValueError as error:
            raise ValueError(f"{place(origins, number)}: {error}") from None
        if contradiction := contradicting_pair(ranks, votes):
            raise ValueError(
                f"{place(origins, number)}: votes and ranks contradict each other for "
                f"{contradiction}"
            )
        n_repeated += repeated
        content = content_hash([prompt, *completions])
        occurrences[content] += 1
        separators = [separator_between(prompt, c) if joint is None else joint for c in completions]
        examples.append(
            PreferenceExample(
                id=f"{content}-{occurrences[content]}",
                prompt_id=content_hash([cluster or prompt]),
                prompt=prompt,
                completions=tuple(completions),
                separators=tuple(separators),
                ranks=tuple(ranks),
                votes=votes,
                dataset=names[0],
                row=int(number),
            )
        )
    if n_repeated:
        notes.append(f"completions repeat the prompt, which is read once: {n_repeated} examples")
    if n_kept:
        notes.append(f"completions begin with the prompt, and stay as they are: {n_kept} examples")
    if not examples:
        why = explain_drops(dropped, rows[0] if reader is read_hh else None)
        raise ValueError(f"{file}: no usable example left of {len(picked)} {why}")
    return PreferenceData(*names, joint, examples, dict(dropped), notes)


def check_columns(
    rows: Iterable[Row], numbers: Iterable[int], needed: Sequence[str], origins: Origins
) -> None:
    """Raise ValueError for the first row without a column that is needed, or with a part of its
    prompt in one that is not read."""
    for number, row in zip(numbers, rows):
        if not set(needed) <= row.keys():
            missing = ", ".join(column for column in needed if column not in row)
            raise ValueError(
                f"{place(origins, number)}: missing column {missing} (found {', '.join(row)})"
            )
        if (column := unread_prompt_column(row, needed)) is not None:
            raise ValueError(
                f"{place(origins, number)}: column {column!r} is part of the prompt, but with the "
                f"columns {', '.join(needed)} it is not read: put its text into the prompt "
                "(`prompt`), or take the column out"
            )


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
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


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
