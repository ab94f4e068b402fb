"""What result rows say of how examples were scored, that were read from a file."""

import pytest

from ranking.plumbing.result_files import hash_config, write_json, write_json_lines
from ranking.scoring.comparable import ScoringRun, read_scoring_run
from ranking.scoring.models import FoundModel
from ranking.scoring.rated_pairs import PairRules
from ranking.scoring.runs import describe_run, describe_two_runs

KEY = ("d", None, None)
CONFIG = {"model": "tuned", "revision": None, "model_fingerprint": f"commit {'b' * 40}",
          "datasets": [{"name": "d", "config": None, "split": None, "separator": None, "dropped": {}}],
          "sample_size": None, "seed": 0, "include_ties": False, "dtype": "bfloat16",
          "max_length": None, "chat_template": False, "add_eos": False}  # fmt: skip
SCORED = {"dropped": {"too long": 2}, "dataset_commit": "c" * 40, "device": "a GPU",
          "device_map": None, "path": "segments", "n_processes": 4, "versions": {"torch": "1.0"}}  # fmt: skip


def record(model: str, config_hash: str) -> dict:
    completions = [{"text": t, "logp": -9.0, "n_tokens": 3, "separator": " "} for t in "ab"]
    return {"id": "1", "prompt_id": "p", "dataset": "d", "dataset_config": None, "split": None,
            "row": 0, "model": model, "config_hash": config_hash, "prompt": "x", "messages": None,
            "ranks": [1, 2], "votes": {"0,1": [3, 1]}, "completions": completions}  # fmt: skip


@pytest.fixture
def tuned(tmp_path) -> ScoringRun:
    """Of a file of an earlier run, by other versions, with its configuration and its summary."""
    write_json(tmp_path / "tuned.config.json", CONFIG)
    write_json_lines(tmp_path / "tuned.examples.jsonl", [record("tuned", hash_config(CONFIG))])
    row = {"dataset_name": "d", "dataset_split": None, "dataset_config": None,
           "distance_metric": "acc", "config_hash": hash_config(CONFIG), **SCORED}  # fmt: skip
    write_json_lines(tmp_path / "tuned.jsonl", [row])
    return read_scoring_run(str(tmp_path / "tuned.examples.jsonl"))


def test_versions_are_those_that_scored(tuned, tmp_path):
    ((_, columns),) = describe_run(tuned, [], {}, include_ties=False, seed=0)
    assert columns | SCORED == columns
    assert (columns["dtype"], columns["model_commit"]) == ("bfloat16", "b" * 40)
    (tmp_path / "tuned.jsonl").unlink()
    ((_, columns),) = describe_run(tuned, [], {}, include_ties=False, seed=0)
    assert columns["versions"] == {} and "device" not in columns


def test_the_reference_was_scored_by_the_run_beside_it(tuned, tmp_path):
    """Its examples are named after the policy's summary, whose rows on rewards have its hash."""
    row = {"dataset_name": "d", "dataset_split": None, "dataset_config": None, "config_hash": "x",
           "distance_metric": "reward_acc", "reference_config_hash": hash_config(CONFIG), **SCORED}  # fmt: skip
    for suffix in ("examples.jsonl", "config.json"):
        (tmp_path / f"tuned.{suffix}").rename(tmp_path / f"dpo.reference.{suffix}")
    for more, versions in (({}, {"torch": "1.0"}), ({"examples_file": "of another run"}, {})):
        write_json_lines(tmp_path / "dpo.jsonl", [{**row, **more}])
        run = read_scoring_run(str(tmp_path / "dpo.reference.examples.jsonl"))
        ((_, columns),) = describe_run(run, [], {}, include_ties=False, seed=0)
        assert columns["versions"] == versions and "path" not in columns
        assert columns["dropped"] == {}  # the policy's are its own


def test_rows_of_two_models_say_how_the_policy_was_scored(tuned):
    """Also where the reference is scored now, in another way."""
    found = FoundModel("sft", None, "a" * 40, f"commit {'a' * 40}", "float32", "cpu")
    config = {**CONFIG, "model": "sft", "dtype": "float32"}
    sft = ScoringRun("sft", [record("sft", hash_config(config))], config, found)
    now = {**SCORED, "dtype": "float32", "device": "x86_64", "model_commit": "a" * 40}
    del now["versions"], now["dataset_commit"]
    row = describe_two_runs(KEY, sft, tuned, PairRules(), [], ({KEY: now}, {}))
    assert (row["model"], row["model_commit"], row["dtype"]) == ("tuned", "b" * 40, "bfloat16")
    assert (row["device"], row["versions"]) == ("a GPU", {"torch": "1.0"})
    assert row["dataset_commit"] == "c" * 40
    assert (row["reference_model"], row["reference_model_commit"]) == ("sft", "a" * 40)
    alone = describe_two_runs(KEY, sft, sft, PairRules(), [], ({KEY: now}, {}))
    assert (alone["model_commit"], alone["device"]) == ("a" * 40, "x86_64")
    assert "torch" in alone["versions"] and alone["versions"] != {"torch": "1.0"}
