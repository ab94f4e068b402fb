"""What those that generate with a saved model are told: where answers end, how to sample."""

import logging

import pytest
import torch
from conftest import SMALL, make_model
from dialogue_rows import CHATML, VOCABULARY, chat_tokenizer, dialogues, explicit, split_folder
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_dpo_gamma_trainer import texts as texts  # a fixture
from test_dpo_gamma_trainer import trainer
from transformers import AutoModelForCausalLM, GenerationConfig

from ranking.scoring.chat import ChatOptions
from ranking.scoring.loading import load_model
from ranking.training.saved_model import prepare_generation, save_merged
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


def test_generation_does_not_stop_at_a_part_of_what_ends_a_turn(tmp_path, sample_text, capsys):
    """Text that is several tokens: answers can hold the first of them."""
    model = as_published(tmp_path / "model", eos_token_id=1)
    tokenizer = chat_tokenizer(sample_text, CHATML.replace("<|im_end|>", "<|stop|>"))
    talks = split_folder(tmp_path / "talks", [explicit(row) for row in dialogues()])
    prepare_generation(model, tokenizer, ChatOptions(), load_parts([talks])["train"].examples)
    assert model.generation_config.eos_token_id == 1
    assert "ends a turn with '<|stop|>', which is no token of its own" in capsys.readouterr().err


def test_tied_weights_that_were_gathered_twice_are_saved_once(
    tmp_path, tokenizer, texts, caplog, monkeypatch
):
    """As FSDP's state dict has them: two tensors. The other is not missing where it is read."""
    model = make_model("llama", {**SMALL, "tie_word_embeddings": True})
    run = trainer(tmp_path, tokenizer, texts, model=model)
    gathered = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert "lm_head.weight" in gathered
    run._save(str(tmp_path / "saved"), state_dict=gathered)
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert saved.keys() == gathered.keys() - {"lm_head.weight"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    run._load_from_checkpoint(str(tmp_path / "saved"))
    assert "missing keys" not in caplog.text
    del saved["model.norm.weight"]
    save_file(saved, tmp_path / "saved/model.safetensors", {"format": "pt"})
    run._load_from_checkpoint(str(tmp_path / "saved"))
    assert "missing keys in the checkpoint model loaded: ['model.norm.weight']" in caplog.text


def test_a_quantized_base_is_merged_as_it_was_trained_on(tmp_path, tiny_model_directory, tokenizer):
    """The adapter on 4-bit weights has the whole model's log-likelihoods; needs bitsandbytes."""
    pytest.importorskip("bitsandbytes")
    how = {"dtype": "float32", "quantization": "4bit"}
    base = load_model(str(tiny_model_directory), device="cpu", **how)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.5)
    adapted.save_pretrained(tmp_path)
    folder = save_merged(tmp_path, adapted, tokenizer, **how)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        logps = [m(ids).logits.log_softmax(-1) for m in (adapted.eval(), whole)]
    torch.testing.assert_close(logps[0], logps[1], atol=1e-3, rtol=0)
    assert "quantization_config" not in (folder / "config.json").read_text()


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
