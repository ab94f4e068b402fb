"""What a saved model brings along for those that generate with it, and adapters as whole models."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ranking.data.examples import PreferenceExample
from ranking.plumbing.processes import announce
from ranking.scoring.chat import (
    ChatOptions,
    closes_turns,
    closing_text,
    end_of_turn_id,
    goes_through_template,
)
from ranking.scoring.loading import load_model
from ranking.training.run_directory import MERGED


class TiedOnce:
    """Mixin of Trainer: of tied weights, which FSDP gathers twice, one is saved; the other is not
    missing where a checkpoint is read."""

    def _save(self, output_dir=None, state_dict=None):
        if state_dict is not None:
            tied = getattr(self.model, "all_tied_weights_keys", {})
            state_dict = {k: v for k, v in state_dict.items() if tied.get(k) not in state_dict}
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result):
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))


def prepare_generation(
    model, tokenizer, chat: ChatOptions, examples: Sequence[PreferenceExample]
) -> None:
    """Make the model's generation settings those of what is trained, to be saved with it.

    Where `examples` go through the chat template, generation also stops at the token that ends a
    turn there. Settings of sampling without `do_sample`, which transformers saves only unchanged,
    get it.
    """
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True
        settings.validate(strict=True)
        announce("the model's generation settings sample but for do_sample, which is set")
    if not any(goes_through_template(tokenizer, example, chat) for example in examples):
        return
    end, known = end_of_turn_id(tokenizer, chat), settings.eos_token_id
    stops = [known] if isinstance(known, int) else list(known or [])
    if end is None and closes_turns(tokenizer, chat):
        announce(
            f"the template ends a turn with {closing_text(tokenizer, chat).strip()!r}, which is no "
            "token of its own: generation stops there only by generate(stop_strings=…)"
        )
    elif end is not None and end not in stops:
        settings.eos_token_id = [*stops, end]
        announce(
            f"generation_config.json: generation also stops at {tokenizer.decode([end])!r}, where "
            "the template ends a turn"
        )


def save_merged(folder: Path, trained, tokenizer, **how: Any) -> Path:
    """Save the adapter in `folder` merged into its base, as a whole model in `folder`/merged.

    trained: the model that training ended with, whose settings of tokens and generation are saved.
    It is left as it is: the adapter is loaded again, on the CPU. how: as `load_model` takes it; a
    base that was quantized for training is merged as it was then, rounding and all.
    """
    how = {**how, "attn_implementation": None, "device": "cpu", "dequantize_base": True}
    whole = load_model(str(folder), **how).merge_and_unload()
    whole.generation_config = copy.deepcopy(trained.generation_config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(whole.config, name, getattr(trained.config, name))
    with torch.no_grad():
        whole.save_pretrained(folder / MERGED)
    tokenizer.save_pretrained(folder / MERGED)
    return folder / MERGED
