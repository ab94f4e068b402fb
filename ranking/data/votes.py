"""Labels of two answers and raters' votes: whom a label prefers, and rows of one pair together.

A graded preference counts by its sign, no preference half for each answer. Only AlpacaFarm's own
`preference` between 1 and 2 is divided: 1.25 is 0.75 votes for output_1 and 0.25 for output_2.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ranking.data.answers import answer_of
from ranking.data.cells import (
    Dropped,
    Reading,
    Row,
    is_texts,
    list_of,
    parsed,
    ranks_from_scores,
    read_votes,
)
from ranking.data.columns import names_of
from ranking.data.examples import Votes
from ranking.data.messages import Turns
from ranking.data.prompts import PromptColumns, make_reading

# labels of two answers, in the order in which they are looked for
LABELS = ("label", "labels", "better_response_id", "winner", "overall_preference", "preference",
          "preference_strength", "choice", "chosen_position")  # fmt: skip
SIGNED = ("overall_preference", "preference_strength", "score", "strength")  # below 0: the first
INDICES = ("better_response_id", "safer_response_id", "choice")
# lists of the raters of a pair, and where in an entry the preference stands
RATER_LISTS = {
    "normal_worker_annotations": "overall_pref", "expert_worker_annotations": "overall_pref",
    "individual_preference": "score", "all_preferences_unprocessed": "strength",
}  # fmt: skip
ANNOTATOR = re.compile(r"annotator_?\d+\Z")  # PandaLM's columns of raters
RATERS = ("annotator", "annotator_index", "annotator_id", "worker", "worker_id", "judge", "rater",
          "rater_id", "evaluator", "labeler")  # fmt: skip  # who gave the label of a row
SIDE = re.compile(
    r"\W*(?:(?:model|response|answer|output|completion|assistant|summary|option)[ _-]?)?"
    r"([ab]|\d)\W*"
)
Share = float | None  # of a vote that goes to the second answer; None: no preference was given
NumberedReading = tuple[int, Reading | Dropped]  # row number, and what the row says


class Gathered(NamedTuple):
    """What becomes an example where that is not a row by itself.

    items: in their order. members: the rows of each (none given where it is part of a row). notes:
    what is said of them.
    """

    items: list[NumberedReading]
    members: list[list[int]]
    notes: list[str]


class Rule(NamedTuple):
    """Whom the cells of a column prefer: `share` of one cell, and a sentence that says so."""

    share: Callable[[Any], Share]
    sentence: str


def is_missing(value: Any) -> bool:
    """Whether a label is none: empty, or an error of the judge."""
    return str(value).strip().lower() in ("", "none", "nan", "null", "error")


def share_of_word(value: Any, first: str, second: str) -> Share:
    """A verdict in words: A, model_b, "A>B", tie, "A-is-clearly-better", or an answer's column."""
    word = str(value).strip().lower()
    ends = [column.lower()[-1] for column in (first, second)]
    if is_missing(value):
        return None
    if re.match(r"\W*(?:tie|both|neither|equal|draw|same)", word) or word in ("a=b", "b=a"):
        return 0.5
    if found := re.fullmatch(r"([ab])(>+|<+)([ab])", word):
        return float((found[1] == "b") == (found[2][0] == ">"))
    if found := re.match(r"([ab])[ -]is[ -]", word):
        return float(found[1] == "b")
    side = SIDE.fullmatch(word)
    for k, column in enumerate((first, second)):
        if word == column.lower() or (side and side[1] in ("ab"[k], ends[k])):
            return float(k)
    raise ValueError(f"{value!r:.40} says neither which answer is preferred, nor a tie")


def share_of_sign(value: Any) -> Share:
    """A grade below 0 for the first answer, above 0 for the second."""
    if is_missing(value):
        return None
    grade = number(value)
    return 0.5 if grade == 0 else float(grade > 0)


def share_from(start: int) -> Callable[[Any], Share]:
    """A number that counts the answers from 0, or from 1 (0 and 3 are ties then)."""

    def share(value: Any) -> Share:
        if is_missing(value):
            return None
        place = number(value) - start
        if place in (0, 1):
            return float(place)
        if start == 1 and place in (-1, 2):
            return 0.5
        raise ValueError(f"should be {start} or {start + 1}, found {value!r:.40}")

    return share


def number(value: Any) -> float:
    """A finite number; ValueError otherwise."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"should be a number, found {value!r:.40}")
    return found


def share_of_second(value: Any) -> Share:
    """AlpacaFarm's `preference`: 1 … 2 → 0 … 1; a tie, 0 → 1/2."""
    if is_missing(value):
        return None
    try:
        preference = number(value)
    except ValueError:
        preference = math.nan
    if preference == 0.0:
        return 0.5
    if not 1.0 <= preference <= 2.0:
        raise ValueError(
            f"preference should be 1, 2 or 0 (tie), or between 1 and 2, found {value!r:.60}"
        )
    return preference - 1.0


