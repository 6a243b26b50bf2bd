"""Bundles: whole or not there, and opened only if every byte is the one that was written."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from decipher_rt.bundle import open_bundle, require_bundle_place, write_bundle
from decipher_rt.errors import BundleError
from decipher_rt.manifest import Encoder, EngineFile, Head, Manifest, Numerics, Preprocessing

MANIFEST = Manifest(
    name="toy",
    version="1",
    intended_use="tests",
    licence="Apache-2.0",
    preprocessing=Preprocessing((8, 8, 8), (2.0, 2.0, 2.0), (4, 4, 4), (4, 8), graphs={"cpu": "preprocess.cpu.dali"}),
    encoder=Encoder(width=8, embedding_size=4, parameters=10),
    engines=(EngineFile("onnx", "fp32", "encoder.onnx"),),
    heads=(Head("lesion", "classification", "heads/lesion.onnx", labels=("absent", "present")),),
    numerics=(Numerics("fp32", 1.0, 0.0, 0.0, 0.0, 1e-4),),
)
FILES = {"encoder.onnx": b"encoder", "heads/lesion.onnx": b"head", "preprocess.cpu.dali": b"graph"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", MANIFEST, FILES)
    return tmp_path / "bundle"


def reseal(folder: Path) -> None:
    """Make the sums right again after a change, as someone hostile would."""
    names = sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS"
    )
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def edit(folder: Path, change) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    change(document)
    (folder / "manifest.json").write_text(json.dumps(document))
    reseal(folder)


def test_what_was_written_is_what_is_opened(bundle):
    opened = open_bundle(bundle)
    assert opened.manifest == MANIFEST
    assert opened.file("encoder.onnx").read_bytes() == b"encoder"
    assert opened.sha256 == hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()


def test_sums_are_those_of_coreutils(bundle):
    assert (
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=bundle, capture_output=True).returncode
        == 0
    )


def test_replacing_a_bundle_leaves_nothing_beside_it(bundle):
    write_bundle(bundle, MANIFEST, {**FILES, "encoder.onnx": b"another"})
    assert open_bundle(bundle).file("encoder.onnx").read_bytes() == b"another"
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_a_failed_write_keeps_the_old_bundle(bundle):
    with pytest.raises(BundleError, match=r"names encoder\.onnx"):
        write_bundle(bundle, MANIFEST, {k: v for k, v in FILES.items() if k != "encoder.onnx"})
    assert open_bundle(bundle).file("encoder.onnx").read_bytes() == b"encoder"
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(tmp_path / "photos", MANIFEST, FILES)
    assert (tmp_path / "photos" / "cat.png").exists()


def test_a_folder_that_holds_more_than_a_bundle_is_never_replaced(tmp_path, bundle):
    (tmp_path / "webapp").mkdir()
    (tmp_path / "webapp" / "manifest.json").write_text('{"manifest_version": 3}')
    with pytest.raises(BundleError, match="not a bundle"):
        require_bundle_place(tmp_path / "webapp")
    (bundle / "heads" / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"holds heads/notes\.txt"):
        write_bundle(bundle, MANIFEST, FILES)
    (bundle / "heads" / "notes.txt").rename(tmp_path / "notes.txt")
    (bundle / "encoder.onnx").write_bytes(b"damaged")
    write_bundle(bundle, MANIFEST, FILES)
    assert open_bundle(bundle).file("encoder.onnx").read_bytes() == b"encoder"


def test_a_bundle_that_took_its_place_hands_out_nothing(bundle):
    opened = open_bundle(bundle)
    write_bundle(bundle, MANIFEST, {**FILES, "heads/lesion.onnx": b"trained again"})
    with pytest.raises(BundleError, match="written anew since"):
        opened.file("heads/lesion.onnx")


def _append(folder):
    with (folder / "encoder.onnx").open("ab") as file:
        file.write(b"x")


DAMAGE = {
    "altered": (_append, "encoder.onnx differs"),
    "missing": (lambda f: (f / "encoder.onnx").unlink(), "encoder.onnx is listed"),
    "unlisted": (lambda f: (f / "extra.so").touch(), "extra.so is not listed"),
    "link": (
        lambda f: ((f / "encoder.onnx").unlink(), (f / "encoder.onnx").symlink_to("/etc/hostname")),
        "symbolic link",
    ),
    "no sums": (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
    "bad sums": (lambda f: (f / "SHA256SUMS").write_text("hello\n"), "line 1"),
    "binary sums": (lambda f: (f / "SHA256SUMS").write_bytes(b"\xff\xfe"), "not UTF-8"),
    "escaping sums": (
        lambda f: (f / "SHA256SUMS").write_text("0" * 64 + "  ../../etc/passwd\n"),
        "plain relative path",
    ),
    "sums with the line ends of Windows": (
        lambda f: (f / "SHA256SUMS").write_bytes((f / "SHA256SUMS").read_bytes().replace(b"\n", b"\r\n")),
        "line 1",
    ),
    "no manifest in sums": (
        lambda f: (f / "SHA256SUMS").write_text("0" * 64 + "  encoder.onnx\n"),
        "does not list manifest",
    ),
    "manifest no JSON": (lambda f: ((f / "manifest.json").write_text("{"), reseal(f)), "not JSON"),
    "manifest a list": (lambda f: ((f / "manifest.json").write_text("[]"), reseal(f)), "expected an object"),
    "deep JSON": (lambda f: ((f / "manifest.json").write_text("[" * 200_000), reseal(f)), "not JSON"),
    "another schema": (lambda f: edit(f, lambda d: d.update(schema="decipher-rt/bundle/9")), "bundle/9"),
    "unknown key": (lambda f: edit(f, lambda d: d.update(exec="rm")), "exec"),
    "missing key": (lambda f: edit(f, lambda d: d.pop("encoder")), "manifest.encoder"),
    "wrong type": (lambda f: edit(f, lambda d: d["encoder"].update(width="8")), "encoder.width"),
    "true is no number": (lambda f: edit(f, lambda d: d["encoder"].update(width=True)), "encoder.width"),
    "wrong length": (lambda f: edit(f, lambda d: d["preprocessing"].update(grid_shape=[8, 8])), "3 entries"),
    "grid not a multiple": (
        lambda f: edit(f, lambda d: d["preprocessing"].update(grid_shape=[9, 8, 8])),
        "must be a multiple",
    ),
    "buckets": (lambda f: edit(f, lambda d: d["preprocessing"].update(token_buckets=[4])), "token_buckets"),
    "unknown kind": (lambda f: edit(f, lambda d: d["heads"][0].update(kind="oracle")), "one of"),
    "escaping head": (lambda f: edit(f, lambda d: d["heads"][0].update(file="../../x.onnx")), "plain relative path"),
    "absent head": (lambda f: edit(f, lambda d: d["heads"][0].update(file="heads/none.onnx")), "heads/none.onnx"),
    "same label twice": (lambda f: edit(f, lambda d: d["heads"][0].update(labels=["no", "no"])), "two labels"),
    "percent for shares": (lambda f: edit(f, lambda d: d["preprocessing"].update(min_tissue=5)), "min_tissue 5"),
    "negative tolerance": (lambda f: edit(f, lambda d: d["numerics"][0].update(tolerance=-1)), "tolerance is -1"),
    "no embedding": (lambda f: edit(f, lambda d: d["encoder"].update(embedding_size=-5)), "embedding_size is -5"),
    "endless parameters": (lambda f: edit(f, lambda d: d["encoder"].update(parameters=10**400)), "parameters is 1000"),
    "infinite figure": (
        lambda f: (
            (f / "manifest.json").write_text(
                (f / "manifest.json").read_text().replace('"metrics": {', '"metrics": {"x": 1e999', 1)
            ),
            reseal(f),
        ),
        "1e999 is beyond",
    ),
    "same head twice": (lambda f: edit(f, lambda d: d["heads"].append(d["heads"][0])), "same name"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(bundle, damage):
    spoil, expected = DAMAGE[damage]
    spoil(bundle)
    with pytest.raises(BundleError, match=expected) as error:
        open_bundle(bundle)
    assert "\n" not in str(error.value)


def test_names_that_leave_the_folder_are_not_written(tmp_path):
    for name in ("/abs", "../up", "a/../b", "", "a//b", "a\\b", "./a"):
        with pytest.raises(BundleError, match="plain relative path"):
            write_bundle(tmp_path / "bundle", MANIFEST, {**FILES, name: b""})
    assert list(tmp_path.iterdir()) == []


def test_encoders_may_be_checked_when_they_are_used(bundle):
    """Nothing that was altered is handed out, and nothing is checked twice over."""
    with (bundle / "encoder.onnx").open("ab") as file:
        file.write(b"x")
    opened = open_bundle(bundle, only_used=True)
    with pytest.raises(BundleError, match=r"encoder\.onnx differs"):
        opened.file("encoder.onnx")
    with pytest.raises(BundleError, match=r"encoder\.onnx differs"):
        open_bundle(bundle)


def test_only_encoders_may_wait(bundle):
    for name in ("manifest.json", "heads/lesion.onnx", "preprocess.cpu.dali"):
        before = (bundle / name).read_bytes()
        (bundle / name).write_bytes(before + b" ")
        with pytest.raises(BundleError, match=re.escape(f"{name} differs")):
            open_bundle(bundle, only_used=True)
        (bundle / name).write_bytes(before)
