"""What libraries print: lines for programmers and bars that end at once say nothing to a user."""

import io
import sys
import warnings
from contextlib import redirect_stdout

LONG = 10.0  # seconds after which a bar of transformers shows


def ignore_future_warnings() -> None:
    """Names that a library is going to drop; its other warnings stay."""
    warnings.filterwarnings("ignore", category=FutureWarning)


def import_trainer_quietly() -> None:
    """transformers' Trainer: its import prints among the results that wandb is offline, where
    WANDB_MODE says so, also where nothing is reported to wandb."""
    with redirect_stdout(io.StringIO()):
        import transformers.integrations.integration_utils  # noqa: F401


def show_long_bars_only() -> None:
    """transformers' bars (weights that are loaded, saved) show where they last, those of datasets'
    maps never; downloads keep theirs."""
    from transformers.utils import logging

    logging.set_tqdm_hook(lambda make, given, named: make(*given, **{"delay": LONG, **named}))
    if "datasets" in sys.modules:
        from datasets import disable_progress_bars

        disable_progress_bars()
