"""The CUDA driver, played: device memory is the host's, and kernels are numpy."""

# ruff: noqa: N802, N815 - handlers carry the names of cuda.h
from __future__ import annotations

import copy
import ctypes
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from decipher_rt.engines import cuda

from .played_cards import INVALID_CONTEXT, OUT_OF_MEMORY, FakeCard, FakeCards
from .played_kernels import KERNELS

Work = Callable[[], None]


class FakeCuda(FakeCards):
    """The driver's functions on host memory. Work on a stream is done at once, or recorded while it is captured.

    ``calls`` are the names of all calls. A call in ``fail`` does nothing and gives an error, and so does one that needs a
    context in a thread where none is current, or where the primary context is gone, and one that is given what was made
    on another card than the current context's (the driver allows some of that). ``done`` names the copies and kernels
    that were carried out, in order; ``launches`` are those of kernels outside of graphs. ``foreign_streams`` are those
    of others in the same context, ``waits`` the streams that were waited for.
    """

    def __init__(self, kernels: Path | None, cards: Sequence[FakeCard]) -> None:
        super().__init__(cards)
        self.calls: list[str] = []
        self.fail: set[str] = set()
        self.done: list[str] = []
        self.launches: list[dict[str, Any]] = []
        self.foreign_streams: set[int] = set()
        self.waits: list[int] = []
        self.graphs: dict[int, FakeGraph] = {}
        self.executables: dict[int, FakeGraph] = {}
        self.recording: list[Work] | None = None
        launch_data = json.loads((kernels / "kernels.json").read_text())["kernels"] if kernels else []
        self.launch_data = {item["kernel"]: item for item in launch_data}
        self._recorded_events: dict[int, int] = {}
        self._kernel_of: dict[int, str] = {}

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        handler = getattr(type(self), f"on_{name}")

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            assert len(arguments) == len(cuda._SIGNATURES[name]), name
            if name in self.fail:
                if name == "cuStreamEndCapture":
                    self.recording = None  # also a capture that became invalid is over
                return OUT_OF_MEMORY
            return int(handler(self, *arguments) or 0) if self.may(name, arguments) else INVALID_CONTEXT

        return call

    # --- Memory

    def _allocate(self, out: Any, size: int) -> None:
        memory = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(memory) // 256) * 256
        ctypes.memset(address, 0xFF, size)  # NaN in every float type
        out._obj.value = self.new(address)
        self.live[address] = memory

    on_cuMemAlloc_v2 = on_cuMemAllocHost_v2 = _allocate

    def _free(self, pointer: Any) -> None:
        self.live.pop(pointer.value)
        self.owner.pop(pointer.value)  # the address may come again, for whatever

    on_cuMemFree_v2 = on_cuMemFreeHost = _free

    # --- Streams and events

    def _create(self, out: Any, flags: int) -> None:
        assert flags  # neither kind is made with the defaults
        out._obj.value = self.new()
        self.handles.add(out._obj.value)

    on_cuStreamCreate = on_cuEventCreate = _create

    def _destroy(self, handle: Any) -> None:
        self.handles.remove(handle.value)

    on_cuStreamDestroy_v2 = on_cuEventDestroy_v2 = _destroy

    def on_cuEventRecord(self, event: Any, stream: Any) -> int:
        assert event.value in self.handles
        if stream.value not in self.handles | self.foreign_streams:
            return INVALID_CONTEXT
        self._recorded_events[event.value] = stream.value
        return 0

    def on_cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        assert flags == 0
        assert stream.value in self.handles
        self.waits.append(self._recorded_events[event.value])
        self.enqueue("wait", lambda: None)

    def on_cuStreamSynchronize(self, _stream: Any) -> None:
        assert self.recording is None, "a stream that is being captured cannot be waited for"

    # --- Work on a stream

    def _noted(self, name: str, work: Work) -> Work:
        def noted() -> None:
            self.done.append(name)
            work()

        return noted

    def enqueue(self, name: str, work: Work) -> None:
        noted = self._noted(name, work)
        self.recording.append(noted) if self.recording is not None else noted()

    def on_cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: int, _stream: Any) -> None:
        self.enqueue("upload", lambda: ctypes.memmove(target.value, source.value, size))

    def on_cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: int, _stream: Any) -> None:
        self.enqueue("download", lambda: ctypes.memmove(target.value, source.value, size))

    def on_cuStreamBeginCapture_v2(self, _stream: Any, mode: int) -> None:
        assert mode == cuda.CAPTURE_THREAD_LOCAL
        assert self.recording is None
        self.recording = []

    def on_cuStreamEndCapture(self, _stream: Any, graph: Any) -> None:
        recorded, self.recording = self.recording, None
        assert recorded is not None, "no capture has begun"
        self._new_graph(graph).nodes[next(self._numbers)] = recorded

    # --- Graphs

    def _new_graph(self, out: Any) -> FakeGraph:
        out._obj.value = self.new()
        return self.graphs.setdefault(out._obj.value, FakeGraph())

    def on_cuGraphCreate(self, graph: Any, flags: int) -> None:
        assert flags == 0
        self._new_graph(graph)

    def _add(self, node: Any, graph: Any, dependencies: Any, count: int, work: list[Work]) -> None:
        node._obj.value = next(self._numbers)
        assert count == (0 if dependencies is None else 1)
        self.graphs[graph.value].add(node._obj.value, work, dependencies._obj.value if count else None)

    def on_cuGraphAddChildGraphNode(self, node: Any, graph: Any, dependencies: Any, count: int, child: Any) -> None:
        self._add(node, graph, dependencies, count, self.graphs[child.value].work())

    def on_cuGraphAddKernelNode_v2(self, node: Any, graph: Any, dependencies: Any, count: int, params: Any) -> None:
        self._add(node, graph, dependencies, count, [self._kernel_of_node(params._obj)])

    def on_cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, _flags: int) -> None:
        executable._obj.value = self.new()
        self.executables[executable._obj.value] = copy.deepcopy(self.graphs[graph.value])

    def on_cuGraphExecKernelNodeSetParams_v2(self, executable: Any, node: Any, params: Any) -> None:
        assert any(node.value in graph.nodes for graph in self.graphs.values()), "its graph was destroyed"
        self.executables[executable.value].nodes[node.value] = [self._kernel_of_node(params._obj)]

    def on_cuGraphLaunch(self, executable: Any, _stream: Any) -> None:
        for work in self.executables[executable.value].work():
            work()

    def on_cuGraphDestroy(self, graph: Any) -> int:
        return 0 if graph.value and self.graphs.pop(graph.value) else 1

    def on_cuGraphExecDestroy(self, executable: Any) -> None:
        self.executables.pop(executable.value)

    # --- Kernels

    def on_cuModuleLoadData(self, out: Any, cubin: bytes) -> None:
        assert cubin.startswith(b"\x7fELF")
        out._obj.value = self.new()

    def on_cuModuleUnload(self, _module: Any) -> None:
        pass

    def on_cuModuleGetFunction(self, out: Any, _module: Any, name: bytes) -> None:
        out._obj.value = self.new()
        (kernel,) = (item["kernel"] for item in self.launch_data.values() if item["entry"] == name.decode())
        self._kernel_of[out._obj.value] = kernel

    def on_cuFuncSetAttribute(self, _function: Any, _attribute: int, _value: int) -> None:
        pass

    def on_cuLaunchKernel(self, function: Any, *arguments: Any) -> None:
        *sizes, _stream, pointers, _extra = arguments
        kernel = self._kernel_of[function.value]
        self.launches.append({"kernel": kernel, "grid": sizes[:3], "block": sizes[3:6], "shared": sizes[6]})
        self.enqueue(kernel, self._compute(kernel, pointers))

    def _kernel_of_node(self, params: cuda.KernelNodeParams) -> Work:
        kernel = self._kernel_of[params.func]
        data = self.launch_data[kernel]
        assert (params.blockDimX, params.blockDimY, params.blockDimZ) == (data["threads"], 1, 1)
        assert params.sharedMemBytes == data["shared_memory_bytes"]
        assert not params.extra
        return self._noted(kernel, self._compute(kernel, params.kernelParams))

    def _compute(self, kernel: str, pointers: Any) -> Work:
        """Read the parameters now, as the driver does: what they point to may be gone later."""
        data, given, card = self.launch_data[kernel], {}, self.current()
        for index, item in enumerate(data["arguments"]):
            kind = ctypes.c_int32 if "int32" in item else ctypes.c_uint64
            value = given[item["name"]] = kind.from_address(pointers[index]).value
            assert "int32" in item or self.owner.get(value, card) == card, "memory of another card: an illegal address"
        return lambda: KERNELS[kernel](given, data["constants"])


class FakeGraph:
    """Nodes in the order in which their dependencies let them run: here each depends on the one before."""

    def __init__(self) -> None:
        self.nodes: dict[int, list[Work]] = {}

    def add(self, node: int, work: list[Work], after: int | None) -> None:
        assert after == (list(self.nodes)[-1] if self.nodes else None), "two nodes could run at once"
        self.nodes[node] = work

    def work(self) -> list[Work]:
        return [work for node in self.nodes.values() for work in node]

    def __deepcopy__(self, _memo: Any) -> FakeGraph:
        made = FakeGraph()
        made.nodes = {node: list(work) for node, work in self.nodes.items()}
        return made
