"""What the library exports and how its structures lie in memory: neither changes without a new ABI version."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
HEADER = HERE.parents[1] / "decipher_rt" / "native" / "include" / "decipher_rt.h"


def exported(library: Path) -> list[str]:
    dump = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return sorted(line.split()[2] for line in dump.splitlines() if line.split()[1] in "TDBRVW")


def test_exported_symbols_are_those_that_were_committed(sdk: Any) -> None:
    committed = (HERE / "abi_symbols.txt").read_text(encoding="utf-8").split()
    assert exported(sdk.path) == committed, (
        "the ABI changed: a symbol that is gone or changed needs a new DRT_ABI_VERSION, a new one a new minor version; "
        "then write the list anew"
    )


def test_signatures_are_those_that_were_committed() -> None:
    """A symbol whose parameters changed keeps its name: the list of symbols does not see it."""
    header = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"(?:DRT_API|typedef)[^;{}]*\([^;{}]*;|#define DRT_ABI_VERSION \d+", header)
    signatures = [" ".join(one.split()) for one in found]
    committed = (HERE / "abi_signatures.txt").read_text(encoding="utf-8").splitlines()
    assert signatures == committed, "a signature that changed needs a new DRT_ABI_VERSION; then write the list anew"


def test_structures_are_those_that_were_committed() -> None:
    """Members that change places keep the size, and every program that was compiled before is wrong."""
    header = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = [" ".join(one.split()) for one in re.findall(r"typedef struct drt_\w+ \{[^}]*\} drt_\w+;", header)]
    assert {one.split()[2] for one in found} == set(SIZES)
    committed = (HERE / "abi_structures.txt").read_text(encoding="utf-8").splitlines()
    assert found == committed, "a structure grows at its end, or needs a new DRT_ABI_VERSION; then write the list anew"


def test_enumerations_are_those_that_were_committed() -> None:
    """A program that was compiled before has their numbers in it."""
    header = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = [" ".join(one.split()) for one in re.findall(r"enum \{[^}]*\};", header)]
    assert len(found) == len(re.findall(r"\benum\b", header))
    committed = (HERE / "abi_enumerations.txt").read_text(encoding="utf-8").splitlines()
    assert found == committed, (
        "a new name comes last with a number of its own; one that changed needs a new DRT_ABI_VERSION"
    )


def test_every_symbol_is_declared_and_versioned(sdk: Any) -> None:
    header = HEADER.read_text(encoding="utf-8")
    declared = set(re.findall(r"DRT_API [^;]*?\b(drt_\w+)\(", header))
    version = re.search(r"#define DRT_ABI_VERSION (\d+)", header)
    assert version is not None
    assert {name.split("@@")[0] for name in exported(sdk.path)} == declared
    assert all(name.endswith(f"@@DECIPHER_RT_{version[1]}") for name in exported(sdk.path))
    assert sdk.path.resolve().name == f"libdecipher_rt.so.{sdk.version()}"


def test_every_call_says_its_thread_safety() -> None:
    said = None
    for block in re.split(r"\n(?=/\*)", HEADER.read_text(encoding="utf-8").split('extern "C" {', 1)[1]):
        if block.startswith("/* ----"):  # what was said before was of another section
            said = None
        if match := re.match(r"/\* \[(any|one)\]", block):
            said = match[1]
        for name in re.findall(r"DRT_API [^;]*?\b(drt_\w+)\(", block):
            assert said is not None, f"{name}: no [any] or [one] before it"


def test_the_example_in_the_header_compiles(tmp_path: Path) -> None:
    comment = HEADER.read_text(encoding="utf-8").partition("*/")[0]
    code = [line for line in comment.splitlines() if line.startswith(" " * 7) and "#include" not in line]
    assert len(code) > 40
    given = "static int16_t voxels[170 * 256 * 256]; double affine[16] = {0}, position[3] = {0}; void *pixels = voxels;"
    source = tmp_path / "example.c"
    includes = "".join(f"#include <{name}.h>\n" for name in ("decipher_rt", "stdio", "stdlib", "string"))
    source.write_text("\n".join([includes, "int main(void) {", given, *code, "return 0;", "}", ""]), encoding="utf-8")
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", HEADER.parent, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# A structure may grow at its end, for its first member says how much of it a program knows; drt_box has no such member.
SIZES = {
    "drt_session_params": 112, "drt_cuda_params": 64, "drt_session_info": 168, "drt_head_info": 48, "drt_volume": 232,
    "drt_series_geometry": 200, "drt_slice": 56, "drt_box": 56, "drt_scope": 32, "drt_times": 56,
}  # fmt: skip


@pytest.mark.parametrize("compiler", [("cc", "-std=c99"), ("c++", "-x", "c++", "-std=c++11")])
def test_header_compiles_as_c_and_cpp_and_structures_keep_their_size(compiler: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]}")
    checks = "\n".join(f"typedef char {name}_size[sizeof({name}) == {size} ? 1 : -1];" for name, size in SIZES.items())
    source = tmp_path / "sizes.c"
    source.write_text(f"#include <decipher_rt.h>\n{checks}\n", encoding="utf-8")
    command = [
        *compiler,
        "-pedantic-errors",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        "-I",
        HEADER.parent,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_structures_of_the_tests_are_those_of_the_header(tmp_path: Path) -> None:
    import ctypes
    import sys

    binding = sys.modules.get("tests.native.conftest")
    names = {
        "Params": "drt_session_params", "Info": "drt_session_info", "HeadInfo": "drt_head_info",
        "VolumeStruct": "drt_volume", "Geometry": "drt_series_geometry", "Slice": "drt_slice", "Scope": "drt_scope",
        "Times": "drt_times", "Box": "drt_box",
    }  # fmt: skip
    if binding is None:
        pytest.skip("the binding was imported under another name")
    for name, struct in names.items():
        assert ctypes.sizeof(getattr(binding, name)) == SIZES[struct]
