"""Which TensorRT engines a command line asks for; what does not go together is refused in one line."""

from __future__ import annotations

import re

import pytest

from decipher_rt.errors import EngineError
from decipher_rt.export.tensorrt.files import Wanted, parse_wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, ("sm_89",), True, False), "add --engine tensorrt-rtx"),
        (("tensorrt", ("sm_89",), True, False), "leave --arch out"),
        (("tensorrt-rtx", ("89",), True, False), "--arch 89: expected a compute capability such as sm_89"),
        (("tensorrt-rtx", ("sm_89",), False, False), "add --fp16, --bf16 or --int8"),
        ((None, (), False, False, True), "add --engine tensorrt-rtx or tensorrt"),
        (("tensorrt-rtx", ("sm_89", "sm_75"), True, False, True), "sm_75 has no bfloat16"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: tuple, message: str) -> None:
    engine, architectures, fp16, int8, *bf16 = arguments
    with pytest.raises(EngineError, match=re.escape(message)):
        parse_wanted(engine, architectures, fp16=fp16, bf16=bool(bf16), int8=int8)


def test_architectures_are_read_once_each() -> None:
    wanted = parse_wanted("tensorrt-rtx", ("sm_120", "sm_89", "sm_89"), fp16=True, bf16=False, int8=True)
    assert wanted == Wanted("tensorrt-rtx", ("fp16", "int8"), (89, 120))
    assert parse_wanted(None, (), fp16=True, bf16=False, int8=False) is None


def test_what_compiles_the_kernel_is_missed_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="pip install triton"):
        parse_wanted("tensorrt-rtx", (), fp16=True, bf16=False, int8=False)
