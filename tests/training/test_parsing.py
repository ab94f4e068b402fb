"""Command lines of the training scripts: --help in groups, retired flags that ask for nothing."""

import importlib

import pytest

import dpo
import sft
from ranking.training.early_checks import check_values
from ranking.training.known_flags import read_known_flags


@pytest.mark.parametrize("script", ["dpo", "sft"])
def test_help_is_grouped(script, capsys):
    """What one needs on a few screens; the rest on demand; nothing that would be refused."""
    printed = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(script).parse_args([flag])
        assert stop.value.code == 0
        printed.append(capsys.readouterr().out)
    short, whole = printed
    assert f"    python {script}.py --model_name" in short and "\\\n" in short
    assert all(f"\n{group}:\n" in short for group in ("model", "data", "training", "output"))
    other = {"sft": "dpo", "dpo": "sft"}[script]
    assert short.startswith(f"usage: {script}.py --model_name_or_path NAME --output_dir DIR")
    assert f"{other}.py" not in short and "[" not in short and "(default: False)" not in short
    words = " ".join(short.split())
    assert ("(default: sigmoid)" in words) == (script == "dpo") and "--config FILE" in short
    assert len(short.splitlines()) < 190 and "--help-all" in short
    assert "(default: 1024)" in short and "--adam_beta1" not in short
    assert "--adam_beta1" in whole and "--hub_token" not in whole and "--no_cuda" not in whole


def test_neutral_values_of_retired_flags_and_flags_without_effect(capsys):
    flags = ["--push_to_hub=false", "--load_in_4bit", "False", "--trust_remote_code=false", "--no_cuda=0", "--do_train=true",
             "--warmup_ratio=0.0", "--completion_only_loss=true", "--hub_token=none"]  # fmt: skip
    base = ["--model_name=m", "--output_dir=o"]
    parsed, plain = sft.parse_args([*base, *flags]), sft.parse_args(base)
    for one, two in zip(parsed, plain):
        values = [
            {k: v for k, v in vars(arguments).items() if isinstance(v, (bool, int, float, str))}
            for arguments in (one, two)
        ]
        assert values[0] == values[1]
    assert "no effect" not in capsys.readouterr().err
    sft.parse_args([*base, "--eval_steps=5", "--metric_for_best_model=loss", "--lora_alpha=32",
                "--use_peft"])  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        "--eval_steps has no effect: --eval_strategy is no",
        "--metric_for_best_model has no effect: --load_best_model_at_end is not given",
    ]
    sets = [*base, "--eval_dataset_name=sample", "--early_stopping_patience=3"]
    by_loss = ["--eval_strategy=epoch", "--metric_for_best_model=sample/loss"]
    sft.parse_args([*sets, *by_loss])
    dpo.parse_args([*sets, *by_loss])
    assert not capsys.readouterr().err
    dpo.parse_args(sets[:-1])
    wanted = "--eval_dataset_name has no effect: --eval_strategy is no\n"
    assert capsys.readouterr().err == wanted


def test_a_bare_switch_is_on():
    """Also where the default is neither (--bf16), which HfArgumentParser wants a value of."""
    base = ["--model_name=m", "--output_dir=o", "--report_to=none"]
    for flags, wanted in ((["--bf16"], True), (["--bf16", "false"], False), (["--bf16=1"], True)):
        assert sft.parse_args([*base, *flags])[2].bf16 is wanted
        check_values(sft.SFT, read_known_flags(), [*base, *flags], "")


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("sft", ["--wrong_flag"], "unknown flag --wrong_flag"),
        ("sft", ["--beta=1"], "unknown flag --beta: it is one of dpo.py"),
        ("dpo", ["--packing"], "unknown flag --packing: it is one of sft.py"),
        ("dpo", ["--loss_type=simpo"], "--loss_type simpo: give --loss_type=alpha_scaling_norm "
         "--alpha=0 --target_margin=SIMPO_GAMMA"),
        ("dpo", ["--dataset_name=a", "b"], "'b' after --dataset_name=…: give several values as "
         "--dataset_name A B, without ="),
        ("dpo", ["--beta", "1", "2"], "'2' after --beta: it takes one value"),
        ("dpo", ["--loss_type", "ipo", "sft", "--loss_weights=1"],
         "--loss_weights 1: give one for each --loss_type (ipo sft)"),
        ("sft", ["--fp16", "--bf16"], "--fp16 and --bf16: give one of them"),
        ("sft", ["--use_cpu=1", "2"], "'2' after --use_cpu: it takes one value"),
        ("sft", ["--no_add_eos", "2"], "'2' after --no_add_eos: it takes no value"),
    ],
)  # fmt: skip
def test_wrong_flags_say_what_to_do(script, flags, message):
    base = ["--model_name=m", "--output_dir=o"]
    module = importlib.import_module(script)
    for check in (module.parse_args, lambda argv: check_values(
            getattr(module, script.upper()), read_known_flags(), argv, "")):  # fmt: skip
        with pytest.raises(ValueError) as error:
            check([*base, *flags])
        assert str(error.value) == message
    with pytest.raises(ValueError, match="'m': give flags, as --name value"):
        module.parse_args(["m", *base])


def test_errors_of_the_libraries_are_one_line():
    base = ["--model_name=m", "--output_dir=o", "--report_to=none"]
    with pytest.raises(ValueError, match="unexpected keyword argument 'x'"):
        sft.parse_args([*base, '--accelerator_config={"x": 1}'])


def test_the_libraries_of_a_run_stay_at_warnings(capsys):
    base = ["--model_name=m", "--output_dir=o", "--report_to=none"]
    assert sft.parse_args([*base, "--log_level=info"])[2].log_level == "warning"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--log_level has no effect: info is libraries' lines")
    for level in ("debug", "error"):
        assert sft.parse_args([*base, f"--log_level={level}"])[2].log_level == level
    assert not capsys.readouterr().err
