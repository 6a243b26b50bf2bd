"""``infer`` with heads of every kind and with prompts, as a person and a program see it; and what is not imported."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pytest
from click import unstyle

from decipher_rt.boxes import Box
from decipher_rt.cli.infer import say_box
from decipher_rt.series import find_series, read_series
from decipher_rt.writers.segmentation import nifti_affine

COMMAND = [sys.executable, "-c", "from decipher_rt.cli import main; main()"]


def run(*arguments, status=0) -> subprocess.CompletedProcess:
    finished = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=240)
    assert finished.returncode == status, finished.stderr
    return finished


@pytest.fixture(scope="module")
def series(tmp_path_factory, write_series) -> Path:
    """Slices of 3 mm, tilted, with a bright corner; both ends of the window are there."""
    voxels = np.full((40, 50, 60), 400, np.uint16)
    voxels[:2], voxels[28:, 25:, 30:] = 0, 1000
    turn = np.radians(10)
    affine = np.array(
        [
            [0, 0, 2.2, -66],
            [3 * np.sin(turn), 2 * np.cos(turn), 0, -60],
            [3 * np.cos(turn), -2 * np.sin(turn), 0, -50],
            [0, 0, 0, 1],
        ]
    )
    return write_series(tmp_path_factory.mktemp("series") / "tilted", voxels=voxels, affine=affine)


def test_out_holds_segmentation_boxes_and_prompts(answering_bundle, series, tmp_path):
    """The file lies over the source, and the brightest label lies in the bright corner, as nibabel sees it."""
    prompts = ("--prompt", "a bright image", "--prompt", "the dark brain")
    printed = run("infer", series, "-b", answering_bundle, "-o", tmp_path / "out", "--png", "--json", *prompts)
    document = json.loads(printed.stdout)
    schema = json.loads((files("decipher_rt") / "schemas" / "result-1.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    folder = tmp_path / "out" / document["series"]["uid"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "embedding.npy", "result.json", "tissue.nii.gz", "views.png"
    ]  # fmt: skip
    assert document["heads"]["tissue"]["file"] == str(folder / "tissue.nii.gz")
    assert set(document["prompts"]) == {"a bright image", "the dark brain"}
    source = read_series(find_series(series)[0])
    image = nibabel.load(folder / "tissue.nii.gz")
    assert image.shape == source.voxels.shape[::-1]
    assert image.affine == pytest.approx(nifti_affine(source.affine_lps_mm), abs=1e-4)
    labels = np.asarray(image.dataobj).transpose(2, 1, 0)
    # Whole patches of 32 mm that are nearly all bright: none of it lies outside the corner, and some does in it.
    corner = source.voxels == 1000
    assert labels[corner].max() == 2
    assert (labels[~corner] == 2).mean() < 0.05
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    for label in document["heads"]["tissue"]["labels"]:
        written_ml = (labels == label["value"]).sum() * voxel_ml
        assert label["volume_ml"] == pytest.approx(written_ml, rel=0.05, abs=1)
    (box,) = document["heads"]["brightest"]["boxes"]
    index = np.linalg.inv(source.affine_lps_mm) @ [*box["center_lps_mm"], 1]
    assert source.voxels[tuple(np.round(index[:3]).astype(int))] == 1000


def test_a_person_reads_volumes_boxes_notes_and_prompts(answering_bundle, series, tmp_path):
    shown = run("infer", series, "-b", answering_bundle, "--prompt", "dark").stdout
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "ml" in lines["tissue"]
    assert "bright" in lines["tissue"]
    assert "mm (S x A x R) at" in lines["brightest"]
    assert "score" in lines["brightest"]
    assert "%" in lines["mean_percent"]
    assert "Toy, knows nothing." in shown
    assert "cosine" in lines["prompt"]
    assert "probability needs a second prompt" in lines["prompt"]


@pytest.mark.parametrize(
    ("center", "said"), [((31.0, -12.0, 40.0), "L 31 A 12 S 40"), ((-31.0, 12.0, -40.0), "R 31 P 12 I 40")]
)
def test_a_person_is_told_the_side_of_a_box(center, said):
    box = Box(0.5, center, (4.0, 5.0, 6.0), ((0, 0, 1), (0, -1, 0), (-1, 0, 0)))
    assert unstyle(say_box(box)) == f"4 x 5 x 6 mm (S x A x R) at {said} mm, score 50.0%"


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["--prompt", ""], "empty"),
        (["--prompt", "xyzzy"], "no word that the model knows"),
        (["--prompt", "dark", "--prompt", "dark"], "given twice"),
        (["--prompt", "brain " * 10_000], "shorten it"),
    ],
)
def test_a_prompt_that_is_none_ends_in_one_line(answering_bundle, series, prompts, said):
    failed = run("infer", series, "-b", answering_bundle, *prompts, status=2)
    assert said in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert failed.stdout == ""


def test_inspect_names_text_and_notes(answering_bundle):
    shown = run("inspect", answering_bundle).stdout
    assert "tissue: segmentation background, tissue, bright" in shown
    assert "Toy, knows nothing." in shown
    assert "text.onnx, 16 tokens at most" in shown


def test_what_is_not_used_is_not_imported(answering_bundle, series):
    """An answer without prompts, files and pictures needs none of what those need."""
    code = (
        "import sys, decipher_rt; result = decipher_rt.load(sys.argv[1]).infer(sys.argv[2]); "
        "assert result.heads['tissue'].volumes_ml and result.to_json(); "
        "heavy = {'tokenizers', 'usearch', 'nibabel', 'PIL', 'torch', 'onnx', 'decipher_rt.text', 'decipher_rt.index', "
        "'decipher_rt.writers'} & set(sys.modules); assert not heavy, heavy"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, str(answering_bundle), str(series)], capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("package", ["tokenizers", "usearch"])
def test_a_missing_package_is_named_with_its_extra(answering_bundle, package):
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['decipher-rt', *sys.argv[1:]]; "
        "from decipher_rt.cli import _what_to_install\n"
        f"try:\n import {package}\nexcept ModuleNotFoundError as error:\n print(_what_to_install(error))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.stdout.strip() == (
        f"this command needs {package}; install it with: pip install 'decipher-rt[text]'"
    ), finished.stderr


def test_a_bundle_of_every_kind_is_profiled_cold_and_warm(answering_bundle, series):
    report = json.loads(
        run("profile", series, "-b", answering_bundle, "--runs", 2, "--cold", 1, "--threads", 1, "--json").stdout
    )
    assert (report["total"]["runs"], report["cold"]["runs"]) == (2, 1)
    assert report["stages"]["heads"]["p50_ms"] > 0
