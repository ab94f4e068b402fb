"""Flags of dpo.py: those of its data, what must hold of TRL's, and the flags it cannot honour."""

from dataclasses import dataclass, fields

from ranking.metrics.loss_names import OWN_LOSSES
from ranking.plumbing.processes import announce
from ranking.training.flags import DataArguments, TrainingDefaults, check_number
from ranking.training.help_texts import RETIRED
from ranking.training.loss_flags import GammaFlags
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
