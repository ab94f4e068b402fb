"""The flags of DPO^γ's losses beyond TRL's, and which of TRL's would silently change them."""

import math
from dataclasses import dataclass

from ranking.metrics.loss_names import OWN_LOSSES

USERS: dict[str, tuple[str, ...]] = {  # of an option: the losses that use it
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
