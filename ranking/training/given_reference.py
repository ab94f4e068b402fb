"""The reference's log-likelihoods where the data bring them along, once they are seen to be right.

The columns are those of `calculate_upper_bound_rlhf.py --export`, or TRL's two alone.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ranking.data.examples import GivenScores, counts_text
from ranking.data.given_scores import REFERENCE_COLUMNS, given_scores
from ranking.metrics.tuned_loss import contradicts
from ranking.plumbing.processes import announce
from ranking.scoring.tokenization import TokenizedCompletion

N_CHECKED = 8  # pairs of each dataset and model whose log-likelihoods are scored again
# nats by which log π(y|x) may differ where all is in float32: so much, and a share of it
FLOAT32_TOLERANCE = (0.01, 1e-4)
Completions = Sequence[TokenizedCompletion]
COLUMNS_NAMED = " and ".join(REFERENCE_COLUMNS)


def logps_of_pairs(
    pairs: Sequence[dict],
    tokenized: Sequence[Completions],
    score: Callable[[Sequence[Completions]], np.ndarray],
    *,
    reference_name: str,
    in_float32: bool,
) -> np.ndarray:
    """log π_ref of chosen and rejected, (n_pairs, 2) float64, nats, summed (Eq. 13).

    Those that stand in the data (`reference` of a pair) are taken, and a few of them `score`d again
    by this run's reference; the others, and those of a prompt that is cut here or was cut there,
    are scored. ValueError in one line where the data's are of other tokens or another model.
    """
    given = [k for k, pair in enumerate(pairs) if pair["reference"] is not None]
    used = [k for k in given if is_used(pairs[k], tokenized[k])]
    cut = set(given) - set(used)
    check_token_counts([pairs[k] for k in used], [tokenized[k] for k in used])
    if not used:
        if given:
            announce(f"{COLUMNS_NAMED} of the data are not used: all {len(cut)} prompts are cut")
        return score(tokenized)
    logps = np.full((len(pairs), 2), np.nan)
    logps[used] = [pairs[k]["reference"].logps for k in used]
    checked = pairs_to_check(pairs, used)
    again = score([tokenized[k] for k in checked])
    largest = check_log_likelihoods(
        [pairs[k] for k in checked], again, reference_name=reference_name, in_float32=in_float32
    )
    models = dict.fromkeys(pairs[k]["reference"].model or "a model not named" for k in used)
    announce(
        f"reference log-likelihoods: {len(used)} of {len(pairs)} pairs from {COLUMNS_NAMED} of the "
        f"data ({', '.join(models)}; {len(checked)} scored again differ by {largest:.2g} nats)"
    )
    rest = sorted(set(range(len(pairs))) - set(used))
    if rest:
        why = {"without": len(rest) - len(cut), "with a cut prompt": len(cut)}
        counts = counts_text({what: n for what, n in why.items() if n})
        announce(f"reference log-likelihoods that are scored here: {len(rest)} pairs ({counts})")
        logps[rest] = score([tokenized[k] for k in rest])
    return logps


def is_used(pair: dict, completions: Completions) -> bool:
    """Whether the data's log-likelihoods of a pair are taken: its prompt is cut neither there nor
    here."""
    given: GivenScores | None = pair["reference"]
    return given is not None and not (given.truncated or completions[0].truncated)


def pairs_to_check(pairs: Sequence[dict], used: Sequence[int]) -> list[int]:
    """N_CHECKED pairs, evenly from the first to the last, of each dataset and each reference."""
    members: dict[tuple, list[int]] = {}
    for k in used:
        given: GivenScores = pairs[k]["reference"]
        members.setdefault((pairs[k]["dataset"], given.model, given.dtype), []).append(k)
    chosen: set[int] = set()
    for own in members.values():
        places = np.linspace(0, len(own) - 1, min(N_CHECKED, len(own))).round().astype(int)
        chosen |= {own[place] for place in places}
    return sorted(chosen)


def check_token_counts(pairs: Sequence[dict], tokenized: Sequence[Completions]) -> None:
    """Raise ValueError where the data's log-likelihoods are of other numbers of tokens than those
    that this run trains on, with what differs and what to do."""
    here = [tuple(len(c.ids) - c.start for c in completions) for completions in tokenized]
    differ = [
        (pair, counts)
        for pair, counts in zip(pairs, here)
        if pair["reference"].n_tokens not in (None, counts)
    ]
    if not differ:
        return
    (pair, counts), there = differ[0], differ[0][0]["reference"]
    more = all(n > m for p, ns in differ for n, m in zip(ns, p["reference"].n_tokens))
    fewer = all(n < m for p, ns in differ for n, m in zip(ns, p["reference"].n_tokens))
    if there.add_eos is False and more:
        why = (
            "they were scored without the end of a completion, which is trained here: score with "
            "--add-eos, train with --no_add_eos"
        )
    elif there.add_eos and fewer:
        why = "they were scored with --add-eos: train with --add_eos"
    else:
        why = (
            "another tokenizer, chat template, separator or end of a completion: score as this "
            "run trains"
        )
    raise ValueError(
        f"{COLUMNS_NAMED} of the data are of other tokens than this run's in {len(differ)} of "
        f"{len(pairs)} pairs (the first, {pair['id']}: {' and '.join(map(str, there.n_tokens))} "
        f"tokens, here {' and '.join(map(str, counts))}); {why}, or take the columns out"
    )


def check_log_likelihoods(
    pairs: Sequence[dict], scored: np.ndarray, *, reference_name: str, in_float32: bool
) -> float:
    """The largest difference, in nats, between the data's log-likelihoods and what the reference
    gives, (n_pairs, 2); ValueError where that is more than rounding explains.

    in_float32: so this run computes; the data say what they were computed in. Half precision on
    either side is allowed what `contradicts` has.
    """
    given = np.array([pair["reference"].logps for pair in pairs])
    dtypes = [pair["reference"].dtype for pair in pairs]
    exact = np.array([[in_float32 and dtype in (None, "float32")] for dtype in dtypes])
    fixed, share = FLOAT32_TOLERANCE
    differences = np.abs(given - scored)
    fits = np.where(
        exact, differences <= fixed + share * np.abs(scored), ~contradicts(given, scored)
    )
    if not fits.all():
        k, side = divmod(int(np.argmax(np.where(fits, -1, np.nan_to_num(differences)))), 2)
        name = pairs[k]["reference"].model
        whose = f"of {name}, or of other prompts" if name else "another model's, or of other texts"
        raise ValueError(
            f"{COLUMNS_NAMED} of the data do not fit the reference {reference_name}: "
            f"{REFERENCE_COLUMNS[side]} of pair {pairs[k]['id']} is {given[k, side]:.2f} nats, and "
            f"{scored[k, side]:.2f} scored here. They are {whose}: score with this reference, or "
            "take the columns out"
        )
    return float(differences.max())


def reference_in_row(row: dict, *sides: tuple[Sequence[int], int]) -> dict:
    """REFERENCE_COLUMNS (and reference_dtype) that a row of text brings along; empty without.

    row: what TRL has tokenized; sides: ids of chosen and rejected as they are trained, and where
    those that are scored begin. ValueError where the numbers are none, or of other tokens: cut here
    or there, or of another count.
    """
    if REFERENCE_COLUMNS[0] not in row:
        return {}
    name = f"pair {row['id']}" if "id" in row else f"the pair with prompt {row['prompt']!r:.60}"
    given = given_scores(row)
    if given is None:
        raise ValueError(f"{COLUMNS_NAMED} of {name} are not two finite numbers")
    whole = [len(row["prompt_ids"]) + len(row[f"{side}_ids"]) for side in ("chosen", "rejected")]
    if given.truncated or whole != [len(ids) for ids, _ in sides]:
        raise ValueError(
            f"{COLUMNS_NAMED} of {name} are not of what is trained, since its text is cut: raise "
            "max_length, or take the columns out"
        )
    counts = tuple(len(ids) - start for ids, start in sides)
    if given.n_tokens not in (None, counts):
        raise ValueError(
            f"{COLUMNS_NAMED} of {name} are of {' and '.join(map(str, given.n_tokens))} tokens, "
            f"but {' and '.join(map(str, counts))} are trained (TRL ends a text with EOS): score "
            "as is trained, or take the columns out"
        )
    dtype = {"reference_dtype": given.dtype} if "reference_dtype" in row else {}
    return {**dict(zip(REFERENCE_COLUMNS, given.logps)), **dtype}
