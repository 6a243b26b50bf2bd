"""The index against numpy's own sorting, and files that are no index."""

import dataclasses
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from decipher_rt.bundle import open_bundle
from decipher_rt.cli import cli
from decipher_rt.errors import DecipherError
from decipher_rt.index import (
    IndexEntry,
    SeriesIndex,
    add_results,
    empty_index,
    read_index,
    require_bundle,
    search_index,
    store_results,
    write_index,
)
from decipher_rt.result import Result, ScopeAnswer
from decipher_rt.session import Session

pytest.importorskip("usearch", reason="the text extra is not installed")


def index_of(count: int, size: int = 24, seed: int = 0) -> SeriesIndex:
    vectors = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    entries = tuple(IndexEntry(f"1.2.{i}", 0, f"/archive/{i}", "Maker", "t1", i % 7 != 0) for i in range(count))
    return SeriesIndex("toy", "1", "a" * 64, vectors, entries)


def test_of_vectors_a_little_longer_than_one_no_cosine_is_beyond_one():
    index = index_of(3)
    longer = dataclasses.replace(index, vectors=index.vectors * np.float32(1.005))
    assert [hit.cosine for hit in search_index(longer, longer.vectors[0], 1)] == [1.0]
    assert [hit.cosine for hit in search_index(longer, -longer.vectors[0], 3)][-1] == -1.0


@pytest.mark.parametrize(("count", "wanted"), [(1, 10), (5, 5), (200, 10), (3000, 1)])
def test_hits_are_those_of_sorting_all_cosines(count, wanted):
    index = index_of(count)
    query = index_of(1, seed=9).vectors[0]
    cosines = index.vectors.astype(np.float64) @ query
    best = np.argsort(-cosines)[:wanted]
    hits = search_index(index, query, wanted)
    assert [hit.entry.uid for hit in hits] == [f"1.2.{i}" for i in best]
    assert [hit.cosine for hit in hits] == pytest.approx(cosines[best].tolist(), abs=1e-6)


def test_an_empty_index_has_no_hits(answering_bundle):
    index = empty_index(open_bundle(answering_bundle))
    assert search_index(index, np.array([1, 0, 0, 0], np.float32), 10) == []


def test_what_is_written_is_what_is_read(tmp_path):
    index = index_of(17)
    write_index(tmp_path / "a.index", index)
    again = read_index(tmp_path / "a.index")
    assert np.array_equal(again.vectors, index.vectors)
    assert (again.entries, again.bundle_sha256) == (index.entries, index.bundle_sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["a.index"]


def result_of(uid: str, volume_index: int = 0) -> Result:
    series = {"uid": uid, "volume_index": volume_index, "path": "p", "manufacturer": "m", "description": "d"}
    return Result(series, {}, {}, {}, np.zeros(24, np.float32), ScopeAnswer(False, 0.0, ""), {})


def test_adding_a_series_again_replaces_it():
    first, second = index_of(2, seed=1).vectors
    index = add_results(index_of(5), [(result_of("1.2.3"), first), (result_of("9.9"), second)])
    index = add_results(index, [(result_of("1.2.3", volume_index=1), second)])
    assert [(e.uid, e.volume_index) for e in index.entries[3:]] == [
        ("1.2.3", 0),
        ("1.2.4", 0),
        ("9.9", 0),
        ("1.2.3", 1),
    ]
    assert np.array_equal(index.vectors[3], first)
    assert not index.entries[3].in_scope
    inside = dataclasses.replace(result_of("9.9"), scope=ScopeAnswer(True, 1.0, ""))
    assert [e.in_scope for e in add_results(index, [(inside, second)]).entries[3:]] == [False, True, True, False]


def test_another_bundle_is_refused_by_name(answering_bundle):
    with pytest.raises(DecipherError, match=r"made with bundle toy 1 \(aaaaaaaaaaaa\), not with toy 1"):
        require_bundle(index_of(3), open_bundle(answering_bundle), Path("a.index"))


def test_vectors_of_another_length_are_refused(answering_bundle):
    bundle = open_bundle(answering_bundle)
    forged = dataclasses.replace(index_of(3), bundle_sha256=bundle.sha256)
    with pytest.raises(DecipherError, match=r"a\.index: its vectors have 24 values, those of bundle toy 4; make it"):
        require_bundle(forged, bundle, Path("a.index"))


def saved(path: Path, **arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


SERIES = {"uid": "1", "volume_index": 0, "path": "", "manufacturer": "", "description": "", "in_scope": True}


def about(**changes) -> np.ndarray:
    document = {
        "schema": "decipher-rt/index/1",
        "bundle": {"name": "toy", "version": "1", "sha256": "a" * 64},
        "series": [SERIES],
        **changes,
    }
    return np.frombuffer(json.dumps(document).encode(), np.uint8)


UNIT = np.array([[0.6, 0.8]], np.float32)
FOREIGN = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("hello"),
    "another archive": lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "x"),
    "no about": lambda p: saved(p, vectors=UNIT),
    "pickle": lambda p: saved(p, vectors=np.array([{"a": 1}], dtype=object), about=about()),
    "plain array": lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + b" " * 118),
    "another schema": lambda p: saved(p, vectors=UNIT, about=about(schema="decipher-rt/index/2")),
    "about a list": lambda p: saved(p, vectors=UNIT, about=np.frombuffer(b"[]", np.uint8)),
    "about no JSON": lambda p: saved(p, vectors=UNIT, about=np.frombuffer(b"{", np.uint8)),
    "deep JSON": lambda p: saved(p, vectors=UNIT, about=np.frombuffer(b"[" * 100_000, np.uint8)),
    "series is a number": lambda p: saved(p, vectors=UNIT, about=about(series=3)),
    "volume is a word": lambda p: saved(p, vectors=UNIT, about=about(series=[{**SERIES, "volume_index": "a"}])),
    "volume is infinite": lambda p: saved(p, vectors=UNIT, about=about(series=[{**SERIES, "volume_index": 1e999}])),
    "series of another form": lambda p: saved(p, vectors=UNIT, about=about(series=[{}])),
    "more series than rows": lambda p: saved(p, vectors=UNIT[:0], about=about()),
    "not a number": lambda p: saved(p, vectors=UNIT * np.float32("nan"), about=about()),
    "not of length 1": lambda p: saved(p, vectors=UNIT * 2, about=about()),
    "float64": lambda p: saved(p, vectors=UNIT.astype(np.float64), about=about()),
    "one axis": lambda p: saved(p, vectors=UNIT[0], about=about()),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_index_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / "x.index"
    FOREIGN[name](path)
    with pytest.raises(DecipherError, match=r"x\.index: .*decipher-rt embed") as caught:
        read_index(path)
    assert "\n" not in str(caught.value)


