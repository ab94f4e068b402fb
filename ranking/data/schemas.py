"""How rows are read: schemas, recognized by their columns and what stands in them.

A schema says where the answers and the preference stand; what makes up the prompt is found apart
from it (`prompts.py`), so that every schema takes text or messages, a system column, a context.
"""

import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from ranking.data.answers import (
    TURN_MARKER_HH,
    answer_of,
    common_words,
    holds_entries,
    read_entries,
    read_graded_list,
    read_hh,
    read_implicit,
    read_list,
    read_many,
    read_pair,
    read_scored_list,
    read_shp,
    read_targets,
)
from ranking.data.cells import Reading, Row, holds_nothing, is_texts, parsed, plain_name, text_of
from ranking.data.columns import EXAMPLE, names_of, values_of
from ranking.data.gathering import GRADES
from ranking.data.given_scores import REFERENCE_COLUMNS, given_scores
from ranking.data.messages import has_messages
from ranking.data.prompts import (
    PROMPT_COLUMNS,
    SOME,
    TEXTS,
    PromptColumns,
    find_prompt_columns,
    is_absent,
    make_reading,
    text_columns,
)
from ranking.data.votes import (
    ANNOTATOR,
    LABELS,
    RATER_LISTS,
    SIGNED,
    Rule,
    given_votes,
    holds_votes,
    is_magnitude,
    label_rule,
    ranks_of,
    read_two,
    share_from,
    share_of_second,
    votes_by_label,
    votes_by_raters,
    votes_by_scores,
)

Reader = Callable[[Row, Sequence[str], PromptColumns], Reading]


class Schema(NamedTuple):
    """Columns that must be there, its name, the reader (None: of two answers with a label), what
    joins prompt and answer (None: `separator_between`), and what else must hold of the first row
    and the columns of its prompt."""

    columns: tuple[str, ...]
    kind: str
    reader: Reader | None
    separator: str | None = None
    fits: Callable[[Row, PromptColumns], bool] = lambda row, asked: True


class Plan(NamedTuple):
    """How the rows of one file are read.

    needed: columns that every row has. gather: how rows become examples: "rows" (each by itself),
    "raters", "labels" (raters' if they look so), "graded", "trees" or "messages" (of trees),
    "single" (each by itself, without a preference).
    """

    kind: str
    needed: tuple[str, ...]
    unread: tuple[str, ...]
    asked: PromptColumns
    read: Callable[[Row], Reading]
    separator: str | None
    gather: str = "rows"
    rule: str | None = None


PAIRS = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"), ("response_j", "response_k"),
    ("pos_answer", "neg_answer"), ("preferred_output", "non_preferred_output"),
    ("chosen_messages", "rejected_messages"), ("chosen", "reject"), ("preferred", "dispreferred"),
    ("accepted", "rejected"),
)  # fmt: skip
STEMS = ("response", "answer", "output", "completion", "conversation", "eval_solution", "summary",
         "candidate")  # fmt: skip
ENDINGS = (("_0", "_1"), ("_1", "_2"), ("_a", "_b"), ("_A", "_B"), ("1", "2"), ("A", "B"))
LISTS = ("completions", "responses", "answers", "generations", "outputs")
LABEL_COLUMNS = [*[(name,) for name in LABELS], *[(name,) for name in RATER_LISTS],
                 ("annotator1",), ("annotator_1",)]  # fmt: skip


def is_many(row: Row, columns: Sequence[str]) -> bool:
    """Whether right and wrong answers are lists of text."""
    values = [row.get(column) for column in columns]
    return any(map(is_texts, values)) and all(is_texts(v) or isinstance(v, str) for v in values)


def is_listed(value: Any, score: str) -> bool:
    """Whether a cell is the list of a hub dataset, and not texts, or answers without its score."""
    others = holds_entries(value) and not all(score in entry for entry in value)
    return not is_texts(value) and not others


def is_whole_text(row: Row, columns: Sequence[str], asked: PromptColumns) -> bool:
    """Whether a pair of texts is all there is."""
    texts = all(isinstance(row.get(column), str) for column in columns)
    return (
        asked.main is None
        and texts
        and not any(is_written_messages(row[column]) for column in columns)
    )


def is_written_messages(text: str) -> bool:
    """Whether a text holds messages as JSON."""
    try:
        return not isinstance(answer_of(text, ""), str)
    except ValueError:
        return False


def is_implicit(row: Row, columns: Sequence[str], asked: PromptColumns) -> bool:
    """Whether two whole texts without turns begin alike, for a few words at least."""
    if not is_whole_text(row, columns, asked):
        return False
    texts = [row[column] for column in columns]
    return TURN_MARKER_HH not in texts[0] and len(texts[0][: common_words(texts)].split()) > 2


