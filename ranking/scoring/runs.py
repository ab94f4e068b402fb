"""Runs of scoring in scripts that have two, of a policy and its reference: which of them read a
file, which score now, and what result rows say of either."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ranking.data.examples import DatasetKey, PreferenceData
from ranking.metrics.accuracy import is_cut
from ranking.plumbing.outputs import Output, dataset_key
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import Record, read_json_lines
from ranking.scoring.comparable import ScoringRun
from ranking.scoring.examples_file import SUMMARY_SUFFIXES, planned_records, stem_of_examples
from ranking.scoring.models import check_model_path, check_revision, commit_of, find_model
from ranking.scoring.rated_pairs import PairRules
from ranking.scoring.run_config import (
    dataset_entry,
    make_run_config,
    record_in_template,
    scoring_settings,
)

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy")
OF_SUMMARY = (  # what a summary says that neither an examples file nor its configuration does
    "dropped", "dataset_commit", "device", "device_map", "path", "n_processes", "versions",
)  # fmt: skip
OF_RUN = ("dataset_commit", "device", "device_map", "n_processes", "versions")  # of both its models
OF_SCORING = ("examples.jsonl", "config.json")  # what scoring a model writes, behind its side


def check_models(
    names: Sequence[str | None], revisions: Sequence[str | None], flags: Sequence[str]
) -> None:
    """Raise ValueError for a model or a revision that cannot be; flags: those of the revisions."""
    for name in names:
        if name is not None:
            check_model_path(name)
    for flag, revision, name in zip(flags, revisions, names):
        check_revision(flag, revision, name)


def files_of_scoring(names: Mapping[str, str | None]) -> list[str]:
    """Suffixes of what scoring these models writes, by their sides (None: it is not scored)."""
    return [f"{side}{file}" for side, name in names.items() if name is not None
            for file in OF_SCORING]  # fmt: skip


def plan_runs(
    given: Sequence[ScoringRun | None],
    names: Sequence[str | None],
    revisions: Sequence[str | None],
    datasets: Sequence[PreferenceData],
    *,
    dtype: str,
    device: str | None,
    **settings,
) -> list[ScoringRun]:
    """The runs that are given; where a model is named instead, one that is to score `datasets`.
    settings: as `make_run_config`, which it raises as."""
    runs = list(given)
    for k, (name, revision) in enumerate(zip(names, revisions)):
        if name is not None:
            found = find_model(name, revision, dtype, device)
            config = make_run_config(found, datasets, **settings)
            runs[k] = ScoringRun(found.name, planned_records(datasets), config, found)
    return runs


def scored_runs(
    runs: Mapping[str, ScoringRun | None],
    datasets: Sequence[PreferenceData],
    output: Output,
    overwrite: bool,
    model_flags: Mapping[str, Any],
) -> list[tuple[ScoringRun, dict[DatasetKey, Record]]]:
    """Each run with its records, scored now where they are planned, and the facts of the datasets
    that were scored now; None and no facts where there is no run. runs: by their roles.

    The first one's examples are NAME.examples.jsonl, another's NAME.<role>.examples.jsonl.
    """
    scored: list[tuple[ScoringRun, dict[DatasetKey, Record]]] = []
    is_alone = None in runs.values()
    for role, run in runs.items():
        own = output
        if scored:
            examples, config = (output.beside(f"{role}.{file}") for file in OF_SCORING)
            own = output._replace(examples=examples, config=config)
        if run is None or run.found is None:
            scored.append((run, {}))
            continue
        if not is_alone:
            announce(f"scoring the {role}, {run.name}")
        from ranking.scoring.score import score_datasets  # PyTorch: only where a model is scored

        results = score_datasets(run.found, datasets, own, run.config, overwrite, **model_flags)
        records: list[Record] = [record for result in results for record in result.records]
        facts = {data.key: result.facts for data, result in zip(datasets, results)}
        scored.append((run._replace(records=records), facts))
    return scored


def group_records(records: Sequence[Record]) -> dict[DatasetKey, list[Record]]:
    """The records of each dataset, in their order."""
    found: dict[DatasetKey, list[Record]] = {}
    for record in records:
        found.setdefault(dataset_key(record), []).append(record)
    return found


def describe_run(
    run: ScoringRun,
    datasets: Sequence[PreferenceData],
    facts: Mapping[DatasetKey, Record],
    include_ties: bool,
    seed: int,
) -> list[tuple[list[Record], Record]]:
    """The records of each dataset that has any, and what every summary row says of it.

    datasets, facts: of what was scored now (`scored_runs`); of a file, what it and the files beside
    it say. Without `include_ties`, examples of a file that are all tied are dropped and counted.
    """
    data_of = {data.key: data for data in datasets if run.found is not None}
    described = []
    for key, records in group_records(run.records).items():
        columns = dataset_facts(run, key, records, data_of.get(key))
        columns |= {"include_ties": include_ties, "seed": seed}
        if run.found is not None:
            described.append((records, columns | facts[key]))
            continue
        columns |= {"examples_file": run.name} | recorded_scoring(run, key)
        kept = that_count(records, include_ties)
        if len(kept) < len(records):  # none was dropped by the run that scored them
            tied = {"all ranks tied": len(records) - len(kept)}
            columns["dropped"] = {**columns["dropped"], **tied}
        if kept:
            described.append((kept, columns))
    if not any(records for records, _ in described):
        raise ValueError(f"{run.name}: every example is tied: give --include-ties")
    return described


def describe_two_runs(
    key: DatasetKey,
    reference: ScoringRun,
    policy: ScoringRun,
    rules: PairRules,
    datasets: Sequence[PreferenceData],
    facts: Sequence[Mapping[DatasetKey, Record]],
) -> Record:
    """What every line about the pairs of one dataset says of it, of the two models and of how they
    were scored (`IdealizedColumns`).

    The runs hold the records of all datasets; `facts` those of datasets scored now. How a model was
    scored (dtype, path, commit, versions) is said of the policy, now or by the files beside its
    examples; drops are the reference's (what only the policy dropped is counted in pairs).
    """
    records, tuned = (group_records(run.records)[key] for run in (reference, policy))
    scored_now = [of_run[key] for of_run in facts if of_run]
    of_policy = facts[0] if policy is reference else facts[1]
    own = of_policy[key] if of_policy else recorded_scoring(policy, key)
    columns: Record = {
        "model": tuned[0]["model"],
        "reference_model": records[0]["model"],
        "dataset_name": key[0],
        "dataset_config": key[2],
        "dataset_split": key[1],
        "revision": (policy.config or {}).get("revision"),
        "reference_revision": (reference.config or {}).get("revision"),
        **(scoring_settings(reference.config, key) if reference.config is not None else {}),
        "simulate_proportion": rules.assumed_proportion,
        "epsilon": rules.epsilon,
        "include_ties": rules.include_ties,
        "reference_config_hash": records[0].get("config_hash"),
        "n_truncated_prompts": sum(map(is_cut, tuned)),
        "reference_n_truncated_prompts": sum(map(is_cut, records)),
        "versions": {library: version(library) for library in LIBRARIES},
        **{name: value for name, value in own.items() if name != "dropped"},
    }
    commits = {data.name: data.commit for data in datasets}
    columns["dataset_commit"] = commits.get(key[0], own.get("dataset_commit"))
    if scored_now:
        columns["dropped_examples"] = scored_now[0]["dropped"]
    if facts[0]:
        columns["reference_model_commit"] = facts[0][key]["model_commit"]
    if policy.found is None:
        columns["examples_file"] = policy.name
    if reference.found is None:
        columns["reference_examples_file"] = reference.name
    return columns


def that_count(records: Sequence[Record], include_ties: bool) -> list[Record]:
    """All examples, or those whose ranks are not all tied."""
    return [record for record in records if include_ties or len(set(record["ranks"])) > 1]


def check_ties_are_there(run: ScoringRun) -> None:
    """Raise ValueError where a run was scored without --include-ties, which is given now."""
    if run.config is not None and not run.config.get("include_ties"):
        raise ValueError(f"--include-ties: {run.name} was scored without: its ties are missing")


def dataset_facts(
    run: ScoringRun,
    key: DatasetKey,
    records: Sequence[Record],
    data: PreferenceData | None = None,
) -> Record:
    """What every summary row says of a dataset, of its texts and of the model; null where nobody
    knows. data: where it was read now."""
    config: Mapping[str, Any] = run.config or {}
    name, split, dataset_config = key
    separators: Counter[str] = Counter()
    for record in planned_records([data]) if data else records:
        if run.config is not None and not record_in_template(record, config):
            separators.update(completion["separator"] for completion in record["completions"])
    columns: Record = {
        "model": records[0]["model"],
        "dataset_name": name,
        "dataset_config": dataset_config,
        "dataset_split": split,
        "dataset_commit": data.commit if data else None,
        "joined_by": dict(separators.most_common()) or None,
        "revision": config.get("revision"),
        "config_hash": records[0].get("config_hash"),
        "versions": {library: version(library) for library in LIBRARIES},
        "dropped": dict(dataset_entry(config, key).get("dropped", {})),
    }
    return columns | (scoring_settings(config, key) if run.config is not None else {})


def recorded_scoring(run: ScoringRun, key: DatasetKey) -> Record:
    """How a dataset of an examples file was scored, as far as its configuration and the summary
    beside it say (`ScoringColumns`), with the versions that did it, {} where nobody knows."""
    columns: Record = {"versions": {}}
    if run.config is not None:
        columns |= {
            "dtype": run.config["dtype"],
            "quantization": run.config.get("quantization"),
            "trust_remote_code": run.config.get("trust_remote_code", False),
            "model_commit": commit_of(run.config.get("model_fingerprint", "")),
        }
    return columns | summary_beside(run).get(key, {})


def summary_beside(run: ScoringRun) -> dict[DatasetKey, Record]:
    """What the summary of the run that wrote an examples file says of how each dataset was scored,
    and of what was dropped while it was; {} where there is no such summary."""
    stem = stem_of_examples(run.name).removesuffix(".reference")
    found: dict[DatasetKey, Record] = {}
    for file in (Path(stem + suffix) for suffix in SUMMARY_SUFFIXES):
        if not file.is_file() or file == Path(run.name):
            continue
        try:
            rows = read_json_lines(file)
        except ValueError:
            continue  # not a summary
        config_hash = run.records[0].get("config_hash")
        for row in rows:
            if config_hash is None or "dataset_name" not in row:
                continue
            key = row["dataset_name"], row.get("dataset_split"), row.get("dataset_config")
            if row.get("distance_metric") == "acc" and row.get("config_hash") == config_hash:
                found[key] = {name: row[name] for name in OF_SUMMARY if name in row}
            elif row.get("reference_config_hash") == config_hash and "examples_file" not in row:
                found.setdefault(key, {name: row[name] for name in OF_RUN if name in row})
    return found
