"""What each column of a page is: shown at its title, and in the legend."""

from typing import NamedTuple

FILE_DEFINITIONS = {
    "file": "The result file that was given.",
    "written": "When it was last changed, UTC.",
    "model": "As it was given.",
    "commit": "Of the model on the hub, or the revision asked for.",
    "reference": "The model before tuning, or that a win rate is against.",
    "computed in": "Number format and device of the forward passes, and the path they took.",
    "texts": "Whether a chat template made the texts, whether the end of the text is scored, the "
             "most tokens of prompt and completion.",
    "dataset": "Its name, with configuration and split.",
    "data commit": "Of the dataset on the hub.",
    "n": "Examples, or pairs.",
    "sample": "Examples asked for, and the seed that drew them.",
    "joined by": "What stands between prompt and completion, and in how many completions.",
    "dropped": "Examples or pairs that were not scored, by reason.",
    "prompts cut": "Examples whose prompt lost its beginning to fit the model.",
}  # fmt: skip
RESULT_DEFINITIONS = {
    "model": "The last part of its name or path.",
    "dataset": "Name, configuration, split, and how it was scored where that is not the default.",
    "benchmark": "Scored by its own protocol, from log-likelihoods.",
    "": "Number of the model, by which the next table names it.",
    "R̃: points [95 %]": "R̃ of the second model minus that of the first, with a paired interval.",
    "R: points [95 %]": "R of the second model minus that of the first, with a paired interval.",
    "models": "Second − first.",
    "only second right": "Examples that only the second model ranks rightly.",
    "only first right": "Examples that only the first model ranks rightly.",
    "p (Holm)": "Exact McNemar test, corrected for all tests of the table; *: below 0.05.",
    "group": "A column of the data and its value, or how the reference → the model rank a pair; "
             "empty: all of the dataset.",
    "n": "Examples.",
    "chance": "Accuracy of a random order, %.",
    "R̃ (per token)": "Ranking accuracy by length-normalized log-likelihoods (Eq. 15), %, with its "
                     "95 % interval.",
    "R (summed)": "Ranking accuracy by summed log-likelihoods (Eq. 13), %, with its 95 % interval.",
    "shorter": "Accuracy of an order that puts shorter completions first, %.",
    "longer": "Accuracy of an order that puts longer completions first, %.",
    "R̃ at equal length": "R̃ of completions of equal length, by logistic regression on the "
                         "difference of lengths, %.",
    "R at equal length": "R of completions of equal length, by the same regression, %.",
    "reward accuracy per token": "The same of rewards divided by their number of tokens, %.",
    "reward accuracy": "Share of untied pairs whose chosen completion has the larger implicit "
                       "reward, %, with its 95 % interval.",
    "rewards": "Implicit rewards β log π/π_ref, summed over tokens or divided by their number.",
    "accuracy [95 %]": "Share of pairs whose chosen completion has the larger reward.",
    "equal length": "Reward accuracy at equal lengths, by logistic regression.",
    "r": "Correlation of a right reward with the difference of lengths, chosen − rejected.",
    "margin [95 %]": "Mean reward of the chosen minus the rejected completion, nats.",
    "AUC": "Probability that a chosen completion's reward is above a rejected one's, drawn apart.",
    "CHES, AUC": "How well CHES of the reference tells the pairs whose chosen completion fell from "
                 "the others, %; 50: not at all.",
    "CHES per token, AUC": "The same of CHES normalized for length.",
    "both right": "Pairs that are ranked right and rewarded right.",
    "only ranking": "Pairs that are ranked right and rewarded wrong.",
    "only reward": "Pairs that are rewarded right and ranked wrong.",
    "both wrong": "Pairs that are ranked wrong and rewarded wrong.",
    "McNemar p": "Exact test of whether ranking or reward is right more often.",
    "metric": "pairwise_acc counts pairs, top1 the best completion; spearmanr and kendalltau are "
              "correlations with the order of people.",
    "part": "Of the benchmark; the last one is its score.",
    "what": "What the part is: a subset, a section, a mean of others, the score.",
    "per token": "As R̃, in the benchmark's sense of right.",
    "summed": "As R, in the benchmark's sense of right.",
    "reference → model": "Before and after tuning; one name where no tuned model was given.",
    "pairs": "Pairs of completions; of dynamics, which part of the data, and how many.",
    "R̃": "Observed ranking accuracy of the model on these pairs, per token, %.",
    "R": "Observed ranking accuracy of the model on these pairs, summed, %.",
    "R̃* min": "Idealized ranking accuracy per token: least over β, %.",
    "R̃* med": "The same: median over β, %.",
    "R̃* max": "The same: most over β, %.",
    "R* min": "Idealized ranking accuracy, summed: least over β, %.",
    "R* med": "The same: median over β, %.",
    "R* max": "The same: most over β, %.",
    "gap [95 %]": "Alignment gap: the median of the idealized accuracy minus the observed one, "
                  "points.",
    "‖θ − θ_ref‖²": "Squared distance of the weights from the reference's.",
    "ranking accuracy": "R of the checkpoint on the same prompts, %.",
    "win rate [95 %]": "Share of prompts on which the judge prefers the model's answer, ties half.",
    "at equal lengths": "Win rate at equal lengths, by logistic regression, %.",
    "characters": "Mean length of the model's answers / of the other side's.",
    "step": "Of training.",
    "loss": "Mean over pairs, nats.",
    "accuracy": "R of the policy on the pairs that training followed.",
    "part of the data": "Followed training pairs, validation or test pairs, or an evaluation set.",
    "ranking group": "How the reference ranked the pairs → how the model ranks them; empty: all.",
    "chosen fell": "Share of pairs whose chosen completion is less likely than under the "
                   "reference, beyond rounding, %.",
    "rejected fell": "The same of the rejected completion.",
    "both fell": "Share of pairs of which both completions are less likely, %.",
    "chosen, nats": "Mean change of the chosen completion's log-likelihood, summed over tokens.",
    "rejected, nats": "The same of the rejected completion.",
    "correct to correct": "Share of pairs that reference and policy rank rightly.",
    "correct to incorrect": "Share of pairs that only the reference ranks rightly.",
    "incorrect to correct": "Share of pairs that only the policy ranks rightly.",
    "incorrect to incorrect": "Share of pairs that neither ranks rightly.",
    "flipped to correct": "Pairs that the reference ranks wrongly and the policy rightly.",
}  # fmt: skip


