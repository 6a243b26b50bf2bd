"""Prompts in words: cosines and probabilities against a closed form, and text that is no prompt."""

import json
from pathlib import Path

import numpy as np
import pytest

import decipher_rt
from decipher_rt.bundle import open_bundle
from decipher_rt.errors import BundleError, DecipherError, EngineError
from decipher_rt.result import ScopeAnswer
from decipher_rt.text import Prompts, TextTower
from decipher_rt.verify import verify_bundle
from decipher_rt.volume import Acquisition, SeriesInfo, Volume


@pytest.fixture(scope="module")
def tower(answering_bundle):
    return TextTower(open_bundle(answering_bundle), 1)


def test_words_are_where_the_tower_puts_them(tower):
    vectors = tower.embed(["bright", "dark", "the brain", "a Bright IMAGE"])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], np.array([1, 0, 2, 0]) / np.sqrt(5)]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_text_does_not_depend_on_its_neighbours(tower):
    """Nothing is padded, whatever the tokenizer's file says of padding and cutting."""
    together = tower.embed(["bright", "a bright image of the dark brain"])
    assert np.array_equal(together[0], tower.embed(["bright"])[0])
    assert len(tower.ids("bright")) == 3
    assert len(tower.ids("a bright image of the dark brain")) == 9  # the file would cut it to 6


def test_probabilities_are_the_softmax_of_scaled_cosines():
    vectors = np.array([[0.6, 0.8], [1, 0], [0, -1]], np.float32)
    prompts = Prompts(("a", "b", "c"), vectors, 10.0)
    answers = prompts.compare(np.array([0.6, 0.8], np.float32), ScopeAnswer(True, None, ""))
    cosines = [1.0, 0.6, -0.8]
    assert [answers[p].cosine for p in "abc"] == pytest.approx(cosines)
    odds = [1.0, np.exp(10 * (0.6 - 1.0)), np.exp(10 * (-0.8 - 1.0))]
    assert [answers[p].probability for p in "abc"] == pytest.approx([o / sum(odds) for o in odds])


def test_of_vectors_a_little_longer_than_one_no_cosine_is_beyond_one():
    longer = np.eye(2, dtype=np.float32) * np.float32(1.005)
    answers = Prompts(("a", "b"), longer * [[1], [-1]], 1.0).compare(longer.sum(axis=0), ScopeAnswer(True, None, ""))
    assert [answer.cosine for answer in answers.values()] == [1.0, -1.0]


def test_a_large_scale_does_not_overflow():
    answers = Prompts(("a", "b"), np.eye(2, dtype=np.float32), 1e6).compare(
        np.array([1, 0], np.float32), ScopeAnswer(True, None, "")
    )
    assert [answers[p].probability for p in "ab"] == [1.0, 0.0]


def test_a_series_beside_prompts_that_were_never_templates(answering_bundle):
    """A mostly dark volume is nearer to what says dark, by the embedding's definition (m, 1 - m)."""
    voxels = np.full((32, 32, 32), 300, np.int16)
    voxels[:2], voxels[-2:] = 0, 1000
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    volume = Volume(voxels, affine, SeriesInfo("1.2", Path("x"), files=1, acquisition=Acquisition(modality="MR")))
    prompts = ("dark image of the brain, a dark one", "The brain IS bright - or is it?", "image")
    session = decipher_rt.load(answering_bundle, threads=1, prompts=prompts)
    result = session.infer_volume(volume)
    assert tuple(result.prompts) == prompts
    assert sum(answer.probability for answer in result.prompts.values()) == pytest.approx(1)
    assert max(prompts, key=lambda p: result.prompts[p].cosine) == prompts[0]
    vectors = TextTower(session.bundle, 1).embed(prompts)
    assert [a.cosine for a in result.prompts.values()] == pytest.approx((vectors @ result.embedding).tolist(), abs=1e-6)
    alone = decipher_rt.load(answering_bundle, threads=1, prompts=["dark"]).infer_volume(volume).prompts["dark"]
    assert alone.probability is None
    assert set(alone.to_json()) == {"cosine"}


