"""Names of losses, which flags are checked by before scipy is imported."""

# of `dpo_gamma_trainer`; their formulas are in `losses`
OWN_LOSSES = ("alpha_scaling", "alpha_scaling_norm", "alpha_scaling_dpop", "alpha_scaling_ipo")
