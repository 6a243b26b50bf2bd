"""Collect what a machine without Python needs to run the native SDK into one folder, with a CycloneDX SBOM of it.

    python scripts/collect_sdk.py build/sdk dist/decipher-rt-sdk [--bundle BUNDLE]

The folder is a prefix: lib/libdecipher_rt.so, lib/decipher_rt/ (DALI, OpenVINO and what they load),
libexec/decipher_rt/ (the worker), include/, lib/cmake/, share/decipher_rt/bundle, share/doc/decipher_rt (licences,
sbom.cdx.json, and files.txt: what was written). It is made beside its place and renamed; one that was made before is
replaced only if it holds nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from decipher_rt import __version__
from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
from decipher_rt.manifest import Manifest

# What is loaded by name at run time; the rest follows from what these need.
DALI_ROOTS = ("libdali_core.so", "libdali_kernels.so", "libdali.so", "libdali_operators.so")
OPENVINO_ROOTS = (
    "libopenvino.so.*",
    "libopenvino_intel_cpu_plugin.so",
    "libopenvino_arm_cpu_plugin.so",
    "libopenvino_onnx_frontend.so.*",
    "libopenvino_ir_frontend.so.*",  # reads compiled graphs back from the cache
)
# Of the system: the C and C++ runtime and the loader.
SYSTEM = ("libc.", "libm.", "libdl.", "librt.", "libpthread.", "libstdc++.", "libgcc_s.", "ld-linux", "libz.so")

# By the beginning of a file's name: what it is, and its licence (SPDX).
ORIGINS = {
    "libdecipher_rt": ("decipher-rt", "Apache-2.0"),
    "decipher-rt-worker": ("decipher-rt", "Apache-2.0"),
    "libdali": ("nvidia-dali", "Apache-2.0"),
    "libcvcuda": ("CV-CUDA", "Apache-2.0"),
    "libnvcv_types": ("CV-CUDA", "Apache-2.0"),
    "libavcodec": ("FFmpeg", "LGPL-2.1-or-later"),
    "libavfilter": ("FFmpeg", "LGPL-2.1-or-later"),
    "libavformat": ("FFmpeg", "LGPL-2.1-or-later"),
    "libavutil": ("FFmpeg", "LGPL-2.1-or-later"),
    "libswscale": ("FFmpeg", "LGPL-2.1-or-later"),
    "libsndfile": ("libsndfile", "LGPL-2.1-or-later"),
    "libFLAC": ("FLAC", "BSD-3-Clause"),
    "libogg": ("libogg", "BSD-3-Clause"),
    "libopus": ("Opus", "BSD-3-Clause"),
    "libaws-c": ("aws-c libraries", "Apache-2.0"),
    "libaws-checksums": ("aws-c libraries", "Apache-2.0"),
    "libaws-c-": ("aws-c libraries", "Apache-2.0"),
    "libaws-cpp-sdk": ("AWS SDK for C++", "Apache-2.0"),
    "libaws-crt-cpp": ("aws-crt-cpp", "Apache-2.0"),
    "libs2n": ("s2n-tls", "Apache-2.0"),
    "libgoogle_cloud_cpp": ("google-cloud-cpp", "Apache-2.0"),
    "libcfitsio": ("CFITSIO", "CFITSIO"),
    "libz-": ("zlib", "Zlib"),
    "libzstd": ("Zstandard", "BSD-3-Clause"),
    "libopenvino": ("OpenVINO", "Apache-2.0"),
    "libtbb": ("oneTBB", "Apache-2.0"),
}
# Compiled into libdecipher_rt, and so part of what is shipped.
COMPILED_IN = ("nlohmann_json", "MIT")
# Those of SPDX's list that are met here; any other licence is stated by its name.
SPDX = ("Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "LGPL-2.1-or-later", "MIT", "Zlib")

DOCUMENTS = Path("share") / "doc" / "decipher_rt"


class CollectError(Exception):
    """What keeps the folder from being made, in one line."""


@dataclass(frozen=True)
class Wheel:
    """A Python package that libraries are taken from."""

    package: str
    libraries: Path
    licences: tuple[Path, ...]

    @property
    def version(self) -> str:
        """Version of the installed package."""
        return importlib.metadata.version(self.package)


def find_wheels() -> tuple[Wheel, Wheel]:
    """Find DALI's and OpenVINO's libraries in this Python environment."""
    dali, openvino = (importlib.util.find_spec(name) for name in ("nvidia.dali", "openvino"))
    if dali is None or dali.origin is None or openvino is None or openvino.origin is None:
        raise CollectError("nvidia-dali and openvino must be installed in this environment: make sdk")
    dali_folder, openvino_folder = Path(dali.origin).parent, Path(openvino.origin).parent
    licences = next(openvino_folder.parent.glob("openvino-*.dist-info")) / "licenses"
    return (
        Wheel(
            "nvidia-dali-cuda130",
            dali_folder,
            tuple(dali_folder / name for name in ("LICENSE", "COPYRIGHT", "Acknowledgements.txt")),
        ),
        Wheel("openvino", openvino_folder / "libs", tuple(sorted(p for p in licences.rglob("*") if p.is_file()))),
    )


def needed(library: Path) -> list[str]:
    """Names of the libraries that an ELF file asks the loader for."""
    dump = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout  # noqa: S603, S607
    return [line.split("[")[1].rstrip("]") for line in dump.splitlines() if "(NEEDED)" in line]


def closure(wheel: Wheel, roots: tuple[str, ...]) -> list[Path]:
    """Return the libraries of a wheel that these need, directly or not, themselves included."""
    waiting = [path for pattern in roots for path in sorted(wheel.libraries.glob(pattern))]
    found: list[Path] = []
    while waiting:
        library = waiting.pop()
        if library in found:
            continue
        found.append(library)
        for name in needed(library):
            candidates = (wheel.libraries / name, wheel.libraries / ".libs" / name)
            inside = next((path for path in candidates if path.exists()), None)
            if inside is not None:
                waiting.append(inside)
            elif not name.startswith(SYSTEM):
                raise CollectError(f"{library.name} needs {name}, which is neither in its wheel nor of the system")
    return sorted(found)


def origin(path: Path) -> tuple[str, str]:
    """Return the component and licence of a file by its name; the longest beginning that fits counts."""
    fitting = [start for start in ORIGINS if path.name.startswith(start)]
    if not fitting:
        raise CollectError(f"{path.name}: its origin and licence are not known; add it to ORIGINS")
    return ORIGINS[max(fitting, key=len)]


def is_elf(path: Path) -> bool:
    """Whether a file is a program or library."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def sha256(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sbom(folder: Path, versions: dict[str, str], bundle: Manifest) -> dict[str, object]:
    """Return a CycloneDX 1.6 bill of every binary and the bundle that lie in the folder."""
    files: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and is_elf(path):
            files.setdefault(origin(path), []).append(path)
    components: list[dict[str, object]] = [
        {
            "type": "library",
            "bom-ref": name,
            "name": name,
            "version": versions.get(name, "as in nvidia-dali-cuda130 " + versions["nvidia-dali"]),
            "licenses": [licence_choice(licence)],
            "components": [
                {
                    "type": "file",
                    "bom-ref": path.relative_to(folder).as_posix(),
                    "name": path.relative_to(folder).as_posix(),
                    "hashes": [{"alg": "SHA-256", "content": sha256(path)}],
                }
                for path in paths
            ],
        }
        for (name, licence), paths in files.items()
    ]
    compiled_in, licence = COMPILED_IN
    components.append(
        {"type": "library", "bom-ref": compiled_in, "name": compiled_in, "licenses": [licence_choice(licence)]}
    )
    sums = folder / "share" / "decipher_rt" / "bundle" / "SHA256SUMS"
    components.append(
        {
            "type": "machine-learning-model",
            "bom-ref": "bundle",
            "name": bundle.name,
            "version": bundle.version,
            "licenses": [licence_choice(bundle.licence)] if bundle.licence else [],
            "hashes": [{"alg": "SHA-256", "content": sha256(sums)}],
        }
    )
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "decipher-rt-sdk",
                "name": "decipher-rt-sdk",
                "version": __version__,
                "licenses": [licence_choice("Apache-2.0")],
            }
        },
        "components": components,
        "dependencies": [{"ref": "decipher-rt-sdk", "dependsOn": [str(c["bom-ref"]) for c in components]}],
    }


