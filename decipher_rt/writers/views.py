"""A picture of a result: three orthogonal views of the volume as acquired, the answers beside them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.dicom.geometry import axis_order
from decipher_rt.result import NOTICE, HeadAnswer, Result
from decipher_rt.volume import Volume

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

PANEL = 400  # pixels, each view
COLUMN = 380  # pixels, the answers
MARGIN, HEADER, FOOTER = 16, 56, 40
BACKGROUND, PANEL_BACKGROUND = "#14171c", "#000000"
TEXT, FAINT, ACCENT, WARNING, TRACK = "#e8eaed", "#8b929c", "#4ea3e0", "#e0a94e", "#2a3038"
DISPLAY_PERCENTILES = (0.5, 99.5)
SCALE_BAR_MM = 50


@dataclass(frozen=True)
class View:
    """One plane, looked at as radiologists do: pixels (rows, columns), their size in mm, and what lies at its edges."""

    title: str
    pixels: NDArray[np.uint8]
    size_mm: tuple[float, float]
    left: str
    right: str
    top: str
    bottom: str


def orthogonal_views(volume: Volume) -> tuple[View, View, View]:
    """Return the axial, coronal and sagittal plane through the middle of the volume.

    Axes are the patient's closest ones; nothing is interpolated here, so a thick slice is seen as one. Patient right
    and anterior are at the left edge, superior and anterior at the top.
    """
    order = axis_order(volume.affine_lps_mm)
    sar = order.apply(volume.voxels)[::-1, ::-1, ::-1]  # rows run down and columns to the right of the picture
    spacing = np.linalg.norm(volume.affine_lps_mm[:3, :3], axis=0)[list(order.permutation)]
    s, a, r = (float(x) for x in spacing * sar.shape)
    low, high = volume.percentiles(DISPLAY_PERCENTILES)
    middle = [size // 2 for size in sar.shape]

    def grey(plane: NDArray[Any]) -> NDArray[np.uint8]:
        scaled = (plane.astype(np.float32) - low) / max(high - low, 1e-12)
        pixels: NDArray[np.uint8] = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
        return pixels

    return (
        View("Axial", grey(sar[middle[0]]), (a, r), "R", "L", "A", "P"),
        View("Coronal", grey(sar[:, middle[1]]), (s, r), "R", "L", "S", "I"),
        View("Sagittal", grey(sar[:, :, middle[2]]), (s, a), "A", "P", "S", "I"),
    )


def draw_views(result: Result, volume: Volume) -> bytes:
    """Return the picture as PNG."""
    from PIL import Image, ImageDraw

    views = orthogonal_views(volume)
    width = 4 * MARGIN + 3 * PANEL + COLUMN + MARGIN
    canvas = Image.new("RGB", (width, HEADER + PANEL + FOOTER + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    _draw_header(draw, result)
    pixels_per_mm = PANEL / max(extent for view in views for extent in view.size_mm)
    for number, view in enumerate(views):
        left = MARGIN + number * (PANEL + MARGIN)
        canvas.paste(_draw_view(view, pixels_per_mm), (left, HEADER))
    _draw_answers(draw, result, MARGIN + 3 * (PANEL + MARGIN), HEADER)
    _text(draw, (MARGIN, HEADER + PANEL + 18), _footer(result), FAINT, 14)
    _text(draw, (width - MARGIN, HEADER + PANEL + 18), NOTICE, WARNING, 14, anchor="ra")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _draw_view(view: View, pixels_per_mm: float) -> Any:
    from PIL import Image, ImageDraw

    panel = Image.new("RGB", (PANEL, PANEL), PANEL_BACKGROUND)
    height, width = (max(1, round(extent * pixels_per_mm)) for extent in view.size_mm)
    scaled = Image.fromarray(view.pixels).resize((width, height), Image.Resampling.BICUBIC)
    panel.paste(scaled.convert("RGB"), ((PANEL - width) // 2, (PANEL - height) // 2))
    draw = ImageDraw.Draw(panel)
    middle = PANEL // 2
    for letter, place, anchor in (
        (view.left, (6, middle), "lm"),
        (view.right, (PANEL - 6, middle), "rm"),
        (view.top, (middle, 4), "ma"),
        (view.bottom, (middle, PANEL - 4), "md"),
    ):
        _text(draw, place, letter, TEXT, 16, anchor, outlined=True)
    _text(draw, (6, 4), view.title, TEXT, 14, outlined=True)
    bar = round(SCALE_BAR_MM * pixels_per_mm)
    if bar < PANEL // 2:
        draw.line((6, PANEL - 8, 6 + bar, PANEL - 8), fill=TEXT, width=2)
        _text(draw, (6, PANEL - 12), f"{SCALE_BAR_MM} mm", TEXT, 12, "ld", outlined=True)
    return panel


def _draw_header(draw: ImageDraw, result: Result) -> None:
    series = result.series
    title = series["description"] or "MR series without a description"
    shape = " x ".join(map(str, series["shape_ras"]))
    spacing = " x ".join(f"{s:.2f}" for s in series["spacing_mm"])
    facts = [series["manufacturer"], f"{shape} voxels of {spacing} mm (R x A x S)"]
    if series["volumes"] > 1:
        facts.append(f"volume {series['volume_index']} of {series['volumes']}")
    _text(draw, (MARGIN, 10), title[:80], TEXT, 20)
    _text(draw, (MARGIN, 34), "   ".join(filter(None, facts)), FAINT, 14)


def _draw_answers(draw: ImageDraw, result: Result, left: int, top: int) -> None:
    inside = result.scope.inside
    _text(draw, (left, top), "In scope" if inside else "Out of scope", ACCENT if inside else WARNING, 18)
    y = _wrapped(draw, (left, top + 26), result.scope.reason, FAINT, 13) + 10
    for name, answer in result.heads.items():
        y = _draw_head(draw, name, answer, left, y) + 12


def _draw_head(draw: ImageDraw, name: str, answer: HeadAnswer, left: int, y: int) -> int:
    """Draw one head's answer and return where the next may begin."""
    _text(draw, (left, y), name.replace("_", " "), FAINT, 14)
    if answer.not_answered is not None:
        _text(draw, (left + COLUMN, y), "not answered", WARNING, 14, anchor="ra")
        return y + 20
    if answer.label is None:
        _text(draw, (left + COLUMN, y), f"{answer.value:.4g} {answer.unit}", TEXT, 16, anchor="ra")
        return y + 20
    _text(draw, (left + COLUMN, y), answer.label, TEXT, 16, anchor="ra")
    y += 24
    bar_left, bar_right = left + 90, left + COLUMN - 50
    for label, probability in answer.probabilities.items():
        _text(draw, (left + 82, y), label, TEXT, 13, anchor="ra")
        draw.rectangle((bar_left, y + 4, bar_right, y + 12), fill=TRACK)
        if probability * (bar_right - bar_left) >= 1:
            draw.rectangle((bar_left, y + 4, bar_left + probability * (bar_right - bar_left), y + 12), fill=ACCENT)
        _text(draw, (left + COLUMN, y), f"{probability:.1%}", TEXT, 13, anchor="ra")
        y += 20
    return y


