"""A reward model reads what it was trained on, and its score is that of the last token."""

import pytest
import torch
from conftest import SMALL, make_model, make_tokenizer
from judges import train_judge
from tokenizers import processors
from trl.trainer.reward_trainer import DataCollatorForPreference

from ranking.data.examples import Dialogue
from ranking.judging.reward_model import load_reward_model, reward_ids, reward_scores
from ranking.plumbing.result_files import read_json_lines


def card_reward(model, ids: list[int]) -> float:
    """The score of the last token's hidden state, by hand."""
    with torch.no_grad():
        return model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1]).item()


def test_a_chat_reward_model_is_trained_and_judged_on_what_its_template_writes(
    sample_text, preferences, tmp_path, monkeypatch
):
    """Pad is not EOS and BOS stands in the template: once, and nothing is appended."""
    tokenizer = make_tokenizer(sample_text, bos=True)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    config = {**SMALL, "vocab_size": 601, "max_position_embeddings": 4096}
    make_model("llama", config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    collate, trained = DataCollatorForPreference.torch_call, []

    def recorded(self, examples):
        batch = collate(self, examples)
        trained.extend(row[row != 600].tolist() for row in batch["input_ids"])
        return batch

    monkeypatch.setattr(DataCollatorForPreference, "torch_call", recorded)
    judge, tokenizer = load_reward_model(
        str(train_judge(tmp_path / "lm", preferences, tmp_path / "rm")), "cpu"
    )
    judged = []
    for row in read_json_lines(preferences):
        for side in ("chosen", "rejected"):
            messages = [{"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": row[side].strip()}]  # fmt: skip
            card = tokenizer.apply_chat_template(messages)["input_ids"]
            judged.append(reward_ids(tokenizer, row["prompt"], row[side]))
            assert judged[-1] == card and card.count(0) == 1 and card[-1] != 1
    assert trained and all(ids in judged for ids in trained)
    expected = [card_reward(judge, ids) for ids in judged[:20]]
    found = dict(reward_scores(judge, tokenizer, judged[:20]))
    assert [found[i] for i in range(20)] == pytest.approx(expected, abs=1e-5)
    begun = "\n\nHuman: Is it?\n\nAssistant: I think"
    text = tokenizer.decode(reward_ids(tokenizer, begun, " so."))
    assert text == "<s><user>Is it?<assistant>I think so."


def test_texts_without_a_template_end_in_eos_once_which_the_score_head_reads(
    reward_model, tokenizer, sample_text, tmp_path
):
    """Pad was EOS, which score heads skip: the reward model has got a pad token of its own."""
    model, own = load_reward_model(str(reward_model), "cpu")
    assert model.config.pad_token_id == own.pad_token_id == 600 and own.eos_token_id == 1
    plain = [0, *tokenizer("Is it? yes", add_special_tokens=False)["input_ids"], 1]
    assert reward_ids(own, "Is it?", " yes") == plain
    assert reward_ids(own, "<s>Is it?", "yes</s>") == plain
    appending = make_tokenizer(sample_text, bos=True)
    appending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert reward_ids(appending, "Is it?", "yes") == plain
    own.model_max_length = 64  # the second text is longer
    texts = [reward_ids(own, "Is it?", "yes " * k) for k in (1, 200, 2)]
    cut = [texts[0], [0, *texts[1][-63:]], texts[2]]
    for pad in (600, None):  # None: one by one, as with a model card's lines
        model.config.pad_token_id = pad
        found = dict(reward_scores(model, own, texts))
        expected = [card_reward(model, ids) for ids in cut]
        assert [found[i] for i in range(3)] == pytest.approx(expected, abs=1e-5)


def test_a_judge_reads_the_whole_dialogue(sample_text):
    """System message and tools included, in its template; the text has no markers to parse."""
    tokenizer = make_tokenizer(sample_text, bos=True)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for t in tools or () %}({{ t.function.name }}){% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"})
    asked = Dialogue(messages, ({"type": "function", "function": {"name": "clock"}},))
    ids = reward_ids(tokenizer, "Be brief.\n\nHuman: Is it?\n\nAssistant:", " yes\n", asked)
    assert tokenizer.decode(ids) == "<s>(clock)<system>Be brief.<user>Is it?<assistant>yes"
