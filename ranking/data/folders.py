"""Which files of a folder or repository are which configuration and split."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ranking.data.files import NOT_DATA, SHARD, check_shards, file_kind

# splits that are taken where none is named, the first that is there
EVALUATION_SPLITS = (
    "test", "test_prefs", "validation", "valid", "val", "dev", "eval", "evaluation", "test_sft",
)  # fmt: skip
SPLIT_WORDS = {  # names of folders that are splits; other folders are configurations
    "train", "training", "train_prefs", "train_sft", "testing", *EVALUATION_SPLITS,
}  # fmt: skip
ALL_FILES = "*"  # a split: all files of the configuration, one after the other
Splits = dict[str, list[str]]  # names of the files of each split, relative to the folder


class Layout(NamedTuple):
    """The splits of each configuration (None: files that belong to no named one), and which
    configuration is read where none is named."""

    configs: dict[str | None, Splits]
    default: str | None


class Part(NamedTuple):
    """A configuration and split of a dataset, and the names of its files. chosen_from: the splits
    there are, where there are several and none was named. left_out: files of the split that are of
    another kind. The default configuration has no name."""

    config: str | None
    split: str | None
    files: list[str]
    chosen_from: list[str]
    left_out: Sequence[str] = ()


def is_data(name: str) -> bool:
    """Whether a file, by its name, can hold rows."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return not hidden and path.name not in NOT_DATA and file_kind(Path(name)) is not None


def files_below(folder: Path, depth: int = 5) -> Iterator[str]:
    """Names of the files in a folder and those inside of it, hidden ones left out."""
    for place, inner, names in os.walk(folder, followlinks=True):
        below = PurePosixPath(Path(place).relative_to(folder).as_posix())
        inner[:] = sorted(d for d in inner if not d.startswith(".")) * (len(below.parts) < depth)
        yield from (str(below / name) for name in sorted(names))


# ---------------------------------------------------------------------------- layouts
def folder_layout(folder: Path) -> Layout:
    """A local folder: what `datasets.save_to_disk` wrote; what its README.md declares, as the hub's
    do; else each file (with its shards) in it, or in its `data`, is a split, and so are those of
    each folder inside, which is a configuration."""
    if (folder / "dataset_dict.json").is_file():
        saved = sorted(file.parent.name for file in folder.glob("*/state.json"))
        return Layout({None: {split: [split] for split in saved}}, None)
    readme = folder / "README.md"
    declared = declared_configs(readme) if readme.is_file() else []
    if declared:
        layout = declared_layout(list(files_below(folder)), declared)
        if any(layout.configs.values()):
            return layout
    return Layout(group_files(folder, filter(is_data, files_below(folder))), None)


def group_files(folder: Path, names: Iterable[str]) -> dict[str | None, Splits]:
    """The configuration and split of files, by the folder they are in and the start of their name.

    `data/` is the folder itself; `helpful/test.jsonl` is helpful's test, `train/a.jsonl` train.
    ValueError where a file and a folder are one split.
    """
    folders: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts[:-1]
        folders.setdefault(parts[1:] if parts[:1] == ("data",) else parts, []).append(name)
    configs: dict[str | None, Splits] = {}
    for parts, files in folders.items():
        split = parts[-1] if parts and parts[-1].lower() in SPLIT_WORDS else None
        config = "/".join(parts[:-1] if split else parts) or None
        splits = {split: files} if split else splits_by_name(files)
        found = configs.setdefault(config, {})
        if twice := found.keys() & splits.keys():
            word = min(twice)
            raise ValueError(
                f"{folder}: the split {word} is there twice ({found[word][0]}, "
                f"{splits[word][0]}): take one away, or say in README.md which is which"
            )
        found |= splits
    return configs


def splits_by_name(names: Sequence[str]) -> Splits:
    """Files by what their name starts with; by their whole name where files of one start are not
    the shards of one split."""
    splits: Splits = {}
    for name in names:
        splits.setdefault(SHARD.sub(".", PurePosixPath(name).name).split(".")[0], []).append(name)
    for start, files in list(splits.items()):
        if len(files) > 1 and not all(map(SHARD.search, files)):
            del splits[start]
            own = Counter(PurePosixPath(name).name for name in files)
            for name in files:
                last = PurePosixPath(name).name
                splits[last if own[last] == 1 else name] = [name]
    return splits


def repository_layout(names: Sequence[str], readme: Path | None) -> Layout:
    """A repository of the hub: what its README.md declares, else what `datasets` finds by names
    (files called train, test, validation, dev, eval, … wherever they are; all are train else)."""
    declared = declared_configs(readme) if readme is not None else []
    if declared:
        return declared_layout(names, declared)
    return Layout({None: keyword_splits(filter(is_data, names))}, None)


