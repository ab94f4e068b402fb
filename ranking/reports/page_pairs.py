"""The pairs of a page: one line per untied pair and model, with texts and numbers."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ranking.data.dialogues import is_dialogue_text, parse_dialogue
from ranking.data.examples import dataset_label
from ranking.metrics.accuracy import record_scores, untied_pairs
from ranking.metrics.dynamics import GROUPS, finite
from ranking.metrics.groups import record_groups
from ranking.metrics.rewards import is_right
from ranking.plumbing.result_files import Record
from ranking.reports.labels import run_label, short
from ranking.reports.page_files import IDEALIZED, ResultFile


def model_names(models: Iterable[str]) -> dict[str, str]:
    """Model → the last part of its path, or all of it where two end alike."""
    known = list(dict.fromkeys(models))
    ends = [short(model) for model in known]
    return {m: e if ends.count(e) == 1 else m for m, e in zip(known, ends)}


def run_names(files: Sequence[ResultFile]) -> dict[Path, str]:
    """File → its model and how it was scored; with the file's name where another of that name
    scored one of its examples too."""
    models = model_names(row["model"] for file in files for row in file.rows)
    labels = [
        ", ".join(filter(None, (models[file.rows[0]["model"]], run_label(file.rows))))
        for file in files
    ]
    scored = [set(map(place_of, file.examples)) for file in files]
    names = {}
    for k, file in enumerate(files):
        alike = [places for j, places in enumerate(scored) if j != k and labels[j] == labels[k]]
        shared = any(places & scored[k] for places in alike)
        names[file.path] = f"{labels[k]} ({file.path.name})" if shared else labels[k]
    return names


def message_text(message: Mapping[str, Any]) -> str:
    """A chat message as text: content of parts and tool calls as JSON."""
    parts = [message.get("content"), message.get("tool_calls")]
    return "\n".join(
        part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
        for part in parts
        if part
    )


def turns_of(record: Record) -> list[tuple[str, str]]:
    """Role and text of each turn of the prompt; one turn where it is no dialogue."""
    messages = record.get("messages")
    if not messages and is_dialogue_text(record["prompt"]):
        messages = parse_dialogue(record["prompt"])
    if not messages:
        return [("prompt", record["prompt"])]
    return [(str(message.get("role")), message_text(message)) for message in messages]


def place_of(record: Mapping[str, Any]) -> tuple:
    """What two lines about one example share, of whichever file."""
    return record["dataset"], record.get("dataset_config"), record.get("split"), record["id"]


class PagePairs(NamedTuple):
    """What is embedded of pairs, as JSON; `pairs` refer to `examples` by their number."""

    examples: list[Record]
    pairs: list[Record]


def page_pairs(files: Sequence[ResultFile]) -> PagePairs:
    """Every untied pair of the examples of each file, with what rewards and votes say of it."""
    scored = [file for file in files if file.examples]
    names = run_names(scored) if scored else {}
    rated = rated_pairs_of(files)
    numbers: dict[tuple, int] = {}
    examples: list[Record] = []
    pairs: list[Record] = []
    for file in scored:
        rewards = {(*place_of(r), r["winner"], r["loser"]): r for r in file.rewards}
        model = file.rows[0]["model"]
        for record in file.examples:
            place = place_of(record)
            if place not in numbers:
                numbers[place] = len(examples)
                examples.append(page_example(record))
            for line in lines_of_record(record, rewards):
                own = (model, record["dataset"], record["split"], record["id"])
                rated_pair = rated.get((*own, line["chosen"]["place"], line["rejected"]["place"]))
                pairs.append(
                    {"example": numbers[place], "model": names[file.path], **line,
                     **(rated_pair or {})}
                )  # fmt: skip
    return PagePairs(examples, pairs)


def page_example(record: Record) -> Record:
    """Texts of an example, and the columns that its pairs have in common."""
    groups = [f"{column}: {value}" for column, value in record_groups(record).items()]
    dataset = dataset_label(record["dataset"], record["split"], record.get("dataset_config"))
    return {
        "turns": turns_of(record),
        "texts": [completion["text"] for completion in record["completions"]],
        "columns": without_unknown(
            {"dataset": dataset, "groups": groups or None, "row": record["row"]}
        ),
    }


def lines_of_record(record: Record, rewards: Mapping[tuple, Record]) -> Iterator[Record]:
    """Lines of one record's untied pairs; rewards: by place, winner and loser."""
    logps = record_scores(record, "non-length-normalized")
    means = record_scores(record, "length-normalized")
    for w, l in untied_pairs(record["ranks"]):  # noqa: E741
        reward = rewards.get((*place_of(record), w, l), {})
        sides = {
            side: page_completion(record, k, other, reward, side)
            for side, k, other in (("chosen", w, l), ("rejected", l, w))
        }
        yield without_unknown(
            {
                "ranked": "right" if is_right(logps[w] - logps[l]) else "wrong",
                "ranked_per_token": "right" if is_right(means[w] - means[l]) else "wrong",
                "group": group_label(reward["group"]) if reward else None,
                "logratio": rounded(logps[w] - logps[l], 3),
                "logratio_per_token": rounded(means[w] - means[l], 4),
                "length_difference": sides["chosen"]["tokens"] - sides["rejected"]["tokens"],
                "reward_margin": rounded(reward.get("reward_margin"), 4),
                "ches": rounded(reward.get("ches"), 3),
                "ches_normalized": rounded(reward.get("ches_normalized"), 5),
                **sides,
            }
        )


def page_completion(record: Record, k: int, other: int, reward: Record, side: str) -> Record:
    """The numbers of completion k, beside the other one of its pair."""
    completion, votes = record["completions"][k], record.get("votes") or {}
    counts = votes.get(f"{min(k, other)},{max(k, other)}")
    change = reward.get(f"{side}_change")
    return without_unknown(
        {
            "place": k,
            "logp": rounded(completion["logp"], 3),
            "tokens": completion["n_tokens"],
            "rank": record["ranks"][k],
            "votes": counts[k > other] if counts else None,
            "change": rounded(change, 3),
            "reward": None if change is None else rounded(reward["beta"] * change, 4),
        }
    )


def rated_pairs_of(files: Sequence[ResultFile]) -> dict[tuple, Record]:
    """What idealized runs say of pairs: by policy, dataset, split, id, winner and loser."""
    found = {}
    for file in files:
        if file.kind != IDEALIZED:
            continue
        model, reference = file.rows[0]["model"], file.rows[0]["reference_model"]
        for pair in file.pairs:
            summed = pair["non-length-normalized"]
            line: Record = {
                "alpha": rounded(pair["alpha"], 4),
                "critical_beta": rounded(summed["critical_beta"], 6),
                "tuned_loss": rounded(pair.get("tuned_loss"), 4),
                "flipped_in": pair.get("flipped_in"),
            }
            if reference != model and not pair["tied"]:
                group = GROUPS[is_right(summed["ref_logratio"]), summed["observed_correct"]]
                line["group"] = group_label(group)
            key = (pair["dataset"], pair["split"], pair["id"], pair["winner"], pair["loser"])
            found[model, *key] = without_unknown(line)
    return found


def group_label(group: str) -> str:
    return group.replace("_to_", " → ")


def rounded(value: float | None, digits: int) -> float | None:
    """For JSON: not longer than it is shown, null where it is not finite."""
    value = None if value is None else finite(value)
    return None if value is None else round(value, digits)


def without_unknown(line: Mapping[str, Any]) -> Record:
    return {key: value for key, value in line.items() if value is not None}
