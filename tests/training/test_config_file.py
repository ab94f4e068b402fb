"""--config: YAML as TRL's scripts and the alignment-handbook have it; --save_config writes it."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from test_readme import page_commands, without_launcher

import dpo
import sft
from ranking.reports.model_card import shown_command
from ranking.training.config_file import save_config
from ranking.training.early_checks import check_values
from ranking.training.known_flags import read_known_flags

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "tests/recipes"
BASE = ["--model_name=m", "--output_dir=o", "--report_to=none"]
SCRIPTS = {"sft": (sft, sft.SFT), "dpo": (dpo, dpo.DPO)}


@pytest.fixture
def parsed(tmp_path):
    """The values of a script's flags with a file of this text."""

    def parse(script: str, text: str, *flags: str):
        file = tmp_path / "r.yaml"
        file.write_text(text)
        argv = [f"--config={file}", *flags]
        check_values(SCRIPTS[script][1], read_known_flags(), argv, "")
        return SCRIPTS[script][0].parse_args(argv)

    return parse


def values_of(arguments) -> list[dict]:
    """All values but those of the config flags."""
    texts = [{k: str(v) for k, v in vars(part).items()} for part in arguments]
    for key in ("config", "save_config", "given"):
        texts[0].pop(key)
    for part in texts:  # objects that differ from one to the next
        for key in ("accelerator_config", "distributed_state", "_n_gpu"):
            part.pop(key, None)
    return texts


def test_values_are_those_of_the_command_line(parsed):
    """Numbers that YAML 1.1 takes for text, words that it takes for booleans, lists, null, JSON."""
    text = """
learning_rate: 1e-5
warmup_steps: 1.5e-1
eval_strategy: no
save_strategy: steps
save_steps: 50
packing: on
add_eos: false
run_name: 007
separator: ""
max_train_samples: null
report_to: [none]
lora_target_modules: [q_proj, v_proj]
use_peft: yes
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr: 1e-6}
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: False}
dataset_name: [a/b, c/d]
dataset_shares: [0.7, .3]
columns: {prompt: question}
"""
    flags = [
        "--learning_rate=1e-5", "--warmup_steps=0.15", "--eval_strategy=no", "--save_steps=50",
        "--packing", "--no_add_eos", "--run_name=007", "--separator=", "--report_to=none",
        "--lora_target_modules", "q_proj", "v_proj", "--use_peft", "--gradient_checkpointing",
        "--lr_scheduler_type=cosine_with_min_lr", '--lr_scheduler_kwargs={"min_lr": 1e-6}',
        '--gradient_checkpointing_kwargs={"use_reentrant": false}', "--dataset_name=a/b",
        "--dataset_name=c/d", "--dataset_shares", "0.7", "0.3", "--columns", "prompt=question",
    ]  # fmt: skip
    of_file = parsed("sft", text, *BASE[:2])
    assert values_of(of_file) == values_of(sft.parse_args([*BASE[:2], *flags]))
    data, model, training = of_file
    assert (training.learning_rate, training.warmup_steps, training.run_name) == (1e-5, 0.15, "007")
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-6} and training.packing is True
    assert model.lora_target_modules == ["q_proj", "v_proj"] and data.separator == ""


