"""The built library through ctypes, as a program in another language would use it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from ctypes import byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

REPOSITORY = Path(__file__).parents[2]
BUILD = Path(os.environ.get("DECIPHER_RT_SDK_BUILD", REPOSITORY / "build" / "sdk"))

VOXEL_TYPES = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "float64": 7}
NOT_ANSWERED = 9

LOG = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p)
PROGRESS = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_double)
CANCEL = ctypes.CFUNCTYPE(c_int, c_void_p)


class Params(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("device", c_int), ("mode", c_int), ("precision", c_char_p), ("threads", c_uint32),
        ("cache_folder", c_char_p), ("library_folder", c_char_p), ("worker_path", c_char_p),
        ("worker_timeout_ms", c_uint32), ("cuda", c_void_p), ("log", LOG), ("progress", PROGRESS), ("cancel", CANCEL),
        ("user_data", c_void_p), ("heads", c_char_p),
    ]  # fmt: skip


class Info(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("bundle_name", c_char_p), ("bundle_version", c_char_p), ("bundle_sha256", c_char_p),
        ("intended_use", c_char_p), ("engine", c_char_p), ("device", c_char_p), ("precision", c_char_p),
        ("threads", c_uint32), ("heads", c_uint32), ("embedding_size", c_uint64), ("patch_width", c_uint64),
        ("patches", c_uint64), ("grid_shape", c_int64 * 3), ("grid_spacing_mm", c_double * 3),
        ("host_bytes", c_uint64), ("device_bytes", c_uint64), ("worker_pid", c_int64),
    ]  # fmt: skip


class HeadInfo(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("name", c_char_p), ("description", c_char_p), ("kind", c_int), ("unit", c_char_p),
        ("values", c_uint64),
    ]  # fmt: skip


class VolumeStruct(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("voxels", c_void_p), ("memory", c_int), ("type", c_int), ("shape", c_int64 * 3),
        ("strides", c_int64 * 3), ("affine_lps_mm", c_double * 16), ("slope", c_double), ("intercept", c_double),
        ("modality", c_char_p), ("body_part", c_char_p),
    ]  # fmt: skip


class Geometry(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("type", c_int), ("shape", c_int64 * 3), ("affine_lps_mm", c_double * 16),
        ("slope", c_double), ("intercept", c_double), ("modality", c_char_p),
        ("body_part", c_char_p),
    ]  # fmt: skip


class Slice(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("pixels", c_void_p), ("strides", c_int64 * 2), ("position_lps_mm", c_double * 3),
    ]  # fmt: skip


class Box(ctypes.Structure):
    _fields_ = [("score", c_double), ("center_lps_mm", c_double * 3), ("size_mm", c_double * 3)]


class Scope(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("inside", ctypes.c_int32), ("has_score", ctypes.c_int32), ("score", c_double),
        ("reason", c_char_p),
    ]  # fmt: skip


class Times(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t), ("open_ms", c_double), ("preprocess_ms", c_double), ("encode_ms", c_double),
        ("heads_ms", c_double), ("total_ms", c_double), ("arrival_ms", c_double),
    ]  # fmt: skip


class SdkError(Exception):
    """A status other than DRT_OK, with the library's message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Sdk:
    """The library's functions, raising SdkError."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(os.fspath(library))
        for name in ("drt_last_error", "drt_version", "drt_status_text", "drt_head_label"):
            getattr(self._library, name).restype = c_char_p
        self._library.drt_head_label.argtypes = (c_void_p, c_char_p, c_size_t)
        for name in ("drt_session_close", "drt_series_free"):
            function = getattr(self._library, name)
            function.argtypes, function.restype = (c_void_p,), None

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise SdkError(status, self._library.drt_last_error().decode())

    def default(self, name: str, kind: type[Any]) -> Any:
        value = kind()
        function = getattr(self._library, name)
        function.restype = None
        function(byref(value), c_size_t(ctypes.sizeof(kind)))
        return value

    def version(self) -> str:
        return str(self._library.drt_version().decode())

    def open(self, bundle: Path | str, **params: Any) -> SdkSession:
        return SdkSession(self, bundle, params)

    def label(self, session: c_void_p, head: str, i: int) -> str | None:
        label = self._library.drt_head_label(session, head.encode(), i)
        return None if label is None else label.decode()

    def free(self, name: str, handle: c_void_p) -> None:
        getattr(self._library, name)(handle)


class SdkSession:
    """One drt_session."""

    def __init__(self, sdk: Sdk, bundle: Path | str, params: dict[str, Any]) -> None:
        self.sdk, self.handle = sdk, c_void_p()
        self._params = sdk.default("drt_session_default_params", Params)
        self._params.threads = 2
        for name, value in params.items():
            setattr(self._params, name, os.fsencode(value) if isinstance(value, str | Path) else value)
        sdk.call("drt_session_open", os.fsencode(bundle), byref(self._params), byref(self.handle))

    def __enter__(self) -> SdkSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sdk.free("drt_session_close", self.handle)  # NULL, the second time
        self.handle = c_void_p()

    def info(self) -> Info:
        info = Info(struct_size=ctypes.sizeof(Info))
        self.sdk.call("drt_session_describe", self.handle, byref(info))
        return info

    def heads(self) -> list[HeadInfo]:
        heads = []
        for index in range(self.info().heads):
            head = HeadInfo(struct_size=ctypes.sizeof(HeadInfo))
            self.sdk.call("drt_session_head", self.handle, c_uint32(index), byref(head))
            heads.append(head)
        return heads

    def run(self, voxels: NDArray[Any], affine: NDArray[np.float64], **fields: Any) -> None:
        volume = self.sdk.default("drt_default_volume", VolumeStruct)
        volume.voxels, volume.type = voxels.ctypes.data, VOXEL_TYPES[voxels.dtype.name]
        volume.shape[:], volume.strides[:] = voxels.shape, voxels.strides
        volume.affine_lps_mm[:] = np.asarray(affine, np.float64).ravel().tolist()
        for name, value in fields.items():
            setattr(volume, name, value.encode() if isinstance(value, str) else value)
        self.sdk.call("drt_session_run", self.handle, byref(volume))

    def warm_up(self) -> None:
        self.sdk.call("drt_session_warm_up", self.handle)

    def begin(self, shape: tuple[int, ...], dtype: Any, affine: NDArray[np.float64], **fields: Any) -> SdkSeries:
        return SdkSeries(self, shape, np.dtype(dtype), np.asarray(affine, np.float64), fields)

    def _values(self, name: str, kind: Any, *arguments: Any) -> NDArray[Any]:
        size = c_size_t()
        self.sdk.call(name, self.handle, *arguments, None, c_size_t(0), byref(size))
        values = np.empty(size.value, kind)
        self.sdk.call(name, self.handle, *arguments, c_void_p(values.ctypes.data), size, byref(size))
        return values

    def embedding(self) -> NDArray[np.float32]:
        return self._values("drt_embedding", np.float32)

    def patch_tokens(self) -> NDArray[np.float32]:
        return self._values("drt_patch_tokens", np.float32)

    def token_indices(self) -> NDArray[np.int64]:
        return self._values("drt_token_indices", np.int64)

    def head_map(self, head: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return self._values("drt_head_map", np.uint8, head.encode()).reshape(shape)

    def head_boxes(self, head: str) -> list[Box]:
        size = c_size_t()
        self.sdk.call("drt_head_boxes", self.handle, head.encode(), None, c_size_t(0), byref(size))
        boxes = (Box * size.value)()
        self.sdk.call("drt_head_boxes", self.handle, head.encode(), boxes, size, byref(size))
        return list(boxes)

    def head_values(self, head: str) -> NDArray[np.float32]:
        return self._values("drt_head_values", np.float32, head.encode())

    def label(self, head: str, i: int) -> str | None:
        return self.sdk.label(self.handle, head, i)

    def scope(self) -> Scope:
        scope = Scope(struct_size=ctypes.sizeof(Scope))
        self.sdk.call("drt_scope_of_result", self.handle, byref(scope))
        return scope

    def times(self) -> Times:
        times = Times(struct_size=ctypes.sizeof(Times))
        self.sdk.call("drt_times_of_result", self.handle, byref(times))
        return times

    def grid_affine(self) -> NDArray[np.float64]:
        affine = (c_double * 16)()
        self.sdk.call("drt_grid_affine", self.handle, affine)
        return np.array(affine).reshape(4, 4)


class SdkSeries:
    """One drt_series."""

    def __init__(
        self,
        session: SdkSession,
        shape: tuple[int, ...],
        dtype: Any,
        affine: NDArray[np.float64],
        fields: dict[str, Any],
    ) -> None:
        self.session, self.affine, self.handle = session, affine, c_void_p()
        geometry = session.sdk.default("drt_default_geometry", Geometry)
        geometry.type = VOXEL_TYPES[dtype.name]
        geometry.shape[:] = shape
        geometry.affine_lps_mm[:] = affine.ravel().tolist()
        for name, value in fields.items():
            setattr(geometry, name, value.encode() if isinstance(value, str) else value)
        session.sdk.call("drt_series_begin", session.handle, byref(geometry), byref(self.handle))

    def __enter__(self) -> SdkSeries:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.sdk.free("drt_series_free", self.handle)

    def push(self, pixels: NDArray[Any], index: float) -> None:
        self.push_at(pixels, self.affine[:3, 3] + index * self.affine[:3, 0])

    def push_at(self, pixels: NDArray[Any], position: NDArray[np.float64]) -> None:
        piece = self.session.sdk.default("drt_default_slice", Slice)
        piece.pixels = pixels.ctypes.data
        piece.strides[:] = pixels.strides
        piece.position_lps_mm[:] = np.asarray(position, np.float64).tolist()
        self.session.sdk.call("drt_series_push", self.handle, byref(piece))

    def missing(self) -> list[int]:
        count = c_size_t()
        self.session.sdk.call("drt_series_missing", self.handle, None, c_size_t(0), byref(count))
        indices = (c_int64 * max(1, count.value))()
        self.session.sdk.call("drt_series_missing", self.handle, indices, c_size_t(count.value), byref(count))
        return list(indices[: count.value])

    def finish(self) -> None:
        self.session.sdk.call("drt_series_finish", self.handle)


@pytest.fixture(scope="session")
def sdk_build() -> Path:
    """Folder that `make sdk` built into."""
    if not (BUILD / "decipher_rt" / "native" / "libdecipher_rt.so").exists():
        pytest.skip(f"the native SDK is not built in {BUILD}: run 'make sdk'")
    return BUILD


@pytest.fixture(scope="session")
def sdk(sdk_build: Path) -> Sdk:
    return Sdk(sdk_build / "decipher_rt" / "native" / "libdecipher_rt.so")


@pytest.fixture(scope="session")
def native_bundle() -> Path:
    """The bundle that the tests run: the one shipped in the package, or another one named in the environment."""
    from decipher_rt.bundle import DEFAULT_BUNDLE

    bundle = Path(os.environ.get("DECIPHER_RT_TEST_BUNDLE", DEFAULT_BUNDLE))
    if not bundle.is_dir():
        pytest.skip(f"no bundle at {bundle}")
    return bundle


@pytest.fixture(scope="session")
def native_session(sdk: Sdk, native_bundle: Path) -> Iterator[SdkSession]:
    with sdk.open(native_bundle) as session:
        yield session
