"""Bundle: one folder with all that a machine at the scanner needs, opened only if every byte is as it was written."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

from decipher_rt.atomic import require_place, whole_folder
from decipher_rt.errors import BundleError
from decipher_rt.manifest import Manifest

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
DEFAULT_BUNDLE = Path(__file__).parent / "default" / "bundle"
DEEPEST_NESTING = 64  # of lists and objects in a manifest: no more than whoever shows it can follow

_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\r]+)")
_MAX_TEXT_BYTES = 16 << 20  # a manifest or a list of sums is never larger


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes
    ----------
    path : Path
        The folder.
    manifest : Manifest
        What is in it.
    sha256 : str
        Digest of ``SHA256SUMS``: it names the exact content of every file. Empty while a bundle is being made.
    sums : mapping
        SHA-256 of each file.
    unchecked : set of str
        Files whose sum is checked when ``file`` hands them out.
    """

    path: Path
    manifest: Manifest
    sha256: str
    sums: Mapping[str, str] = field(default_factory=dict)
    unchecked: frozenset[str] = frozenset()

    def file(self, name: str) -> Path:
        """Return the path of a file of the bundle.

        Raises
        ------
        BundleError
            If the file is missing, or not as the sums have it.
        """
        path = self.path / _safe(name)
        if self.sha256 and _sha256(self.path / SUMS) != self.sha256:
            raise BundleError(f"bundle {self.path}: was written anew since it was opened; open it again")
        if not path.is_file():
            raise BundleError(f"bundle {self.path}: {name} is named in {MANIFEST} and missing; export it again")
        if name in self.unchecked:
            _check_sum(self.path, name, self.sums[name])
        return path

    def with_heads(self, names: Sequence[str]) -> Bundle:
        """Return the bundle as if it had only the heads of these names; of none, it gives embeddings alone.

        Raises
        ------
        BundleError
            Naming a head that it does not have, and those that it has.
        """
        there = [head.name for head in self.manifest.heads]
        for name in names:
            if name not in there:
                raise BundleError(f"bundle {self.path}: no head {name!r}; it has {', '.join(there) or 'none'}")
        kept = tuple(head for head in self.manifest.heads if head.name in names)
        return replace(self, manifest=replace(self.manifest, heads=kept))


def open_bundle(path: Path | str = DEFAULT_BUNDLE, *, only_used: bool = False) -> Bundle:
    """Open a bundle: check the sums of all files, refuse what is unlisted, then read the manifest.

    Parameters
    ----------
    path : path
        The folder.
    only_used : bool
        Check the sums of encoders, which are nearly all of a bundle, when each is asked for: of several only one runs.

    Raises
    ------
    BundleError
        Naming the file or key that is missing, altered, outside the folder or not understood.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"bundle {folder}: no such folder; make one with 'decipher-rt export'")
    sums_text = _read_text(folder, SUMS)
    sums = _parse_sums(folder, sums_text)
    _check_listing(folder, sums)
    _check_sum(folder, MANIFEST, sums[MANIFEST])
    try:
        document = json.loads(_read_text(folder, MANIFEST), parse_constant=_no_number, parse_float=_finite)
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle {folder}: {MANIFEST} is not JSON ({error}); export the bundle again") from None
    if _nesting(document) > DEEPEST_NESTING:
        raise BundleError(
            f"bundle {folder}: {MANIFEST} nests more than {DEEPEST_NESTING} lists and objects; export the bundle again"
        )
    try:
        manifest = Manifest.from_json(document)
        _check_names(manifest, sums)
    except BundleError as error:
        raise BundleError(f"bundle {folder}: {error}") from None
    later = frozenset(engine.file for engine in manifest.engines) if only_used else frozenset[str]()
    for name, expected in sums.items():
        if name not in later and name != MANIFEST:
            _check_sum(folder, name, expected)
    return Bundle(folder, manifest, hashlib.sha256(sums_text.encode()).hexdigest(), sums, later)


def require_bundle_place(folder: Path) -> None:
    """Raise now what ``write_bundle`` would end in after long work.

    Raises
    ------
    BundleError
        If the folder exists and is no bundle, or has no name that it could be renamed to.
    OSError
        If nothing can be written there, or beside it.
    """
    if folder.name in ("", ".."):
        raise BundleError(f"{folder}: name the bundle's folder itself, as it is written beside its place and renamed")
    if folder.exists():
        _require_replaceable(folder)
    require_place(folder / MANIFEST)
    require_place(folder.parent / f".{folder.name}-")


def _require_replaceable(folder: Path) -> None:
    """Raise BundleError where a folder is no bundle, or holds what no bundle's sums list; a bundle may be damaged."""
    try:
        sums = _parse_sums(folder, _read_text(folder, SUMS))
    except BundleError:
        raise BundleError(f"{folder}: exists and is not a bundle; choose another name or move it away") from None
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    if foreign := next((name for name in files if name not in sums and name != SUMS), None):
        raise BundleError(f"{folder}: holds {foreign}, which is no part of the bundle; move it away")


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> None:
    """Write a bundle beside its place, then rename: it is whole or not there. A bundle already there is replaced.

    Parameters
    ----------
    folder : Path
        Where the bundle shall be. An existing folder is replaced only if it is a bundle.
    files : mapping
        Content, or a file to copy, for each name in the bundle (POSIX, relative), the manifest excluded.

    Raises
    ------
    BundleError
        If the folder exists and is no bundle, a name leaves the folder, or the manifest names a file that is not given.
    """
    require_bundle_place(folder)
    with whole_folder(folder) as staging:
        text = json.dumps(manifest.to_json(), indent=2, allow_nan=False) + "\n"
        lines = []
        for name, content in sorted({**files, MANIFEST: text.encode()}.items()):
            target = staging / _safe(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content)
            lines.append(f"{_sha256(target)}  {name}\n")
        (staging / SUMS).write_text("".join(lines), encoding="utf-8")
        open_bundle(staging)


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise BundleError(f"{name!r} is not a plain relative path inside the bundle")
    return name


