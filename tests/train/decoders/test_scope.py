"""The scope of a model: distances against other libraries, thresholds against counting."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from decipher_rt.train.decoders import splits
from decipher_rt.train.progress import Progress
from decipher_rt.train.samples import sample_seed
from decipher_rt.train.scope import ScopeConfig, Seen, build_scope, fit_scope
from decipher_rt.train.sources import SourceConfig

E = 6
PROGRESS = Progress()


def _seen(seed: int, heads: int, others: int, classes: int = 2) -> Seen:
    """Heads around the axes of their classes, others around the last axis; unit vectors."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, heads)
    vectors = np.concatenate([np.eye(E)[label], np.eye(E)[np.full(others, E - 1)]])
    vectors = vectors + rng.normal(0, 0.15, vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    head = np.arange(heads + others) < heads
    return Seen(vectors.astype(np.float32), head, [*map(str, label), *[None] * others])


def test_the_mahalanobis_distance_is_scipys() -> None:
    train = _seen(0, 300, 0)
    config, scope = fit_scope(ScopeConfig(), train, _seen(1, 100, 0), PROGRESS)
    assert (config.groups, config.outliers) == (2, False)
    label = np.array([int(x) for x in train.label if x is not None])
    means = [train.embedding[label == c].mean(axis=0) for c in range(2)]
    precision = np.linalg.inv(
        LedoitWolf(assume_centered=True).fit(train.embedding - np.array(means)[label]).covariance_
    )
    some = _seen(2, 10, 10).embedding
    expected = [min(mahalanobis(x, m, precision) for m in means) for x in some]
    assert scope.distance(torch.from_numpy(some)).numpy() == pytest.approx(expected, rel=1e-3)


def test_the_nearest_are_scikit_learns() -> None:
    train = _seen(3, 80, 0)
    wanted = ScopeConfig(method="nearest", neighbours=4, among=64)
    config, scope = fit_scope(wanted, train, _seen(4, 50, 0), PROGRESS)
    assert config.groups == 64
    some = _seen(5, 10, 10).embedding
    expected = NearestNeighbors(n_neighbors=4).fit(train.embedding[:64]).kneighbors(some)[0][:, -1]
    assert scope.distance(torch.from_numpy(some)).numpy() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["mahalanobis", "nearest"])
@pytest.mark.parametrize("others", [0, 200])
def test_the_threshold_refuses_the_share_that_was_asked_for_and_what_is_no_head(method: str, others: int) -> None:
    validation = _seen(7, 400, 50)
    wanted = ScopeConfig(method=method, false_refusals=0.05)  # type: ignore[arg-type]
    config, scope = fit_scope(wanted, _seen(6, 400, others), validation, PROGRESS)
    assert config.outliers == (others > 0)
    with torch.no_grad():
        score = scope(torch.from_numpy(validation.embedding)).numpy()
    assert (score[validation.head] < 0).mean() == pytest.approx(0.05, abs=0.005)
    assert (score[~validation.head] < 0).mean() == 1.0
    held_out = _seen(8, 2000, 0)
    with torch.no_grad():
        refused = float((scope(torch.from_numpy(held_out.embedding)) < 0).float().mean())
    assert 0.02 < refused < 0.09  # four standard deviations of a threshold that 400 series fix


def test_a_scope_comes_back_from_its_configuration_and_state() -> None:
    for method in ("mahalanobis", "nearest"):
        wanted = ScopeConfig(method=method, neighbours=3, among=32)  # type: ignore[arg-type]
        config, scope = fit_scope(wanted, _seen(9, 100, 40), _seen(10, 60, 0), PROGRESS)
        again = build_scope(config, E)
        again.load_state_dict(scope.state_dict())
        some = torch.from_numpy(_seen(11, 5, 5).embedding)
        with torch.no_grad():
            assert torch.equal(again(some), scope(some))


def test_too_few_heads_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"5 training and 100 validation heads are too few, expected 11 or more of each$"
    ):
        fit_scope(ScopeConfig(), _seen(12, 5, 10), _seen(13, 100, 0), PROGRESS)
    unlabelled = dataclasses.replace(_seen(14, 50, 0), label=[None] * 50)
    config, _ = fit_scope(ScopeConfig(), unlabelled, _seen(15, 50, 0), PROGRESS)
    assert config.groups == 1


@pytest.mark.parametrize(
    ("label", "groups"),
    [
        (["a"] * 6 + ["b"] * 5 + [None] * 89, 2),
        (["a"] * 5 + ["b"] * 5 + [None] * 90, 1),  # two means, of five heads each, that ninety others are far from
        ([str(i) for i in range(100)], 1),  # no head differs from the mean of its class
    ],
)
def test_classes_that_too_few_heads_have_are_one(
    label: list[str | None], groups: int, capsys: pytest.CaptureFixture[str]
) -> None:
    train, validation = _seen(16, 100, 0), _seen(17, 100, 0)
    config, scope = fit_scope(ScopeConfig(), dataclasses.replace(train, label=label), validation, Progress())
    said = capsys.readouterr().err
    assert config.groups == groups
    assert ("scope.label is 'sequence'" in said) == (groups == 1)
    with torch.no_grad():
        far, near = (scope(torch.from_numpy(seen.embedding)) for seen in (_seen(18, 0, 50), train))
    assert (far < 0).all()
    if groups == 1:
        assert torch.equal(scope.means[0], torch.from_numpy(train.embedding.mean(axis=0, dtype=np.float64)).float())
        assert (near < 0).float().mean() < 0.05


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"false_refusals": 0.0}, "scope.false_refusals is 0.0"), ({"neighbours": 0}, "scope.neighbours is 0"),
     ({"others": -1}, "scope.others is -1")],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_key(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ScopeConfig(**changes).check()


def test_what_is_no_head_is_nothing_that_the_source_has_and_of_its_anatomy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SourceConfig] = []
    monkeypatch.setattr(splits, "encode_split", lambda _, source, *more: asked.append(source))
    source = SourceConfig(seed=5, not_heads=0.2, train=200, anatomy="other.nii.gz")
    splits.encode_others(None, 50, source, "train", Path(), 1, None)
    (others,) = asked
    assert (others.not_heads, others.train, others.anatomy) == (1.0, 50, "other.nii.gz")
    seeds = [{sample_seed(one.seed, "train", i) for i in range(one.train)} for one in (source, others)]
    assert not seeds[0] & seeds[1]
