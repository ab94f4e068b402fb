"""The datasets of the paper on the Hugging Face hub, and how they are read."""

from dataclasses import dataclass
from pathlib import Path

from ranking.data.cells import Row
from ranking.data.files import read_file

ALPACA_FARM = "tatsu-lab/alpaca_eval"
ALPACA_FARM_FILE = "alpaca_farm_human_crossannotations"


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


def read_hub(
    name: str,
    source: Source,
    config: str | None,
    split: str,
    n_rows: int | None,
    buffer: int,
    seed: int,
) -> list[Row]:
    """Rows of a hub dataset (or of its local cache with HF_HUB_OFFLINE=1)."""
    try:
        if name == ALPACA_FARM:
            from huggingface_hub import hf_hub_download

            return read_file(Path(hf_hub_download(name, f"{split}.json", repo_type="dataset")))
        import datasets

        if source.streamed and n_rows is not None:
            stream = datasets.load_dataset(name, config, split=split, streaming=True)
            if buffer:
                stream = stream.shuffle(seed=seed, buffer_size=buffer)
            return list(stream.take(n_rows))
        if name == "Anthropic/hh-rlhf" and config is not None:  # its subsets are folders
            return list(datasets.load_dataset(name, data_dir=config, split=split))
        return list(datasets.load_dataset(name, config, split=split))
    except Exception as error:  # hub, network and builder errors share no base class
        first_line = (str(error).splitlines() or [""])[0]
        raise OSError(
            f"cannot read {name} (split {split}) from the hub: "
            f"{type(error).__name__}: {first_line}. "
            "Offline? --data-dir reads local copies"
        ) from None


def hub_dataset_commit(name: str) -> str | None:
    """The commit a hub dataset is at, or was when it was cached; None where neither tells."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    try:
        return huggingface_hub.HfApi().dataset_info(name, timeout=10).sha
    except Exception:  # offline and network errors share no base class
        folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
        head = folder / "refs" / "main"
        return head.read_text().strip() if head.is_file() else None


def split_name(spec: str) -> tuple[str, str | None, str | None]:
    """`NAME`, `NAME:SPLIT` or `NAME:CONFIG:SPLIT` → (name, config, split); local paths first."""
    if Path(spec).exists():
        return spec, None, None
    name, *rest = spec.split(":")
    if len(rest) > 2:
        raise ValueError(f"--dataset {spec}: expected NAME, NAME:SPLIT or NAME:CONFIG:SPLIT")
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None
