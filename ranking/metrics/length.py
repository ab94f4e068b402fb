"""Is it length? What preferring the shorter or the longer completion would reach, and what is left
of an accuracy at equal lengths.

`length_columns` gives all of it for any right-or-wrong of pairs: ranking accuracy, accuracy of
implicit rewards, wins. Lengths are tokens in rankings; a difference of lengths is that of the
preferred completion minus that of the other.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from ranking.metrics.intervals import has_width, interval_95, resampled_means, wilson_interval
from ranking.metrics.orders import Baselines

N_BINS = 5
DIVIDED = "a difference of length divides right from wrong"  # why there is nothing at equal length
NOT_CONVERGED = "the regression does not converge"


class LengthColumns(TypedDict):
    """How much of an accuracy is length."""

    baselines: Baselines | None  # null: no baseline is defined for the metric
    at_equal_length: float | None  # logistic regression on the difference of lengths, read off at 0
    at_equal_length_95: list[float | None]  # sandwich interval over prompts
    at_equal_length_undefined: str | None  # why it is null
    length_correlation: float | None  # Pearson's, of being right with the difference of lengths
    length_correlation_95: list[float | None]  # bootstrap over prompts


# those of a metric that is no share of pairs, such as the accuracy of whole orders
NOT_OF_PAIRS: LengthColumns = {
    "baselines": None,
    "at_equal_length": None,
    "at_equal_length_95": [None, None],
    "at_equal_length_undefined": "of pairs: see pairwise_acc",
    "length_correlation": None,
    "length_correlation_95": [None, None],
}


class AtEqualLength(NamedTuple):
    """A share at equal lengths, or why there is none."""

    value: float | None
    interval: list[float | None]
    undefined: str | None


def length_columns(
    right: ArrayLike, differences: ArrayLike, prompts: Sequence[str], seed: int = 0
) -> LengthColumns:
    """All `LengthColumns` of pairs that some score ranks rightly or wrongly.

    right: (n,) in [0, 1], 1 where the preferred completion has the higher score, 1/2 where a tie
    counts half. differences: (n,) tokens, preferred − other. prompts: (n,), the clusters of both
    intervals. seed: of the bootstrap. No pair raises ValueError.
    """
    at_equal = rate_at_equal_length(right, differences, prompts)
    correlation, interval = length_correlation(right, differences, prompts, seed)
    return {
        "baselines": pair_baselines(differences),
        "at_equal_length": at_equal.value,
        "at_equal_length_95": at_equal.interval,
        "at_equal_length_undefined": at_equal.undefined,
        "length_correlation": correlation,
        "length_correlation_95": interval,
    }


def pair_baselines(differences: ArrayLike) -> Baselines:
    """Share of pairs whose preferred completion is the shorter, or the longer; equal lengths count
    half. differences: (n,) tokens, preferred − other; none raises ValueError."""
    values = np.asarray(differences, dtype=float)
    if not len(values):
        raise ValueError("baselines need at least one pair")
    shorter, longer = (float(np.mean((1 + sign * np.sign(values)) / 2)) for sign in (-1, 1))
    return {"random": 0.5, "shorter": shorter, "longer": longer}


def rate_at_equal_length(
    outcomes: ArrayLike, differences: ArrayLike, clusters: Sequence[str] | None = None
) -> AtEqualLength:
    """The share of outcomes at equal lengths, with its 95 % interval where clusters are given.

    Logistic regression of the outcome on tanh(difference / its standard deviation), so that
    extremes do not decide (as AlpacaEval's length-controlled win rate): σ(intercept), and
    σ(intercept ± 1.96 s.e.) with the sandwich variance over clusters.

    outcomes: (n,) in [0, 1]. Undefined where all differences are to one side, so that 0 lies beyond
    them, and where the regression has no finite optimum: all outcomes alike, or a difference that
    divides those that are right from those that are wrong (Albert and Anderson 1984). Where all
    clusters are as the regression has them, the sandwich has no width, and there is no interval.
    """
    from scipy.special import expit

    y, x = np.asarray(outcomes, dtype=float), np.asarray(differences, dtype=float)
    spread = x.std() if len(x) else 0.0
    scaled = np.tanh(x / spread) if spread > 0 else x
    reason = why_undefined(y, scaled)
    if reason is not None:
        return AtEqualLength(None, [None, None], reason)
    from statsmodels.discrete.discrete_model import Logit
    from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

    design = np.column_stack([np.ones(len(y)), scaled]) if x.any() else np.ones((len(y), 1))
    how: dict = {"disp": 0, "maxiter": 100, "warn_convergence": False}
    if clusters is not None and len(set(clusters)) > 1:
        groups = np.unique(np.asarray(clusters), return_inverse=True)[1]
        how |= {"cov_type": "cluster", "cov_kwds": {"groups": groups}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PerfectSeparationWarning)  # outcomes that are all 1/2
            fit = Logit(y, design).fit(**how)
    except np.linalg.LinAlgError:  # nearly all differences alike
        return AtEqualLength(None, [None, None], NOT_CONVERGED)
    if not fit.mle_retvals["converged"] or not np.isfinite(fit.params).all():
        return AtEqualLength(None, [None, None], NOT_CONVERGED)
    interval: list[float | None] = [None, None]
    if "cov_type" in how:
        low, high = expit(fit.conf_int()[0])
        interval = [float(low), float(high)] if has_width(low, high) else interval
    return AtEqualLength(float(expit(fit.params[0])), interval, None)


def why_undefined(outcomes: np.ndarray, x: np.ndarray) -> str | None:
    """Why a logistic regression on x and a constant says nothing at 0: it has no single finite
    optimum, or all x are to one side of 0. None: it does.

    An outcome between 0 and 1 counts as both. Separated: an x divides those of one kind from those
    of the other, which may share that x.
    """
    if not len(outcomes):
        return "no pair"
    ones, zeros = x[outcomes > 0], x[outcomes < 1]
    if not len(zeros):
        return "all are right"
    if not len(ones):
        return "all are wrong"
    if not x.any():
        return None  # a constant alone
    if x.min() > 0 or x.max() < 0:
        return "all differences of length are to one side"
    if ones.min() >= zeros.max() or ones.max() <= zeros.min():
        return DIVIDED
    return None


def length_correlation(
    right: ArrayLike, differences: ArrayLike, prompts: Sequence[str], seed: int = 0
) -> tuple[float | None, list[float | None]]:
    """Pearson's correlation of being right with the difference of lengths, and its 95 % interval
    when whole prompts are resampled. None where one of the two never changes.

    right, differences, prompts: (n,). r = (E[xy] − E[x] E[y]) / √(Var x · Var y).
    """
    y, x = np.asarray(right, dtype=float), np.asarray(differences, dtype=float)
    if not len(y) or y.min() == y.max() or x.min() == x.max():
        return None, [None, None]
    y, x = (y - y.mean()) / y.std(), (x - x.mean()) / x.std()
    moments = np.concatenate([x, y, x * x, y * y, x * y])
    cells = np.repeat(np.arange(5), len(x))
    drawn = resampled_means(moments, np.ones(len(moments)), [*prompts] * 5, cells, 5, seed)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = drawn.T
    variances = (mean_xx - mean_x**2) * (mean_yy - mean_y**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = np.where(
            variances > 1e-12, (mean_xy - mean_x * mean_y) / np.sqrt(variances), math.nan
        )
    return float(np.mean(x * y)), interval_95(resampled)


class LengthBin(TypedDict):
    """A fifth of the pairs, by the difference of lengths."""

    n: int
    mean_difference: float  # tokens, preferred minus dispreferred
    accuracy: float
    wilson_95: list[float]  # of the accuracy


def length_bins(right: np.ndarray, differences: np.ndarray) -> list[LengthBin]:
    """The accuracy in bins of equal size, by the difference of lengths; empty ones are left out."""
    bins: list[LengthBin] = []
    for members in np.array_split(np.argsort(differences, kind="stable"), N_BINS):
        if len(members):
            n_right = int(right[members].sum())
            bins.append(
                {"n": len(members), "mean_difference": float(differences[members].mean()),
                 "accuracy": n_right / len(members),
                 "wilson_95": list(wilson_interval(n_right, len(members)))}
            )  # fmt: skip
    return bins
