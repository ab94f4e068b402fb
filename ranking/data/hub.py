"""Datasets of the Hugging Face hub: the paper's six, and any other by its name."""

import errno
import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ranking.data.cells import Row
from ranking.data.files import LINES, Origins, Progress, Rows, file_kind, read_files
from ranking.data.folders import (
    Layout,
    Part,
    Splits,
    choose_part,
    files_below,
    repository_layout,
)

ALPACA_FARM = "tatsu-lab/alpaca_eval"
ALPACA_FARM_FILE = "alpaca_farm_human_crossannotations"
STREAMED_BYTES = 2**30  # files of a split; of a larger one, a sample is its first rows
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """How a hub dataset is read: default configuration and split, and what joins the two texts."""

    config: str | None
    split: str
    separator: str | None
    streamed: bool = False  # too large to shuffle: the first rows are taken
    splits: tuple[str, ...] = ("train",)


DATASETS = {
    "Anthropic/hh-rlhf": Source(None, "test", "", splits=("train", "test")),
    "stanfordnlp/SHP": Source(None, "test", " ", splits=("train", "validation", "test")),
    "openbmb/UltraFeedback": Source(None, "train", " "),
    "Dahoas/synthetic-instruct-gptj-pairwise": Source(None, "train", " "),
    "HuggingFaceH4/stack-exchange-preferences": Source(None, "train", " ", streamed=True),
    ALPACA_FARM: Source(ALPACA_FARM_FILE, ALPACA_FARM_FILE, " ", splits=(ALPACA_FARM_FILE,)),
}


class Repository(NamedTuple):
    """A dataset repository at one commit, on the hub or in its cache. sizes: of its files by name,
    in bytes. folder: what of it is on disk."""

    name: str
    commit: str
    sizes: dict[str, int]
    folder: Path


class Found(NamedTuple):
    """Rows of one split and where they stand; streamed: they are the first rows of it."""

    part: Part
    rows: Rows
    origins: Origins
    commit: str | None
    streamed: bool
    notes: list[str]


def split_name(spec: str) -> tuple[str, str | None, str | None]:
    """`NAME`, `NAME:SPLIT` or `NAME:CONFIG:SPLIT` → (name, config, split); local paths first.

    What stands alone after the name may be a configuration, which only the data can tell. A slash
    at the end, as a shell completes folders, is no part of the name."""
    if spec.strip() and Path(spec).exists():
        return without_slash(spec), None, None
    name, *rest = spec.split(":")
    if len(rest) > 2 or not all(part.strip() for part in (name, *rest)):
        raise ValueError(
            f"--dataset {spec!r}: expected NAME, NAME:SPLIT, NAME:CONFIG or NAME:CONFIG:SPLIT"
        )
    return without_slash(name), rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


def without_slash(name: str) -> str:
    """A name without the slash at its end, unless it is the root, or a folder of one's own that is
    called like a dataset."""
    stripped = name.rstrip("/")
    is_own = stripped in ("sample", *DATASETS) and Path(name).exists()
    return name if is_own or not stripped else stripped


def is_hub_name(name: str) -> bool:
    """Whether a name is one of the hub's, owner/name, and not that of a file."""
    return HUB_NAME.fullmatch(name) is not None and file_kind(Path(name)) is None


def is_only_a_path(name: str) -> bool:
    """Whether a name, of data or of a model, cannot be one of the hub's."""
    return name.count("/") > 1 or name.startswith((".", "/", "~"))


