"""Which metrics an evaluation gives, of which --metric_for_best_model is one."""

from collections.abc import Sequence

from ranking.metrics.dynamics import summary_names
from ranking.plumbing.command_line import suggestion
from ranking.training.checkpoints import best_metric_name
from ranking.training.splits import Parts, named_sets

# of TRL's and Trainer's own, which a run can be judged by, but hardly will be
BESIDE = (
    "aux_loss", "entropy", "mean_token_accuracy", "num_tokens", "logits/chosen", "logits/rejected",
    "runtime", "samples_per_second", "steps_per_second", "model_preparation_time",
)  # fmt: skip


def evaluation_metrics(parts: Parts, of_pairs: bool) -> list[str]:
    """What the evaluations of a run can give, by the names of --metric_for_best_model: of the
    validation part, of each of its datasets, of named sets, and of the training pairs followed."""
    names = ["loss"]
    if of_pairs:
        names += summary_names()
    datasets = dict.fromkeys(example.dataset for example in parts["validation"].examples)
    several = [name for name in datasets if name is not None] if len(datasets) > 1 else []
    sets = [f"{name}/" for name in (*several, *named_sets(parts))]
    if of_pairs:
        sets.append("train_")
    known = names + [start + name for start in sets for name in names]
    return known + ["distance/squared"] * of_pairs


def check_best_metric(wanted: str | None, parts: Parts, of_pairs: bool) -> None:
    """ValueError where --metric_for_best_model (None: not given) is no metric of these parts."""
    known = evaluation_metrics(parts, of_pairs)
    starts = ["", "train_", *(f"{name}/" for name in named_sets(parts))]
    if wanted is None or wanted.removeprefix("eval_") in (
        *known, *(start + name for start in starts for name in BESIDE),
    ):  # fmt: skip
        return
    raise unknown_metric(wanted, known)


def unknown_metric(wanted: str, known: Sequence[str]) -> ValueError:
    """The error of a metric that no evaluation gives, with the nearest of those `known`."""
    given = best_metric_name(wanted).removeprefix("eval_")
    sensible = [name.removeprefix("eval_") for name in known]
    sensible = [name for name in sensible if name.split("/")[-1] not in BESIDE]
    return ValueError(
        f"--metric_for_best_model {wanted}: no evaluation gives it" + suggestion(given, sensible)
    )
