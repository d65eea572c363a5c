"""Out of memory is an exception, wherever it strikes: the process lives on and computes."""

import os
import subprocess
import sys

import pytest
import torch

from medseq.ops import backend, selective_scan

KERNELS = backend.compiled_kernels()

# In a process of its own. The limit on memory goes up step by step, so that every allocation of a call is once the one
# that fails, torch's as well as the kernel's own.
WORKER = """
import resource, sys
import torch
from medseq.ops import bi_wkv, causal_conv1d, cross_selective_scan, selective_scan
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(int(sys.argv[2]))
draw, d = (lambda *shape: torch.randn(*shape).requires_grad_()), torch.rand
cases = {
    "selective_scan": (selective_scan, draw(1, 64, 4000), d(1, 64, 4000), -d(64, 8), draw(1, 8, 4000), d(1, 8, 4000)),
    "cross_selective_scan": (cross_selective_scan, draw(1, 64, 70, 60), d(1, 4, 64, 70, 60), -d(256, 2),
                             d(1, 4, 2, 70, 60), d(1, 4, 2, 70, 60), d(256)),
    "bi_wkv": (bi_wkv, draw(64), draw(64), draw(1, 8000, 64), draw(1, 8000, 64)),
    "chunk64": (lambda *x: bi_wkv(*x, "chunk64"), draw(64) / 8000, d(64), draw(1, 8000, 64), draw(1, 8000, 64)),
    "causal_conv1d": (causal_conv1d, draw(1, 64, 16000), draw(64, 4)),
}
free = resource.getrlimit(resource.RLIMIT_AS)

def both(call, *inputs):
    y = call(*inputs)
    return [y.detach(), *torch.autograd.grad(y, [x for x in inputs if x.requires_grad], y.detach())]

def limited(spare, case):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, free[1]))
    try:
        both(*case)
        return "done"
    except (MemoryError, RuntimeError) as error:
        assert isinstance(error, MemoryError) or "memory" in str(error), error
        return "refused"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, free)

for name, case in cases.items():
    want = both(*case)  # threads and code are there before memory gets short
    results = []
    while results[-1:] != ["done"]:
        results.append(limited(len(results) * 3 << 19, case))
    assert all(torch.equal(a, b) for a, b in zip(both(*case), want))
    print(name, results.count("refused"))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_every_allocation_may_fail(threads, seed):
    command = [sys.executable, "-c", WORKER, str(threads), str(seed)]
    # What a call frees goes back to the system, so that the next one has to ask for it again.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    refused = dict(line.split() for line in done.stdout.splitlines())
    assert len(refused) == 5
    # A call of some megabytes, in steps of 1.5 MB.
    assert all(int(count) >= 3 for count in refused.values()), refused


HUGE = 1 << 48  # tokens, whose states no machine holds


def test_the_cross_scan_raises_before_it_touches_its_arrays():
    image = [1, 8, HUGE, 1, 1, 1]
    flags, isa = [0] * 9, KERNELS.instruction_sets()[-1]
    with pytest.raises(MemoryError):
        KERNELS.cross_scan_forward(isa, False, image, flags, [0] * 8, [0] * 2, 1)
    with pytest.raises(MemoryError):
        KERNELS.cross_scan_backward(isa, False, image, flags, [0] * 8, [0] * 2, [0] * 8, 1)


@pytest.mark.parametrize("chunk64", [False, True])
def test_wkv_raises_before_it_touches_its_arrays(chunk64):
    arguments = (KERNELS.instruction_sets()[-1], False, chunk64, 1, HUGE, 8)
    with pytest.raises(MemoryError):
        KERNELS.wkv_forward(*arguments, *[0] * 5, 1)
    with pytest.raises(MemoryError):
        KERNELS.wkv_backward(*arguments, *[0] * 9, 1)


def test_results_that_no_machine_holds_are_refused():
    huge = torch.empty(1, 1, 1).expand(1, 1 << 20, 1 << 25)  # 2^45 elements that share one place
    rates = torch.zeros(1 << 20, 1)
    with pytest.raises((MemoryError, RuntimeError), match="memory"):
        selective_scan(huge, huge, rates, rates, rates)
