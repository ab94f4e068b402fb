"""DPOGammaTrainer against TRL's DPOTrainer, float64 autograd by hand, and its own other paths."""

import copy
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GPT, LONGROPE, SMALL, tokenize
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_gamma_trainer import (
    DPOGammaConfig,
    DPOGammaTrainer,
    dpo_gamma_loss,
    dpo_gamma_norm_loss,
)
from ranking.data.preferences import load_preferences
from ranking.reports.dynamics import read_dynamics
from ranking.scoring.log_likelihood import ScoringPath, compute_token_logps_plain
from ranking.training.pairs import preference_pairs

TINY = {**SMALL, "max_position_embeddings": 2048}


def tiny_model(seed=0, model_type="llama", config=TINY):
    """A small random model whose log-ratios are neither zero nor saturate the loss."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.float()


@pytest.fixture(scope="module")
def texts():
    """Short pairs of the sample data with the prompts they share."""
    pairs = preference_pairs(load_preferences("sample").examples)
    keys = ("prompt", "chosen", "rejected")
    return [{"prompt": p["prompt"], **{k: p[k][:60] for k in keys[1:]}} for p in pairs][:16]


def arguments(folder, config=DPOGammaConfig, **more):
    defaults = {
        "loss_type": "alpha_scaling", "beta": 0.05, "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4, "max_steps": 4, "logging_steps": 1, "optim": "sgd",
        "learning_rate": 0.5, "lr_scheduler_type": "constant", "report_to": "none", "seed": 3,
        "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True,
        "gradient_checkpointing": False, "max_grad_norm": 1e9,
    }  # fmt: skip
    return config(output_dir=str(folder), **{**defaults, **more})


def trainer(folder, tokenizer, rows, kind=DPOGammaTrainer, model=None, **more):
    extra = {k: more.pop(k) for k in list(more) if k in ("peft_config", "dynamics_dataset", "eval_dataset", "eval_sets", "dynamics_file", "ref_model", "data_collator")}  # fmt: skip
    model = tiny_model() if model is None else model
    if "ref_model" not in extra and "peft_config" not in extra:
        extra["ref_model"] = tiny_model()
    config = DPOGammaConfig if kind is DPOGammaTrainer else DPOConfig
    if kind is DPOTrainer:
        more.pop("tokens_per_batch", None)
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return kind(
        model=model,
        args=arguments(folder, config, **more),
        train_dataset=dataset,
        processing_class=tokenizer,
        **extra,
    )


def losses_and_weights(run):
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    weights = torch.cat([p.detach().reshape(-1) for p in run.model.parameters() if p.requires_grad])
    return np.array(losses), weights


def cached_rows(tokenizer, texts, model, shift=0.0) -> Dataset:
    """The columns dpo.py makes; reference log-likelihoods by plain scoring, `shift`ed."""
    tokenized = tokenize(tokenizer, [(t["prompt"], (t["chosen"], t["rejected"])) for t in texts])  # fmt: skip
    rows = []
    for k, (chosen, rejected) in enumerate(tokenized):
        with torch.no_grad():
            sums = [
                compute_token_logps_plain(model, [c])[0].sum().item() for c in (chosen, rejected)
            ]
        rows.append(
            {"pair": k, "id": f"pair-{k}", "chosen_ids": chosen.ids, "chosen_start": chosen.start,
             "rejected_ids": rejected.ids, "rejected_start": rejected.start,
             "ref_chosen_logps": sums[0] + shift * k, "ref_rejected_logps": sums[1]}
        )  # fmt: skip
    return Dataset.from_list(rows)


# ---------------------------------------------------------------------------- against TRL
@pytest.mark.parametrize("optimizer", [("sgd", 0.5), ("rmsprop", 1e-3)])
def test_gamma_one_equals_trl_sigmoid(tmp_path, tokenizer, texts, optimizer):
    """Same raw texts through both trainers, four steps with accumulation."""
    more = dict(zip(("optim", "learning_rate"), optimizer), gradient_accumulation_steps=2)
    peer = trainer(tmp_path, tokenizer, texts, DPOTrainer, loss_type="sigmoid", **more)
    ours = trainer(tmp_path, tokenizer, texts, alpha=1.0, **more)
    assert ours.path.is_packed
    peer_losses, peer_weights = losses_and_weights(peer)
    our_losses, our_weights = losses_and_weights(ours)
    assert len(our_losses) == 4 and peer_losses.std() > 1e-4
    np.testing.assert_allclose(our_losses, peer_losses, atol=1e-5)
    if optimizer[0] == "sgd":  # RMSprop turns rounding of vanishing gradients into whole steps
        torch.testing.assert_close(our_weights, peer_weights, atol=2e-5, rtol=0)
    kept = {"rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"}
    for mine, theirs in zip(ours.state.log_history[:-1], peer.state.log_history[:-1]):
        for name in kept:
            assert mine[name] == pytest.approx(theirs[name], abs=1e-3, rel=1e-5)


TRL_LOSSES = [
    ["sigmoid"], ["hinge"], ["ipo"], ["nca_pair"], ["robust"], ["bco_pair"], ["sppo_hard"], ["aot"],
    ["aot_unpaired"], ["apo_zero"], ["apo_down"], ["discopop"], ["sft"], ["sigmoid_norm"],
    ["sigmoid", "sft"],
]  # fmt: skip


AT_GAMMA_ONE = {  # ours → TRL's
    "alpha_scaling": "sigmoid", "alpha_scaling_norm": "sigmoid_norm", "alpha_scaling_ipo": "ipo",
}  # fmt: skip


def test_every_trl_loss_on_shared_rows(tmp_path, tokenizer, texts):
    """Loss and gradient of each of TRL's losses, and of ours that are one of them at γ = 1, equal
    TRL's own on the same token ids."""
    peer = trainer(tmp_path, tokenizer, texts, DPOTrainer, model=tiny_model(1), loss_type="sigmoid")
    ours = trainer(tmp_path, tokenizer, texts, model=tiny_model(1), loss_type="sigmoid")
    batch = ours.data_collator([ours.train_dataset[i] for i in (0, 1, 2, 5)])
    results = {}
    for names in [*TRL_LOSSES, *([name] for name in AT_GAMMA_ONE)]:
        for run in (peer, ours):
            run.own_terms = [(name, 1.0) for name in names if name in AT_GAMMA_ONE]
            run.loss_types = [AT_GAMMA_ONE.get(name, name) for name in names]
            if run is ours and run.own_terms:
                run.loss_types = []
            run.loss_weights = [1.0] * len(run.loss_types)
            run.model.zero_grad()
            loss = run.compute_loss(
                run.model, {k: v for k, v in batch.items() if k != "pair" or run is ours}
            )
            loss.backward()
            gradient = torch.cat([p.grad.reshape(-1) for p in run.model.parameters()])
            results[run is ours] = loss.item(), gradient
        assert results[True][0] == pytest.approx(results[False][0], rel=1e-5, abs=1e-5), names
        scale = results[False][1].abs().max()
        assert scale > 0
        torch.testing.assert_close(
            results[True][1], results[False][1], atol=1e-5 * scale, rtol=1e-4
        )


