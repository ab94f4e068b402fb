r"""Win rate of a model's responses against a reference's, by a judge (Section 5, Fig. 4, 9-12).

    python calculate_win_rate.py --lm-name-or-path DPO_DIR --reference-name-or-path SFT_DIR \
        --judge reward-model:RM_DIR --output-dir results --output-filename win_rate.jsonl

With --checkpoints DIR, the output directory of dpo.py or a directory of such, the same for every
checkpoint, beside its ranking accuracy and ‖θ_t − θ_0‖². Writes DIR/NAME.jsonl (a line per
policy), NAME.examples.jsonl (a line per policy and prompt), NAME.responses.jsonl, NAME.config.json
and, for checkpoints, NAME.png. The same command resumes a killed run.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from calculate_calibration_metrics import add_trust_arguments
from command_line import announce, make_parser, run_script, until_stopped
from data_utils import PreferenceData, fingerprint, joining, load_preferences
from judges import (
    FIRST_ORDER,
    SECOND_ORDER,
    ask_all,
    both_orders,
    combine_orders,
    load_reward_model,
    make_client,
    parse_verdict,
    position_bias,
    reward_ids,
    reward_scores,
)
from model_loading import (
    DTYPES,
    REMOTE_CODE_FLAG,
    adapter_base,
    cache_directory,
    check_model_path,
    choose_device,
    context_length,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve_dtype,
    resolve_model,
)
from ranking_metrics import (
    clustered_bootstrap_interval,
    correlation_test,
    exact_ties,
    ranking_accuracy,
)
from result_files import (
    append_json_lines,
    check_inputs,
    drop_torn_line,
    hash_config,
    output_paths,
    prepare_outputs,
    read_json_lines,
    write_json_lines,
)
from wandb_runs import check_wandb, finishing_wandb, start_wandb

NEXT_TURN = "\n\nHuman:"  # where a model that continues the dialogue ends its own turn
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "statsmodels", "openai")
Record = dict[str, Any]


# ---------------------------------------------------------------------------- win rates
def win_rate(wins: list[float], prompt_ids: list[str], seed: int) -> tuple[float | None, list]:
    """Mean share of the win (ties half) and its 95 % bootstrap interval over prompts.

    None and [None, None] without wins."""
    if not wins:
        return None, [None, None]
    low, high = clustered_bootstrap_interval(wins, [1.0] * len(wins), prompt_ids, seed)
    return float(np.mean(wins)), [None if np.isnan(x) else x for x in (low, high)]


def length_controlled_win_rate(wins: list[float], length_differences: list[int]) -> float | None:
    """Win rate at equal lengths: logistic regression of the win on the standardized difference of
    lengths, squashed by tanh so that extremes do not decide, read off at zero.

    length_differences: policy − other, in characters. None where the regression has no finite
    optimum (no wins, all on one side, or lengths that separate wins from losses).
    """
    import statsmodels.api as sm
    from statsmodels.tools.sm_exceptions import PerfectSeparationError

    if not wins:
        return None
    wins_array = np.array(wins, dtype=float)
    differences = np.array(length_differences, dtype=float)
    if wins_array.min() == wins_array.max():
        return float(wins_array[0]) if wins_array[0] == 0.5 else None
    spread = differences.std()
    if spread == 0.0:
        return float(wins_array.mean()) if not differences.any() else None
    design = np.column_stack([np.ones(len(wins)), np.tanh(differences / spread)])
    try:
        fit = sm.GLM(wins_array, design, family=sm.families.Binomial()).fit()
    except PerfectSeparationError:
        return None
    if not fit.converged or not np.isfinite(fit.bse).all() or np.abs(fit.params).max() > 20:
        return None
    return float(1.0 / (1.0 + np.exp(-fit.params[0])))


def summarize(rows: list[Record], common: Record, seed: int) -> Record:
    """The summary line of one policy from its judged pairs; unclear verdicts are left out."""
    judged = [row for row in rows if row["win"] is not None]
    wins = [row["win"] for row in judged]
    rate, interval = win_rate(wins, [row["prompt_id"] for row in judged], seed)
    own_lengths, other_lengths = (
        [len(row[f"{side}_response"]) for row in rows] for side in ("policy", "other")
    )
    differences = [len(r["policy_response"]) - len(r["other_response"]) for r in judged]
    verdicts = [row["verdicts"] for row in rows if row.get("verdicts")]
    return {
        **common,
        "win_rate": rate,
        "bootstrap_95": interval,
        "length_controlled_win_rate": length_controlled_win_rate(wins, differences),
        "n": len(judged),
        "n_wins": wins.count(1.0),
        "n_ties": wins.count(0.5),
        "n_losses": wins.count(0.0),
        "n_unclear": len(rows) - len(judged),
        "n_empty_responses": sum(
            not row[f"{side}_response"] for row in rows for side in ("policy", "other")
        ),
        "mean_characters_policy": float(np.mean(own_lengths)),
        "mean_characters_other": float(np.mean(other_lengths)),
        **(position_bias(verdicts) if verdicts else {}),
    }


# ---------------------------------------------------------------------------- prompts, responses
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
    from log_likelihood import (
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

    from log_likelihood import end_of_turn_id

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

    from log_likelihood import check_vocabulary, length_class, unwrap

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


def progress_bar(text: str, total: int, n_done: int = 0):
    """With rate and time left; a line every ten seconds where stderr is a file."""
    from tqdm import tqdm

    seconds = 1 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=n_done, desc=text, mininterval=seconds)


# ---------------------------------------------------------------------------- judging
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


def judged_rows(args: argparse.Namespace, pairs: list[Record], judge) -> Iterator[Record]:
    """The pairs with the judge's verdict: `win` is the policy's share, None if unclear.

    Identical responses are a tie without asking.
    """
    differing = []
    for pair in pairs:
        if pair["policy_response"] == pair["other_response"]:
            yield {**pair, "win": 0.5, "identical": True}
        else:
            differing.append(pair)
    if not differing:
        return
    kind, _, judge_name = args.judge.partition(":")
    waiting: dict[int, dict[str, Any]] = {k: {} for k in range(len(differing))}

    def finish(k: int) -> Record:
        return {**differing[k], **verdict_of(kind, waiting.pop(k))}

    if kind == "reward-model":
        model, tokenizer = judge
        asking: dict[tuple, list[tuple[int, str]]] = {}  # a reference's response is scored once
        for k, pair in enumerate(differing):
            for side in ("policy", "other"):
                try:
                    ids = reward_ids(tokenizer, pair["prompt"], pair[f"{side}_response"])
                except ValueError as error:
                    announce(str(error))
                    yield {**pair, "win": None, "rewards": None}
                    break
                asking.setdefault(tuple(ids), []).append((k, side))
        texts = list(asking)
        for index, reward in reward_scores(model, tokenizer, texts):
            for k, side in asking[texts[index]]:
                waiting[k][side] = reward
                if len(waiting[k]) == 2:
                    yield finish(k)
        return
    questions = {
        (k, order): messages
        for k, pair in enumerate(differing)
        for order, messages in both_orders(
            pair["prompt"], pair["policy_response"], pair["other_response"]
        ).items()
    }
    cache = cache_directory() / "judge" / f"{judge_name.replace('/', '--')}.jsonl"
    for (k, order), answer in ask_all(
        judge, judge_name, questions, cache, concurrency=args.judge_concurrency,
        price=args.judge_price, announce=announce,
    ):  # fmt: skip
        waiting[k][order] = answer
        if len(waiting[k]) == 2:
            yield finish(k)


def verdict_of(kind: str, found: dict[str, Any]) -> Record:
    """`win` and what it came from: two rewards, or two answers."""
    if kind == "reward-model":
        policy, other = found["policy"], found["other"]
        if not np.isfinite([policy, other]).all():
            return {"win": None, "rewards": None}
        return {"win": float(np.sign(policy - other) / 2 + 0.5), "rewards": [policy, other]}
    answers = [found[FIRST_ORDER], found[SECOND_ORDER]]
    verdicts = [parse_verdict(answer) for answer in answers]
    return {"win": combine_orders(*verdicts), "verdicts": verdicts, "answers": answers}


# ---------------------------------------------------------------------------- checkpoints
def find_checkpoints(folder: Path) -> list[Path]:
    """checkpoint-* by step, else the model directories in `folder` by their γ and name."""
    models = [
        path
        for path in folder.iterdir()
        if any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    ]
    steps = [path for path in models if re.fullmatch(r"checkpoint-\d+", path.name)]
    if steps:
        return sorted(steps, key=lambda path: int(path.name.split("-")[1]))
    runs = [path for path in models if path.name != "base"]  # what adapters of dpo.py start from
    if not runs:
        raise ValueError(f"--checkpoints {folder}: no checkpoint-* and no model directories")
    return sorted(runs, key=lambda path: (gamma_of(path) or 0.0, path.name))


def gamma_of(folder: Path) -> float | None:
    """γ of a run of dpo.py, from its run_config.json."""
    file = folder / "run_config.json"
    return json.loads(file.read_text())["settings"].get("alpha") if file.is_file() else None


def checkpoint_facts(args: argparse.Namespace, policy: Path, data: PreferenceData) -> Record:
    """Ranking accuracy on the sampled examples, and ‖θ − θ_ref‖² from the reference."""
    import torch

    from log_likelihood import check_fast_path, score_examples, tokenize_examples
    from ranking_dynamics import initial_weights, squared_distance, trained_weights

    def whole_model(name: str):
        """In float32, for half precision would round the differences away; adapters merged."""
        model = load_model(name, dtype="float32", device="cpu", **trust(args))
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        return model.requires_grad_(True)

    initial = initial_weights(whole_model(args.reference_name_or_path))
    tuned = whole_model(str(policy))
    shapes = [{k: tuple(v.shape) for k, v in weights.items()}
              for weights in (initial, dict(trained_weights(tuned)))]  # fmt: skip
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{policy} and {args.reference_name_or_path} have different weights: no distance"
        )
    distance = squared_distance(tuned, initial)
    del initial, tuned
    model = load_model(str(policy), dtype=args.dtype, device=args.device, **trust(args))
    outcomes = tokenize_examples(
        load_tokenizer(str(policy), trust_remote_code=args.trust_remote_code),
        [(example.prompt, example.completions) for example in data.examples],
        separators=[example.separators for example in data.examples],
        ranks=[example.ranks for example in data.examples],
        chat_template=args.chat_template,
        max_length=context_length(model),
    )
    fitting = [(e, o) for e, o in zip(data.examples, outcomes) if not isinstance(o, str)]
    tokenized = [outcome for _, outcome in fitting]
    path = check_fast_path(model, tokenized)
    correct, n_equal = [], 0
    for batch in score_examples(
        model, tokenized, path=path, batch_size=128,
        tokens_per_batch=16384 if torch.cuda.is_available() else 1024,
    ):  # fmt: skip
        for i, logps in batch:
            sums = [float(values.astype(np.float64).sum()) for values in logps]
            correct.append(ranking_accuracy(sums, fitting[i][0].ranks))
            n_equal += exact_ties(sums, fitting[i][0].ranks)
    if n_equal:
        announce(f"{policy}: {n_equal} untied pairs have exactly equal scores, right by Def. 2.3")
    name = policy.name
    return {
        "step": int(name.split("-")[1]) if name.startswith("checkpoint-") else None,
        "gamma": gamma_of(policy),
        "ranking_accuracy": float(np.mean(correct)),
        "n_ranked": len(correct),
        "n_exact_ties": n_equal,
        "squared_distance": distance,
    }


def correlations(rows: list[Record]) -> list[Record]:
    """Spearman's correlation of ranking accuracy and win rate: all, nearer and farther half.

    Halves are by the distance from the reference (the paper's "on-policy" and "off-policy" parts);
    None with fewer than three points or where one of the two never changes. Rows without a win rate
    are left out.
    """
    rated = [row for row in rows if row["win_rate"] is not None]
    ordered = sorted(rated, key=lambda row: row["squared_distance"])
    half = (len(ordered) + 1) // 2
    results = []
    for part, chosen in (("all", ordered), ("near", ordered[:half]), ("far", ordered[half:])):
        accuracy = [row["ranking_accuracy"] for row in chosen]
        wins = [row["win_rate"] for row in chosen]
        value = p_value = None
        if len(chosen) >= 3 and len(set(accuracy)) > 1 and len(set(wins)) > 1:
            value, p_value = correlation_test(accuracy, wins, "spearmanr")
        results.append({"part": part, "n": len(chosen), "spearmanr": value, "p_value": p_value})
    return results


# ---------------------------------------------------------------------------- reporting
def print_table(rows: list[Record]) -> None:
    """Win rate with its interval, length-controlled win rate, ties, lengths, and what checkpoints
    add."""
    from rich.console import Console
    from rich.table import Table

    checkpoints = "ranking_accuracy" in rows[0]
    table = Table(title=f"Win rate against {rows[0]['against']}, % [95 % interval]")
    columns = ["policy", "n", "win rate", "length-controlled", "ties", "unclear", "characters"]
    judged_twice = any("order_disagreement" in row for row in rows)
    columns += ["order disagrees"] * judged_twice
    columns += ["ranking accuracy", "distance²"] * checkpoints
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows:
        low, high = row["bootstrap_95"]
        interval = "" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
        controlled = row["length_controlled_win_rate"]
        cells = [
            Path(row["model"]).name,
            str(row["n"]),
            "–" if row["win_rate"] is None else f"{100 * row['win_rate']:.1f}{interval}",
            "–" if controlled is None else f"{100 * controlled:.1f}",
            str(row["n_ties"]),
            str(row["n_unclear"]),
            f"{row['mean_characters_policy']:.0f} / {row['mean_characters_other']:.0f}",
        ]
        if judged_twice:
            share = row.get("order_disagreement")
            cells.append("–" if share is None else f"{100 * share:.1f}")
        if checkpoints:
            cells += [f"{100 * row['ranking_accuracy']:.1f}", f"{row['squared_distance']:.3g}"]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 132, markup=False).print(table)


def log_to_wandb(run, rows: list[Record], judged: list[Record], picture: Path | None) -> None:
    """Win rates as summary values, the table and the pairs."""
    import wandb

    for row in rows:
        run.summary[f"{Path(row['model']).name}/win_rate"] = row["win_rate"]
    columns = ["model", "n", "win_rate", "length_controlled_win_rate", "n_ties", "n_unclear"]
    names = ["model", "prompt", "policy_response", "other_response", "win"]
    run.log(
        {
            "win_rate": wandb.Table(columns=columns, data=[[r[c] for c in columns] for r in rows]),
            "pairs": wandb.Table(columns=names, data=[[r[c] for c in names] for r in judged]),
        }
    )
    if picture is not None:
        run.log({"figure": wandb.Image(str(picture))})


# ---------------------------------------------------------------------------- command line
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    sides = parser.add_argument_group("sides")
    policy = sides.add_mutually_exclusive_group(required=True)
    policy.add_argument("--lm-name-or-path", help="policy: hub name, directory, GGUF file, adapter")
    policy.add_argument(
        "--checkpoints", metavar="DIR", help="every checkpoint-* of DIR, or every run in it"
    )
    sides.add_argument("--reference-name-or-path", help="the model whose responses it is against")
    sides.add_argument(
        "--against", choices=("reference", "chosen"), default="reference",
        help="the reference's responses, or the dataset's preferred completions",
    )  # fmt: skip
    sides.add_argument(
        "--responses", action="append", metavar="FILE", default=[],
        help="responses file of an earlier run, used where model and settings agree; repeatable",
    )  # fmt: skip
    judge = parser.add_argument_group("judge")
    judge.add_argument(
        "--judge", required=True, metavar="KIND:NAME",
        help="reward-model:NAME_OR_PATH, or openai:MODEL (key from OPENAI_API_KEY)",
    )  # fmt: skip
    judge.add_argument("--judge-base-url", help="of an OpenAI-compatible endpoint")
    judge.add_argument("--judge-concurrency", type=int, default=8, help="calls at the same time")
    judge.add_argument("--judge-retries", type=int, default=5, help="per call, with growing pauses")
    judge.add_argument("--judge-timeout", type=float, default=60.0, help="seconds per call")
    judge.add_argument(
        "--judge-price", type=float, nargs=2, metavar=("IN", "OUT"),
        help="dollars per million tokens asked and answered, for the estimate",
    )  # fmt: skip
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", default="Anthropic/hh-rlhf:train", metavar="NAME[:[CONFIG:]SPLIT]",
        help="whose prompts (default: Anthropic/hh-rlhf:train, as in the paper)",
    )  # fmt: skip
    data.add_argument("--data-dir", help="look for DATA_DIR/<hub name>/ instead of the hub")
    data.add_argument("--sample-size", type=int, default=500, help="examples; -1: all")
    data.add_argument("--seed", type=int, default=0, help="of the sample, generation, bootstrap")
    text = parser.add_argument_group("responses")
    text.add_argument("--temperature", type=float, default=1.0, help="0: greedy")
    text.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling")
    text.add_argument("--max-new-tokens", type=int, default=256, help="tokens of a response")
    text.add_argument(
        "--chat-template", action="store_true", help="format prompts with the chat template"
    )
    compute = parser.add_argument_group("compute")
    compute.add_argument("--batch-size", type=int, default=32, help="prompts per batch")
    compute.add_argument("--dtype", default="auto", choices=DTYPES, help="auto: by device")
    add_trust_arguments(compute)
    compute.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", required=True, help="directory for all result files")
    output.add_argument("--output-filename", required=True, help="name of the summary")
    output.add_argument(
        "--overwrite", action="store_true", help="discard earlier results (responses are kept)"
    )
    output.add_argument("--wandb-project", help="also log to this wandb project")
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError for values no run can honour, before anything is loaded."""
    kind, _, name = args.judge.partition(":")
    if kind not in ("reward-model", "openai") or not name:
        raise ValueError(f"--judge {args.judge}: give reward-model:NAME_OR_PATH or openai:MODEL")
    if kind == "reward-model":
        check_model_path(name)
        if args.judge_base_url:
            raise ValueError("--judge-base-url: a reward model runs here, without an endpoint")
    if args.reference_name_or_path is None and (args.against == "reference" or args.checkpoints):
        raise ValueError(
            "give --reference-name-or-path (without --checkpoints: or --against chosen)"
        )
    for model in (args.lm_name_or_path, args.reference_name_or_path):
        if model is not None:
            check_model_path(model)
    if args.checkpoints and not Path(args.checkpoints).is_dir():
        raise ValueError(f"--checkpoints {args.checkpoints}: no such directory")
    if args.sample_size == 0 or args.sample_size < -1:
        raise ValueError(f"--sample-size {args.sample_size}: give a positive number, or -1 for all")
    args.sample_size = None if args.sample_size == -1 else args.sample_size
    for flag in ("max_new_tokens", "batch_size", "judge_concurrency"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag.replace('_', '-')}: give a positive number")
    if not 0 <= args.temperature < math.inf or not 0 < args.top_p <= 1:
        raise ValueError("--temperature must be finite and ≥ 0, --top-p lies in (0, 1]")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: give 0 or more")
    if args.wandb_project:
        check_wandb(args.wandb_project)


def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    kind, _, judge_name = args.judge.partition(":")
    if args.trust_remote_code:
        announce(
            f"{REMOTE_CODE_FLAG}: Python files that come with policy, reference or judge are run"
        )
    if kind == "openai":
        judge = make_client(args.judge_base_url, args.judge_timeout, args.judge_retries)
    policies = (
        [str(path) for path in find_checkpoints(Path(args.checkpoints))]
        if args.checkpoints
        else [args.lm_name_or_path]
    )
    known = [row for file in args.responses for row in read_responses(file)]
    data, prompts = load_prompts(args)
    paths = output_paths(args.output_dir, args.output_filename)
    responses_file = paths["examples"].with_name(
        paths["examples"].name.replace(".examples.", ".responses.")
    )
    own_settings = {policy: generation_settings(args, policy) for policy in policies}
    against, other_settings = "chosen", None
    if args.against == "reference":  # a model against itself: two draws
        against = args.reference_name_or_path
        other_settings = generation_settings(args, against, draw=int(against in policies))
    check_inputs({**paths, "responses": responses_file}, [args.dataset, *args.responses])
    config = {
        "against": against,
        "judge": args.judge,
        "judge_fingerprint": model_fingerprint(judge_name) if kind == "reward-model" else None,
        "judge_base_url": str(judge.base_url) if kind == "openai" else None,
        "dataset": data.name,
        "split": data.split,
        "examples": fingerprint(data.examples),
        "policies": list(own_settings.values()),
        "other": other_settings,
    }
    if kind == "reward-model":  # in float32: half precision would round differences to ties
        judge = load_reward_model(judge_name, choose_device(args.device), "float32", **trust(args))
    judged = prepare_outputs(
        paths, config, args.overwrite, key=lambda row: (row["model"], row["id"])
    )
    if responses_file.exists():  # also with --overwrite: used where model and settings agree
        drop_torn_line(responses_file)
        known += read_responses(str(responses_file))

    pairs: dict[str, list[Record]] = {}
    with responses_file.open("ab") as file:
        other = {prompt["id"]: prompt["chosen"] for prompt in prompts}
        if other_settings is not None:
            other = respond(args, other_settings, prompts, known, file)
        for policy in policies:
            own = respond(args, own_settings[policy], prompts, known, file)
            pairs[policy] = pair_responses(prompts, policy, own, other, data)
    silent = [
        policy
        for policy, mine in pairs.items()
        if not any(pair["policy_response"] for pair in mine)
    ]
    if silent == policies:
        raise ValueError(f"every response of {', '.join(silent)} is empty: nothing to judge")
    for policy in silent:
        announce(f"every response of {policy} is empty: it gets no win rate")
    done = {(row["model"], row["id"]) for row in judged}
    waiting = [p for mine in pairs.values() for p in mine if (p["model"], p["id"]) not in done]
    unjudged = ({**pair, "win": None} for pair in waiting if pair["model"] in silent)
    asked = [pair for pair in waiting if pair["model"] not in silent]
    with (
        paths["examples"].open("ab") as file,
        progress_bar("judged", len(waiting) + len(done), len(done)) as progress,
    ):
        verdicts = chain(unjudged, judged_rows(args, asked, judge))
        for row in until_stopped(
            verdicts, lambda: f"{progress.n} verdicts are saved in {file.name}"
        ):
            append_json_lines(file, [row])
            judged.append(row)
            progress.update()
    if all(row["win"] is None for row in judged):
        raise ValueError(f"no pair of responses got a clear verdict from {args.judge}")

    rows = []
    for policy in policies:
        common = {
            "model": policy,
            "against": against,
            "judge": args.judge,
            "dataset_name": data.name,
            "dataset_split": data.split,
            "dataset_commit": data.commit,
            "n_unanswered": len(prompts) - len(pairs[policy]),
            "dropped": data.dropped,
            "joined_by": None if args.chat_template else joining(data.examples),
            "seed": args.seed,
            **(checkpoint_facts(args, Path(policy), data) if args.checkpoints else {}),
            "generation": own_settings[policy],
            "versions": {name: version(name) for name in LIBRARIES},
        }
        mine = [row for row in judged if row["model"] == policy]
        rows.append(summarize(mine, common, args.seed))

    picture = None
    if args.checkpoints:
        from plot_results import draw, plot_win_rate

        picture = paths["picture"]
        for found in correlations(rows):
            value = found["spearmanr"]
            text = "undefined" if value is None else f"{value:.2f} (p = {found['p_value']:.2g})"
            print(f"Spearman, accuracy and win rate, {found['part']} ({found['n']}): {text}")
            rows[-1].setdefault("correlations", []).append(found)
    if picture is not None:
        draw(plot_win_rate, rows, picture)
    write_json_lines(paths["summary"], rows)  # last: it marks the run as finished
    print_table(rows)
    print(f"summary   {paths['summary']}\nexamples  {paths['examples']}")
    if picture is not None:
        print(f"picture   {picture}")
    if args.wandb_project:
        run = start_wandb(project=args.wandb_project, config=config)
        with finishing_wandb(run):
            log_to_wandb(run, rows, judged, picture)


if __name__ == "__main__":
    run_script(main, parse_args())