def keyword_splits(names: Iterable[str]) -> Splits:
    """The splits that `datasets` finds in a repository that declares none."""
    from datasets.data_files import _get_data_files_patterns

    files = list(names)
    try:
        patterns = _get_data_files_patterns(lambda pattern: matching(files, [pattern]))
    except FileNotFoundError:
        return {}
    return {str(split): matching(files, found) for split, found in patterns.items()}


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that one of the patterns matches, in the order of the patterns, each once."""
    from fsspec.utils import glob_translate

    ordered = sorted(names)
    compiled = [re.compile(glob_translate(pattern)) for pattern in patterns]
    found = [name for pattern in compiled for name in ordered if pattern.match(name)]
    return list(dict.fromkeys(found))


def declared_configs(readme: Path) -> list[Mapping[str, Any]]:
    """The `configs` of a dataset card. ValueError where they are not what the hub takes."""
    from huggingface_hub.repocard import metadata_load

    try:
        configs = (metadata_load(readme) or {}).get("configs") or []
    except Exception as error:  # YAML's errors and unicode's share no base class
        raise ValueError(f"{readme}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(configs, list) or not all(
        isinstance(config, dict) and isinstance(config.get("config_name"), str)
        for config in configs
    ):
        raise ValueError(f"{readme}: `configs` should be a list of objects with a `config_name`")
    return configs


def declared_layout(names: Sequence[str], declared: Iterable[Mapping[str, Any]]) -> Layout:
    """The configurations of a dataset card, with the files that are there."""
    configs: dict[str | None, Splits] = {}
    default = None
    for config in declared:
        folder = str(config.get("data_dir") or "").strip("./")
        inside = [name for name in names if is_data(name)]
        if folder:
            inside = [n.removeprefix(f"{folder}/") for n in inside if n.startswith(f"{folder}/")]
        patterns = config.get("data_files")
        if patterns is None:
            splits = keyword_splits(inside)
        else:
            if not isinstance(patterns, list):
                patterns = [patterns]
            splits = {}
            for entry in patterns:
                split, found = "train", entry
                if isinstance(entry, dict):
                    split, found = str(entry.get("split", "train")), entry.get("path")
                found = [found] if isinstance(found, str) else found or []
                found = [str(pattern).removeprefix("./") for pattern in found]
                splits.setdefault(split, []).extend(matching(inside, found))
        configs[config["config_name"]] = {
            split: [f"{folder}/{name}" if folder else name for name in files]
            for split, files in splits.items() if files
        }  # fmt: skip
        if config.get("default") is True:
            default = config["config_name"]
    if default is None and "default" in configs:
        default = "default"
    return Layout(configs, default)


# ---------------------------------------------------------------------------- choices
def choose_part(
    layout: Layout,
    name: str,
    config: str | None,
    word: str | None,
    split: str | None,
) -> Part:
    """The files that `NAME[:CONFIG][:SPLIT]` and --split ask for.

    word: what stands alone after the name, a configuration or a split by what there is. Without a
    split, the first of EVALUATION_SPLITS, else the only one. FileNotFoundError lists what there is.
    """
    named = config
    config, split = choose_config(layout, name, config, word, split)
    splits = layout.configs[config]
    label = f"{name}:{config}" if config else name
    if named is None and config == "default":
        config = None
    if split == ALL_FILES:
        return Part(config, split, [file for files in splits.values() for file in files], [])
    chosen_from: list[str] = []
    if split is None:
        found = next((s for s in EVALUATION_SPLITS if s in splits), None)
        if found is None and len(splits) > 1:
            raise FileNotFoundError(
                f"{label}: expected one data file, found {', '.join(splits)}: choose one by "
                f"{label}:{next(iter(splits))}, or read them together as {label}:{ALL_FILES}"
            )
        chosen_from = list(splits) if len(splits) > 1 else []
        split = found or next(iter(splits))
    else:
        split = same_split(splits, split, layout, label)
    files = one_kind(splits[split])
    check_shards(label, files)
    left_out = sorted({*splits[split]} - {*files})
    return Part(config, split, files, chosen_from, left_out)


def choose_config(
    layout: Layout, name: str, config: str | None, word: str | None, split: str | None
) -> tuple[str | None, str | None]:
    """The configuration asked for, or the default one, and the split asked for.

    FileNotFoundError lists the configurations there are."""
    configs = {key: splits for key, splits in layout.configs.items() if splits}
    if not configs:
        raise FileNotFoundError(f"{name}: no data file")
    named = [key for key in configs if key is not None]
    if config is not None:
        split = word or split
    elif word in named and word not in configs.get(layout.default, {}):
        config = word
    else:
        split = word or split
    if config is not None:
        if config in configs:
            return config, split
        has = f"has {', '.join(named)}" if named else "holds no configurations"
        raise FileNotFoundError(f"{name}: no configuration {config!r}: it {has}")
    if layout.default in configs:
        return layout.default, split
    if len(configs) == 1:
        return next(iter(configs)), split
    what = f"no configuration or split {word!r}; " if word is not None else ""
    raise FileNotFoundError(
        f"{name}: {what}it has the configurations {', '.join(named)}: choose one by "
        f"{name}:{named[0]}, and a split of it by {name}:{named[0]}:"
        f"{next(iter(configs[named[0]]))}"
    )


def same_split(splits: Splits, split: str, layout: Layout, label: str) -> str:
    """The split of that name, or of a file with that name, or the only one that starts so."""
    if split in splits:
        return split
    by_file = [s for s in splits if [PurePosixPath(f).name for f in splits[s]] == [split]]
    starting = [s for s in splits if s.startswith((f"{split}-", f"{split}."))]
    for found in (by_file, starting):
        if len(found) == 1:
            return found[0]
    configs = [key for key in layout.configs if key is not None]
    others = f" (configurations: {', '.join(configs)})" if configs else ""
    raise FileNotFoundError(f"{label}: expected split {split!r}, found {', '.join(splits)}{others}")


def one_kind(names: list[str]) -> list[str]:
    """Those of the commonest kind, as `datasets` takes them: a repository may hold rows twice."""
    kinds = Counter(file_kind(Path(name)) for name in names)
    kind = kinds.most_common(1)[0][0]
    return [name for name in names if file_kind(Path(name)) == kind]