def test_every_truncation_and_every_changed_byte_is_noticed(tmp_path):
    """Archives carry checksums; nothing is ever read as other vectors, and nothing crashes."""
    write_index(tmp_path / "a.index", index_of(3, size=4))
    content = (tmp_path / "a.index").read_bytes()
    whole = read_index(tmp_path / "a.index")
    broken = tmp_path / "b.index"
    for length in range(0, len(content), 31):
        broken.write_bytes(content[:length])
        with pytest.raises(DecipherError):
            read_index(broken)
    for place in range(0, len(content), 3):
        broken.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = read_index(broken)
        except DecipherError:
            continue
        assert np.array_equal(found.vectors, whole.vectors)  # a time stamp or flag of the archive
        assert found.entries == whole.entries


@pytest.mark.parametrize("bit", range(8))
def test_a_damaged_header_of_a_large_array_is_noticed_before_its_checksum(tmp_path, bit):
    write_index(tmp_path / "a.index", index_of(64, size=32))
    content = (tmp_path / "a.index").read_bytes()
    broken = tmp_path / "b.index"
    for place in range(40, 180):  # the array's header begins there
        broken.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        try:
            read_index(broken)
        except DecipherError as error:
            assert "decipher-rt embed" in str(error)  # noqa: PT017 - a blank may be any blank


def test_an_index_behind_a_link_is_the_one_that_is_added_to(answering_bundle, tmp_path):
    bundle = open_bundle(answering_bundle)
    vector = np.array([1, 0, 0, 0], np.float32)
    (tmp_path / "shared").mkdir()
    shared, link = tmp_path / "shared" / "a.index", tmp_path / "a.index"
    store_results(shared, bundle, [(result_of("1.2"), vector)], add=False)
    link.symlink_to(shared)
    store_results(link, bundle, [(result_of("1.3"), vector)], add=True)
    assert link.is_symlink()
    assert [entry.uid for entry in read_index(shared).entries] == ["1.2", "1.3"]


