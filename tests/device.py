"""Where the tests of training compute: on a CPU, or where FLOODSEARCH_TEST_DEVICE says, such as `cuda`."""

from __future__ import annotations

import os

import torch

from floodsearch.study.spec import PLAIN
from floodsearch.training.arithmetic import choose_kernels
from floodsearch.training.devices import find_device

DEVICE: torch.device = find_device(os.environ.get("FLOODSEARCH_TEST_DEVICE", "cpu"))
choose_kernels(PLAIN)  # as workers do
