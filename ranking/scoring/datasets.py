"""The datasets of a run, with lines that say what was read and dropped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranking.data.examples import PreferenceData, counts_text, dataset_label, describe_joining
from ranking.data.hub import DATASETS, split_name
from ranking.data.preferences import load_preferences
from ranking.data.sources import local_path
from ranking.plumbing.command_line import progress_bar
from ranking.plumbing.processes import announce


def load_datasets(
    specs: Sequence[str], *, chat_template: str = "auto", **how: Any
) -> list[PreferenceData]:
    """The datasets asked for, as `load_preferences` gives them; how: as it takes it. Raises as it
    does, and ValueError for a dataset given twice, or a flag of the data that does nothing on any
    of them."""
    check_data_flags(specs, **how)
    loaded: list[PreferenceData] = []
    for spec in specs:
        data = load_preferences(spec, progress=progress_bar, **how)
        dropped = counts_text(data.dropped)
        messages = [f"{len(data.examples)} examples, dropped: {dropped}", *data.notes]
        texts = [e for e in data.examples if chat_template == "never" or e.dialogue is None]
        if texts and chat_template != "always":
            messages.append(describe_joining(texts))
        label = dataset_label(*data.key)
        for message in messages:
            announce(f"{label}: {message}")
        if any(data.key == other.key for other in loaded):
            raise ValueError(f"--dataset {spec}: {label} is given twice")
        loaded.append(data)
    return loaded


def check_data_flags(
    specs: Sequence[str],
    *,
    sample_size: int | None = None,
    seed: int = 0,
    split: str | None = None,
    data_dir: str | None = None,
    stream_shuffle_buffer: int = 0,
    **_,
) -> None:
    """Raise ValueError for a flag that does nothing on any dataset of the run, and
    FileNotFoundError for a name that stands for nothing; a line where a flag does nothing on some.
    --data-dir and --seed only get the line: the one says where to look, the other seeds the
    bootstrap as well."""
    whole = sample_size is None
    idle: dict[str, list[str]] = {}
    for spec in specs:
        name, config, named_split = split_name(spec)
        source = DATASETS.get(name)
        own = name == "sample" or (source is None and Path(name).exists())
        large = source is None or source.streamed  # or may be: only the hub knows its size
        known = config is not None or (source is not None and named_split in source.splits)
        names_split = known and named_split is not None  # else it may be a configuration
        streamed = large and not own and data_dir is None and not whole
        first_rows = source is not None and large and not (streamed and stream_shuffle_buffer)
        for flag, does_nothing in (
            ("--split (it names one)", split is not None and names_split),
            ("--data-dir (a file of its own)", data_dir is not None and own),
            ("--stream-shuffle-buffer (not streamed)", stream_shuffle_buffer and not streamed),
            ("--seed (all, or the first rows, are taken)", seed and (whole or first_rows)),
        ):  # fmt: skip
            if does_nothing:
                idle.setdefault(flag, []).append(spec)
    for flag, idle_specs in idle.items():
        message = f"{flag} does nothing for {', '.join(idle_specs)}"
        if len(idle_specs) == len(specs) and not flag.startswith(("--data-dir", "--seed")):
            raise ValueError(message)
        announce(message + ("; it seeds the bootstrap" if flag.startswith("--seed") else ""))
    for spec in specs:
        local_path(split_name(spec)[0], data_dir)
