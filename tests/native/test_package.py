"""The installed package from a project of its own, the examples, and a deployment out of Python's reach."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
COLLECT = HERE.parents[1] / "scripts" / "collect_sdk.py"
EXAMPLES = HERE.parents[1] / "decipher_rt" / "native" / "examples"
SHAPE = (40, 96, 88)
SPACING = (4.0, 2.0, 2.0)
REGRESSION, LOCALISATION = 1, 3


def head_like() -> Any:
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    return (40 + inside * 700 + noise).astype(np.int16)


def affine() -> Any:
    s, r, c = SPACING
    return np.array([[0, 0, c, 0], [0, r, 0, 0], [s, 0, 0, 0], [0, 0, 0, 1]], float)


def run(command: list[Any], **options: Any) -> str:
    done = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def deployed(sdk_build: Path, native_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed") / "sdk"
    said = run([sys.executable, COLLECT, sdk_build, folder, "--bundle", native_bundle])
    assert "MB  all" in said
    assert [path.name for path in folder.parent.iterdir()] == ["sdk"]
    return folder


@pytest.fixture(scope="module")
def raw_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("volume") / "volume.raw"
    head_like().tofile(path)
    return path


def answer_command(program: Path, bundle: Path, volume: Path) -> list[Any]:
    return [program, bundle, volume, *map(str, SHAPE), *map(str, SPACING)]


STREAM_SLICES = "decipher_rt/native/examples/stream_slices"


def test_examples_are_short() -> None:
    for path in EXAMPLES.iterdir():
        assert len(path.read_text(encoding="utf-8").splitlines()) < 100, path.name


def test_c_example(sdk_build: Path, native_bundle: Path, raw_volume: Path, native_session: Any) -> None:
    said = run(answer_command(sdk_build / "decipher_rt/native/examples/answer_volume", native_bundle, raw_volume))
    native_session.run(head_like(), affine(), modality="MR")
    scope = native_session.scope()
    assert scope.reason.decode() in said
    for head in native_session.heads():
        name = head.name.decode()
        if not scope.inside:
            assert f"{name}: not answered" in said
        elif head.kind == LOCALISATION:
            boxes = native_session.head_boxes(name)
            told = "".join(f" x {box.center_lps_mm[0]:.0f} mm, score {box.score:.3f}" for box in boxes)
            assert f"{name}:{told}\n" in said
        else:
            label = native_session.label(name, 0) if head.kind != REGRESSION else head.unit.decode()
            assert f"{name}: {label} {native_session.head_values(name)[0]:.3f}" in said
    for file, slices in ((raw_volume, "0"), (raw_volume.parent / "absent", "0"), (raw_volume, "none")):
        command = [sdk_build / "decipher_rt/native/examples/answer_volume", native_bundle, file, slices, *"11111"]
        failed = subprocess.run(command, capture_output=True, text=True)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert "cannot be read, or does not hold 0 voxels" in failed.stderr


def test_cpp_example(sdk_build: Path, native_bundle: Path, native_session: Any, tmp_path: Path) -> None:
    voxels, matrix = head_like(), affine()
    numbers = [*SHAPE, *matrix.ravel().tolist()]
    (tmp_path / "geometry.txt").write_text(" ".join(map(str, numbers)), encoding="utf-8")
    for index, pixels in enumerate(voxels):
        x, y, z = matrix[:3, 3] + index * matrix[:3, 0]
        pixels.tofile(tmp_path / f"{x}_{y}_{z}.raw")
    said = run([sdk_build / STREAM_SLICES, native_bundle, tmp_path])
    assert said.startswith("0 slices are missing\n")
    embedding = np.array(said.split("embedding ")[1].split(), float)
    native_session.run(voxels, matrix)
    np.testing.assert_allclose(embedding, native_session.embedding(), atol=2e-5)  # it prints six digits
    cut = next(tmp_path.glob("*.raw"))
    for size in (100, cut.stat().st_size + 100):
        os.truncate(cut, size)
        failed = subprocess.run([sdk_build / STREAM_SLICES, native_bundle, tmp_path], capture_output=True, text=True)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert f"{cut.name} does not hold a slice of" in failed.stderr


def test_python_example(sdk: Any, native_bundle: Path, native_session: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "volume.npy", head_like())
    usage = subprocess.run([sys.executable, EXAMPLES / "answer_volume.py"], capture_output=True, text=True)
    assert usage.stderr.startswith("usage: ")
    said = run([sys.executable, EXAMPLES / "answer_volume.py", sdk.path, native_bundle, tmp_path / "volume.npy"])
    native_session.run(head_like(), np.eye(4)[[2, 1, 0, 3]])
    np.testing.assert_allclose(np.array(said.split()[1:], float), native_session.embedding(), atol=1e-5)


def test_installed_package_serves_a_project_of_its_own(
    deployed: Path, native_bundle: Path, raw_volume: Path, tmp_path: Path
) -> None:
    source = EXAMPLES / "answer_volume.c"
    run(
        [
            "cmake",
            "-S",
            HERE / "installed",
            "-B",
            tmp_path,
            f"-DCMAKE_PREFIX_PATH={deployed}",
            f"-DEXAMPLE_SOURCE={source}",
        ]
    )
    run(["cmake", "--build", tmp_path])
    assert "embedding of" in run(answer_command(tmp_path / "uses_decipher_rt", native_bundle, raw_volume))


def collect_fails(build: Path, folder: Path) -> str:
    failed = subprocess.run([sys.executable, COLLECT, build, folder], capture_output=True, text=True)
    assert failed.returncode == 1
    return failed.stderr


def test_a_prefix_with_files_of_others_is_left_alone(deployed: Path, tmp_path: Path) -> None:
    """As after `cmake --install`, whose prefix has our documents too."""
    ours, theirs = tmp_path / "share" / "doc" / "decipher_rt" / "LICENSE", tmp_path / "bin" / "theirs"
    for path in (ours, theirs):
        path.parent.mkdir(parents=True)
        path.touch()
    assert "bin/theirs, share/doc/decipher_rt/LICENSE, none of ours" in collect_fails(tmp_path, tmp_path)
    assert ours.exists()
    assert theirs.exists()
    added = deployed / "lib" / "libvendor.so"
    added.touch()
    assert "lib/libvendor.so, none of ours" in collect_fails(tmp_path, deployed)
    added.unlink()
    # The folder is ours again: now it is the build that is refused, and nothing is gone.
    assert "is no finished build" in collect_fails(tmp_path, deployed)
    assert (deployed / "lib" / "libdecipher_rt.so").exists()


@pytest.mark.parametrize("libdir", ["lib", "lib/x86_64-linux-gnu", "/opt/vendor/lib64"])
def test_pkg_config_and_the_worker_find_the_prefix_whatever_libdir_is(
    sdk_build: Path, libdir: str, tmp_path: Path
) -> None:
    cached = (sdk_build / "CMakeCache.txt").read_text(encoding="utf-8").splitlines()
    wheels = next(line.split("=", 1)[1] for line in cached if line.startswith("DECIPHER_RT_PYTHON_ENV:"))
    options = {"CMAKE_INSTALL_PREFIX": "/opt/vendor", "CMAKE_INSTALL_LIBDIR": libdir, "DECIPHER_RT_PYTHON_ENV": wheels}
    options |= {"DECIPHER_RT_TESTS": "OFF", "DECIPHER_RT_EXAMPLES": "OFF"}
    build = tmp_path / "build"
    run(["cmake", "-S", HERE.parents[1], "-B", build, *(f"-D{name}={value}" for name, value in options.items())])
    installs = (build / "cmake_install.cmake").read_text(encoding="utf-8")
    searched = re.findall(r'NEW_RPATH "([^"]*)"', installs)[-1].replace("\\$ORIGIN", "/opt/vendor/libexec/decipher_rt")
    libraries = Path("/opt/vendor", libdir)
    assert [os.path.normpath(folder) for folder in searched.split(":")] == [
        os.fspath(libraries),
        os.fspath(libraries / "decipher_rt"),
    ]
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    folder = tmp_path / Path("/opt/vendor", libdir).relative_to("/") / "pkgconfig"
    folder.mkdir(parents=True)
    shutil.copyfile(build / "decipher_rt.pc", folder / "decipher_rt.pc")
    environment = {**os.environ, "PKG_CONFIG_PATH": os.fspath(folder)}
    said = {
        name: Path(run(["pkg-config", f"--variable={name}", "decipher_rt"], env=environment).strip()).resolve()
        for name in ("prefix", "libdir", "includedir")
    }
    prefix = tmp_path / "opt" / "vendor"
    assert said == {"prefix": prefix, "libdir": folder.parent, "includedir": prefix / "include"}


def test_dali_and_openvino_are_found_on_the_system_as_well(tmp_path: Path) -> None:
    """Where no environment of Python is named, in the prefixes that CMake looks in."""
    wheels, prefix = Path(sysconfig.get_path("purelib")), tmp_path / "prefix"
    places = {
        "include/dali": "nvidia/dali/include/dali",
        "include/nlohmann": "nlohmann_json/include/nlohmann",
        "openvino": "openvino",
        "lib/libdali.so": "nvidia/dali/libdali.so",
    }
    cuda = next(wheels.glob("triton/backends/nvidia/include"))
    for folder in ("include", "lib"):
        (prefix / folder).mkdir(parents=True)
    for place, wheel in places.items():
        (prefix / place).symlink_to(wheels / wheel)
    for header in cuda.iterdir():
        (prefix / "include" / header.name).symlink_to(header)
    said = ["-DDECIPHER_RT_PYTHON_ENV=", "-DDECIPHER_RT_TESTS=OFF", f"-DCMAKE_PREFIX_PATH={prefix}"]
    run(["cmake", "-S", HERE.parents[1], "-B", tmp_path / "build", *said])
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text(encoding="utf-8")
    assert f"DALI_INCLUDE_DIR:PATH={prefix}/include\n" in cache
    assert f"OpenVINO_DIR:PATH={prefix}/openvino/cmake\n" in cache
    linked = (tmp_path / "build/decipher_rt/native/CMakeFiles/decipher_rt.dir/link.txt").read_text(encoding="utf-8")
    assert f"{prefix}/lib" in linked.partition("-rpath")[2]


def test_pkg_config(deployed: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    environment = {**os.environ, "PKG_CONFIG_PATH": os.fspath(deployed / "lib" / "pkgconfig")}
    flags = run(["pkg-config", "--cflags", "--libs", "decipher_rt"], env=environment).split()
    source = HERE / "unit" / "header_is_c.c"
    run(["cc", "-std=c99", source, *flags, f"-Wl,-rpath,{deployed / 'lib'}", "-o", tmp_path / "program"])
    run([tmp_path / "program"])


def test_sbom_states_the_licence_of_the_bundle(native_bundle: Path, tmp_path: Path) -> None:
    from decipher_rt.bundle import open_bundle

    script = runpy.run_path(os.fspath(COLLECT))
    (tmp_path / "share/decipher_rt/bundle").mkdir(parents=True)
    (tmp_path / "share/decipher_rt/bundle/SHA256SUMS").touch()
    manifest = open_bundle(native_bundle).manifest
    for licence, choices in (
        ("MIT", [{"license": {"id": "MIT"}}]),
        ("proprietary", [{"license": {"name": "proprietary"}}]),
        ("", []),
    ):
        components = script["sbom"](tmp_path, {}, dataclasses.replace(manifest, licence=licence))["components"]
        assert [part["licenses"] for part in components if part["bom-ref"] == "bundle"] == [choices]


def test_deployment_runs_without_python(deployed: Path, sdk_build: Path, raw_volume: Path, tmp_path: Path) -> None:
    """Every library that is loaded comes from the folder or the system, and Python's folders are not there at all."""
    program = tmp_path / "answer_volume"
    shutil.copyfile(EXAMPLES / "answer_volume.c", tmp_path / "answer_volume.c")
    flags = ["-I", deployed / "include", "-L", deployed / "lib", "-ldecipher_rt", f"-Wl,-rpath,{deployed / 'lib'}"]
    run(["cc", "-std=c99", tmp_path / "answer_volume.c", *flags, "-o", program])
    environment = {"LD_DEBUG": "files", "LD_DEBUG_OUTPUT": os.fspath(tmp_path / "loaded"), "PATH": "/nonexistent"}
    command = answer_command(program, deployed / "share" / "decipher_rt" / "bundle", raw_volume)
    hidden = sysconfig.get_paths()["purelib"]
    if os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0:
        script = 'mount -t tmpfs none "$0" && exec "$@"'
        command = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, hidden, *command]
        environment["PATH"] = "/usr/bin:/bin"
    assert "embedding of" in run(command, env=environment)
    calls = "".join(path.read_text(errors="replace") for path in tmp_path.glob("loaded.*"))
    loaded = {line.split("calling init: ")[1].strip() for line in calls.splitlines() if "calling init: " in line}
    assert any("libdali_operators" in path for path in loaded)
    assert any("libopenvino_intel_cpu_plugin" in path or "libopenvino_arm_cpu_plugin" in path for path in loaded)
    places = (os.fspath(deployed.resolve()), os.fspath(deployed), "/lib", "/usr/lib")
    assert not [path for path in loaded if not path.startswith(places)]
    assert not [path for path in loaded if "python" in path]


