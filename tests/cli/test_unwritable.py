"""What cannot be written is said before the work, in one line, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from decipher_rt.train.sources import __file__ as sources

CONFIGS = Path(sources).resolve().parents[1] / "configs" / "tiny"
NEVER_READ = "never-read"
BELOW = ("-o", "file/run", "--cache", "cache")

CASES = {
    "an index below a file": (["embed", NEVER_READ, "-o", "file/series.index"], "file: Not a directory"),
    "an index that is a folder": (["embed", NEVER_READ, "--add", "-o", "folder"], "folder: Is a directory"),
    "results below a file": (["infer", NEVER_READ, "-o", "file/out"], "file: Not a directory"),
    "a page that is a folder": (["profile", NEVER_READ, "--html", "folder"], "folder: Is a directory"),
    "a trace below a file": (["profile", NEVER_READ, "--trace", "file/trace.json"], "file: Not a directory"),
    "a bundle below a file": (["export", NEVER_READ, "-o", "file/bundle"], "file: Not a directory"),
    "a bundle in another folder": (
        ["export", NEVER_READ, "-o", "folder"],
        "folder: exists and is not a bundle; choose",
    ),
    "series in a file": (["simulate", "1", "-o", "file"], "Invalid value for '-o' / '--output': Directory 'file' is a"),
    "a bundle in place of this folder": (["export", NEVER_READ, "-o", "."], ".: name the bundle's folder itself"),
    "series below a file": (["simulate", "1", "-o", "file/series"], "file: Not a directory"),
    "images below a file": (["train", "ssl", str(CONFIGS / "ssl.yaml"), *BELOW], "file: Not a directory"),
    "texts below a file": (["train", "text", str(CONFIGS / "text.yaml"), "-o", "file/run"], "file: Not a directory"),
    "pairs below a file": (["train", "align", str(CONFIGS / "align.yaml"), *BELOW], "file: Not a directory"),
    "a decoder below a file": (
        ["train", "decoder", str(CONFIGS / "decoder-tissue.yaml"), "encoder=run", *BELOW],
        "file: Not a directory",
    ),
    "a run in a file": (["train", "ssl", str(CONFIGS / "ssl.yaml"), "-o", "file"], "Directory 'file' is a file"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_said_before_the_work(case: str, tmp_path: Path) -> None:
    arguments, expected = CASES[case]
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", "from decipher_rt.cli import main; main()", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("decipher-rt: ")
    assert expected in ran.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"
