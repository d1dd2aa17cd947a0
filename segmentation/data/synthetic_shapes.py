"""Shapes: a small synthetic data set in the layout of PASCAL VOC, drawn from a seed in seconds.

It replaces photographs where none are available: objects of eight classes on textured backgrounds, with labels and with two
sets of imperfect saliency masks. A class is a shape filled with a texture of its own. All classes share their colours, so that
nothing can be learnt from these, and every texture survives a horizontal flip, rescaling and grayscale conversion.

Axis legend: H W space. Fields are float32 arrays H x W; distances are in pixels; masks are bool H x W.
"""
import functools
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.label_space import VOID
from data.palette import save_labels
from utils.errors import UserError
from utils.storage.atomic import atomic_folder

MASK_FOLDERS = {'saliency_supervised_model': False, 'saliency_unsupervised_model': True}  # value: the rough detector?
TWO_OBJECTS = 0.2  # share of the images with a second object; half of those repeat the class of the first
SMALLEST_MASK = 0.035  # share of the image; pre-training rejects views with nearly empty masks
# All images share one palette: a colour tells neither the class nor the image, which contrast between images would
# otherwise learn instead of textures. RGB.
NAVY, CREAM, MOSS, SAGE = (45, 50, 100), (235, 215, 165), (85, 115, 85), (135, 150, 115)
VARIATION = 10  # of each colour's channels, and twice that of its brightness
SMALLEST_SIZE = 48  # below this the textures have less than a few pixels to a period


