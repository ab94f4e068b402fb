"""What libraries print: lines for programmers and bars that end at once say nothing to a user."""

import sys
import warnings

LONG = 10.0  # seconds after which a bar of transformers shows


def ignore_future_warnings() -> None:
    """Names that a library is going to drop; its other warnings stay."""
    warnings.filterwarnings("ignore", category=FutureWarning)


def show_long_bars_only() -> None:
    """transformers' bars (weights that are loaded, saved) show where they last, those of datasets'
    maps never; downloads keep theirs."""
    from transformers.utils import logging

    logging.set_tqdm_hook(lambda make, given, named: make(*given, **{"delay": LONG, **named}))
    if "datasets" in sys.modules:
        from datasets import disable_progress_bars

        disable_progress_bars()