# ---------------------------------------------------------------------------- repositories
def find_repository(name: str) -> Repository | str:
    """The repository as it is now or, offline, as it was cached; else why there is none.

    OSError with one line: gated, no room on the disk.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with quiet_downloads():
            folder = Path(
                huggingface_hub.snapshot_download(
                    name, repo_type="dataset", allow_patterns=["README.md"]
                )
            )
    except errors.GatedRepoError as error:
        raise OSError(explain_hub_error(name, error)) from None
    except errors.RepositoryNotFoundError:
        return "no such folder, not on the hub (or private: `hf auth login` or set HF_TOKEN)"
    except errors.LocalEntryNotFoundError:  # no branch is cached; a commit may be
        commits = cached_commits(name)
        if not commits:
            offline = huggingface_hub.constants.HF_HUB_OFFLINE
            why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
            return f"no such folder, not in the hub's cache ({why})"
        folder = commits[-1]
    except Exception as error:  # hub, network and file errors share no base class
        raise OSError(explain_hub_error(name, error)) from None
    commit = folder.name
    try:
        tree = huggingface_hub.get_cached_repo_tree(name, repo_type="dataset", revision=commit)
        sizes = {file.path: file.size for file in tree}
    except errors.CachedRepoTreeNotFoundError:
        sizes = {file: (folder / file).stat().st_size for file in files_below(folder)}
    return Repository(name, commit, sizes, folder)


@contextmanager
def quiet_downloads() -> Iterator[None]:
    """No progress bars of the hub's for small files."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def cached_commits(name: str) -> list[Path]:
    """The commits of a dataset in the hub's cache, the newest last."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    return sorted(folder.glob("snapshots/*"), key=lambda commit: commit.stat().st_mtime)


def cached_names() -> list[str]:
    """Names of the datasets in the caches of the hub and of `datasets`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = {path.name for path in Path(HF_HUB_CACHE).glob("datasets--*--*")}
    return sorted(name.removeprefix("datasets--").replace("--", "/", 1) for name in names)


def layout_of(repository: Repository, config: str | None) -> Layout:
    """The configurations and splits of a repository. A folder of one that declares none is a
    configuration as well, where it is asked for (hh-rlhf's subsets)."""
    names = list(repository.sizes)
    readme = repository.folder / "README.md"
    layout = repository_layout(names, readme if readme.is_file() else None)
    if config is not None and config not in layout.configs:
        inside = {name: name for name in names if name.startswith(f"{config}/")}
        if inside:
            layout.configs[config] = repository_layout(list(inside), None).configs[None]
    return layout


def choose_hub_part(
    repository: Repository, config: str | None, word: str | None, split: str | None
) -> Part:
    """The files of a repository that are asked for. OSError says why none can be read."""
    name = repository.name
    source = DATASETS.get(name)
    if name == ALPACA_FARM:  # has a loading script, so that each of its files is a split
        split = split or word or ALPACA_FARM_FILE
        file = f"{split}.json"
        if file not in repository.sizes:
            raise FileNotFoundError(f"{name} has no file {file}")
        return Part(config or ALPACA_FARM_FILE, split, [file], [])
    if source is not None and word not in (None, *source.splits):
        config, word = config or word, None
    if source is not None and word is None:
        split = split or source.split
    layout = layout_of(repository, config or word)
    script = f"{name.split('/')[-1]}.py"
    if not any(layout.configs.values()):
        if script in repository.sizes:
            raise OSError(
                f"{name} is read by a Python script of its own ({script}), which is not run: "
                f"`hf download {name} --repo-type dataset --revision refs/convert/parquet "
                "--local-dir DIR` fetches its tables, which --dataset DIR reads"
            )
        kinds = sorted({Path(file).suffix for file in repository.sizes} - {"", ".md"})
        raise FileNotFoundError(f"{name}: no data file (found {', '.join(kinds) or 'none'})")
    return choose_part(layout, name, config, word, split)


def download_files(repository: Repository, files: Sequence[str]) -> list[Path]:
    """Files of a repository on disk, fetched where they are not."""
    import huggingface_hub
    from huggingface_hub import errors

    folder = huggingface_hub.snapshot_download(
        repository.name,
        repo_type="dataset",
        revision=repository.commit,
        allow_patterns=[glob.escape(file) for file in files],
    )
    paths = [Path(folder) / file for file in files]
    for path in paths:
        if not path.is_file():
            raise errors.LocalEntryNotFoundError(str(path))
    return paths


