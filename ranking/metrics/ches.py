"""CHES: how alike a model's hidden states of the preferred and the other completion are.

Centered hidden embedding similarity (Razin et al., arXiv 2410.08847). Let h_t be the last hidden
state from which the t-th token of a completion y is predicted, and S(y) = Σ_t h_t. Then

    CHES(y_w, y_l) = ⟨S(y_w), S(y_l)⟩ − ‖S(y_w)‖²

and, with each S(y) divided by |y|, the length-normalized form. They found that preference tuning
lowers the likelihood of preferred completions most where it is large.
"""

from collections.abc import Sequence


def ches(
    products: Sequence[Sequence[float]], n_tokens: Sequence[int], winner: int, loser: int
) -> tuple[float, float]:
    """(CHES, length-normalized CHES) of one pair of completions.

    products: (K, K), ⟨S(y_i), S(y_j)⟩ of the completions of an example; n_tokens: (K,), |y_i|.
    winner, loser: positions of y_w and y_l.
    """
    mixed, own = products[winner][loser], products[winner][winner]
    n_w, n_l = n_tokens[winner], n_tokens[loser]
    return mixed - own, mixed / (n_w * n_l) - own / n_w**2
