"""Losses of preference tuning as functions of one pair's margin (Eq. 4; Prop. A.7, Remark 4.2).

The margin is β( log π_θ(y_w|x)/π_θ(y_l|x) − γ log π_ref(y_w|x)/π_ref(y_l|x) ), of summed
log-likelihoods, or for PER_TOKEN losses of means per token. γ = 1 but for OWN_LOSSES, which are
those of `dpo_gamma_trainer`; the others' names and formulas are those of TRL's DPOTrainer, with its
β; ε is its label_smoothing.
"""

import math

import numpy as np
from scipy.special import expit, log_expit

EQUATION_4 = ("alpha_scaling", "sigmoid")  # at γ = 1 both are DPO
IPO = ("ipo", "alpha_scaling_ipo")
THRESHOLDS = (  # losses of a pair that are functions of its margin alone
    "alpha_scaling", "alpha_scaling_norm", "alpha_scaling_ipo", "sigmoid", "sigmoid_norm", "hinge",
    "ipo", "robust", "exo_pair", "discopop",
)  # fmt: skip
# of the margin and of what a penalty takes off it: a low loss ranks the pair rightly, a high one
# does not tell
SUFFICIENT = ("alpha_scaling_dpop",)
# their margin ranks by log π(y|x) / |y| (Eq. 15)
PER_TOKEN = ("alpha_scaling_norm", "alpha_scaling_ipo", "ipo", "sigmoid_norm")
NO_THRESHOLD = {  # loss → why its value says nothing about how the pair is ranked
    "aot": "it compares sorted log-ratios of a batch, not those of a pair",
    "aot_unpaired": "it compares sorted log-ratios of a batch, not those of a pair",
    "nca_pair": "it is a function of both rewards, not of their difference",
    "bco_pair": "it is a function of both rewards, not of their difference",
    "sppo_hard": "it is a function of both rewards, not of their difference",
    "apo_zero": "it is a function of both rewards, not of their difference",
    "apo_down": "it is a function of both rewards, not of their difference",
    "sft": "it knows neither the rejected completion nor the reference",
}
# losses that are no mean over pairs: of sorted log-ratios of the batch, or a mean over its tokens
BATCH_LOSSES = ("aot", "aot_unpaired", "sft")


def pair_loss(
    margins: np.ndarray,
    loss_type: str = "alpha_scaling",
    *,
    beta: float,
    label_smoothing: float = 0.0,
    discopop_tau: float = 0.05,
    target_margin: float = 0.0,
    penalties: np.ndarray | float = 0.0,
) -> np.ndarray:
    """The loss of pairs with these margins z, (n_pairs,) float64, without its weight in a sum.

    alpha_scaling, sigmoid, sigmoid_norm: −log σ(z). alpha_scaling_norm: −log σ(z − target_margin).
    alpha_scaling_dpop: −log σ(z − penalty), see `dpop_penalties`. ipo, alpha_scaling_ipo:
    ((z − ½)/β)². hinge: max(0, 1 − z). robust: −log σ(z) − εz/(1 − 2ε). exo_pair: KL of
    (σ(z), σ(−z)) from (1 − ε, ε). discopop: −log σ(z) σ(−z/τ) + e^(−z) σ(z/τ).
    ValueError for losses without a threshold, and for ε outside [0, ½) of robust or (0, 1) of
    exo_pair.
    """
    check_threshold(loss_type)
    z, smoothing = np.asarray(margins, dtype=float), label_smoothing
    check_smoothing(loss_type, smoothing)
    if loss_type == "alpha_scaling_norm":
        z = z - target_margin
    if loss_type == "alpha_scaling_dpop":
        z = z - penalties
    logistic = np.logaddexp(0.0, -z)
    if loss_type == "hinge":
        return np.maximum(0.0, 1.0 - z)
    if loss_type in IPO:
        return ((z - 0.5) / beta) ** 2
    if loss_type == "robust":
        return logistic - smoothing * z / (1 - 2 * smoothing)
    if loss_type == "exo_pair":
        chosen, rejected = log_expit(z), log_expit(-z)
        log_odds = math.log1p(-smoothing), math.log(smoothing)
        return expit(z) * (chosen - log_odds[0]) + expit(-z) * (rejected - log_odds[1])
    if loss_type == "discopop":
        with np.errstate(over="ignore"):
            exponential = np.exp(log_expit(z / discopop_tau) - z)
        return logistic * expit(-z / discopop_tau) + exponential
    return logistic


def dpop_penalties(
    chosen: np.ndarray, ref_chosen: np.ndarray, beta: float, dpop_lambda: float
) -> np.ndarray:
    """What alpha_scaling_dpop takes off the margin, (n_pairs,): βλ max(0, log π_ref(y_w|x) −
    log π_θ(y_w|x)). Log-likelihoods: (n_pairs,), nats, summed (Eq. 13)."""
    return beta * dpop_lambda * np.maximum(0.0, np.asarray(ref_chosen) - np.asarray(chosen))


def lowest_loss_margin(loss_type: str = "alpha_scaling", label_smoothing: float = 0.0) -> float:
    """The margin from which on the loss falls no more: ½ of IPO, log((1 − ε)/ε) of exo_pair, 1 of
    hinge; ∞: it always falls (discopop but for a bump around 0). ValueError as `pair_loss`."""
    check_threshold(loss_type)
    check_smoothing(loss_type, label_smoothing)
    if loss_type == "exo_pair":
        return math.log1p(-label_smoothing) - math.log(label_smoothing)
    return 0.5 if loss_type in IPO else {"hinge": 1.0}.get(loss_type, math.inf)


def check_threshold(loss_type: str) -> None:
    """ValueError for a loss whose value says nothing about how the pair is ranked."""
    known = (*THRESHOLDS, *SUFFICIENT, *NO_THRESHOLD)
    if loss_type not in known:
        raise ValueError(f"loss {loss_type}: give one of {', '.join(known)}")
    if loss_type in NO_THRESHOLD:
        raise ValueError(f"loss {loss_type} has no threshold: {NO_THRESHOLD[loss_type]}")


def check_smoothing(loss_type: str, label_smoothing: float) -> None:
    """ValueError for an ε with which robust would not fall, and exo_pair has no value."""
    if loss_type == "robust" and not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing} of robust: give one in [0, 0.5)")
    if loss_type == "exo_pair" and not 0 < label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} of exo_pair: give one in (0, 1)")
