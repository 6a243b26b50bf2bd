"""A step of the encoder as one CUDA graph: uploads, the kernel that reads the grid, and all that follows.

The kernel's node is made by hand between two recorded parts, so that its arguments can be replaced: DALI does not
promise to leave every grid at the same address, and the kernel reads it where it lies.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from ctypes import byref, c_void_p

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines.cuda import CAPTURE_THREAD_LOCAL, Driver, KernelNodeParams, Launch
from decipher_rt.errors import EngineError

Work = Callable[[], None]


class GridStep:
    """What is done with a grid in device memory, on the driver's stream.

    Parameters
    ----------
    driver : Driver
    before, after : callable
        Enqueue what comes before the kernel and after it, always with the same addresses.
    bind : callable
        Gives the kernel's launch on a grid.

    Attributes
    ----------
    recorded : bool
        Whether it runs as one graph; until then its parts are enqueued one by one.
    """

    def __init__(self, driver: Driver, before: Work, bind: Callable[[DeviceArray], Launch], after: Work) -> None:
        self._driver, self._before, self._bind, self._after = driver, before, bind, after
        self._graph: _Graph | None = None
        self._reads = 0  # address of the grid that the graph reads

    @property
    def recorded(self) -> bool:
        """Whether it runs as one graph."""
        return self._graph is not None

    def record(self, grid: DeviceArray) -> str | None:
        """Make the graph, and say in a line why there is none where that is refused: then all stays as it was."""
        try:
            launch = self._bind(grid)
            graph = _Graph(self._driver, self._before, launch, self._after)
            graph.replace(launch)  # every later grid may need it, and there nothing falls back
        except EngineError as error:
            return str(error)
        self._graph, self._reads = graph, grid.pointer
        return None

    def run(self, grid: DeviceArray) -> None:
        """Enqueue the step.

        Raises
        ------
        EngineError
            If CUDA or the engine refuses.
        """
        if self._graph is None:
            self._before()
            self._bind(grid).run()
            self._after()
            return
        if grid.pointer != self._reads:
            self._reads = 0  # of neither, should the call fail
            self._graph.replace(self._bind(grid))
            self._reads = grid.pointer
        self._graph.launch()


class _Graph:
    """``before``, a kernel, ``after``, in this order."""

    def __init__(self, driver: Driver, before: Work, kernel: Launch, after: Work) -> None:
        self._driver = driver
        self._graph, self._kernel, self._executable = c_void_p(), c_void_p(), c_void_p()
        driver.call("cuGraphCreate", byref(self._graph), 0)
        # It lives as long as what was made from it: its node is how the kernel is named when that is changed.
        weakref.finalize(self, driver.free, "cuGraphDestroy", self._graph)
        first = self._add(before, None)
        params = _node_params(kernel)
        driver.call("cuGraphAddKernelNode_v2", byref(self._kernel), self._graph, byref(first), 1, byref(params))
        self._add(after, self._kernel)
        driver.call("cuGraphInstantiateWithFlags", byref(self._executable), self._graph, 0)
        weakref.finalize(self, driver.free, "cuGraphExecDestroy", self._executable)

    def replace(self, kernel: Launch) -> None:
        """Let the kernel be launched on other arguments from now on; launches under way keep theirs."""
        params = _node_params(kernel)
        self._driver.call("cuGraphExecKernelNodeSetParams_v2", self._executable, self._kernel, byref(params))

    def launch(self) -> None:
        self._driver.call("cuGraphLaunch", self._executable, self._driver.stream)

    def _add(self, work: Work, after: c_void_p | None) -> c_void_p:
        """Record work and add it as one node."""
        recorded, node = _record(self._driver, work), c_void_p()
        try:
            arguments = (None, 0) if after is None else (byref(after), 1)
            self._driver.call("cuGraphAddChildGraphNode", byref(node), self._graph, *arguments, recorded)
        finally:
            self._driver.free("cuGraphDestroy", recorded)  # the node has a copy
        return node


def _record(driver: Driver, work: Work) -> c_void_p:
    recorded = c_void_p()
    driver.call("cuStreamBeginCapture_v2", driver.stream, CAPTURE_THREAD_LOCAL)
    try:
        work()
    except EngineError:
        with contextlib.suppress(EngineError):  # the stream must leave its capture; why it failed is known
            driver.call("cuStreamEndCapture", driver.stream, byref(recorded))
            driver.free("cuGraphDestroy", recorded)
        raise
    driver.call("cuStreamEndCapture", driver.stream, byref(recorded))
    return recorded


def _node_params(kernel: Launch) -> KernelNodeParams:
    function, shared_memory = kernel.kernel.function, kernel.kernel.shared_memory
    return KernelNodeParams(function, *kernel.grid, kernel.threads, 1, 1, shared_memory, kernel.pointers())