BY_HAND = [
    *(("alpha_scaling", {"alpha": gamma}) for gamma in (0.0, 0.5, 1.0, 2.0)),
    ("alpha_scaling_norm", {"alpha": 0.5, "target_margin": 0.3}),
    ("alpha_scaling_dpop", {"alpha": 0.5, "dpop_lambda": 0.2}),
    ("alpha_scaling_ipo", {"alpha": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), BY_HAND)
def test_loss_and_gradient_by_hand_in_float64(tmp_path, tokenizer, texts, name, options):
    beta, gamma = 0.05, options["alpha"]
    ours = trainer(tmp_path, tokenizer, texts, model=tiny_model(1), beta=beta, loss_type=name, **options)  # fmt: skip
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    ours.model.zero_grad()
    loss = ours.compute_loss(ours.model, batch)
    loss.backward()

    policy, reference = tiny_model(1).double(), tiny_model(0).double()
    per_token = name in ("alpha_scaling_norm", "alpha_scaling_ipo")

    def logp(model, k):
        n = int(batch["attention_mask"][k].sum())
        ids = batch["input_ids"][k, :n]
        scored = batch["completion_mask"][k, 1:n].bool()
        logps = model(ids[None]).logits[0, :-1].log_softmax(-1)
        logps = logps.gather(1, ids[1:, None])[scored]
        return logps.mean() if per_token else logps.sum()

    terms, fell = [], 0
    for k in range(4):
        chosen, ref_chosen = logp(policy, k), logp(reference, k).detach()
        ref_ratio = ref_chosen - logp(reference, k + 4).detach()
        difference = chosen - logp(policy, k + 4) - gamma * ref_ratio
        if name == "alpha_scaling_ipo":
            terms.append((difference - 10) ** 2)  # 1/(2β)
            continue
        if name == "alpha_scaling_dpop" and chosen < ref_chosen:
            difference = difference - 0.2 * (ref_chosen - chosen)
            fell += 1
        margin = beta * difference - options.get("target_margin", 0.0)
        terms.append(torch.log1p(torch.exp(-margin)))
    assert name != "alpha_scaling_dpop" or 0 < fell < 4
    expected = torch.stack(terms).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5, rel=1e-6)
    for (parameter, mine), theirs in zip(ours.model.named_parameters(), policy.parameters()):
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(
            mine.grad.double(), theirs.grad, atol=1e-4 * scale + 1e-9, rtol=0, msg=parameter
        )


def test_simpo_is_the_normalized_loss_without_reference():
    """TRL's SimPO on the same log-likelihoods per token; its γ is the target margin."""
    logps = 3 * torch.randn((4, 50), generator=torch.Generator().manual_seed(0)).double()
    chosen, rejected, ref_chosen, ref_rejected = logps
    simpo = SimpleNamespace(alpha=0.0, accelerator=SimpleNamespace(device="cpu"), beta=2.0,
                            loss_type="simpo", simpo_gamma=1.1, label_smoothing=0.0)  # fmt: skip
    expected, *_ = CPOTrainer.cpo_loss(simpo, chosen, rejected)
    ratios = chosen - rejected, ref_chosen - ref_rejected
    torch.testing.assert_close(dpo_gamma_norm_loss(*ratios, 2.0, 0.0, 1.1), expected)


# ---------------------------------------------------------------------------- data as TRL takes it
SHARED_METRICS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins",
                  "rewards/accuracies", "logps/chosen", "logps/rejected")  # fmt: skip


def test_text_datasets_are_evaluated_as_by_trl(tmp_path, tokenizer, texts):
    """evaluate() and predict() of text, whole, streamed, named; before and after training."""
    runs = [
        trainer(tmp_path, tokenizer, texts[:8], kind, loss_type=loss, max_steps=2, ref_model=tiny_model(2),
                eval_dataset={"a": Dataset.from_list(texts[4:8])})
        for kind, loss in ((DPOTrainer, "sigmoid"), (DPOGammaTrainer, "alpha_scaling"))
    ]  # fmt: skip
    given = Dataset.from_list(texts[8:])
    for _ in range(2):
        expected, found = (run.evaluate(given) for run in runs)
        both = {"b": given, "c": given.select(range(4))}
        expected_both, found_both = (run.evaluate(both) for run in runs)
        expected_own, found_own = (run.evaluate() for run in runs)
        prepared = runs[0]._prepare_dataset(given, tokenizer, runs[0].args, "eval")
        theirs, ours = runs[0].predict(prepared), runs[1].predict(given)
        runs[0]._metrics["eval"].clear()  # which TRL adds to its next evaluation
        np.testing.assert_allclose(ours.predictions, theirs.predictions, atol=1e-3)
        assert np.array_equal(ours.label_ids, theirs.label_ids)
        streamed = runs[1].evaluate(given.to_iterable_dataset())
        for name in SHARED_METRICS:
            want = pytest.approx(expected[f"eval_{name}"], abs=1e-4)
            assert found[f"eval_{name}"] == streamed[f"eval_{name}"] == want
            assert found_both[f"eval_b_{name}"] == ours.metrics[f"test_{name}"] == want
        for key, wanted in (("b", expected_both), ("c", expected_both), ("a", expected_own)):
            value = {**found_both, **found_own}[f"eval_{key}_loss"]
            assert value == pytest.approx(wanted[f"eval_{key}_loss"], abs=1e-4)
        for run in runs:
            run.train()
    assert abs(expected["eval_loss"] - math.log(2)) > 1e-3


