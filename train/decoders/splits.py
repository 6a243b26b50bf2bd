"""One split of a source with the tokens that a frozen encoder makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..model.vit import ViT
from ..progress import Progress
from ..samples import Split
from ..scope import Seen
from ..sources import SourceConfig, open_source
from ..sources.example import Examples
from .sight import Sight, sighted
from .tokens import Tokens, cache_tokens, source_key

OTHER_SEEDS = 1 << 20  # added to the seed of a source: the same seed would make the same series again


@dataclass(frozen=True)
class EncodedSplit:
    """Series and their tokens."""

    examples: Examples
    tokens: Tokens

    def seen(self, label: str) -> Seen:
        """Return what the scope sees: embeddings, which are heads, and their class by a label."""
        labels = [known.labels.get(label) for known in self.tokens.known]
        return Seen(self.tokens.embedding, self.tokens.head, [None if x is None else str(x) for x in labels])

    def sighted(self, sight: Sight, cache_dir: Path, progress: Progress) -> EncodedSplit:
        """Return the split with what is seen beside its tokens, looking at what is not on disk."""
        return EncodedSplit(self.examples, sighted(sight, self.tokens, self.examples, cache_dir, progress))


def best_device() -> torch.device:
    """Return the GPU where CUDA finds one, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def encode_split(
    encoder: ViT, source: SourceConfig, split: Split, cache_dir: Path, workers: int, progress: Progress
) -> EncodedSplit:
    """Return a split, making the series and the tokens that are not on disk.

    Parameters
    ----------
    cache_dir : Path
        Where both are kept.
    workers : int
        Processes that simulate or resample series.
    """
    examples = open_source(source, encoder.config.preprocessing, split, cache_dir, workers, progress)
    with progress.bar(f"encoding {split}", len(examples)) as advance_to:
        return EncodedSplit(
            examples, cache_tokens(encoder, examples, source_key(examples, split), cache_dir, advance_to)
        )


def encode_others(
    encoder: ViT, count: int, heads: SourceConfig, split: Split, cache_dir: Path, workers: int, progress: Progress
) -> EncodedSplit:
    """Return simulated series that are no heads: phantoms, noise, other anatomy and scrambled heads.

    They are other ones than those that a simulated source of ``heads`` has among them; scrambled are heads of its
    anatomy.
    """
    simulated = heads if heads.kind == "simulator" else SourceConfig(seed=heads.seed)
    # A split has as many series as it is asked for.
    source = replace(simulated, seed=heads.seed + OTHER_SEEDS, not_heads=1.0, train=count, validation=count, test=count)
    return encode_split(encoder, source, split, cache_dir, workers, progress)
