"""The generated data set: repeatable to the byte, safe to ask for twice, and its boxes are what is seen."""

import colorsys
import json
import math
from pathlib import Path

import numpy as np
import pytest

from smnas.data.coco import CocoFolder, DataError
from smnas.data.scene import CLASSES, MIN_VISIBLE, Scene, Shape, draw_scene, render, seen
from smnas.data.shapes import generate_shapes


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes") / "data", train=60, val=20)


@pytest.mark.slow
def test_it_is_a_coco_folder(shapes: Path) -> None:
    folder = CocoFolder(shapes)
    assert folder.classes == CLASSES
    assert (len(folder.split("train")), len(folder.split("val"))) == (60, 20)
    assert folder.split("train").sample(0).image.shape == (160, 160, 3)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    first, second, third = (
        contents(generate_shapes(tmp_path / name, train=3, val=2, width=64, height=48, seed=seed))
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == second
    assert first.keys() == third.keys()
    assert all(first[name] != third[name] for name in first if name.endswith(".jpg"))


def test_a_larger_data_set_begins_with_a_smaller_one(tmp_path: Path, shapes: Path) -> None:
    small = contents(generate_shapes(tmp_path / "data", train=4, val=3))
    large = contents(shapes)
    some_images = [name for name in small if name.endswith(".jpg")]
    assert len(some_images) == 7
    assert all(small[name] == large[name] for name in some_images)
    assert small["train/000000.jpg"] != small["val/000000.jpg"]


def test_asking_again_writes_nothing(shapes: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shapes.rglob("*")}
    assert generate_shapes(shapes, train=60, val=20) == shapes
    assert {path: path.stat().st_mtime_ns for path in shapes.rglob("*")} == before


def test_other_things_are_not_overwritten(tmp_path: Path, shapes: Path) -> None:
    with pytest.raises(DataError, match="other settings"):
        generate_shapes(shapes, train=61, val=20)
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(DataError, match="something else"):
        generate_shapes(tmp_path, train=1, val=1)
    with pytest.raises(DataError, match="something else"):
        generate_shapes(tmp_path / "thesis.txt", train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_generation_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 5
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / "data", train=3, val=2, on_progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "data").mkdir()  # an empty folder is as good as none
    generate_shapes(tmp_path / "data", train=3, val=2)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"width": 31}, {"seed": -1}])
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match="must"):
        generate_shapes(tmp_path / "data", **wrong)


