"""The ``base`` encoder (ViT-Base, 89M, 128^3 grid, 16^3 patches) with random weights: for torch, and as bundles.

Speed does not depend on the weights, but agreement does: LayerScale starts at 1 instead of 1e-5, so that every layer
matters to the embedding. Run as a program it builds what is missing and prints where it is.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from latency.cache import cache_folder
from latency.series import head_like

LABELS = ("a", "b", "c", "d", "e")
# Name of each bundle: its token buckets (None: those of the preset) and its precisions.
BUNDLES = {
    "all-fp32": ((512,), ("fp32",)),
    "foreground-fp32": (None, ("fp32",)),
    "all-int8": ((512,), ("fp32", "int8")),
    "foreground-int8": (None, ("fp32", "int8")),
}


def base_config():
    """Return the preset with layers that matter."""
    from decipher_rt.train.model.vit import ViTConfig

    return dataclasses.replace(ViTConfig.PRESETS["base"], layer_scale=1.0)


def torch_encoder(folder: Path):
    """Return the encoder in torch, in eval mode."""
    from safetensors.torch import load_file

    from decipher_rt.train.model.vit import ViT

    model = ViT(base_config())
    model.load_state_dict(load_file(folder / "encoder.safetensors"), strict=False)
    return model.eval()


def build(folder: Path) -> None:
    """Write weights and bundles."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    from decipher_rt.bundle import write_bundle
    from decipher_rt.engines.cpu import cpu_features
    from decipher_rt.engines.select import INT8_FULL_RANGE, int8_targets
    from decipher_rt.export.onnx import encoder_graph, graph
    from decipher_rt.export.quantize import int8_graphs
    from decipher_rt.export.verify import check_graphs
    from decipher_rt.manifest import Encoder, EngineFile, Head, Manifest
    from decipher_rt.preprocess import Grid, build_graph
    from decipher_rt.tokens import select_tokens
    from decipher_rt.train.model.vit import ViT
    from decipher_rt.verify import CASE

    torch.manual_seed(0)
    config = base_config()
    model, head = ViT(config).eval(), nn.Linear(config.embedding_size, len(LABELS))
    with torch.no_grad():
        head.weight.mul_(20.0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "encoder.safetensors")
    volume = head_like(config.grid_shape).astype(np.float32)
    window = np.percentile(volume, (0.5, 99.5), method="inverted_cdf").astype(np.float32)

    def case(spec):
        tokens = select_tokens(Grid(volume, window, np.eye(4)), spec).indices
        inputs = {"volume": volume[None, None], "window": window[None], "tokens": tokens[None]}
        return inputs, {name: torch.from_numpy(array) for name, array in inputs.items()}

    _, tensors = case(config.preprocessing)
    fp32 = encoder_graph(model, tensors, "fp32")
    # Without calibration nothing is smoothed, which makes no difference to speed.
    int8 = int8_graphs(fp32, (), int8_targets(cpu_features()))
    with torch.no_grad():
        embedding = model(**tensors)[1]
    sure = nn.Sequential(head, nn.Softmax(dim=-1))
    answers = graph(sure, {"embedding": embedding}, outputs=("probabilities",), dynamic={"embedding": {0: "B"}})
    names = {target: f"encoder.{'int8-vnni' if target == INT8_FULL_RANGE else 'int8'}.onnx" for target in int8}
    for name, (buckets, precisions) in BUNDLES.items():
        spec = config.preprocessing
        spec = dataclasses.replace(spec, token_buckets=buckets or spec.token_buckets, graphs={"cpu": "cpu.dali"})
        inputs, given = case(spec)
        with torch.no_grad():
            patch, embedding = model(**given)
            probabilities = sure(embedding)
        reference = {**inputs, "patch": patch.numpy(), "embedding": embedding.numpy()}
        reference["heads.sequence"] = probabilities.numpy()
        files = {"heads/sequence.onnx": answers, "cpu.dali": build_graph(spec, "cpu"), "encoder.onnx": fp32}
        engines = [EngineFile("onnx", "fp32", "encoder.onnx")]
        if "int8" in precisions:
            files |= {names[target]: content for target, content in int8.items()}
            engines += [EngineFile(target, "int8", names[target]) for target in int8]
        manifest = Manifest(
            name=f"base-{name}",
            version="0",
            intended_use="Benchmarks. Random weights.",
            licence="Apache-2.0",
            preprocessing=spec,
            encoder=Encoder(
                config.width,
                config.embedding_size,
                sum(p.numel() for p in model.parameters()),
                dataclasses.asdict(config),
            ),
            engines=tuple(engines),
            heads=(Head("sequence", "classification", "heads/sequence.onnx", labels=LABELS),),
        )
        numerics = check_graphs(files, manifest, [reference])
        golden = io.BytesIO()
        np.savez_compressed(golden, **{**reference, "volume": volume.astype(np.int16)[None, None]})
        files[f"{manifest.golden}/{CASE}"] = golden.getvalue()
        write_bundle(folder / name, dataclasses.replace(manifest, numerics=numerics), files)
        print(f"{name}: {', '.join(f'{n.target} cosine {n.embedding_cosine:.5f}' for n in numerics)}", file=sys.stderr)


if __name__ == "__main__":
    where = cache_folder()
    if not all((where / name).is_dir() for name in BUNDLES):
        print("building the base model's bundles (once)", file=sys.stderr)
        build(where)
    print(where)
