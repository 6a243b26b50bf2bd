"""The golden case of a weights folder: what is not as it was written is one line."""

from pathlib import Path

import numpy as np
import pytest

from decipher_rt.train.checkpoint import CheckpointError
from decipher_rt.train.golden import GOLDEN, GoldenCase, load_golden, save_golden

CASE = GoldenCase(np.arange(4096, dtype=np.int16).reshape(16, 16, 16), np.array([0, 1], np.float32), np.arange(8))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save_golden(tmp_path, CASE)
    loaded = load_golden(tmp_path)
    assert all(np.array_equal(getattr(loaded, name), getattr(CASE, name)) for name in ("volume", "window", "tokens"))


def test_every_truncation_and_every_changed_byte_is_one_line(tmp_path: Path) -> None:
    save_golden(tmp_path, CASE)
    content = (tmp_path / GOLDEN).read_bytes()
    spoilt = [content[:length] for length in range(0, len(content), 97)]
    spoilt += [content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :] for i in range(0, len(content), 11)]
    refused = 0
    for one in spoilt:
        (tmp_path / GOLDEN).write_bytes(one)
        try:
            load_golden(tmp_path)
        except CheckpointError as error:
            refused += 1
            assert "not a golden case" in str(error)  # noqa: PT017
    assert refused > len(spoilt) / 2
    with (tmp_path / GOLDEN).open("wb") as file:
        np.savez(file, volume=CASE.volume, window=CASE.window)
    with pytest.raises(CheckpointError, match="not a golden case"):
        load_golden(tmp_path)
