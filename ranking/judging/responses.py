"""Responses of a model to prompts, sampled once and kept in NAME.responses.jsonl."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ranking.data.examples import PreferenceData
from ranking.data.preferences import load_preferences
from ranking.plumbing.command_line import announce, progress_bar, until_stopped
from ranking.plumbing.result_files import Record, append_json_lines, hash_config, read_json_lines
from ranking.scoring.models import (
    adapter_base,
    context_length,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve_dtype,
    resolve_model,
)

NEXT_TURN = "\n\nHuman:"  # where a model that continues the dialogue ends its own turn


def load_prompts(args: argparse.Namespace) -> tuple[PreferenceData, list[Record]]:
    """The sample, and its prompts once each with the preferred completion."""
    data = load_preferences(
        args.dataset, sample_size=args.sample_size, seed=args.seed, data_dir=args.data_dir
    )
    dropped = ", ".join(f"{reason}: {n}" for reason, n in data.dropped.items()) or "none"
    prompts: dict[str, Record] = {}
    for example in data.examples:
        best = example.completions[example.ranks.index(min(example.ranks))]
        prompts.setdefault(
            example.prompt_id,
            {"id": example.id, "prompt_id": example.prompt_id, "prompt": example.prompt,
             "chosen": best.strip()},
        )  # fmt: skip
    repeated = len(data.examples) - len(prompts)
    announce(f"{data.name}: {len(prompts)} prompts, dropped: {dropped}; repeated: {repeated}")
    for note in data.notes:
        announce(f"{data.name}: {note}")
    return data, list(prompts.values())


def tokenize_prompts(tokenizer, prompts: list[str], chat_template: bool) -> list[list[int]]:
    """Token ids that responses continue, as scoring takes prompts: the tokenizer's special tokens
    in front, BOS once, and none behind. Empty where the chat template refuses the dialogue."""
    from ranking.scoring.tokenization import (
        chat_prompt,
        encode_texts,
        exact_offset_tokenizer,
        locate_completion,
    )

    texts = list(prompts)
    for k, prompt in enumerate(prompts) if chat_template else ():
        try:
            texts[k] = chat_prompt(tokenizer, prompt)
        except ValueError:
            texts[k] = ""
    encodings = encode_texts(exact_offset_tokenizer(tokenizer), texts, not chat_template)
    parts = [
        locate_completion(encoding, len(text), None, tokenizer.bos_token_id)
        for encoding, text in zip(encodings, texts)
    ]
    return [[*head, *prompt] for head, prompt, _ in parts]


def ends_of_turn(args: argparse.Namespace, name: str) -> list[int]:
    """Ids that end a response: EOS in the model's generation_config.json (chat models have several)
    and of its tokenizer, and what closes a turn in the chat template that is used."""
    from transformers import GenerationConfig

    from ranking.scoring.tokenization import end_of_turn_id

    path = resolve_model(name)
    if (Path(path) / "adapter_config.json").is_file():
        path = adapter_base(path)
    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # there is none
        eos = load_config(path, None, args.trust_remote_code).get_text_config().eos_token_id
    tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    ends = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id}
    if args.chat_template and tokenizer.chat_template is not None:
        closing = end_of_turn_id(tokenizer)
        ends |= {closing} & tokenizer.added_tokens_decoder.keys()
    return sorted(ends - {None})


def generate_batches(
    model,
    tokenizer,
    prompts: list[Record],
    done: set[str],
    seed: int,
    settings: Record,
    batch_size: int,
) -> Iterator[list[Record]]:
    """Responses to the prompts that are not `done`, batch by batch.

    The `settings` alone shape them: the model's generation_config.json may ask for penalties, bans
    and forced tokens, which are left aside.
    Batches are formed from all prompts, the longest first, and each has a seed of its own, so that
    a resumed run samples what an uninterrupted one does; a model whose rotary frequencies depend on
    the length (LongRoPE) has one prompt in a batch, so that none depends on its neighbours. Two
    models must not get the same `seed`: like ones would give the same responses.
    """
    import torch
    from transformers import GenerationConfig

    from ranking.scoring.models import unwrap
    from ranking.scoring.rotary import length_class
    from ranking.scoring.tokenization import check_vocabulary

    texts = [prompt["prompt"] for prompt in prompts]
    ids = tokenize_prompts(tokenizer, texts, settings["chat_template"])
    check_vocabulary(model, [*ids, [tokenizer.pad_token_id]])
    limit = context_length(model)
    longest = None if limit is None else limit - settings["max_new_tokens"]
    keys = ("max_new_tokens", "eos_token_id", "stop_strings")
    sampling = {"temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": 0}
    model.generation_config = unwrap(model).generation_config = GenerationConfig(
        **{key: settings[key] for key in keys},
        **(sampling if settings["temperature"] > 0 else {}),
        do_sample=settings["temperature"] > 0,
        pad_token_id=tokenizer.pad_token_id,
    )
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batch_size = 1 if length_class(model, 1) else batch_size
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        if all(prompts[i]["id"] in done for i in batch):
            continue
        fitting = [i for i in batch if ids[i] and (longest is None or len(ids[i]) <= longest)]
        rows = [
            {"id": prompts[i]["id"], "response": None, "finished": False, "n_tokens": 0}
            for i in batch
            if i not in fitting
        ]
        if fitting:
            inputs = tokenizer.pad(
                {"input_ids": [ids[i] for i in fitting]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            torch.manual_seed(seed + first)
            try:
                with torch.inference_mode():
                    output = model.generate(**inputs, tokenizer=tokenizer)
            except RuntimeError as error:  # NaN weights among others
                line = str(error).splitlines()[0]
                raise ValueError(f"{model.name_or_path} cannot generate: {line}") from error
            width = inputs["input_ids"].shape[1]
            for i, new in zip(fitting, output[:, width:].tolist()):
                response = read_response(tokenizer, new, settings["eos_token_id"])
                rows.append({"id": prompts[i]["id"], **response})
        yield [row for row in rows if row["id"] not in done]


def read_response(tokenizer, new: list[int], ends: list[int]) -> Record:
    """The text of generated ids up to the end of the turn, and whether that end was reached."""
    stops = {*ends, tokenizer.pad_token_id}
    end = next((k for k, token in enumerate(new) if token in stops), len(new))
    text, found, _ = tokenizer.decode(new[:end], skip_special_tokens=True).partition(NEXT_TURN)
    return {"response": text.strip(), "finished": bool(found) or end < len(new), "n_tokens": end}


def read_responses(path: str) -> list[Record]:
    """Rows of a responses file; ValueError if it is something else."""
    rows = read_json_lines(Path(path))
    for number, row in enumerate(rows, start=1):
        if not {"generation", "id", "response"} <= row.keys():
            raise ValueError(f"{path}: row {number}: not a responses file of calculate_win_rate.py")
    return rows


def trust(args: argparse.Namespace) -> dict[str, Any]:
    """What the models of this run are allowed to do."""
    return {"trust_remote_code": args.trust_remote_code, "allow_pickle": args.allow_pickle}


def generation_settings(args: argparse.Namespace, name: str, draw: int = 0) -> Record:
    """What a response depends on, beside its prompt; another `draw` samples other responses."""
    return {
        "model": name,
        "model_fingerprint": model_fingerprint(name),
        "dtype": resolve_dtype(args.dtype, args.device),
        "temperature": args.temperature,
        "top_p": args.top_p if args.temperature > 0 else None,
        "max_new_tokens": args.max_new_tokens,
        "eos_token_id": ends_of_turn(args, name),
        "stop_strings": [NEXT_TURN],
        "chat_template": args.chat_template,
        "seed": args.seed if args.temperature > 0 else None,
        "trust_remote_code": args.trust_remote_code,
        "draw": draw if args.temperature > 0 else None,
    }


def respond(
    args: argparse.Namespace, settings: Record, prompts: list[Record], known: list[Record], file
) -> dict[str, str | None]:
    """Responses of one model by example id, taken from `known` rows or generated and appended.

    A response is None where the prompt and --max-new-tokens exceed the context, or the prompt has
    no token (empty, or refused by the chat template).
    """
    name = settings["model"]
    key = hash_config(settings)
    responses = {row["id"]: row["response"] for row in known if row["generation"] == key}
    wanted = {prompt["id"] for prompt in prompts}
    if wanted - responses.keys():
        model = load_model(name, dtype=args.dtype, device=args.device, **trust(args))
        tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
        if args.chat_template and tokenizer.chat_template is None:
            raise ValueError(f"--chat-template: {name} has none")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise ValueError(f"the tokenizer of {name} has neither a pad nor an EOS token")
        n_before = len(wanted & responses.keys())
        with progress_bar(f"responses of {name}", len(wanted), n_before) as progress:
            seed = int(key[:12], 16)  # of --seed, the model and the other settings
            batches = generate_batches(
                model, tokenizer, prompts, set(responses), seed, settings, args.batch_size
            )
            for rows in until_stopped(
                batches, lambda: f"{progress.n} responses of {name} are saved in {file.name}"
            ):
                append_json_lines(file, ({"generation": key, **settings, **row} for row in rows))
                known += [{"generation": key, **row} for row in rows]
                responses |= {row["id"]: row["response"] for row in rows}
                progress.update(len(rows))
    return {i: response for i, response in responses.items() if i in wanted}


def pair_responses(
    prompts: list[Record],
    policy: str,
    own: dict[str, str | None],
    other: dict[str, str | None],
    data: PreferenceData,
) -> list[Record]:
    """What the judge compares: a row per prompt that both could answer. ValueError if none."""
    pairs = [
        {"model": policy, "id": p["id"], "prompt_id": p["prompt_id"], "dataset": data.name,
         "split": data.split, "prompt": p["prompt"], "policy_response": own[p["id"]],
         "other_response": other[p["id"]]}
        for p in prompts
        if own[p["id"]] is not None and other[p["id"]] is not None
    ]  # fmt: skip
    if not pairs:
        raise ValueError("no prompt has tokens and leaves room for --max-new-tokens in the context")
    return pairs
