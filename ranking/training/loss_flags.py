"""The flags of DPO^γ's loss (Eq. 4) beyond TRL's, and which of TRL's would silently change it."""

from dataclasses import dataclass, field

ALPHA_SCALING = "alpha_scaling"


@dataclass
class GammaFlags:
    """Mixin for TRL's DPOConfig. `alpha` is γ, as the original command line calls it."""

    alpha: float = field(
        default=1.0, metadata={"help": "γ of Eq. 4: 1 is DPO, 0 is reference-free."}
    )

    def check_loss(self):
        """ValueError for options that would silently change Eq. 4's loss, or have no part in it."""
        if ALPHA_SCALING not in self.loss_type:
            if self.alpha != 1.0:
                raise ValueError(f"alpha={self.alpha} needs loss_type={ALPHA_SCALING}")
            if self.ld_alpha is not None:
                raise ValueError("ld_alpha weights tokens, but rankings are of whole completions")
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
                f"{', '.join(wrong)} would change the loss of loss_type={ALPHA_SCALING}: leave out"
            )
