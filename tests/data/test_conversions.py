"""Examples as SFT and DPO train on them."""

import json

from ranking.data.conversions import preference_pairs, sft_texts
from ranking.data.preferences import load_preferences


def test_training_conversions(tmp_path):
    """Every untied pair of a list; SFT takes the best-ranked completion."""
    row = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    examples = load_preferences(str(path)).examples
    pairs = preference_pairs(examples)
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("b", "a"), ("b", "c")]
    assert len({p["id"] for p in pairs}) == 2
    (text,) = sft_texts(examples)
    assert text["text"] == "p b" and text["n_prompt_characters"] == 1
