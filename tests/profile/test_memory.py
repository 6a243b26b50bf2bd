"""Memory against arrays of known size."""

import mmap
import subprocess
import sys

import numpy as np
import pytest

from decipher_rt.dicom import decode_process
from decipher_rt.profile.memory import allocations_of, resident_mib

TOUCHES = """
import mmap
from decipher_rt.profile.memory import resident_mib
before, _ = resident_mib()
with mmap.mmap(-1, 64 << 20) as memory:
    memory[:] = bytes([1]) * len(memory)
    print(before, *resident_mib())
"""


def test_resident_memory_grows_by_what_is_touched():
    """In a process of its own: threads and a decoder that earlier tests have left here grow and shrink as they like."""
    said = subprocess.run(
        [sys.executable, "-c", TOUCHES], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    before, after, peak = map(float, said.split())
    assert after - before == pytest.approx(64, abs=4)
    assert peak >= after - 1


def test_the_memory_of_the_decoder_is_added(monkeypatch):
    """A process that had 96 MiB and has 32 left stands for it."""
    program = "import mmap; kept, dropped = (mmap.mmap(-1, n << 20) for n in (32, 64)); "
    program += "[m.write(bytes([1]) * len(m)) for m in (kept, dropped)]; dropped.close(); print(flush=True); input()"
    decode_process.stop_decoding()
    alone_now, alone_peak = resident_mib()
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        monkeypatch.setattr(decode_process, "_child", child)
        now, peak = resident_mib()
        assert 32 < now - alone_now < 64
        assert 96 < peak - alone_peak < 192
        child.kill()
        child.wait()
        assert resident_mib()[0] == pytest.approx(alone_now, abs=4)


def test_what_a_run_holds_and_drops():
    found = allocations_of(lambda: np.ones(32 << 20, np.uint8).sum())
    assert found.python_peak_mib == pytest.approx(32, abs=1)
    assert abs(found.python_growth_kib) < 64


def test_what_a_run_keeps():
    kept: list[np.ndarray] = []
    found = allocations_of(lambda: kept.append(np.ones(3 << 20, np.uint8)))
    assert found.python_growth_kib == pytest.approx(3 * 1024, abs=64)


def test_new_pages_are_counted():
    """Fresh pages of 4 KiB: mapped anew by numpy for large arrays, so each is a fault of its own or of a huge page."""

    def touch():
        with mmap.mmap(-1, 8 << 20) as memory:
            memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)

    assert allocations_of(touch).page_faults >= 4
