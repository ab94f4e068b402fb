"""DPO by flash-pref's FlashDPOTrainer, for `benchmarks.training_speed --flash-pref-python`.

    PYTHON -m benchmarks.flash_pref MODEL_DIR FOLDER_OF_PAIRS SETTINGS

PYTHON's environment has flash-pref, which needs transformers before 4.52, and a TRL of that time:
`pip install flash-pref trl==0.17.0 transformers==4.51.3 accelerate==1.6.0`. There, prompts are
shared by all of a layer but its attention on a CPU, and by flash attention (the package
`flash_attn`) on a GPU. Its TRL tokenizes by itself: losses are not those of the other sides.
"""

import json
import sys
from typing import Any

from benchmarks.command import print_figures
from benchmarks.steps import time_steps


def measure(model_name: str, folder: str, settings: dict[str, Any]) -> dict:
    """Pairs/s, peak memory and losses, by all steps but the first."""
    import torch
    from datasets import load_dataset
    from flash_pref import FlashDPOTrainer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = "flash_attention_2" if device == "cuda" else "sdpa"
    pairs = load_dataset("json", data_files=f"{folder}/pairs.jsonl", split="train")
    model_config = AutoConfig.from_pretrained(model_name, use_cache=False)
    rope = getattr(model_config, "rope_parameters", None)  # what later transformers have written
    model_config.rope_theta = rope["rope_theta"] if rope else model_config.rope_theta
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(
            model_name, config=model_config, torch_dtype=torch.float32,
            attn_implementation=attention,
        ).to(device)
        for _ in range(2)
    )  # fmt: skip
    config = DPOConfig(
        folder, loss_type="sigmoid", beta=0.1, max_length=512, num_train_epochs=1, logging_steps=1,
        optim="rmsprop", report_to="none", save_strategy="no", disable_tqdm=True,
        learning_rate=1e-6, gradient_checkpointing=False, use_cpu=device == "cpu", **settings,
    )  # fmt: skip
    trainer = FlashDPOTrainer(
        model=policy, ref_model=reference, args=config, train_dataset=pairs,
        processing_class=PreTrainedTokenizerFast.from_pretrained(model_name),
    )  # fmt: skip
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(pairs)
    steps = time_steps(trainer, device)
    in_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return {
        **steps._asdict(),
        "pairs_per_second": (len(pairs) - in_step) / steps.seconds,
        "pairs_per_cpu_second": (len(pairs) - in_step) / steps.cpu_seconds,
        "attention": attention,
    }


if __name__ == "__main__":
    print_figures(measure(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
