"""Files that people published, in the schemas they use: what each holds, by its description."""

from collections import Counter

import pytest
from preference_rows import DATA_DIR_2026

from ranking.data.preferences import load_preferences

# file: examples (ties included), completions, votes of the pairs (raters: pairs), dialogues, drops
# (reason: n), columns that results are grouped by
READ = {
    "HuggingFaceH4/hhh_alignment/helpful/test.jsonl": (59, 2, None, 0, {}, ()),
    "HuggingFaceH4/hhh_alignment/other/test.jsonl": (43, 2, None, 0, {}, ()),
    "HuggingFaceH4/ultrafeedback_binarized/train_prefs.jsonl": (16, 2, None, 16, {}, ()),
    "Intel/orca_dpo_pairs/orca_dpo_pairs_demo.csv": (100, 2, None, 100, {}, ()),
    "MariSchn/ultrafeedback_binarized_custom/train.jsonl": (10, 2, None, 0, {}, ()),
    "Nicholas0027/carejudge_rewardbench_2k/train.jsonl": (120, 2, None, 0, {}, ()),
    "OpenAssistant/oasst_trees/en_100_tree.jsonl": (27, None, None, 27, {}, ()),
    "RewardMATH/RewardMATH_pairwise/test.jsonl": (18, 2, None, 0, {}, ()),
    "THU-KEG/RM-Bench/chat_filtered.jsonl.gz": (30, 6, None, 0, {}, ("domain",)),
    "THU-KEG/RM-Bench/code_filtered.jsonl.gz": (20, 6, None, 0, {}, ("domain", "language")),
    "THU-KEG/RM-Bench/safety-refuse_filtered.jsonl.gz": (35, 6, None, 0, {}, ("domain", "subset")),
    "THU-KEG/RM-Bench/safety-response_filtered.jsonl.gz": (25, 6, None, 0, {}, ("domain",)),
    "argilla/notus_alpaca_eval/annotation_alpaca_eval_gpt4.json.gz": (60, 2, {1: 60}, 0, {}, ()),
    "bcdnlp/PRD_lfqa/experts_pairwise_human_preferences.jsonl": (75, 2, {1: 61, 2: 13, 3: 1}, 0, {}, ()),
    "ernie-research/TARA_hh_rlhf/test.jsonl": (60, 2, None, 0, {}, ()),
    "hiyouga/LLaMA-Factory/dpo_en_demo.json": (49, 2, None, 49, {}, ()),
    "hiyouga/LLaMA-Factory/dpo_zh_demo.json.gz": (40, 2, None, 40, {}, ()),
    "hiyouga/LLaMA-Factory/v1_dpo_demo.jsonl": (10, 2, None, 10, {}, ()),
    "kkminions888-ops/ultrafeedback_label_flip_20/train.jsonl.gz": (119, 2, None, 0, {"identical completions": 1}, ()),
    "lets-data-science/finetuning-lab/preference_pairs.jsonl": (113, 2, None, 0, {}, ()),
    "lmsys/mt_bench_human_carejudge/human.jsonl.gz": (70, 2, {2: 61, 3: 8, 4: 1}, 0, {}, ()),
    "lvwerra/stack-exchange-paired_tiny/stack_exchange_paired_tiny.json": (25, 2, None, 0, {}, ()),
    "openai/summarize_from_feedback/comparisons_readme_example.jsonl": (1, 2, None, 0, {}, ()),
    "openai/summarize_from_feedback_carejudge/tldr.jsonl": (80, 2, None, 0, {}, ()),
    "princeton-nlp/LLMBar/Adversarial_Neighbor/test.jsonl": (50, 2, None, 0, {}, ()),
    "princeton-nlp/LLMBar/Natural/dataset.json": (100, 2, None, 0, {}, ()),
    "princeton-pli/rewardbench_code_save_to_disk": (84, 2, None, 0, {}, ()),
    "rasbt/instruction-data-with-preference/instruction-data-with-preference.json": (149, 2, None, 0, {"identical completions": 1}, ()),
    "shibing624/MedicalGPT/dpo_zh_500.jsonl": (50, 2, None, 50, {}, ()),
    "shibing624/MedicalGPT/dpo_zh_old.jsonl": (40, 2, None, 40, {}, ()),
    "shibing624/MedicalGPT/reward_test.jsonl": (60, 2, None, 0, {}, ()),
    "shibing624/MedicalGPT/toolcall_dpo_zh_demo.jsonl": (11, 2, None, 11, {}, ()),
    "togethercomputer/rewardbench2_dpo/validation.jsonl": (80, 2, None, 80, {}, ()),
    "wyy-1112/Plan-RewardBench/tool_irrelevance.jsonl.gz": (27, 2, None, 27, {"completion of several turns": 3}, ()),
    "yumoshu/rlhf-data-agent/rlhf_dataset.csv": (20, 2, None, 0, {}, ("domain", "task_type")),
    "yumoshu/rlhf-data-agent/rlhf_dataset.json": (20, 2, None, 0, {}, ()),
    "yumoshu/rlhf-data-agent/rlhf_dataset.jsonl": (20, 2, None, 0, {}, ("domain", "task_type")),
}  # fmt: skip
REFUSED = {
    "TorshaMajumder/DeepShield-DPO-Alignment/preferences.csv": "no text to rank",
    "hiyouga/LLaMA-Factory/kto_en_demo.json": "unpaired, as for KTO",
    "lm-sys/FastChat_mt_bench_pair/gpt-4_pair.jsonl.gz": "hold the answers inside",
    "openai/summarize_from_feedback/axis_readme_example.jsonl": "no preference between two",
    "oumi-ai/vision_language_dpo/vision_language_dpo_format.jsonl": "images: 3",
    "wyy-1112/Plan-RewardBench/planning_multi_easy.jsonl.gz": "completion of several turns: 10",
}
pytestmark = pytest.mark.skipif(not DATA_DIR_2026.is_dir(), reason="needs DATA_DIR_2026")


