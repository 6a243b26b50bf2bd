"""What TensorRT says, of either flavour: kept, so that an error can repeat it, and not printed."""

from __future__ import annotations

from typing import Any

from decipher_rt.errors import EngineError


def message_log(trt: Any) -> Any:
    """Return a logger of this library (either flavour) with its errors in ``errors``."""

    class MessageLog(trt.ILogger):  # type: ignore[misc]  # the class is the library's
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return MessageLog()


def failure(what: str, log: Any, then: str = "") -> EngineError:
    """Return the error for something that failed: the first thing that the library said of it, then what to do."""
    said = log.errors[0][:300] if log.errors else "it gives no reason"
    return EngineError(f"{what}: {said}" + (f"; {then}" if then else ""))
