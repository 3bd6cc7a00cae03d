"""Freed memory stays with the process, so that the next tensors need no new pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from polyptych.host_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    large = [torch.ones(2**21) for _ in range(4)]  # 4 x 8 MiB
    del large

def faults_of_five():
    for _ in range(3):
        work()
    before = faults()
    for _ in range(5):
        work()
    return faults() - before

returned = faults_of_five()
assert keep_freed_memory()
print(faults_of_five(), returned)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_a_loop_that_frees_and_allocates_needs_no_new_pages() -> None:
    # glibc may learn by itself to keep blocks up to 32 MiB, as the heap happens to lie; a threshold that is set stays.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    said = subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=environment, capture_output=True, text=True)
    kept, returned = map(int, said.stdout.split())
    assert kept < 1000 < returned


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc")
def test_other_libraries_say_that_they_cannot() -> None:
    from polyptych.host_memory import keep_freed_memory

    assert not keep_freed_memory()
