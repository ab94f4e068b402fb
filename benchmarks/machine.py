"""What the machine is, and what it gives: names, memory, the rate of matrix products."""

import platform
import time
from pathlib import Path

from ranking.scoring.models import choose_device


def device_name(device: str) -> str:
    """The GPU's name, or the processor's architecture. ValueError where there is no such device."""
    import torch

    choose_device(device)
    return platform.machine() if device == "cpu" else torch.cuda.get_device_name()


def forget_peak(device: str) -> None:
    """Start measuring the peak of memory anew."""
    import torch

    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()


def memory_gib(device: str) -> tuple[float, float]:
    """Memory now and its peak: of the GPU's allocator, or resident, of this process (Linux)."""
    import torch

    if device != "cpu":
        now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return now / 2**30, peak / 2**30
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(lines[name].removesuffix("kB")) / 2**20 for name in ("VmRSS", "VmHWM"))
    return now, peak


def matmul_rate(dtype, device: str) -> float:
    """Floating-point operations per second of large square matrix products on this device."""
    import torch

    size, at_once, seconds = (2048, 1, 2.0) if device == "cpu" else (8192, 20, 0.5)
    matrix = torch.randn(size, size, dtype=dtype, device=device)
    torch.nn.functional.linear(matrix, matrix)[0, 0].item()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(at_once):
            product = torch.nn.functional.linear(matrix, matrix)
        product[0, 0].item()  # a GPU works on while Python goes ahead: wait for it
        n += at_once
    return n * 2 * size**3 / (time.perf_counter() - start)
