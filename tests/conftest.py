"""Tiny random models and tokenizers, made on the spot: no network, no downloaded weights."""

import os
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB__SERVICE_WAIT"] = "3600"  # seconds: slow machines do as well
os.environ["WANDB_INIT_TIMEOUT"] = "3600"
os.environ["HF_HUB_ETAG_TIMEOUT"] = os.environ["HF_HUB_DOWNLOAD_TIMEOUT"] = "3600"

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ranking.data.preferences import SAMPLE_FILE
from ranking.plumbing.result_files import write_json_lines
from ranking.scoring.score import token_logps_of_batches
from ranking.scoring.tokenization import Texts, TokenizedCompletion, tokenize_examples

# a run draws what the last one drew: a change alone turns it red; --hypothesis-profile=explore
# draws anew
ANY_MACHINE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("explore", **ANY_MACHINE)
settings.register_profile("any machine", **ANY_MACHINE, derandomize=True)
settings.load_profile("any machine")

SMALL = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1,
         "pad_token_id": 1}  # fmt: skip
GPT = {"vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512,
       "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
FALCON = {
    key: value for key, value in SMALL.items() if key not in ("head_dim", "num_key_value_heads")
}
# rotary frequencies that depend on the length: two sets, of up to 16 tokens and more; by the length
LONGROPE = {
    **SMALL, "original_max_position_embeddings": 16,
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
                        "long_factor": [4.0] * 4, "original_max_position_embeddings": 16},
}  # fmt: skip
DYNAMIC = {**SMALL, "max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}  # fmt: skip
# name -> (model_type, configuration, the path it should take)
FAMILIES = {
    "llama": ("llama", SMALL, "segments"),
    "qwen2": ("qwen2", SMALL, "segments"),
    "gpt2": ("gpt2", GPT, "segments"),
    "gpt_neox": ("gpt_neox", SMALL, "segments"),
    "opt": ("opt", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 24}, "segments"),
    "gemma": ("gemma", SMALL, "segments"),
    "gemma2 (window 8, soft caps)": (
        "gemma2",
        {**SMALL, "sliding_window": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0,
         "attn_logit_softcapping": 0.5},
        "segments",
    ),
    "gemma3 (window 8 in some layers, with frequencies of their own)": (
        "gemma3_text",
        {**SMALL, "sliding_window": 8, "query_pre_attn_scalar": 8,
         "layer_types": ["sliding_attention", "full_attention"],
         "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        "segments",
    ),
    "qwen3 (normalized queries and keys)": ("qwen3", SMALL, "segments"),
    "mistral (window 8)": ("mistral", {**SMALL, "sliding_window": 8}, "segments"),
    "granite": ("granite", {**SMALL, "logits_scaling": 4.0}, "segments"),
    "cohere": ("cohere", {**SMALL, "logit_scale": 0.25}, "segments"),
    "bloom (ALiBi)": ("bloom", {**GPT, "hidden_size": 32}, "plain"),
    "falcon (ALiBi)": ("falcon", {**FALCON, "alibi": True}, "plain"),
    "mamba (state space)": ("mamba", {**SMALL, "state_size": 4}, "plain"),
}  # fmt: skip


def make_model(model_type: str, config: dict):
    """A random float32 model whose logits are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model.float().eval()


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    """One cache of converted models and reference log-likelihoods for all tests, never the user's."""
    os.environ["RANKING_ACC_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def figures_end_with_their_test():
    """Those that a test keeps open to look into them."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def sample_text() -> str:
    return SAMPLE_FILE.read_text(encoding="utf-8")


def make_tokenizer(
    text: str, bos: bool, trim_offsets: bool = True, split_words: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens trained on `text`; pad is eos.

    Unless `split_words`, tokens reach across words, and so across the ends of prompts and turns.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split_words)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=8,
    )  # fmt: skip
    backend.train_from_iterator(text[:60000].split("."), trainer)
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    backend.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(scope="session")
def tokenizer(sample_text):
    return make_tokenizer(sample_text, bos=True)


@pytest.fixture(scope="session")
def tokenizer_without_bos(sample_text):
    return make_tokenizer(sample_text, bos=False)


def tokenize(tokenizer, examples, **how) -> list:
    """Completions of (prompt, completions[, separators[, ranks]]) examples; none may be dropped."""
    result = tokenize_examples(tokenizer, [Texts(*example) for example in examples], **how)
    assert not result.dropped and result.kept == list(range(len(examples)))
    return result.completions


def reasons_to_drop(tokenizer, examples, **how) -> dict[str, int]:
    """Why such examples are dropped, and how many."""
    return tokenize_examples(tokenizer, [Texts(*example) for example in examples], **how).dropped


def assert_documented(rows, kind) -> None:
    """Every key of the rows is one of the type's, and none that it requires is missing; keys that
    no class can have (with a hyphen or a dot) stand in its docstring."""
    for row in rows:
        keys = {key for key in row if key.isidentifier()}
        assert kind.__required_keys__ <= keys <= kind.__required_keys__ | kind.__optional_keys__
        for key in row.keys() - keys:
            assert key in kind.__doc__ or "normalizations" in kind.__doc__


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch):
    """Offline wandb runs land in tmp_path; the process-wide settings are forgotten afterwards."""
    import wandb

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory, tokenizer):
    """A llama of 30 thousand parameters and its tokenizer, saved as a user would have it."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    config = {**SMALL, "max_position_embeddings": 4096}
    make_model("llama", config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_examples(seed: int = 0, n: int = 12) -> list[list[TokenizedCompletion]]:
    """Examples of 2 to 4 completions; some share a prompt, some completions share a beginning."""
    rng = random.Random(seed)

    def ids(length):
        return tuple(rng.randrange(2, 600) for _ in range(length))

    examples, prompt = [], (0,)
    for number in range(n):
        if number % 3 != 1:
            prompt = (0, *ids(rng.randrange(0, 30)))
        start = ids(2)
        completions = [
            prompt + start * (k % 2) + ids(rng.randrange(1, 25)) for k in range(2 + number % 3)
        ]
        examples.append([TokenizedCompletion(c, len(prompt), False) for c in completions])
    return examples


def score(model, tokenized, path, tokens=256, batch_size=100, done=frozenset()):
    scores = {}
    for batch in token_logps_of_batches(
        model, tokenized, path=path, tokens_per_batch=tokens, batch_size=batch_size, done=done
    ):
        scores.update(batch)
    return scores


class LimitedMemory(torch.nn.Module):
    """A model that runs out of memory above `limit` tokens, as a small device would."""

    def __init__(self, model, limit):
        super().__init__()
        self.module, self.limit, self.failures = model, limit, 0

    def forward(self, input_ids, **kwargs):
        if input_ids.numel() > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory")
        return self.module(input_ids=input_ids, **kwargs)


# ---------------------------------------------------------------------------- for judges
@pytest.fixture(scope="session")
def preferences(tmp_path_factory) -> Path:
    """Pairs that differ in one thing: the preferred completion ends with thanks."""
    words = re.findall(
        r"\w+", "the cat sat on a mat and the dog ran over hills with some old friends to see"
    )
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        text = " ".join(rng.choice(words, 6))
        rows.append({"prompt": f"Question {number}: {' '.join(rng.choice(words, 5))}?",
                     "chosen": f" {text}. thank you", "rejected": f" {text}. go away"})  # fmt: skip
    path = tmp_path_factory.mktemp("preferences") / "train.jsonl"
    write_json_lines(path, rows)
    return path


@pytest.fixture(scope="session")
def reward_model(preferences, tiny_model_directory, tmp_path_factory) -> Path:
    """A judge that has learnt these `preferences`."""
    from judges import train_judge

    return train_judge(
        tiny_model_directory, preferences, tmp_path_factory.mktemp("reward") / "model"
    )


@pytest.fixture(scope="session")
def two_models(tiny_model_directory, tmp_path_factory, tokenizer) -> tuple[Path, Path]:
    """Two model directories, good and bad, whose responses come from files."""
    folders = []
    for name in ("good", "bad"):
        folder = tmp_path_factory.mktemp(name)
        make_model("llama", {**SMALL, "max_position_embeddings": 4096}).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return tuple(folders)


@pytest.fixture
def counted(monkeypatch):
    """How many pairs or examples were scored by the reference, call by call."""
    from ranking.training import reference_cache

    scored = []
    score = reference_cache.score_examples
    monkeypatch.setattr(
        reference_cache, "score_examples",
        lambda model, tokenized, **more: (scored.append(len(tokenized)), score(model, tokenized, **more))[1],
    )  # fmt: skip
    return scored