def pair_schemas(columns: tuple[str, str]) -> list[Schema]:
    """The forms of a better and a worse answer, the most special one first."""
    return [
        Schema(columns, "one against many", read_many, None, lambda r, a: is_many(r, columns)),
        Schema(columns, "whole text", read_implicit, "", lambda r, a: is_implicit(r, columns, a)),
        Schema(columns, "dialogue text", read_hh, "", lambda r, a: is_whole_text(r, columns, a)),
        Schema(columns, "pair", read_pair),
    ]  # fmt: skip


def read_summaries(
    row: Row, columns: Sequence[str], asked: PromptColumns, votes_of: Callable
) -> Reading:
    """summarize_from_feedback: a post or an article and two summaries, in the prompt that its
    authors used."""
    info, summaries = row["info"], row["summaries"]
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2:
        raise ValueError("columns 'info' and 'summaries' should be an object and a list of two")
    text = text_of(info, "post" if info.get("post") else "article")
    heads = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title")] if info.get("post") else []
    parts = [head + text_of(info, key) for head, key in heads if info.get(key)]
    parts.append(f"POST: {text}" if info.get("post") else text)
    reading = make_reading(
        {"prompt": "\n\n".join([*parts, "TL;DR:"])},
        PromptColumns(main="prompt"),
        [answer_of(summary, "an entry of 'summaries'") for summary in summaries],
        (1, 1),
        votes_of(row),
    )
    return reading._replace(ranks=ranks_of(reading.votes or {}))


def read_single(row: Row, columns: Sequence[str], asked: PromptColumns) -> Reading:
    """One answer of several to a prompt, each in a row of its own."""
    (column, *_) = columns
    answer = answer_of(row[column], f"column {column!r}", column in asked.texts)
    return make_reading(row, asked, [answer], (1,))


def parsed_votes(row: Row) -> Any:
    """A row's own votes; None where they are text but no JSON."""
    try:
        return parsed(row["votes"], "votes")
    except ValueError:
        return None


def read_voted(row: Row, columns: Sequence[str], asked: PromptColumns, reader: Reader) -> Reading:
    """Answers that are ranked without their votes, with the votes that stand in `votes`."""
    reading = reader(row, columns, asked)
    return reading._replace(votes=given_votes(row, len(reading.completions)) or None)


def read_with_reference(
    row: Row, columns: Sequence[str], asked: PromptColumns, reader: Reader
) -> Reading:
    """A pair with the log-likelihoods of a reference that stand in its row. They are of the very
    texts, which nothing joins then."""
    return reader(row, columns, asked)._replace(reference=given_scores(row))


SCHEMAS: list[Schema] = [
    Schema(("instruction", "output_1", "output_2", "preference"), "AlpacaFarm", None, " "),
    Schema(("post_id", "history", "human_ref_A", "human_ref_B", "labels"), "SHP", read_shp, " "),
    Schema(("instruction", "completions"), "UltraFeedback",
           partial(read_graded_list, text="response", score="overall_score"), " ",
           lambda row, asked: is_listed(row["completions"], "overall_score")),
    Schema(("question", "answers"), "Stack Exchange",
           partial(read_graded_list, text="text", score="pm_score"), " ",
           lambda row, asked: is_listed(row["answers"], "pm_score")),
    *[Schema((texts, ranks), "ranked list", read_list)
      for texts in LISTS for ranks in ("ranks", "rankings")],
    *[Schema((texts, scores), "scored list", read_scored_list, None,
             lambda row, asked, texts=texts: is_texts(row[texts]))  # type: ignore[misc]
      for texts in LISTS for scores in ("scores", "ratings")],
    *[schema for columns in PAIRS for schema in pair_schemas(columns)],
    Schema(("info", "summaries", "choice"), "summaries", None),
    *[Schema((stem + one, stem + two, *label), "two answers", None)
      for stem in STEMS for one, two in ENDINGS
      for label in (*LABEL_COLUMNS, (f"score_{one.strip('_')}", f"score_{two.strip('_')}"))],
    *[Schema((stem + one, stem + two, "votes"), "two answers", None, None,
             lambda row, asked: holds_votes(parsed_votes(row)))
      for stem in STEMS for one, two in ENDINGS],
    Schema(("targets",), "choices", read_targets, None,
           lambda row, asked: isinstance(row["targets"], dict)),
    *[Schema((column,), "list of objects", read_entries, None,
             lambda row, asked, column=column: holds_entries(row[column]))  # type: ignore[misc]
      for column in LISTS],
    Schema(("message_tree_id", "prompt"), "tree", read_single, None,
           lambda row, asked: isinstance(row["prompt"], dict) and "replies" in row["prompt"]),
    Schema(("message_id", "parent_id", "text", "role", "rank"), "messages of trees", read_single),
    *[Schema(("response", grade), "graded answers", read_single) for grade in (*GRADES, "scores")],
]  # fmt: skip
# targets of --columns that only schemas with such a column read
DECIDING = ("completions", "ranks", "scores", "label")
# kinds of which no label or list of raters says the votes
VOTED = ("pair", "whole text", "dialogue text", "scored list")
# kinds of one chosen and one rejected answer, of which a reference's log-likelihoods can be
PAIRED = ("pair", "whole text", "dialogue text")
# kinds whose own columns may hold the prompt, too
WITHOUT_PROMPT = ("dialogue text", "whole text", "pair", "summaries", "SHP", "messages of trees")
# kinds whose readers take their own columns and none of the prompt's
WITHOUT_ASKED = ("dialogue text", "whole text", "SHP", "summaries", "tree", "messages of trees")
# columns that are known, and why they cannot be read
UNPAIRED = "one answer a row with a label (unpaired, as for KTO): nothing to rank"
NO_PAIRS = (
    (("g1_user_prompt", "g1_winner"), "verdicts of a judge, whose prompts hold the answers inside "
     "their text: give the answers in columns of their own"),
    (("messages", "label"), UNPAIRED),
    (("prompt", "completion", "label"), UNPAIRED),
    (("summary", "info"), "one summary a row, rated by itself: no preference between two"),
    (("winner", "loser"), "a winner and a loser without a prompt (pictures?): no text to rank"),
)  # fmt: skip


