"""Pairs as trainers read them, with the log-likelihoods of the reference that scored them."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

import numpy as np

from ranking.data.conversions import pair_id
from ranking.data.dialogues import is_begun
from ranking.data.examples import Dialogue, Message, counts_text
from ranking.metrics.ches import ches
from ranking.metrics.dynamics import GROUPS
from ranking.metrics.groups import columns_of, record_groups
from ranking.metrics.idealized import TunedColumns, critical_betas
from ranking.metrics.rewards import is_right
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record, write_json_lines, write_parquet
from ranking.plumbing.row_filter import (
    check_columns_named,
    check_kinds,
    parse_condition,
    rows_that_hold,
)
from ranking.scoring.chat import (
    ChatOptions,
    Texts,
    assistant_turn,
    messages_of,
    plain_prompt,
)
from ranking.scoring.run_config import record_in_template

EXPORT_SUFFIXES = (".parquet", ".jsonl")
SUMMED = "ref_logratio non-length-normalized"
TUNED = "policy_logratio non-length-normalized"


class ExportedPair(TunedColumns):
    """A row of --export: a pair of completions in TRL's columns, as the reference scored it.

    What went through a chat template is messages, with what the template was given; all else is
    text, of which prompt + chosen is what was scored. Beside these there is a column
    `group_<column>` for each column by which results are grouped.
    """

    id: str  # of the example; of more than two completions, with :winner>loser
    prompt_id: str
    dataset: str
    dataset_config: str | None
    split: str | None
    prompt: str | list[Message]
    chosen: str | list[Message]  # what most raters prefer, behind its separator
    rejected: str | list[Message]
    tools: NotRequired[str | None]  # JSON, as TRL reads it; the column is there if a row has tools
    chat_template_kwargs: NotRequired[dict[str, Any]]  # the column is there if a row has some
    ref_chosen_logps: float  # log π_ref(chosen|prompt), nats, summed over tokens (Eq. 13)
    ref_rejected_logps: float
    n_chosen: int  # tokens that are scored, with the end if `add_eos`
    n_rejected: int
    n_chars_chosen: int  # characters, without the separator
    n_chars_rejected: int
    c: float  # log π_ref(y_l|x) − log π_ref(y_w|x), summed, nats
    critical_beta: float | None  # of summed log-likelihoods; null: right at every β
    alpha: float  # share of raters who prefer chosen, within [ε, 1 − ε]
    votes: list[float] | None  # for chosen, and for rejected; null: none
    ches: float | None  # null: scored without --ches
    ches_normalized: float | None
    truncated: bool  # the prompt lost its beginning, of which these log-likelihoods know nothing
    reference_model: str
    reference_dtype: str | None  # with its quantization; null in this and the next two: not known
    add_eos: bool | None  # the end of a completion is scored: EOS, or what closes a turn
    template: str | None  # hash of the chat template; null also where the pair is text
    config_hash: str | None  # of NAME.config.json of the reference's run
    # correct_to_correct, …: whether reference and policy rank the pair correctly, as in
    # ranking_dynamics.jsonl; the column is there if a policy was given, as the first three if
    # --dynamics was
    group: NotRequired[str]


# of columns that may hold nothing but null
ARROW_TYPES = {
    "dataset_config": "string", "split": "string", "tools": "string", "critical_beta": "float64",
    "votes": "[float64]",
    "tuned_loss": "float64", "ches": "float64", "ches_normalized": "float64",
    "reference_dtype": "string", "add_eos": "bool", "template": "string", "config_hash": "string",
}  # fmt: skip
# of which no condition of --keep can be
NOT_NAMED = {"prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "votes"}
NAMED = {  # whether it is text
    name: kind in (str, str | None, NotRequired[str])
    for name, kind in ExportedPair.__annotations__.items()
    if name not in NOT_NAMED
}


# ---------------------------------------------------------------------------- rows
def exported_texts(record: Record, side: int, config: Mapping[str, Any] | None) -> Record:
    """Prompt and completion number `side` as they were scored: two texts, or messages.

    config: how the record was scored; None, not known: a dialogue went through a template.
    """
    completion, dialogue = record["completions"][side], None
    text, separator = completion["text"], completion["separator"]
    if record.get("messages"):
        dialogue = Dialogue(
            tuple(record["messages"]), tuple(record.get("tools", ())) or None,
            record.get("template_kwargs", {}), record.get("messages_of_text", False),
        )  # fmt: skip
    in_template = dialogue is not None if config is None else record_in_template(record, config)
    how = config or {}
    chat = ChatOptions(system=how.get("system"))
    item = Texts(record["prompt"], [text], [separator], dialogue=dialogue)
    if in_template:
        messages = messages_of(item, chat)
        turn: Message = {"role": "assistant", "content": text}
        if not is_begun(messages):
            turn = assistant_turn(item, 0, None, text)
        own = dialogue.template_kwargs if dialogue else {}
        return {
            "prompt": messages,
            "completion": [turn],
            "tools": json.dumps(dialogue.tools) if dialogue and dialogue.tools else None,
            "chat_template_kwargs": {**how.get("chat_template_kwargs", {}), **own},
        }
    return {"prompt": plain_prompt(item, chat), "completion": separator + text}


def export_row(
    pair: Record, critical_beta: float, config: Mapping[str, Any] | None, has_policy: bool
) -> Record:
    """An `ExportedPair` of one of `rated_pairs`, without the columns of its data's groups."""
    record, winner, loser = pair["record"], pair["winner"], pair["loser"]
    chosen, rejected = (record["completions"][side] for side in (winner, loser))
    texts, other = (exported_texts(record, side, config) for side in (winner, loser))
    votes = pair["votes"]
    if votes is not None and winner > loser:  # they stand in the example's order
        votes = votes[::-1]
    alike: tuple[float | None, float | None] = (None, None)
    if record.get("hidden_products"):  # null: they are not finite
        lengths = [completion["n_tokens"] for completion in record["completions"]]
        alike = ches(record["hidden_products"], lengths, winner, loser)
    how = config or {}
    dtype = [how[key] for key in ("dtype", "quantization") if key in how]
    is_text = isinstance(texts["prompt"], str)
    return {
        "id": pair_id(record["id"], len(record["completions"]), winner, loser),
        **{key: record[key] for key in ("prompt_id", "dataset")},
        "dataset_config": record.get("dataset_config"),
        "split": record["split"],
        "prompt": texts.pop("prompt"),
        "chosen": texts.pop("completion"),
        "rejected": other["completion"],
        **texts,
        "ref_chosen_logps": chosen["logp"],
        "ref_rejected_logps": rejected["logp"],
        "n_chosen": chosen["n_tokens"],
        "n_rejected": rejected["n_tokens"],
        "n_chars_chosen": chosen["n_chars"],
        "n_chars_rejected": rejected["n_chars"],
        "c": -pair[SUMMED],
        "critical_beta": critical_beta if math.isfinite(critical_beta) else None,
        "alpha": pair["alpha"],
        "votes": votes,
        "ches": alike[0],
        "ches_normalized": alike[1],
        "truncated": chosen["truncated"] or rejected["truncated"],
        "reference_model": record["model"],
        "reference_dtype": ", ".join(dtype) or None,
        "add_eos": how.get("add_eos"),
        "template": None if is_text else how.get("template"),
        "config_hash": record.get("config_hash"),
        **{key: pair[key] for key in TunedColumns.__annotations__ if key in pair},
        **({"group": GROUPS[is_right(pair[SUMMED]), is_right(pair[TUNED])]} if has_policy else {}),
    }


