"""What the command line and the functions of Python take where nothing is said."""

from __future__ import annotations

from pathlib import Path

STORAGE = "sqlite:///floodsearch.db"
"""In the current folder, as the two folders are."""
CHECKPOINTS = Path("floodsearch-checkpoints")
LOGS = Path("floodsearch-logs")
DATA_DIR = "~/.cache/floodsearch"
"""Of the data sets that built-in tasks read, and download to."""
LEAVE_SECONDS = 25.0
"""How long a worker may take to leave after a signal: Kubernetes and a launch give it 30 seconds."""
LOOPBACK = "127.0.0.1"
"""Where the dashboard listens: it has no access control and can delete studies."""
REPRODUCIBLE = ("MKL_CBWR", "AUTO,STRICT")
"""A variable of the environment and its value, read by MKL when torch first multiplies on an x86 CPU: what a
product comes to then does not depend on where in memory its factors begin. Without, it does on AMD's CPUs, so
that a run of a stack depended on its place there (Intel, oneMKL Developer Guide, "Obtaining Numerically
Reproducible Results"). What it costs is in tests/benchmarks/RESULTS.md."""
