"""A local judge: a reward model, a sequence classifier with one output."""

from collections.abc import Iterator, Sequence

from ranking.data.examples import Dialogue
from ranking.plumbing.processes import announce
from ranking.scoring.chat import ChatOptions, Texts, render_example
from ranking.scoring.loading import (
    check_adapter_weights,
    context_length,
    load_config,
    load_tokenizer,
    show_long_bars_only,
)
from ranking.scoring.models import LOADING_ERRORS, explain, resolve_model
from ranking.scoring.rotary import forget_lengths, length_class
from ranking.scoring.tokenization import (
    check_vocabulary,
    without_endings,
)

TOKENS_PER_BATCH = 4096


def load_reward_model(
    name: str,
    device: str,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
):
    """A sequence-classification model with one output, in float32 (half precision would round
    differences to ties), and its tokenizer.

    Raises OSError if nothing loads, ValueError if what loads has no trained score head.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    show_long_bars_only()
    try:
        path = resolve_model(name)
        check_adapter_weights(path, None, allow_pickle)
        load_config(path, None, trust_remote_code)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True,
            trust_remote_code=trust_remote_code, use_safetensors=None if allow_pickle else True,
        )  # fmt: skip
    except LOADING_ERRORS as error:
        raise OSError(f"cannot load the judge {name}: {explain(error)}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{name} is no reward model: it has no weights for {missing}")
    if model.config.num_labels != 1:
        n = model.config.num_labels
        raise ValueError(f"{name} is no reward model: it has {n} outputs instead of one")
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    return model.to(device).eval(), tokenizer


def reward_ids(
    tokenizer, prompt: str, response: str, dialogue: Dialogue | None = None
) -> list[int]:
    """Token ids of prompt and response as a reward model reads them, in training and in judging.

    In its chat template if it has one: as model cards do, with the special tokens that the template
    writes and no others. Else one after the other with the tokenizer's special tokens, BOS at most
    once, and EOS at the end unless the tokenizer ends texts itself. dialogue: the prompt as
    messages, where it is not to be read from its text.
    Raises ValueError where the template refuses the dialogue.
    """
    response = without_endings(tokenizer, response, None).strip()
    if tokenizer.chat_template is not None:
        item = Texts(prompt.rstrip(), [response], [" "], dialogue=dialogue)
        try:
            prompt, (turn,), closing = render_example(tokenizer, item, ChatOptions("always"))
        except ValueError as error:
            raise ValueError(f"the judge: {error}") from None
        return tokenizer(prompt + turn + closing, add_special_tokens=False)["input_ids"]
    text = f"{prompt.rstrip()} {response}"
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids, appended = encoded["input_ids"], any(encoded["special_tokens_mask"][-1:])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:  # the text itself begins with it
        del ids[0]
    return ids if appended or eos is None or ids[-1:] == [eos] else [*ids, eos]


def longest_text(model, tokenizer) -> int:
    """How many tokens the model and its tokenizer allow."""
    return min(context_length(model) or 10**9, tokenizer.model_max_length)


def reward_scores(model, tokenizer, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, float]]:
    """(index, reward) of each text's token ids, longest first, in right-padded batches of similar
    length.

    Texts longer than the model's context lose their beginning (not its BOS or CLS), which one line
    on stderr counts. Score heads read the last token that is not config.pad_token_id; a model
    without one is given one text at a time, of which it reads the last token. Texts whose rotary
    frequencies differ by their length (LongRoPE) are in batches of their own.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    limit = longest_text(model, tokenizer)
    long = [i for i, ids in enumerate(texts) if len(ids) > limit]
    texts = list(texts)
    for i in long:
        kept = int(texts[i][0] in (tokenizer.bos_token_id, tokenizer.cls_token_id))
        texts[i] = [*texts[i][:kept], *texts[i][len(texts[i]) - limit + kept :]]
    if long:
        announce(f"judge: {len(long)} texts cut from the left to {limit} tokens")
    pad = model.config.get_text_config().pad_token_id
    can_pad = pad is not None and pad >= 0
    check_vocabulary(model, [*texts, [pad] * can_pad])
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    while order:
        n = max(1, TOKENS_PER_BATCH // len(texts[order[0]])) if can_pad else 1
        kinds = [length_class(model, len(texts[i])) for i in order[:n]]
        n = next((k for k, kind in enumerate(kinds) if kind != kinds[0]), n)
        batch, order = order[:n], order[n:]
        if kinds[0]:
            forget_lengths(model)
        rows = [torch.tensor(texts[i], device=model.device) for i in batch]
        inputs = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad if can_pad else 0),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True),
        }
        with torch.inference_mode():
            rewards = model(**inputs).logits[:, 0].float().tolist()
        yield from zip(batch, rewards)