def test_out_of_scope_nothing_is_said_of_prompts():
    answers = Prompts(("a", "b"), np.eye(2, dtype=np.float32), 1.0).compare(
        np.array([1, 0], np.float32), ScopeAnswer(False, -1.0, "no head")
    )
    assert {json.dumps(answer.to_json()) for answer in answers.values()} == {
        '{"not_answered": "out of scope: no head"}'
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \t\n", "empty"),
        ("xyzzy", "no word that the model knows"),
        ("\u200b\u200b", "no word that the model knows"),
        ("脳 🧠", "no word that the model knows"),
        ("brain " * 10_000, "10002 tokens long and the model reads 16"),
        ("bright\ud800", "not valid Unicode"),
        ("a" * (1 << 21), "characters"),
    ],
    ids=["empty", "blank", "unknown", "invisible", "foreign", "10,000 words", "surrogate", "2 MiB"],
)
def test_what_is_no_prompt_is_refused_in_a_short_line(answering_bundle, tower, text, said):
    with pytest.raises(DecipherError, match=said) as caught:
        tower.embed([text])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(DecipherError, match=said):
        decipher_rt.load(answering_bundle, prompts=["bright", text])


def test_a_prompt_given_twice_is_refused(answering_bundle):
    with pytest.raises(DecipherError, match="'dark' is given twice"):
        decipher_rt.load(answering_bundle, prompts=["dark", "bright", "dark"])


def test_a_bundle_without_a_text_tower_says_so(answering_bundle, rewrite_bundle, tmp_path):
    silent = rewrite_bundle(answering_bundle, tmp_path, change=lambda manifest: manifest.update(text=None))
    with pytest.raises(BundleError, match="has no text tower"):
        decipher_rt.load(silent, prompts=["dark"])


def test_zero_bytes_and_special_tokens_do_no_harm(tower):
    assert np.isfinite(tower.embed(["bright \0dark", "[CLS] [SEP] bright [PAD]"])).all()


DAMAGED = {
    "empty": b"",
    "cut": None,
    "not JSON": b"\x00\xff\xfe",
    "a list": b"[]",
    "null": b"null",
    "no model": b'{"version": "1.0", "model": null}',
    "model of another kind": b'{"version": "1.0", "model": {"type": "Oracle", "vocab": {}}}',
    "deep": b'{"model":' * 5000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_is_named_in_one_line(answering_bundle, tmp_path, rewrite_bundle, name):
    good = (answering_bundle / "tokenizer.json").read_bytes()
    changed = rewrite_bundle(answering_bundle, tmp_path, {"tokenizer.json": DAMAGED[name] or good[: len(good) // 2]})
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer") as caught:
        TextTower(open_bundle(changed), 1)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_vocabulary_is_an_error_and_no_crash(answering_bundle, tmp_path, rewrite_bundle):
    document = json.loads((answering_bundle / "tokenizer.json").read_bytes())
    document["model"]["vocab"]["bright"] = 4_000_000
    changed = rewrite_bundle(answering_bundle, tmp_path, {"tokenizer.json": json.dumps(document).encode()})
    with pytest.raises(EngineError, match=r"text\.onnx"):
        TextTower(open_bundle(changed), 1).embed(["bright"])


def test_a_tower_that_is_another_graph_is_refused(answering_bundle, tmp_path, rewrite_bundle):
    changed = rewrite_bundle(answering_bundle, tmp_path, {"text.onnx": (answering_bundle / "scope.onnx").read_bytes()})
    with pytest.raises(BundleError, match="takes embedding, expected input_ids, attention_mask"):
        TextTower(open_bundle(changed), 1)


def test_verify_notices_another_tokenizer(answering_bundle, tmp_path, rewrite_bundle):
    """The golden prompts are text: what tokenizes them otherwise gives other embeddings."""
    document = json.loads((answering_bundle / "tokenizer.json").read_bytes())
    vocabulary = document["model"]["vocab"]
    vocabulary["bright"], vocabulary["dark"] = vocabulary["dark"], vocabulary["bright"]
    changed = rewrite_bundle(answering_bundle, tmp_path, {"tokenizer.json": json.dumps(document).encode()})
    report = verify_bundle(open_bundle(changed), "onnxruntime", "fp32", 1)
    assert [row.output for row in report.rows if not row.passed] == ["text"]
