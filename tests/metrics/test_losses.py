"""Thresholds of TRL's losses: TRL's own values on the same pairs, and exactness by random search."""

import math
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from trl import DPOTrainer

from ranking.metrics.idealized import required_margin
from ranking.metrics.loss_names import OWN_LOSSES
from ranking.metrics.losses import (
    IPO,
    NO_THRESHOLD,
    PER_TOKEN,
    SUFFICIENT,
    THRESHOLDS,
    dpop_penalties,
    lowest_loss_margin,
    pair_loss,
)

SMOOTHING = {"robust": 0.2, "exo_pair": 0.05}
MARGIN = 0.7  # of alpha_scaling_norm


def random_pairs(n=4000, scale=20.0, seed=0):
    """Log-likelihoods and lengths of n pairs; a tenth keep the reference's log-likelihoods."""
    rng = np.random.default_rng(seed)
    logps = dict(zip(("chosen", "rejected"), rng.normal(-80, scale, size=(2, n))))
    moves = rng.normal(0, scale, size=(2, n)) * (rng.random(n) > 0.1)
    logps |= {
        f"ref_{side}": logps[side] - moves[k] for k, side in enumerate(("chosen", "rejected"))
    }
    lengths = rng.integers(1, 40, size=(2, n))
    return logps | dict(zip(("n_chosen", "n_rejected"), lengths))


def log_ratios(pairs, loss_type):
    """Of policy and reference: summed, or of means per token."""
    per_token = loss_type in PER_TOKEN
    lengths = [pairs[f"n_{side}"] if per_token else 1 for side in ("chosen", "rejected")]
    return [
        pairs[f"{whose}chosen"] / lengths[0] - pairs[f"{whose}rejected"] / lengths[1]
        for whose in ("", "ref_")
    ]


def forward(outputs, **inputs):
    return outputs


class Accelerator:
    """What TRL's loss asks of accelerate, for one process."""

    device = torch.device("cpu")

    def gather_for_metrics(self, values):
        return values

    gather = gather_for_metrics


def losses_of_trl(pairs, loss_type, beta, label_smoothing, discopop_tau):
    """Each pair's loss and its derivative by log π_θ(y_w|x), by TRL's own code in float64."""
    sides = ("chosen", "rejected")
    lengths = np.concatenate([pairs[f"n_{side}"] for side in sides])
    width = lengths.max() + 1
    mask = torch.tensor(np.arange(width)[None] >= width - lengths[:, None]).long()
    first = torch.nn.functional.one_hot(torch.full((len(lengths),), width - 2), width - 1)
    sums = torch.tensor(np.concatenate([pairs[side] for side in sides]), requires_grad=True)
    nothing = torch.zeros(len(lengths), width - 1)
    outputs = SimpleNamespace(
        log_probs=first * sums[:, None], entropy=nothing, mean_logits=nothing,
        is_top1=nothing.bool(),
    )  # fmt: skip
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask} | {
        f"ref_{side}_logps": torch.tensor(pairs[f"ref_{side}"]) for side in sides
    }
    losses, slopes = [], []
    n = len(lengths) // 2
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=Accelerator(), aux_loss_enabled=False,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=beta,
        loss_types=[loss_type], loss_weights=[1.0], label_smoothing=label_smoothing,
        use_weighting=False, args=SimpleNamespace(discopop_tau=discopop_tau),
        _metrics={"eval": defaultdict(list)}, _total_train_tokens=0,
    )  # fmt: skip
    for k in range(n):
        rows = [k, n + k]
        batch = {x: v[k : k + 1] if x.startswith("ref_") else v[rows] for x, v in inputs.items()}
        of_pair = SimpleNamespace(**{x: v[rows] for x, v in vars(outputs).items()})
        loss = DPOTrainer._compute_loss(trainer, partial(forward, of_pair), batch, False)
        (slope,) = torch.autograd.grad(loss, sums, retain_graph=True)
        losses.append(loss.item())
        slopes.append(slope[k].item())
    return np.array(losses), np.array(slopes)


