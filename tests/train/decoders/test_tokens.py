"""Cached tokens: what the encoder gives, made once, made again only where they are missing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens
from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.decoders.shards import ShardError
from decipher_rt.train.decoders.tokens import cache_tokens
from decipher_rt.train.model.vit import ViT
from decipher_rt.train.shards import SHARD


def test_tokens_are_those_of_the_runtime_and_of_the_encoder(encoder: ViT, shapes: Callable, tmp_path: Path) -> None:
    examples = shapes(0, 40)
    told: list[int] = []
    tokens = cache_tokens(encoder, examples, "shapes", tmp_path, told.append)
    assert told == [SHARD, 40]
    assert len(tokens) == 40
    spec = encoder.config.preprocessing
    assert len(set(tokens.count.tolist())) > 1, "several buckets, or the order of a batch is not tested"
    for index in (0, 7, 33, 39):
        example = examples[index]
        volume = example.volume.astype(np.float32)
        expected = select_tokens(Grid(volume, np.array([0, 1], np.float32), np.eye(4)), spec).indices
        one = tokens[index]
        assert np.array_equal(one.tokens.numpy(), expected)
        with torch.no_grad():
            patch, embedding = encoder(
                torch.from_numpy(volume)[None, None], torch.tensor([[0.0, 1.0]]), torch.from_numpy(expected)[None]
            )
        # Half precision has 11 bits; tokens are of order one after the last norm.
        assert torch.allclose(one.patch, patch[0], atol=4e-3)
        assert torch.allclose(one.embedding, embedding[0], atol=1e-6)
        assert np.allclose(tokens.mean[index], patch[0].mean(dim=0), atol=1e-6)
        known = tokens.known[index]
        assert dict(known.labels) == dict(example.labels)
        assert known.kind == example.kind
        assert known.tissue == (example.tissue is not None)
        assert (known.boxes is None) == (example.boxes is None)


def test_only_what_is_missing_is_encoded_again(encoder: ViT, shapes: Callable, tmp_path: Path) -> None:
    first = shapes(0, SHARD + 3)
    cached = cache_tokens(encoder, first, "shapes", tmp_path, lambda _: None)
    again = shapes(0, SHARD + 3)
    cache_tokens(encoder, again, "shapes", tmp_path, lambda _: None)
    assert again.read == []
    longer = shapes(0, SHARD + 9)
    grown = cache_tokens(encoder, longer, "shapes", tmp_path, lambda _: None)
    assert longer.read == list(range(SHARD, SHARD + 9)), "the last shard grows, the whole one stays"
    assert torch.equal(grown[SHARD + 2].patch, cached[SHARD + 2].patch)
    shorter = cache_tokens(encoder, shapes(0, 5), "shapes", tmp_path, lambda _: None)
    assert len(shorter) == len(shorter.mean) == 5
    other_source = shapes(0, 2)
    cache_tokens(encoder, other_source, "others", tmp_path, lambda _: None)
    assert other_source.read == [0, 1]
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        changed.norm.bias[0] += 1e-3
    other_encoder = shapes(0, 2)
    cache_tokens(changed, other_encoder, "shapes", tmp_path, lambda _: None)
    assert other_encoder.read == [0, 1]


def test_a_killed_run_leaves_whole_shards(encoder: ViT, shapes: Callable, tmp_path: Path) -> None:
    class Killed(type(shapes(0, 1))):  # type: ignore[misc]
        def __getitem__(self, index: int) -> object:
            if index == SHARD + 1:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    killed = Killed(0, 2 * SHARD, shapes(0, 1)._make)
    with pytest.raises(KeyboardInterrupt):
        cache_tokens(encoder, killed, "shapes", tmp_path, lambda _: None)
    resumed = shapes(0, 2 * SHARD)
    cache_tokens(encoder, resumed, "shapes", tmp_path, lambda _: None)
    assert resumed.read == list(range(SHARD, 2 * SHARD))


def test_a_damaged_shard_is_made_again_or_named(encoder: ViT, shapes: Callable, tmp_path: Path) -> None:
    tokens = cache_tokens(encoder, shapes(0, 3), "shapes", tmp_path, lambda _: None)
    (shard,) = tokens.folder.glob("*.safetensors")
    shard.write_bytes(b"not tensors")
    with pytest.raises(ShardError, match=r"00000\.safetensors: not a shard"):
        type(tokens)(tokens.folder, shapes(0, 3))
    repaired = shapes(0, 3)
    assert len(cache_tokens(encoder, repaired, "shapes", tmp_path, lambda _: None)) == 3
    assert repaired.read == [0, 1, 2]


def test_a_corrected_label_is_known_at_once_and_encodes_nothing_again(
    encoder: ViT, shapes: Callable, tmp_path: Path
) -> None:
    cache_tokens(encoder, shapes(0, 3), "shapes", tmp_path, lambda _: None)
    corrected = shapes(0, 3)
    make = corrected._make
    corrected._make = lambda index: dataclasses.replace(make(index), labels={"sequence": f"corrected {index}"})
    tokens = cache_tokens(encoder, corrected, "shapes", tmp_path, lambda _: None)
    assert [known.labels for known in tokens.known] == [{"sequence": f"corrected {index}"} for index in range(3)]
    assert corrected.read == []


def test_a_fingerprint_sees_every_bit_name_and_type() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    same = fingerprint({"b": tensors["b"].clone(), "a": tensors["a"].T.contiguous().T})
    assert fingerprint(tensors) == same
    flipped = tensors["a"].clone()
    flipped.view(torch.int32)[1, 2] ^= 1  # the last bit of one number
    for other in (
        {**tensors, "a": flipped},
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "b": tensors["b"].half()},
        {"c": tensors["a"], "b": tensors["b"]},
    ):
        assert fingerprint(other) != fingerprint(tensors)
