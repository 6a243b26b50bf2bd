"""The encoder: a 3D vision transformer over a chosen subset of the patches of one volume.

The whole model, in the order in which data meets it. It takes the resampled grid as the runtime makes it, with its
intensity window and the indices of the patches that hold tissue, and returns one vector for each of those patches and
one for the volume. With ``stem: conv`` it is a CNN-transformer hybrid.

Sources: ViT (arXiv 2010.11929), register tokens (arXiv 2309.16588), LayerScale (arXiv 2103.17239).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from decipher_rt.kernels import ops
from decipher_rt.kernels.arguments import HEAD_DIMS
from decipher_rt.manifest import Preprocessing

from .stem import ConvStem

# Wavelengths of the position code in mm. Patches are 16 to 32 mm apart, so nothing shorter than the first is
# resolved; the last is far longer than any field of view, so that left and right, or head and neck, never share a
# code.
SHORTEST_WAVE_MM, LONGEST_WAVE_MM = 64.0, 2048.0


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of the encoder and of the grid that it sees. Grid axes run to (S, A, R).

    Attributes
    ----------
    width, depth, heads : channels C of a token (a multiple of 6 and of ``heads``), layers, attention heads
    embedding_size : E, channels of the volume's embedding
    grid_shape, patch_shape : (D, H, W) in voxels
    spacing_mm : (D, H, W) of the grid's voxels in mm
    token_buckets : ascending numbers of tokens K; the last is the number of patches of the grid
    mlp_ratio : hidden channels of the MLP, as a multiple of ``width``
    registers : register tokens beside the class token
    layer_scale : starting value of LayerScale; 0 leaves LayerScale out
    stem : what turns a patch into a token: one matrix, or small convolutions and a matrix (``ConvStem``)
    """

    width: int
    depth: int
    heads: int
    embedding_size: int
    grid_shape: tuple[int, int, int]
    patch_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    token_buckets: tuple[int, ...]
    mlp_ratio: int = 4
    registers: int = 4
    layer_scale: float = 0.0
    stem: Literal["linear", "conv"] = "linear"

    PRESETS: ClassVar[dict[str, ViTConfig]] = {}
    RETIRED: ClassVar[tuple[str, ...]] = ("pool",)  # it said where the buffers of ``set_pool`` come from

    @property
    def preprocessing(self) -> Preprocessing:
        """How a volume becomes this encoder's grid and tokens."""
        return Preprocessing(
            grid_shape=self.grid_shape,
            spacing_mm=self.spacing_mm,
            patch_shape=self.patch_shape,
            token_buckets=self.token_buckets,
        )

    def check(self, key: str = "encoder") -> None:
        """Raise ValueError by key where the sizes contradict each other."""
        for name in ("width", "depth", "heads", "embedding_size", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{key}.{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("registers", "layer_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"{key}.{name} is {getattr(self, name)}, expected 0 or more")
        if not all(0 < spacing < math.inf for spacing in self.spacing_mm):
            raise ValueError(f"{key}.spacing_mm is {list(self.spacing_mm)}, expected numbers above 0")
        if self.width % 6 or self.width % self.heads:
            raise ValueError(f"{key}.width is {self.width}, expected a multiple of 6 and of {key}.heads ({self.heads})")
        for axis, (g, p) in enumerate(zip(self.grid_shape, self.patch_shape, strict=True)):
            if p < 1 or g < 1 or g % p:
                raise ValueError(
                    f"{key}.grid_shape[{axis}] is {g}, expected a multiple of {key}.patch_shape[{axis}] ({p})"
                )
        patches, buckets = self.preprocessing.patches, self.token_buckets
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1 or buckets[-1] != patches:
            raise ValueError(
                f"{key}.token_buckets is {list(buckets)}, expected ascending and the last to be all {patches} patches"
            )


# 12 x 12 x 12 patches of 20 mm: in 30 mm patches, 1728 voxels on 192 channels, small lesions are lost.
_TINY_GRID: dict[str, Any] = {
    "grid_shape": (96, 96, 96),
    "patch_shape": (8, 8, 8),
    "spacing_mm": (2.5, 2.5, 2.5),
    "token_buckets": (256, 384, 512, 640, 768, 896, 1728),
}
_GRID: dict[str, Any] = {
    "grid_shape": (128, 128, 128),
    "patch_shape": (16, 16, 16),
    "spacing_mm": (2.0, 2.0, 2.0),
    "token_buckets": (128, 192, 256, 320, 384, 512),
}
ViTConfig.PRESETS.update(
    tiny=ViTConfig(width=192, depth=6, heads=6, embedding_size=128, **_TINY_GRID),
    small=ViTConfig(width=384, depth=12, heads=6, embedding_size=256, **_GRID),
    base=ViTConfig(width=768, depth=12, heads=12, embedding_size=512, layer_scale=1e-5, **_GRID),
)


class ViT(nn.Module):
    """Encoder after the contract in ``docs/architecture.md``.

    Parameters
    ----------
    config : ViTConfig
    """

    position: Tensor
    pooled_mean: Tensor
    pooled_var: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        C = config.width
        self.patch_embed: nn.Linear | ConvStem = (
            nn.Linear(math.prod(config.patch_shape), C) if config.stem == "linear" else ConvStem(config.patch_shape, C)
        )
        self.register_buffer(
            "position", patch_positions(config), persistent=False
        )  # so that weights fit a grid of any size
        self.class_token = nn.Parameter(torch.empty(1, 1 + config.registers, C))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.register_buffer("pooled_mean", torch.zeros(2 * C))
        self.register_buffer("pooled_var", torch.ones(2 * C))
        self.projection = nn.Linear(2 * C, config.embedding_size, bias=False)
        self.apply(_initialise)
        nn.init.normal_(self.class_token, std=0.02)

    def forward(self, volume: Tensor, window: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Parameters
        ----------
        volume : Tensor, shape (B, 1, D, H, W), float32
            The grid, in stored units.
        window : Tensor, shape (B, 2), float32
            Robust minimum and maximum of the volume, in stored units.
        tokens : Tensor, shape (B, K), int64
            Flat patch indices, row-major over the patch grid.

        Returns
        -------
        patch : Tensor, shape (B, K, C), float32
            Patch tokens after the last norm.
        embedding : Tensor, shape (B, E), float32
            Unit vectors.
        """
        return self.encode(self.embed(volume, window, tokens))

    def embed(self, volume: Tensor, window: Tensor, tokens: Tensor) -> Tensor:
        """Return the chosen patches as tokens with their position, shape (B, K, C), in the weights' precision."""
        patch = self.config.patch_shape
        if isinstance(self.patch_embed, nn.Linear):  # the kernel is of one matrix
            weight, bias = self.patch_embed.weight, self.patch_embed.bias
            if ops.active(weight, bias, volume):
                return ops.patch_embed3d(volume[:, 0], window, tokens, weight, bias, self.position, patch)
        return self.project(normalise(gather_patches(volume, tokens, patch), window), tokens)

    def project(self, patches: Tensor, tokens: Tensor) -> Tensor:
        """Turn normalised patches (B, K, P), float32, into tokens (B, K, C). Half precision starts here."""
        return self.patch_embed(patches.to(self.class_token.dtype)) + take_rows(self.position, tokens)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn embedded tokens (B, K, C) into ``patch`` and ``embedding``."""
        whole, patch = self.features(x)
        whole = self.pooled(whole, patch)
        # What all volumes have in common is most of these vectors; taken out, two volumes differ by an angle that a
        # loss on unit vectors can see: in 360 steps the sequence loss fell to 0.6 instead of 1.1.
        mean, var = self.pooled_mean.float(), self.pooled_var.float()
        whole = F.batch_norm(whole, mean, var)
        return patch, F.normalize(self.projection(whole.to(self.projection.weight.dtype)).float(), dim=-1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn embedded tokens (B, K, C) into the class token (B, C) and patch tokens (B, K, C), after the last norm.

        The class token is in the weights' precision, patch tokens are float32.
        """
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, self.class_token.shape[1] :].float()

    def pooled(self, whole: Tensor, patch: Tensor) -> Tensor:
        """Return the class token beside the mean token, (B, 2C) float32.

        DINOv2's choice for linear probes (arXiv 2304.07193): contrast is a property of every patch, and the mean learns
        it from the first step.
        """
        return torch.cat([whole.float(), patch.mean(dim=1)], dim=-1)

    @torch.no_grad()
    def set_pool(self, pooled: Tensor) -> None:
        """Fix the mean and variance that pooled vectors are normalised by; training never changes them.

        Parameters
        ----------
        pooled : Tensor, shape (N, 2C)
            What ``pooled`` gave of many volumes, at least two.
        """
        var, mean = torch.var_mean(pooled.double(), dim=0, correction=0)
        self.pooled_mean.copy_(mean)
        self.pooled_var.copy_(var)


def gather_patches(volume: Tensor, tokens: Tensor, patch_shape: tuple[int, int, int]) -> Tensor:
    """Return the chosen patches of a grid as rows.

    A reshape and a row gather: a Conv3d whose stride is its kernel does the same, many times slower. The rows are
    taken from the batch as one table, because exported gathers along the first axis copy whole rows.

    Parameters
    ----------
    volume : Tensor, shape (B, 1, D, H, W)
    tokens : Tensor, shape (B, K), int64
    patch_shape : (D, H, W) of a patch

    Returns
    -------
    Tensor, shape (B, K, P)
        P = voxels of a patch, row-major.
    """
    B, _, D, H, W = volume.shape
    d, h, w = patch_shape
    rows = volume.reshape(B, D // d, d, H // h, h, W // w, w).permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, d * h * w)
    first = torch.arange(B, device=tokens.device).unsqueeze(1) * ((D // d) * (H // h) * (W // w))
    return take_rows(rows, tokens + first)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows (B, K) of a table (N, P), shape (B, K, P): one Gather of whole rows once exported."""
    return table.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def normalise(patches: Tensor, window: Tensor) -> Tensor:
    """Clip patches (B, K, P) to their volume's window (B, 2) and map it to -1..1, in float32."""
    low, high = window.float().unsqueeze(-1).unsqueeze(-1).unbind(1)
    return ((patches.float() - low) / (high - low).clamp_min(1e-6)).clamp(0.0, 1.0) * 2.0 - 1.0


def patch_positions(config: ViTConfig) -> Tensor:
    """Return the position code of every patch of the grid, shape (N, C).

    Sines and cosines of the patch centre in mm from the grid's centre, C/6 wavelengths an axis. The code belongs to a
    place in the patient and not to an index: the same weights take a grid of another size, spacing or patch.
    """
    if config.width % 6:
        raise ValueError(f"width {config.width} is not a multiple of 6 (sine and cosine for each of three axes)")
    axes = [
        (torch.arange(g // p, dtype=torch.float64) - (g // p - 1) / 2) * p * s
        for g, p, s in zip(config.grid_shape, config.patch_shape, config.spacing_mm, strict=True)
    ]
    centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    waves = torch.logspace(
        math.log10(SHORTEST_WAVE_MM), math.log10(LONGEST_WAVE_MM), config.width // 6, dtype=torch.float64
    )
    angles = (2 * math.pi * centres.unsqueeze(-1) / waves).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        C = config.width
        self.norm1 = nn.LayerNorm(C, eps=1e-6)
        self.attention = Attention(C, config.heads)
        self.scale1 = LayerScale(C, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(C, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(C, config.mlp_ratio * C), nn.GELU(), nn.Linear(config.mlp_ratio * C, C))
        self.scale2 = LayerScale(C, config.layer_scale) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention. Every token is real, so there is no mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (y.reshape(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        if C // self.heads in HEAD_DIMS and ops.active(q, k, v):
            x = ops.attention(q, k, v)
        elif q.dtype is torch.float16 or (q.dtype is torch.bfloat16 and torch.compiler.is_exporting()):
            # Exported in half the softmax would sum in half: it is said in the graph that it does not.
            weights = ((q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)).float().softmax(dim=-1)
            x = weights.to(v.dtype) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(B, T, C))


class LayerScale(nn.Module):
    """A learned gain for each channel of a residual branch."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return x * self.gain


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
