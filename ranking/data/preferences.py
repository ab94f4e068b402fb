"""One dataset → preference examples: rows are read, drawn, converted; drops counted by reason."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ranking.data.cells import Dropped, Reading
from ranking.data.dialogues import as_turns, is_dialogue_text, parse_dialogue
from ranking.data.drawing import Drawn, draw_examples
from ranking.data.examples import (
    Dialogue,
    Message,
    PreferenceData,
    PreferenceExample,
    Votes,
    content_hash,
    counts_text,
)
from ranking.data.files import Progress
from ranking.data.hub import DATASETS, split_name
from ranking.data.joining import ends_with_marker, separator_between, without_prompt
from ranking.data.sources import SAMPLE_FILE as SAMPLE_FILE
from ranking.data.sources import read_dataset
from ranking.data.votes import describe_raters

BAR_FROM = 20_000  # examples, from which on their progress is shown


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
    progress: Progress | None = None,
    conversations: bool = False,
) -> PreferenceData:
    """Load one dataset: "sample", a hub name, or a local file or directory.

    `sample_size` examples are drawn without replacement by `default_rng(seed)` before anything is
    dropped (streamed datasets: the first rows); None takes all. Dropped and counted by reason: no
    common prompt, empty prompt or completion, identical completions, missing score, no preference,
    fewer than two completions, lone surrogate, images, what is no turn of text, and, unless
    `include_ties`, all ranks tied.
    `separator` replaces what joins prompts and completions; in it, backslash and n are a newline
    (t: a tab), as a shell passes them. `columns`: what each of our columns is called in the data
    (`parse_columns`). `group_by`: columns whose values become `groups` (None: `GROUP_COLUMNS`).
    `progress` makes the bars of a large file. `conversations`: rows without a preference are read
    too (`plan_conversations`).
    Raises FileNotFoundError, OSError or ValueError with one line: file, row, what was found.
    """
    found = read_dataset(spec, split, data_dir, sample_size, stream_shuffle_buffer, seed, progress)
    name, part, file = split_name(spec)[0], found.part, found.origins[0][0]
    source = DATASETS.get(name)
    if not len(found.rows):
        raise ValueError(f"{file}: no rows")
    drawn = draw_examples(
        found.rows, found.origins, sample_size=sample_size, seed=seed, columns=columns,
        group_by=group_by, streamed=found.streamed or (source is not None and source.streamed),
        conversations=conversations,
    )  # fmt: skip
    plan, notes = drawn.plan, drawn.notes
    joint = source.separator if source is not None else plan.separator
    if separator is not None:
        joint = separator.replace("\\n", "\n").replace("\\t", "\t")
    of_the_paper = source is not None or name == "sample" or plan.kind == "dialogue text"
    examples: list[PreferenceExample] = []
    dropped, remarks, occurrences = Counter[str](), Counter[str](), Counter[str]()
    known_groups: dict[tuple, dict[str, str]] = {}
    bar = None
    if progress is not None and len(drawn.numbers) > BAR_FROM:
        bar = progress("examples", len(drawn.numbers))
    for k in range(len(drawn.numbers)):
        if bar is not None:
            bar.update(1)
        try:
            reading = usable_reading(drawn, k, include_ties)
        except Dropped as drop:
            dropped[str(drop)] += 1
            continue
        remarks.update(reading.remarks)
        groups = drawn.groups(k)
        groups = known_groups.setdefault(tuple(groups.items()), groups)
        as_scored = reading.reference is not None and isinstance(reading.prompt, str)
        between = "" if as_scored and separator is None else joint
        dialogue = None if of_the_paper or as_scored else dialogue_of(reading)
        examples.append(
            make_example(reading, name, drawn.numbers[k], between, dialogue, groups, occurrences)
        )
    if bar is not None:
        bar.close()
    notes += [f"{remark}: {n} examples" for remark, n in remarks.items()]
    if plan.rule and plan.gather == "rows":
        notes.append(describe_raters(sum(e.votes[0, 1]) for e in examples if e.votes))
    if not examples:
        why = explain_drops(dropped, drawn)
        raise ValueError(f"{file}: no usable example left of {len(drawn.numbers)} {why}")
    notes += found.notes
    return PreferenceData(
        name, part.config, part.split, joint, examples, dict(dropped), notes, found.commit
    )


def usable_reading(drawn: Drawn, k: int, include_ties: bool) -> Reading:
    """What the k-th drawn example says, its prompt once. Dropped says why it cannot be used,
    ValueError that its votes and ranks contradict each other."""
    reading = drawn.read(k)
    if isinstance(reading.prompt, str) and drawn.plan.separator is None and not reading.reference:
        reading = prompt_once(reading, drawn.whole_texts)
    paired = drawn.plan.gather != "single"
    if reason := reason_to_drop(reading, include_ties) if paired else reason_not_text(reading):
        raise Dropped(reason)
    if pair := contradicting_pair(reading.ranks, reading.votes):
        place = drawn.where(drawn.numbers[k])
        raise ValueError(f"{place}: votes and ranks contradict each other for {pair}")
    return reading


def make_example(
    reading: Reading,
    dataset: str,
    row: int,
    joint: str | None,
    dialogue: Dialogue | None,
    groups: dict[str, str],
    occurrences: Counter[str],
) -> PreferenceExample:
    """The example of a reading. Its id is the one that stands beside a reference's log-likelihoods
    (what comes of the pair is joined by it with what was scored), else the hash of what it says;
    `occurrences` number those that are there again."""
    prompt, completions, reference = reading.prompt, reading.completions, reading.reference
    text = prompt if isinstance(prompt, str) else as_turns(prompt)
    content = content_hash([text, *completions, *given_besides(reading)])
    given_id, given_prompt = (reference.id, reference.prompt_id) if reference else (None, None)
    occurrences[given_id or content] += 1
    n = occurrences[given_id or content]
    return PreferenceExample(
        id=given_id if given_id and n == 1 else f"{given_id or content}-{n}",
        prompt_id=given_prompt or content_hash([reading.cluster or text]),
        prompt=text,
        completions=tuple(completions),
        separators=tuple(joints_of(prompt, completions, joint)),
        ranks=tuple(reading.ranks),
        votes=reading.votes,
        dataset=dataset,
        row=int(row),
        dialogue=dialogue,
        groups=groups,
        reference=reference,
    )


def given_besides(reading: Reading) -> list[str]:
    """What a chat template is given beside messages, where it is, for the example's id."""
    given = [reading.tools or [], reading.template_kwargs or {}]
    return [json.dumps(given, sort_keys=True)] if any(given) else []


