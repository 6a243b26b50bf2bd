"""Where the grid's voxels lie and what is in them, against closed forms and other resamplers."""

from __future__ import annotations

import dataclasses
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from decipher_rt.errors import SeriesError
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid, Preprocessor, build_graph
from decipher_rt.preprocess.grid import lay_grid
from decipher_rt.volume import SeriesInfo, Volume

# DALI interpolates in float32 with float32 weights and positions: relative to the range of the values.
FLOAT32_RESAMPLING = 2e-5
# Exact arithmetic but for the order of additions.
AFFINE_MM = 1e-9

SPEC = Preprocessing((32, 48, 40), (2.0, 2.5, 3.0), (8, 8, 8), (120,))
GRAPH = build_graph(SPEC, "cpu")


@pytest.fixture(scope="module")
def preprocess() -> Preprocessor:
    return Preprocessor(GRAPH, SPEC)


def make_volume(voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> Volume:
    return Volume(np.ascontiguousarray(voxels), affine, SeriesInfo("2.25.1", Path("series")))


def random_affine(rng: np.random.Generator, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Any orientation, right- or left-handed, of orthogonal axes."""
    rotation, triangle = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.sign(np.diag(triangle)) * spacing
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def grid_positions_lps_mm(grid: Grid) -> NDArray[np.float64]:
    """LPS of every grid voxel, shape (D, H, W, 3), from the grid's affine alone."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.volume.shape), indexing="ij"), axis=-1)
    return index @ grid.affine_lps_mm[:3, :3].T + grid.affine_lps_mm[:3, 3]


def volume_positions(volume: Volume, positions_lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse = np.linalg.inv(volume.affine_lps_mm)
    return positions_lps_mm @ inverse[:3, :3].T + inverse[:3, 3]


def depth_in_voxels(volume: Volume, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far inside the field of view positions lie, in voxels of the nearest face; negative outside."""
    shape = np.array(volume.voxels.shape)
    return np.minimum(positions + 0.5, shape - 0.5 - positions)


@pytest.mark.parametrize("seed", range(12))
def test_finer_grid_is_linear_interpolation_in_the_patient(seed: int, preprocess: Preprocessor) -> None:
    """scipy interpolates the volume at the places that the grid's affine names: any spacing not finer than the grid's."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 22, 3))
    affine = random_affine(rng, tuple(rng.uniform(3.0, 9.0, 3)))
    volume = make_volume(rng.uniform(-500, 3000, shape).astype(np.float32), affine)
    grid = preprocess(volume)
    positions = volume_positions(volume, grid_positions_lps_mm(grid))
    inside = (depth_in_voxels(volume, positions) >= 0).all(axis=-1)
    expected = ndimage.map_coordinates(
        volume.voxels.astype(np.float64), np.moveaxis(positions, -1, 0), order=1, mode="nearest"
    )
    assert inside.sum() > 200
    np.testing.assert_allclose(grid.volume[inside], expected[inside], rtol=0, atol=3500 * FLOAT32_RESAMPLING)


def triangle_weights(centres: NDArray[np.float64], radius: float, size: int) -> NDArray[np.float64]:
    """Weights (centres, size) of the triangle that is 1 at its centre and 0 at ``radius`` voxels; borders repeat."""
    weights = np.zeros((len(centres), size))
    reach = int(np.ceil(radius)) + 1
    for row, centre in enumerate(centres):
        for voxel in range(int(np.floor(centre)) - reach, int(np.ceil(centre)) + reach + 1):
            weights[row, min(max(voxel, 0), size - 1)] += max(0.0, 1 - abs(voxel - centre) / radius)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(12))
def test_coarser_grid_is_the_triangle_filter(seed: int, preprocess: Preprocessor) -> None:
    """Closed form: along each axis a triangle as wide as a grid voxel, but no narrower than linear interpolation."""
    rng = np.random.default_rng(100 + seed)
    spacing = rng.uniform(0.4, 3.5, 3)
    shape = tuple((rng.uniform(100, 140, 3) / spacing).astype(int))
    volume = make_volume(rng.integers(-300, 3000, shape).astype(np.int16), random_affine(rng, tuple(spacing)))
    grid = preprocess(volume)
    to_acquired = np.linalg.inv(volume.affine_lps_mm) @ grid.affine_lps_mm
    weights, covered = [], []
    for axis in range(3):
        acquired = int(np.abs(to_acquired[:3, axis]).argmax())
        step = to_acquired[acquired, axis]
        centres = to_acquired[acquired, 3] + step * np.arange(SPEC.grid_shape[axis])
        weights.append((triangle_weights(centres, max(1.0, abs(step)), shape[acquired]), [axis, 3 + acquired]))
        covered.append((centres > -0.5) & (centres < shape[acquired] - 0.5))
    terms = [term for pair in weights for term in pair]
    expected = np.einsum(*terms, volume.voxels.astype(np.float64), [3, 4, 5], [0, 1, 2], optimize=True)
    inside = covered[0][:, None, None] & covered[1][None, :, None] & covered[2][None, None, :]
    assert inside.mean() > 0.5
    np.testing.assert_allclose(grid.volume[inside], expected[inside], rtol=0, atol=3300 * FLOAT32_RESAMPLING)


def test_antialiasing_is_that_of_pillow() -> None:
    """Pillow's bilinear resize with a box uses the same triangle as wide as the scale, and drops it at the border."""
    rng = np.random.default_rng(5)
    spec = Preprocessing((8, 24, 20), (4.1, 2.7, 3.3), (4, 4, 4), (60,))
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2] = 1.3, -0.9, -1.1  # acquired axes already run to S, A, R
    volume = make_volume(rng.uniform(0, 1000, (40, 90, 80)).astype(np.float32), affine)
    grid = Preprocessor(None, spec)(volume)

    start = [40 / 2 - 8 * 4.1 / 1.3 / 2, 90 / 2 - 24 * 2.7 / 0.9 / 2, 80 / 2 - 20 * 3.3 / 1.1 / 2]
    end = [40 - start[0], 90 - start[1], 80 - start[2]]
    planes = np.stack(
        [np.asarray(Image.fromarray(s).resize((20, 24), Image.Resampling.BILINEAR, (start[2], start[1], end[2], end[1])))
         for s in volume.voxels]
    )  # fmt: skip
    columns = Image.fromarray(planes.reshape(40, 24 * 20)).resize(
        (24 * 20, 8), Image.Resampling.BILINEAR, (0, start[0], 24 * 20, end[0])
    )
    expected = np.asarray(columns).reshape(8, 24, 20)
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(grid.volume[inner], expected[inner], rtol=0, atol=1000 * FLOAT32_RESAMPLING)


@pytest.mark.parametrize("spacing", [(2.0, 2.5, 3.0), (0.9, 4.0, 1.7)])
def test_axis_orders_and_flips_give_the_same_grid(spacing: tuple[float, ...], preprocess: Preprocessor) -> None:
    """The same oblique volume stored in all 48 ways: same voxels in the same place."""
    rng = np.random.default_rng(11)
    voxels = rng.integers(-300, 3000, (33, 26, 41)).astype(np.int16)
    affine = random_affine(rng, spacing)
    first = preprocess(make_volume(voxels, affine))
    ways = 0
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        stored = voxels.transpose(order)
        turned = affine[:, [*order, 3]].copy()
        for axis, flip in enumerate(flips):
            if flip:
                stored = np.flip(stored, axis)
                turned[:, 3] += turned[:, axis] * (stored.shape[axis] - 1)
                turned[:, axis] *= -1
        grid = preprocess(make_volume(stored, turned))
        np.testing.assert_allclose(grid.affine_lps_mm, first.affine_lps_mm, rtol=0, atol=AFFINE_MM)
        np.testing.assert_allclose(grid.volume, first.volume, rtol=0, atol=3300 * FLOAT32_RESAMPLING)
        np.testing.assert_array_equal(grid.window, first.window)
        ways += 1
    assert ways == 48


@pytest.mark.parametrize("seed", range(6))
def test_grid_axes_run_to_superior_anterior_right(seed: int, preprocess: Preprocessor) -> None:
    """For every affine, each grid axis is within 55 degrees (the diagonal of a cube) of its own direction."""
    rng = np.random.default_rng(200 + seed)
    spacing = tuple(rng.uniform(1, 6, 3))
    grid = preprocess(make_volume(rng.uniform(0, 9, (12, 12, 12)).astype(np.float32), random_affine(rng, spacing)))
    axes = grid.affine_lps_mm[:3, :3]
    np.testing.assert_allclose(np.linalg.norm(axes, axis=0), SPEC.spacing_mm, rtol=1e-12)
    directions = axes / SPEC.spacing_mm
    superior, anterior, right = directions[2, 0], -directions[1, 1], -directions[0, 2]
    assert np.trace(np.diag([superior, anterior, right])) > 3 / np.sqrt(3) - 1e-9
    assert min(superior, anterior, right) > 0


@pytest.mark.parametrize("seed", range(8))
def test_bright_point_shows_where_the_affine_says(seed: int, preprocess: Preprocessor) -> None:
    """The centre of a small Gaussian at a known place in the patient, found again in the grid."""
    rng = np.random.default_rng(300 + seed)
    spacing = rng.uniform(0.8, 2.0, 3)
    shape = (70, 64, 76)
    affine = random_affine(rng, tuple(spacing))
    point_lps_mm = affine[:3, :3] @ rng.uniform(30, 34, 3) + affine[:3, 3]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    distance_mm = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - point_lps_mm, axis=-1)
    voxels = (60000 * np.exp(-((distance_mm / 4.0) ** 2) / 2)).astype(np.uint16)
    grid = preprocess(make_volume(voxels, affine))
    weights = grid.volume.astype(np.float64) - grid.window[0]
    centre = (grid_positions_lps_mm(grid) * weights[..., None]).sum(axis=(0, 1, 2)) / weights.sum()
    # Rounding to integers and sampling a triangle at non-integer scales shift it by micrometres, a voxel would by 1 mm.
    np.testing.assert_allclose(centre, point_lps_mm, rtol=0, atol=0.02)


def test_outside_the_field_of_view_is_air(preprocess: Preprocessor) -> None:
    """Padding is the low end of the window, not 0, and begins right behind the field of view."""
    rng = np.random.default_rng(17)
    voxels = rng.integers(900, 2000, (6, 10, 5)).astype(np.uint16)
    affine = random_affine(rng, (4.0, 4.5, 6.0))
    volume = make_volume(voxels, affine)
    grid = preprocess(volume)
    low = np.sort(voxels.ravel())[int(np.ceil(0.005 * voxels.size)) - 1]
    assert grid.window[0] == low >= 900
    depth = depth_in_voxels(volume, volume_positions(volume, grid_positions_lps_mm(grid)))
    grid_voxel = np.array([2.0, 2.5, 3.0]).max() / np.array([4.0, 4.5, 6.0]).min()
    outside = (depth < -0.5 * grid_voxel).any(axis=-1)
    assert outside.sum() > 30000
    np.testing.assert_array_equal(grid.volume[outside], np.float32(low))
    assert grid.volume.min() >= 900 - 2000 * FLOAT32_RESAMPLING


@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 2, 2), (7, 5, 9), (200, 170, 230), (33, 300, 1)])
def test_grid_is_centred_on_the_field_of_view(sizes: tuple[int, int, int], preprocess: Preprocessor) -> None:
    """To within half a grid voxel along each axis, whatever fits."""
    rng = np.random.default_rng(23)
    affine = random_affine(rng, (1.1, 0.9, 1.3))
    voxels = rng.integers(0, 255, sizes).astype(np.uint8)
    voxels.flat[0], voxels.flat[-1] = 0, 255
    grid = preprocess(make_volume(voxels, affine))
    centre_of_view = affine[:3, :3] @ ((np.array(sizes) - 1) / 2) + affine[:3, 3]
    in_grid = np.linalg.solve(grid.affine_lps_mm[:3, :3], centre_of_view - grid.affine_lps_mm[:3, 3])
    assert (np.abs(in_grid - (np.array(SPEC.grid_shape) - 1) / 2) < 0.5 + 1e-9).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_types_agree(dtype: type, preprocess: Preprocessor) -> None:
    rng = np.random.default_rng(29)
    values = rng.integers(0, 250, (40, 50, 30))
    affine = random_affine(rng, (1.5, 1.2, 2.0))
    grid = preprocess(make_volume(values.astype(dtype), affine))
    reference = preprocess(make_volume(values.astype(np.float32), affine))
    np.testing.assert_array_equal(grid.volume, reference.volume)
    np.testing.assert_array_equal(grid.window, reference.window)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((1, 64, 64), (5.0, 1.0, 1.0)),
        ((2, 64, 64), (0.1, 1.0, 1.0)),
        ((64, 64, 1), (1.0, 1.0, 1.0)),
        ((3, 8, 9), (900.0, 0.01, 0.02)),
        ((1500, 3, 2), (0.02, 50.0, 60.0)),
        ((1, 1, 2), (0.001, 0.001, 0.001)),
        ((12, 700, 900), (8.0, 0.3, 0.3)),
    ],
)
def test_extreme_shapes_stay_within_the_values(
    shape: tuple[int, int, int], spacing: tuple[float, ...], preprocess: Preprocessor
) -> None:
    """An average of voxels lies between their smallest and largest; and something of the volume is always there."""
    rng = np.random.default_rng(31)
    voxels = rng.integers(100, 200, shape).astype(np.int16)
    voxels.flat[0], voxels.flat[-1] = 100, 199
    grid = preprocess(make_volume(voxels, random_affine(rng, spacing)))
    assert grid.volume.shape == SPEC.grid_shape
    assert grid.volume.min() > 99.99
    assert 110 < grid.volume.max() < 199.01


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(37)
    volume = make_volume(rng.integers(0, 999, (9, 60, 70)).astype(np.uint16), random_affine(rng, (1.5, 1.2, 1.4)))
    one, three, many = (Preprocessor(GRAPH, SPEC, threads=threads)(volume) for threads in (1, 3, 64))
    np.testing.assert_array_equal(three.volume, one.volume)
    np.testing.assert_array_equal(many.volume, one.volume)