@pytest.mark.parametrize("file", READ)
def test_files_are_read(file):
    n, k, votes, n_dialogues, dropped, groups = READ[file]
    data = load_preferences(str(DATA_DIR_2026 / file), include_ties=True)
    assert len(data.examples) == n and data.dropped == dropped
    assert {len(e.completions) for e in data.examples} == ({k} if k else {2, 3, 4, 5, 6, 8})
    raters = Counter(sum(e.votes[0, 1]) for e in data.examples if e.votes)
    assert raters == (votes or {})
    assert sum(e.dialogue is not None for e in data.examples) == n_dialogues
    assert {column for e in data.examples for column in e.groups} == set(groups)
    assert len({e.id for e in data.examples}) == n


@pytest.mark.parametrize("file", REFUSED)
def test_files_are_refused(file):
    with pytest.raises(ValueError, match=REFUSED[file]) as error:
        load_preferences(str(DATA_DIR_2026 / file))
    assert "\n" not in str(error.value)


def test_every_file_is_named_here():
    found = {str(f.relative_to(DATA_DIR_2026)) for f in DATA_DIR_2026.glob("**/*.*") if f.is_file()}
    saved = {name for name in found if name.startswith("princeton-pli/")}
    assert found - saved - {"README.md"} == {*READ, *REFUSED} - {
        "princeton-pli/rewardbench_code_save_to_disk"
    }


def test_what_the_descriptions_say():
    def load(file: str):
        return load_preferences(str(DATA_DIR_2026 / file), include_ties=True)

    pairs = [
        {(e.prompt, e.completions) for e in load(f"yumoshu/rlhf-data-agent/rlhf_dataset.{kind}").examples}
        for kind in ("json", "jsonl", "csv")
    ]  # fmt: skip
    assert pairs[0] == pairs[1] == pairs[2]
    code = load("princeton-pli/rewardbench_code_save_to_disk").examples
    assert sum(text.startswith("    ") for e in code for text in e.completions) >= 59
    labels = load("Nicholas0027/carejudge_rewardbench_2k/train.jsonl").examples
    assert {e.ranks for e in labels} == {(1, 2)}
    prompts = load("lets-data-science/finetuning-lab/preference_pairs.jsonl").examples
    assert len({e.prompt_id for e in prompts}) == 65
    systems = load("Intel/orca_dpo_pairs/orca_dpo_pairs_demo.csv").examples
    assert Counter(e.dialogue.messages[0]["role"] for e in systems) == {"system": 92, "user": 8}
    tools = load("shibing624/MedicalGPT/toolcall_dpo_zh_demo.jsonl").examples
    assert all(e.dialogue.tools for e in tools)
    empty_input = load(
        "rasbt/instruction-data-with-preference/instruction-data-with-preference.json"
    )
    assert 40 <= sum("\n" in e.prompt for e in empty_input.examples) <= 46
    (summary,) = load("openai/summarize_from_feedback/comparisons_readme_example.jsonl").examples
    assert summary.prompt.startswith("SUBREDDIT: r/legaladvice\n\nTITLE: ") and summary.ranks == (
        2,
        1,
    )
