"""Native decoders in a process of their own: what a damaged image does to them, it does not do to the caller.

GDCM ends the process on some damaged JPEG streams, CharLS may spend ten seconds on one, and both write to the terminal.
So the decoders of `decode` that are native code run here: a child process that is started when the first compressed
image is met, is reused, and ends with its parent. A child that dies or takes too long makes a SeriesError.

Requests and answers are one line of JSON with the sizes, followed by the bytes.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from decipher_rt.dicom.decode import decode_planes
from decipher_rt.dicom.image import PixelFormat
from decipher_rt.dicom.source import Source
from decipher_rt.errors import SeriesError

# The start of the child takes about half a second and a slice some milliseconds, more on a busy machine.
START_SECONDS: Final = 60.0
SECONDS: Final = 20.0
SECONDS_PER_IMAGE: Final = 1.0
# Address space of the child: a decoder that asks for more fails in it instead of starving the machine.
MAX_CHILD_BYTES: Final = 16 << 30
CHUNK: Final = 1 << 20

_lock = threading.Lock()
_child: subprocess.Popen[bytes] | None = None


def decode_planes_apart(source: Source, pixels: PixelFormat, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Do what `decode_planes` does, in the child process.

    Raises
    ------
    SeriesError
        As `decode_planes`, and where the decoder crashed or took too long.
    """
    request: dict[str, Any] = {"name": source.name, "pixels": asdict(pixels), "indices": list(indices)}
    body = source.data
    if body is None:
        request |= {"path": os.fspath(source.path.absolute()), "size": source.size}
    with _lock:
        try:
            answer, planes = _ask(_running_child(), request, body, SECONDS + SECONDS_PER_IMAGE * len(indices))
        except (OSError, EOFError, ValueError) as error:
            stop_decoding()
            what = "took too long" if isinstance(error, TimeoutError) else "crashed"
            raise SeriesError(
                f"{source.name}: the pixels cannot be decoded; the decoder {what}, so the file is most likely damaged"
            ) from None
        except BaseException:
            stop_decoding()
            raise
    if "error" in answer:
        raise SeriesError(answer["error"])
    array = np.frombuffer(planes, dtype=answer["dtype"]).reshape(len(indices), pixels.rows, pixels.columns)
    yield from array


def stop_decoding() -> None:
    """End the child process, if there is one."""
    global _child
    if _child is not None:
        _child.kill()
        _child.communicate()
        _child = None


atexit.register(stop_decoding)


def _forget_child() -> None:
    """Leave the child to the process that was forked: its answers are not for this one."""
    global _child, _lock
    _child, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_child)


def child_pid() -> int | None:
    """Return the number of the process that decodes, None where none does."""
    return _child.pid if _child is not None and _child.returncode is None else None


def kill_child() -> None:
    """End the child process where this one ends at once: another thread may be waiting for its answer."""
    if _child is not None:
        _child.kill()


def _running_child() -> subprocess.Popen[bytes]:
    global _child
    if _child is None or _child.poll() is not None:
        stop_decoding()
        package_root = os.fspath(Path(__file__).resolve().parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([package_root, *filter(None, sys.path)])}
        try:
            _child = subprocess.Popen(  # noqa: S603 (this interpreter, this module)
                [sys.executable, "-P", "-m", __name__],  # -P: whatever lies in the current folder is not imported
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            _receive(_child, time.monotonic() + START_SECONDS)
        except (OSError, EOFError, ValueError, TypeError):
            raise SeriesError(
                "compressed pixels are decoded by a Python process of its own, which does not start: sys.executable is "
                f"{sys.executable!r}; set it to a Python 3.11 or later that has the packages of this one"
            ) from None
    return _child


def _ask(
    child: subprocess.Popen[bytes], request: dict[str, Any], body: bytes | None, seconds: float
) -> tuple[dict[str, Any], bytes]:
    assert child.stdin is not None  # noqa: S101 (for mypy: it is a pipe)
    _write_message(child.stdin, request, body or b"")
    return _receive(child, time.monotonic() + seconds)


def _receive(child: subprocess.Popen[bytes], deadline: float) -> tuple[dict[str, Any], bytes]:
    """Read one message. Raises TimeoutError, and EOFError where the child has died."""
    assert child.stdout is not None  # noqa: S101 (for mypy: it is a pipe)
    output = child.stdout.fileno()
    buffer = bytearray()
    header: dict[str, Any] | None = None
    start = expected = 0
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while header is None or len(buffer) < expected:
            if not selector.select(max(deadline - time.monotonic(), 0)):
                raise TimeoutError
            piece = os.read(output, CHUNK)
            if not piece:
                raise EOFError
            buffer += piece
            if header is None and b"\n" in piece:
                start = buffer.index(b"\n") + 1
                header = json.loads(buffer[:start])
                expected = start + int(header["bytes"])
    return header, bytes(buffer[start:])


def _write_message(stream: IO[bytes], header: dict[str, Any], body: bytes) -> None:
    stream.write(json.dumps(header | {"bytes": len(body)}).encode() + b"\n")
    stream.write(body)
    stream.flush()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Say that the child is ready, then answer requests until the parent closes the pipe."""
    import pydicom.pixels  # noqa: F401 (the slow part of the start)

    _write_message(answers, {"ready": True}, b"")
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["bytes"])
        name = request["name"]
        if "path" in request:
            source = Source(name, Path(request["path"]), request["size"])
        else:
            source = Source(name, Path(name), len(data), data)
        try:
            planes = np.stack(list(decode_planes(source, PixelFormat(**request["pixels"]), request["indices"])))
        except SeriesError as error:
            _write_message(answers, {"error": str(error)}, b"")
        else:
            _write_message(answers, {"dtype": planes.dtype.str}, planes.tobytes())


def _main() -> None:
    import resource

    # Decoders print to the standard output too: they get the null device, the answers keep the pipe.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_CHILD_BYTES, MAX_CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
