"""Which card: chosen by index or UUID, refused in a line, and shown by ``doctor``; two cards are played."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnxruntime.capi.onnxruntime_inference_collection import check_and_normalize_provider_args

import decipher_rt
from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
from decipher_rt.cli import _COMMANDS, cli, main
from decipher_rt.encoder import load_encoder
from decipher_rt.engines import available, cuda, driver_release, tensorrt
from decipher_rt.engines.card import choose_card
from decipher_rt.engines.select import AUTO_ORDER
from decipher_rt.errors import EngineError
from decipher_rt.index import IndexEntry, empty_index, write_index
from decipher_rt.machine import describe_machine

TURING = {
    "name": "Fake Turing", "architecture": 75, "uuid": "3f0c8a52-91d7-4c33-b6a0-2b7f3e5d1c90", "memory_mib": 8192,
}  # fmt: skip
ADA = {
    "name": "Fake Ada", "architecture": 89, "uuid": "3f0cd1e7-0a44-4f0e-8f52-6c1e9b2ad377", "memory_mib": 24576,
}  # fmt: skip
SHOWN = f"CUDA shows 2: 0 Fake Turing (GPU-{TURING['uuid']}), 1 Fake Ada (GPU-{ADA['uuid']}); give "
GPU_ENGINES = ("auto", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


@pytest.fixture
def two(play_gpu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    return play_gpu(None, monkeypatch, (TURING, ADA))


@pytest.mark.parametrize("engine", GPU_ENGINES)
@pytest.mark.parametrize(
    ("device", "card"),
    [
        (0, 0), (1, 1), ("0", 0), ("1", 1), ("GPU-3f0c8", 0), ("GPU-3f0cd", 1), ("gpu-3F0CD1", 1),
        (f"GPU-{TURING['uuid']}", 0), (f"GPU-{ADA['uuid']}", 1), (f"MIG-{ADA['uuid']}", 1), ("cpu", None),
    ],
)  # fmt: skip
def test_a_card_is_named_by_its_index_or_its_uuid(two: Any, engine: str, device: Any, card: int | None) -> None:
    if card is None and engine != "auto":
        with pytest.raises(
            EngineError, match=f"engine {engine} runs on a GPU, not on device 'cpu': choose engine onnx"
        ):
            choose_card(engine, device)
    else:
        assert choose_card(engine, device) == card
    assert two.used == set()  # nothing is started on a card to find it


@pytest.mark.parametrize("engine", GPU_ENGINES)
def test_without_one_it_is_the_first_and_no_driver_is_asked(two: Any, engine: str) -> None:
    assert choose_card(engine, None) == 0
    assert two.calls == []


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (2, f"there is no device 2, {SHOWN}the index or the UUID of one of them"),
        ("999999999", f"there is no device 999999999, {SHOWN}the index or the UUID of one of them"),
        ("GPU-f0c", f"there is no device GPU-f0c, {SHOWN}the index or the UUID of one of them"),
        ("GPU-3f0c", f"device GPU-3f0c may be several of them, {SHOWN}more of the UUID"),
        *(
            (
                wrong,
                f"device {str(wrong)!r} is none: give 'cpu', a GPU's index, or its UUID (GPU-...) as 'nvidia-smi -L' ",
            )
            for wrong in (-1, "cuda:1", "", "1.0", "GPU-", "GPU-xyz", "3f0c", "CPU", "9" * 5000, "\n")
        ),
    ],
)
def test_a_card_that_is_not_there_is_refused_in_a_line(two: Any, device: Any, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        choose_card("auto", device)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_of_the_cpu_takes_no_card(two: Any, engine: str) -> None:
    assert choose_card(engine, None) is None
    assert choose_card(engine, "cpu") is None
    with pytest.raises(EngineError, match=f"^engine {engine} runs on the CPU, not on device '1': choose engine auto, "):
        choose_card(engine, 1)


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-nowhere.so.1")
    cuda._library.cache_clear()
    with pytest.raises(
        EngineError, match=r"^no NVIDIA driver \(libcuda-that-is-nowhere\.so\.1 is not here\): install it"
    ):
        decipher_rt.load(engine="auto", device=1)
    cuda._library.cache_clear()


def test_a_driver_that_shows_no_card_says_so(play_gpu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    play_gpu(None, monkeypatch, ())
    with pytest.raises(EngineError, match=r"no usable card \(cuInit gives CUDA_ERROR_NO_DEVICE\): .* CUDA_VISIBLE_DEV"):
        choose_card("auto", 0)
    assert describe_machine().gpus == ()
    assert "cuInit gives CUDA_ERROR_NO_DEVICE" in describe_machine().gpu_note


def test_to_force_the_cpu_tries_no_card(two: Any) -> None:
    chosen = load_encoder(open_bundle(), "auto", "fp32", 1, choose_card("auto", "cpu"))
    assert (chosen.engine.name, chosen.engine.device, chosen.fallback) == ("onnxruntime", "cpu", None)
    assert two.calls == []


def test_reasons_are_those_of_the_card_that_was_asked_for(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "require_library", lambda flavour: None)
    for card, architecture in ((0, 75), (1, 89)):
        fallback = load_encoder(open_bundle(), "auto", "fp16", 1, card).fallback or ""
        for flavour in ("tensorrt", "tensorrt-rtx"):
            assert f"{flavour} engines for no card, this card is sm_{architecture}; build one" in fallback


# --- onnxruntime's CUDA provider -------------------------------------------------------------------------------------

CUDA_OPTIONS = {"device_id", "gpu_mem_limit", "cudnn_conv_algo_search", "do_copy_in_default_stream", "use_tf32"}


class PlayedOnnxRuntime:
    """``InferenceSession`` of an onnxruntime with CUDA: the real one's reading of its arguments, on the CPU.

    The provider starts only once the libraries that pip installed were loaded, and multiplies float32 as TF32 unless it
    is told not to: what comes out has ten bits of mantissa.
    """

    cards: int = 2
    preloaded: bool
    made: list[dict[str, dict[str, str]]]

    def __init__(
        self, graph: Any, options: Any = None, providers: Any = None, provider_options: Any = None, **_: Any
    ) -> None:
        known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self._names, settings = check_and_normalize_provider_args(providers, provider_options, known)
        self._options = dict(zip(self._names, settings, strict=True))
        given = self._options.get("CUDAExecutionProvider", {})
        assert set(given) <= CUDA_OPTIONS, "the real one refuses options that it does not know"
        if int(given.get("device_id", 0)) >= self.cards:
            raise RuntimeError("CUDA failure 101: invalid device ordinal")
        self._tf32 = bool(given) and given.get("use_tf32", "1") != "0"
        if given and not self.preloaded:
            self._names = ["CPUExecutionProvider"]
        self._session = ort_session(graph, options, providers=["CPUExecutionProvider"])
        PlayedOnnxRuntime.made.append(self._options)

    def get_providers(self) -> list[str]:
        return self._names

    def run(self, names: Any, inputs: Any) -> list[Any]:
        outputs = self._session.run(names, inputs)
        return [_ten_bits(output) for output in outputs] if self._tf32 else outputs

    @classmethod
    def preload_dlls(cls, directory: str | None = None) -> None:
        assert directory == "", "PyTorch's libraries may be of another CUDA"
        print("Failed to load libcufft.so.12")
        cls.preloaded = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def _ten_bits(values: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent).astype(values.dtype)


ort_session = ort.InferenceSession


@pytest.fixture
def played_onnxruntime(two: Any, monkeypatch: pytest.MonkeyPatch) -> type[PlayedOnnxRuntime]:
    monkeypatch.setattr(ort, "InferenceSession", PlayedOnnxRuntime)
    monkeypatch.setattr(ort, "preload_dlls", PlayedOnnxRuntime.preload_dlls)
    monkeypatch.setattr("decipher_rt.engines.ENGINES", dict.fromkeys(AUTO_ORDER, (("onnxruntime",), "")))
    PlayedOnnxRuntime.made, PlayedOnnxRuntime.preloaded = [], False
    return PlayedOnnxRuntime


@pytest.mark.parametrize(("device", "expected"), [(None, "cuda:0 Fake Turing"), ("GPU-3f0cd", "cuda:1 Fake Ada")])
@pytest.mark.parametrize("engine", ["onnxruntime-cuda", "auto"])
def test_onnxruntime_is_given_the_card(
    played_onnxruntime: type[PlayedOnnxRuntime],
    capsys: pytest.CaptureFixture[str],
    engine: str,
    device: str | None,
    expected: str,
) -> None:
    session = decipher_rt.load(engine=engine, device=device, threads=1)
    asked = [made["CUDAExecutionProvider"] for made in played_onnxruntime.made if "CUDAExecutionProvider" in made]
    # The encoder alone: heads run on the CPU.
    assert asked == [{"device_id": expected[5], "use_tf32": "0"}]
    assert capsys.readouterr().out == ""
    described = session.infer(DEFAULT_BUNDLE.parent / "demo_series").engine
    assert (described["name"], described["device"]) == ("onnxruntime-cuda", expected)


def test_what_a_card_multiplies_in_less_than_fp32_gives_way(
    played_onnxruntime: type[PlayedOnnxRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tf32 = ("CUDAExecutionProvider", {"device_id": "0"})
    monkeypatch.setattr("decipher_rt.engines.onnxruntime.cuda_provider", lambda card: with_tf32)
    PlayedOnnxRuntime.preloaded = True
    session = decipher_rt.load(engine="onnxruntime-cuda", threads=1)
    assert (session.encoder.name, session.encoder.device) == ("onnxruntime", "cpu")
    assert session.fallback is not None
    assert session.fallback.startswith("onnxruntime-cuda fp32 was asked for: on the golden case patch differs by 0.00")


def test_a_provider_that_does_not_start_says_why(
    played_onnxruntime: type[PlayedOnnxRuntime], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where libcublas is nowhere: onnxruntime goes on with the CPU and logs it."""
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda **_: None)
    with pytest.raises(
        EngineError, match=r"has no usable CUDA \(.*(file too short|invalid ELF header)\): pip uninstall"
    ):
        decipher_rt.load(engine="onnxruntime-cuda", threads=1)