def test_tokenizer_from_the_model_and_streamed_training(tmp_path, tokenizer, texts):
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    found = []
    for kind, name in ((DPOTrainer, "sigmoid"), (DPOGammaTrainer, "alpha_scaling")):
        for streamed in (False, True):
            dataset = Dataset.from_list(texts)
            run = kind(
                str(tmp_path / "model"),
                args=arguments(tmp_path, DPOGammaConfig if kind is DPOGammaTrainer else DPOConfig,
                               loss_type=name, max_steps=2),
                train_dataset=dataset.to_iterable_dataset() if streamed else dataset,
                eval_dataset=dataset.to_iterable_dataset() if streamed else dataset,
            )  # fmt: skip
            losses, _ = losses_and_weights(run)
            found.append([*losses, run.evaluate()["eval_loss"]] if streamed else losses)
    assert run.path.is_packed
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
    np.testing.assert_allclose(found[3], found[1], atol=1e-5)


TEMPLATE = """{% if tools %}[{{ tools[0].function.name }}]{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
LORA = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM"}  # fmt: skip


def messages(rows: list[dict], together=False, **more) -> list[dict]:
    """Pairs as dialogues of two turns, `together` without a prompt of their own."""
    turns = [{"prompt": [{"role": "user", "content": row["prompt"]}],
              **{side: [{"role": "assistant", "content": row[side]}]
                 for side in ("chosen", "rejected")}} for row in rows]  # fmt: skip
    if together:
        return [{k: t["prompt"] + t[k] for k in ("chosen", "rejected")} for t in turns]
    return [{**t, **more} for t in turns]


def trained_adapter():
    """An adapter with changes of its own, as one that is trained on."""
    torch.manual_seed(1)
    model = get_peft_model(tiny_model(), LoraConfig(**LORA))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.05)
    return model


WAYS = {  # what DPOTrainer's documentation gives it → the pairs, and what is given beside them
    "dialogues": lambda rows: (messages(rows), {}),
    "whole texts": lambda rows: ([{k: r["prompt"] + r[k] for k in ("chosen", "rejected")} for r in rows], {}),
    "whole dialogues": lambda rows: (messages(rows, together=True), {}),
    "tools": lambda rows: (messages(rows, tools=[TOOL]), {}),
    "columns of the user's, any length": lambda rows: (
        [{**r, "pair": "p", "length": 1, "score": 0.5} for r in rows], {"max_length": None}),
    "a trained adapter": lambda rows: (rows, {"model": trained_adapter(), "ref_model": None}),
    "a loss of the batch": lambda rows: (rows, {"loss_type": ["aot", "sft"], "gradient_accumulation_steps": 2,
                                                "per_device_train_batch_size": 2, "tokens_per_batch": 300}),
    "a collator": lambda rows: (rows, {"data_collator": DataCollatorForPreference(1, 400, pad_to_multiple_of=64)}),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_call_it_are_those_of_trl(tmp_path, tokenizer, texts, way):
    """The losses and rewards of two steps are those of DPOTrainer."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    found = []
    for kind, loss in ((DPOTrainer, "sigmoid"), (DPOGammaTrainer, "alpha_scaling")):
        rows, more = WAYS[way](texts[:8])
        more = {"model": tiny_model(1), "max_steps": 2, "loss_type": loss, **more}
        run = trainer(tmp_path, tokenizer, rows, kind, **more)
        run.train()
        found.append(run.state.log_history[:-1])
    assert run.path.is_packed and abs(found[0][1]["loss"] - math.log(2)) > 3e-4
    for theirs, mine in zip(*found, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "num_tokens"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-4), name


def test_a_name_and_data_are_enough(tmp_path, tokenizer, texts, monkeypatch):
    """Without arguments it is DPO with TRL's defaults, on a machine without GPU too."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    tokenizer.save_pretrained("model")
    run = DPOGammaTrainer("model", train_dataset=Dataset.from_list(texts))
    assert (run.args.output_dir, run.trained, run.gamma) == ("model-DPO", "sigmoid", 1.0)
    batch = run.data_collator([run.train_dataset[k] for k in range(4)])
    batch = {name: value.to(run.args.device) for name, value in batch.items()}
    loss = run.compute_loss(run.model, batch).item()
    assert loss == pytest.approx(math.log(2), abs=1e-5) and run.args.learning_rate == 1e-6


def test_the_reference_is_the_model_as_it_is_given(tmp_path, tokenizer, texts):
    """Not what its directory holds, as TRL has it, and not what an earlier trainer's forward calls;
    by name it is that directory's."""
    tiny_model().save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trainer(tmp_path, tokenizer, texts, DPOTrainer, model=model, loss_type="sigmoid").train()
    more = {"eval_dataset": Dataset.from_list(texts)}
    run = trainer(tmp_path, tokenizer, texts, model=model, ref_model=None, **more)
    input_ids = torch.arange(2, 20)[None]
    before = run.ref_model(input_ids).logits
    assert run.evaluate()["eval_rewards/ties"] == 1.0
    run.train()
    assert run.evaluate()["eval_rewards/ties"] < 1.0
    assert torch.equal(run.ref_model(input_ids).logits, before)
    assert not any(p.requires_grad or p.grad is not None for p in run.ref_model.parameters())
    named = trainer(tmp_path, tokenizer, texts, model=tiny_model(), ref_model=str(tmp_path / "model"), **more)  # fmt: skip
    assert named.evaluate()["eval_rewards/ties"] == 1.0


def test_the_distance_of_a_trained_adapter_is_from_where_it_started(tmp_path, tokenizer, texts):
    run = trainer(tmp_path, tokenizer, texts, model=trained_adapter(), ref_model=None,
                  eval_dataset=Dataset.from_list(texts[:4]), max_steps=2)  # fmt: skip
    assert run.evaluate()["eval_distance/squared"] == 0.0
    run.train()
    merged, start = (copy.deepcopy(m).merge_and_unload() for m in (run.model, trained_adapter()))
    pairs = zip(merged.parameters(), start.parameters())
    exact = sum(((a.double() - b.double()) ** 2).sum().item() for a, b in pairs)
    assert (
        run.evaluate()["eval_distance/squared"] == pytest.approx(exact, rel=1e-3) and exact > 1e-7
    )


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [({"ref_chosen_logps": None}, {}, "are not two finite numbers"),
     ({}, {"max_length": 100}, "since its text is cut: raise max_length"),
     ({"truncated": True}, {}, "since its text is cut"),
     ({"n_chosen": 3, "n_rejected": 3}, {}, r"are of 3 and 3 tokens, but \d+ and \d+ are trained"),
     ({"images": []}, {}, "rows with images are not supported: use TRL's DPOTrainer"),
     ({}, {"data_collator": lambda rows: {"attention_mask": torch.tensor([[0, 1]])}}, "pads on the left")],
)  # fmt: skip
def test_what_a_library_user_gives_wrongly_is_one_line(tmp_path, tokenizer, texts, changes, more, message):  # fmt: skip
    rows = [{**t, "ref_chosen_logps": -9.0, "ref_rejected_logps": -8.0, **changes} for t in texts]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, tokenizer, rows, ref_model=None, precompute_ref_log_probs=True, **more)