def is_magnitude(values: Iterable[Any]) -> bool:
    """Whether a signed column says how much, not which way: several numbers, none below 0, among
    them others than 0 and 1 or twenty in all."""
    try:
        grades = [number(value) for value in values if not is_missing(value)]
    except ValueError:
        return False
    if not any(grades) or min(grades) < 0:
        return False
    return len(grades) >= 20 or (len(grades) > 1 and not set(grades) <= {0, 1})


def label_rule(values: Iterable[Any], label: str, first: str, second: str) -> Rule:
    """How the labels of a file are meant: by the column's name, those of the answers, and the
    values it holds.

    ValueError where they can be meant in two ways.
    """
    values = list(values)
    if label in SIGNED:
        if is_magnitude(values):
            raise ValueError(
                f"column {label!r} should prefer {first} below 0 and {second} above, but none of "
                f"its {len(values)} rows is below 0: which answer is preferred is not said; "
                "--columns label=COLUMN names the column that says so"
            )
        return Rule(share_of_sign, f"{label} below 0 prefers {first}, above 0 {second}")
    if label in INDICES:
        return Rule(share_from(0), f"{label} counts from 0: 0 is {first}, 1 is {second}")
    found = {str(v).removesuffix(".0") for v in values if not isinstance(v, bool | list | dict)}
    found -= {v for v in found if is_missing(v)}
    numeric = bool(found) and all(re.fullmatch(r"-?\d+(\.\d+)?", v) for v in found)
    negative = numeric and any(float(v) < 0 for v in found)
    ends = first[-1] + second[-1]
    if not negative and not (found and found <= {"0", "1", "2", "3"}):
        if numeric and label == "preference" and ends != "01":
            return Rule(share_of_second, f"preference 1 is {first}, 2 {second}, divided in between")
        return Rule(
            lambda value: share_of_word(value, first, second), f"{label} names the preferred answer"
        )
    start = None if negative else counted_from(found, label, ends)
    if start is None:
        shown = ", ".join(sorted(found)[:5]) + ", …" * (len(found) > 5)
        raise ValueError(
            f"column {label!r} holds {shown}: which answer that prefers is not said; "
            f"write {first}, {second} or tie there"
        )
    if start == 0:
        return Rule(share_from(0), f"{label} counts from 0: 0 is {first}, 1 is {second}")
    tie = ", 0 or 3 a tie" if found & {"0", "3"} else ""
    return Rule(share_from(1), f"{label} 1 is {first}, 2 is {second}{tie}")


def counted_from(found: set[str], label: str, ends: str) -> int | None:
    """Whether labels of 0 to 3 count the answers from 0 or from 1; None where that is open.

    ends: the last letters of the answers' names. Where these are no numbers, 0 beside 1 says which
    answer only in `winner`, and 0 beside 2 nowhere.
    """
    if ends == "01":
        return 0 if found <= {"0", "1"} else None
    if ends == "12":
        return 1 if "2" in found or "0" not in found else None
    if "0" in found:
        return 0 if label == "winner" and found <= {"0", "1"} else None
    return 1 if "2" in found else None


def read_two(
    row: Row,
    columns: Sequence[str],
    asked: PromptColumns,
    votes_of: Callable[[Row], Votes],
) -> Reading:
    """Two answers in the order of the columns, with the votes of the row's raters."""
    answers = [answer_of(steps(row[c]), f"column {c!r}", c in asked.texts) for c in columns[:2]]
    turn = row.get("turn")
    if isinstance(turn, int) and all(isinstance(answer, list) for answer in answers):
        answers = [up_to_turn(answer, turn) for answer in answers]  # the turn that was judged
    reading = make_reading(row, asked, answers, (1, 1), votes_of(row))
    return reading._replace(ranks=ranks_of(reading.votes or {}))


def steps(value: Any) -> Any:
    """An answer in steps (a list of text), a step a line."""
    return "\n".join(value) if is_texts(value) else value


def up_to_turn(turns: Turns, n: int) -> Turns:
    """A dialogue up to its n-th assistant turn."""
    ends = [k for k, message in enumerate(turns) if message["role"] == "assistant"]  # type: ignore
    return turns[: ends[n - 1] + 1] if len(ends) >= n > 0 else turns


def ranks_of(votes: Votes) -> tuple[int, ...]:
    """The ranks of a pair by its votes."""
    return ranks_from_scores(votes.get((0, 1), (0, 0)))


def votes_from(shares: Iterable[Share]) -> Votes:
    """Votes of the raters of one pair; {} where none has a preference."""
    given = [share for share in shares if share is not None]
    second = round(sum(given), 9)  # 0.1 + 0.2
    return {(0, 1): (round(len(given) - second, 9), second)} if given else {}


def votes_by_label(rule: Rule, label: str) -> Callable[[Row], Votes]:
    """One rater, whose label stands in a column."""

    def votes_of(row: Row) -> Votes:
        try:
            return votes_from([rule.share(row[label])])
        except ValueError as error:
            described = str(error)
            own = described.startswith(label)
            raise ValueError(described if own else f"column {label!r}: {described}") from None

    return votes_of


