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
from decipher_rt.writers.overlay import (
    BOX_COLOUR,
    NOTHING,
    Findings,
    PictureFrame,
    Rectangle,
    center_and_reach,
    colour,
    drawn_segmentation,
    findings,
    labels_of_plane,
    rectangle_on_plane,
    tinted,
)

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

PANEL = 400  # pixels, each view
COLUMN = 380  # pixels, the answers
MARGIN, HEADER, FOOTER = 16, 56, 40
FOOTER_LINE = 22  # pixels, a line more where the engine is not the one that was asked for
BACKGROUND, PANEL_BACKGROUND = "#14171c", "#000000"
TEXT, FAINT, ACCENT, WARNING, TRACK = "#e8eaed", "#8b929c", "#4ea3e0", "#e0a94e", "#2a3038"
DISPLAY_PERCENTILES = (0.5, 99.5)
SCALE_BAR_MM = 50


@dataclass(frozen=True)
class View:
    """One plane, looked at as radiologists do: pixels (rows, columns), their size in mm, and what lies at its edges.

    ``labels`` are those of a segmentation, one for each pixel; ``boxes`` the outlines of what was localised.
    """

    title: str
    pixels: NDArray[np.uint8]
    size_mm: tuple[float, float]
    left: str
    right: str
    top: str
    bottom: str
    labels: NDArray[np.uint8] | None = None
    boxes: tuple[Rectangle, ...] = ()


