"""What a run records of how dialogues were rendered, and which runs may be compared."""

import copy
from pathlib import Path

import pytest
from conftest import SMALL, make_model

from ranking.data.examples import (
    Dialogue,
    PreferenceData,
    PreferenceExample,
    content_hash,
    fingerprint,
)
from ranking.plumbing.result_files import hash_config
from ranking.scoring.chat import AUTO, ChatOptions
from ranking.scoring.comparable import ScoringRun, check_comparable
from ranking.scoring.examples_file import planned_records
from ranking.scoring.models import find_model
from ranking.scoring.run_config import make_run_config, scoring_settings
from ranking.scoring.runs import dataset_facts

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = {"sample_size": 2, "seed": 0, "include_ties": False, "max_length": None, "add_eos": False,
         "quantization": None, "trust_remote_code": False}  # fmt: skip


def example(number: int, dialogue: Dialogue | None = None) -> PreferenceExample:
    return PreferenceExample(
        f"{number}-1",
        str(number),
        "Hi",
        ("a", "b"),
        (" ", " "),
        (1, 2),
        None,
        "d",
        number,
        dialogue,
    )


def data(name: str, *dialogues: Dialogue | None) -> PreferenceData:
    examples = [example(number, dialogue) for number, dialogue in enumerate(dialogues)]
    return PreferenceData(name, None, None, None, examples, {}, [])


HI = Dialogue(({"role": "user", "content": "Hi"},))
TEXT, DIALOGUES, MIXED = (
    data("text", None, None),
    data("dialogues", HI, HI),
    data("mixed", HI, None),
)


@pytest.fixture(scope="module")
def two_models(tmp_path_factory, tokenizer):
    """A model with a chat template, and one without."""
    found = []
    for template in (CHATML, None):
        folder: Path = tmp_path_factory.mktemp("chat" if template else "plain")
        make_model("llama", SMALL).save_pretrained(folder)
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        own.save_pretrained(folder)
        found.append(find_model(str(folder), None, "float32", "cpu"))
    return found


def test_configurations_of_text_are_those_of_before(two_models):
    """Key for key, so that unfinished runs resume and finished ones compare; those in a template
    say which."""
    chat, plain = two_models
    for found, options, expected in (
        (chat, AUTO, False), (plain, AUTO, False), (plain, ChatOptions("never"), False),
        (chat, ChatOptions("always"), True),
    ):  # fmt: skip
        assert make_run_config(found, [TEXT], chat=options, **ASKED) == {
            "model": found.name, "revision": None, "model_fingerprint": found.fingerprint,
            "datasets": [{"name": "text", "config": None, "split": None, "separator": None,
                          "examples": fingerprint(TEXT.examples), "dropped": {}}],
            "sample_size": 2, "seed": 0, "include_ties": False, "dtype": "float32",
            "max_length": None, "chat_template": expected, "add_eos": False,
            **({"template": content_hash([CHATML])} if expected else {}),
        }  # fmt: skip


def test_a_run_says_how_many_examples_went_through_the_template(two_models):
    chat, plain = two_models
    datasets = [TEXT, DIALOGUES, MIXED]
    config = make_run_config(chat, datasets, chat=AUTO, **ASKED)
    assert [entry["in_template"] for entry in config["datasets"]] == [0, 2, 1]

    def facts(data, config):
        records = [{**record, "model": "m"} for record in planned_records([data])]
        return dataset_facts(ScoringRun("m", records, config, chat), data.key, records, data)

    rows = [facts(each, config) for each in datasets]
    assert [row["chat_template"] for row in rows] == [False, True, True]
    assert [row["in_template"] for row in rows] == [0, 2, 1]
    assert [row["joined_by"] for row in rows] == [{" ": 4}, None, {" ": 2}]
    without = make_run_config(plain, datasets, chat=AUTO, **ASKED)
    assert not without["chat_template"] and "in_template" not in without["datasets"][1]
    assert facts(DIALOGUES, without)["joined_by"] == {" ": 4}
    always = make_run_config(chat, [DIALOGUES], chat=ChatOptions("always"), **ASKED)
    assert always["chat_template"] and "in_template" not in always["datasets"][0]
    with pytest.raises(ValueError, match="--chat-template: .* has none"):
        make_run_config(plain, [DIALOGUES], chat=ChatOptions("always"), **ASKED)


