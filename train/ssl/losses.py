"""The losses of self-supervised pretraining, and Sinkhorn-Knopp centring of what the teacher says.

All are computed in float32 and are to be called outside autocast. Sinkhorn and KoLeo look at the whole batch, so they
gather across processes; the others are means over the crops of one process, whose mean over processes is that over the
batch.

Sources: DINO (arXiv 2104.14294), iBOT (arXiv 2111.07832), SwAV (arXiv 2006.09882), KoLeo (arXiv 1806.03198), their
union in DINOv2 (arXiv 2304.07193), masked autoencoders (arXiv 2111.06377).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..distributed import all_sum, gather

SINKHORN_ITERATIONS = 3  # SwAV and DINOv2
NEAREST_EPS = 1e-8
TINY = torch.finfo(torch.float32).tiny
PATCH_VARIANCE = 1e-4  # a patch of air has none; the window is 2 wide and its noise about 0.02


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = SINKHORN_ITERATIONS) -> Tensor:
    """Return the teacher's assignment of samples to prototypes, spread over all prototypes.

    Rows and columns of exp(logits / temperature) are normalised in turn (Sinkhorn-Knopp), so that every prototype gets
    its share of the batch: no prototype can take all samples, which is how self-distillation collapses. The last step
    is over prototypes, so every sample's probabilities sum to 1; that each prototype gets N / P holds in the limit.

    Parameters
    ----------
    logits : Tensor, shape (n, P)
        Of this process's n samples (it may be 0), P prototypes. Cosines: at temperatures from about 0.02 their
        exponentials stay within float32.
    temperature : float
    iterations : int

    Returns
    -------
    Tensor, shape (n, P), float32
    """
    scores = logits.float() / temperature
    # One number for all samples: the shift cancels in the first normalisation.
    highest = scores.amax() if len(scores) else scores.new_full((), -torch.inf)
    weights = (scores - gather(highest.reshape(1)).max()).exp()
    for _ in range(iterations):
        weights = weights / all_sum(weights.sum(dim=0)).clamp_min(TINY)
        weights = weights / weights.sum(dim=1, keepdim=True)
    return weights


def dino_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy between crops of the same volume: DINO's equation 3, as a mean over pairs.

    Parameters
    ----------
    student : Tensor, shape (S, B, P)
        Logits of S crops of each volume; the first V are those that the teacher saw.
    teacher : Tensor, shape (V, B, P)
        Probabilities of the V global crops.
    temperature : float
        Of the student.

    Returns
    -------
    Tensor, shape ()
        Mean over B and over the V(S - 1) pairs of a teacher's crop with another crop of the student's.
    """
    (S, B, _), V = student.shape, len(teacher)
    log_probabilities = F.log_softmax(student.float() / temperature, dim=-1)
    entropies = -torch.einsum("vbp,sbp->vs", teacher.float(), log_probabilities) / B
    other = 1.0 - torch.eye(V, S, device=student.device)
    return (entropies * other).sum() / other.sum()


def ibot_loss(student: Tensor, teacher: Tensor, per_crop: Tensor, temperature: float, crops: int) -> Tensor:
    """Return the cross-entropy of masked patches: iBOT's equation 2.

    Parameters
    ----------
    student : Tensor, shape (M, P)
        Logits of the M masked tokens of all crops.
    teacher : Tensor, shape (M, P)
        Probabilities of the same tokens, which the teacher sees.
    per_crop : Tensor, shape (M,)
        How many tokens are masked in the crop that each belongs to: every crop counts alike.
    temperature : float
        Of the student.
    crops : int
        Global crops, with those that have no masked token: they count as 0, as in DINOv2.
    """
    entropies = -(teacher.float() * F.log_softmax(student.float() / temperature, dim=-1)).sum(dim=-1)
    return (entropies / per_crop).sum() / crops


def koleo_loss(features: Tensor) -> Tensor:
    """Return the Kozachenko-Leonenko entropy estimator's loss: the mean of -log of the distance to the nearest other.

    Parameters
    ----------
    features : Tensor, shape (n, C)
        Of this process; the nearest other is sought among all processes' features. At least two in all.

    Returns
    -------
    Tensor, shape ()
        Of the whole batch, the same on every process.
    """
    points = F.normalize(gather(features.float(), with_grad=True), dim=-1)
    with torch.no_grad():
        similarity = points @ points.T
        nearest = similarity.fill_diagonal_(-2.0).argmax(dim=1)
    distance = F.pairwise_distance(points, points[nearest], eps=NEAREST_EPS)
    return -(distance + NEAREST_EPS).log().mean()


def reconstruction_loss(predicted: Tensor, patches: Tensor) -> Tensor:
    """Return the masked autoencoder's loss: mean square error of voxels normalised within their patch.

    Parameters
    ----------
    predicted, patches : Tensor, shape (M, P)
        What was predicted for masked patches, and their voxels. Each patch is brought to mean 0 and variance 1 first:
        the paper's better target.
    """
    var, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
    return F.mse_loss(predicted.float(), (patches.float() - mean) / (var + PATCH_VARIANCE).sqrt())
