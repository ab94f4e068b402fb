"""What data flags mean together, and what run_config.json says of them."""

import pytest

import dpo
import sft
from ranking.training.parsing import check_launch

BASE = ["--model_name_or_path=m", "--output_dir=o"]


def data_args(script, *flags):
    return script.parse_args([*BASE, "--dataset_name=d.jsonl", *flags])[0]


def test_what_changes_tokens_is_described(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages }}")
    flags = ["other.jsonl", "--dataset_shares", "3", "1", "--columns", "prompt=q", "--system=Hi.",
             f"--chat_template_file={file}", '--chat_template_kwargs={"a": 1}']  # fmt: skip
    args = dpo.parse_args([*BASE, "--dataset_name", "d.jsonl", *flags])[0]
    plain = data_args(dpo).of_description()
    assert plain["dataset_name"] == "d.jsonl" and "given" not in plain
    changed = {k: v for k, v in args.of_description().items() if plain[k] != v}
    assert changed == {
        "dataset_name": ["d.jsonl", "other.jsonl"], "dataset_shares": [3.0, 1.0],
        "columns": ["prompt=q"], "system": "Hi.", "chat_template_file": "{{ messages }}",
        "chat_template_kwargs": '{"a": 1}',
    }  # fmt: skip
    assert args.of_parts()["shares"] == [0.75, 0.25]
    assert args.of_parts()["columns"] == {"prompt": "q"}
    chat = args.of_chat()
    assert (chat.mode, chat.system, chat.kwargs) == ("auto", "Hi.", {"a": 1})


@pytest.mark.parametrize(
    ("flags", "mode", "add_eos"),
    [
        ([], "auto", None), (["--chat_template"], "always", None),
        (["--chat_template=never", "--no_add_eos"], "never", False),
        (["--chat-template", "auto", "--add_eos=false"], "auto", False),
        (["--chat_template=false", "--add_eos"], "never", True),  # as the switch it was
    ],
)  # fmt: skip
def test_modes(flags, mode, add_eos):
    args = data_args(sft, *flags)
    assert (args.chat_template, args.add_eos) == (mode, add_eos)


def test_datasets_are_given_together_or_one_by_one():
    one = data_args(sft, "--dataset_name", "b", "c").dataset_name
    assert one == data_args(sft, "--dataset_name=b", "--dataset_name=c").dataset_name
    assert one == ["d.jsonl", "b", "c"]
    assert sft.parse_args(BASE)[0].dataset_name == ["Anthropic/hh-rlhf"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_shares", "0.5"], "--dataset_shares 0.5: give one for each of several datasets"),
        (["--dataset_name=e", "--dataset_shares", "1", "-1"], "finite number, more than 0"),
        (["--chat_template=often"], "--chat_template often: give auto, always or never"),
        (["--chat_template", "--separator=x"], "--separator: --chat_template joins prompt and"),
        (["--chat_template_kwargs=x"], "-kwargs x: not JSON"),
        (["--chat_template_file=absent.jinja"], "absent.jinja"),
        (["--columns", "prompt"], "--columns prompt: give TARGET=COLUMN"),
    ],
)  # fmt: skip
def test_bad_flags(flags, message):
    for script in (dpo, sft):
        with pytest.raises(ValueError) as error:
            data_args(script, *flags)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_accumulation_steps=0"], "--eval_accumulation_steps 0: give .* at least 1"),
        (["--dataloader_num_workers=-1"], "--dataloader_num_workers -1: give .* 0 or more"),
        (["--weight_decay=nan"], "--weight_decay nan: give a number"),
        (["--max_grad_norm=nan"], "--max_grad_norm nan: give a number"),
        (["--loss_type", "ipo", "sft", "--loss_weights", "1", "nan"], "--loss_weights nan: give a"),
    ],
)  # fmt: skip
def test_numbers_that_no_run_can_have(flags, message):
    with pytest.raises(ValueError, match=message):
        dpo.parse_args([*BASE, *flags])


def test_one_process_for_several_gpus_is_told_at_once():
    check_launch(0, "dpo.py")
    check_launch(1, "dpo.py")
    with pytest.raises(ValueError, match="4 GPUs .*torchrun --nproc_per_node 4 dpo.py"):
        check_launch(4, "dpo.py")
