"""Examples that are no single row: answers graded one by one, and trees of a conversation."""

from collections.abc import Callable, Sequence
from typing import Any

from ranking.data.cells import Dropped, Reading, Row, ranks_from_scores, says
from ranking.data.examples import Message, Votes
from ranking.data.votes import (
    Gathered,
    NumberedReading,
    describe_raters,
    is_missing,
    number,
    ranks_of,
    share_of_sign,
    votes_from,
)

GRADES = ("overall", "overall_score", "helpfulness", "score", "rating", "quality")


def mean_grade(value: Any) -> float | None:
    """A grade, or the mean of several raters' grades; None where there is none."""
    grades = value if isinstance(value, list) else [value]
    given = [number(grade) for grade in grades if not is_missing(grade)]
    return sum(given) / len(given) if given else None


def group_graded(
    rows: Sequence[Row],
    read: Callable[[int], Reading | Dropped],
    grade: str,
    where: Callable[[int], str],
) -> Gathered:
    """Rows of one prompt with a graded answer each → one item, ranked by the grade.

    Where a grade is a list, it is the mean that ranks, and the raters, in their order, are votes
    wherever two answers have as many of them. ValueError says `where` a grade at fault stands.
    """
    prompts: dict[str, list[int]] = {}
    items: dict[int, Reading | Dropped] = {}
    for k in range(len(rows)):
        reading = items[k] = read(k)
        key = repr(reading.prompt) if isinstance(reading, Reading) else f"{k}"
        prompts.setdefault(key, []).append(k)
    grouped: list[NumberedReading] = []
    n_raters = []
    for numbers in prompts.values():
        first = items[numbers[0]]
        if not isinstance(first, Reading):
            grouped.append((numbers[0], first))
            continue
        answers = [items[k].completions[0] for k in numbers]  # type: ignore[union-attr]
        try:
            ranks = ranks_from_scores([mean_grade(rows[k][grade]) for k in numbers])
            votes = votes_of_grades([rows[k][grade] for k in numbers])
        except Dropped as drop:
            grouped.append((numbers[0], drop))
            continue
        except ValueError as error:
            raise ValueError(f"{where(numbers[0])}: column {grade!r} {error}") from None
        if votes is not None and len(numbers) == 2:
            ranks = ranks_of(votes)
            n_raters.append(sum(votes[0, 1]))
        else:
            votes = None
        grouped.append((numbers[0], first._replace(completions=answers, ranks=ranks, votes=votes)))
    notes = [f"rows of one prompt are its answers, ranked by {grade}"]
    if n_raters:
        notes.append(f"votes by {grade}, rater by rater: {describe_raters(n_raters)}")
    return Gathered(grouped, list(prompts.values()), notes)


def votes_of_grades(grades: Sequence[Any]) -> Votes | None:
    """The votes of raters who graded two answers; None where they are not lists of one length."""
    if len(grades) != 2 or not all(isinstance(grade, list) for grade in grades):
        return None
    first, second = grades
    if not first or len(first) != len(second):
        return None
    return (
        votes_from(
            None if is_missing(a) or is_missing(b) else share_of_sign(number(b) - number(a))
            for a, b in zip(first, second)
        )
        or None
    )


def expand_trees(rows: Sequence[Row], where: Callable[[int], str]) -> Gathered:
    """Trees of messages {text, role, replies} → one item for each prompt with ranked answers: the
    path to it as messages, its assistant replies by `rank` (0 is the best).

    ValueError says `where` a tree at fault stands.
    """
    items: list[NumberedReading] = []
    n_single = n_unranked = 0
    for k, row in enumerate(rows):
        waiting: list[tuple[Any, list[Message]]] = [(row["prompt"], [])]
        try:
            while waiting:
                node, path = waiting.pop(0)
                messages = [*path, tree_message(node)]
                replies = [r for r in node.get("replies") or [] if not says(r.get("deleted"), True)]
                waiting += [(reply, messages) for reply in replies]
                answers = [r for r in replies if r.get("role") == "assistant"]
                ranked = [r for r in answers if not is_missing(r.get("rank"))]
                if messages[-1]["role"] != "user" or not answers:
                    continue
                if len(ranked) < 2:
                    n_single += 1
                    continue
                n_unranked += len(answers) - len(ranked)
                texts = [tree_message(reply)["content"] for reply in ranked]
                ranks = ranks_from_scores([-number(reply["rank"]) for reply in ranked])
                items.append((k, Reading(messages, texts, ranks)))
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{where(k)}: not a tree of messages ({error})") from None
    counts = {
        "prompts of the trees without two ranked answers": n_single,
        "answers without a rank beside ranked ones, left out": n_unranked,
    }
    return Gathered(items, [], [f"{what}: {n}" for what, n in counts.items() if n])


def trees_of(
    rows: Sequence[Row], where: Callable[[int], str]
) -> tuple[list[Row], list[int], list[str]]:
    """Messages that name their parent → trees of them, the row where each begins, and notes on
    messages that are left out. ValueError says `where` one stands that does not name it, or
    another message of the same id."""
    nodes: dict[str, Row] = {}
    for k, row in enumerate(rows):
        if not isinstance(row["message_id"], str) or not isinstance(row["parent_id"], str | None):
            raise ValueError(f"{where(k)}: message_id should be text, parent_id text or null")
        if row["message_id"] in nodes:
            raise ValueError(f"{where(k)}: message_id {row['message_id']!r} is there twice")
        nodes[row["message_id"]] = {**row, "replies": []}
    trees, starts = [], []
    for k, row in enumerate(rows):
        node, parent = nodes[row["message_id"]], nodes.get(row["parent_id"])
        if parent is not None:
            parent["replies"].append(node)
        elif not row["parent_id"]:
            trees.append({"prompt": node})
            starts.append(k)
    n_lost, waiting = len(rows), [tree["prompt"] for tree in trees]
    while waiting:
        n_lost -= 1
        waiting += waiting.pop()["replies"]
    counts = {
        "messages that no tree holds, since a parent is missing": n_lost,
        "deleted messages, left out with what answers them": sum(
            bool(row["parent_id"]) and says(row.get("deleted"), True) for row in rows
        ),
    }
    return trees, starts, [f"{what}: {n}" for what, n in counts.items() if n]


def tree_message(node: Any) -> Message:
    """A node of a tree as a message."""
    role = {"prompter": "user", "assistant": "assistant"}.get(node.get("role"))
    if role is None or not isinstance(node.get("text"), str):
        raise ValueError("a message should have a text and be the prompter's or the assistant's")
    return {"role": role, "content": node["text"]}
