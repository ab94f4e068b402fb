"""What is shown: tables, pictures, wandb panels; no torch."""
