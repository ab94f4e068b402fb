"""Rows in the schemas of the paper's datasets, and where real ones lie."""

import json
import os
from pathlib import Path

HH = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: Well",
      "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: Wet"}  # fmt: skip
SHP = {"post_id": "p1", "history": "h", "human_ref_A": "A", "human_ref_B": "B", "labels": 0}
FARM = {"instruction": "i", "output_1": "x", "output_2": "y", "preference": 2, "annotator_index": 1}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
LISTED = {"prompt": "p", "completions": ["a", "b"], "ranks": [1.0, 2.0]}
DATA_DIR = Path(os.environ.get("DATA_DIR", "DATA_DIR"))
DATA_DIR_2026 = Path(os.environ.get("DATA_DIR_2026", "DATA_DIR_2026"))  # files in newer schemas


def write(path: Path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)
