"""Flags of dpo.py: those of its data and losses, what must hold of TRL's, and the flags it cannot
honour."""

import math
from dataclasses import dataclass, fields

from ranking.metrics.loss_names import OWN_LOSSES
from ranking.plumbing.processes import announce
from ranking.training.flags import DataArguments, TrainingDefaults, check_number
from ranking.training.help_texts import RETIRED
from ranking.training.parsing import FlagSet

DPO_RETIRED = {
    **RETIRED,
    "padding_free|pad_to_multiple_of": "nothing: rows are packed without padding",
    "precompute_ref_.*": "nothing: the reference is always computed once and cached",
    "sync_ref_model|ref_model_(mixup_alpha|sync_steps)":
        "nothing: the reference is fixed, as in the paper",
    "ld_alpha": "nothing: rankings are of whole completions",
    "dataloader_drop_last": "nothing: every pair is used and evaluated",
    "generate_during_eval": "nothing: completions are scored, not generated",
    "(model|ref)_adapter_name": "--ref_model_name_or_path",
    "reference_free": "--loss_type=alpha_scaling --alpha=0",
    "rpo_alpha": "--loss_type alpha_scaling sft --loss_weights 1 RPO_ALPHA",
    "gamma": "--alpha, as the original command line calls γ",
    "simpo_gamma": "--loss_type=alpha_scaling_norm --alpha=0 --target_margin=SIMPO_GAMMA",
}  # fmt: skip


# of an option of ours: the losses that use it
USERS: dict[str, tuple[str, ...]] = {
    "alpha": OWN_LOSSES,
    "target_margin": ("alpha_scaling_norm",),
    "dpop_lambda": ("alpha_scaling_dpop",),
}


@dataclass
class GammaFlags:
    """Mixin for TRL's DPOConfig: what OWN_LOSSES take beside β."""

    alpha: float = 1.0  # γ of Eq. 4: 1 is DPO, 0 is reference-free
    target_margin: float = 0.0  # that alpha_scaling_norm asks for; SimPO's γ
    dpop_lambda: float = 50.0  # λ of alpha_scaling_dpop's penalty; 50 in its paper

    def check_loss(self, dashes=""):
        """ValueError for options that would silently change one of OWN_LOSSES, and for those that
        the loss_type does not use. dashes: what comes before a name in messages."""
        given = " ".join(self.loss_type)
        for name, users in USERS.items():
            value = getattr(self, name)
            if value != getattr(GammaFlags, name) and not set(users) & set(self.loss_type):
                raise ValueError(f"{dashes}{name} {value}: needs {dashes}loss_type "
                                 f"{' or '.join(users)}, not {given}")  # fmt: skip
            if name != "alpha" and not 0 <= value < math.inf:
                raise ValueError(f"{dashes}{name} {value}: give a finite number, 0 or more")
        weights = self.loss_weights
        if weights is not None and len(weights) != len(self.loss_type):
            numbers = " ".join(f"{weight:g}" for weight in weights)
            raise ValueError(
                f"{dashes}loss_weights {numbers}: give one for each {dashes}loss_type ({given})"
            )
        own = [name for name in self.loss_type if name in OWN_LOSSES]
        if not own:
            if self.ld_alpha is not None:
                raise ValueError(f"{dashes}ld_alpha {self.ld_alpha}: leave it out, rankings are of "
                                 "whole completions")  # fmt: skip
            return
        changed = {
            "label_smoothing": self.label_smoothing != 0.0,
            "label_smoothing_factor": self.label_smoothing_factor != 0.0,
            "f_divergence_type": self.f_divergence_type != "reverse_kl",
            "ld_alpha": self.ld_alpha is not None,
            "use_weighting": self.use_weighting,
            "sync_ref_model": self.sync_ref_model,
            "router_aux_loss_coef": self.router_aux_loss_coef not in (None, 0.0),
        }
        if wrong := [name for name, is_changed in changed.items() if is_changed]:
            raise ValueError(
                f"{dashes}{wrong[0]} {getattr(self, wrong[0])}: leave it out, it would change the "
                f"loss of {dashes}loss_type {own[0]}"
            )


# the losses of TRL, and those that use a flag of TRL which the others would ignore
TRL_LOSSES = (
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair",
    "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
)  # fmt: skip
USED_BY: dict[str, set[str]] = {
    "label_smoothing": {"exo_pair", "robust", "aot", "aot_unpaired"},
    "discopop_tau": {"discopop"},
    "f_divergence_type": {
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop",
    },
    "label_smoothing_factor": set(),
}  # fmt: skip


@dataclass
class DPODataArguments(DataArguments):
    """Data flags of dpo.py."""

    ref_model_name_or_path: str | None = None
    ref_model_revision: str | None = None
    dynamics_sample_size: int = 1000

    def __post_init__(self):
        super().__post_init__()
        size = self.dynamics_sample_size
        check_number("dynamics_sample_size", size, size >= 0, "0 or more")


@dataclass
class DPOFlags(TrainingDefaults, GammaFlags):
    """Mixin for DPOGammaConfig, with the original spellings."""

    eval_on_start: bool = True

    def check(self):
        check_number("alpha", self.alpha, self.alpha >= 0, "0 or more")
        check_number("beta", self.beta, self.beta > 0, "more than 0")
        if wrong := set(self.loss_type) - {*OWN_LOSSES, *TRL_LOSSES}:
            if "simpo" in wrong:
                raise ValueError(f"--loss_type simpo: give {DPO_RETIRED['simpo_gamma']}")
            known = ", ".join((*OWN_LOSSES, *TRL_LOSSES))
            raise ValueError(f"--loss_type {wrong.pop()}: give one or more of {known}")
        super().check()
        self.check_loss("--")
        defaults = {f.name: f.default for f in fields(self)}
        given = " ".join(self.loss_type)
        for name, users in USED_BY.items():
            if getattr(self, name) != defaults[name] and not users & set(self.loss_type):
                why = f"only {', '.join(sorted(users))} use it" if users else "no loss uses it"
                raise ValueError(f"--{name} has no effect on --loss_type {given}: {why}")
        coefficient = self.f_alpha_divergence_coef != defaults["f_alpha_divergence_coef"]
        if coefficient and self.f_divergence_type != "alpha_divergence":
            raise ValueError("--f_alpha_divergence_coef needs --f_divergence_type=alpha_divergence")

    def check_given(self, given):
        super().check_given(given)
        if self.loss_type == ["sft"] and "beta" in given:
            announce("--beta has no part in --loss_type sft: only the reported Eq. 4 uses it")
        if self.eval_strategy == "no":
            for name in sorted({"eval_dataset_name", "evaluate_test"} & set(given)):
                announce(f"--{name} has no effect: --eval_strategy is no")


DPO = FlagSet(DPODataArguments, DPOFlags, "DPOConfig", DPO_RETIRED, "dpo.py")