@pytest.mark.parametrize("loss_type", [name for name in THRESHOLDS if name not in OWN_LOSSES])
def test_losses_and_slopes_are_those_of_trl(loss_type):
    pairs = random_pairs(60, scale=4.0)
    beta, smoothing, tau = 0.3, SMOOTHING.get(loss_type, 0.0), 0.4
    found, slopes = losses_of_trl(pairs, loss_type, beta, smoothing, tau)
    policy, ref = log_ratios(pairs, loss_type)

    def ours(moved=0.0):
        margins = beta * (policy + moved - ref)
        of_loss = {"label_smoothing": smoothing, "discopop_tau": tau}
        return pair_loss(margins, loss_type, beta=beta, **of_loss)

    rel = 1e-5 if loss_type == "exo_pair" else 1e-9  # TRL has its ε in float32
    assert ours() == pytest.approx(found, rel=rel, abs=rel)
    step = 1e-6
    numeric = (ours(step) - ours(-step)) / (2 * step)
    if loss_type in PER_TOKEN:
        numeric = numeric / pairs["n_chosen"]
    kink = np.abs(beta * (policy - ref) - 1) < 1e-5
    assert numeric[~kink] == pytest.approx(slopes[~kink], rel=1e-4, abs=1e-6)


def test_alpha_scaling_is_eq_4():
    z = np.array([-3.0, 0.0, 2.0])
    expected = [-math.log(1 / (1 + math.exp(-x))) for x in z]
    assert pair_loss(z, beta=0.1) == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize("loss_type", THRESHOLDS)
def test_thresholds_are_equivalences(loss_type, beta):
    """The margin's condition always, the loss's as docs/reading.md words it for each loss."""
    pairs = random_pairs()
    gamma = 0.5 if loss_type in OWN_LOSSES else 1.0
    of_loss = {"label_smoothing": SMOOTHING.get(loss_type, 0.0), "discopop_tau": 0.05,
               "target_margin": MARGIN}  # fmt: skip
    policy, ref = log_ratios(pairs, loss_type)
    correct = policy >= 0
    assert 0.3 < correct.mean() < 0.7
    margins = beta * (policy - gamma * ref)
    needed = required_margin(ref, beta, gamma, loss_type)
    assert np.array_equal(margins >= needed, correct)
    losses = pair_loss(margins, loss_type, beta=beta, **of_loss)
    threshold = pair_loss(needed, loss_type, beta=beta, **of_loss)
    low = losses <= threshold
    lowest = lowest_loss_margin(loss_type, of_loss["label_smoothing"])
    if loss_type == "discopop":  # the bump: L = 0.79 at z = −0.16, 0.87 at z = 0.09
        outside = (threshold < 0.78) | (threshold > 0.88)
        assert np.array_equal(low[outside], correct[outside]) and not outside.all()
    elif lowest == math.inf:
        assert np.array_equal(low, correct)
    else:
        resolvable = np.maximum(abs(margins), abs(needed)) < 15  # exo_pair is bounded: 3 nats
        assert resolvable.mean() > 0.2
        losses, threshold, needed, margins, correct, low = (
            x[resolvable] for x in (losses, threshold, needed, margins, correct, low)
        )
        before, beyond = needed <= lowest, margins > lowest
        assert np.array_equal((low | beyond)[before], correct[before])
        assert before.any() and not before.all() and beyond.any()
        if loss_type == "hinge":  # 0 beyond: necessary, and it cannot tell
            assert not losses[~before & correct].any() and not threshold[~before].any()
        else:
            assert np.array_equal((beyond & (losses >= threshold))[~before], correct[~before])


@pytest.mark.parametrize("loss_type", THRESHOLDS)
def test_where_the_loss_is_lowest(loss_type):
    smoothing = SMOOTHING.get(loss_type, 0.0)
    lowest = lowest_loss_margin(loss_type, smoothing)

    def loss(z):
        return pair_loss(z, loss_type, beta=0.5, label_smoothing=smoothing)

    if loss_type in (*IPO, "exo_pair"):
        assert minimize_scalar(loss, bracket=(-1, 1)).x == pytest.approx(lowest, abs=1e-4)
        assert loss(lowest) == pytest.approx(0, abs=1e-12)
        return
    z = np.linspace(1, 30, 200)
    falls = np.diff(loss(z)) < 0
    assert falls.all() if lowest == math.inf else not falls.any()
    assert (np.diff(loss(np.linspace(-30, -1, 200))) < 0).all()