def run(*arguments, status=0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from decipher_rt.cli import main; main()", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == status, finished.stderr
    return finished


def test_embed_says_by_its_status_what_became_of_the_series(answering_bundle, tmp_path, write_series):
    whole, broken = write_series(tmp_path / "study" / "a"), write_series(tmp_path / "study" / "b", seed=1)
    cut = sorted(broken.iterdir())[1]
    cut.write_bytes(cut.read_bytes()[:-50])
    index, bundle = tmp_path / "x.index", ("-b", answering_bundle)
    some = run("embed", tmp_path / "study", "-o", index, *bundle, "--json", status=1)
    counts = json.loads(some.stdout.splitlines()[-1])
    assert {key: counts[key] for key in ("series", "embedded", "failed")} == {"series": 1, "embedded": 1, "failed": 1}
    assert [Path(entry.path) for entry in read_index(index).entries] == [whole]
    none = run("embed", broken, "-o", tmp_path / "none.index", *bundle, status=2)
    assert str(broken) in none.stderr
    assert not (tmp_path / "none.index").exists()


def test_a_series_out_of_scope_is_marked(answering_bundle, tmp_path, write_series):
    index, bundle = tmp_path / "x.index", ("-b", answering_bundle)
    head = write_series(tmp_path / "study" / "head")
    other = write_series(tmp_path / "study" / "other", seed=1, Modality="CT")
    said = run("embed", tmp_path / "study", "-o", index, *bundle, "--any-modality", "--json").stdout
    assert json.loads(said.splitlines()[-1])["out_of_scope"] == 1
    again = run("embed", tmp_path / "study", "-o", tmp_path / "y.index", *bundle, "--any-modality").stdout
    assert "2 series, 2 of them new, 1 out of scope" in again
    found = run("search", index, "dark", *bundle).stdout.splitlines()
    assert {str(path): "out of scope" in line for line in found for path in (head, other) if str(path) in line} == {
        str(head): False,
        str(other): True,
    }
    asked = run("search", index, other, *bundle, "--any-modality")
    assert "is out of scope (modality CT, made for MR); hits may mean little" in asked.stderr
    assert "hits may mean little" not in run("search", index, head, *bundle).stderr


def test_embed_and_search_from_the_command_line(answering_bundle, tmp_path, write_series):
    """A dark and a bright series are found by words and by each other; mistakes are one line."""
    shape = (32, 32, 32)
    dark, bright = np.full(shape, 100, np.uint16), np.full(shape, 900, np.uint16)
    for voxels in (dark, bright):
        voxels[0], voxels[1] = 0, 1000  # both ends of the window
    for name, voxels in (("dark", dark), ("bright", bright)):
        write_series(tmp_path / name, voxels=voxels, affine=np.diag([4.0, 4, 4, 1]), SeriesDescription=name)
    bundle = ("-b", answering_bundle)
    schema = json.loads((files("decipher_rt") / "schemas" / "search-1.schema.json").read_text())
    index = tmp_path / "out" / "archive.index"
    printed = json.loads(run("embed", tmp_path / "dark", "-o", index, *bundle, "--json").stdout)
    assert printed["series"] == 1
    refused = run("embed", tmp_path / "bright", "-o", index, *bundle, status=2)
    assert "--add" in refused.stderr
    assert "2 series" in run("embed", tmp_path / "bright", "-o", index, *bundle, "--add").stdout
    for query in ("dark", "bright"):
        found = json.loads(run("search", index, f"a {query} brain", *bundle, "--json").stdout)
        jsonschema.Draft202012Validator(schema).validate(found)
        assert (found["by"], found["searched"]) == ("text", 2)
        assert found["hits"][0]["description"] == query
        found = json.loads(run("search", index, tmp_path / query, *bundle, "-k", "1", "--json").stdout)
        assert found["by"] == "series"
        assert [hit["description"] for hit in found["hits"]] == [query]
        assert found["hits"][0]["cosine"] == pytest.approx(1, abs=1e-6)
    odd = read_index(index)
    entry = dataclasses.replace(odd.entries[0], path="a\n\x1b[2Jb", description="c\x1b]0;d\x07")
    write_index(tmp_path / "odd.index", dataclasses.replace(odd, entries=(entry, odd.entries[1])))
    printed = run("search", tmp_path / "odd.index", "a brain", *bundle).stdout
    assert printed.count("\n") == 2
    assert "\x1b" not in printed
    assert "\x07" not in printed
    assert "SECRET" not in index.read_bytes().decode("latin-1")
    assert "Doe" not in index.read_bytes().decode("latin-1")
    shipped = open_bundle().manifest
    for arguments, said in (
        ((index, "dark"), f"not with {shipped.name} {shipped.version}"),
        ((tmp_path / "none.index", "dark"), "no such index"),
        ((tmp_path / "dark" / "0000.dcm", "dark"), "no index of decipher-rt"),
        ((index, "./nothing/here.nii.gz", *bundle), "no such file or folder"),
        ((index, " ", *bundle), "empty"),
        ((index, "", *bundle), "empty"),
        ((index, "brain " * 10_000, *bundle), "10002 tokens"),
        ((index, "a brain", *bundle, "--engine", "tensorrt", "--volume", 1), "leave out --engine, --volume"),
    ):
        failed = run("search", *arguments, status=2)
        assert said in failed.stderr
        assert failed.stderr.count("\n") == 1
        assert failed.stdout == ""


def test_an_interrupted_archive_goes_on(answering_bundle, tmp_path, write_series):
    def embed() -> tuple[int, int]:
        arguments = ("embed", tmp_path / "study", "-o", tmp_path / "x.index", "-b", answering_bundle, "--new", "--json")
        said = json.loads(run(*arguments).stdout)
        return said["series"], said["embedded"]

    write_series(tmp_path / "study" / "a", shape=(32, 32, 32))
    assert [embed(), embed()] == [(1, 1), (1, 0)]
    write_series(tmp_path / "study" / "b", shape=(32, 32, 32))
    assert embed() == (2, 1)


def test_a_hit_is_told_by_where_its_series_lies(answering_bundle, tmp_path, write_series, monkeypatch):
    archive, bundle = tmp_path / "archive", ("-b", answering_bundle)
    for name, uid in (("one/t1", "1.2.1"), ("two/t1", "1.2.2")):
        write_series(archive / name, shape=(32, 32, 32), series_uid=uid)
    for name in ("a", "b"):
        write_series(archive / "flat", shape=(32, 32, 32), prefix=name, series_uid=f"1.3.{ord(name)}")
    monkeypatch.chdir(tmp_path)
    run("embed", "archive", "-o", "archive.index", *bundle)
    assert "4 series, 0 of them new" in run("embed", "archive", "-o", "archive.index", *bundle, "--add").stdout
    hits = run("search", "archive.index", "a brain", *bundle).stdout
    for said in (str(archive / "one" / "t1"), str(archive / "two" / "t1"), "1.3.97", "1.3.98"):
        assert said in hits
    assert "1.2." not in hits


def test_what_interrupts_an_archive_loses_no_series_that_was_embedded(
    answering_bundle, tmp_path, write_series, monkeypatch
):
    """An index is written as it grows, and once more by whoever interrupts."""
    monkeypatch.setattr("decipher_rt.cli.embed.STORED_TOGETHER", 2)
    for name in "abcd":
        write_series(tmp_path / name, seed=ord(name))
    index, answer = tmp_path / "archive.index", Session._finish
    answered: list[int] = []

    def interrupted(*arguments):
        answered.append(len(read_index(index).entries) if index.exists() else 0)
        if len(answered) == 4:
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(Session, "_finish", interrupted)
    paths = [str(tmp_path / name) for name in "abcd"]
    ended = CliRunner().invoke(cli, ["embed", *paths, "-o", str(index), "-b", str(answering_bundle)])
    assert ended.exit_code != 0
    assert answered == [0, 0, 2, 2]
    assert len(read_index(index).entries) == 3


def test_a_compressed_archive_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "bomb.index"
    np.savez_compressed(
        path.with_suffix(".npz"), vectors=np.zeros((1 << 20, 64), np.float32), about=np.zeros(2, np.uint8)
    )
    path.with_suffix(".npz").rename(path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DecipherError, match="is damaged, or no index"):
        read_index(path)


def test_rows_that_another_process_added_meanwhile_are_kept(answering_bundle, tmp_path):
    bundle, path = open_bundle(answering_bundle), tmp_path / "a.index"
    size = bundle.manifest.encoder.embedding_size
    row = np.eye(size, dtype=np.float32)[0]

    def add(number):
        for i in range(10):
            store_results(path, bundle, [(result_of(f"{number}.{i}"), row)], add=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert len(read_index(path).entries) == 40
    with pytest.raises(DecipherError, match="exists; add to it with --add"):
        store_results(path, bundle, [(result_of("9"), row)], add=False)
    assert [file.name for file in tmp_path.iterdir()] == ["a.index"]


def test_an_index_that_another_process_began_is_left_as_it_is(answering_bundle, tmp_path, write_series, monkeypatch):
    monkeypatch.setattr("decipher_rt.cli.embed.STORED_TOGETHER", 2)
    for name in "abc":
        write_series(tmp_path / name, seed=ord(name))
    index, bundle, answer = tmp_path / "archive.index", open_bundle(answering_bundle), Session._finish

    def another_begins(*arguments):
        if not index.exists():
            row = np.eye(bundle.manifest.encoder.embedding_size, dtype=np.float32)[0]
            store_results(index, bundle, [(result_of("9"), row)], add=False)
        return answer(*arguments)

    monkeypatch.setattr(Session, "_finish", another_begins)
    paths = [str(tmp_path / name) for name in "abc"]
    ended = CliRunner().invoke(cli, ["embed", *paths, "-o", str(index), "-b", str(answering_bundle)])
    assert isinstance(ended.exception, DecipherError)
    assert "exists; add to it with --add" in str(ended.exception)
    assert [entry.uid for entry in read_index(index).entries] == ["9"]