def inside(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points lie in a shape, by its definition and not by its corners."""
    across, down = (x - shape.x) / shape.radius, (y - shape.y) / shape.radius
    u = across * math.cos(shape.angle) + down * math.sin(shape.angle)
    v = down * math.cos(shape.angle) - across * math.sin(shape.angle)
    distance = np.hypot(u, v)
    name = CLASSES[shape.label]
    if name == "circle":
        return distance <= 1
    if name == "ring":
        return (distance <= 1) & (distance >= 0.55)
    if name == "square":
        return np.abs(u) + np.abs(v) <= 1
    if name == "cross":
        reach = math.cos(math.atan(0.34))
        half = 0.34 * reach
        return ((np.abs(u) <= reach) & (np.abs(v) <= half)) | ((np.abs(v) <= reach) & (np.abs(u) <= half))
    points = 3 if name == "triangle" else 5
    # Fold every sector onto half of one: its edge is then one straight line from the tip to the notch.
    sector = 2 * math.pi / points
    folded = np.abs((np.arctan2(v, u) + sector / 2) % sector - sector / 2)
    notch = 0.5 if name == "triangle" else 0.42  # a triangle's edge is halfway in at its middle
    end_x, end_y = notch * math.cos(sector / 2), notch * math.sin(sector / 2)
    px, py = distance * np.cos(folded), distance * np.sin(folded)
    return (px - 1) * end_y - py * (end_x - 1) <= 1e-9


def extents(mask: np.ndarray, step: float) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0] * step, rows[0] * step, (columns[-1] + 1) * step, (rows[-1] + 1) * step]


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_a_shape_alone_is_seen_where_its_definition_says(label: int) -> None:
    rng = np.random.default_rng(label)
    y, x = (np.mgrid[0:960, 0:960] + 0.5) / 8
    for _ in range(4):
        shape = Shape(label, *rng.uniform(45, 75, size=2).tolist(), float(rng.uniform(5, 42)), float(rng.uniform(0, 7)))
        expected = inside(shape, x, y)
        (part,) = seen(Scene(120, 120, (shape,)))
        assert part.share == pytest.approx(1, abs=0.12 if shape.radius < 10 else 0.05)
        assert part.mask.sum() / 16 == pytest.approx(expected.sum() / 64, rel=0.12 if shape.radius < 10 else 0.05)
        left, top, width, height = part.box()
        np.testing.assert_allclose([left, top, left + width, top + height], extents(expected, 1 / 8), atol=0.5)


@pytest.mark.parametrize("seed", range(25))
def test_boxes_are_the_extents_of_what_is_not_covered(seed: int) -> None:
    scene = draw_scene(160, 120, np.random.default_rng(seed))
    y, x = (np.mgrid[0 : 120 * 4, 0 : 160 * 4] + 0.5) / 4
    owner = np.full(x.shape, -1)
    for index, shape in enumerate(scene.shapes):
        owner[inside(shape, x, y)] = index
    _, boxes = render(scene, np.random.default_rng(0))
    for index, (left, top, width, height) in enumerate(boxes):
        found = extents(owner == index, 1 / 4)
        # A sliver between two edges may be seen by one rasteriser only, hence some pixels of room.
        np.testing.assert_allclose([left, top, left + width, top + height], found, atol=2.5)


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_the_image_shows_the_shape_where_its_box_is(label: int) -> None:
    scene = Scene(160, 120, (Shape(label, 100.0, 50.0, 30.0, 0.4),))
    # One generator state for both images: the ground is the same, the camera is not, so its noise is averaged away.
    shown = np.mean([render(scene, np.random.default_rng(seed))[0].astype(float) for seed in range(30)], axis=0)
    empty = np.mean(
        [render(Scene(160, 120, ()), np.random.default_rng(seed))[0].astype(float) for seed in range(30)], axis=0
    )
    ((left, top, width, height),) = render(scene, np.random.default_rng(0))[1]
    changed = np.abs(shown - empty).mean(axis=2)
    box = np.zeros((120, 160), dtype=bool)
    box[int(top) : int(top + height) + 1, int(left) : int(left + width) + 1] = True
    assert changed[box].mean() > 2 * changed[~box].mean()


def test_every_labelled_shape_is_seen_well_enough() -> None:
    for seed in range(40):
        scene = draw_scene(160, 120, np.random.default_rng(seed))
        assert 1 <= len(scene.shapes) <= 7
        for part in seen(scene):
            assert part.share >= MIN_VISIBLE
            assert min(part.box()[2:]) >= 4


def test_it_is_varied(shapes: Path) -> None:
    train = CocoFolder(shapes).split("train")
    samples = [train.sample(index) for index in range(len(train))]
    labels = np.concatenate([sample.labels for sample in samples])
    assert (np.bincount(labels, minlength=len(CLASSES)) >= 20).all()
    counts = [len(sample.boxes) for sample in samples]
    assert (min(counts), max(counts)) == (1, 7)
    boxes = np.concatenate([sample.boxes for sample in samples])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert math.log2(sides.max() / sides.min()) > 2.5
    corners = np.concatenate([boxes[:, :2], 160 - boxes[:, 2:]])
    assert (corners < 1).any()  # some are cut by the border


@pytest.mark.slow
def test_colour_is_a_hint_and_no_proof() -> None:
    hints, shown = 0, 0
    for seed in range(60):
        scene = draw_scene(160, 160, np.random.default_rng(seed))
        image, _ = render(scene, np.random.default_rng(seed))
        for shape, part in zip(scene.shapes, seen(scene), strict=True):
            rows, columns = (np.median(axis).astype(int) for axis in np.nonzero(part.mask))
            if not part.mask[rows, columns]:
                continue  # a ring's middle is its hole
            pixel = image[part.top + rows // 4, part.left + columns // 4] / 255
            hue = colorsys.rgb_to_hsv(*pixel.tolist())[0]
            hints += round(hue * len(CLASSES)) % len(CLASSES) == shape.label
            shown += 1
    # drawn as 0.9 and a sixth of the rest, less what blur, exposure, stripes and noise turn
    assert shown > 100
    assert 0.6 < hints / shown < 0.97


def test_the_manifest_says_how_it_was_made(shapes: Path) -> None:
    manifest = json.loads((shapes / "shapes.json").read_text())
    assert (manifest["train"], manifest["val"], manifest["seed"]) == (60, 20, 0)
