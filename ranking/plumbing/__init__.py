"""Nothing about the paper: flags, files, stopping, wandb."""
