"""What a training frees stays with the process: a step of the second half takes no new pages."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from mtf.learning.memory import keep_freed_memory
assert keep_freed_memory()

def step():
    held = [torch.empty(1 << 20).fill_(1.0) for _ in range(8)]
    return held[0].sum()

for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    pages = 8 * (4 << 20) // 4096
    assert float(done.stdout) < pages / 100, "8 tensors of 4 MiB a step are taken anew"
