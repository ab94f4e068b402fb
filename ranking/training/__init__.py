"""What do SFT and DPO do to rankings? (§4)

In the order of a run:

flags     help_texts, flags, sft_flags, dpo_flags: what they are, mean and must hold; parsing,
          config_file: a command line as values; known_flags, early_checks: before PyTorch is there
data      splits: train, validation, test and named sets; templates, turns, texts: rows of SFT;
          pairs, given_reference, reference_cache: rows of DPO with the reference's log-likelihoods
model     models, saved_model: read, with its adapter; written, for those that generate with it
steps     packed_steps: of both trainers, sft_trainer and DPOGammaTrainer (in the root); of the
          latter also trainer_inputs, distance, dynamics_file
run       start_and_end: claims and finishes run_directory, with best_metric, trackers and pushing;
          stopping: trains to a checkpoint or the end, with checkpoints, console and plan
after it  checkpoint_facts: the checkpoints of a run, ranked
"""
