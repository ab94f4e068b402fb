"""Responses of models to prompts, sampled once and kept in NAME.responses.jsonl."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ranking.data.examples import (
    Dialogue,
    PreferenceData,
    PreferenceExample,
    content_hash,
    counts_text,
)
from ranking.plumbing.command_line import progress_bar, until_stopped
from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import (
    append_json_lines,
    drop_torn_line,
    hash_config,
    read_json_lines,
)
from ranking.scoring.chat import (
    AUTO,
    Asked,
    ChatOptions,
    check_template,
    end_of_turn_id,
    goes_through_template,
    has_template,
    messages_of,
    plain_prompt,
    render_prompt,
)
from ranking.scoring.chat_notes import describe_rendering
from ranking.scoring.loading import context_length, load_config, load_model, load_tokenizer, unwrap
from ranking.scoring.models import adapter_base, model_fingerprint, resolve_dtype, resolve_model
from ranking.scoring.rotary import length_class
from ranking.scoring.tokenization import (
    check_vocabulary,
    encode_texts,
    exact_offset_tokenizer,
    locate_completion,
)

NEXT_TURN = "\n\nHuman:"  # where a model that continues the dialogue ends its own turn


class Generation(TypedDict):
    """What a response depends on, beside its prompt."""

    model: str  # as given on the command line
    model_fingerprint: str  # the commit of a hub model, a hash over the files of a local one
    dtype: str  # of the weights
    temperature: float  # 0: greedy
    top_p: float | None  # None: greedy
    max_new_tokens: int
    eos_token_id: list[int]  # all that end a response
    stop_strings: list[str]  # these do too
    chat_template: bool  # whether prompts go through it: all, or `only_dialogues`
    only_dialogues: NotRequired[bool]  # text stays text
    system: NotRequired[str]
    chat_template_kwargs: NotRequired[dict[str, Any]]
    chat_template_file: NotRequired[str]  # hash of its text
    seed: int | None  # of --seed; None: greedy
    trust_remote_code: bool
    draw: int | None  # 1: the reference's, if the same model is a policy too; None: greedy


class Answer(TypedDict):
    """What a model says to a prompt."""

    response: str | None  # stripped; None where the prompt has no tokens or leaves no room
    finished: bool  # whether it reached an end of the turn
    n_tokens: int  # before that end


class Response(Generation, Answer):
    """A line of NAME.responses.jsonl."""

    generation: str  # hash of the `Generation`: who has the same takes the response from here
    id: str  # of the example whose prompt it is


def unique_prompts(data: PreferenceData, chat: ChatOptions = AUTO) -> list[PreferenceExample]:
    """The examples of a sample, one of each prompt, with the system message that is asked for;
    their number and what was dropped are announced."""
    prompts: dict[tuple[str, str], PreferenceExample] = {}
    for example in data.examples:
        dialogue = example.dialogue
        given = dialogue and (dialogue.tools, dialogue.template_kwargs)
        asked = example.prompt, repr(given)  # a prompt_id may be that of a cluster
        if asked in prompts:
            continue
        if dialogue is not None or (chat.system is not None and chat.mode == "always"):
            messages = tuple(messages_of(example, chat))
            dialogue = replace(dialogue or Dialogue(()), messages=messages)
        text = plain_prompt(example, chat)
        prompts[asked] = replace(example, prompt=text, dialogue=dialogue)
    dropped = counts_text(data.dropped)
    repeated = len(data.examples) - len(prompts)
    announce(f"{data.name}: {len(prompts)} prompts, dropped: {dropped}; repeated: {repeated}")
    for note in data.notes:
        announce(f"{data.name}: {note}")
    return list(prompts.values())


def preferred_answer(example: PreferenceExample) -> str | None:
    """The preferred completion of an example, if it has any."""
    if not example.completions:
        return None
    return example.completions[example.ranks.index(min(example.ranks))].strip()


def generation_settings(
    name: str,
    draw: int = 0,
    *,
    dialogues: bool = False,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    chat: ChatOptions,
    seed: int,
    dtype: str,
    device: str,
    trust_remote_code: bool,
) -> Generation:
    """The settings of model `name`; another `draw` samples other responses. dialogues: whether
    prompts are. ValueError where a chat template is asked for and there is none."""
    sampled = temperature > 0
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    check_template(tokenizer, chat, name)
    wanted = chat.mode == "always" or (chat.mode == "auto" and dialogues)
    in_template = wanted and has_template(tokenizer, chat)
    settings: Generation = {
        "model": name,
        "model_fingerprint": model_fingerprint(name),
        "dtype": resolve_dtype(dtype, device),
        "temperature": temperature,
        "top_p": top_p if sampled else None,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": ends_of_turn(
            name, tokenizer, chat if in_template else None, trust_remote_code
        ),
        "stop_strings": [NEXT_TURN],
        "chat_template": in_template,
        "seed": seed if sampled else None,
        "trust_remote_code": trust_remote_code,
        "draw": draw if sampled else None,
    }
    if in_template and chat.mode == "auto":
        settings["only_dialogues"] = True
    if chat.system is not None:
        settings["system"] = chat.system
    if in_template and chat.kwargs:
        settings["chat_template_kwargs"] = dict(chat.kwargs)
    if in_template and chat.template is not None:
        settings["chat_template_file"] = content_hash([chat.template])
    return settings


def ends_of_turn(
    name: str, tokenizer, chat: ChatOptions | None, trust_remote_code: bool
) -> list[int]:
    """Ids that end a response: EOS in the model's generation_config.json (chat models have several)
    and of its tokenizer, and what closes a turn in the chat template (None: it is not used)."""
    from transformers import GenerationConfig

    path = resolve_model(name)
    if (Path(path) / "adapter_config.json").is_file():
        path = adapter_base(path)
    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # there is none
        eos = load_config(path, None, trust_remote_code).get_text_config().eos_token_id
    ends = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id}
    if chat is not None:
        ends |= {end_of_turn_id(tokenizer, chat)}
    return sorted(ends - {None})


def read_responses(path: str | Path) -> list[Response]:
    """Rows of a responses file; ValueError if it is something else."""
    rows: list[Any] = read_json_lines(Path(path))
    for number, row in enumerate(rows, start=1):
        if not {"generation", "id", "response"} <= row.keys():
            raise ValueError(f"{path}: row {number}: not a responses file of calculate_win_rate.py")
    return rows


def respond(
    settings: Generation,
    prompts: Sequence[PreferenceExample],
    known: Sequence[Response],
    path: Path,
    *,
    chat: ChatOptions,
    batch_size: int,
    device: str,
    allow_pickle: bool,
) -> dict[str, str | None]:
    """Responses of one model by prompt id.

    Taken from `known` and from `path` where the settings agree, else generated and appended to
    `path`. None where the prompt and max_new_tokens exceed the context, or the prompt has no token
    (empty, or refused by the chat template).
    """
    path.touch()
    drop_torn_line(path)
    known = [*known, *read_responses(path)]
    name, key = settings["model"], hash_config(settings)
    responses = {row["id"]: row["response"] for row in known if row["generation"] == key}
    missing = [prompt.id for prompt in prompts if prompt.id not in responses]
    if not missing:
        return responses
    model, tokenizer = load_generator(settings, device, allow_pickle)
    batches = generate_batches(
        model, tokenizer, prompts, set(responses), settings, chat, batch_size
    )
    n_before = len(prompts) - len(missing)
    with (
        path.open("ab") as file,
        progress_bar(f"responses of {name}", len(prompts), n_before) as progress,
    ):
        for rows in until_stopped(
            batches, lambda: f"{progress.n} responses of {name} are saved in {path}"
        ):
            append_json_lines(file, rows)
            responses |= {row["id"]: row["response"] for row in rows}
            progress.update(len(rows))
    return responses


def load_generator(settings: Generation, device: str, allow_pickle: bool):
    """The model and its tokenizer, which can pad. ValueError where it cannot."""
    name, trusted = settings["model"], settings["trust_remote_code"]
    model = load_model(
        name, dtype=settings["dtype"], device=device, trust_remote_code=trusted,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    tokenizer = load_tokenizer(name, trust_remote_code=trusted)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {name} has neither a pad nor an EOS token")
    return model, tokenizer


def generate_batches(
    model,
    tokenizer,
    prompts: Sequence[PreferenceExample],
    done: set[str],
    settings: Generation,
    chat: ChatOptions,
    batch_size: int,
) -> Iterator[list[Response]]:
    """Responses to the prompts that are not `done`, batch by batch.

    Batches are formed from all prompts, the longest first, and each has a seed of its own, so that
    a resumed run samples what an uninterrupted one does; a model whose rotary frequencies depend on
    the length (LongRoPE) has one prompt in a batch, so that none depends on its neighbours. Seeds
    follow from all settings: of one seed, like models would give the same responses.
    """
    import torch

    for line in describe_rendering(tokenizer, prompts, chat):
        announce(f"{settings['model']}: {line}")
    ids = tokenize_prompts(tokenizer, prompts, chat)
    check_vocabulary(model, [*ids, [tokenizer.pad_token_id]])
    longest = (context_length(model) or math.inf) - settings["max_new_tokens"]
    set_sampling(model, tokenizer, settings)
    key = hash_config(settings)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batch_size = 1 if length_class(model, 1) else batch_size
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        if all(prompts[i].id in done for i in batch):
            continue
        fitting = [i for i in batch if ids[i] and len(ids[i]) <= longest]
        answers: dict[int, Answer] = {
            i: {"response": None, "finished": False, "n_tokens": 0}
            for i in batch
            if i not in fitting
        }
        if fitting:
            torch.manual_seed(int(key[:12], 16) + first)
            generated = generate(model, tokenizer, [ids[i] for i in fitting])
            for i, new in zip(fitting, generated):
                answers[i] = read_answer(tokenizer, new, settings["eos_token_id"])
        yield [
            {"generation": key, **settings, "id": prompts[i].id, **answer}
            for i, answer in answers.items()
            if prompts[i].id not in done
        ]


def tokenize_prompts(tokenizer, items: Sequence[Asked], chat: ChatOptions) -> list[list[int]]:
    """Token ids that responses continue, as scoring takes prompts: the tokenizer's special tokens
    in front, BOS once, and none behind. Empty where the chat template refuses the dialogue."""
    texts: list[tuple[str, bool]] = []
    for item in items:
        renders = goes_through_template(tokenizer, item, chat)
        try:
            texts.append((render_prompt(tokenizer, item, chat), renders))
        except ValueError:
            texts.append(("", renders))
    fast = exact_offset_tokenizer(tokenizer)
    encodings = {
        renders: encode_texts(fast, [text for text, r in texts if r == renders], not renders)
        for renders in (False, True)
    }
    parts = [
        locate_completion(next(encodings[renders]), len(text), None, tokenizer.bos_token_id)
        for text, renders in texts
    ]
    return [[*head, *prompt] for head, prompt, _ in parts]


def set_sampling(model, tokenizer, settings: Generation) -> None:
    """Have the `settings` alone shape responses: the model's generation_config.json may ask for
    penalties, bans and forced tokens, which are left aside."""
    from transformers import GenerationConfig

    sampled = settings["temperature"] > 0
    how = {"temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": 0}
    model.generation_config = unwrap(model).generation_config = GenerationConfig(
        max_new_tokens=settings["max_new_tokens"],
        eos_token_id=settings["eos_token_id"],
        stop_strings=settings["stop_strings"],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=sampled,
        **(how if sampled else {}),
    )


def generate(model, tokenizer, ids: list[list[int]]) -> list[list[int]]:
    """The ids that continue each of `ids`, with what pads them on the right."""
    import torch

    inputs = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    try:
        with torch.inference_mode():
            output = model.generate(**inputs.to(model.device), tokenizer=tokenizer)
    except RuntimeError as error:  # NaN weights among others
        line = str(error).splitlines()[0]
        raise ValueError(f"{model.name_or_path} cannot generate: {line}") from error
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def read_answer(tokenizer, new: list[int], ends: list[int]) -> Answer:
    """The text of generated ids up to the end of the turn, and whether that end was reached."""
    stops = {*ends, tokenizer.pad_token_id}
    end = next((k for k, token in enumerate(new) if token in stops), len(new))
    text, found, _ = tokenizer.decode(new[:end], skip_special_tokens=True).partition(NEXT_TURN)
    return {"response": text.strip(), "finished": bool(found) or end < len(new), "n_tokens": end}