def _read_text(folder: Path, name: str) -> str:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"bundle {folder}: {name} is missing or no plain file; is this folder a bundle?")
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise BundleError(f"bundle {folder}: {name} is larger than {_MAX_TEXT_BYTES >> 20} MiB; export it again")
    try:
        return path.read_bytes().decode("utf-8")  # as the sum sees it
    except UnicodeDecodeError:
        raise BundleError(f"bundle {folder}: {name} is not UTF-8 text; export the bundle again") from None


def _parse_sums(folder: Path, text: str) -> dict[str, str]:
    sums: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise BundleError(f"bundle {folder}: {SUMS} line {number} is not '<sha256>  <file>'; export it again")
        try:
            sums[_safe(match[2])] = match[1]
        except BundleError as error:
            raise BundleError(f"bundle {folder}: {SUMS} line {number}: {error}") from None
    if MANIFEST not in sums:
        raise BundleError(f"bundle {folder}: {SUMS} does not list {MANIFEST}; export the bundle again")
    return sums


def _check_listing(folder: Path, sums: Mapping[str, str]) -> None:
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise BundleError(f"bundle {folder}: {relative} is a symbolic link; a bundle holds plain files only")
            if name in names and relative not in sums and relative != SUMS:
                raise BundleError(f"bundle {folder}: {relative} is not listed in {SUMS}; remove it or export again")
    for name in sums:
        if not (folder / name).is_file():
            raise BundleError(f"bundle {folder}: {name} is listed in {SUMS} and missing; copy the bundle again")


def _check_sum(folder: Path, name: str, expected: str) -> None:
    if _sha256(folder / name) != expected:
        raise BundleError(f"bundle {folder}: {name} differs from its sum in {SUMS}; copy the bundle again")


def _check_names(manifest: Manifest, sums: Mapping[str, str]) -> None:
    named = [engine.file for engine in manifest.engines] + [head.file for head in manifest.heads]
    named += list(manifest.preprocessing.graphs.values()) + ([manifest.scope.file] if manifest.scope else [])
    named += [manifest.text.file, manifest.text.tokenizer] if manifest.text else []
    for name in named:
        if _safe(name) not in sums:
            raise BundleError(f"{MANIFEST} names {name}, which is not in the bundle")
    if len({head.name for head in manifest.heads}) < len(manifest.heads):
        raise BundleError(f"{MANIFEST}: two heads have the same name")
    outputs = Counter((head.file, head.kind) for head in manifest.heads)
    for (file, _), heads in outputs.items():
        if heads > 1:
            raise BundleError(
                f"{MANIFEST}: two heads of one kind share {file}, whose graph has one output for each kind"
            )


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is beyond what a number can be")
    return value


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _nesting(document: object) -> int:
    """Return how many lists and objects lie in one another."""
    depth, level = 0, [document]
    while containers := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [item for one in containers for item in (one.values() if isinstance(one, dict) else one)]
    return depth


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