def prompt_once(reading: Reading, whole_texts: bool) -> Reading:
    """A reading of text whose completions do not repeat the prompt: it is taken off where all of
    the file are whole texts, or the prompt is a dialogue. A remark says what was found."""
    prompt = str(reading.prompt)
    rest = [without_prompt(prompt, completion) for completion in reading.completions]
    if None not in rest and (whole_texts or ends_with_marker(prompt.rstrip())):
        remark = "completions repeat the prompt, which is read once"
        texts = [text or "" for text in rest]
        return reading._replace(completions=texts, remarks=(*reading.remarks, remark))
    if any(rest):
        remark = "completions begin with the prompt, and stay as they are"
        return reading._replace(remarks=(*reading.remarks, remark))
    return reading


def joints_of(
    prompt: str | list[Message], completions: Sequence[str], joint: str | None
) -> list[str]:
    """What joins each completion to a prompt: `joint`, or, between messages written as turns, a
    space, or, between texts, what `separator_between` says."""
    if joint is not None:
        return [joint] * len(completions)
    if isinstance(prompt, str):
        return [separator_between(prompt, text) for text in completions]
    return ["" if not text or text[:1].isspace() else " " for text in completions]


def dialogue_of(reading: Reading) -> Dialogue | None:
    """A reading's prompt for a chat template: its messages, or its text where that is turns."""
    messages, of_text = reading.prompt, isinstance(reading.prompt, str)
    if isinstance(messages, str):
        if not is_dialogue_text(messages):
            return None
        messages = parse_dialogue(messages)
    tools = tuple(reading.tools) if reading.tools else None
    return Dialogue(tuple(messages), tools, reading.template_kwargs or {}, of_text)


def explain_drops(dropped: Counter[str], drawn: Drawn) -> str:
    """The reasons with their counts, or what was said of the rows where none became an example;
    and, for whole dialogues, what they have to be."""
    counts = counts_text(dropped) if dropped else "; ".join(drawn.notes)
    if drawn.plan.kind != "dialogue text" or set(dropped) != {"no common prompt"}:
        return f"({counts})"
    return (
        f"({counts}); without a column `prompt`, chosen and rejected are whole dialogues that "
        f"share all up to the last '\\n\\nAssistant:' (found {', '.join(drawn.first)})"
    )


def is_unicode(texts: Sequence[str]) -> bool:
    """False if a text holds half of a surrogate pair, which no tokenizer takes."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def reason_to_drop(reading: Reading, include_ties: bool) -> str | None:
    """Why an example cannot be ranked, or None."""
    completions, ranks = reading.completions, reading.ranks
    if reason := reason_not_text(reading):
        return reason
    if reading.votes == {}:
        return "no preference"
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


def reason_not_text(reading: Reading) -> str | None:
    """Why an example cannot be tokenized, or None."""
    prompt = reading.prompt
    asked = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    return None if is_unicode([*asked, *reading.completions]) else "lone surrogate"


def contradicting_pair(ranks: Sequence[int], votes: Votes | None) -> tuple[int, int] | None:
    """The first pair whose majority (or tie) differs from the order of its ranks."""
    for (i, j), (first, second) in (votes or {}).items():
        if np.sign(first - second) != np.sign(ranks[j] - ranks[i]):
            return i, j
    return None