def _footer(result: Result) -> str:
    engine, tokens = result.engine, result.tokens
    seconds = sum(ms for stage, ms in result.timings_ms.items() if stage not in ("write", "total")) / 1e3
    parts = (
        f"{result.bundle['name']} {result.bundle['version']}",
        f"{engine['name']} {engine['precision']} on {engine['device']}, {engine['threads']} threads",
        f"{tokens['kept']} of {tokens['total']} tokens",
        f"{seconds:.2f} s",
    )
    return "   ".join(parts)


def _wrapped(draw: ImageDraw, place: tuple[int, int], text: str, colour: str, size: int) -> int:
    """Write text in the answers' column, broken between words; return where it ends."""
    font, (left, y), line = _font(size), place, ""
    for word in [*text.split(), ""]:
        longer = f"{line} {word}".strip()
        if word and draw.textlength(longer, font=font) <= COLUMN:
            line = longer
            continue
        _text(draw, (left, y), line, colour, size)
        y, line = y + size + 4, word
    return y


def _text(
    draw: ImageDraw,
    place: tuple[int, int],
    text: str,
    colour: str,
    size: int,
    anchor: str = "la",
    *,
    outlined: bool = False,
) -> None:
    outline: dict[str, Any] = {"stroke_width": 2, "stroke_fill": PANEL_BACKGROUND} if outlined else {}
    draw.text(place, text, fill=colour, font=_font(size), anchor=anchor, **outline)


@cache
def _font(size: int) -> Any:
    """Return the font that Pillow carries; unpacking it takes longer than drawing with it."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
