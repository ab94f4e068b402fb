"""The lines on the chat template in training, and whether a template file is saved."""

import pytest
from dialogue_rows import CHATML, SPEAKERS, chat_tokenizer, said

from ranking.data.examples import Dialogue, PreferenceData, PreferenceExample
from ranking.scoring.chat import AUTO, ChatOptions
from ranking.training.templates import describe_template, use_template

TALK = Dialogue((said("user", "Is it?"),))


def example(dialogue: Dialogue | None) -> PreferenceExample:
    return PreferenceExample(
        "a", "p", "Is it?", ("yes", "no"), (" ", " "), (1, 2), None, "d", 0, dialogue
    )


def lines(capsys, tokenizer, dialogues, chat=AUTO, add_eos=None) -> str:
    """What is said of training examples with these dialogues."""
    data = PreferenceData("d", None, None, None, [example(d) for d in dialogues], {}, [])
    describe_template(tokenizer, {"train": data}, chat, add_eos)
    return capsys.readouterr().err


@pytest.mark.parametrize("template", [None, CHATML], ids=["no template", "ChatML"])
def test_flags_that_change_nothing_of_text_are_named(capsys, sample_text, template):
    tokenizer = chat_tokenizer(sample_text, template)
    chat = ChatOptions(system="Be nice.", kwargs={"a": 1})
    said = lines(capsys, tokenizer, [None, None], chat)
    assert "train: --system does nothing: the prompts are plain text" in said
    assert "train: --chat-template-kwargs does nothing: no prompt goes through a template" in said
    stays = "train: 2 of 2 prompts are plain text and stay so, although the model has a chat"
    assert (stays in said) == (template is not None)
    said = lines(capsys, tokenizer, [None], ChatOptions(template=CHATML))
    assert "train: --chat-template-file does nothing: no prompt goes through a template" in said
    assert "--system" not in lines(capsys, tokenizer, [TALK], ChatOptions(system="Be nice."))


def test_what_a_template_does_otherwise_is_said(capsys, sample_text):
    """As where examples are scored."""
    deaf = "{% for m in messages if m.role != 'system' %}" + CHATML.partition("%}")[2]
    tokenizer = chat_tokenizer(sample_text, deaf)
    said = lines(capsys, tokenizer, [TALK], ChatOptions(system="Be nice."))
    assert "train: 1 of 1 prompts go through the chat template" in said
    assert "train: the chat template: it takes no system message" in said


@pytest.mark.parametrize(
    ("template", "dialogues", "add_eos", "expected"),
    [
        (CHATML, [TALK, TALK], None, "of 2 of 2 training examples end as the template closes a turn "
                                     "(the default for dialogues; --no_add_eos)"),
        (CHATML, [TALK, None], None, "of 1 of 2 training examples end as the template closes a turn ("),
        (CHATML, [TALK, None], True,
         "of 2 of 2 training examples end as the template closes a turn, or with EOS\n"),
        (CHATML, [None, None], True, "of 2 of 2 training examples end with EOS\n"),
        (None, [TALK], True, "of 1 of 1 training examples end with EOS\n"),
        (CHATML, [TALK], False, "do not end their turn (--add_eos has them do so)\n"),
        (SPEAKERS, [TALK], None, "of 1 of 1 training examples end with EOS, as the template closes "
                                 "no turn (the default for dialogues; --no_add_eos)"),
        (SPEAKERS, [TALK, None], True,
         "of 2 of 2 training examples end with EOS, as the template closes no turn\n"),
    ],
)  # fmt: skip
def test_how_answers_end(capsys, sample_text, template, dialogues, add_eos, expected):
    tokenizer = chat_tokenizer(sample_text, template)
    assert f"the answers {expected}" in lines(capsys, tokenizer, dialogues, add_eos=add_eos)


def test_a_template_file_is_saved_where_something_is_trained_in_it(sample_text):
    texts, talks, given = [example(None)], [example(None), example(TALK)], "{{ messages }}"
    for mode, examples, saved in (
        ("auto", texts, CHATML), ("auto", talks, given), ("never", talks, CHATML),
        ("always", texts, given),
    ):  # fmt: skip
        tokenizer = chat_tokenizer(sample_text, CHATML)
        use_template(tokenizer, ChatOptions(mode, template=given), "m", examples)
        assert tokenizer.chat_template == saved
    with pytest.raises(ValueError, match="--chat-template: m has none"):
        use_template(chat_tokenizer(sample_text, None), ChatOptions("always"), "m", texts)