class Column(NamedTuple):
    """A number or text of a pair, or of one of its completions, as the page names it."""

    key: str
    title: str
    definition: str
    digits: int | None = None  # after the point; None: a text
    visible: bool = True  # at first
    significant: bool = False  # digits are significant ones: of numbers of any size


PAIR_COLUMNS = (
    Column("prompt", "prompt", "The last turn of the prompt. Opens the pair."),
    Column("model", "model", "Who scored the pair, and how where that is not the default."),
    Column("dataset", "dataset", "Name of the dataset, with configuration and split."),
    Column("groups", "data group", "Columns of the data by which results are given, and values."),
    Column("ranked", "ranked (R)", "right: the chosen completion is at least as likely as the "
           "rejected one (Def. 2.3), by summed log-likelihoods (Eq. 13)."),
    Column("ranked_per_token", "ranked (R̃)", "right: the same, by log-likelihoods per token "
           "(Eq. 15)."),
    Column("group", "ranking group", "How the reference ranked the pair → how the model ranks it, "
           "by R. correct → incorrect: tuning flipped it to wrong."),
    Column("logratio", "log-ratio, nats", "log π(chosen) − log π(rejected), summed over tokens. "
           "Below 0: ranked wrongly.", 2),
    Column("logratio_per_token", "log-ratio per token, nats",
           "The same of log-likelihoods divided by their number of tokens.", 3),
    Column("length_difference", "length difference, tokens",
           "Tokens of the chosen completion minus tokens of the rejected one.", 0),
    Column("reward_margin", "reward margin, nats", "Implicit reward of the chosen completion minus "
           "that of the rejected one, β log π/π_ref each. Above 0: the reward is right.", 3),
    Column("alpha", "α", "Share of raters who preferred the chosen completion.", 3),
    Column("critical_beta", "critical β", "Idealized tuning ranks the pair rightly for β below "
           "this (Cor. 3.3), by summed log-likelihoods; – where α is known: for all β.", 4, False),
    Column("tuned_loss", "tuned loss, nats", "Loss of the pair at the lowest validation loss, mean "
           "over the training runs that follow it.", 3),
    Column("flipped_in", "right in runs", "Training runs that then rank the pair rightly.", 0),
    Column("ches", "CHES", "Centered hidden embedding similarity of the two completions under the "
           "reference; high: the chosen one may lose likelihood.", 3, False, True),
    Column("ches_normalized", "CHES, normalized", "The same, normalized for length.", 3, False,
           True),
    Column("row", "row", "Of the example in its dataset, from 0.", 0, False),
)  # fmt: skip
COMPLETION_COLUMNS = (
    Column("logp", "log-likelihood, nats", "log π(completion | prompt), summed over tokens.", 2),
    Column("per_token", "per token, nats", "Log-likelihood divided by the number of tokens.", 3),
    Column("percent", "probability per token, %", "exp(log-likelihood / tokens): the geometric "
           "mean of the tokens' probabilities.", 1),
    Column("tokens", "tokens", "Tokens of the completion that were scored.", 0),
    Column("rank", "rank", "By people: 1 is best.", 0),
    Column("votes", "votes", "Raters who preferred it to the other one.", 0),
    Column("change", "change, nats", "log π − log π_ref of the completion. Below 0: tuning made it "
           "less likely.", 2),
    Column("reward", "reward, nats", "Implicit reward, β log π/π_ref.", 3),
)  # fmt: skip