def test_flags_override_the_file(parsed):
    """By whatever spelling; lists are replaced, not lengthened."""
    text = "model_name: m\noutput_dir: o\nreport_to: none\ndataset_name: [a/b, c/d]\nbeta: 0.5\n"
    data, model, training = parsed("dpo", text + "max_seq_length: 64\nadd_eos: true\n")
    assert (training.max_length, data.dataset_name) == (64, ["a/b", "c/d"])
    assert (training.beta, data.add_eos) == (0.5, True)
    flags = ["--seq_length=32", "--dataset-name", "e/f", "--no_add_eos", "--model_name_or_path=n"]
    data, model, training = parsed("dpo", text + "max_seq_length: 64\nadd_eos: true\n", *flags)
    assert (training.max_length, data.dataset_name, data.add_eos) == (32, ["e/f"], False)
    assert model.model_name_or_path == "n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1e-5", "r.yaml: unknown key learning_rat; did you mean learning_rate?"),
        ("gamma: 0.5", "r.yaml: gamma cannot be honoured; use --alpha"),
        (
            "max_prompt_length: 512",
            "r.yaml: max_prompt_length cannot be honoured; use --max_length",
        ),
        ("learning_rate: fast", "r.yaml: learning_rate: invalid float value: 'fast'"),
        ("eval_strategy: often", "r.yaml: eval_strategy: invalid choice: 'often'"),
        ("beta: [1, 2]", "r.yaml: beta: give one value, not a list"),
        ("beta: 1\nbeta: 2", "r.yaml: beta is given twice"),
        ("max_length: 8\nmax_seq_length: 9", "max_seq_length and max_length are one flag"),
        ("warmup_steps: 8\nwarmup_ratio: 0.1", "warmup_ratio and warmup_steps are one flag"),
        ("config: other.yaml", "r.yaml: unknown key config"),
        ("do_eval: true", "r.yaml: do_eval cannot be honoured; use --eval_strategy"),
        ("chat_template: '{{ messages }}'", "chat_template is a mode here; use chat_template_file"),
        ("dataset_mixer: {a/b: 0.5}", "r.yaml: dataset_mixer takes 0.5 of a/b: use dataset_name"),
        ("dataset_mixture: {datasets: []}", "r.yaml: dataset_mixture names no datasets"),
        ("dataset_mixture: {datasets: [{id: a/b}], test_split_size: 9}", "use eval_split"),
        ("beta: {a: 1", "r.yaml: not YAML (line 1: "),
        ("- beta", "r.yaml: not a YAML mapping"),
        ("packing: true", "r.yaml: unknown key packing: it is one of sft.py"),
        ("torch_dtype: auto", "--dtype auto: give float32 (bfloat16 weights"),
        ("beta: -1", "--beta -1.0: give a finite number, more than 0"),
    ],
)
def test_bad_files_are_one_line(parsed, tmp_path, text, message):
    """Before the heavy imports and after them."""
    file = tmp_path / "r.yaml"
    file.write_text(text)
    argv = [f"--config={file}", *BASE]
    for check in (dpo.parse_args, lambda a: check_values(dpo.DPO, read_known_flags(), a, "")):
        with pytest.raises(ValueError) as error:
            check(argv)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_and_second_files():
    with pytest.raises(ValueError, match="--config absent.yaml: No such file"):
        dpo.parse_args(["--config", "absent.yaml", *BASE])
    with pytest.raises(ValueError, match="--config b: give one file"):
        dpo.parse_args(["--config=a", "--config=b", *BASE])


def test_keys_of_other_recipes(parsed, capsys):
    text = """
dataset_mixer: {a/b: 1.0, c/d: 1}
dataset_splits: [train_prefs, test_prefs]
use_flash_attention_2: true
warmup_ratio: 0.1
evaluation_strategy: epoch
do_eval: true
preprocessing_num_workers: 12
push_to_hub: false
"""
    data, model, training = parsed("dpo", text, *BASE)
    assert (data.dataset_name, data.train_split) == (["a/b", "c/d"], "train_prefs")
    assert (data.eval_split, model.attn_implementation) == ("test_prefs", "flash_attention_2")
    assert (training.warmup_steps, training.eval_strategy) == (0.1, "epoch")
    assert "r.yaml: preprocessing_num_workers has no effect" in capsys.readouterr().err
    parts = "[{id: a/b, config: c, split: train}, {path: d/e, weight: 1.0, columns: [chosen]}]"
    data, *_ = parsed("dpo", f"dataset_mixture: {{datasets: {parts}, seed: 0}}", *BASE)
    assert data.dataset_name == ["a/b:c:train", "d/e"]
    data, *_ = parsed("dpo", "dataset_name: a/b\ndataset_config: c\n", *BASE)
    assert data.dataset_name == ["a/b:c"]