def group_names(groups: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Column of the data → its name in an export, group_<column>, of letters, digits and
    underscores; a number is put behind a name that another column has already."""
    names: dict[str, str] = {}
    for column in columns_of(groups):
        name = own = "group_" + re.sub(r"\W", "_", column)
        n = 2
        while name in names.values():
            name, n = f"{own}_{n}", n + 1
        names[column] = name
    return names


def export_rows(
    pairs: Sequence[Record], config: Mapping[str, Any] | None, has_policy: bool = False
) -> list[Record]:
    """`ExportedPair`s of all untied pairs, with the columns of their data's groups."""
    untied = [pair for pair in pairs if not pair["tied"]]
    critical = critical_betas(
        np.array([pair[SUMMED] for pair in untied]), np.array([pair["alpha"] for pair in untied])
    )
    groups = [record_groups(pair["record"]) for pair in untied]
    names = group_names(groups)
    rows = []
    for pair, beta, own in zip(untied, critical, groups):
        of_groups = {name: own.get(column) for column, name in names.items()}
        rows.append({**export_row(pair, float(beta), config, has_policy), **of_groups})
    return rows


def trl_columns(rows: Sequence[Record]) -> list[Record]:
    """The rows, all with the same columns: tools and chat_template_kwargs only if a row has them.
    ValueError where some are text and some are messages, which one column cannot hold."""
    as_text = {isinstance(row["prompt"], str) for row in rows}
    if len(as_text) > 1:
        of_text = {row["dataset"] for row in rows if isinstance(row["prompt"], str)}
        said = ", ".join(
            f"{name} as {'text' if name in of_text else 'messages'}"
            for name in dict.fromkeys(row["dataset"] for row in rows)
        )
        raise ValueError(
            f"--export: one file holds text or messages, and here are {said}: export each dataset "
            "by itself (--keep 'dataset == \"NAME\"')"
        )
    empty: Record = {"tools": None, "chat_template_kwargs": {}}
    used = {key for key in empty if any(row.get(key) for row in rows)}
    return [
        {key: value for key, value in row.items() if key not in empty or key in used}
        for row in rows
    ]


# ---------------------------------------------------------------------------- which of them
def check_keep(
    keep: str | None,
    records: Sequence[Record],
    has_dynamics: bool = False,
    has_policy: bool = False,
) -> None:
    """Raise ValueError where --keep is no condition on columns that an export of `records` has."""
    if keep is not None:
        absent = {"group"} if not has_policy else set()
        if not has_dynamics:
            absent |= TunedColumns.__annotations__.keys()
        named = {name: kind for name, kind in NAMED.items() if name not in absent}
        groups = group_names([record_groups(r) for r in records]).values()
        try:
            tree = parse_condition(keep)
            check_columns_named(keep, tree, [*named, *groups])
            check_kinds(keep, tree, {**named, **dict.fromkeys(groups, True)})
        except ValueError as error:
            raise ValueError(f"--keep {error}") from None


def rows_to_keep(rows: Sequence[Record], keep: str) -> list[Record]:
    """The rows of which a condition holds. A pair that is right at every β has a critical β of ∞.
    ValueError as `rows_that_hold`."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_NAMED}
    try:
        holds = rows_that_hold(keep, columns, {"critical_beta": math.inf})
    except ValueError as error:
        raise ValueError(f"--keep {error}") from None
    return [row for row, kept in zip(rows, holds) if kept]


def easiest_rows(rows: Sequence[Record], share: float) -> list[Record]:
    """A share of the rows (rounded up), those of smallest c (of equal c by id), in their order."""
    n = math.ceil(share * len(rows) - 1e-9)
    chosen = sorted(range(len(rows)), key=lambda k: (rows[k]["c"], rows[k]["id"]))[:n]
    return [rows[k] for k in sorted(chosen)]


# ---------------------------------------------------------------------------- the file
def export_pairs(
    file: Path,
    pairs: Sequence[Record],
    config: Mapping[str, Any] | None,
    keep: str | None,
    share: float | None,
    has_policy: bool = False,
) -> int:
    """Write `ExportedPair`s, and say how many are kept and left out, and what to know of them.

    pairs: `rated_pairs`. config: how they were scored, None: not known. keep, share: `rows_to_keep`
    and, of these, `easiest_rows`. has_policy: the pairs' other log-ratio is a policy's. How many
    are written; where none is left, no file is there.
    """
    rows = export_rows(pairs, config, has_policy)
    counts = [("tied", len(pairs) - len(rows))]
    if keep is not None and rows:
        before, rows = len(rows), rows_to_keep(rows, keep)
        counts.append(("by --keep", before - len(rows)))
    if share is not None and rows:
        before, rows = len(rows), easiest_rows(rows, share)
        counts.append(("by --keep-easiest", before - len(rows)))
    left_out = counts_text({why: n for why, n in counts if n})
    if not rows:
        file.unlink(missing_ok=True)  # of a run that was overwritten
        announce(f"{file}: not written, no pair is left of {len(pairs)} (left out: {left_out})")
        return 0
    rows = trl_columns(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        write_parquet(file, rows, ARROW_TYPES, objects={"chat_template_kwargs"})
    else:
        write_json_lines(file, rows)
    print(f"{file}: {len(rows)} of {len(pairs)} pairs kept, left out: {left_out}")
    for line in export_notes(rows):
        announce(f"{file}: {line}")
    return len(rows)


def export_notes(rows: Sequence[Record]) -> list[str]:
    """What a trainer has to know of exported rows."""
    notes = []
    if not all(row["add_eos"] for row in rows):
        end = "EOS" if isinstance(rows[0]["prompt"], str) else "what closes a turn"
        known = "without --add-eos" if rows[0]["add_eos"] is False else "nobody knows how"
        notes.append(
            f"TRL's trainer puts {end} behind each completion, which the reference's numbers "
            f"(scored {known}) do not count: score with --add-eos for it"
        )
    if n := sum(row["truncated"] for row in rows):
        notes.append(
            f"{n} pairs were scored with a cut prompt: dpo.py scores them again, TRL's trainer "
            "does not (--keep 'not truncated' leaves them out)"
        )
    kwargs = [row.get("chat_template_kwargs", {}) for row in rows]
    if any(given.keys() != kwargs[0].keys() for given in kwargs):
        notes.append(
            "chat_template_kwargs differ between rows: `datasets` gives null to keys that a row "
            "lacks, which reaches the template of TRL's trainer (dpo.py's not)"
        )
    begun = [r for r in rows if not isinstance(r["prompt"], str) and is_begun(r["prompt"])]
    if begun:
        notes.append(
            f"{len(begun)} prompts end inside an assistant's turn, which dpo.py goes on with and "
            "TRL's trainer does not"
        )
    return notes