def test_a_wheel_for_the_cpu_that_overwrote_the_other_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both fill the folder ``onnxruntime``; here it is the CPU's, whatever the other's metadata say."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.31.1")
    found = {item.name: item for item in available()}
    assert found["onnxruntime"].available
    assert not found["onnxruntime-cuda"].available
    assert found["onnxruntime-cuda"].detail == (
        "onnxruntime-gpu 1.31.1, overwritten by onnxruntime: pip uninstall -y onnxruntime onnxruntime-gpu && "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


@pytest.mark.parametrize("wheel", ["tensorrt", "tensorrt-cu12", "tensorrt-cu13"])
def test_tensorrt_is_found_in_each_of_its_wheels(monkeypatch: pytest.MonkeyPatch, wheel: str) -> None:
    def version(name: str) -> str:
        if name != wheel:
            raise PackageNotFoundError(name)
        return "11.4.0"

    monkeypatch.setattr("importlib.metadata.version", version)
    (found,) = (item for item in available() if item.name == "tensorrt")
    assert (found.available, found.detail) == (True, f"{wheel} 11.4.0")


def test_verify_runs_on_the_card_and_names_it(played_onnxruntime: type[PlayedOnnxRuntime]) -> None:
    ran = CliRunner().invoke(cli, ["verify", "--engine", "onnxruntime-cuda", "--device", "1", "--json"])
    assert (ran.exit_code, json.loads(ran.output)["device"]) == (0, "cuda:1 Fake Ada")


# --- the commands ----------------------------------------------------------------------------------------------------


def test_commands_that_open_an_engine_take_a_device() -> None:
    for name in _COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        options = {parameter.name for parameter in command.params}
        assert ("device" in options) == ("engine" in options or name == "doctor"), name


@pytest.mark.parametrize("command", ["infer", "profile", "verify", "embed", "search"])
def test_the_device_reaches_the_engine(two: Any, command: str, tmp_path: Path) -> None:
    series, index = str(DEFAULT_BUNDLE.parent / "demo_series"), tmp_path / "index"
    entry = IndexEntry(path=series, uid="1", volume_index=0, manufacturer="", description="", in_scope=True)
    one = np.eye(1, open_bundle().manifest.encoder.embedding_size, dtype=np.float32)
    write_index(index, dataclasses.replace(empty_index(open_bundle()), vectors=one, entries=(entry,)))
    arguments = {
        "verify": [],
        "embed": [series, "-o", str(tmp_path / "new")],
        "search": [str(index), series],
    }.get(command, [series])
    ran = CliRunner().invoke(cli, [command, *arguments, "--engine", "auto", "--device", "GPU-f00"])
    assert isinstance(ran.exception, EngineError)
    assert str(ran.exception).startswith("there is no device GPU-f00, CUDA shows 2")


def test_it_is_one_line_and_status_2(
    two: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["decipher-rt", "verify", "--engine", "auto", "--device", "5"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"decipher-rt: there is no device 5, {SHOWN}the index or the UUID of one of them\n"


# --- doctor ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_release, "driver_release", lambda: "580.65.06")


def doctor(*arguments: str) -> tuple[dict[str, Any], str]:
    printed = [
        CliRunner().invoke(cli, ["doctor", *arguments, *form], catch_exceptions=False) for form in ([], ["--json"])
    ]
    assert [outcome.exit_code for outcome in printed] == [0, 0]
    return json.loads(printed[1].output), printed[0].output


@pytest.mark.parametrize(
    ("arguments", "name", "why", "architecture"),
    [
        ((), "cuda:0 Fake Turing", "the first of 2 GPUs that CUDA shows; --device chooses another", 75),
        (("--device", "1"), "cuda:1 Fake Ada", "asked for", 89),
        (("--device", "GPU-3f0cd"), "cuda:1 Fake Ada", "asked for", 89),
        (("--device", "cpu"), "cpu", "asked for", None),
    ],
)
def test_doctor_lists_the_cards_and_says_which_and_why(
    two: Any, release: None, arguments: tuple[str, ...], name: str, why: str, architecture: int | None
) -> None:
    report, text = doctor(*arguments)
    assert report["machine"]["gpus"] == [
        {
            "index": index, "uuid": f"GPU-{card['uuid']}", "name": card["name"], "memory_mib": card["memory_mib"],
            "compute_capability": f"{card['architecture'] // 10}.{card['architecture'] % 10}",
        }
        for index, card in enumerate((TURING, ADA))
    ]  # fmt: skip
    assert report["machine"]["gpu_note"] == "CUDA 13.0, driver release 580.65.06"
    assert report["device"] == {"name": name, "why": why}
    assert f"device        {name}: {why}\n" in text
    assert f"GPU 1         Fake Ada, compute 8.9, 24576 MiB, GPU-{ADA['uuid']}\n" in text
    assert "CUDA 13.0, driver release 580.65.06" in text
    order = {item["engine"]: item["why_not"] for item in report["auto"]["fp16"]}
    if architecture is None:
        assert order == {"onnxruntime": None}
    else:
        assert list(order) == list(AUTO_ORDER)
        assert f"this card is sm_{architecture};" in order["tensorrt"]
    assert two.used == set()


def test_doctor_says_that_a_card_is_the_only_one(play_gpu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    play_gpu(None, monkeypatch, (ADA,))
    assert doctor()[0]["device"] == {"name": "cuda:0 Fake Ada", "why": "the only GPU that CUDA shows"}


def test_doctor_without_a_card(play_gpu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    play_gpu(None, monkeypatch, ())
    report, text = doctor()
    assert report["device"] == {"name": "cpu", "why": "there is no GPU that CUDA can use"}
    assert "no usable card" in report["auto"]["fp16"][0]["why_not"]
    assert "--device" not in text


def test_doctor_refuses_a_card_that_is_not_there(two: Any) -> None:
    ran = CliRunner().invoke(cli, ["doctor", "--device", "2"])
    assert str(ran.exception).startswith("there is no device 2, CUDA shows 2")