def holds_votes(value: Any) -> bool:
    """Whether a cell counts the votes of a pair: two numbers, or an object of them by `i,j`."""
    if isinstance(value, dict):
        return bool(value) and all(re.fullmatch(r"\d+,\d+", key) for key in value)
    numbers = isinstance(value, list) and all(type(count) in (int, float) for count in value)
    return numbers and len(value) == 2


def given_votes(row: Row, n_completions: int = 2) -> Votes:
    """The votes that a row's own column counts; {} where it is empty."""
    value = parsed(row.get("votes"), "column 'votes'")
    return {} if value is None else read_votes(value, n_completions)


def votes_by_scores(first: str, second: str) -> Callable[[Row], Votes]:
    """One rater, who gave a score to each answer."""

    def votes_of(row: Row) -> Votes:
        if is_missing(row[first]) or is_missing(row[second]):
            return {}
        return votes_from([share_of_sign(number(row[second]) - number(row[first]))])

    return votes_of


def votes_by_raters(columns: Sequence[str], first: str, second: str) -> Callable[[Row], Votes]:
    """All raters of a row: lists of their preferences, or a column for each of them."""

    def shares(row: Row) -> Iterable[Share]:
        for column in columns:
            cell = row.get(column)
            if column not in RATER_LISTS:
                yield share_from(1)(cell)
                continue
            key = RATER_LISTS[column]
            for entry in [] if cell is None else list_of(row, column, (key,)):
                value = entry[key]
                words = isinstance(value, str) and not re.fullmatch(r"-?[\d.]+", value.strip())
                yield share_of_word(value, first, second) if words else share_of_sign(value)

    return lambda row: votes_from(shares(row))


def same_pair(reading: Reading, turn: Any) -> tuple:
    """What rows of one pair have in common, whatever the order of the answers."""
    prompt = reading.prompt
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return text, str(turn), *sorted(reading.completions)


def group_raters(
    rows: Sequence[Row], read: Callable[[int], Reading | Dropped], rated: bool
) -> Gathered:
    """Rows of one pair → one item with all their votes, in the order of the first.

    rated: the rows are raters' for certain, and not only if a column names the rater, or a tenth of
    the rows are further ones of a pair. Where they are not, each row is an item without votes.
    """
    items = [(k, read(k)) for k in range(len(rows))]
    pairs: dict[tuple, int] = {}
    first_of = []
    for k, reading in items:
        turn = rows[k].get("turn")
        key = same_pair(reading, turn) if isinstance(reading, Reading) else (k,)
        first_of.append(pairs.setdefault(key, k))
    n_further = len(items) - len(pairs)
    named = not set(RATERS).isdisjoint(names_of(rows))
    if not rated and not (n_further and (named or n_further >= 0.1 * len(items))):
        alone = [(k, without_votes(reading)) for k, reading in items]
        return Gathered(alone, [[k] for k, _ in items], [])
    votes: dict[int, list[float]] = {}
    raters: Counter[int] = Counter()
    n_missing = 0
    for (_, reading), first in zip(items, first_of):
        if not isinstance(reading, Reading):
            continue
        total = votes.setdefault(first, [0.0, 0.0])
        counts = (reading.votes or {}).get((0, 1), (0.0, 0.0))
        n_missing += not any(counts)
        raters[first] += bool(any(counts))
        kept = items[first][1].completions  # type: ignore[union-attr]
        flipped = list(kept) != list(reading.completions)
        total[0] += counts[flipped]
        total[1] += counts[not flipped]
    grouped: list[NumberedReading] = []
    members: dict[int, list[int]] = {}
    for k, reading in items:
        members.setdefault(first_of[k], []).append(k)
        if k != first_of[k]:
            continue
        if isinstance(reading, Reading):
            a, b = (round(count, 9) for count in votes[k])
            both: Votes = {(0, 1): (a, b)} if a + b else {}
            reading = reading._replace(votes=both, ranks=ranks_of(both))
        grouped.append((k, reading))
    notes = ["a row is a rater's vote, half for each answer where it is a tie"]
    if n_missing:
        notes.append(f"rater rows without a preference: {n_missing}")
    return Gathered(grouped, list(members.values()), [*notes, describe_raters(raters.values())])


def describe_raters(numbers: Iterable[float]) -> str:
    """How many raters the pairs have."""
    counts = Counter(round(n) for n in numbers)
    parts = [f"{n} ({pairs} pair{'s' * (pairs > 1)})" for n, pairs in sorted(counts.items())]
    return f"raters of a pair: {', '.join(parts)}"


def without_votes(reading: Reading | Dropped) -> Reading | Dropped:
    """A single label as ranks alone: one rater says nothing about how raters differ."""
    if isinstance(reading, Dropped):
        return reading
    return reading._replace(votes=None) if reading.votes else Dropped("no preference")