def own_columns(schema: Schema) -> tuple[str, ...]:
    """A schema's columns but for the prompt's. `text`, the last of TEXTS, is an answer in trees."""
    return tuple(column for column in schema.columns if column not in TEXTS[:-1])


def recognize_schema(
    columns: Sequence[str], rows: Sequence[Row], named: Mapping[str, str]
) -> tuple[Schema, PromptColumns]:
    """The schema that the columns and the first row fit, and the columns of the prompt.

    named: what --columns gives. ValueError where none fits, or two that contradict each other.
    """
    row = without_magnitudes(rows, columns, named)
    found: dict[tuple[str, ...], tuple[Schema, PromptColumns]] = {}
    unread = ""
    for schema in SCHEMAS:
        if not set(schema.columns) <= set(row):
            continue
        if {"chosen", "rejected"} <= set(named) and schema.columns != ("chosen", "rejected"):
            continue
        if schema.columns == ("response", "scores") and "scores" not in named:
            continue
        own = own_columns(schema)
        asked, answers = find_prompt_columns(columns, own), own if schema.reader else own[:2]
        if answers in found or not schema.fits(filled(rows, schema.columns), asked):
            continue
        lacking = [t for t in DECIDING if t in named and t not in schema.columns]
        if lacking:
            unread = unread or unread_target(lacking[0], named, schema.columns)
        else:
            found[answers] = schema, asked
    wholes = [set(schema.columns) for schema, _ in found.values()]
    found = {
        answers: (schema, asked)
        for answers, (schema, asked) in found.items()
        if not any(set(schema.columns) < whole for whole in wholes)
    }
    if len(found) > 1:
        fitting = " and ".join("/".join(schema.columns) for schema, _ in found.values())
        schema = next(iter(found.values()))[0]
        graded = f"--columns scores={schema.columns[1]}"
        example = graded if schema.kind == "graded answers" else EXAMPLE
        raise ValueError(f"two schemas fit, {fitting}: say which by the flag, as in {example}")
    if not found:
        listed = [c for c in LISTS if c in columns and is_texts(filled(rows, (c,)).get(c))]
        raise ValueError(unread or explain_unknown(columns, listed))
    return next(iter(found.values()))


def filled(rows: Sequence[Row], columns: Sequence[str]) -> Row:
    """The first of a thousand rows that holds something in all the columns, else the first."""
    for row in islice(rows, SOME):
        if not any(holds_nothing(row.get(column)) for column in columns):
            return row
    return rows[0]


def unread_target(target: str, named: Mapping[str, str], columns: Sequence[str]) -> str:
    """What is said of a target of --columns that is not read."""
    return (
        f"--columns {target}={named[target]}: with the columns {', '.join(columns)} no {target} "
        "is read: leave it out, or name the columns that belong to it"
    )