# ---------------------------------------------------------------------------- reading
def read_hub(
    repository: Repository,
    part: Part,
    n_rows: int | None = None,
    buffer: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Found:
    """Rows of a split. Where `n_rows` are asked of a large one, it is streamed, and they are its
    first, or drawn through a buffer of `buffer` rows by `seed`. OSError with one line."""
    name, source = repository.name, DATASETS.get(repository.name)
    size = sum(repository.sizes[file] for file in part.files)
    large = source.streamed if source is not None else size > STREAMED_BYTES
    if n_rows is None or not large:
        try:
            paths = download_files(repository, part.files)
        except Exception as error:  # hub, network and file errors share no base class
            raise OSError(explain_hub_error(name, error)) from None
        rows, origins = read_files(paths, progress, whole=n_rows is None)
        notes = ["--stream-shuffle-buffer does nothing: it is not streamed"] if buffer else []
        return Found(part, rows, origins, repository.commit, False, notes)
    try:
        first = stream_rows(repository, part, n_rows, buffer, seed)
    except Exception as error:  # those of builders and parsers as well
        raise OSError(explain_hub_error(name, error)) from None
    how = f"through a buffer of {buffer} rows" if buffer else "the first rows"
    notes = [f"streamed, {size / 1e9:.1f} GB: {how}"]
    return Found(part, first, [(name, len(first))], repository.commit, True, notes)


def stream_rows(
    repository: Repository, part: Part, n_rows: int, buffer: int, seed: int
) -> list[Row]:
    """Rows of a split that are read while they are fetched; no more than is needed."""
    import datasets

    kind = file_kind(Path(part.files[0])) or ""
    builder = {".json": "json", ".tsv": "csv", **dict.fromkeys(LINES, "json")}.get(kind, kind[1:])
    on_disk = [repository.folder / file for file in part.files]
    place = f"hf://datasets/{repository.name}@{repository.commit}"
    files = [
        str(path) if path.is_file() else f"{place}/{file}"
        for path, file in zip(on_disk, part.files)
    ]
    options = {"sep": "\t"} if kind == ".tsv" else {}
    stream = datasets.load_dataset(
        builder, data_files=files, split="train", streaming=True, **options
    )
    if buffer:
        stream = stream.shuffle(seed=seed, buffer_size=buffer)
    return list(islice(stream, n_rows))  # its `take` reads one batch more than it needs


def explain_hub_error(name: str, error: BaseException) -> str:
    """One line that says why a hub dataset cannot be read and what to do."""
    from huggingface_hub import errors
    from huggingface_hub.constants import HF_HUB_CACHE

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return (
            f"{name} is gated: accept its terms at https://huggingface.co/datasets/{name}, then "
            "`hf auth login` or set HF_TOKEN"
        )
    for cause in causes:
        if getattr(cause, "errno", None) == errno.ENOSPC or "disk space" in str(cause):
            return (
                f"{name}: no room left on the disk of the hub's cache ({HF_HUB_CACHE}): free some, "
                "or set HF_HOME to a folder elsewhere"
            )
    if any(isinstance(cause, errors.LocalEntryNotFoundError) for cause in causes):
        return (
            f"{name}: the hub cannot be reached (or HF_HUB_OFFLINE is set), and the files of this "
            f"split are not all in its cache ({HF_HUB_CACHE}): load it online once, or give "
            "--data-dir with a local copy"
        )
    first_line = (str(error).splitlines() or [""])[0]
    return (
        f"cannot read {name} from the hub: {type(error).__name__}: {first_line}. "
        "Offline? --data-dir reads local copies"
    )


def read_prepared(
    name: str, config: str | None, word: str | None, split: str | None
) -> Found | None:
    """Rows of a dataset that `datasets` has prepared in its own cache, of which the hub's cache has
    no files; None where there are none. FileNotFoundError lists what there is."""
    layout = prepared_layout(name)
    if not layout.configs:
        return None
    part = choose_part(layout, name, config, word, split)
    rows, origins = read_files([prepared_folder(name) / f for f in part.files], whole=False)
    commit = Path(part.files[0]).parts[-2]
    known = commit if re.fullmatch("[0-9a-f]{40}", commit) else None
    return Found(part, rows, origins, known, False, [])


def prepared_folder(name: str) -> Path:
    """Where `datasets` keeps what it has prepared of a hub dataset."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, own = name.split("/")
    return Path(datasets.config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(own)}"


def prepared_layout(name: str) -> Layout:
    """The configurations and splits that `datasets` has prepared, of the newest commit each."""
    import datasets
    from datasets.naming import filenames_for_dataset_split

    folder = prepared_folder(name)
    records = sorted(folder.glob("*/*/*/dataset_info.json"), key=lambda f: f.stat().st_mtime)
    configs: dict[str | None, Splits] = {}
    for record in records:
        info = datasets.DatasetInfo.from_directory(str(record.parent))
        inside = record.parent.relative_to(folder)
        configs[inside.parts[0]] = {
            str(split): filenames_for_dataset_split(
                str(inside), info.dataset_name, split, "arrow", about.shard_lengths
            )
            for split, about in (info.splits or {}).items()
        }
    return Layout(configs, "default")
