"""The settings of the paper's training runs (App. D.1), each with its source: paper_settings.jsonl.

Values that the paper searched for and does not publish are the middle of their range, or inferred;
`python -m reproduce.run search` finds them. What no row names is the default of transformers.
"""

from itertools import groupby
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ranking.plumbing.result_files import read_json_lines
from ranking.reports.labels import short
from ranking.reports.tables import BETWEEN, Table


class Setting(TypedDict):
    """A row: of one script or of both, of one model or of all."""

    script: NotRequired[str]  # sft or dpo
    model: NotRequired[str]  # its name on the hub
    flag: NotRequired[str]  # of the script, or
    fact: NotRequired[str]  # what is no flag; batch_size: texts or pairs a step, of all processes
    value: Any
    searched: NotRequired[list]  # the paper's range, on one seed
    source: str  # paper; released command line; inferred: from what; ours: why


PAPER_SETTINGS: list[Any] = read_json_lines(Path(__file__).parent / "paper_settings.jsonl")
PAPER_MODELS = list(dict.fromkeys(row["model"] for row in PAPER_SETTINGS if "model" in row))


def name_of(row: Setting) -> str:
    return row.get("flag") or row.get("fact", "")


def paper_settings(model: str, script: str) -> dict[str, Setting]:
    """name → row, of a model of the paper and of sft or dpo."""
    wanted = {"model": model, "script": script}
    return {
        name_of(row): row
        for row in PAPER_SETTINGS
        if all(row.get(key, value) == value for key, value in wanted.items())
    }


def paper_flags(model: str, script: str) -> dict[str, Any]:
    """The flags of sft.py or dpo.py, and batch_size."""
    rows = paper_settings(model, script).items()
    return {name: row["value"] for name, row in rows if "flag" in row or name == "batch_size"}


def paper_grid(model: str, script: str) -> dict[str, list]:
    """flag (or batch_size) → the values that the paper tried."""
    rows = paper_settings(model, script).items()
    return {name: row["searched"] for name, row in rows if "searched" in row}


def settings_table(rows: list[Setting]) -> Table:
    """The settings; values and ranges that differ among models in the order of PAPER_MODELS."""
    if not all("value" in row and "source" in row for row in rows):
        raise ValueError("not a file of settings")

    def text(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(map(text, value))
        if isinstance(value, dict):
            named = (f"{k} {text(v)}" for k, v in value.items() if k != "name")
            return ", ".join([value["name"], *named])
        return f"{value:g}" if isinstance(value, float) else str(value)

    def place(row: Setting) -> tuple[int, str]:
        names = [name_of(other) for other in rows]
        return names.index(name_of(row)), row.get("script", "")

    columns = ["setting", "of", "value", "searched", "from"]
    lines = []
    for (_, script), group in groupby(sorted(rows, key=place), place):
        same = list(group)
        values = [text(row["value"]) for row in same]
        ranges = [text(row.get("searched", "–")) for row in same]
        whose = [short(row["model"]) for row in same if "model" in row]
        whose = whose if 0 < len(whose) < len(PAPER_MODELS) else []
        lines.append([
            name_of(same[0]),
            ", ".join([{"sft": "SFT", "dpo": "DPO", "": "both"}[script], *whose]),
            *(BETWEEN.join(x if len({*x}) > 1 else x[:1]) for x in (values, ranges)),
            "; ".join(dict.fromkeys(row["source"] for row in same)),
        ])  # fmt: skip
    return columns, lines
