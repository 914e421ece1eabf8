"""Lets a process's math library take its CPU for one of another make.

    python -m tests.other_make pytest tests/test_stack.py

MKL, which torch holds on x86, asks its CPU for Intel's name and takes other kernels where it hears another.
On those, lanes of a stack that hold the same numbers differ in their last bits where a lane's first byte is
not at a multiple of 64, unless the library was told to compute reproducibly. So what was found on an AMD EPYC
is found on an Intel CPU too: both questions of the library are answered by two instructions each.
"""

from __future__ import annotations

import ctypes
import mmap
import runpy
import sys
from pathlib import Path

ANSWERS = {
    "mkl_serv_intel_cpu_true": bytes.fromhex("31c0c3"),  # xor eax, eax; ret: it is none of Intel's
    "mkl_serv_cpuiszen": bytes.fromhex("b801000000c3"),  # mov eax, 1; ret: it is AMD's Zen
}
READ_WRITE_EXECUTE = 7


def pretend() -> bool:
    """Answer for the CPU from now on, if nothing was multiplied; return whether there is such a library."""
    import torch

    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not sys.platform.startswith("linux") or not torch.backends.mkl.is_available() or not path.exists():
        return False
    library, protect = ctypes.CDLL(str(path)), ctypes.CDLL(None, use_errno=True).mprotect
    for name, answer in ANSWERS.items():
        if not hasattr(library, name):
            return False
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        page = address & -mmap.PAGESIZE
        if protect(ctypes.c_void_p(page), ctypes.c_size_t(2 * mmap.PAGESIZE), READ_WRITE_EXECUTE):
            return False
        ctypes.memmove(address, answer, len(answer))
    return True


if __name__ == "__main__":
    if not pretend():
        sys.exit("this torch has no MKL whose CPU could be of another make")
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
