"""The encoder's options: a convolutional stem that sees one patch at a time, and a pool that no batch changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from decipher_rt.errors import EngineError
from decipher_rt.export.onnx import encoder_graph
from decipher_rt.export.tensorrt.files import Wanted, plan_files
from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS
from decipher_rt.train.model.stem import ConvStem
from decipher_rt.train.model.vit import ViT, ViTConfig, gather_patches, normalise
from decipher_rt.train.weights import load_weights

CONV = ViTConfig(
    width=48, depth=1, heads=4, embedding_size=16, grid_shape=(16, 16, 16), patch_shape=(8, 8, 8),
    spacing_mm=(10.0,) * 3, token_buckets=(4, 8), stem="conv",
)  # fmt: skip


@pytest.fixture
def encoder() -> ViT:
    torch.manual_seed(0)
    return ViT(CONV).eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    volume = torch.rand((1, 1, 16, 16, 16), generator=generator) * 900 - 50
    return {"volume": volume, "window": torch.tensor([[0.0, 800.0]]), "tokens": torch.tensor([[0, 3, 4, 7]])}


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3 x 3 x 3, stride 2, padding 1, voxel by voxel: (I, D, H, W) to (O, D/2, H/2, W/2)."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    size = x.shape[1] // 2
    out = np.zeros((len(weight), size, size, size))
    for d, h, w in np.ndindex(size, size, size):
        window = padded[:, 2 * d : 2 * d + 3, 2 * h : 2 * h + 3, 2 * w : 2 * w + 3]
        out[:, d, h, w] = (weight * window).sum(axis=(1, 2, 3, 4)) + bias
    return out


@torch.no_grad()
def test_the_stem_is_convolutions_norms_and_a_matrix() -> None:
    torch.manual_seed(1)
    stem = ConvStem((8, 8, 8), 48).double()
    patch = torch.randn(8 * 8 * 8, dtype=torch.float64)
    x = patch.numpy().reshape(1, 8, 8, 8)
    for convolution, norm, _ in stem.stages:
        x = convolve(x, convolution.weight.numpy(), convolution.bias.numpy())
        x = (x - x.mean()) / np.sqrt(x.var() + norm.eps)
        x = x * norm.weight.numpy().reshape(-1, 1, 1, 1) + norm.bias.numpy().reshape(-1, 1, 1, 1)
        x = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    assert x.shape == (16, 2, 2, 2)  # 8 voxels a side, twice halved
    expected = stem.linear.weight.numpy() @ x.ravel() + stem.linear.bias.numpy()
    np.testing.assert_allclose(stem(patch).numpy(), expected, atol=1e-10)


@torch.no_grad()
def test_a_token_depends_on_its_own_patch_alone(encoder: ViT, inputs: dict[str, torch.Tensor]) -> None:
    """So that patches may be dropped before the stem."""
    embedded = encoder.embed(**inputs)
    few = encoder.embed(**{**inputs, "tokens": inputs["tokens"][:, 1:3]})
    assert torch.allclose(few, embedded[:, 1:3], atol=1e-6)
    changed = inputs["volume"].clone()
    changed[..., :8, :8, :8] = 77.0  # patch 0
    other = encoder.embed(**{**inputs, "volume": changed})
    assert torch.equal(other[:, 1:], embedded[:, 1:])
    assert not torch.allclose(other[:, 0], embedded[:, 0])


@pytest.mark.parametrize(("patch", "stages"), [((16, 16, 16), 3), ((8, 8, 8), 2), ((4, 8, 8), 1), ((5, 6, 6), 0)])
def test_patches_of_any_size_have_a_stem(patch: tuple[int, int, int], stages: int) -> None:
    stem = ConvStem(patch, 48)
    assert len(stem.stages) == stages
    assert stem(torch.zeros(3, 2, int(np.prod(patch)))).shape == (3, 2, 48)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_graph_of_a_convolutional_encoder_gives_the_same(
    encoder: ViT, inputs: dict[str, torch.Tensor], precision: str
) -> None:
    expected = [x.numpy() for x in encoder(**inputs)]
    content = encoder_graph(encoder, inputs, precision)
    assert sum(node.op_type == "Conv" for node in onnx.load_from_string(content).graph.node) == 2
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(["patch", "embedding"], {name: x.numpy() for name, x in inputs.items()})
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 if precision == "fp32" else 1e-2)


def test_engines_whose_kernel_embeds_patches_refuse_it_in_one_line(encoder: ViT) -> None:
    with pytest.raises(EngineError, match=r"encoder\.stem=conv") as caught:
        plan_files(encoder, Wanted("tensorrt-rtx", ("fp16",), (89,)))
    assert "\n" not in str(caught.value)


def test_weights_of_before_the_options_load() -> None:
    """The defaults are what was: one matrix, and the same names."""
    plain = dataclasses.replace(CONV, stem="linear")
    names = set(ViT(plain).state_dict())
    assert {"patch_embed.weight", "patch_embed.bias", "pooled_mean", "pooled_var"} <= names
    assert ViTConfig.PRESETS["tiny"].stem == "linear"
    assert load_weights(DEFAULT_WEIGHTS).config.encoder.stem == "linear"  # every name of them is in the model


def test_the_pool_is_not_changed_by_training(inputs: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(8)
    encoder = ViT(CONV)
    pooled = torch.randn((50, 96), generator=generator) * 3 + 1
    encoder.set_pool(pooled)
    assert torch.allclose(encoder.pooled_mean, pooled.mean(dim=0), atol=1e-5)
    assert torch.allclose(encoder.pooled_var, pooled.var(dim=0, correction=0), rtol=1e-4)
    doubled = {name: torch.cat([x, x]) for name, x in inputs.items()}
    doubled["volume"][1] *= 0.5
    training = encoder.train()(**doubled)[1]
    assert torch.allclose(training, encoder.eval()(**doubled)[1], atol=1e-6)
    assert torch.allclose(training[:1], encoder(**inputs)[1], atol=1e-5)  # no series depends on another
    assert torch.allclose(encoder.pooled_mean, pooled.mean(dim=0), atol=1e-5)


def test_embedding_is_the_normalised_pool_projected(inputs: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    encoder = ViT(CONV).eval()
    encoder.set_pool(torch.randn(20, 96) * 2 + 0.5)
    with torch.no_grad():
        whole, patch = encoder.features(encoder.embed(**inputs))
        vector = torch.cat([whole[0], patch[0].mean(dim=0)])
        scaled = (vector - encoder.pooled_mean) / (encoder.pooled_var + 1e-5).sqrt()
        projected = encoder.projection.weight @ scaled
        found = encoder(**inputs)[1][0]
    assert torch.allclose(found, projected / projected.norm(), atol=1e-5)


def test_patches_reach_the_stem_normalised(encoder: ViT, inputs: dict[str, torch.Tensor]) -> None:
    patches = normalise(gather_patches(inputs["volume"], inputs["tokens"], CONV.patch_shape), inputs["window"])
    assert patches.min() == -1
    assert patches.max() == 1
    with torch.no_grad():
        expected = encoder.patch_embed(patches) + encoder.position[inputs["tokens"][0]]
        assert torch.allclose(encoder.embed(**inputs), expected, atol=1e-6)
