"""Training of a decoder without the loop around it."""

from __future__ import annotations

from typing import Any

import torch

from decipher_rt.train.decoders.contract import Decoder
from decipher_rt.train.decoders.stage import DecoderStage


def learn(decoder: Decoder, tokens: Any, examples: Any, steps: int, rate: float, batch: int) -> None:
    """Train with the stage's own batches and AdamW, on one thread."""
    torch.set_num_threads(1)
    stage = DecoderStage(decoder, tokens, examples, batch, seed=1)
    stage.start()
    optimiser = torch.optim.AdamW(stage.model.parameters(), lr=rate)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        stage.model(stage.batch(step, 0, 1), step)["loss"].backward()
        optimiser.step()
