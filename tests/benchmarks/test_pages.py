"""Pages: measured figures stand where their marks are, and as the committed results have them."""

import importlib
import sys
from pathlib import Path

import pytest

from decipher_rt.bundle import open_bundle

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PLACE = "<!-- one: from benchmarks/results -->\n{}<!-- end of one -->\n"


@pytest.fixture(scope="module")
def script():
    """Import a module of a folder of ``benchmarks`` by its name."""
    path, before = list(sys.path), set(sys.modules)

    def found(folder: str, name: str):
        sys.path[:0] = [str(BENCHMARKS / folder), str(BENCHMARKS)]
        return importlib.import_module(name)

    yield found
    sys.path[:] = path
    ours = {file.stem for file in BENCHMARKS.rglob("*.py")} | {"latency"}
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ours:
            sys.modules.pop(name)


def test_lines_take_the_place_of_what_was_between_the_marks(script) -> None:
    bring_in = script("", "pages").bring_in
    page = "before\n" + PLACE.format("old\n") + "after\n"
    assert bring_in(page, {"one": ["new", "lines"]}) == "before\n" + PLACE.format("new\nlines\n") + "after\n"


@pytest.mark.parametrize("page", ["nothing\n", "<!-- one: from benchmarks/results -->\nno end\n"])
def test_a_page_without_the_place_is_refused(script, page) -> None:
    with pytest.raises(ValueError, match="no place for 'one'"):
        script("", "pages").bring_in(page, {"one": []})


def test_the_latency_page_has_the_committed_figures(script) -> None:
    pictures = script("latency", "pictures")
    page = pictures.PAGE.read_text(encoding="utf-8")
    assert script("", "pages").bring_in(page, pictures.tables(*pictures.reports())) == page


def test_the_model_card_has_the_committed_figures(script) -> None:
    card = script("evidence", "card")
    page = card.PAGE.read_text(encoding="utf-8")
    assert script("", "pages").bring_in(page, card.tables()) == page


def test_the_engines_page_has_the_figures_of_the_bundle() -> None:
    page = " ".join((BENCHMARKS.parent / "docs" / "engines.md").read_text(encoding="utf-8").split())
    numerics = {(n.target, n.precision): n for n in open_bundle().manifest.numerics}
    whole, narrow, wide = numerics["onnx", "fp32"], numerics["onnx", "int8"], numerics["onnx-vnni", "int8"]
    assert f"an embedding {narrow.embedding_cosine:.4f} with 7 bits and {wide.embedding_cosine:.4f} with 8" in page
    assert f"of a token {narrow.patch_cosine:.4f} and {wide.patch_cosine:.4f};" in page
    right = [one.metrics["sequence"] for one in (whole, narrow, wide)]
    assert "`sequence` {:.2f} % in fp32, {:.2f} and {:.2f}.".format(*right) in page
    lost = whole.metrics["brain_volume_ml"] - narrow.metrics["brain_volume_ml"]
    assert f"`brain_volume_ml` loses {lost:.2f} points" in page


@pytest.mark.parametrize(
    ("document", "ships"),
    [
        ({"settings": {"model": "now"}}, True),
        ({"settings": {"encoder": "before"}}, False),
        ({"settings": {"labels": [16]}, "weights": {"pretrained": "before", "untrained/0": "now"}}, False),
        ({"settings": {"steps": 200, "ssl": "before"}}, True),
        ({"sequence": {}}, True),
    ],
)
def test_figures_of_an_earlier_training_are_told_from_those_of_what_ships(script, document, ships) -> None:
    assert script("evidence", "card").is_of(document, {"now"}) is ships
