"""A result's folder is whole or not there, and nothing that was there before is lost."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from decipher_rt.cli.infer import summary
from decipher_rt.clock import StageClock
from decipher_rt.errors import DecipherError
from decipher_rt.label_map import LabelMap
from decipher_rt.result import Failure, HeadAnswer, Result, ScopeAnswer, describe_series
from decipher_rt.volume import SeriesInfo, Volume
from decipher_rt.writers.folder import folder_name, folder_writer, has_answer


def volume_and_result(uid="1.2.3", volume_index=0):
    voxels = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    series = SeriesInfo(uid, Path("series"), files=6, volume_index=volume_index, volumes=volume_index + 1)
    volume = Volume(voxels, np.diag([2.0, 1.0, 1.0, 1.0]), series)
    result = Result(
        describe_series(volume),
        {"name": "toy", "version": "1", "sha256": "0" * 64},
        {"name": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 2},
        {"kept": 4, "total": 8},
        np.array([0.6, 0.8], np.float32),
        ScopeAnswer(True, 1.0, "good"),
        {"lesion": HeadAnswer("classification", label="absent", probabilities={"absent": 0.75, "present": 0.25})},
    )
    return volume, result


def test_the_folder_holds_the_result_and_its_embedding(tmp_path):
    volume, result = volume_and_result()
    written = folder_writer(tmp_path / "out", png=True)(result, volume, StageClock())
    folder = tmp_path / "out" / "1.2.3"
    assert sorted(p.name for p in folder.iterdir()) == ["embedding.npy", "result.json", "views.png"]
    assert json.loads((folder / "result.json").read_text()) == written.to_json()
    assert np.array_equal(np.load(written.embedding, allow_pickle=False), result.embedding)
    assert written.timings_ms["write"] > 0


def test_a_second_run_replaces_the_first_and_leaves_nothing_beside(tmp_path):
    volume, result = volume_and_result()
    folder_writer(tmp_path, png=True)(result, volume, StageClock())
    folder_writer(tmp_path, png=False)(result, volume, StageClock())
    assert [p.name for p in tmp_path.iterdir()] == ["1.2.3"]
    assert not (tmp_path / "1.2.3" / "views.png").exists()


def test_a_folder_of_something_else_is_kept(tmp_path):
    (tmp_path / "1.2.3").mkdir()
    (tmp_path / "1.2.3" / "thesis.tex").touch()
    volume, result = volume_and_result()
    with pytest.raises(DecipherError, match=r"holds no result\.json"):
        folder_writer(tmp_path, png=False)(result, volume, StageClock())
    assert [p.name for p in (tmp_path / "1.2.3").iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused_at_once(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(DecipherError, match="not a folder"):
        folder_writer(tmp_path / "out", png=False)


@pytest.mark.parametrize("uid", ["../../etc", "", "...", "a/b", "x" * 300, "1.2\n3"])
def test_a_hostile_uid_stays_inside(tmp_path, uid):
    volume, result = volume_and_result(uid)
    written = folder_writer(tmp_path / "out", png=False)(result, volume, StageClock())
    assert Path(written.embedding).parent.parent == tmp_path / "out"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_volumes_of_one_series_have_a_folder_each(tmp_path):
    for index in (0, 1):
        volume, result = volume_and_result(volume_index=index)
        folder_writer(tmp_path, png=False)(result, volume, StageClock())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.2.3", "1.2.3-volume1"]


def test_a_failing_picture_leaves_no_half_folder(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("decipher_rt.writers.views.draw_views", fail)
    volume, result = volume_and_result()
    with pytest.raises(DecipherError, match="No space left") as caught:  # of this series alone: the others go on
        folder_writer(tmp_path, png=True)(result, volume, StageClock())
    assert str(caught.value).startswith(f"{tmp_path / folder_name('1.2.3', 0)}: cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_that_cannot_be_read_fails_its_own_series(tmp_path, monkeypatch):
    volume, result = volume_and_result()
    write = folder_writer(tmp_path, png=False)
    write(result, volume, StageClock())
    list_folder = Path.iterdir

    def locked(folder):
        if folder == tmp_path / "1.2.3":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return list_folder(folder)

    monkeypatch.setattr(Path, "iterdir", locked)
    with pytest.raises(DecipherError, match=r"1\.2\.3: cannot be written \(Permission denied\)"):
        write(result, volume, StageClock())
    volume, result = volume_and_result("1.2.4")
    write(result, volume, StageClock())
    assert has_answer(tmp_path, "1.2.4", 0)


def test_what_somebody_put_beside_a_result_is_not_removed_with_it(tmp_path):
    volume, result = volume_and_result()
    write = folder_writer(tmp_path, png=False)
    write(result, volume, StageClock())
    (tmp_path / "1.2.3" / ".DS_Store").touch()
    write(result, volume, StageClock())
    (tmp_path / "1.2.3" / "corrected.nii.gz").touch()
    with pytest.raises(DecipherError, match=r"holds corrected\.nii\.gz"):
        write(result, volume, StageClock())
    assert (tmp_path / "1.2.3" / "corrected.nii.gz").exists()


def test_what_a_power_cut_left_is_no_answer(tmp_path):
    volume, result = volume_and_result()
    folder_writer(tmp_path, png=False)(result, volume, StageClock())
    assert has_answer(tmp_path, "1.2.3", 0)
    assert not has_answer(tmp_path, "1.2.3", 1)
    for left in ("", '{"schema": "deci', "[]"):
        (tmp_path / "1.2.3" / "result.json").write_text(left)
        assert not has_answer(tmp_path, "1.2.3", 0)
    (tmp_path / "1.2.3" / "tissue.nii.gz").touch()
    (tmp_path / "1.2.3" / "result.json").write_text("")
    folder_writer(tmp_path, png=False)(result, volume, StageClock())
    assert has_answer(tmp_path, "1.2.3", 0)


@pytest.mark.parametrize("name", ["embedding.npy", "tissue.nii.gz"])
def test_what_a_power_cut_emptied_beside_the_result_is_written_anew(tmp_path, name):
    volume, result = volume_and_result()
    labels = LabelMap(np.ones((6, 7, 8), np.uint8), ("background", "tissue"), volume.affine_lps_mm)
    tissue = HeadAnswer("segmentation", label_map=labels, volumes_ml={"tissue": 0.672})
    result = dataclasses.replace(result, heads={"tissue": tissue, "lesion": HeadAnswer("regression", not_answered="x")})
    write = folder_writer(tmp_path, png=False)
    file = tmp_path / "1.2.3" / name
    for lose in (lambda: file.write_bytes(b""), file.unlink):
        write(result, volume, StageClock())
        assert has_answer(tmp_path, "1.2.3", 0)
        lose()
        assert not has_answer(tmp_path, "1.2.3", 0)


@pytest.mark.parametrize("heads", [None, [], "tissue", {"tissue": 1}, {"tissue": None}, {"a\0b": {"file": "x"}}])
def test_a_result_that_another_program_has_changed_is_none(tmp_path, heads):
    volume, result = volume_and_result()
    write = folder_writer(tmp_path, png=False)
    write(result, volume, StageClock())
    changed = tmp_path / "1.2.3" / "result.json"
    changed.write_text(json.dumps({**json.loads(changed.read_text()), "heads": heads}))
    assert not has_answer(tmp_path, "1.2.3", 0)
    write(result, volume, StageClock())
    assert has_answer(tmp_path, "1.2.3", 0)


def test_a_path_that_is_no_text_is_json_that_every_reader_takes(tmp_path):
    volume, _ = volume_and_result()
    path = os.fsdecode(b"/data/n\xff")
    said = describe_series(dataclasses.replace(volume, series=dataclasses.replace(volume.series, path=Path(path))))
    assert said["path"] == "/data/n\\xff"
    assert Failure(path, None, "x").to_json()["series"]["path"] == "/data/n\\xff"


def test_a_place_that_is_no_text_is_said_to_people_and_programs(tmp_path):
    volume, result = volume_and_result()
    labels = LabelMap(np.ones((6, 7, 8), np.uint8), ("background", "tissue"), volume.affine_lps_mm)
    result = dataclasses.replace(result, heads={"tissue": HeadAnswer("segmentation", label_map=labels)})
    out = tmp_path / os.fsdecode(b"out\xff")
    written = folder_writer(out, png=False)(result, volume, StageClock())
    document = written.to_json()
    assert document["embedding"] == f"{tmp_path}/out\\xff/1.2.3/embedding.npy"
    assert document["heads"]["tissue"]["file"] == f"{tmp_path}/out\\xff/1.2.3/tissue.nii.gz"
    assert f"{tmp_path}/out?/1.2.3" in summary(written, out).encode().decode()


def test_a_warning_that_names_a_file_whose_name_is_no_text_is_json(tmp_path):
    volume, _ = volume_and_result()
    warned = dataclasses.replace(volume.series, warnings=(os.fsdecode(b"first: n\xff.dcm"),))
    assert describe_series(dataclasses.replace(volume, series=warned))["warnings"] == ["first: n .dcm"]


def test_a_folder_that_another_process_replaces_meanwhile_is_no_error(tmp_path, monkeypatch):
    """It is gone for a moment: moved aside, and the new one not in its place yet."""
    volume, result = volume_and_result()
    folder_writer(tmp_path, png=False)(result, volume, StageClock())
    target, aside = tmp_path / "1.2.3", tmp_path / "aside"
    is_file = Path.is_file

    def moved(path):
        if path.parent == target and target.exists():
            target.rename(aside)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", moved)
    folder_writer(tmp_path, png=False)(result, volume, StageClock())
    assert (target / "result.json").stat().st_size
