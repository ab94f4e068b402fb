"""wandb runs: offline where there is no key or no server, and never in the way of the results."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ranking.plumbing.command_line import Stopped
from ranking.plumbing.processes import announce

FINISH_TIMEOUT = "300"  # seconds that a finished run waits for its upload; wandb's own: for ever
MODES = ("online", "offline", "shared", "disabled", "dryrun", "run")


def has_wandb_key() -> bool:
    """Whether wandb can log in without asking: by the environment, its settings, or an entry of
    .netrc for its server, which the environment and its settings name."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import wandb
    from wandb.sdk.lib.wbauth import read_netrc_auth

    settings = wandb.Settings(silent=True)
    settings.update_from_system_settings()
    server = os.environ.get("WANDB_BASE_URL") or settings.base_url
    try:
        return bool(settings.api_key or read_netrc_auth(host=server))
    except wandb.Error:  # there is a key, which is none: `wandb.init` says so
        return True


def check_wandb(project: str) -> None:
    """ValueError for a project or a WANDB_MODE that wandb would refuse, before the work is done."""
    if set(project) & set("/\\#?%:") or len(project) > 128:
        raise ValueError(f"wandb project {project}: at most 128 characters, none of / \\ # ? % :")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in MODES:
        raise ValueError(f"WANDB_MODE={mode}: give one of {', '.join(MODES)}")


def start_wandb(**settings):
    """`wandb.init`; without a key, or where the server cannot be reached (wandb tries for 90
    seconds), the run is offline. One line says where it is, in place of wandb's own."""
    import wandb

    settings["settings"] = wandb.Settings(silent=True)

    if not has_wandb_key() and "WANDB_MODE" not in os.environ:
        os.environ["WANDB_MODE"] = "offline"
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT)
    os.environ["WANDB_FINISH_TIMEOUT_RAISES"] = "true"
    try:
        run = wandb.init(**settings)
    except wandb.Error as error:
        announce(f"wandb: {str(error).splitlines()[0]}")
        run = wandb.init(**settings, mode="offline")
    if run.offline:
        announce(f"wandb: this run is offline; upload it with `wandb sync {Path(run.dir).parent}`")
    elif run.url:
        announce(f"wandb: {run.url}")
    return run


@contextmanager
def finishing_wandb(run) -> Iterator[None]:
    """Log the results inside; then `run` ends, with its upload.

    A server that went away costs one line that says how to upload later, not the script. Enter
    when all results are on disk.
    """
    import wandb

    later = f"upload it with `wandb sync {Path(run.dir).parent}`"
    try:
        try:
            yield
        except wandb.Error as error:
            reason = str(error).splitlines()[0].rstrip(".")
            announce(f"wandb: {reason}; tables and pictures missing there are in the output files")
        run.finish()
    except wandb.Error as error:
        announce(f"wandb: {str(error).splitlines()[0]}; {later}")
    except TimeoutError:
        announce(f"wandb: the run is not all uploaded after {os.environ['WANDB_FINISH_TIMEOUT']} s "
                 f"(WANDB_FINISH_TIMEOUT); {later}")  # fmt: skip
    except Stopped as stop:
        announce(f"wandb: upload stopped by {stop}: all results are written; {later}")
        sys.exit(128 + stop.number)
