"""Ahead-of-time compilation for every architecture, and what a bundle is told about the result."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from decipher_rt.engines.bundle_kernel import evaluate
from decipher_rt.kernels import aot
from decipher_rt.kernels.aot import (
    PTX_VERSION,
    STATIC_SHARED_MEMORY,
    CompiledKernel,
    cache_folder,
    compile_kernels,
)
from decipher_rt.kernels.bundle import describe, write_kernels
from decipher_rt.kernels.config import ARCHITECTURES
from decipher_rt.kernels.resources import PRESETS, table
from decipher_rt.kernels.specs import AttentionSpec, PatchEmbed3dSpec, Spec, TissueCountsSpec, specialise

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED_CONFIG = REPOSITORY / "decipher_rt" / "default" / "weights" / "config.yaml"
# The shipped model (8^3 patches, 32 channels a head), the preset base (16^3, 64), and the third head dim.
BASE_PATCH = PatchEmbed3dSpec((128, 128, 128), (16, 16, 16), 768)
SHIPPED_PATCH = PatchEmbed3dSpec((96, 96, 96), (8, 8, 8), 192, rows=256)
SHIPPED_COUNTS = TissueCountsSpec((96, 96, 96), (8, 8, 8))
SHIPPED_ATTENTION = AttentionSpec(6, 32)
IN_A_BUNDLE = [BASE_PATCH, SHIPPED_PATCH, SHIPPED_COUNTS]
SPECS: list[Spec] = [BASE_PATCH, SHIPPED_PATCH, SHIPPED_ATTENTION, AttentionSpec(12, 64), AttentionSpec(8, 96)]
# The other dtypes, the large tiles, and a patch whose rows start on no boundary.
MORE: list[Spec] = [
    PatchEmbed3dSpec((96, 96, 96), (8, 8, 8), 192, volume="int16", rows=4096),
    PatchEmbed3dSpec((96, 96, 96), (12, 12, 12), 192, volume="uint16"),
    PatchEmbed3dSpec(
        (128, 128, 128), (16, 16, 16), 768, volume="float16", operand="bfloat16", output="bfloat16", rows=4096
    ),
    PatchEmbed3dSpec((90, 90, 90), (15, 15, 15), 200, tokens="int32", table="float16"),
    AttentionSpec(12, 64, dtype="bfloat16"),
    *(AttentionSpec(32, d, tokens=4096) for d in (64, 96)),
    # Every type of voxel; a tile that the patch fills, three quarters of one, and rows on no boundary.
    SHIPPED_COUNTS,
    TissueCountsSpec((128, 128, 128), (16, 16, 16)),
    TissueCountsSpec((96, 96, 96), (12, 12, 12), "int16"),
    TissueCountsSpec((90, 90, 90), (15, 15, 15), "float16"),
    TissueCountsSpec((64, 64, 64), (8, 8, 8), "uint16"),
]


def test_the_kernels_of_the_shipped_model_are_among_these() -> None:
    """As ``export`` asks for them, and as its resources are documented."""
    config = yaml.safe_load(SHIPPED_CONFIG.read_text())["encoder"]
    grid, patch = tuple(config["grid_shape"]), tuple(config["patch_shape"])
    shipped = {
        PatchEmbed3dSpec(grid, patch, config["width"], rows=config["token_buckets"][0]): SHIPPED_PATCH,
        TissueCountsSpec(grid, patch): SHIPPED_COUNTS,
        AttentionSpec(config["heads"], config["width"] // config["heads"]): SHIPPED_ATTENTION,
    }
    for asked, compiled in shipped.items():
        assert asked == compiled
        assert compiled in SPECS + MORE
        assert compiled in PRESETS


def name(spec: Spec) -> str:
    return specialise(spec, 90).name


def served(spec: Spec, architecture: int) -> bool:
    return architecture >= 80 or "bfloat16" not in str(spec)


JOBS = [(spec, architecture) for spec in SPECS + MORE for architecture in ARCHITECTURES if served(spec, architecture)]
Compiled = dict[tuple[Spec, int], CompiledKernel]


@pytest.fixture(scope="session")
def compiled() -> Compiled:
    everywhere = [spec for spec in SPECS + MORE if served(spec, 75)]
    newer = [spec for spec in SPECS + MORE if not served(spec, 75)]
    jobs = [(s, a) for s in everywhere for a in ARCHITECTURES] + [(s, a) for s in newer for a in ARCHITECTURES[1:]]
    return dict(zip(jobs, compile_kernels(everywhere) + compile_kernels(newer, ARCHITECTURES[1:]), strict=True))


# KiB a block may use after asking, with cudaFuncAttributeMaxDynamicSharedMemorySize, by architecture (CUDA C++
# Programming Guide, Technical Specifications).
SHARED_MEMORY_LIMIT = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99, 121: 99}
# What ptxas 12.9 spills where its successor of CUDA 13 does not: two registers, in a form that no bundle holds.
SPILLING = {("patch_embed3d-96x96x96-12x12x12-192-uint16-float16", architecture) for architecture in (120, 121)}
SPILLED = 8


def check(kernel: CompiledKernel, architecture: int) -> None:
    """What a launcher relies on."""
    assert kernel.cubin.startswith(b"\x7fELF")
    # 190 is EM_CUDA in the ELF header; the low byte of e_flags, or the next one in the newer format, is the architecture.
    assert int.from_bytes(kernel.cubin[18:20], "little") == 190
    flags = int.from_bytes(kernel.cubin[48:52], "little")
    assert architecture in (flags & 0xFF, flags >> 8 & 0xFF)
    assert kernel.entry.target == f"sm_{architecture}" + ("a" if architecture >= 90 else "")
    assert (kernel.global_scratch, kernel.profile_scratch) == (0, 0)
    resources = kernel.resources
    spilled = SPILLED if (kernel.specialisation.name, architecture) in SPILLING else 0
    assert {resources.stack_bytes, resources.spill_store_bytes, resources.spill_load_bytes} == {spilled}
    assert 0 < resources.registers <= 255
    assert kernel.threads * resources.registers <= 65536, "one block must fit the register file"
    assert kernel.shared_memory <= SHARED_MEMORY_LIMIT[architecture] * 1024
    assert kernel.asks_for_shared_memory == (kernel.shared_memory > STATIC_SHARED_MEMORY)
    pointers = {"patch_embed3d": 6, "attention": 3, "tissue_counts": 2}[kernel.specialisation.kernel]
    scalars = {"patch_embed3d": 2, "attention": 5, "tissue_counts": 0}[kernel.specialisation.kernel]
    # Inputs, int32 scalars, the output, and Triton's two hidden scratch pointers.
    assert kernel.entry.parameters == ("ptr",) * pointers + ("u32",) * scalars + ("ptr",) * 3
    # Nothing of the machine that compiled: no line table, no path.
    assert str(REPOSITORY).encode() not in kernel.cubin
    assert not re.search(r"^\s*\.(file|loc)\b", kernel.ptx, re.MULTILINE)


@pytest.mark.parametrize(
    ("spec", "architecture"), JOBS, ids=lambda value: str(value) if isinstance(value, int) else name(value)
)
def test_compiles_without_spills_or_scratch(spec: Spec, architecture: int, compiled: Compiled) -> None:
    check(compiled[spec, architecture], architecture)


def test_a_driver_of_cuda_12_takes_every_kernel(compiled: Compiled) -> None:
    """Cubins of CUDA 13 need release 580, and no driver compiles PTX newer than itself (CUDA Compatibility)."""
    for (_, architecture), kernel in compiled.items():
        assert kernel.ptxas.split(".")[0] == "12"
        assert describe(kernel)["driver"] == "12.0"
        assert re.findall(r"^\.version (\S+)", kernel.ptx, re.MULTILINE) == [f"{PTX_VERSION[architecture] / 10:.1f}"]
        if architecture <= 90:  # OS ABI and its version; CUDA 13 writes 65 and 8 for these cards too
            assert (kernel.cubin[7], kernel.cubin[8]) == (51, 7)


@pytest.mark.parametrize(
    ("architecture", "instruction"),
    [
        (80, "mma.sync.aligned.m16n8k16"),
        (90, "wgmma.mma_async"),
        (100, "tcgen05.mma"),
        (120, "mma.sync.aligned.m16n8k16"),
    ],
)
def test_uses_tensor_cores_and_asynchronous_copies(
    architecture: int, instruction: str, compiled: dict[tuple[Spec, int], CompiledKernel]
) -> None:
    for spec in SPECS:
        assert instruction in compiled[spec, architecture].ptx
    for spec in (BASE_PATCH, AttentionSpec(12, 64)):
        assert "cp.async.cg.shared.global" in compiled[spec, architecture].ptx, "16-byte copies need aligned rows"


def test_the_documented_resources_are_those_of_these_kernels(compiled: Compiled) -> None:
    documented = (REPOSITORY / "docs" / "kernels.md").read_text()
    triton = importlib.metadata.version("triton")
    if f"(Triton {triton})" not in documented:
        pytest.skip(f"the table is of another Triton than {triton}")
    lines = table(compiled[spec, a] for spec in PRESETS for a in ARCHITECTURES).splitlines()
    assert len(lines) == 2 + len(PRESETS)
    for line in lines:
        assert line in documented


def test_the_environment_does_not_change_what_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Compiled
) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    monkeypatch.setenv("TRITON_FORCE_DISABLE_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_OVERRIDE_ARCH", "sm90")
    monkeypatch.setenv("PTXAS_OPTIONS", "--opt-level 0")
    assert os.environ["TRITON_INTERPRET"] == "1"
    spec = AttentionSpec(6, 32)
    fresh = compile_kernels([spec], [80], cache=tmp_path)[0]
    assert "fma.rn.f32" in fresh.ptx
    assert fresh.cubin == compiled[spec, 80].cubin
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["kernel.cubin", "kernel.json", "kernel.ptx"]


def test_the_cache_is_used_and_keyed_by_the_source(monkeypatch: pytest.MonkeyPatch, compiled: Compiled) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(aot.concurrent.futures, "ProcessPoolExecutor", refuse)
    assert compile_kernels(SPECS, [86]) == [compiled[spec, 86] for spec in SPECS]
    monkeypatch.setattr(aot, "_source_hash", lambda kernel: "another source")
    with pytest.raises(AssertionError, match="compiled again"):
        compile_kernels(SPECS, [86])


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DECIPHER_RT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "kernels"
    monkeypatch.delenv("DECIPHER_RT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "decipher-rt" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "decipher-rt" / "kernels"
    monkeypatch.delenv("HOME")
    assert cache_folder() is None


@pytest.mark.parametrize("place", [None, "no folder"])
def test_where_nothing_can_be_kept_kernels_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str | None
) -> None:
    (tmp_path / "no folder").write_bytes(b"")
    monkeypatch.setattr(aot, "cache_folder", lambda: place and tmp_path / place / "kernels")
    (kernel,) = compile_kernels([SHIPPED_COUNTS], [80])
    assert kernel.cubin[:4] == b"\x7fELF"
    assert [path.name for path in tmp_path.iterdir()] == ["no folder"]


def test_kernels_in_a_folder_that_cannot_be_written_to_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An image's, say. Root writes everywhere, so that it cannot is played."""
    (kernel,) = compile_kernels([SHIPPED_COUNTS], [80], cache=tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(aot.os, "access", lambda *_: False)
    prepared = aot._compile_into
    monkeypatch.setattr(aot, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(aot, "_compile_into", None)  # none is asked for again
    assert compile_kernels([SHIPPED_COUNTS], [80]) == [kernel]
    monkeypatch.setattr(aot, "_compile_into", prepared)
    (other,) = compile_kernels([SHIPPED_COUNTS], [86])
    assert other.architecture == 86
    assert sorted(tmp_path.rglob("*")) == before


def test_signatures_follow_the_kernels() -> None:
    """The order in which constants are written down is the kernel's."""
    from decipher_rt.kernels import attention, patch_embed3d, tissue_counts

    for spec, kernel in (
        (BASE_PATCH, patch_embed3d.patch_embed3d_kernel),
        (AttentionSpec(2, 96), attention.attention_kernel),
        (TissueCountsSpec((8, 8, 8), (4, 4, 4)), tissue_counts.tissue_counts_kernel),
    ):
        assert list(specialise(spec, 80).signature) == list(inspect.signature(kernel.fn).parameters)


@pytest.mark.parametrize(
    ("spec", "architectures", "message"),
    [
        (AttentionSpec(2, 48), [80], "head dim must be 32, 64 or 96"),
        (AttentionSpec(2, 64, dtype="bfloat16"), [75], "sm_75 has no bfloat16"),
        (AttentionSpec(2, 64), [70], "cannot compile for \\[70\\]"),
        (PatchEmbed3dSpec((10, 10, 10), (3, 5, 5), 8), [80], "not a positive multiple of the patch"),
        (PatchEmbed3dSpec((10, 10, 10), (5, 5, 5), 8, operand="float32"), [80], "operand must be"),
        (PatchEmbed3dSpec((10, 10, 10), (5, 5, 5), 8, volume="int64"), [80], "volume must be"),
        (TissueCountsSpec((10, 10, 10), (5, 5, 3)), [80], "not a positive multiple of the patch"),
        (TissueCountsSpec((10, 10, 10), (5, 5, 5), "bfloat16"), [80], "volume must be"),
    ],
)
def test_what_no_kernel_serves_is_refused(spec: Spec, architectures: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_kernels([spec], architectures)


def test_a_failed_compilation_names_kernel_and_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(aot, "specialise", broken_specialise)
    with pytest.raises(ValueError, match=r"attention-2x64-float16 for sm_80: "):
        compile_kernels([AttentionSpec(2, 64)], [80], cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def broken_specialise(spec: Spec, architecture: int) -> object:
    good = specialise(spec, architecture)
    good.constants["BLOCK_M"] = 33  # no Triton range has this length
    return good


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, compiled: object) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "kernels"
    write_kernels(folder, IN_A_BUNDLE, [75, 90])
    return folder


def test_bundle_files(bundle: Path) -> None:
    document = json.loads((bundle / "kernels.json").read_text())
    assert document["schema"] == "decipher-rt/kernels/1"
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert files == {"kernels.json", *(kernel["cubin"] for kernel in document["kernels"])}
    assert len(files) == 1 + 2 * len(IN_A_BUNDLE)
    for kernel in document["kernels"]:
        assert hashlib.sha256((bundle / kernel["cubin"]).read_bytes()).hexdigest() == kernel["sha256"]


def test_attention_is_launched_on_the_strides_of_its_arrays(compiled: Compiled) -> None:
    """Grid, strides and arguments against the shape of a real array, which q, k, v and the result share."""
    import torch

    B, N, H, d = 3, 517, 12, 64
    kernel = describe(compiled[AttentionSpec(H, d), 90])
    array = torch.empty(B, N, H, d, dtype=torch.float16, device="meta").transpose(1, 2)
    sizes = {"batch": B, "tokens": N, "rows": B * N}
    values = {a["name"]: evaluate(a["int32"], sizes) for a in kernel["arguments"] if "int32" in a}
    assert values == {"n": N, **{f"stride_{x}b": array.stride(0) for x in "qkvo"}}
    constants = kernel["constants"]
    for axis, letter in ((1, "h"), (2, "n")):
        assert {constants[f"stride_{x}{letter}"] for x in "qkvo"} == {array.stride(axis)}
    queries = constants["BLOCK_M"]
    assert [evaluate(axis, sizes) for axis in kernel["grid"]] == [(N + queries - 1) // queries, H, B]
    assert [a["name"] for a in kernel["arguments"]][-3:] == ["out", "global_scratch", "profile_scratch"]
    assert kernel["threads"] in (128, 256)


def test_launch_data_says_what_the_wrapper_launches(bundle: Path) -> None:
    """Grid, strides and arguments from ``kernels.json``, as the runtime reads them, against real arrays."""
    import torch

    document = json.loads((bundle / "kernels.json").read_text())
    patch = next(
        k
        for k in document["kernels"]
        if k["kernel"] == "patch_embed3d" and "768" in k["name"] and k["architecture"] == "sm_90a"
    )
    sizes = {"batch": 2, "tokens": 192, "rows": 384}
    values = {a["name"]: evaluate(a["int32"], sizes) for a in patch["arguments"] if "int32" in a}
    assert values == {"rows": 384, "tokens_per_volume": 192}
    blocks = -(-384 // patch["constants"]["BLOCK_T"]) * -(-768 // patch["constants"]["BLOCK_C"])
    assert [evaluate(axis, sizes) for axis in patch["grid"]] == [blocks, 1, 1]
    assert torch.empty(2, 128, 128, 128, device="meta").stride() == tuple(
        patch["constants"][f"stride_{x}"] for x in "bdhw"
    )


def test_counting_is_launched_once_for_every_patch(compiled: Compiled) -> None:
    launch = describe(compiled[TissueCountsSpec((96, 96, 96), (12, 12, 12), "int16"), 90])
    assert [a["name"] for a in launch["arguments"]] == [
        "volume",
        "threshold",
        "out",
        "global_scratch",
        "profile_scratch",
    ]
    assert [a.get("pointer") for a in launch["arguments"]] == ["i16", "fp32", "i32", None, None]
    assert [evaluate(axis, {"batch": 3}) for axis in launch["grid"]] == [3 * 512, 1, 1]
    assert (launch["kernel"], launch["tuning"]) == ("tissue_counts", "fixed")


def test_untuned_kernels_say_so(compiled: Compiled) -> None:
    for kernel in compiled.values():
        assert describe(kernel)["tuning"] == kernel.specialisation.tuning
        assert describe(kernel)["fp_fusion"] is True


def test_the_same_kernel_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ask for each once"):
        write_kernels(tmp_path, [SHIPPED_COUNTS, SHIPPED_COUNTS], [80])
    assert list(tmp_path.iterdir()) == []
