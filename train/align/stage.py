"""Image-report alignment as a stage of the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ConfigError
from ..distributed import gather, share
from ..loop import ParameterGroup
from ..model.text import TextConfig, TextTower
from ..model.vit import ViT, ViTConfig
from ..parameter_groups import parameter_groups
from ..sources import Examples
from .batch import AlignBatch, align_batch
from .config import AlignConfig
from .infonce import clamp_log_scale, infonce, new_log_scale
from .regions import batch_indices
from .texts import shared_reports, shared_sentences

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VIEW, SIZES = 2, 3  # what a generator is for, beside the seed


class AlignModel(nn.Module):
    """Image encoder, text tower and learned temperature; ``logit_scale`` is the logarithm of the factor on cosines."""

    def __init__(self, encoder: ViTConfig, text: TextConfig, sentences: float) -> None:
        super().__init__()
        self.encoder = ViT(encoder)
        self.text = TextTower(text, encoder.embedding_size)
        self.logit_scale = new_log_scale()
        self._sentences = sentences

    def forward(self, batch: AlignBatch, step: int) -> dict[str, Tensor]:  # noqa: ARG002 - the loop's contract
        """Return the losses: ``report`` and ``sentence``, each over the batches of all processes, and their mix.

        ``right`` is how often the own report is the nearest one of the batch.
        """
        _, own_image = self.encoder.encode(self.encoder.project(batch.patches, batch.tokens))
        own_report, own_sentence = (
            self.text(texts.input_ids, texts.attention_mask) for texts in (batch.reports, batch.sentences)
        )
        image, report, sentence = (gather(x, with_grad=True) for x in (own_image, own_report, own_sentence))
        said, chosen = gather(batch.said), gather(batch.chosen)
        # A cosine times the scale needs more digits than autocast's half precision leaves it.
        with torch.autocast(image.device.type, enabled=False):
            image, report, sentence = image.float(), report.float(), sentence.float()
            parts = {
                "report": infonce(image, report, self.logit_scale, shared_reports(said)),
                "sentence": infonce(image, sentence, self.logit_scale, shared_sentences(said, chosen)),
            }
            nearest = (image.detach() @ report.detach().T).argmax(dim=1)
        return {
            "loss": (1 - self._sentences) * parts["report"] + self._sentences * parts["sentence"],
            **parts,
            "right": (nearest == torch.arange(len(nearest), device=nearest.device)).float().mean(),
            "scale": self.logit_scale.detach().exp(),
        }


class AlignStage:
    """What the loop asks of a stage.

    Parameters
    ----------
    config : AlignConfig
    examples : Examples
        Training series. Those without a report are left out.
    tokenizer : Tokenizer

    Raises
    ------
    ConfigError
        If there are fewer series with a report than a batch has.
    """

    curve: tuple[str, ...] = ("loss", "report", "sentence")

    def __init__(self, config: AlignConfig, examples: Examples, tokenizer: Tokenizer) -> None:
        self._config, self._examples, self._tokenizer = config, examples, tokenizer
        self._members, self._regions = with_report(examples)
        if len(self._members) < config.run.batch:
            raise ConfigError(
                f"run.batch is {config.run.batch}, expected at most the number of training series with a report, "
                f"{len(self._members)}"
            )
        self.network = AlignModel(config.encoder, config.text, config.sentences)

    @property
    def model(self) -> nn.Module:
        """The module whose forward gives the losses."""
        return self.network

    def batch(self, step: int, rank: int, world_size: int) -> AlignBatch:
        """Return one process's share of a step's batch; it follows from the seed, the step and its place alone."""
        config, run = self._config, self._config.run
        chosen = batch_indices(self._regions, run.batch, run.seed, step, config.by_region)
        places = share(range(run.batch), rank, world_size)
        return align_batch(
            [self._examples[self._members[chosen[place]]] for place in places],
            [np.random.default_rng([run.seed, VIEW, step, place]) for place in places],
            self.tokens_of(step),
            config.encoder.preprocessing,
            config.augment,
            self._tokenizer,
        )

    def tokens_of(self, step: int) -> int:
        """Return how many tokens of each series a step keeps."""
        config = self._config
        rng = np.random.default_rng([config.run.seed, SIZES, step])
        reach = config.whole_tokens if rng.random() < config.whole else config.tokens
        return round(float(np.exp(rng.uniform(*np.log(reach)))))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return what is trained: what starts trained moves more slowly than what starts anew."""
        config, network = self._config, self.network
        image = [(name, p) for name, p in network.encoder.named_parameters() if not name.startswith("projection")]
        text = [(name, p) for name, p in network.text.encoder.named_parameters()]
        started = {f"encoder.{name}" for name, _ in image} | {f"text.encoder.{name}" for name, _ in text}
        anew = [(name, p) for name, p in network.named_parameters() if name not in started]
        return [
            *_scaled(parameter_groups(network.encoder, image), config.encoder_rate if config.encoder_from else 1.0),
            *_scaled(_by_size(text), config.text_rate if config.text_from else 1.0),
            *_by_size(anew),
        ]

    def after_step(self, step: int) -> None:  # noqa: ARG002 - the loop's contract
        """Keep the temperature in its bounds."""
        clamp_log_scale(self.network.logit_scale)

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return all of it: ``encoder.*``, ``text.*`` and ``logit_scale``."""
        return state


def with_report(examples: Examples) -> tuple[list[int], list[str | None]]:
    """Return which series have a report, and the region of each of these."""
    facts = [examples.facts(i) for i in range(len(examples))]
    members = [i for i, found in enumerate(facts) if found.report]
    return members, [facts[i].region for i in members]


def heads_with_report(examples: Examples, pool: int) -> list[int]:
    """Return the first series with a report that recall is measured among.

    Those that are no heads are left out: a handful of sentences serves them all, and finding one says nothing of heads.
    """
    return [i for i in with_report(examples)[0] if examples.facts(i).kind == "head"][:pool]


def _by_size(named: Iterable[tuple[str, nn.Parameter]]) -> list[ParameterGroup]:
    """Matrices decay; biases, gains, norms, positions and the temperature do not."""
    pairs = list(named)
    matrices = [p for name, p in pairs if p.ndim >= 2 and not name.endswith("positions")]
    others = [p for name, p in pairs if p.ndim < 2 or name.endswith("positions")]
    return [
        {"params": matrices, "rate_scale": 1.0, "decays": True},
        {"params": others, "rate_scale": 1.0, "decays": False},
    ]


def _scaled(groups: list[ParameterGroup], rate: float) -> list[ParameterGroup]:
    return [{**group, "rate_scale": group["rate_scale"] * rate} for group in groups]