def test_log_likelihoods_that_text_brings_along_are_the_reference(tmp_path, tokenizer, texts):
    """With precompute_ref_log_probs; without it the reference model is asked, as TRL does."""
    rows = [{**t, "ref_chosen_logps": -9.0 - k, "ref_rejected_logps": -8.0, "reference_dtype": "bfloat16"}
            for k, t in enumerate(texts)]  # fmt: skip
    data = Dataset.from_list(rows)
    for given in (data, data.to_iterable_dataset()):
        run = trainer(tmp_path, tokenizer, given, ref_model=None, eval_dataset=given,
                      precompute_ref_log_probs=True)  # fmt: skip
        file = run.dynamics_file = tmp_path / f"{type(given).__name__}.jsonl"
        run.evaluate()
        assert [row["ref_chosen"] for row in read_dynamics(file)] == [-9.0 - k for k in range(16)]
    assert run.reference_rounding == 2.0**-7
    asked = trainer(tmp_path, tokenizer, data, eval_dataset=data)
    assert asked.evaluate()["eval_rewards/ties"] == 1.0


def test_dynamics_of_text_columns(tmp_path, tokenizer, texts):
    """The values of the same pairs as token ids; pairs keep their `id`, in any order."""
    named = [{**t, "id": f"pair-{k}"} for k, t in enumerate(texts)]
    eos = [{**t, "chosen": t["chosen"] + "</s>", "rejected": t["rejected"] + "</s>"} for t in texts]
    cached = cached_rows(tokenizer, eos, tiny_model())
    recorded = []
    for k, (rows, some) in enumerate([(Dataset.from_list(named), Dataset.from_list(named[3:9:2])),
                                      (cached, cached.select(range(3, 9, 2)))]):  # fmt: skip
        run = trainer(tmp_path, tokenizer, rows, model=tiny_model(1), eval_dataset=rows,
                      dynamics_dataset=some, dynamics_file=tmp_path / f"{k}.jsonl")  # fmt: skip
        run.evaluate()
        run.evaluate(rows.select(range(4)))  # another dataset: not what is followed
        recorded.append(read_dynamics(tmp_path / f"{k}.jsonl"))
    assert len(recorded[0]) == 16 + 3
    for mine, wanted in zip(*recorded, strict=True):
        assert (mine["id"], mine["part"]) == (wanted["id"], wanted["part"])
        for name in ("chosen", "rejected", "ref_chosen", "ref_rejected"):
            assert mine[name] == pytest.approx(wanted[name], abs=1e-3)


