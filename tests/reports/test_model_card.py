"""The model card, read back by the hub's own reader."""

from huggingface_hub import ModelCard
from scipy.stats import binomtest

from ranking.reports.model_card import (
    is_run_card,
    loss_lines,
    model_card,
    results_table,
    shown_command,
)

COMMIT = "a" * 40
SETTINGS = {
    "dataset_name": "Anthropic/hh-rlhf:harmless-base", "model_name_or_path": "org/base",
    "model_fingerprints": [f"commit {COMMIT}", f"commit {COMMIT}"],
    "data_fingerprints": {"train": "1f", "validation": "2f", "test": "3f"}, "n_processes": 2,
    "loss_type": ["alpha_scaling"], "loss_weights": None, "beta": 0.1, "alpha": 0.25,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "optim": "rmsprop",
    "max_steps": -1, "num_train_epochs": 2.0, "learning_rate": 1e-6, "seed": 3, "bf16": True,
    "use_peft": False,
}  # fmt: skip
STEP = {"step": 40, "max_steps": 90, "chosen_by": "eval_loss", "value": 0.61234}
METRICS = {
    "loss": 0.5, "ranking/accuracy": 0.7, "ranking/ref_accuracy": 0.6,
    "ranking/accuracy_normalized": 0.55, "ranking/ref_accuracy_normalized": 0.5,
    "groups/incorrect_to_correct_share": 0.15, "groups/incorrect_to_incorrect_share": 0.25,
    "rewards/accuracies": 0.65,
}  # fmt: skip
NO_RESULTS: tuple = (["part"], [])


def card_of(settings=SETTINGS, results=NO_RESULTS, **changes) -> ModelCard:
    more = {"data_commit": COMMIT, "pictures": ["ranking_dynamics.png"], "versions": {"torch": "9"},
            "n_trained": 77, **changes}  # fmt: skip
    text = model_card("my-model", "dpo.py", {"beta": 0.1}, settings, STEP, results, **more)
    assert is_run_card(text)
    return ModelCard(text)


def test_what_the_hub_reads():
    head = card_of().data
    assert head.base_model == "org/base" and head.datasets == ["Anthropic/hh-rlhf"]
    assert head.library_name == "transformers" and head.pipeline_tag == "text-generation"
    assert head.tags[:2] == ["dpo", "trl"] and head.license is None
    changes = {"use_peft": True, "lora_r": 8, "lora_alpha": 16, "dataset_name": "sample",
               "model_fingerprints": ["0123456789abcdef"] * 2}  # fmt: skip
    head = card_of({**SETTINGS, **changes}, data_commit=None).data
    assert head.library_name == "peft" and "lora" in head.tags
    assert head.base_model is None and head.datasets is None  # no names of the hub's


def test_what_a_reader_needs():
    text = card_of().text
    for part in (
        "[org/base](https://huggingface.co/org/base) at commit `aaaaaaaaaaaa`",
        "reference: the base model", "harmless-base at commit `aaaaaaaaaaaa`; 77 pairs trained on",
        "β = 0.1, γ = 0.25", "Eq. 4", "step 40 of 90, the best by `eval_loss` (0.6123)",
        "batch: 64 (4 × 8 accumulated × 2 processes)", "optimizer: rmsprop", "epochs: 2",
        "seed: 3", "bf16", "torch 9", "![ranking dynamics](ranking_dynamics.png)",
        "python dpo.py --beta=0.1",
    ):  # fmt: skip
        assert part in text, part


def test_one_process():
    assert "(4 × 8 accumulated × 1 process)" in card_of({**SETTINGS, "n_processes": 1}).text


def test_results_with_intervals():
    metrics = {f"eval_{k}": v for k, v in METRICS.items()}
    metrics |= {f"test_A/{k}": v for k, v in METRICS.items()}
    sizes, names = (
        {"eval_": 20, "test_A/": 40, "test_": 50},
        {"eval_": "validation", "test_A/": "A"},
    )
    columns, (validation, of_a) = results_table(metrics, sizes, {**names, "test_": "test"})
    shares = [binomtest(k, 20).proportion_ci(method="wilson") for k in (14, 11)]
    intervals = [f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in shares]
    assert validation[:3] == ["validation", "20", "0.5000"]
    assert validation[3:5] == [f"70.0 {intervals[0]}", "60.0"]
    assert validation[5:] == [f"55.0 {intervals[1]}", "50.0", "3 of 8", "65.0"]
    assert of_a[0] == "A" and of_a[7] == "6 of 16" and len(columns) == len(of_a)
    columns, lines = results_table(
        {"eval_loss": 2.0, "test_loss": 3.0}, sizes, {**names, "test_": "test"}
    )
    assert columns == ["part", "n", "loss"]
    assert lines == [["validation", "20", "2.0000"], ["test", "50", "3.0000"]]


def test_losses_in_words():
    of_sum = {**SETTINGS, "loss_type": ["alpha_scaling", "sft"], "loss_weights": [1.0, 0.5]}
    assert loss_lines(of_sum) == ["- loss: `alpha_scaling + 0.5 × sft`, β = 0.1, γ = 0.25"]
    margin = {"loss_type": ["alpha_scaling_norm"], "alpha": 0.0, "target_margin": 1.5}
    (line,) = loss_lines({**SETTINGS, **margin, "dpop_lambda": 50.0})
    assert line == "- loss: `alpha_scaling_norm`, β = 0.1, γ = 0, target margin = 1.5"
    assert loss_lines({**SETTINGS, "loss_type": ["ipo"]}) == ["- loss: `ipo`, β = 0.1"]
    dpop = {**SETTINGS, "loss_type": ["alpha_scaling_dpop"]}  # λ as by default
    assert loss_lines(dpop) == ["- loss: `alpha_scaling_dpop`, β = 0.1, γ = 0.25, λ = 50"]
    assert loss_lines({"loss_type": "nll"}) == [
        "- loss: negative log-likelihood of response tokens"
    ]


def test_commands_name_no_directories(tmp_path):
    """Of values that are no paths nothing is taken away."""
    given = {
        "model_name_or_path": "org/base", "dataset_name": ["org/data:a", str(tmp_path / "x.jsonl")],
        "data_dir": "../data", "output_dir": str(tmp_path / "my run"), "alpha": 1, "bf16": True,
        "learning_rate": 1e-5, "metric_for_best_model": "A/ranking/accuracy",
    }  # fmt: skip
    assert shown_command("dpo.py", given) == (
        "python dpo.py --model_name_or_path=org/base --dataset_name org/data:a x.jsonl "
        "--data_dir=data '--output_dir=my run' --alpha=1 --bf16=true --learning_rate=1e-05 "
        "--metric_for_best_model=A/ranking/accuracy"
    )


def test_whose_readme_it_is():
    assert not is_run_card("# My notes\nThis model is good.\n")
    assert is_run_card("---\nlibrary_name: peft\n---\n\n# Model Card for Model ID\n")
