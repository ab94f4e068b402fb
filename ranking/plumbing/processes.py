"""Several processes: which of them this one is, lines that are printed once, and waiting."""

import os
import sys
from datetime import timedelta


def process_rank() -> int:
    """Number of this process among those of torchrun or `accelerate launch`; 0 if alone."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Number of this process among those of its machine; 0 if alone."""
    return int(os.environ.get("LOCAL_RANK", 0))


def process_count() -> int:
    """How many processes torchrun or `accelerate launch` started; 1 if alone."""
    return int(os.environ.get("WORLD_SIZE", 1))


def announce(message: str) -> None:
    """Print a line on stderr, once for all processes."""
    if process_rank() == 0:
        print(message, file=sys.stderr)


def explain_single_process() -> None:
    """`accelerate launch --cpu` starts one process whatever its --num_processes says."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if on_cpu and "WORLD_SIZE" not in os.environ:
        announce(
            "accelerate launch --cpu runs a single process, whatever --num_processes says; for "
            "several: torchrun --nproc_per_node N SCRIPT.py"
        )


def wait_for_all_processes() -> None:
    """Return when every process is here; the only thing processes of scoring say to each other."""
    if process_count() == 1:
        return
    import torch.distributed

    if not torch.distributed.is_initialized():
        # scoring may take days: a slower process is not an error
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    torch.distributed.barrier()
