"""Pieces of the page: waterfalls, strips of dots, tables. Everything that comes from outside is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from decipher_rt.profile.spread import spread
from decipher_rt.profile.style import COLOURS, CSS

TICKS = 4
LARGEST_RATIO = 4.0  # of the axis of ratios; what lies beyond is drawn at its end


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page that needs no other file and no network."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def figures(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the few large numbers at the top: (number, what it is)."""
    cells = "".join(f'<div class="figure"><b>{escape(n)}</b><span>{escape(what)}</span></div>' for n, what in pairs)
    return f'<div class="figures">{cells}</div>'


def waterfall(
    parts_ms: Mapping[str, float], scale_ms: float, caption: str, beside: Mapping[str, tuple[float, float]]
) -> str:
    """Draw parts one after the other on a common axis.

    Parameters
    ----------
    parts_ms : mapping
        In order; those of 0 are left out.
    scale_ms : float
        Length of the axis.
    caption : str
    beside : mapping
        For a part that began earlier, beside others: its whole (start, duration), drawn hatched.
    """
    total = sum(parts_ms.values())
    rows, at = [], 0.0
    for name, ms in parts_ms.items():
        hatched = ""
        if name in beside:
            start, whole = beside[name]
            hatched = _bar(name, start / scale_ms, whole / scale_ms, "bar hatched")
        if ms > 0 or hatched:
            bar = _bar(name, at / scale_ms, ms / scale_ms, "bar") if ms > 0 else ""
            value = f"{_ms(ms)} <small class=soft>{ms / total:.1%}</small>"
            rows.append(
                _row(name, f'<div class="track" title="{escape(name)}: {ms:.2f} ms">{hatched}{bar}</div>', value)
            )
        at += ms
    rows.append(_row("", _axis([scale_ms * n / TICKS for n in range(TICKS + 1)]), "", "row only-axis"))
    return f"<figure>{''.join(rows)}<figcaption>{escape(caption)}</figcaption></figure>"


def strips(runs_ms: Mapping[str, Sequence[float]], caption: str) -> str:
    """Draw every run of every stage as a dot on the stage's own axis, with its median as the table has it."""
    rows = []
    for name, runs in runs_ms.items():
        low, high = min(runs), max(runs)
        # A margin keeps the dots at both ends whole.
        width = (high - low) * 1.04 or 1.0
        left = low - (width - (high - low)) / 2
        dots = "".join(
            f'<div class="dot" style="left:{(ms - left) / width:.2%};top:{30 + 40 * (n % 5) / 4:.0f}%;'
            f'background:{_colour(name)}"></div>'
            for n, ms in enumerate(runs)
        )
        middle = spread(runs)["p50_ms"]
        mark = f'<div class="median" style="left:{(middle - left) / width:.2%}"></div>'
        track = f'<div class="track strip">{dots}{mark}</div>'
        rows.append(_row(name, track, f"{_number(low)} <small class=soft>to</small> {_ms(high)}"))
    return f"<figure>{''.join(rows)}<figcaption>{escape(caption)}</figcaption></figure>"


def ratios(rows: Sequence[tuple[str, float, float, float, str]], caption: str) -> str:
    """Draw ratios with their intervals on a logarithmic axis around 1: (stage, ratio, low, high, text)."""
    reach = min(LARGEST_RATIO, max(1.25, *(max(high, 1 / low) for _, _, low, high, _ in rows)))

    def place(ratio: float) -> float:
        return min(1.0, max(0.0, 0.5 + 0.5 * math.log(ratio) / math.log(reach)))

    drawn = []
    for name, ratio, low, high, text in rows:
        left, right = place(low), place(high)
        interval = (
            f'<div class="interval" style="left:{left:.2%};width:{right - left:.2%};background:{_colour(name)}"></div>'
        )
        middle = f'<div class="median" style="left:{place(ratio):.2%}"></div>'
        track = f'<div class="track"><div class="one" style="left:50%"></div>{interval}{middle}</div>'
        drawn.append(_row(name, track, text, "row wide"))
    marks = [(0.0, f"A {reach:.2f} times as fast"), (0.5, "the same"), (1.0, f"B {reach:.2f} times as fast")]
    axis = "".join(f'<i style="left:{at:.0%}">{escape(text)}</i>' for at, text in marks)
    drawn.append(_row("", f'<div class="axis">{axis}</div>', "", "row wide only-axis"))
    return f"<figure>{''.join(drawn)}<figcaption>{escape(caption)}</figcaption></figure>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table; the first column names a stage, a row named ``total`` stands out."""
    heads = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = []
    for name, *cells in rows:
        key = f'<span class="key" style="background:{_colour(name)}"></span>{escape(name)}'
        columns = "".join(f"<td>{escape(c)}</td>" for c in cells)
        body.append(f"<tr{' class=total' if name == 'total' else ''}><td>{key}</td>{columns}</tr>")
    return f'<div class="scroll"><table><tr>{heads}</tr>{"".join(body)}</table></div>'


def definitions(pairs: Iterable[tuple[str, str]], code: Iterable[str] = ()) -> str:
    """Draw terms and what they are; those named in ``code`` in a fixed-width face."""
    monospaced = set(code)
    rows = (
        f"<dt>{escape(term)}</dt><dd>{f'<code>{escape(text)}</code>' if term in monospaced else escape(text)}</dd>"
        for term, text in pairs
    )
    return f"<dl>{''.join(rows)}</dl>"


def round_up(ms: float) -> float:
    """Return an axis length a little above ``ms`` whose quarters are round numbers."""
    step = 10.0 ** max(len(str(int(ms))) - 2, -2)
    return next(step * n for n in (4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 60, 80, 100) if step * n >= ms)


def _row(name: str, track: str, value: str, kind: str = "row") -> str:
    return f'<div class="{kind}"><span>{escape(name)}</span>{track}<span>{value}</span></div>'


def _bar(name: str, left: float, width: float, kind: str) -> str:
    return f'<div class="{kind}" style="left:{left:.3%};width:{width:.3%};background-color:{_colour(name)}"></div>'


def _axis(ticks_ms: Sequence[float]) -> str:
    marks = "".join(f'<i style="left:{ms / ticks_ms[-1]:.2%}">{_ms(ms)}</i>' for ms in ticks_ms)
    return f'<div class="axis">{marks}</div>'


def _ms(ms: float) -> str:
    return f"{ms / 1e3:.2f} s" if ms >= 1e4 else f"{_number(ms)} ms"


def _number(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 or ms == 0 else f"{ms:.3g}"


def _colour(name: str) -> str:
    return "var(--total)" if name == "total" else COLOURS.get(name, "var(--soft)")
