"""The offline kit installs and answers on a machine that reaches no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# No name service, no package index, nothing of this environment.
NO_NETWORK = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_CACHE_DIR": "/nonexistent",
    "PYTHON": sys.executable,
}


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "kit"
    command = [sys.executable, "scripts/offline_kit.py", str(folder)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
def test_the_kit_installs_and_answers_without_a_network(kit, tmp_path):
    install = ["sh", str(kit / "install.sh"), str(tmp_path / "venv")]
    run = subprocess.run(install, env=NO_NETWORK, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    command = [str(tmp_path / "venv/bin/decipher-rt"), "demo", "-o", str(tmp_path / "out")]
    for more in ([], ["-b", str(kit / "bundle")]):
        run = subprocess.run(
            [*command, *more], env=NO_NETWORK, capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr
    result = json.loads(next((tmp_path / "out").rglob("result.json")).read_text())
    assert result["series"]["files"] > 1
    packages = subprocess.run(
        [str(tmp_path / "venv/bin/python"), "-m", "pip", "list", "--format=freeze"],
        env=NO_NETWORK, capture_output=True, text=True, timeout=120,
    ).stdout.lower()  # fmt: skip
    assert "torch" not in packages


@pytest.mark.slow
def test_an_altered_kit_is_refused(kit, tmp_path):
    (kit / "README.txt").write_text("altered")
    run = subprocess.run(
        ["sh", str(kit / "install.sh"), str(tmp_path / "venv")],
        env=NO_NETWORK,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0
    assert not (tmp_path / "venv").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    run = subprocess.run(
        [sys.executable, "scripts/offline_kit.py", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 2
    assert (tmp_path / "thesis.tex").exists()