def licence_choice(licence: str) -> dict[str, dict[str, str]]:
    """Return a licence as CycloneDX has it: ``id`` for SPDX's list, ``name`` for the rest."""
    return {"license": {"id" if licence in SPDX else "name": licence}}


def files_in(folder: Path) -> list[str]:
    """Names of all files and links below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder with a file that no earlier run wrote there."""
    if folder.exists() and not folder.is_dir():
        raise CollectError(f"{folder} exists and is no folder; name another")
    listed = folder / DOCUMENTS / "files.txt"
    ours = set(listed.read_text(encoding="utf-8").splitlines()) if listed.is_file() else set()
    foreign = [name for name in files_in(folder) if name not in ours]
    if foreign:
        raise CollectError(f"{folder} holds {', '.join(foreign[:3])}, none of ours; name another folder or move it")


def collect(build: Path, folder: Path, bundle: Path) -> None:
    """Make ``folder`` anew."""
    folder = folder.resolve()
    refuse_foreign(folder)
    if not (build / "cmake_install.cmake").is_file():
        raise CollectError(f"{build} is no finished build; run 'make sdk'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
        made = Path(staging) / folder.name
        fill(build, made, bundle)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    for name, size in sizes(folder).items():
        print(f"{size / 1e6:8.1f} MB  {name}")


def fill(build: Path, folder: Path, bundle: Path) -> None:
    """Write everything into ``folder``, which is not there yet."""
    dali, openvino = find_wheels()
    opened = open_bundle(bundle)
    subprocess.run(["cmake", "--install", build, "--prefix", folder, "--strip"], check=True, stdout=subprocess.DEVNULL)  # noqa: S603, S607
    if not (folder / "lib" / "libdecipher_rt.so").exists():
        raise CollectError(f"{build} installs its library elsewhere than in lib; set CMAKE_INSTALL_LIBDIR=lib")
    libraries = folder / "lib" / "decipher_rt"
    for wheel, roots in ((dali, DALI_ROOTS), (openvino, OPENVINO_ROOTS)):
        for path in closure(wheel, roots):
            target = libraries / path.relative_to(wheel.libraries)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        licences = folder / DOCUMENTS / wheel.package
        licences.mkdir(parents=True, exist_ok=True)
        for path in wheel.licences:
            shutil.copyfile(path, licences / path.name)
    shutil.copytree(bundle, folder / "share" / "decipher_rt" / "bundle")
    versions = {
        "decipher-rt": __version__,
        "nvidia-dali": dali.version,
        "OpenVINO": openvino.version,
        "oneTBB": "as in openvino " + openvino.version,
    }
    document = sbom(folder, versions, opened.manifest)
    text = json.dumps(document, indent=2) + "\n"
    (folder / DOCUMENTS / "sbom.cdx.json").write_text(text, encoding="utf-8")
    listed = folder / DOCUMENTS / "files.txt"
    listed.touch()
    listed.write_text("".join(f"{name}\n" for name in files_in(folder)), encoding="utf-8")


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each part of the folder, and of the whole."""

    def total(path: Path, pattern: str = "**/*") -> int:
        return sum(p.stat().st_size for p in path.glob(pattern) if p.is_file() and not p.is_symlink())

    libraries = folder / "lib" / "decipher_rt"
    return {
        "DALI and what it needs": total(libraries, "libdali*") + total(libraries / ".libs"),
        "OpenVINO": total(libraries, "libopenvino*") + total(libraries, "libtbb*"),
        "libdecipher_rt and worker": total(folder / "lib", "libdecipher_rt*") + total(folder / "libexec"),
        "bundle": total(folder / "share" / "decipher_rt"),
        "all": total(folder),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    arguments = parser.parse_args()
    try:
        collect(arguments.build, arguments.folder, arguments.bundle)
    except (CollectError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
