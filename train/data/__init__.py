"""Simulated MR series for training: heads with their truth, and what is not a head.

The public names are here; `docs/simulator.md` says what is simulated and what is not.
"""

from .anatomy import Anatomy, load_anatomy
from .sample import Lesion, Sample, Truth
from .simulator import simulate

__all__ = ["Anatomy", "Lesion", "Sample", "Truth", "load_anatomy", "simulate"]
