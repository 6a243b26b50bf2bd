"""How each parameter is optimised: which learn more slowly, and which decay."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .loop import ParameterGroup
from .model.vit import ViT


def parameter_groups(encoder: ViT, named: Iterable[tuple[str, nn.Parameter]]) -> list[ParameterGroup]:
    """Sort parameters into groups as the loop takes them.

    Biases, gains, norms and learned tokens do not decay. The matrix that embeds patches learns more slowly: Adam moves
    every weight by the same amount, and the voxels of a patch mostly rise and fall together, so that at the full rate
    one step moves every token by about its own size (arXiv 2203.03466: rates fall with fan-in; 2104.02057).

    Parameters
    ----------
    encoder : ViT
        The one that is trained.
    named : iterable of (name, Parameter)
        All that is trained, the encoder's among them.

    Returns
    -------
    list of ParameterGroup
        ``params``, ``rate_scale`` (share of the learning rate) and ``decays``; no group is empty.
    """
    stem = encoder.patch_embed
    slow = stem.get_parameter("weight") if isinstance(stem, nn.Linear) else None
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter is not slow:
            decays = parameter.ndim >= 2 and not name.endswith("_token")
            (matrices if decays else others).append(parameter)
    groups: list[ParameterGroup] = [
        {"params": matrices, "rate_scale": 1.0, "decays": True},
        {"params": others, "rate_scale": 1.0, "decays": False},
    ]
    if slow is not None and slow.requires_grad:
        groups.insert(0, {"params": [slow], "rate_scale": min(1.0, slow.shape[0] / slow.shape[1]), "decays": True})
    return [group for group in groups if group["params"]]