@pytest.mark.parametrize("script", ["sft", "dpo"])
def test_a_saved_config_is_the_same_run(script, tmp_path, parsed):
    module, _ = SCRIPTS[script]
    flags = [
        "--model_name=m", "--output_dir=o", "--report_to", "none", "--learning_rate=1e-5",
        "--warmup_steps=0.1", "--no_add_eos", "--chat_template", "--system=yes: no", "--use_peft",
        "--lora_target_modules", "q_proj", "--eval_strategy=no", "--columns", "prompt=a.b",
        '--lr_scheduler_kwargs={"min_lr": 1e-6}', "--lr_scheduler_type=cosine_with_min_lr",
        '--chat_template_kwargs={"a":1}',
        "--run_name=1e5", "--seed=3", "--eval_steps=2",
    ]  # fmt: skip
    first = module.parse_args(flags)
    file = str(tmp_path / "saved" / "run.yaml")
    save_config(file, first[0].given, f"{script}.py")
    again = module.parse_args(["--config", file])
    assert values_of(again) == values_of(first)
    assert again[0].given == first[0].given
    card = module.parse_args(shlex.split(shown_command(f"{script}.py", again[0].given))[2:])
    assert values_of(card) == values_of(first)
    text = Path(file).read_text()
    assert text.startswith(f"# python {script}.py --config {file}\nmodel_name_or_path: m\n")
    saved = yaml.safe_load(text)
    assert saved["learning_rate"] == 1e-5 and saved["eval_steps"] == 2
    assert json.loads(saved["lr_scheduler_kwargs"]) == {"min_lr": 1e-6}
    save_config(file, again[0].given, f"{script}.py")  # the same: nothing to write
    with pytest.raises(ValueError, match="run.yaml holds other settings: choose another file"):
        save_config(file, module.parse_args([*flags, "--seed=4"])[0].given, f"{script}.py")


@pytest.mark.parametrize("script", ["sft", "dpo"])
def test_recipes_are_the_commands_of_the_page(script):
    """reproduce/recipes/*.yaml and docs/training.md ask for the same run."""
    module, _ = SCRIPTS[script]
    commands = [without_launcher(words) for words in page_commands("docs/training.md")]
    whole = [words for words in commands if words[0] == f"{script}.py" and len(words) > 8]
    command = [words for words in whole if not any("--config" in word for word in words)][0]
    places = [word for word in command if word.startswith(("--output_dir", "--model_name"))]
    recipe = ROOT / f"reproduce/recipes/{script}.yaml"
    of_file = module.parse_args([f"--config={recipe}", *places])
    assert values_of(of_file) == values_of(module.parse_args(command[1:]))


@pytest.mark.parametrize("script", ["sft", "dpo"])
def test_a_recipe_of_the_handbook_trains(script, tmp_path, tiny_model_directory):
    """Only its places are replaced; --save_config writes what was run."""
    text = (RECIPES / f"handbook_{script}.yaml").read_text()
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(text.replace("MODEL", str(tiny_model_directory)))
    SCRIPTS[script][0].main([
        "--config", str(recipe), f"--output_dir={out}", f"--save_config={tmp_path / 'run.yaml'}",
        "--max_train_samples=8", "--max_eval_samples=4",
    ])  # fmt: skip
    settings = json.loads((out / "run_config.json").read_text())["settings"]
    assert settings["warmup_steps"] == 0.1 and settings["seed"] == 42
    assert "config" not in settings and "given" not in settings and "save_config" not in settings
    assert (out / ("adapter_config.json" if script == "dpo" else "config.json")).is_file()
    saved = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert saved["output_dir"] == str(out) and saved["dataset_name"] == ["sample"]