def explain_unknown(columns: Sequence[str], listed: Sequence[str]) -> str:
    """Why no schema fits, and the nearest one as a command-line flag. listed: columns that are
    lists of texts."""
    for known, why in NO_PAIRS:
        if set(known) <= set(columns) and not (known[0] == "winner" and "prompt" in columns):
            return f"{why} (found {', '.join(columns)})"
    for schema in SCHEMAS:
        if schema.kind == "two answers" and set(schema.columns[:2]) <= set(columns):
            return without_label(columns, *schema.columns[:2])
    if listed and not {"ranks", "rankings", "scores", "ratings"} & set(columns):
        return without_ranks(columns, listed[0])

    def nearest(column: str) -> str | None:
        if column in LISTS:
            return None  # a list, which no column of text becomes by another name
        likely = [name for name in others if plain_name(column) in plain_name(name)]
        return next(iter(likely or difflib.get_close_matches(column, others, 1, 0.75)), None)

    best: tuple[float, Schema, dict[str, str]] = (0.0, SCHEMAS[0], {})
    for schema in SCHEMAS:
        missing = [column for column in schema.columns if column not in columns]
        others = [column for column in columns if column not in schema.columns]
        hints = {column: name for column in missing if (name := nearest(column))}
        n = len(schema.columns)
        likeness = (n - len(missing) + 0.9 * len(hints)) / n
        if likeness > best[0]:
            best = likeness, schema, hints
    likeness, (needed, kind, *_), hints = best
    found = ", ".join(columns)
    if set(needed) <= set(columns):
        return (
            f"the first row's {' and '.join(needed)} hold something else than the kind {kind!r} "
            f"does (found {found}); docs/data.md shows the kinds"
        )
    if likeness < 0.5:
        return f"unknown columns: {found}; name them by the flag, as in {EXAMPLE}"
    asked = find_prompt_columns(columns, needed).main
    missing_names = ", ".join(
        f"{column} (is it {hints[column]!r}?)" if column in hints else column
        for column in needed
        if column not in columns
    )
    example = EXAMPLE
    if {"chosen", "rejected"} <= set(needed):
        names = {c: hints.get(c, c if c in columns else "COLUMN") for c in needed}
        pairs = {"prompt": asked or "COLUMN", **names}
        example = f"--columns {shlex.join(f'{c}={name}' for c, name in pairs.items())}"
    return (
        f"missing column {missing_names} (found {found}; nearest: {', '.join(needed)}); other "
        f"names are given by the flag, as in {example}"
    )


def without_ranks(columns: Sequence[str], answers: str) -> str:
    """What is said of a list of texts whose order nothing says."""
    also = ", beside votes too" if "votes" in columns else ""
    return (
        f"missing column ranks (found {', '.join(columns)}): the place of each of the {answers}, "
        f"1 for the best{also}; or scores, the highest for the best; other names are given by the "
        "flag, as in --columns ranks=COLUMN"
    )


def without_label(columns: Sequence[str], first: str, second: str) -> str:
    """What is said of two answers of which nothing says the better one."""
    asked = find_prompt_columns(columns, (first, second)).main
    others = [column for column in columns if column not in (first, second, asked)]
    label = others[0] if len(others) == 1 else "COLUMN"
    return (
        f"missing column label (found {', '.join(columns)}): which of {first} and {second} is "
        f"preferred; it is named by the flag, as in --columns {shlex.join([f'label={label}'])}"
    )


def make_plan(rows: Sequence[Row], named: Mapping[str, str] | None = None) -> Plan:
    """How to read rows: by their schema and the columns of the prompt. ValueError as
    `recognize_schema`."""
    columns = [
        column
        for column in names_of(rows)
        if column == "prompt"
        or plain_name(column) not in PROMPT_COLUMNS
        or not all(is_absent({column: value}, column) for value in values_of(rows, column))
    ]
    named = named or {}
    schema, asked = recognize_schema(columns, rows, named)
    needed = dict.fromkeys(schema.columns)
    if asked.main is not None:
        needed = dict.fromkeys([asked.main, *needed])
    elif schema.kind not in WITHOUT_PROMPT and not has_messages(
        filled(rows, schema.columns)[schema.columns[0]]
    ):
        raise ValueError(
            f"missing column prompt (found {', '.join(rows[0])}); other names are given by the "
            f"flag, as in {EXAMPLE}"
        )
    reader: Any = schema.reader
    gather, rule = "rows", None
    if reader is None:
        reader, gather, rule = two_answers(schema, columns, rows, named)
    elif schema.kind in VOTED and has_votes(rows, columns, named):
        reader = partial(read_voted, reader=reader)
    if schema.kind in PAIRED and set(REFERENCE_COLUMNS) <= set(columns):
        reader = partial(read_with_reference, reader=reader)
    asked = asked._replace(texts=text_columns(rows, needed))
    read = partial(reader, columns=own_columns(schema), asked=asked)
    gather = {
        "tree": "trees",
        "messages of trees": "messages",
        "graded answers": "graded",
    }.get(schema.kind, gather)
    taken = asked.read() | needed.keys()
    if schema.kind in WITHOUT_ASKED:
        taken = set(schema.columns)
    unread = [c for c in columns if plain_name(c) in PROMPT_COLUMNS and c not in taken]
    check_read(schema, asked, named, has_votes(rows, columns, named))
    return Plan(
        schema.kind, tuple(needed), tuple(unread), asked, read, schema.separator, gather, rule
    )


