"""The alignment from its configuration to a weights folder with its recall."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint import WEIGHTS, load_state, read_tensors, write_tensors
from ..config import ConfigError, dump_config
from ..distributed import rank
from ..loop import begun, run, warn_of_parts
from ..progress import Progress
from ..sources import Examples, open_source
from ..text.kept import keep_tokenizer, tokenizer_of
from ..weights import stage_metadata, trained_on
from .config import AlignConfig
from .embed import embed_images, embed_texts
from .retrieval import KS, Retrieval, retrieval
from .stage import AlignModel, AlignStage, heads_with_report
from .start import check_reports, pinned_start, reports_of, resolved, start

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def align(config: AlignConfig, folder: Path, cache_dir: Path, progress: Progress) -> dict[str, Any]:
    """Align images and reports; leave a weights folder (``encoder.*``, ``text.*``, ``logit_scale``, tokenizer.json).

    Parameters
    ----------
    config : AlignConfig
    folder : Path
        What is in it: see `decipher_rt.train.loop.run`. Killed at any moment, the same call goes on.
    cache_dir : Path
        Where series are kept on the encoder's grid.
    progress : Progress

    Returns
    -------
    dict
        Recall on the test split, as `Retrieval.to_json` gives it; empty in all processes but the first.

    Raises
    ------
    ConfigError
        Also where fewer than ten test series have a report.
    """
    torch.set_num_threads(config.run.threads)
    config = resolved(config)
    check_reports(config)
    warn_of_parts(config.run, "both InfoNCE losses", progress)
    spec = config.encoder.preprocessing

    def opened(split: Any) -> Examples:
        return open_source(config.source, spec, split, cache_dir, config.workers, progress)

    examples, test = opened("train"), opened("test")
    if len(found := heads_with_report(test, config.pool)) < max(KS):
        raise ConfigError(f"the test split has {len(found)} heads with a report; recall needs {max(KS)} or more")
    tokenizer = tokenizer_of(folder, config.text_from, config.text, lambda: reports_of(examples))
    torch.manual_seed(config.run.seed)
    stage = AlignStage(config, examples, tokenizer)
    if not begun(folder):
        progress.say("measuring pooled vectors")
        start(stage.network, config, examples, tokenizer)
    earlier = (stage_metadata(Path(start)) for start in (config.encoder_from, config.text_from) if start)
    whom = trained_on(config.source, *earlier)
    keep_tokenizer(folder, tokenizer)
    run(stage, config.run, folder, dump_config(pinned_start(config)), progress, whom)
    if rank():
        return {}
    tensors, metadata = read_tensors(folder / WEIGHTS)
    if "metrics" not in metadata:
        model = stage.network.cpu()
        load_state(model, tensors, folder / WEIGHTS)
        progress.say("measuring recall on the test split")
        metadata = {
            **metadata,
            "metrics": {"retrieval": measure(model, tokenizer, test, config.pool).to_json()},
        }
        write_tensors(folder / WEIGHTS, tensors, metadata)
    return dict(metadata["metrics"]["retrieval"])


def measure(model: AlignModel, tokenizer: Tokenizer, examples: Examples, pool: int) -> Retrieval:
    """Measure recall between series and their whole reports.

    Parameters
    ----------
    pool : int
        The first so many heads with a report are the pool.
    """
    members = heads_with_report(examples, pool)
    texts = [" ".join(examples.facts(i).report) for i in members]
    return retrieval(embed_images(model.encoder, examples, members), embed_texts(model.text, tokenizer, texts), texts)