def test_a_reference_that_is_gone_is_refused(tmp_path, tokenizer, texts):
    run = trainer(tmp_path, tokenizer, texts, ref_model=None, precompute_ref_log_probs=True, max_steps=1)  # fmt: skip
    given = Dataset.from_list(texts[:4])
    assert run.evaluate(given)["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    run.train()
    with pytest.raises(ValueError, match="the reference of this dataset can no longer be computed"):
        run.evaluate(given)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_long_pairs_are_cut_as_by_trl(tmp_path, tokenizer, texts, mode):
    """A prompt longer than max_length, completions longer than it, and one that is all of it."""
    long = [
        {"prompt": "Why? " * 60, "chosen": " Because.", "rejected": " No idea."},
        {"prompt": "Why?", "chosen": " Because it is so." * 20, "rejected": " No."},
        {"prompt": "Why? " * 5, "chosen": " Because it is so." * 20, "rejected": " No" * 80},
    ]  # fmt: skip
    more = {"max_length": 100, "truncation_mode": mode, "per_device_train_batch_size": 19}
    peer = trainer(tmp_path, tokenizer, texts + long, DPOTrainer, model=tiny_model(1), loss_type="sigmoid", **more)  # fmt: skip
    ours = trainer(tmp_path, tokenizer, texts + long, model=tiny_model(1), **more)
    assert ours.path.is_packed
    n_pairs = len(peer.train_dataset)
    assert len(ours.train_dataset) == n_pairs and 10 < n_pairs + (mode == "keep_start") <= 19
    batches = [run.data_collator(list(run.train_dataset)) for run in (peer, ours)]
    assert batches[1]["input_ids"].shape[1] == 100
    assert torch.equal(batches[1]["attention_mask"], batches[0]["attention_mask"])
    assert torch.equal(
        batches[1]["completion_mask"][:, 1:], batches[0]["completion_mask"][:, 1:]
    )  # the first position is predicted by nothing
    losses = [run.compute_loss(run.model, b).item() for run, b in zip((peer, ours), batches)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert abs(losses[0] - math.log(2)) > 5e-3


def test_what_cannot_be_trained_on_is_one_line(tmp_path, tokenizer, texts):
    with pytest.raises(ValueError, match="train dataset: max_length=2 leaves no pair a token"):
        trainer(tmp_path, tokenizer, texts, max_length=2)
    small = tiny_model(model_type="gpt2", config={**GPT, "n_positions": 16})
    with pytest.raises(
        ValueError, match="a pair has [0-9]+ tokens, the model 16: lower max_length"
    ):
        trainer(tmp_path, tokenizer, texts, model=small)


# ---------------------------------------------------------------------------- γ
def test_gamma_zero_ignores_the_reference(tmp_path, tokenizer, texts):
    runs = {}
    for shift in (0.0, 7.0):
        rows = cached_rows(tokenizer, texts, tiny_model(), shift)
        for gamma in (0.0, 0.5):
            run = trainer(tmp_path, tokenizer, rows, ref_model=None, precompute_ref_log_probs=True,
                          alpha=gamma)  # fmt: skip
            runs[gamma, shift] = losses_and_weights(run)
    assert np.array_equal(runs[0.0, 0.0][0], runs[0.0, 7.0][0])
    assert torch.equal(runs[0.0, 0.0][1], runs[0.0, 7.0][1])
    assert abs(runs[0.5, 0.0][0] - runs[0.5, 7.0][0]).max() > 1e-3


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_initial_loss(tmp_path, tokenizer, texts, gamma, bf16):
    """Before the first step the loss is the mean of −log σ(β(γ−1)c), c = log π_ref(y_l)/π_ref(y_w)."""
    run = trainer(tmp_path, tokenizer, texts, alpha=gamma, bf16=bf16, eval_dataset=Dataset.from_list(texts), dynamics_file=tmp_path / "d.jsonl")  # fmt: skip
    metrics = run.evaluate()
    rows = cached_rows(tokenizer, [{**t, "chosen": t["chosen"] + "</s>", "rejected": t["rejected"] + "</s>"} for t in texts], tiny_model())  # fmt: skip
    c = np.array(rows["ref_rejected_logps"]) - np.array(rows["ref_chosen_logps"])
    expected = np.log1p(np.exp(-0.05 * (gamma - 1) * c)).mean()
    assert metrics["eval_loss"] == pytest.approx(expected, abs=5e-3 if bf16 else 1e-5)
    margins = [row["reward_margin"] for row in read_dynamics(tmp_path / "d.jsonl")]
    assert np.abs(margins).max() < (
        0.02 if bf16 else 1e-5
    )  # each pair's: policy and reference agree
    if gamma == 1.0:
        assert metrics["eval_loss"] == pytest.approx(math.log(2), abs=1e-3 if bf16 else 1e-5)
    assert metrics["eval_rewards/ties"] == 1.0 and metrics["eval_rewards/accuracies"] == 0.0


def test_eight_bits_round_as_float16(tmp_path, tokenizer, texts):
    """Policy or reference: bitsandbytes multiplies them in float16, whatever the other weights."""
    rows = cached_rows(tokenizer, texts[:4], tiny_model())
    more = {"ref_model": None, "precompute_ref_log_probs": True}
    run = trainer(tmp_path, tokenizer, rows, **more)
    assert run.rounding() == 2.0**-23
    run.model.is_loaded_in_8bit = True  # as its loading by bitsandbytes notes
    assert run.rounding() == 2.0**-10
    given = rows.add_column("reference_dtype", ["float32, 8bit"] * 4)
    assert trainer(tmp_path, tokenizer, given, **more).rounding() == 2.0**-10


@pytest.mark.parametrize("dtype", ["bfloat16", "bfloat16, nf4", "float32", None])
def test_a_reference_of_half_precision_is_equal_within_its_own_rounding(
    tmp_path, tokenizer, texts, dtype
):
    """An untouched policy in float32, and its own log-likelihoods, off by what bfloat16 makes."""
    rows = cached_rows(tokenizer, texts, tiny_model())
    off = np.random.default_rng(0).normal(0, 2.0**-7, (2, len(rows)))
    for column, noise in zip(("ref_chosen_logps", "ref_rejected_logps"), off):
        exact = np.array(rows[column])
        rows = rows.remove_columns(column).add_column(column, exact + noise * abs(exact) ** 0.5)
    rows = rows.add_column("reference_dtype", [None, dtype] * (len(rows) // 2))
    run = trainer(tmp_path, tokenizer, rows, ref_model=None, precompute_ref_log_probs=True,
                  eval_dataset=rows, dynamics_file=tmp_path / "d.jsonl")  # fmt: skip
    metrics, is_half = run.evaluate(), "bfloat16" in (dtype or "")
    assert (metrics["eval_rewards/ties"] == 1.0) == is_half
    assert (metrics["eval_displacement/chosen_fell"] == 0.0) == is_half
    roundings = {row["rounding"] for row in read_dynamics(tmp_path / "d.jsonl")}
    assert roundings == {2.0**-7 if is_half else 2.0**-23}


def test_loss_where_the_reference_has_no_preference():
    """Proposition 2.6: with π_ref(y_w) = π_ref(y_l), L ≤ ln 2 iff the pair is ranked correctly."""
    ratios = torch.tensor([-80.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 80.0], dtype=torch.float64)
    for beta in (0.01, 0.1, 1.0, 10.0):
        losses = dpo_gamma_loss(ratios, torch.zeros_like(ratios), beta, 1.0)
        assert ((losses <= math.log(2)) == (ratios >= 0)).all()


def test_ipo_analogue(tmp_path, tokenizer, texts):
    """App. A.5: below its target, an IPO pair is ranked correctly iff L ≤ (c − 1/(2τ))², with TRL's loss."""
    run = trainer(tmp_path, tokenizer, texts, model=tiny_model(1), loss_type="ipo", beta=0.001)
    n_correct = 0
    for k in range(16):
        row = run.train_dataset[k]  # one length for both: TRL's IPO divides by it
        n = min(len(row["chosen_ids"]), len(row["rejected_ids"]))
        row["chosen_ids"], row["rejected_ids"] = row["chosen_ids"][:n], row["rejected_ids"][:n]
        batch = run.data_collator([row])
        length = n - row["chosen_start"]
        with torch.no_grad():
            loss = run.compute_loss(run.model, batch).item()
            sums = run.token_outputs(run.model, batch).log_probs.double().sum(1)
            reference = run.token_outputs(run.ref_model, batch).log_probs.double().sum(1)
        c = (reference[1] - reference[0]).item() / length
        assert c <= 1 / (2 * 0.001)
        correct = bool(sums[0] >= sums[1])
        n_correct += correct
        assert correct == (loss <= (c - 1 / (2 * 0.001)) ** 2)
    assert 0 < n_correct < 16


# ---------------------------------------------------------------------------- all the same losses
def test_other_ways_to_the_same_losses(tmp_path, tokenizer, texts):
    """Checkpointing, a cached reference, TRL's forward pass and accumulation change nothing."""
    eos = [{**t, "chosen": t["chosen"] + "</s>", "rejected": t["rejected"] + "</s>"} for t in texts]
    cached = cached_rows(tokenizer, eos, tiny_model())
    want, weights = losses_and_weights(trainer(tmp_path, tokenizer, texts, alpha=0.5))
    plain = trainer(tmp_path, tokenizer, texts, alpha=0.5)
    plain.path = ScoringPath("plain", "asked for by the test")
    others = {
        "checkpointing": trainer(tmp_path, tokenizer, texts, alpha=0.5, gradient_checkpointing=True),
        "cached": trainer(tmp_path, tokenizer, cached, alpha=0.5, ref_model=None,
                          precompute_ref_log_probs=True),
        "precomputed by TRL": trainer(tmp_path, tokenizer, texts, alpha=0.5,
                                      precompute_ref_log_probs=True),
        "plain": plain,
        "accumulation": trainer(tmp_path, tokenizer, texts, alpha=0.5,
                                per_device_train_batch_size=2, gradient_accumulation_steps=2),
    }  # fmt: skip
    for name, run in others.items():
        losses, other_weights = losses_and_weights(run)
        np.testing.assert_allclose(losses, want, atol=1e-5, err_msg=name)
        torch.testing.assert_close(other_weights, weights, atol=3e-5, rtol=0, msg=name)


def test_lora_reference_and_distance(tmp_path, tokenizer, texts):
    """The adapter off is the reference; ‖θ − θ_0‖² is that of the merged weights."""
    lora = LoraConfig(**LORA)

    def make(kind, **more):
        torch.manual_seed(0)
        return trainer(tmp_path, tokenizer, texts, kind, peft_config=lora, **more)

    peer = make(DPOTrainer, loss_type="sigmoid", learning_rate=0.5)
    ours = make(DPOGammaTrainer, learning_rate=0.5, eval_dataset=Dataset.from_list(texts))
    assert ours.path.is_packed
    assert ours.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    want, _ = losses_and_weights(peer)
    losses, _ = losses_and_weights(ours)
    np.testing.assert_allclose(losses, want, atol=1e-5)
    assert abs(losses[-1] - math.log(2)) > 1e-3

    logged = ours.evaluate()["eval_distance/squared"]
    merged = copy.deepcopy(ours.model).merge_and_unload()
    start = dict(tiny_model().named_parameters())
    exact = sum(
        ((p.double() - start[name].double()) ** 2).sum().item()
        for name, p in merged.named_parameters()
    )
    assert logged == pytest.approx(exact, rel=1e-4) and logged > 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_stays_the_users_own(tmp_path, tokenizer, texts, checkpointing):
    """Forward pass, generation and TRL's own trainers, after construction and after training."""
    model, untouched = tiny_model(1), tiny_model(1)
    input_ids = torch.arange(2, 20)[None]
    more = {"gradient_checkpointing": checkpointing, "max_steps": 2}
    run = trainer(tmp_path, tokenizer, texts, model=model, **more)
    assert run.path.is_packed
    for owner in (model, run.model, run.ref_model):
        assert owner.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(input_ids).logits, untouched(input_ids).logits, rtol=0, atol=0)
    run.train()
    tuned = tiny_model(1)
    tuned.load_state_dict(model.state_dict())
    for owner in (model, run.model):
        torch.testing.assert_close(owner(input_ids).logits, tuned(input_ids).logits)
        assert torch.equal(
            owner.generate(input_ids, max_new_tokens=4, do_sample=False),
            tuned.generate(input_ids, max_new_tokens=4, do_sample=False),
        )
    results = []
    for later in (model, tuned):
        dpo = trainer(tmp_path, tokenizer, texts, DPOTrainer, model=later, loss_type="sigmoid", **more)  # fmt: skip
        dpo_losses, _ = losses_and_weights(dpo)
        sft = SFTTrainer(
            later,
            SFTConfig(str(tmp_path), max_steps=2, logging_steps=1, report_to="none", bf16=False,
                      use_cpu=True, save_strategy="no", gradient_checkpointing=checkpointing),
            train_dataset=Dataset.from_list([{"prompt": t["prompt"], "completion": t["chosen"]} for t in texts]),
            processing_class=tokenizer,
        )  # fmt: skip
        sft_losses, _ = losses_and_weights(sft)
        results.append([*dpo_losses, *sft_losses])
    assert results[0] == pytest.approx(results[1], abs=1e-5) and len(results[0]) == 4


def test_an_interrupted_backward_pass_leaves_the_attention(tmp_path, tokenizer, texts):
    run = trainer(tmp_path, tokenizer, texts, gradient_checkpointing=True)

    def interrupt(gradient):
        raise KeyboardInterrupt

    run.model.get_input_embeddings().weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.model.config._attn_implementation == "sdpa"


def test_distance_counts_tied_weights_once(tmp_path, tokenizer, texts):
    model = tiny_model(config={**TINY, "tie_word_embeddings": True})
    run = trainer(tmp_path, tokenizer, texts, model=model, eval_dataset=Dataset.from_list(texts))
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 5] += 0.5
        model.model.norm.weight[0] -= 2.0
    assert run.evaluate()["eval_distance/squared"] == pytest.approx(0.25 + 4.0, rel=1e-6)


def test_model_without_fast_path(tmp_path, tokenizer, texts):
    """ALiBi takes TRL's forward pass, with the same loss as TRL and the same ranking metrics."""
    config = {**GPT, "hidden_size": 32}
    model, reference = (tiny_model(seed, "bloom", config) for seed in (1, 0))
    run = trainer(tmp_path, tokenizer, texts, model=model, ref_model=reference, alpha=1.0,
                  eval_dataset=Dataset.from_list(texts))  # fmt: skip
    assert run.path.kind == "plain" and model.config._attn_implementation == "eager"
    peer = trainer(tmp_path, tokenizer, texts, DPOTrainer, model=copy.deepcopy(model),
                   ref_model=copy.deepcopy(reference), loss_type="sigmoid")  # fmt: skip
    batch = run.data_collator([run.train_dataset[i] for i in range(4)])
    loss = run.compute_loss(run.model, batch)
    batch.pop("pair")
    assert loss.item() == pytest.approx(peer.compute_loss(peer.model, batch).item(), abs=1e-6)
    assert 0 < run.evaluate()["eval_ranking/accuracy"] < 1


def test_frequencies_that_depend_on_the_length(tmp_path, tokenizer, texts):
    """An untouched policy has no log-ratio to the reference, which is scored one text at a time,
    though short and long texts share rows; TRL's padded batches would mix them."""
    rope = {"model_type": "phi3", "config": {**LONGROPE, "max_position_embeddings": 2048}}
    short = [
        {"prompt": "Say", "chosen": f" {k} yes", "rejected": f" {k} no, and no"} for k in range(4)
    ]
    rows = cached_rows(tokenizer, [*short, *texts[:4]], tiny_model(**rope))
    run = trainer(tmp_path, tokenizer, rows, model=tiny_model(**rope), ref_model=tiny_model(**rope),
                  eval_dataset=rows, per_device_eval_batch_size=8, alpha=1.0)  # fmt: skip
    assert run.path.is_packed and len({len(ids) > 16 for ids in rows["rejected_ids"]}) == 2
    assert run.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    run.path = ScoringPath("plain", "as where the fast path disagrees")
    with pytest.raises(ValueError, match="which TRL's padded batches mix"):
        run.evaluate()


# ---------------------------------------------------------------------------- evaluation
def test_metrics_do_not_depend_on_the_batch(tmp_path, tokenizer, texts):
    """Exact means over pairs, equal to brute force from plain log-likelihoods."""
    rows = cached_rows(tokenizer, texts, tiny_model())
    found = {}
    for size in (1, 3, 16):
        run = trainer(tmp_path, tokenizer, rows, model=tiny_model(1), ref_model=None, alpha=0.5,
                      precompute_ref_log_probs=True, per_device_eval_batch_size=size,
                      eval_dataset=rows, dynamics_dataset=rows.select(range(5)),
                      dynamics_file=tmp_path / f"{size}.jsonl")  # fmt: skip
        found[size] = run.evaluate()
    for name, value in found[1].items():
        if not name.endswith(("runtime", "second", "preparation_time")):
            for size in (3, 16):
                assert found[size][name] == pytest.approx(value, abs=2e-5), name

    policy = tiny_model(1)
    pairs = []
    for row in rows:
        completions = tokenize(tokenizer, [(texts[row["pair"]]["prompt"], (texts[row["pair"]]["chosen"], texts[row["pair"]]["rejected"]))])[0]  # fmt: skip
        with torch.no_grad():
            logps = [compute_token_logps_plain(policy, [c])[0].double() for c in completions]
        ref = row["ref_chosen_logps"] - row["ref_rejected_logps"]
        ratio = (logps[0].sum() - logps[1].sum()).item()
        pairs.append((ratio, ref, math.log1p(math.exp(-0.05 * (ratio - 0.5 * ref))),
                      (logps[0].mean() - logps[1].mean()).item()))  # fmt: skip
    ratio, ref, loss, normalized = np.array(pairs).T
    wrong, metrics = ref < 0, found[1]
    assert 0 < wrong.sum() < len(ref)
    assert metrics["eval_loss"] == pytest.approx(loss.mean(), abs=1e-5)
    assert metrics["eval_ranking/accuracy"] == (ratio >= 0).mean()
    assert metrics["eval_ranking/meets_theorem_4_1"] == metrics["eval_ranking/accuracy"]
    assert metrics["eval_ranking/accuracy_normalized"] == (normalized >= 0).mean()
    assert metrics["eval_ranking/ref_accuracy"] == (ref >= 0).mean()
    assert metrics["eval_ranking/flipped_to_correct"] == (ratio[wrong] >= 0).mean()
    assert metrics["eval_rewards/accuracies"] == (ratio > ref).mean()
    both = (ref >= 0) & (ratio >= 0)
    assert metrics["eval_groups/correct_to_correct_share"] == both.mean()
    assert metrics["eval_groups/correct_to_correct_loss"] == pytest.approx(
        loss[both].mean(), abs=1e-5
    )
    margin = metrics["eval_groups/correct_to_correct_reward_margin"]
    assert margin == pytest.approx(0.05 * (ratio - ref)[both].mean(), abs=1e-5)
    assert metrics["eval_train_loss"] == pytest.approx(loss[:5].mean(), abs=1e-5)

    recorded = read_dynamics(tmp_path / "3.jsonl")
    assert [r["id"] for r in recorded if r["part"] == "train"] == [f"pair-{k}" for k in range(5)]
    validation = [r for r in recorded if r["part"] == "validation"]
    assert [r["id"] for r in validation] == [f"pair-{k}" for k in range(16)]
    assert [r["chosen"] - r["rejected"] for r in validation] == pytest.approx(ratio, abs=1e-4)


@pytest.mark.parametrize(
    ("loss", "more", "name"),
    [
        ("ipo", {"beta": 1.0}, "ipo"),
        ("hinge", {"beta": 0.2}, "hinge"),
        ("robust", {"label_smoothing": 0.7}, "robust"),  # whose loss would rise with the margin
        ("sigmoid", {"f_divergence_type": "js_divergence"}, "sigmoid (js_divergence)"),
        (["alpha_scaling", "sft"], {}, "alpha_scaling+sft"),
        (
            "alpha_scaling_norm",
            {"beta": 1.0, "alpha": 0.5, "target_margin": 1.0},
            "alpha_scaling_norm",
        ),
        ("alpha_scaling_dpop", {"dpop_lambda": 0.1}, "alpha_scaling_dpop"),
    ],
)
def test_the_threshold_and_displacement_of_the_loss_that_trains(
    tmp_path, tokenizer, texts, loss, more, name
):
    """By brute force from the dynamics file, whose rows say what trained."""
    run = trainer(tmp_path, tokenizer, texts, model=tiny_model(1), loss_type=loss, **more,
                  eval_dataset=Dataset.from_list(texts), dynamics_file=tmp_path / "d.jsonl")  # fmt: skip
    metrics = run.evaluate()
    rows = read_dynamics(tmp_path / "d.jsonl")
    assert {row["loss_type"] for row in rows} == {name}
    assert {row["rounding"] for row in rows} == {2.0**-23}
    for option in ("target_margin", "dpop_lambda"):
        assert {row.get(option) for row in rows} == {more.get(option)}
    columns = {key: np.array([row[key] for row in rows]) for key in (
        "chosen", "rejected", "ref_chosen", "ref_rejected", "n_chosen", "n_rejected")}  # fmt: skip
    down = [columns[side] < columns[f"ref_{side}"] - 1e-3 for side in ("chosen", "rejected")]
    assert metrics["eval_displacement/chosen_fell"] == down[0].mean()
    assert metrics["eval_displacement/rejected_fell"] == down[1].mean()
    assert metrics["eval_displacement/both_fell"] == (down[0] & down[1]).mean()
    change = (columns["rejected"] - columns["ref_rejected"]).mean()
    assert metrics["eval_displacement/mean_rejected_change"] == pytest.approx(change)
    own = np.array([row["group"] == "incorrect_to_incorrect" for row in rows])
    change = (columns["chosen"] - columns["ref_chosen"])[own].mean()
    of_group = metrics["eval_displacement/incorrect_to_incorrect_mean_chosen_change"]
    assert own.any() and of_group == pytest.approx(change)
    thresholds = {k for k in metrics if "threshold" in k or "wrong_at_lowest" in k}
    assert ("trained_loss" in rows[0]) == bool(thresholds)
    if "+" in name or "(" in name or "label_smoothing" in more:
        assert not thresholds
        return
    mean = np.mean([row["trained_loss"] for row in rows])
    with torch.no_grad():
        batch = run.data_collator(list(run.train_dataset))
        assert run.compute_loss(run.model, batch).item() == pytest.approx(mean, rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(mean, rel=1e-9)
    per_token = name in ("ipo", "alpha_scaling_norm")
    assert len(thresholds) == (2 if name == "ipo" else 1)
    ratios = [
        columns[f"{whose}chosen"] / (columns["n_chosen"] if per_token else 1)
        - columns[f"{whose}rejected"] / (columns["n_rejected"] if per_token else 1)
        for whose in ("", "ref_")
    ]
    met = metrics["eval_ranking/meets_threshold"]
    if name == "alpha_scaling_dpop":  # those of a low loss are right, others are too
        lost = 0.1 * np.maximum(0, columns["ref_chosen"] - columns["chosen"])
        assert 0 < met == (ratios[0] >= lost).mean() <= metrics["eval_ranking/accuracy"]
        return
    assert met == (ratios[0] >= 0).mean()
    assert metrics["eval_ranking/accuracy" + "_normalized" * per_token] == met
    if name == "ipo":
        lowest = 1 / (2 * 1.0)  # as a log-ratio above the reference's
        wrong = (ratios[1] + lowest < 0).mean()
        assert metrics["eval_ranking/wrong_at_lowest_loss"] == wrong


@pytest.mark.parametrize(
    "option",
    [{"label_smoothing": 0.1}, {"f_divergence_type": "js_divergence"}, {"ld_alpha": 0.5},
     {"use_weighting": True}, {"sync_ref_model": True}, {"label_smoothing_factor": 0.1}],
)  # fmt: skip
def test_options_that_change_the_loss_are_refused(tmp_path, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        arguments(tmp_path, **option)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [("sigmoid", {"alpha": 0.5}, "alpha 0.5: needs loss_type alpha_scaling"),
     ("alpha_scaling", {"target_margin": 1.0}, "target_margin 1.0: needs loss_type alpha_scaling_norm"),
     ("ipo", {"dpop_lambda": 5.0}, "dpop_lambda 5.0: needs loss_type alpha_scaling_dpop"),
     ("alpha_scaling_dpop", {"dpop_lambda": -1.0}, "dpop_lambda -1.0: give a finite number, 0 or"),
     ("alpha_scaling_norm", {"target_margin": math.inf}, "target_margin inf: give a finite number"),
     ("alpha_scaling_ipo", {"label_smoothing": 0.1}, "change the loss of loss_type alpha_scaling_ipo")],
)  # fmt: skip
def test_options_without_their_loss_are_refused(tmp_path, loss, options, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, loss_type=loss, **options)


def test_weighted_sum_with_a_trl_loss(tmp_path, tokenizer, texts):
    both = trainer(tmp_path, tokenizer, texts, model=tiny_model(1), alpha=0.5,
                   loss_type=["alpha_scaling", "sft"], loss_weights=[0.5, 2.0])  # fmt: skip
    batch = both.data_collator([both.train_dataset[i] for i in range(4)])
    parts = []
    for loss_type in ("alpha_scaling", "sft"):
        run = trainer(tmp_path, tokenizer, texts, model=tiny_model(1), loss_type=loss_type,
                      alpha=0.5 if loss_type == "alpha_scaling" else 1.0)  # fmt: skip
        parts.append(run.compute_loss(run.model, batch).item())
    total = both.compute_loss(both.model, batch).item()
    assert total == pytest.approx(0.5 * parts[0] + 2.0 * parts[1], abs=1e-5)


# ---------------------------------------------------------------------------- two processes
PROGRAM = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
from datasets import Dataset
from conftest import make_tokenizer
from ranking.data.preferences import SAMPLE_FILE
from test_dpo_gamma_trainer import trainer, losses_and_weights
texts = json.loads(open({texts!r}).read())
tokenizer = make_tokenizer(SAMPLE_FILE.read_text(encoding="utf-8"), bos=True)
run = trainer({folder!r}, tokenizer, texts, alpha=0.5, per_device_train_batch_size=2,
              per_device_eval_batch_size=3, eval_dataset=Dataset.from_list(texts[:13]))
losses, weights = losses_and_weights(run)
metrics = run.evaluate()
if run.is_world_process_zero():
    json.dump([losses.tolist(), weights.tolist(), metrics], open({result!r}, "w"))
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, tokenizer, texts):
    """torchrun with 2 × 2 pairs a step: losses, weights and metrics of one process with 4."""
    import json

    result = tmp_path / "result.json"
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    program = tmp_path / "program.py"
    root = Path(__file__).parents[1]
    program.write_text(
        PROGRAM.format(root=str(root), tests=str(root / "tests"), texts=str(tmp_path / "texts.json"),
                       folder=str(tmp_path), result=str(result))
    )  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    subprocess.run([*launcher, str(program)], check=True, cwd=tmp_path, capture_output=True)
    losses, weights, metrics = json.loads(result.read_text())

    one = trainer(tmp_path, tokenizer, texts, alpha=0.5, eval_dataset=Dataset.from_list(texts[:13]))
    want, want_weights = losses_and_weights(one)
    assert len(losses) == len(want) == 4
    want_metrics = one.evaluate()
    np.testing.assert_allclose(losses, want, atol=1e-5)
    np.testing.assert_allclose(weights, want_weights, atol=3e-5)
    for name in ("eval_loss", "eval_ranking/accuracy", "eval_rewards/margins"):
        assert metrics[name] == pytest.approx(want_metrics[name], abs=1e-4)


def test_resuming_without_a_checkpoint_is_an_error_as_of_trainer(tmp_path, tokenizer, texts):
    """And leaves the dynamics as they are."""
    file = tmp_path / "ranking_dynamics.jsonl"
    more = {"eval_dataset": Dataset.from_list(texts[:4]), "dynamics_file": file}
    run = trainer(tmp_path, tokenizer, texts, **more)
    run.evaluate()
    before = file.read_bytes()
    with pytest.raises(ValueError, match="holds no checkpoint to resume from"):
        run.train(resume_from_checkpoint=True)
    assert before and file.read_bytes() == before