def test_what_shapes_a_rendering_is_recorded(two_models):
    chat = two_models[0]
    asked = ChatOptions("auto", "Be brief.", {"x": 1}, CHATML)
    config = make_run_config(chat, [DIALOGUES], chat=asked, **ASKED)
    assert (config["system"], config["chat_template_kwargs"]) == ("Be brief.", {"x": 1})
    other = make_run_config(chat, [DIALOGUES], chat=asked._replace(template=CHATML + " "), **ASKED)
    assert config["chat_template_file"] != other["chat_template_file"]
    assert len({hash_config(c) for c in (config, other)}) == 2
    settings = scoring_settings(config, ("dialogues", None, None))
    assert settings["system"] == "Be brief." and settings["in_template"] == 2


def test_runs_that_render_otherwise_are_not_compared(two_models):
    chat, plain = two_models
    datasets = [DIALOGUES, MIXED]

    def planned(found, options) -> ScoringRun:
        config = make_run_config(found, datasets, chat=options, **ASKED)
        return ScoringRun(found.name, planned_records(datasets), config, found)

    ours = planned(chat, AUTO)
    check_comparable(ours, planned(chat, AUTO))
    for other, reason in (
        (planned(plain, AUTO), "dialogues: chat_template true and .* chat_template false"),
        (planned(chat, ChatOptions("never")), "dialogues: chat_template true"),
        (planned(chat, ChatOptions("always")), "mixed: chat_template false"),
        (planned(chat, ChatOptions(system="Hm.")), "system null and .* system \"Hm.\""),
        (planned(chat, ChatOptions(kwargs={"x": 1})), "chat_template_kwargs null"),
        (planned(chat, ChatOptions(template=CHATML + " ")), "the chat template"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"not the same text: .*{reason}"):
            check_comparable(ours, other)
    check_comparable(ours, planned(chat, ChatOptions(template=CHATML)))  # which is its own
    datasets = [DIALOGUES]  # all are dialogues: auto is always
    check_comparable(planned(chat, AUTO), planned(chat, ChatOptions("always")))


def test_models_are_compared_in_templates_of_their_own(two_models, capsys):
    found, records = two_models[0], planned_records([DIALOGUES])
    configs = [
        make_run_config(found, [DIALOGUES], chat=ChatOptions(template=template), **ASKED)
        for template in (None, CHATML + " ")
    ]
    ours, other = (ScoringRun(found.name, records, config, found) for config in configs)
    check_comparable(ours, other, own_templates=True)
    assert "have dialogues in different chat templates" in capsys.readouterr().err
    with pytest.raises(ValueError, match="not the same text"):  # log-ratios need one
        check_comparable(ours, other)


def test_records_hold_messages(two_models):
    found = two_models[0]
    config = make_run_config(found, [MIXED], chat=AUTO, **ASKED)
    records = planned_records([MIXED])
    assert [record["messages"] for record in records] == [[{"role": "user", "content": "Hi"}], None]
    ours = ScoringRun("ours", records, config)
    with pytest.raises(ValueError, match="not the same text"):  # it went nowhere but as text
        check_comparable(ours, ScoringRun("as text", records, {**config, "datasets": [
            {k: v for k, v in entry.items() if k != "in_template"} for entry in config["datasets"]
        ], "chat_template": False}))  # fmt: skip
    changed = [{**record, "messages": [{"role": "user", "content": "Ho"}]} for record in records]
    with pytest.raises(ValueError, match="its messages differ"):
        check_comparable(ours, ScoringRun("changed", changed, config))