def draw_shapes(folder: str | Path, seed: int = 0, train: int = 240, val: int = 60, size: int = 128) -> None:
    """Draw the data set into `folder`, which appears only when it is complete.

    folder: `<db_root>/Shapes`; must not exist. seed: integer >= 0; the same seed gives the same bytes, and image i of a
    split is the same whatever the numbers of images. train, val: numbers of images. size: mean height and width in
    pixels, at least 48; each image's height and width lie within 15% of it.

    Written: `images/<id>.jpg` (RGB); `SegmentationClassAug/<id>.png` for the split trainaug (all `train` images) and
    `SegmentationClass/<id>.png` for train (the first half of trainaug) and val: palette PNGs, index 0 background,
    1..8 the classes in the order of `CLASSES`, 255 void on a band of two pixels along the edge of each object;
    `saliency_supervised_model/<id>.png` and the rougher `saliency_unsupervised_model/<id>.png`: 8-bit grayscale,
    255 object, 0 background; `sets/{trainaug,train,val}.txt`: one id per line; `classes.txt`: one name per line.

    Raises `UserError` if `folder` exists or can't be written, ValueError for a size below 48 or a negative seed; then nothing
    is left behind.
    """
    folder = Path(folder)
    if size < SMALLEST_SIZE:
        raise ValueError(f'size is {size}, must be at least {SMALLEST_SIZE} pixels')
    if os.path.lexists(folder):
        raise UserError(f'{folder} exists already: remove it or name another folder')
    trainaug_ids = [f'train_{index:04d}' for index in range(train)]
    val_ids = [f'val_{index:04d}' for index in range(val)]
    splits = {'trainaug': trainaug_ids, 'train': trainaug_ids[:train // 2], 'val': val_ids}
    label_folders = {'SegmentationClass': {*splits['train'], *val_ids}, 'SegmentationClassAug': {*trainaug_ids}}
    with atomic_folder(folder) as root:
        for name in ('images', 'sets', *label_folders, *MASK_FOLDERS):
            (root / name).mkdir()
        (root / 'classes.txt').write_text(''.join(f'{name}\n' for name in CLASSES))
        for name, ids in splits.items():
            (root / 'sets' / f'{name}.txt').write_text(''.join(f'{image_id}\n' for image_id in ids))
        for split_number, ids in enumerate((trainaug_ids, val_ids)):
            for index, image_id in enumerate(ids):
                image, labels, masks = draw_image(seed, split_number, index, size)
                Image.fromarray(image).save(root / 'images' / f'{image_id}.jpg', quality=92)
                for name, labelled in label_folders.items():
                    if image_id in labelled:
                        save_labels(root / name / f'{image_id}.png', labels)
                for name, mask in masks.items():
                    Image.fromarray(mask).save(root / name / f'{image_id}.png')


def draw_image(seed: int, split_number: int, index: int,
               size: int = 128) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draw one image of a split (0 trainaug, 1 val); its random numbers depend on these arguments alone.

    Returns the image (uint8 H x W x 3, RGB), its labels (uint8 H x W; 0 background, 1..8 classes, 255 void) and a dict
    from the name of each saliency folder to its mask (uint8 H x W; 255 object, 0 background).
    """
    rng = np.random.default_rng([seed, split_number, index])
    scale, (H, W) = size / 128, np.round(size * rng.uniform(0.85, 1.15, 2)).astype(int)
    labels = np.zeros((H, W), np.uint8)
    image = _blend(_background(rng, (H, W), scale), _varied(rng, MOSS, SAGE))
    classes = [_class_in_turn(seed, split_number, index)]
    if rng.random() < TWO_OBJECTS:
        others = [c for c in range(1, len(CLASSES)) if c != classes[0]]
        classes.append(classes[0] if rng.random() < 0.5 else int(rng.choice(others)))
    objects: list[np.ndarray] = []
    plus = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for class_id, (share, centre) in zip(classes, _places(rng, (H, W), len(classes)), strict=True):
        depth, texture = _object(rng, CLASSES[class_id], share, centre, (H, W), scale)
        # A slow shading keeps large plain areas from being perfectly flat, as lighting does in photographs.
        shade = 1 + 0.08 * _noise(rng, (H, W), 50 * scale)
        cover = _step(depth)[..., None]
        image = (1 - cover) * image + cover * shade[..., None] * _blend(texture, _varied(rng, NAVY, CREAM))
        inside = (depth > 0).astype(np.uint8)
        labels[inside > 0] = class_id
        labels[cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, plus) > 0] = VOID  # both sides of the edge
        objects = [earlier & (inside == 0) for earlier in objects] + [inside > 0]
    image += rng.normal(0, 3, image.shape)
    masks = {name: 255 * _saliency(rng, objects, rough).astype(np.uint8) for name, rough in MASK_FOLDERS.items()}
    return np.clip(np.round(image), 0, 255).astype(np.uint8), labels, masks


def _star(u: np.ndarray, v: np.ndarray):
    # Folded into one tenth of the star, the shape is the half plane below the line from tip to notch.
    radius, tenth = np.hypot(u, v), np.pi / 5
    angle = np.abs((np.arctan2(v, u) + np.pi / 2 + tenth) % (2 * tenth) - tenth)
    notch_u, notch_v = 0.5 * np.cos(tenth), 0.5 * np.sin(tenth)
    normal = np.array([notch_v, 1 - notch_u]) / np.hypot(notch_v, 1 - notch_u)
    return normal[0] - radius * (np.cos(angle) * normal[0] + np.sin(angle) * normal[1])


# Textures: from pixel coordinates x, y about the object's centre, and its depth (distance to the edge, positive
# inside), to a blend of two colours in [0, 1]. About half of each, so that the mean colour does not tell the class
# either. Sizes are those of a 128-pixel image; `scale` adapts them.


def _rings(x: np.ndarray, y: np.ndarray, depth: np.ndarray, scale: float, rng: np.random.Generator):
    return _bars(np.hypot(x, y), 9 * scale)


def _checker(x: np.ndarray, y: np.ndarray, depth: np.ndarray, scale: float, rng: np.random.Generator):
    cell = 7 * scale
    return _step(cell / 2 * np.sin(np.pi * x / cell) * np.sin(np.pi * y / cell))


def _dots(x: np.ndarray, y: np.ndarray, depth: np.ndarray, scale: float, rng: np.random.Generator):
    spacing = 8 * scale
    row = np.round(y / (0.87 * spacing))
    x = x / spacing + row / 2
    return _step(0.372 * spacing - np.hypot((x - np.round(x)) * spacing, y - row * 0.87 * spacing))


def _stripes(x: np.ndarray, y: np.ndarray, depth: np.ndarray, scale: float, rng: np.random.Generator):
    return _bars(x, 10 * scale)


def _zigzag(x: np.ndarray, y: np.ndarray, depth: np.ndarray, scale: float, rng: np.random.Generator):
    tooth = 15 * scale
    return _bars(y + 1.1 * np.abs(x / tooth % 1 - 0.5) * tooth, 10 * scale)


def _wedges(x: np.ndarray, y: np.ndarray, depth: np.ndarray, scale: float, rng: np.random.Generator):
    radius = np.hypot(x, y)
    count = max(6, round(float(2 * np.pi * radius[depth > 0].mean() / (15 * scale))))
    turn = np.arctan2(y, x) / (2 * np.pi) * count
    return _step((np.abs(turn % 1 - 0.5) - 0.25) * 2 * np.pi * radius / count)


def _speckle(x: np.ndarray, y: np.ndarray, depth: np.ndarray, scale: float, rng: np.random.Generator):
    return _step(1.2 * _noise(rng, x.shape, 2.2 * scale))


def _rim(x: np.ndarray, y: np.ndarray, depth: np.ndarray, scale: float, rng: np.random.Generator):
    return _step(np.median(depth[depth > 0]) - depth)


# For each class its outline and its texture. An outline maps u, v (coordinates in units of the object's radius) to the
# distance to the edge in the same unit, positive inside.
KINDS = {
    'disc': (lambda u, v: 1 - np.hypot(u, v), _rings),
    'square': (lambda u, v: 0.85 - np.maximum(np.abs(u), np.abs(v)), _checker),
    'star': (_star, _dots),
    'triangle': (lambda u, v: 0.5 - np.maximum(v, np.abs(u) * np.sqrt(0.75) - v / 2), _stripes),
    'cross': (lambda u, v: np.minimum(1 - np.abs([u, v]).max(0), 0.38 - np.abs([u, v]).min(0)), _zigzag),
    'ring': (lambda u, v: 0.28 - np.abs(np.hypot(u, v) - 0.72), _wedges),
    'crescent': (lambda u, v: np.minimum(1 - np.hypot(u, v), np.hypot(u - 0.55, v) - 0.72), _speckle),
    'capsule': (lambda u, v: 0.5 - np.hypot(np.maximum(np.abs(u) - 0.5, 0), v), _rim)}
CLASSES = ('background', *KINDS)


def _object(rng: np.random.Generator, name: str, share: float, centre: np.ndarray, shape: tuple[int, int], scale: float):
    """Depth and texture (two fields) of an object that covers `share` of the image."""
    outline, texture = KINDS[name]
    radius = min(np.sqrt(share * shape[0] * shape[1] / _unit_area(name)), 0.52 * min(shape))
    angle, flip = np.deg2rad(rng.uniform(-25, 25)), rng.choice([-1, 1])
    x, y = _pixels(shape)
    x, y = x - centre[1], y - centre[0]
    x, y = flip * (np.cos(angle) * x + np.sin(angle) * y), np.cos(angle) * y - np.sin(angle) * x
    depth = radius * outline(x / radius, y / radius)
    return depth, texture(x, y, depth, scale * rng.uniform(0.88, 1.14), rng)


@functools.cache
def _unit_area(name: str):
    """Area of a shape of radius 1, counted on a grid of 0.02."""
    u, v = _pixels((121, 121))
    return float((KINDS[name][0](u / 50 - 1.2, v / 50 - 1.2) > 0).sum()) / 2500


def _places(rng: np.random.Generator, shape: tuple[int, int], count: int):
    """For each object its share of the image and its centre (row, column). Two objects take opposite corners."""
    H, W = shape
    if count == 1:
        return [(rng.uniform(0.11, 0.36), rng.uniform(0.42, 0.58, 2) * (H, W))]
    near, far = rng.uniform(0.24, 0.3, 2), 1 - rng.uniform(0.24, 0.3, 2)
    if rng.random() < 0.5:
        near[1], far[1] = far[1], near[1]
    return [(rng.uniform(0.08, 0.12), place * (H, W)) for place in rng.permutation([near, far])]


def _class_in_turn(seed: int, split_number: int, index: int):
    """Class of an image's first object: each run of 8 images has every class once, in an order of its own."""
    turn, position = divmod(index, len(KINDS))
    # 2 + split_number keeps this stream apart from those of the images.
    return 1 + int(np.random.default_rng([seed, 2 + split_number, turn]).permutation(len(KINDS))[position])


def _background(rng: np.random.Generator, shape: tuple[int, int], scale: float):
    """One of four slowly varying fields in [0, 1]: none repeats, and none is as fine as the objects' textures."""
    kind = rng.integers(4)
    if kind == 0:  # clouds
        return np.clip(0.5 + 0.3 * _noise(rng, shape, rng.uniform(14, 30) * scale), 0, 1)
    if kind == 1:  # gradient
        x, y = _pixels(shape)
        angle = rng.uniform(0, 2 * np.pi)
        field = np.cos(angle) * x / shape[1] + np.sin(angle) * y / shape[0]
        return (field - field.min()) / np.ptp(field)
    if kind == 2:  # blotches
        return _step(2.5 * _noise(rng, shape, rng.uniform(20, 36) * scale))
    # wood: its grain lies along the rows
    return np.clip(0.5 + 0.15 * (_noise(rng, shape, (5 * scale, 70 * scale)) + _noise(rng, shape, 40 * scale)), 0, 1)


def _varied(rng: np.random.Generator, *colours: tuple[int, int, int]):
    """The colours of the palette as one object or background has them."""
    return [np.array(colour) + rng.uniform(-VARIATION, VARIATION, 3) + 2 * rng.uniform(-VARIATION, VARIATION)
            for colour in colours]


def _blend(field: np.ndarray, colours: list[np.ndarray]):
    return colours[0] + field[..., None] * (colours[1] - colours[0])


def _saliency(rng: np.random.Generator, objects: list[np.ndarray], rough: bool):
    """What a saliency detector would return (bool H x W); `rough`: an unsupervised one. At least 3.5% of the image."""
    if rough and len(objects) == 2 and rng.random() < 0.35:
        objects = [objects[rng.integers(2)]]
    damage = 1.0
    while True:
        mask = np.logical_or.reduce([_detect(rng, inside, rough, damage) for inside in objects])
        if mask.mean() >= SMALLEST_MASK:
            return mask
        damage /= 2


def _detect(rng: np.random.Generator, inside: np.ndarray, rough: bool, damage: float):
    """Mask of one object: its edge smoothed, moved and wobbling, then perhaps a lost part, a hole, a false blob."""
    unit = np.sqrt(inside.sum())  # damage grows with the object
    wobble, shift, blobs, chance = (0.055, 0.04, 0.14, 0.6) if rough else (0.033, 0.035, 0.07, 0.4)
    within, beyond = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (inside, ~inside))
    depth = cv2.GaussianBlur(within - beyond, (0, 0), (0.06 if rough else 0.033) * unit * damage)
    depth += damage * unit * (wobble * _noise(rng, inside.shape, unit / 4) + shift * rng.uniform(-1, 1))
    edge, core = np.abs(depth) < 1.5, depth > 0.6 * depth.max()
    for where, sign in ((edge, -1), (core, -1), (edge, 1)):
        if rng.random() < chance and where.any():
            row, column = rng.choice(np.argwhere(where))
            x, y = _pixels(inside.shape)
            radius = unit * np.sqrt(damage * rng.uniform(0.3, 1) * blobs / np.pi)
            ragged = 1 + 0.15 * _noise(rng, inside.shape, unit / 5)
            blob = radius * ragged - np.hypot(x - column, y - row)
            depth = np.maximum(depth, blob) if sign > 0 else np.minimum(depth, -blob)
    return depth > 0


def _pixels(shape: tuple[int, ...]):
    """Column x and row y of every pixel, two fields."""
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    return x, y


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float | tuple[float, float]):
    """Smooth noise, a field of mean about 0 and deviation 1 whose bumps are about `cell` pixels (or rows, columns)."""
    cell_y, cell_x = np.broadcast_to(cell, 2)
    # Three spare cells leave room to start the field anywhere between two grid points.
    grid = rng.standard_normal((int(shape[0] / cell_y) + 3, int(shape[1] / cell_x) + 3)).astype(np.float32)
    top, left = rng.uniform(0.5, 1.5, 2)
    x, y = _pixels(shape)
    x, y = (x / cell_x + left).astype(np.float32), (y / cell_y + top).astype(np.float32)
    field = cv2.remap(grid, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return field / max(float(field.std()), 0.3)


def _step(distance: np.ndarray):
    """A field that goes from 0 to 1 where `distance` (pixels) crosses 0, over one pixel: an antialiased edge."""
    return np.clip(distance + 0.5, 0, 1)


def _bars(position: np.ndarray, period: float):
    """Bars of half the period each along `position` (pixels), antialiased."""
    return _step((np.abs(position / period % 1 - 0.5) - 0.25) * period)
