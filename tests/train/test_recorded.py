"""Manifests: what is listed is what is read, as the runtime reads it, and broken rows are named."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Preprocessor
from decipher_rt.series import find_series, read_series
from decipher_rt.train.progress import Progress
from decipher_rt.train.sources import SourceConfig, open_source, patients_of, pinned, recorded, seen_again
from decipher_rt.train.sources import rows as listed
from decipher_rt.train.sources.manifest import read_manifest
from decipher_rt.train.sources.recorded import Recorded, rows_of_split
from decipher_rt.train.sources.rows import SourceError, sentences, share_out

from .manifests import PIECES, again, as_listed, opened, write_csv

SPEC = Preprocessing(grid_shape=(24,) * 3, spacing_mm=(10.0,) * 3, patch_shape=(8,) * 3, token_buckets=(27,))
ROWS = (
    'a,p1,train,T1w,61,"Normal ventricles. No lesion,',
    'nothing else.",head,',
    "b,p1,,T2w,n/a,,,",
    "c.nii.gz,p2,train,,58.5,,,1",
)


def test_a_manifest_is_read_as_the_runtime_reads(cohort: Path) -> None:
    config = SourceConfig(kind="manifest", path=str(write_csv(cohort, *ROWS)))
    examples = opened(config, cohort / "cache")
    assert len(examples) == 3
    first, second, third = as_listed(config, examples)
    assert first.labels == {"sequence": "T1w", "age": 61.0}
    assert first.report == ("Normal ventricles.", "No lesion,", "nothing else.")
    assert (first.region, first.patient, first.boxes, first.tissue) == ("head", "p1", None, None)
    assert (second.labels, second.report, second.region) == ({"sequence": "T2w"}, (), None)
    assert third.labels == {"age": 58.5}
    volume = read_series(find_series(cohort / "a")[0])
    grid = Preprocessor(None, PIECES)(volume)
    low, high = volume.percentiles(PIECES.window_percentiles)
    expected = ((grid.volume - low) / (high - low)).clip(-0.5, 2.0)
    assert np.abs(first.volume - expected).max() <= 2**-10  # half precision, of values up to 2
    assert np.array_equal(first.affine_lps_mm, grid.affine_lps_mm)
    files = list((cohort / "cache").rglob("*.safetensors"))
    assert len(files) == 3
    for path in files:
        with safe_open(path, framework="numpy") as file:
            kept = file.metadata()["facts"]
        # What is known of a series stays in the manifest.
        assert "p1" not in kept
        assert "ventricles" not in kept


def test_a_corrected_label_reads_no_image_again(cohort: Path) -> None:
    config = SourceConfig(kind="manifest", path=str(write_csv(cohort, *ROWS)))
    opened(config, cohort / "cache")
    before = {path: path.stat().st_mtime_ns for path in (cohort / "cache").rglob("*.safetensors")}
    write_csv(cohort, *[row.replace("T2w", "FLAIR") for row in ROWS])
    examples = opened(config, cohort / "cache")
    (corrected,) = (i for i in range(3) if examples[i].labels.get("sequence") == "FLAIR")
    assert examples.facts(corrected).labels == {"sequence": "FLAIR"}
    assert {path: path.stat().st_mtime_ns for path in (cohort / "cache").rglob("*.safetensors")} == before


def test_a_changed_series_is_read_anew_alone(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = "\n".join(ROWS[:2]), *ROWS[2:]
    config = SourceConfig(kind="manifest", path=str(write_csv(cohort, a, b, c)))
    before = opened(config, cohort / "cache").name
    read: list[str] = []
    monkeypatch.setattr(recorded, "read_series", lambda one, how: read.append(one.path.name) or read_series(one, how))
    (cohort / "b").rename(cohort / "d")
    d = b.replace("b,", "d,")
    write_csv(cohort, d, a, c)
    changed = opened(config, cohort / "cache").name
    write_csv(cohort, c, d, a)
    assert opened(config, cohort / "cache").name == changed != before
    assert read == ["d"]


def test_slices_behind_a_link_are_read_anew_when_they_change(cohort: Path) -> None:
    (cohort / "linked").mkdir()
    (cohort / "linked" / "slices").symlink_to(cohort / "a")
    config = SourceConfig(kind="manifest", path=str(write_csv(cohort, "linked,p1,train,T1w,,,,")))
    before = opened(config, cohort / "cache")[0].volume
    for slice_ in (cohort / "a").iterdir():
        slice_.write_bytes((cohort / "b" / slice_.name).read_bytes())
    assert not np.array_equal(opened(config, cohort / "cache")[0].volume, before)


def test_jsonl_says_the_same(cohort: Path) -> None:
    path = cohort / "cohort.jsonl"
    rows = [
        {"path": "a", "patient": "p1", "split": "train", "report": ["One.", " Two. Still two."], "labels": {"age": 61}},
        {"path": "b", "patient": "p1", "labels": {"age": None, "sex": "F"}, "region": "head"},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    first, second = read_manifest(path)
    assert first.facts.report == ("One.", "Two. Still two.")
    assert (first.facts.labels, second.facts.labels) == ({"age": 61.0}, {"sex": "F"})
    assert (first.split, second.split, second.facts.region) == ("train", None, "head")


@pytest.mark.parametrize("unknown", ["n/a", " NA ", "null", "NaN", "", math.nan])
def test_what_is_unknown_in_jsonl_is_what_is_unknown_in_csv(cohort: Path, unknown: str | float) -> None:
    path = cohort / "cohort.jsonl"
    row = dict.fromkeys(("split", "region", "mask", "boxes", "volume"), unknown) | {"labels": {"age": unknown}}
    rows = [row | {"path": "a", "patient": "p1", "report": unknown}]
    rows += [row | {"path": "b", "patient": "p2", "report": [unknown, "One."]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_manifest(path)
    assert (first.facts.report, second.facts.report) == ((), ("One.",))
    for row in (first, second):
        assert (row.split, row.facts.region, row.mask, row.facts.boxes, row.facts.labels) == (
            None,
            None,
            None,
            None,
            {},
        )
    path.write_text(json.dumps({"path": "a", "patient": unknown}))
    with pytest.raises(SourceError, match=r"line 1, column patient: is empty"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("absent,p2,,,,,,", r"line 3, column path: .*absent does not exist"),
        (",p2,,,,,,", r"line 3, column path: is empty"),
        ("b,,,,,,,", r"line 3, column patient: is empty"),
        ("b,p2,val,,,,,", r"line 3, column split: 'val', expected one of train, validation, test"),
        ("b,p2,,,inf,,,", r"line 3, column age: 'inf', expected a finite number"),
        ("b,p2,,,,,,-1", r"line 3, column volume: '-1', expected a whole number"),
        ("b,p2,,,,Normal, but,,", r"line 3: 9 columns, expected 8 .*put text with commas in double quotes"),
        ("a,p2,,,,,,", r"line 3, column path: the same series as .*line 2; list it once"),
        ("b,p1,test,,,,,", r"line 3, column split: 'test', but .*line 2 puts the same patient in 'train'"),
        ("b,p2,,,1e39,,,", r"line 3, column age: '1e39', expected a finite number"),
        (f"b,p2,,,,,,{'9' * 5000}", r"line 3, column volume: '9{40}', expected a whole number"),
        (f"{'b' * 5000},p2,,,,,,", r"line 3, column path: .*b cannot be read \(File name too long\)"),
        ('b,p1,test,,,"unclosed,,', r"line 3: not CSV"),
        ("c.nii.gz,p2,train,,,,,7", r"line 3, column path: .*c.nii.gz: .*has 2 volumes"),
        (".,p2,train,,,,,", r"line 3, column path: .*: holds 3 series; give a folder or a file with one"),
    ],
)
def test_broken_rows_are_named(cohort: Path, row: str, said: str) -> None:
    path = write_csv(cohort, "a,p1,train,T1w,61,,,", row)
    with pytest.raises(SourceError, match=said) as caught:
        opened(SourceConfig(kind="manifest", path=str(path)), cohort / "cache")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "p1" not in str(caught.value).replace(str(cohort), "")  # whose it is


def test_all_broken_rows_are_counted(cohort: Path) -> None:
    path = write_csv(cohort, "a,p1,x,,,,,", "b,p2,,,,,,", "absent,p3,,,,,,")
    with pytest.raises(SourceError, match=r"line 2, column split.* \(and 1 more broken rows: line 4, column path\)$"):
        read_manifest(path)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_series_that_cannot_be_read_are_said_together(cohort: Path, workers: int) -> None:
    """Those that could be read are kept."""
    (cohort / "cut.nii.gz").write_bytes((cohort / "c.nii.gz").read_bytes()[:60])
    rows = ("cut.nii.gz,p1,train,,,,,", "a,p1,train,,,,,", "c.nii.gz,p2,train,,,,,7", "b,p2,train,,,,,9")
    config = SourceConfig(kind="manifest", path=str(write_csv(cohort, *rows)))
    more = r"\(and 2 more series that cannot be read: line 4, column path; line 5, column path\)$"
    with pytest.raises(SourceError, match=r"cohort.csv, line 2, column path: .*cut.nii.gz: .* " + more):
        open_source(config, PIECES, "train", cohort / "cache", workers, Progress())
    assert len(list((cohort / "cache").rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("unknown", ["", "n/a", "null", "NULL", "NA", "NaN"])
def test_a_cell_that_says_nothing_turns_no_column_to_text(cohort: Path, unknown: str) -> None:
    path = write_csv(cohort, "a,p1,train,T1w,61,,,", f"b,p2,,{unknown},{unknown},,,", "c.nii.gz,p3,,none,7,,,")
    labels = [row.facts.labels for row in read_manifest(path)]
    assert labels == [{"sequence": "T1w", "age": 61.0}, {}, {"sequence": "none", "age": 7.0}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"is empty"),
        ("path,split\n", r"line 1: no column patient"),
        ("path,patient,age,age\n", r"line 1: column 3 is 'age'"),
        ("path,patient\n", r"lists no series"),
        ("\xff", r"cannot be read \(UnicodeDecodeError\)"),
    ],
)
def test_broken_manifests_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cohort.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=said):
        read_manifest(path)
    with pytest.raises(SourceError, match=r"absent.csv: cannot be read \(FileNotFoundError\)"):
        read_manifest(tmp_path / "absent.csv")


def test_a_list_and_the_files_on_it_are_looked_at_once(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SourceConfig(kind="manifest", path=str(write_csv(cohort, *ROWS)))
    looked: list[str] = []
    for module, name in ((recorded, "read_manifest"), (listed, "_files")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, f=function: looked.append(path.name) or f(path))
    open_source(config, PIECES, "train", cohort / "cache", 1, Progress())
    patients_of(config, "train")
    pinned(config)
    assert sorted(looked) == ["a", "b", "c.nii.gz", "cohort.csv"]


def test_what_made_a_grid_names_its_file(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row, *_) = rows_of_split(SourceConfig(kind="manifest", path=str(write_csv(cohort, *ROWS))), "train")
    on_cpu, on_gpu = (Recorded(row, PIECES, device).file(cohort) for device in ("cpu", "gpu"))
    monkeypatch.setattr(recorded, "LAYOUT", recorded.LAYOUT + 1)
    assert len({on_cpu, on_gpu, Recorded(row, PIECES, "cpu").file(cohort)}) == 3


def test_patients_are_known_by_short_hashes(cohort: Path) -> None:
    path = write_csv(cohort, "a,001,train,,,,,", "b,sub-001,,,,,,", "c.nii.gz,002,test,,,,,0")
    config = SourceConfig(kind="manifest", path=str(path), shares=(1.0, 0.0, 0.0))
    train, test = patients_of(config, "train"), patients_of(config, "test")
    assert len(train) == len(test) == 1  # with the prefix of BIDS or without, it is one
    assert not train & test
    assert patients_of(config, "train", "test") == train | test
    assert patients_of(SourceConfig(), "train") == set()
    assert seen_again(config, train, "train") == train
    assert seen_again(config, train, "test") == set()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", r"line 1: not JSON"),
        ("[1]", r"line 1: holds list"),
        ('{"path": "a", "patient": 7}', r"line 1, column patient: 7, expected text"),
        ('{"path": "a", "patient": "p", "raport": ""}', r"line 1, column raport: no such key"),
        ('{"path": "a", "patient": "p", "labels": [1]}', r"line 1, column labels: list"),
        ('{"path": "a", "patient": "p", "labels": {"age": true}}', r"line 1, column labels.age: True"),
        ('{"path": "a", "patient": "p", "labels": {"age": Infinity}}', r"line 1, column labels.age: inf"),
        (
            '{"path": "a", "patient": "p", "labels": {"age": 1%s}}' % ("0" * 400),
            r"line 1, column labels.age: 10{39}, exp",
        ),
        ('{"path": "a", "patient": "p", "labels": %s}' % ("[" * 100_000), r"line 1: not JSON"),
        ('{"path": "a", "patient": "\\ud800"}', r"line 1: not JSON .*surrogates not"),
        ('{"path": "a", "patient": "p", "report": {}}', r"line 1, column report: dict"),
        (
            '{"path": "a", "patient": "p", "labels": {"age": 3}}\n{"path": "b", "patient": "q", "labels": {"age": "3"}}',
            r"line 2, column labels.age: '3' is of another type than in .*line 1",
        ),
    ],
)
def test_broken_lines_of_jsonl_are_named(cohort: Path, row: str, said: str) -> None:
    path = cohort / "cohort.jsonl"
    path.write_text(row)
    with pytest.raises(SourceError, match=said):
        read_manifest(path)


def test_line_separators_of_unicode_end_no_line(cohort: Path) -> None:
    """They stand as they are in the JSON that other programs write, and in reports that were copied from elsewhere."""
    report = "No lesion.\u2028Wide ventricles.\x85Old infarct."
    path = cohort / "cohort.jsonl"
    path.write_text(json.dumps({"path": "a", "patient": "p", "report": report}, ensure_ascii=False), encoding="utf-8")
    assert read_manifest(path)[0].facts.report == ("No lesion.", "Wide ventricles.", "Old infarct.")


def test_patients_without_a_split_are_shared_out_and_stay(tmp_path: Path) -> None:
    for i in range(400):
        (tmp_path / f"{i}.nii").touch()
    rows = [f"{i}.nii,p{i // 2},," for i in range(400)]
    listed = read_manifest(write_csv(tmp_path, *rows, header="path,patient,split,age"))
    found = share_out(listed, 0, (0.5, 0.25, 0.25))
    patients = {split: {row.facts.patient for row in rows} for split, rows in found.items()}
    assert sum(len(p) for p in patients.values()) == len(set.union(*patients.values())) == 200
    # 200 draws: three standard deviations of a binomial with p = 0.5.
    assert abs(len(patients["train"]) - 100) <= 21
    fewer = share_out(listed[:100], 0, (0.5, 0.25, 0.25))
    assert all(row in found[split] for split, rows in fewer.items() for row in rows)
    assert share_out(listed, 1, (0.5, 0.25, 0.25)) != found


def test_the_order_of_a_list_makes_no_difference(tmp_path: Path) -> None:
    """Statistics are of the first series of a split: those of a list that is sorted by site would be of one."""
    for i in range(100):
        (tmp_path / f"{i}.nii").touch()
    lines = [f"{i}.nii,p{i // 2},{'north' if i < 50 else 'south'}" for i in range(100)]
    config = SourceConfig(kind="manifest", path=str(write_csv(tmp_path, *lines, header="path,patient,site")))
    found, first = rows_of_split(config, "train"), pinned(again(config))
    write_csv(tmp_path, *reversed(lines), header="path,patient,site")
    turned = again(config)
    assert [row.path for row in rows_of_split(turned, "train")] == [row.path for row in found]
    assert pinned(turned) == first
    moved = [
        dataclasses.replace(row, path=Path("/mounted") / row.path.name) for row in read_manifest(Path(config.path))
    ]
    assert [row.path.name for row in share_out(moved, config.seed, config.shares)["train"]] == [
        row.path.name for row in found
    ]
    odd = dataclasses.replace(found[0], path=Path("/mounted/\udcff.nii"))  # a name that is no UTF-8
    assert sum(map(len, share_out([odd], 0, config.shares).values())) == 1
    south = sum(row.facts.labels["site"] == "south" for row in found[:40])
    assert abs(south - 20) <= 9  # three standard deviations of 40 draws


def test_a_split_without_series_is_refused(cohort: Path) -> None:
    path = write_csv(cohort, "a,p1,train,,,,,")
    with pytest.raises(SourceError, match="none of its 1 series is of the split validation"):
        opened(SourceConfig(kind="manifest", path=str(path)), cohort / "cache", "validation")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No lesion. Normal ventricles.", ("No lesion.", "Normal ventricles.")),
        ("A lesion of 3.5 mm. It is new!", ("A lesion of 3.5 mm.", "It is new!")),
        ("Seen by Dr. Miller. Cysts, e.g. Baker.", ("Seen by Dr. Miller.", "Cysts, e.g. Baker.")),
        ("1. Normal.\n2. Small cyst", ("1. Normal.", "2. Small cyst")),
        ("Befund: Ödem. Ärzte sagen nichts.", ("Befund: Ödem.", "Ärzte sagen nichts.")),
        (" \n--\n", ()),
    ],
)
def test_sentences(text: str, expected: tuple[str, ...]) -> None:
    assert sentences(text) == expected


def test_real_series_are_read(shared_data: Path, tmp_path: Path) -> None:
    """A volume out of the middle of a series, and mosaics, as scanners wrote them."""
    rows = ("ge_epi_fmri_ax,head,4", "siemens_epi_fmri,phantom,0")
    listed = [f"{shared_data / 'dicom' / row}" for row in rows]
    path = write_csv(tmp_path, *listed, header="path,patient,volume")
    config = SourceConfig(kind="manifest", path=str(path), shares=(1.0, 0.0, 0.0))
    examples = opened(config, tmp_path / "cache", spec=SPEC)
    assert len(examples) == 2
    for index, name in enumerate(("ge_epi_fmri_ax", "siemens_epi_fmri")):
        example, series = examples[index], read_series(find_series(shared_data / "dicom" / name)[0])
        # The middle of the grid is the middle of the field of view, within a voxel of the grid.
        middle = [(n - 1) / 2 for n in series.voxels.shape]
        inside = np.linalg.inv(example.affine_lps_mm) @ series.affine_lps_mm @ [*middle, 1]
        assert np.abs(inside[:3] - 11.5).max() <= 1
        assert 0.05 < (example.volume > 0.1).mean() < 0.9