def orthogonal_views(volume: Volume, found: Findings = NOTHING) -> tuple[View, View, View]:
    """Return the axial, coronal and sagittal plane through the best box, or else the middle of the volume.

    Axes are the patient's closest ones; nothing is interpolated here, so a thick slice is seen as one. Patient right
    and anterior are at the left edge, superior and anterior at the top.
    """
    order = axis_order(volume.affine_lps_mm)
    frame = PictureFrame(order, volume.voxels.shape)
    spacing = np.linalg.norm(volume.affine_lps_mm[:3, :3], axis=0)[list(order.permutation)]
    s, a, r = (float(x) for x in spacing * frame.sizes)
    low, high = volume.percentiles(DISPLAY_PERCENTILES)
    places = [size // 2 for size in frame.sizes]
    if found.boxes:
        center, _ = center_and_reach(found.boxes[0], volume, frame)
        places = np.clip(np.round(center), 0, np.array(frame.sizes) - 1).astype(int).tolist()

    def grey(plane: NDArray[Any]) -> NDArray[np.uint8]:
        scaled = (plane.astype(np.float32) - low) / max(high - low, 1e-12)
        pixels: NDArray[np.uint8] = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
        return pixels

    def view(title: str, axis: int, size_mm: tuple[float, float], edges: tuple[str, str, str, str]) -> View:
        place, labels = places[axis], None
        if found.label_map is not None:
            labels = labels_of_plane(found.label_map, volume, frame, axis, place)
        outlines = (rectangle_on_plane(box, volume, frame, axis, place) for box in found.boxes)
        boxes = tuple(outline for outline in outlines if outline is not None)
        return View(title, grey(frame.plane(volume.voxels, axis, place)), size_mm, *edges, labels, boxes)

    return (
        view("Axial", 0, (a, r), ("R", "L", "A", "P")),
        view("Coronal", 1, (s, r), ("R", "L", "S", "I")),
        view("Sagittal", 2, (s, a), ("A", "P", "S", "I")),
    )


def draw_views(result: Result, volume: Volume) -> bytes:
    """Return the picture as PNG."""
    from PIL import Image, ImageDraw

    views = orthogonal_views(volume, findings(result.heads))
    width = 4 * MARGIN + 3 * PANEL + COLUMN + MARGIN
    # The answers are written once to see how far down they go: there may be many.
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    panel = max(PANEL, _draw_answers(scratch, result, 0, 0))
    fallback = result.engine.get("fallback")
    footer = FOOTER + (FOOTER_LINE if fallback else 0)
    canvas = Image.new("RGB", (width, HEADER + panel + footer + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    _draw_header(draw, result)
    pixels_per_mm = PANEL / max(extent for view in views for extent in view.size_mm)
    for number, view in enumerate(views):
        left = MARGIN + number * (PANEL + MARGIN)
        canvas.paste(_draw_view(view, pixels_per_mm), (left, HEADER))
    _draw_answers(draw, result, MARGIN + 3 * (PANEL + MARGIN), HEADER)
    _text(draw, (MARGIN, HEADER + panel + 18), _footer(result), FAINT, 14)
    _text(draw, (width - MARGIN, HEADER + panel + 18), NOTICE, WARNING, 14, anchor="ra")
    if fallback:
        said = _shortened(draw, f"fallback: {fallback}", width - 2 * MARGIN, 14)
        _text(draw, (MARGIN, HEADER + panel + 18 + FOOTER_LINE), said, WARNING, 14)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _draw_view(view: View, pixels_per_mm: float) -> Any:
    from PIL import Image, ImageDraw

    panel = Image.new("RGB", (PANEL, PANEL), PANEL_BACKGROUND)
    height, width = (max(1, round(extent * pixels_per_mm)) for extent in view.size_mm)
    scaled = Image.fromarray(view.pixels).resize((width, height), Image.Resampling.BICUBIC)
    if view.labels is not None:
        labels = Image.fromarray(view.labels).resize((width, height), Image.Resampling.NEAREST)
        scaled = Image.fromarray(tinted(np.asarray(scaled), np.asarray(labels)))
    corner = (PANEL - width) // 2, (PANEL - height) // 2
    panel.paste(scaled.convert("RGB"), corner)
    draw = ImageDraw.Draw(panel)
    for top, left, bottom, right in view.boxes:
        x0, x1 = (corner[0] + edge * width for edge in (left, right))
        y0, y1 = (corner[1] + edge * height for edge in (top, bottom))
        draw.rectangle((x0, y0, max(x1, x0 + 2), max(y1, y0 + 2)), outline=BOX_COLOUR, width=2)
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


def _draw_answers(draw: ImageDraw, result: Result, left: int, top: int) -> int:
    """Draw the answers' column and return where it ends."""
    inside, drawn = result.scope.inside, drawn_segmentation(result.heads)
    _text(draw, (left, top), "In scope" if inside else "Out of scope", ACCENT if inside else WARNING, 18)
    y = _wrapped(draw, (left, top + 26), result.scope.reason, FAINT, 13) + 10
    for name, answer in result.heads.items():
        y = _draw_head(draw, name, answer, left, y, drawn=name == drawn)
        y = (_wrapped(draw, (left, y), answer.note, FAINT, 12) if answer.note else y) + 12
    if result.prompts:
        y = _draw_prompts(draw, result, left, y)
    return y


def _draw_head(draw: ImageDraw, name: str, answer: HeadAnswer, left: int, y: int, *, drawn: bool) -> int:
    """Draw one head's answer and return where the next may begin; ``drawn`` is whether its map lies on the views."""
    _text(draw, (left, y), name.replace("_", " "), FAINT, 14)
    if answer.not_answered is not None:
        _text(draw, (left + COLUMN, y), "not answered", WARNING, 14, anchor="ra")
        return y + 20
    if answer.kind == "segmentation":
        if not drawn:
            _text(draw, (left + COLUMN, y), "not drawn", FAINT, 14, anchor="ra")
        return _draw_volumes(draw, answer, left, y + 20, drawn=drawn)
    if answer.kind == "localisation":
        return _draw_boxes(draw, answer, left, y)
    if answer.label is None:
        _text(draw, (left + COLUMN, y), f"{answer.value:.4g} {answer.unit}", TEXT, 16, anchor="ra")
        return y + 20
    _text(draw, (left + COLUMN, y), answer.label, TEXT, 16, anchor="ra")
    y += 24
    for label, probability in answer.probabilities.items():
        y = _draw_bar(draw, label, probability, left, y)
    return y


def _draw_bar(draw: ImageDraw, label: str, probability: float, left: int, y: int) -> int:
    bar_left, bar_right = left + 90, left + COLUMN - 50
    _text(draw, (left + 82, y), label, TEXT, 13, anchor="ra")
    draw.rectangle((bar_left, y + 4, bar_right, y + 12), fill=TRACK)
    if probability * (bar_right - bar_left) >= 1:
        draw.rectangle((bar_left, y + 4, bar_left + probability * (bar_right - bar_left), y + 12), fill=ACCENT)
    _text(draw, (left + COLUMN, y), f"{probability:.1%}", TEXT, 13, anchor="ra")
    return y + 20


def _draw_volumes(draw: ImageDraw, answer: HeadAnswer, left: int, y: int, *, drawn: bool) -> int:
    """Draw the volume of each label, and its colour where its map is drawn."""
    for value, (label, ml) in enumerate(answer.volumes_ml.items(), 1):
        if drawn:
            draw.rectangle((left + 6, y + 3, left + 16, y + 13), fill=colour(value))
        _text(draw, (left + 24, y), label, TEXT, 13)
        _text(draw, (left + COLUMN, y), f"{ml:.4g} ml", TEXT, 13, anchor="ra")
        y += 20
    return y


def _draw_boxes(draw: ImageDraw, answer: HeadAnswer, left: int, y: int) -> int:
    if not answer.boxes:
        _text(draw, (left + COLUMN, y), "none found", TEXT, 16, anchor="ra")
        return y + 20
    for box in answer.boxes:
        size = " x ".join(f"{mm:.0f}" for mm in box.size_mm)
        _text(draw, (left + COLUMN, y), f"{size} mm  {box.score:.0%}", BOX_COLOUR, 14, anchor="ra")
        y += 20
    return y


def _draw_prompts(draw: ImageDraw, result: Result, left: int, y: int) -> int:
    """Draw how near each prompt is and return where the next may begin."""
    for prompt, answer in result.prompts.items():
        y = _wrapped(draw, (left, y), prompt, TEXT, 13)
        if answer.cosine is None:
            y = _wrapped(draw, (left, y), "not answered", WARNING, 13)
        elif answer.probability is None:
            y = _wrapped(draw, (left, y), f"cosine {answer.cosine:.3f}", FAINT, 13)
        else:
            y = _draw_bar(draw, f"cos {answer.cosine:.3f}", answer.probability, left, y)
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


def _shortened(draw: ImageDraw, text: str, width: int, size: int) -> str:
    """Return a text, or as much of its beginning as fits on a line of ``width`` pixels, with dots for the rest."""
    font, shown = _font(size), text
    while draw.textlength(shown, font=font) > width:
        text = text[:-1]
        shown = f"{text}..."
    return shown


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