@pytest.mark.parametrize("loss_type", OWN_LOSSES)
def test_own_losses_are_their_formulas(loss_type):
    """By Python's own arithmetic, one pair at a time, as the docstrings of the loss have them."""
    pairs, beta, gamma = random_pairs(200, scale=3.0), 0.3, 0.6
    policy, ref = log_ratios(pairs, loss_type)
    fell = [max(0.0, b - a) for a, b in zip(pairs["chosen"], pairs["ref_chosen"])]
    expected = []
    for ratio, ref_ratio, lost in zip(policy, ref, fell):
        z = beta * (ratio - gamma * ref_ratio)
        if loss_type == "alpha_scaling_ipo":
            expected.append((ratio - gamma * ref_ratio - 1 / (2 * beta)) ** 2)
            continue
        z -= MARGIN * (loss_type == "alpha_scaling_norm")
        z -= beta * 2.5 * lost * (loss_type == "alpha_scaling_dpop")
        expected.append(math.log(1 + math.exp(-z)))
    margins = beta * (policy - gamma * ref)
    penalties = dpop_penalties(pairs["chosen"], pairs["ref_chosen"], beta, 2.5)
    found = pair_loss(margins, loss_type, beta=beta, target_margin=MARGIN, penalties=penalties)
    assert found == pytest.approx(expected, rel=1e-9) and 0.2 < (penalties > 0).mean() < 0.8


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_a_low_loss_with_the_penalty_of_dpop_is_enough_and_not_needed(gamma):
    """Where the preferred completion did not fall, the threshold is exact."""
    (loss_type,) = SUFFICIENT
    pairs, beta = random_pairs(scale=6.0), 0.1
    policy, ref = log_ratios(pairs, loss_type)
    penalties = dpop_penalties(pairs["chosen"], pairs["ref_chosen"], beta, 0.5)
    margins = beta * (policy - gamma * ref)
    losses = pair_loss(margins, loss_type, beta=beta, penalties=penalties)
    threshold = pair_loss(required_margin(ref, beta, gamma, loss_type), loss_type, beta=beta)
    low, correct = losses <= threshold, policy >= 0
    assert correct[low].all() and low.any()
    kept = penalties == 0
    assert np.array_equal(low[kept], correct[kept]) and 0.3 < kept.mean() < 0.7
    assert (correct & ~low).any()


def test_of_two_hand_worked_pairs_ipo_ranks_one_wrongly_at_its_lowest():
    """β = ½: the loss is lowest at a log-ratio of 1 per token above the reference's. That is too
    little where the reference is wrong by 3 per token: ranked correctly from a loss of 4 on."""
    assert required_margin([-0.5, -3.0], 0.5, loss_type="ipo").tolist() == [0.25, 1.5]
    assert pair_loss([0.25, 1.5], "ipo", beta=0.5).tolist() == [0.25, 4.0]
    assert lowest_loss_margin("ipo") == 0.5


def test_extreme_margins_neither_overflow_nor_vanish():
    far = np.array([-800.0, 800.0])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        for name, expected in (("sigmoid", [800, 0]), ("robust", [1066.7, -266.7]),
                               ("exo_pair", [2.9957, 0.05129])):  # −log ε, −log(1 − ε)  # fmt: skip
            found = pair_loss(far, name, beta=1.0, label_smoothing=SMOOTHING.get(name, 0.0))
            assert found == pytest.approx(expected, rel=1e-3)
    assert pair_loss(far, "discopop", beta=1.0) == pytest.approx([800.0, 0.0])


def test_losses_without_threshold_say_why():
    for name, why in NO_THRESHOLD.items():
        with pytest.raises(ValueError, match=f"loss {name} has no threshold: {why}"):
            required_margin([1.0], 0.1, loss_type=name)
    with pytest.raises(ValueError, match="loss dpo: give one of alpha_scaling, alpha_scaling_norm"):
        required_margin([1.0], 0.1, loss_type="dpo")
    with pytest.raises(ValueError, match=r"label_smoothing=0.0 of exo_pair: give one in \(0, 1\)"):
        pair_loss([1.0], "exo_pair", beta=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing=0.5 of robust: give one in \[0, 0.5\)"):
        lowest_loss_margin("robust", 0.5)
