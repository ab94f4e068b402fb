"""What those that generate with a saved model are told: where answers end, how to sample."""

import pytest
from conftest import make_model
from dialogue_rows import CHATML, VOCABULARY, chat_tokenizer, dialogues, explicit, split_folder
from transformers import AutoModelForCausalLM, GenerationConfig

from ranking.scoring.chat import ChatOptions
from ranking.training.saved_model import prepare_generation
from ranking.training.splits import load_parts


def as_published(folder, **settings):
    """A model with generation settings in a file of their own."""
    make_model("llama", VOCABULARY).save_pretrained(folder)
    GenerationConfig(**settings).to_json_file(folder / "generation_config.json")
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(("eos", "wanted"), [(1, [1, 601]), ([1, 5], [1, 5, 601]), ([601], [601]),
                                             (None, [601])])  # fmt: skip
def test_generation_stops_where_the_template_ends_a_turn(
    tmp_path, sample_text, capsys, eos, wanted
):
    model = as_published(tmp_path / "model", eos_token_id=eos, temperature=0.6, do_sample=True)
    tokenizer = chat_tokenizer(sample_text, CHATML)
    talks = split_folder(tmp_path / "talks", [explicit(row) for row in dialogues()])
    examples = load_parts([talks])["train"].examples
    for mode, stops in (("never", eos), ("auto", wanted)):
        prepare_generation(model, tokenizer, ChatOptions(mode), examples)
        found = model.generation_config.eos_token_id
        assert found == (stops if mode == "never" or stops != eos else eos)
    said = "generation also stops at '<|im_end|>', where the template ends a turn"
    assert (said in capsys.readouterr().err) == (wanted != eos)
    model.save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.eos_token_id, saved.temperature, saved.do_sample) == (wanted, 0.6, True)


def test_published_settings_that_transformers_would_not_save(tmp_path, sample_text, capsys):
    """As Llama-2's were: a temperature without do_sample. Training changes the padding token, after
    which transformers refuses them, at the first checkpoint."""
    model = as_published(tmp_path / "model", eos_token_id=1, temperature=0.9, top_p=0.6)
    model.generation_config.pad_token_id = 1
    with pytest.raises(ValueError, match="`do_sample` is not set"):
        model.save_pretrained(tmp_path / "refused")
    prepare_generation(model, chat_tokenizer(sample_text, None), ChatOptions(), [])
    assert "do_sample, which is set" in capsys.readouterr().err
    model.save_pretrained(tmp_path / "saved")
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.temperature, saved.top_p, saved.do_sample) == (0.9, 0.6, True)
