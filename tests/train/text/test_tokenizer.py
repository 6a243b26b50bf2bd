"""The WordPiece tokenizer: what it keeps of a text, what it does with words it has not seen, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from decipher_rt.train.text.findings import Findings, LesionFinding
from decipher_rt.train.text.tokenizer import (
    ALPHABET,
    SPECIAL,
    TokenizerError,
    encode,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from decipher_rt.train.text.wordings import write_report


def reports(wordings: str, count: int = 150) -> list[str]:
    lesion = LesionFinding("tumour", "parietal lobe", "right", 31)
    head = Findings(
        kind="head", sequence="T2*w", family="epi", field_t=1.5, plane="coronal", slices=24, slice_step_mm=5.5,
        ventricles="narrow", snr=15.0, ghost=0.08,
    )  # fmt: skip
    many = (head, Findings(**{**vars(head), "sequence": "T1w", "family": "mprage", "lesions": (lesion,)}))
    return [" ".join(write_report(many[i % 2], i, wordings)) for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(reports("train"), vocabulary=600, max_tokens=128)


def test_a_report_comes_back_in_lower_case(tokenizer: Tokenizer) -> None:
    for text in reports("train", 20):
        ids = tokenizer.encode(text).ids
        assert (ids[0], ids[-1]) == (tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]"))
        # The decoder joins pieces and puts a space between words; a report's punctuation is a word of its own.
        assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")


def test_words_that_no_report_holds_are_spelt(tokenizer: Tokenizer) -> None:
    unknown = tokenizer.token_to_id("[UNK]")
    words = ["hydrocephalus", "xylophone", "zq9", "T2*-weighted", "(ca. 7.25 mm)", "".join(ALPHABET)]
    for text in [*words, *reports("held_out", 40)]:
        encoding = tokenizer.encode(text)
        assert unknown not in encoding.ids, text
        assert tokenizer.decode(encoding.ids).replace(" ", "") == text.lower().replace(" ", "")
    assert tokenizer.encode("漢").ids[1:-1] == [unknown]
    assert tokenizer.encode("ischämisch").ids == tokenizer.encode("ischamisch").ids  # BERT strips accents


def test_long_texts_are_cut_and_short_ones_padded(tokenizer: Tokenizer) -> None:
    ids, mask = encode(tokenizer, ["mass " * 500, "mass", ""])
    assert ids.shape == mask.shape == (3, 128)
    assert mask.sum(axis=1).tolist() == [128, 3, 2]
    assert ids[0, -1] == tokenizer.token_to_id("[SEP]")
    assert (ids[1, 3:] == tokenizer.token_to_id("[PAD]")).all()


def test_training_is_reproducible_and_within_the_vocabulary(tokenizer: Tokenizer, tmp_path: Path) -> None:
    # In this process and in another: the library's hash tables are in another order in each.
    again = train_tokenizer(reports("train"), vocabulary=600, max_tokens=128)
    assert again.to_str() == tokenizer.to_str()
    measured = [*reports("train"), *["12×9 mm at 45°, ±3 of the patient´s 3µl¹; 2½√2"] * 3]
    again, tokenizer = (train_tokenizer(measured, vocabulary=600, max_tokens=128) for _ in range(2))
    assert again.to_str() == tokenizer.to_str()
    (tmp_path / "texts.json").write_text(json.dumps(measured))
    program = (
        "import json, sys; from decipher_rt.train.text.tokenizer import train_tokenizer;"
        "print(train_tokenizer(json.load(open(sys.argv[1])), 600, 128).to_str())"
    )
    out = subprocess.run([sys.executable, "-c", program, tmp_path / "texts.json"], capture_output=True, check=True)
    assert out.stdout.decode().strip() == tokenizer.to_str()
    assert 250 < tokenizer.get_vocab_size() <= 600
    assert [tokenizer.token_to_id(name) for name in SPECIAL] == list(range(len(SPECIAL)))
    with pytest.raises(TokenizerError, match=r"text.vocabulary is 50, expected \d+ or more"):
        train_tokenizer(["a"], vocabulary=50, max_tokens=8)


def test_saved_and_read_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, tokenizer)
    text = reports("held_out", 1)[0]
    assert load_tokenizer(tmp_path).encode(text).ids == tokenizer.encode(text).ids
    assert len(load_tokenizer(tmp_path, max_tokens=8, vocabulary=600).encode(text).ids) == 8
    with pytest.raises(TokenizerError, match=r"numbers tokens up to \d+, but its encoder has room for 100"):
        load_tokenizer(tmp_path, vocabulary=100)


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no such file, nor vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 7}')
    with pytest.raises(TokenizerError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[UNK]\nbrain\n")
    with pytest.raises(TokenizerError, match=r"vocab.txt: has no \[PAD\]"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_the_word_for_unknown_words_is_refused(tmp_path: Path) -> None:
    words = {name: i for i, name in enumerate(SPECIAL)}
    Tokenizer(WordPiece(words, unk_token="<unk>")).save(  # noqa: S106 - no password
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(TokenizerError, match=r"tokenizer.json: not a tokenizer \(.*Missing"):
        load_tokenizer(tmp_path)
