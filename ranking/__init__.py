"""How it works: each room answers one question of the paper, and arrows go down only.

Importing it before torch has OpenMP's threads sleep while they wait for each other, which the
OpenMP libraries read when torch loads them. By default they spin, and lose most of their speed
beside one other busy process (docs/devices.md).
"""

import os

SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
if not any(name in os.environ for name in SPINNING):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
