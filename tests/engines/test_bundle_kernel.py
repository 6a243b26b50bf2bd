"""Which cubin of a bundle a card is given, and what it is told where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from decipher_rt.engines.bundle_kernel import ELF64_HEADER, ELF64_SECTION, BundleKernel, find_kernel, is_whole_cubin
from decipher_rt.errors import EngineError


def kernels_json(folder: Path, *architectures: str) -> Path:
    kernels = [{"kernel": k, "architecture": a} for k in ("patch_embed3d", "tissue_counts") for a in architectures]
    folder.mkdir(exist_ok=True)
    (folder / "kernels.json").write_text(json.dumps({"schema": "decipher-rt/kernels/1", "kernels": kernels}))
    return folder


@pytest.mark.parametrize(
    ("card", "cubin"),
    [(75, "sm_75"), (80, "sm_80"), (86, "sm_86"), (88, "sm_86"), (89, "sm_89"), (90, "sm_90a"), (120, "sm_120a")],
)
def test_a_cubin_serves_its_own_generation(tmp_path: Path, card: int, cubin: str) -> None:
    """As Triton names them: from sm_90 on they are for one architecture alone."""
    folder = kernels_json(tmp_path, "sm_120a", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90a")
    assert find_kernel(folder, card, "patch_embed3d")["architecture"] == cubin
    assert find_kernel(folder, card, "tissue_counts")["kernel"] == "tissue_counts"


@pytest.mark.parametrize("card", [72, 100, 121])
def test_a_card_without_a_cubin_is_told_which_there_are(tmp_path: Path, card: int) -> None:
    folder = kernels_json(tmp_path, "sm_89", "sm_90a", "sm_120a")
    with pytest.raises(
        EngineError, match=rf"tissue_counts is for sm_89, sm_90a, sm_120a, this card is sm_{card}; export"
    ):
        find_kernel(folder, card, "tissue_counts")


def test_a_bundle_without_a_kernel_is_to_be_exported_again(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="attention is for no card"):
        find_kernel(kernels_json(tmp_path, "sm_89"), 89, "attention")
    (tmp_path / "kernels.json").write_text("{")
    with pytest.raises(
        EngineError, match=r"kernels\.json: cannot be read \(JSONDecodeError\); export the bundle again"
    ):
        find_kernel(tmp_path, 89, "patch_embed3d")
    (tmp_path / "kernels.json").write_text('{"schema": "other"}')
    with pytest.raises(EngineError, match="schema is 'other', this runtime reads 'decipher-rt/kernels/1'"):
        find_kernel(tmp_path, 89, "patch_embed3d")


@pytest.mark.parametrize(
    "launch_data",
    ["[" * 100_000, "[]", '{"schema": "decipher-rt/kernels/1"}', '{"schema": "decipher-rt/kernels/1", "kernels": [1]}'],
    ids=["nested", "list", "no kernels", "numbers"],
)
def test_what_is_no_launch_data_is_to_be_exported_again(tmp_path: Path, launch_data: str) -> None:
    (tmp_path / "kernels.json").write_text(launch_data)
    with pytest.raises(EngineError, match=r"kernels\.json: cannot be read \(\w+\); export the bundle again"):
        find_kernel(tmp_path, 89, "patch_embed3d")


def test_a_launch_of_nothing_is_to_be_exported_again() -> None:
    kernel = BundleKernel.__new__(BundleKernel)
    kernel._launch_data = {"grid": [{"times": 1, "size": None, "block": 0}] * 3}
    with pytest.raises(EngineError, match=r"not launch data \(ZeroDivisionError.*\); export the bundle again"):
        kernel.bind({}, {})


@pytest.mark.parametrize(
    ("needed", "driver", "refused"),
    [
        ("12.0", "12.4", False),
        ("12.0", "13.0", False),
        ("13.0", "12.9", True),
        ("12.10", "12.9", True),
        (None, "12.0", False),
    ],
)
def test_a_driver_older_than_a_kernel_is_told_what_it_needs(
    tmp_path: Path, needed: str | None, driver: str, refused: bool
) -> None:
    folder = kernels_json(tmp_path, "sm_90a")
    document = json.loads((folder / "kernels.json").read_text())
    for kernel in document["kernels"]:
        kernel |= {"driver": needed} if needed else {}
    (folder / "kernels.json").write_text(json.dumps(document))
    played = Mock(architecture=90, version=driver)
    # Nothing is read of the kernel before: what follows is that this launch data names no cubin.
    message = (
        f"for sm_90a needs a driver of CUDA {needed} or later, this one is of CUDA {driver}" if refused else "cubin"
    )
    with pytest.raises(EngineError, match=message):
        BundleKernel(folder, played, "patch_embed3d")


def test_launch_data_that_name_no_driver_are_one_line(tmp_path: Path) -> None:
    folder = kernels_json(tmp_path, "sm_90a")
    document = json.loads((folder / "kernels.json").read_text())
    document["kernels"][0]["driver"] = "new"
    (folder / "kernels.json").write_text(json.dumps(document))
    with pytest.raises(EngineError, match=r"no usable patch_embed3d \(ValueError: .*'new'"):
        BundleKernel(folder, Mock(architecture=90, version="12.4"), "patch_embed3d")


def test_a_cubin_outside_the_bundle_is_never_loaded(tmp_path: Path) -> None:
    folder, outside = kernels_json(tmp_path / "kernels", "sm_90a"), tmp_path / "x.cubin"
    outside.touch()
    document = json.loads((folder / "kernels.json").read_text())
    document["kernels"][0] |= {"cubin": str(outside), "entry": "main", "shared_memory_bytes": 0}
    document["kernels"][0] |= {"raise_shared_memory_limit": False}
    (folder / "kernels.json").write_text(json.dumps(document))
    driver = Mock(architecture=90, version="12.4")
    with pytest.raises(EngineError, match=r"no usable patch_embed3d .* is not in the bundle"):
        BundleKernel(folder, driver, "patch_embed3d")
    assert driver.mock_calls == []


def test_a_cubin_that_is_not_whole_is_refused() -> None:
    """One section with content, and one without, which may be as large as it likes."""

    def cubin(offset: int) -> bytes:
        header = ELF64_HEADER.pack(b"\x7fELF\x02", 2, 190, 1, 0, 0, 64, 0, 64, 56, 0, 64, 2, 0)
        content = ELF64_SECTION.pack(0, 1, 0, 0, offset, 4, 0, 0, 1, 0)
        shared = ELF64_SECTION.pack(0, 8, 0, 0, 0, 1 << 20, 0, 0, 1, 0)
        return header + content + shared + b"code"

    whole = cubin(64 + 2 * 64)
    assert is_whole_cubin(whole)
    assert not any(is_whole_cubin(whole[:size]) for size in (0, 3, 63, 64, 128, len(whole) - 1))
    assert not is_whole_cubin(cubin((1 << 64) - 4))
    assert not is_whole_cubin(b"// a PTX text, whatever it holds, that is longer than the header of an ELF file\n")
