"""Recall@k against counting ranks, with ties broken many times at random, and against draws by chance."""

from __future__ import annotations

import numpy as np
import pytest

from decipher_rt.train.align.retrieval import retrieval


def unit(rows: int, columns: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, columns))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_recall_is_a_count_of_ranks() -> None:
    image = unit(60, 8, 0)
    text = image + 0.9 * unit(60, 8, 1)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    found = retrieval(image, text, [str(i) for i in range(60)])
    for recall, similarity in ((found.image_to_text, image @ text.T), (found.text_to_image, text @ image.T)):
        ranks = [list(np.argsort(-row)).index(i) for i, row in enumerate(similarity)]
        for k in (1, 5, 10):
            assert recall[k] == pytest.approx(np.mean([rank < k for rank in ranks]))
    assert found.chance == {k: pytest.approx(k / 60) for k in (1, 5, 10)}
    assert found.image_to_text != found.text_to_image


def test_same_texts_are_all_right_and_ties_are_broken_at_random() -> None:
    rng = np.random.default_rng(2)
    names = [f"text {i % 7}" for i in range(30)]
    table = unit(7, 5, 3)
    text = table[np.arange(30) % 7]
    image = np.round(text + 0.8 * unit(30, 5, 4), 1)  # rounded: some images are equally near
    found = retrieval(image, text, names, ks=(1, 4))
    same = np.array(names)[:, None] == np.array(names)[None]
    for recall, similarity in ((found.image_to_text, image @ text.T), (found.text_to_image, text @ image.T)):
        # Equal up to rounding is equal.
        levels = np.round(similarity, 8)
        for k in (1, 4):
            hits = [
                np.mean([same[i, np.lexsort((rng.random(30), -levels[i]))[:k]].any() for i in range(30)])
                for _ in range(400)
            ]
            assert recall[k] == pytest.approx(np.mean(hits), abs=5 * np.std(hits) / 20 + 1e-9)
    draws = [[same[i, rng.permutation(30)[:4]].any() for i in range(30)] for _ in range(2000)]
    assert found.chance[4] == pytest.approx(np.mean(draws), abs=0.01)


def test_a_model_that_says_the_same_of_everything_is_no_better_than_chance() -> None:
    same = np.tile([0.6, 0.8], (50, 1))
    found = retrieval(same, same, [str(i % 25) for i in range(50)])
    assert found.image_to_text == found.text_to_image == found.chance
    assert found.chance[1] == pytest.approx(2 / 50)
    perfect = retrieval(np.eye(50), np.eye(50), [str(i) for i in range(50)])
    assert set(perfect.image_to_text.values()) == {1.0}
    assert perfect.to_json()["pool"] == 50
    assert perfect.to_json()["chance_recall@5"] == pytest.approx(0.1)