def without_magnitudes(
    rows: Sequence[Row], columns: Sequence[str], named: Mapping[str, str]
) -> Row:
    """The first row, without columns that say how much an answer is preferred, where another
    column says which."""
    signed = [c for c in LABELS if c in SIGNED and c in columns and c not in named]
    if not signed or len([c for c in LABELS if c in rows[0]]) < 2:
        return rows[0]
    gone = {column for column in signed if is_magnitude(values_of(rows, column))}
    labelled = any(c in rows[0] and c not in gone for c in LABELS)
    return {c: value for c, value in rows[0].items() if not labelled or c not in gone}


def has_votes(rows: Sequence[Row], columns: Sequence[str], named: Mapping[str, str]) -> bool:
    """Whether a column counts the votes: one that is named so, or whose first cell looks so."""
    if "votes" in named or "votes" not in columns:
        return "votes" in named
    given = (value for value in values_of(rows, "votes") if value is not None)
    return holds_votes(parsed_votes({"votes": next(given, None)}))


def check_read(schema: Schema, asked: PromptColumns, named: Mapping[str, str], votes: bool) -> None:
    """Raise ValueError for a target of --columns that a plan does not read."""
    read = {*schema.columns, "group"}
    if schema.kind not in WITHOUT_ASKED:
        read |= asked.read()
    if votes and (schema.kind in (*VOTED, "ranked list") or schema.reader is None):
        read |= {"votes"}
    for target in named:
        if target not in read:
            raise ValueError(unread_target(target, named, schema.columns))


def two_answers(
    schema: Schema, columns: Sequence[str], rows: Sequence[Row], named: Mapping[str, str]
) -> tuple[Any, str, str]:
    """Reader of two answers with a label or raters, how its rows are gathered, and the rule by
    which labels are read."""
    first, second, *labels = own_columns(schema)
    if schema.kind == "summaries":
        first, second, labels = "summaries[0]", "summaries[1]", ["choice"]
    raters = [c for c in columns if c in RATER_LISTS or ANNOTATOR.match(c)]
    reader: Any = read_summaries if schema.kind == "summaries" else read_two
    if has_votes(rows, columns, named):
        if "label" in named:
            raise ValueError(unread_target("label", named, [first, second, "votes"]))
        sentence = f"votes counts those for {first} and for {second}"
        return partial(reader, votes_of=given_votes), "rows", sentence
    if raters and "label" not in named:
        votes_of = votes_by_raters(raters, first, second)
        sentence = (
            f"votes of the raters in {', '.join(raters)}: a grade counts by its sign, no "
            "preference half for each answer"
        )
        return partial(reader, votes_of=votes_of), "rows", sentence
    if len(labels) == 2:
        votes_of = votes_by_scores(*labels)
        sentence = f"the answer with the higher of {labels[0]} and {labels[1]} is preferred"
        return partial(reader, votes_of=votes_of), "labels", sentence
    (label,) = labels
    if schema.kind == "AlpacaFarm":
        rule = Rule(share_of_second, "preference 1 is output_1, 2 is output_2, divided in between")
    elif schema.kind == "summaries":
        rule = Rule(share_from(0), f"choice counts from 0: 0 is {first}, 1 is {second}")
    else:
        name = named.get(label, label).rpartition(".")[2]  # which may say how labels are meant
        rule = label_rule(values_of(rows, label), name, first, second)
    gather = "raters" if schema.kind == "AlpacaFarm" else "labels"
    return partial(reader, votes_of=votes_by_label(rule, label)), gather, rule.sentence


def unread_prompt_column(row: Row, plan: Plan) -> str | None:
    """The first column that is part of the prompt, holds something and is not read, or None."""
    return next((c for c in plan.unread if not is_absent(row, c)), None)
