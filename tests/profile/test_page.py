"""The page: whole, self-contained, nothing unescaped; bars where the numbers say."""

import re
from html.parser import HTMLParser

import pytest

from decipher_rt.profile.page import page, ratios, round_up, strips, table, waterfall
from decipher_rt.profile.spread import spread

VOID = {"meta", "br", "link", "img"}


class Tree(HTMLParser):
    """Checks that every element is closed in order, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(html: str) -> Tree:
    tree = Tree()
    tree.feed(html)
    tree.close()
    assert tree.open == []
    return tree


def test_bars_follow_one_another_on_the_axis():
    drawn = waterfall({"read": 100.0, "preprocess": 50.0, "encode": 250.0}, 400.0, "caption", {})
    places = re.findall(r'class="bar" style="left:([\d.]+)%;width:([\d.]+)%', drawn)
    assert [(float(left), float(width)) for left, width in places] == [(0, 25), (25, 12.5), (37.5, 62.5)]


def test_what_ran_beside_others_is_hatched_and_takes_no_room():
    drawn = waterfall({"engine load": 300.0, "read": 0.0, "encode": 100.0}, 400.0, "", {"read": (0.0, 200.0)})
    assert re.search(r'class="bar hatched" style="left:0.000%;width:50.000%', drawn)
    assert len(re.findall(r'class="bar"', drawn)) == 2


def test_every_run_is_a_dot():
    drawn = strips({"read": [1.0, 2.0, 3.0], "encode": [5.0]}, "")
    assert drawn.count('class="dot"') == 4


@pytest.mark.parametrize("runs", [[10.0, 20.0], [4.0, 1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
def test_the_line_of_a_strip_is_the_median_of_the_table(runs):
    drawn = strips({"read": runs}, "")
    dots = re.findall(r'class="dot" style="left:([\d.]+)%', drawn)
    (line,) = re.findall(r'class="median" style="left:([\d.]+)%', drawn)
    assert line == dots[runs.index(spread(runs)["p50_ms"])]


@pytest.mark.parametrize("hostile", ['<script>alert("x")</script>', "a & b", "\"'><img src=x onerror=1>"])
def test_text_from_outside_is_escaped(hostile):
    html = page(hostile, [table(("stage", hostile), [(hostile, hostile)]), waterfall({hostile: 1.0}, 1.0, hostile, {})])
    tree = parse(html)
    assert "<script>alert" not in html
    assert "<img" not in html
    assert hostile in tree.text


def test_ratios_beyond_the_axis_stay_on_it():
    drawn = ratios([("read", 1.0, 0.01, 500.0, "")], "")
    assert re.search(r'class="interval" style="left:0.00%;width:100.00%', drawn)


@pytest.mark.parametrize("ms", [0.9, 3.2, 47, 99, 101, 687, 1957, 2401, 9999, 16000, 99000])
def test_axes_end_a_little_above(ms):
    top = round_up(ms)
    assert ms <= top <= 2.1 * ms
    assert top / 4 == pytest.approx(float(f"{top / 4:.2g}"))  # ticks of two digits at most