@pytest.mark.parametrize(("spacing_mm", "voxel_mm", "voxels"), [(1000.0, 0.05, 8), (0.001, 1.0, 4096)])
def test_a_grid_too_far_from_the_voxels_is_refused(spacing_mm: float, voxel_mm: float, voxels: int) -> None:
    spec = dataclasses.replace(SPEC, spacing_mm=(spacing_mm,) * 3)
    message = f"{voxels} voxels of {voxel_mm:g} mm and a grid of {spacing_mm:g} mm: too far apart to be resampled"
    with pytest.raises(SeriesError, match=message):
        lay_grid(np.diag([voxel_mm] * 3 + [1.0]), (voxels,) * 3, spec, (0.0, 1.0))


@pytest.mark.parametrize(("spacing_mm", "voxel_mm", "voxels"), [(1000.0, 0.1, 8), (0.001, 1.0, 1000)])
def test_the_furthest_grids_are_resampled(spacing_mm: float, voxel_mm: float, voxels: int) -> None:
    spec = dataclasses.replace(SPEC, spacing_mm=(spacing_mm,) * 3)
    ramp = np.linspace(100, 200, 4 * 4 * voxels, dtype=np.float32).reshape(4, 4, voxels)
    grid = Preprocessor(build_graph(spec, "cpu"), spec)(make_volume(ramp, np.diag([voxel_mm] * 3 + [1.0])))
    assert 100 <= grid.volume.min() <= grid.volume.max() <= 200


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [
        (np.zeros((0, 4, 4), np.int16), np.eye(4), r"shape \(0, 4, 4\)"),
        (np.arange(16, dtype=np.int16).reshape(4, 4), np.eye(4), r"shape \(4, 4\)"),
        (np.arange(64, dtype=np.int32).reshape(4, 4, 4), np.eye(4), "type <i4: convert them to one of uint8"),
        (np.arange(64, dtype=">i2").reshape(4, 4, 4), np.eye(4), "type >i2"),
        (np.full((4, 4, 4), 7, np.uint8), np.eye(4), "no contrast: its 0.5 and 99.5 percentiles are both 7"),
        (
            np.linspace(0, 1e-9, 64, dtype=np.float32).reshape(4, 4, 4),
            np.eye(4),
            "values span 1e-09, less than 1e-06: give them in a smaller unit",
        ),
        (np.where(np.arange(64) == 9, np.nan, 1.0).astype(np.float32).reshape(4, 4, 4), np.eye(4), "1 of 64 voxels"),
        (np.where(np.arange(64) < 2, -np.inf, 1.0).astype(np.float32).reshape(4, 4, 4), np.eye(4), "2 of 64 voxels"),
        (np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.diag([1.0, 0.0, 1.0, 1.0]), "axis of no length"),
        (np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.diag([1.0, np.nan, 1.0, 1.0]), "not finite"),
    ],
)
def test_what_is_no_volume_is_refused(
    voxels: NDArray[np.generic], affine: NDArray[np.float64], message: str, preprocess: Preprocessor
) -> None:
    with pytest.raises(SeriesError, match=message) as caught:
        preprocess(make_volume(voxels, affine))
    assert "\n" not in str(caught.value)
