"""The kinds of data that are read, for people: the table of docs/data.md."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A row of the table. schema: the name it has in `SCHEMAS`."""

    schema: str
    columns: str
    example: str
    reading: str
    k: str
    votes: str
    groups: str


DATA_KINDS = [
    Kind("pair", "prompt, chosen, rejected (text)", "Dahoas/synthetic-instruct-gptj-pairwise",
         "text, joined by a space where nothing separates them", "2", "", ""),
    Kind("pair", "prompt, chosen, rejected, subset", "allenai/reward-bench",
         "the same", "2", "", "subset"),
    Kind("dialogue text", "chosen, rejected (whole dialogues)", "Anthropic/hh-rlhf",
         "the prompt ends with the last `\\n\\nAssistant:` of chosen", "2", "", ""),
    Kind("whole text", "chosen, rejected (whole texts)", "trl-internal-testing/zen (implicit)",
         "the common beginning, words not cut, is the prompt", "2", "", ""),
    Kind("pair", "prompt, chosen, rejected (messages)", "trl-lib/ultrafeedback-prompt",
         "dialogue; tools and chat_template_kwargs go to the template", "2", "", ""),
    Kind("pair", "chosen, rejected (whole message lists)",
         "Skywork/Skywork-Reward-Preference-80K-v0.2",
         "dialogue; all before the last turn of chosen is the prompt", "2", "", "source"),
    Kind("pair", "prompt (text), chosen, rejected (whole message lists)",
         "HuggingFaceH4/ultrafeedback_binarized",
         "dialogue; the prompt, which the lists repeat, is read once", "2", "", ""),
    Kind("pair", "prompt (messages), chosen, rejected (text)", "allenai/preference-test-sets",
         "dialogue", "2", "", ""),
    Kind("pair", "system, question, chosen, rejected", "Intel/orca_dpo_pairs",
         "dialogue; an empty system cell adds no turn", "2", "", ""),
    Kind("pair", "instruction, input, chosen, rejected", "hiyouga/LLaMA-Factory (alpaca)",
         "text; input stands on a line of its own after the instruction", "2", "", ""),
    Kind("pair", "conversations, chosen, rejected (from, value)", "llamafactory/DPO-En-Zh-20k",
         "dialogue; human, gpt, observation, function_call become roles", "2", "", ""),
    Kind("pair", "trajectory, chosen, rejected", "openbmb/UltraInteract_pair", "dialogue", "2", "",
         ""),
    Kind("pair", "input.messages, preferred_output, non_preferred_output",
         "OpenAI preference fine-tuning files", "dialogue; input.tools go to the template", "2",
         "", ""),
    Kind("pair", "system, history, question, response_chosen, response_rejected",
         "shibing624/MedicalGPT", "dialogue; history holds earlier turns", "2", "", ""),
    Kind("pair", "question, response_j, response_k", "lvwerra/stack-exchange-paired",
         "text; j is the better one", "2", "", ""),
    Kind("pair", "question, pos_answer.answer, neg_answer.answer", "ernie-research/TARA",
         "text", "2", "", ""),
    Kind("pair", "query, tools, chosen.messages, reject.messages", "wyy-1112/Plan-RewardBench",
         "dialogue; trajectories that part before the last turn are dropped", "2", "", ""),
    Kind("two answers", "prompt, response_0, response_1, better_response_id",
         "PKU-Alignment/PKU-SafeRLHF", "text; the label counts from 0", "2", "", ""),
    Kind("two answers", "prompt, response_1, response_2, winner",
         "lmarena-ai/PPE-Human-Preference-V1", "text; ties are ties", "2", "", "language"),
    Kind("two answers", "question, response_A, response_B, label", "ScalerLab/JudgeBench",
         "text; A>B, B>A or A=B", "2", "", "source"),
    Kind("two answers", "question.full_text, answer_0, answer_1, score_0, score_1",
         "openai/webgpt_comparisons", "text; the higher score", "2", "", ""),
    Kind("two answers", "input, output_1, output_2, label", "princeton-nlp/LLMBar",
         "text; the label counts from 1", "2", "", ""),
    Kind("two answers", "problem, eval_solution_A, eval_solution_B, chosen_position",
         "RewardMATH/RewardMATH_pairwise", "text; a step of a solution a line", "2", "", ""),
    Kind("two answers", "conversation_a, conversation_b, winner",
         "lmarena-ai/arena-human-preference-140k",
         "dialogue; conversations that part before the last turn are dropped", "2", "",
         "language"),
    Kind("two answers", "conversation_a, conversation_b, winner, judge, turn",
         "lmsys/mt_bench_human_judgments", "dialogue up to the turn that was judged", "2",
         "judges of a pair, in either order", ""),
    Kind("two answers", "question, answer_a, answer_b, overall_preference",
         "lfqa_eval (experts)", "text; -1 is answer_a, 1 answer_b", "2", "experts of a pair", ""),
    Kind("two answers", "text, completion_a, completion_b, normal_ and expert_worker_annotations",
         "allenai/multipref", "text", "2", "4 raters", "source, category"),
    Kind("two answers",
         "context (messages), response1, response2, overall_preference, individual_preference",
         "nvidia/HelpSteer3", "dialogue", "2", "up to 3 raters, by the sign of their scores",
         "domain, language"),
    Kind("two answers", "prompt, response_1, response_2, preference_strength",
         "nvidia/HelpSteer2 (preference)", "text; below 0 is response_1", "2",
         "where all preferences are given", ""),
    Kind("two answers", "instruction, input, response1, response2, annotator1, annotator2, …",
         "WeOpenML/PandaLM", "text", "2", "annotators; 0 is a tie", ""),
    Kind("summaries", "info, summaries, choice, worker", "openai/summarize_from_feedback",
         "text `SUBREDDIT: … TITLE: … POST: … TL;DR:`", "2", "workers of a pair", ""),
    Kind("AlpacaFarm", "instruction, input, output_1, output_2, preference",
         "tatsu-lab/alpaca_eval", "text", "2", "rows of a pair; 1.25 is divided 0.75 to 0.25", ""),
    Kind("SHP", "post_id, history, human_ref_A, human_ref_B, labels", "stanfordnlp/SHP-2",
         "text; the post is the cluster", "2", "", "domain"),
    Kind("ranked list", "prompt, completions, ranks, votes", "sample", "text", "≥ 2",
         "as given", "category"),
    Kind("scored list", "prompt, responses, scores", "lists of text with scores",
         "text; the highest score first", "≥ 2", "", ""),
    Kind("list of objects", "prompt, answers[answer, rank]", "berkeley-nest/Nectar",
         "dialogue; the prompt is text of turns", "7", "", ""),
    Kind("list of objects", "context (messages), completions[rank, completion]",
         "NeMo-RL preference data", "dialogue", "≥ 2", "", ""),
    Kind("UltraFeedback", "instruction, completions[response, overall_score]",
         "openbmb/UltraFeedback", "text", "4", "", "source"),
    Kind("Stack Exchange", "question, answers[text, pm_score]",
         "HuggingFaceH4/stack-exchange-preferences", "text", "≥ 2", "", ""),
    Kind("one against many", "prompt, chosen[], rejected[], subset", "allenai/reward-bench-2",
         "text; right answers are tied before all wrong ones", "4", "", "subset"),
    Kind("one against many", "prompt, chosen[3], rejected[3]", "THU-KEG/RM-Bench",
         "text; styles in their order, right answers first", "6", "",
         "domain (or the file's name), subset"),
    Kind("choices", "input, targets[choices, labels]", "HuggingFaceH4/hhh_alignment", "text",
         "2", "", ""),
    Kind("graded answers", "prompt, response, helpfulness, …", "nvidia/HelpSteer2",
         "text; rows of one prompt are its answers", "2",
         "where a grade is a list of raters'", ""),
    Kind("tree", "message_tree_id, prompt with replies", "OpenAssistant/oasst (trees)",
         "dialogue; an example for each prompt with two ranked replies", "≥ 2", "", ""),
    Kind("messages of trees", "message_id, parent_id, text, role, rank", "OpenAssistant/oasst1",
         "dialogue; the same", "≥ 2", "", ""),
]  # fmt: skip


def schema_table() -> str:
    """The table as Markdown."""
    head = ("columns", "example", "how it is read", "K", "votes", "groups")
    rows = [head, ("---",) * len(head), *(kind[1:] for kind in DATA_KINDS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