def test_worker_runs_in_a_deployment_beside_libraries_of_the_host(
    deployed: Path, sdk: Any, native_bundle: Path, tmp_path: Path
) -> None:
    for library in (deployed / "lib" / "decipher_rt").glob("lib*.so*"):
        (tmp_path / library.name).write_text("another of this name")
    program = (
        "import ctypes, os, sys\n"
        "drt = ctypes.CDLL(sys.argv[1])\n"
        "class P(ctypes.Structure):\n"
        "    _fields_ = [('struct_size', ctypes.c_size_t), ('device', ctypes.c_int), ('mode', ctypes.c_int),"
        " ('rest', ctypes.c_char * 88)]\n"
        "p, s = P(), ctypes.c_void_p()\n"
        "os.environ['LD_LIBRARY_PATH'] = sys.argv[3]\n"
        "drt.drt_session_default_params(ctypes.byref(p), ctypes.c_size_t(104))\n"
        "p.mode = 1\n"
        "drt.drt_last_error.restype = ctypes.c_char_p\n"
        "print(drt.drt_session_open(sys.argv[2].encode(), ctypes.byref(p), ctypes.byref(s)), drt.drt_last_error())\n"
        "drt.drt_session_close(s)\n"
    )
    said = run([sys.executable, "-c", program, deployed / "lib" / "libdecipher_rt.so", native_bundle, tmp_path])
    assert said.startswith("0 ")


def test_sbom_names_every_binary(deployed: Path, native_bundle: Path) -> None:
    import hashlib

    document = json.loads((deployed / "share/doc/decipher_rt/sbom.cdx.json").read_text(encoding="utf-8"))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    stated = {
        file["name"]: file["hashes"][0]["content"]
        for part in document["components"]
        for file in part.get("components", [])
    }
    binaries = {
        path.relative_to(deployed).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in deployed.rglob("*")
        if path.is_file() and not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF"
    }
    assert stated == binaries
    licences = {choice["license"].get("id") for part in document["components"] for choice in part["licenses"]}
    assert not [licence for licence in licences if licence and licence.startswith(("GPL", "AGPL"))]
    manifest = json.loads((native_bundle / "manifest.json").read_text(encoding="utf-8"))
    model = next(part for part in document["components"] if part["bom-ref"] == "bundle")
    assert (model["name"], model["version"]) == (manifest["name"], manifest["version"])
    assert [value for choice in model["licenses"] for value in choice["license"].values()] == [manifest["licence"]]
    for package in ("nvidia-dali-cuda130", "openvino"):
        assert list((deployed / "share/doc/decipher_rt" / package).iterdir())
