"""What a dataset's name stands for, and the rows of it: the bundled sample, local files and
folders, folders under --data-dir, the hub."""

import difflib
from pathlib import Path

from ranking.data.files import Progress, read_files
from ranking.data.folders import Part, choose_config, choose_part, folder_layout
from ranking.data.hub import (
    DATASETS,
    Found,
    cached_names,
    choose_hub_part,
    find_repository,
    is_hub_name,
    layout_of,
    prepared_layout,
    read_hub,
    read_prepared,
    split_name,
)

SAMPLE_FILE = Path(__file__).parents[2] / "data" / "sample_preferences.jsonl"


def local_path(name: str, data_dir: str | Path | None) -> Path | None:
    """Where a dataset lies on disk; None for one of the hub. FileNotFoundError where it should be
    there and is not."""
    if name == "sample":
        return SAMPLE_FILE
    own = Path(name)
    if name not in DATASETS and own.exists():
        return own
    if data_dir is None:
        if name in DATASETS or is_hub_name(name):
            return None
        raise FileNotFoundError(unknown_dataset(name, data_dir, "no such file or folder"))
    path = Path(data_dir) / name
    if not path.exists():
        raise FileNotFoundError(
            unknown_dataset(name, data_dir, f"--data-dir {data_dir} has no folder {name}")
        )
    return path


def unknown_dataset(name: str, data_dir: str | Path | None, why: str) -> str:
    """One line for a name that is nothing, with the nearest names that are something."""
    known = ["sample", *DATASETS]
    folders = [] if data_dir is None else [p for p in Path(data_dir).glob("*/*") if p.is_dir()]
    others = [*cached_names(), *("/".join(folder.parts[-2:]) for folder in folders)]
    by_end = {full.split("/")[-1].lower(): full for full in [*others, *known]}
    by_name = {full.lower(): full for full in [*others, *known]}
    near = [by_name[n] for n in difflib.get_close_matches(name.lower(), list(by_name), 2, 0.7)]
    end = name.split("/")[-1].lower()
    near += [by_end[n] for n in difflib.get_close_matches(end, list(by_end), 2, 0.8)]
    near = [full for full in dict.fromkeys(near) if full != name]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"unknown dataset {name!r}: {why}, and not one of {', '.join(known)}{hint}"


def read_dataset(
    spec: str,
    split: str | None = None,
    data_dir: str | Path | None = None,
    n_rows: int | None = None,
    buffer: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Found:
    """The rows that `spec` and `split` name, the first of EVALUATION_SPLITS where they name none.

    n_rows, buffer, seed: of a hub dataset too large to be fetched for a sample, as `read_hub`.
    Raises FileNotFoundError or OSError with one line: what is missing, and what there is.
    """
    name, config, word = split_name(spec)
    path = local_path(name, data_dir)
    if path is not None:
        found = read_local(name, path, config, word, split, n_rows is None, progress)
        found.notes[:0] = describe_choice(found.part, word, split)
        return found
    repository = find_repository(name)
    if not isinstance(repository, str):
        part = choose_hub_part(repository, config, word, split)
        found = read_hub(repository, part, n_rows, buffer, seed, progress)
    elif (prepared := read_prepared(name, config, word, split)) is not None:
        found = prepared
    else:
        raise FileNotFoundError(unknown_dataset(name, data_dir, repository))
    found.notes[:0] = describe_choice(found.part, word, split)
    found.notes.append(f"commit {found.commit or 'unknown'}")
    return found


def describe_choice(part: Part, word: str | None, split: str | None) -> list[str]:
    """Lines that say which split was taken where several are there and none was named, or where the
    name has one (`word`) and --split gives another, and which files of it are left out."""
    lines = []
    if part.chosen_from:
        lines.append(f"split {part.split} of {', '.join(part.chosen_from)}")
    elif word not in (None, part.config) and split not in (None, part.split):
        lines.append(f"the name has a split: {part.split} is read, not --split {split}")
    if part.left_out:
        lines.append(f"files of another kind, left out: {', '.join(part.left_out)}")
    return lines


def read_local(
    name: str,
    path: Path,
    config: str | None,
    word: str | None,
    split: str | None,
    whole: bool,
    progress: Progress | None,
) -> Found:
    """Rows of a local file or folder; whole: all of them are wanted."""
    if is_single(path):
        if config or word or split:
            kind = "file" if path.is_file() else "saved dataset"
            raise ValueError(
                f"{name}, split {word or split}: {path.name} is one {kind}, without splits"
            )
        rows, origins = read_files([path], progress, whole)
        return Found(Part(None, None, [path.name], []), rows, origins, None, False, [])
    source = DATASETS.get(name)
    if source is not None and word is None:
        split = split or source.split
    if source is not None and config == source.config:
        config = None  # in the folder of one of the paper's, its default is no configuration
    part = choose_part(folder_layout(path), name, config, word, split)
    if not (part.chosen_from or word or split):
        part = part._replace(split=None)  # the only one
    if source is not None and part.config is None:
        part = part._replace(config=source.config)
    rows, origins = read_files([path / file for file in part.files], progress, whole)
    return Found(part, rows, origins, None, False, [])


def is_single(path: Path) -> bool:
    """Whether a path is a file, or one dataset that `datasets.save_to_disk` wrote."""
    return path.is_file() or (path / "state.json").is_file()


def available_splits(spec: str, data_dir: str | Path | None = None) -> list[str]:
    """Names of the splits of a dataset's configuration; none for a single file."""
    name, config, word = split_name(spec)
    path = local_path(name, data_dir)
    if path is None:
        if name in DATASETS:
            return list(DATASETS[name].splits)
        repository = find_repository(name)
        found = config or word
        if isinstance(repository, str):
            layout = prepared_layout(name)
            if not layout.configs:
                raise FileNotFoundError(unknown_dataset(name, data_dir, repository))
        else:
            layout = layout_of(repository, found)
    elif is_single(path):
        return []
    else:
        layout = folder_layout(path)
    if not any(layout.configs.values()):
        return []
    config, _ = choose_config(layout, name, config, word, None)
    return list(layout.configs[config])
