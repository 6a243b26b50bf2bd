"""Write classes that have every function of TensorRT's own implementations, for a TensorRT that is played to derive from.

    python tensorrt_stubs.py NvInferImpl.h stubs.hpp

Whatever the played one does not define ends the process, should it be called.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CLASSES = ("VRuntime", "VCudaEngine", "VExecutionContext")
FUNCTION = re.compile(r"virtual ([^;]*?)\s*= 0;")


def main() -> None:
    """Read one header, write the other."""
    header = Path(sys.argv[1]).read_text(encoding="utf-8")
    lines = ["#pragma once", "#include <NvInferRuntime.h>", "#include <cstdlib>", "", "namespace nvinfer1 {", ""]
    for name in CLASSES:
        body = re.search(rf"class {name} : .*?\n}};", header, re.DOTALL)
        if body is None:
            raise SystemExit(f"{sys.argv[1]}: no class {name} in it")
        lines += [f"class Stub{name} : public apiv::{name} {{", "public:"]
        built = re.sub(r"#if.*?#endif", "", body[0], flags=re.DOTALL)  # what no build has
        lines += [f"    {' '.join(one.split())} override {{ std::abort(); }}" for one in FUNCTION.findall(built)]
        lines += ["};", ""]
    Path(sys.argv[2]).write_text("\n".join([*lines, "}  // namespace nvinfer1", ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
