"""Collect everything that a machine without a network needs into one folder: wheels, the bundle, an installer, sums.

Example: python scripts/offline_kit.py dist/decipher-rt-offline-kit
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from decipher_rt.atomic import whole_folder

ROOT = Path(__file__).resolve().parent.parent

INSTALLER = """\
#!/bin/sh
# Install decipher-rt from this folder alone, into a virtual environment (default: ./decipher-rt-venv).
set -eu
kit=$(cd "$(dirname "$0")" && pwd)
target=${1:-decipher-rt-venv}
(cd "$kit" && sha256sum --check --quiet --strict SHA256SUMS)
"${PYTHON:-python3}" -m venv "$target"
"$target/bin/python" -m pip --disable-pip-version-check install --quiet --no-index --find-links "$kit/wheels" \\
    'decipher-rt[text]'
echo "Installed. Try: $target/bin/decipher-rt demo"
"""

README = """\
decipher-rt offline kit. Research tool, not a medical device.

  sh install.sh [FOLDER]     installs into a virtual environment, without a network
  bundle/                    the model that ships, for machines that keep bundles apart: infer -b bundle/
  SHA256SUMS                 checked by install.sh before anything is installed

Made for Linux {machine}, Python {major}.{minor}: use the same on the machine it goes to.
"""


def collect(kit: Path, bundle: Path) -> None:
    """Fill ``kit``: built beside its place, then renamed."""
    # What an earlier build left there goes into the wheel, too, also files that are no more.
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
    with whole_folder(kit) as staging:
        command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--quiet"]
        command += ["--constraint", str(ROOT / "constraints.txt"), "--wheel-dir", str(staging / "wheels")]
        command += [f"{ROOT}[text]"]
        subprocess.run(command, check=True)  # noqa: S603
        shutil.copytree(bundle, staging / "bundle")
        (staging / "install.sh").write_text(INSTALLER, encoding="utf-8")
        (staging / "install.sh").chmod(0o755)
        python = {"major": sys.version_info.major, "minor": sys.version_info.minor}
        (staging / "README.txt").write_text(README.format(machine=platform.machine(), **python), encoding="utf-8")
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        lines = [f"{_sha256(path)}  {path.relative_to(staging).as_posix()}\n" for path in files]
        (staging / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Parse the command line and collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="folder to make; replaced if it is an offline kit")
    parser.add_argument("--bundle", type=Path, default=ROOT / "decipher_rt" / "default" / "bundle")
    arguments = parser.parse_args()
    if arguments.kit.exists() and not (arguments.kit / "install.sh").is_file():
        print(f"{arguments.kit}: exists and is no offline kit; choose another name", file=sys.stderr)
        return 2
    if not (arguments.bundle / "manifest.json").is_file():
        print(f"{arguments.bundle}: is no bundle; make one with 'decipher-rt export'", file=sys.stderr)
        return 2
    collect(arguments.kit, arguments.bundle)
    size = sum(path.stat().st_size for path in arguments.kit.rglob("*") if path.is_file())
    print(f"{arguments.kit}: {size / 1e6:.0f} MB; install with: sh {arguments.kit}/install.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
