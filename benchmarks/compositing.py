"""Objects on photographs: the files of the packages, and one composite with its labels and masks.

Axis legend: H W space. Masks are bool H x W; covers are float32 H x W, the share of a pixel that is object; images uint8, RGB.
"""
import fnmatch
import functools
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.instances import consecutive
from utils.errors import UserError

# Photographed stamps by class: patterns of paths below the stamps' folder, without suffix; `!` leaves out what is drawn, hardly
# visible or another thing. Folders called cartoon are never read.
CLASSES = {
    'ball': ['sports/*ball', 'sports/soccer'],
    'bird': ['animals/birds/*'],
    'bovine': ['animals/mammals/bovines/*'],
    'coin': ['symbols/money/*/coins/*', 'symbols/money/japanese/*'],
    'cat or dog': ['animals/mammals/cats/*', 'animals/mammals/dogs/*'],
    'dish': ['household/dishes/*', 'household/kettle'],
    'fish': ['animals/fish/*', '!*/lobster', '!*/seahorse', '!*/shrimp'],
    'flower': ['plants/flowers/*', '!*/plastic/*'],
    'fruit': ['food/fruit/*'],
    'gravestone': ['seasonal/halloween/grave-*'],
    'horse or deer': ['animals/mammals/equines/*', 'animals/mammals/deer/*'],
    'insect': ['animals/insects/*', '!*/Brown_slug', '!*/Woodlouse', '!*/bee'],
    'pachyderm': [f'animals/mammals/{name}' for name in ('elephant', 'hippopotamus', 'pig*', 'rhino*', 'wildboar')],
    'planet': ['space/planets/*', 'space/moon/*', '!*/0_sun'],
    'rodent': ['animals/mammals/rodents/*'],
    'sea mammal': [f'animals/mammals/aquatic/{name}' for name in ('dolphin', 'orca', 'sea_lion', 'whale')],
    'string instrument': ['hobbies/music/string/*'],
    'tool': ['household/tools/*', '!*/cementmixer', '!*/measuring_tape*'],
    'vegetable': ['food/vegetables/*'],
    'vehicle': [f'vehicles/{name}/*' for name in ('auto', 'construction', 'emergency', 'masstransit', 'race')]
    + ['vehicles/garbagetruck', '!*_mirror'],
}
# Wallpapers that are drawn or nearly empty; what is left are photographs, a few renderings and a painting.
DRAWN = {'adwaita', 'blobs', 'drool', 'symbolic', 'vnc', 'Arc-Colors-Transparent-Wallpaper', 'Float-into-MATE',
         'GreenTraditional', 'Gulp', 'MATE-Stripes-Dark', 'MATE-Stripes-Light', 'Silk', 'Spring', 'Stripes', 'Waves', 'Altai',
         'Canopee', 'Cascade', 'Cluster', 'Elarun', 'Flow', 'FlyingKonqui', 'Honeywave', 'IceCold', 'Kay', 'Kokkini',
         'MilkyWay', 'Opal', 'PastelHills', 'Patak', 'SafeLanding', 'Shell',
         *(f'Ubuntu-Mate-{name}-no-logo' for name in ('Cold', 'Dark', 'Radioactive', 'Warm'))}
VOID = 255
SMALLEST_STAMP, SMALLEST_BACKGROUND = 50, 400  # pixels of the longer and the shorter side
OPAQUE = 0.65  # the least share of a stamp's visible pixels that nothing shines through
SHARES = 0.07, 0.3  # of the picture, that a single object covers
ZOOM = 2  # the most that a stamp is enlarged
TRIES = 50  # composites without room for each object before an error
VISIBLE = 0.45  # the least share of an object that is neither void, hidden nor cut off by the border
APART = 0.95  # the least share of an object that others leave free where each has a place of its own


@dataclass(frozen=True)
class Sources:
    """stamps: files of each class. backgrounds: of each scene, of which there are one or two versions (for example day and
    night). skipped: numbers of files that were left out, by reason."""
    stamps: dict[str, list[Path]]
    backgrounds: dict[str, list[Path]]
    skipped: Counter


def find_sources(stamps: Path, backgrounds: list[Path]) -> Sources:
    """The usable files below these folders, in an order that depends only on names. Links are not followed."""
    skipped: Counter = Counter()
    found: dict[str, list[Path]] = {name: [] for name in CLASSES}
    for path in _files(stamps):
        relative = path.relative_to(stamps).with_suffix('').as_posix()
        name = None if 'cartoon' in path.parts else next((name for name in CLASSES if _matches(relative, CLASSES[name])), None)
        if name and path.suffix.lower() not in ('.txt', '.dat', '.ogg', '.wav'):
            reason = _stamp_fault(path)
            skipped[f'stamps {reason}'] += bool(reason)
            found[name] += [] if reason else [path]
    scenes: dict[str, dict[str, tuple[int, Path]]] = {}
    for path in (path for folder in backgrounds for path in _files(folder)):
        scene, version = _scene(path)
        if path.suffix.lower() in ('.json', '.desktop', '.xml', '.txt') or path.stem == 'screenshot' or scene in DRAWN:
            continue
        width, height, readable = _size(path)
        reason = '' if min(width, height) >= SMALLEST_BACKGROUND else 'too small' if readable else 'of another format'
        skipped[f'backgrounds {reason}'] += bool(reason)
        if not reason:
            versions = scenes.setdefault(scene, {})
            versions[version] = max(versions.get(version, (0, path)), (width * height, path))
    return Sources({name: paths for name, paths in found.items() if paths},
                   {scene: [path for _, (_, path) in sorted(versions.items())] for scene, versions in sorted(scenes.items())},
                   +skipped)


def _files(folder: Path):
    return sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names
                  if not (Path(root) / name).is_symlink())


def _matches(name: str, patterns: list[str]):
    return (any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns if pattern[0] != '!')
            and not any(fnmatch.fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern[0] == '!'))


def _scene(path: Path):
    """Name of the scene that a wallpaper shows, and of its version: wallpapers come in several sizes, and by day and night."""
    if 'contents' in path.parts:  # <scene>/contents/images/<width>x<height>.jpg, as Plasma has them
        return path.parts[path.parts.index('contents') - 1], path.parent.name
    scene, version = re.fullmatch(r'(.*?)(?:_\d+x\d+)?(-[ld])?', path.stem).groups()
    return scene, version or ''


def _size(path: Path):
    """Width, height, and whether Pillow can read it."""
    try:
        with Image.open(path) as image:
            return *image.size, True
    except OSError:
        return 0, 0, False


def _stamp_fault(path: Path):
    """Why a stamp can't be used, or an empty text."""
    try:
        image = Image.open(path)
        if 'A' not in image.getbands() and 'transparency' not in image.info:
            return 'without transparency'
        alpha = np.array(image.convert('RGBA'))[..., 3]
    except OSError:
        return 'of another format'
    if max(_cropped(alpha[..., None]).shape) < SMALLEST_STAMP:
        return 'too small'
    return '' if (alpha > 250).sum() >= OPAQUE * (alpha > 12).sum() else 'that things shine through'


def _cropped(stamp: np.ndarray):
    """The part with visible pixels. stamp: H x W x channels, of which the last is alpha."""
    rows, columns = (np.flatnonzero((stamp[..., -1] > 12).any(axis)) for axis in (1, 0))
    return stamp[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] if len(rows) else stamp[:0, :0]


@functools.lru_cache(maxsize=64)
def _stamp(path: Path):
    """H x W x 4 float32: colours that are multiplied by alpha, and alpha, in [0, 1]. And whether it may be mirrored."""
    with Image.open(path) as image:
        stamp = _cropped(np.array(image.convert('RGBA'))).astype(np.float32) / 255
    stamp[..., :3] *= stamp[..., 3:]
    about = path.with_suffix('.dat')
    return stamp, not (about.is_file() and 'nomirror' in about.read_text(errors='replace'))


@functools.lru_cache(maxsize=256)
def _background(path: Path, side: int):
    """H x W x 3 uint8, the shorter side of which is about `side`, or what the file has."""
    with Image.open(path) as image:
        scale = min(1, side / min(image.size))
        size = round(image.width * scale), round(image.height * scale)
        image.draft('RGB', size)  # a JPEG is decoded at a fraction of its size
        image = image.convert('RGB')
    return cv2.resize(np.array(image), size, interpolation=cv2.INTER_AREA)


def composite(rng: np.random.Generator, background: Path, stamps: list[Path], classes: list[int], shape: tuple[int, int],
              apart: bool = False):
    """One picture, its labels, and the mask of what is seen of each object.

    stamps: a file for each object, from back to front. classes: their labels. shape: (H, W). apart: whether each object has a
    separate place, one of equal parts of the picture's longer side, instead of anywhere in the picture.
    Returns H x W x 3 uint8; H x W uint8, 0 background, VOID where pixels are mixed and beside them; a list of masks.
    Raises `UserError` if there is no room for that many objects.
    """
    picture = _crop(rng, background, shape)
    largest = SHARES[1] * 2 / (len(stamps) + 1)
    for _ in range(TRIES):
        image, labels, masks, whole, hidden = picture.astype(np.float32), np.zeros(shape, np.uint8), [], [], 0
        order = rng.permutation(len(stamps)) if apart else [None] * len(stamps)
        for path, label, part in zip(stamps, classes, order, strict=True):
            place = None if part is None else (part / len(stamps), (part + 1) / len(stamps))
            share = rng.uniform(SHARES[0] * largest / SHARES[1], largest)
            colours, cover, area = _placed(rng, path, share, shape, masks, place)
            image = image * (1 - cover[..., None]) + 255 * colours
            inside = cover > 0.5
            hidden = max([hidden, *((mask & inside).sum() / mask.sum() for mask in masks)])
            labels[inside] = label
            labels[_band(cover)] = VOID
            masks = [mask & ~inside for mask in masks] + [inside]
            whole.append(area)
        seen = all((mask & (labels == label)).sum() >= VISIBLE * area
                   for mask, label, area in zip(masks, classes, whole, strict=True))
        if seen and not (apart and hidden > 1 - APART):
            image += rng.normal(0, 1.5, image.shape)  # the noise of one camera
            return np.clip(np.round(image), 0, 255).astype(np.uint8), labels, masks
    raise UserError(f'there is no room for {len(stamps)} objects of different classes in {shape[1]} x {shape[0]} pixels: '
                    'give fewer --objects or a larger --size')


def _band(cover: np.ndarray):
    """Pixels that are partly object, and those on both sides of the edge."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    edge = cv2.morphologyEx((cover > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, cross) > 0
    return edge | ((cover > 0.02) & (cover < 0.98))


def _crop(rng: np.random.Generator, path: Path, shape: tuple[int, int]):
    """A part of a photograph, H x W x 3 uint8, perhaps mirrored."""
    whole = _background(path, round(2.2 * min(shape)))
    fit = min(whole.shape[0] / shape[0], whole.shape[1] / shape[1]) * rng.uniform(0.45, 1)
    height, width = (max(1, int(side * fit)) for side in shape)
    top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
    part = cv2.resize(whole[top:top + height, left:left + width], shape[::-1],
                      interpolation=cv2.INTER_AREA if fit > 1 else cv2.INTER_LINEAR)
    return part[:, ::-1] if rng.random() < 0.5 else part


def _placed(rng: np.random.Generator, path: Path, share: float, shape: tuple[int, int], earlier: list[np.ndarray],
            place: tuple[float, float] | None):
    """A stamp turned, scaled, lit and put where it hides little: colours times cover, H x W x 3 in [0, 1]; cover; and the
    pixels that all of it would take. place: the part of the longer side that it is put into, from and to; None: all of it."""
    stamp, mirrored = _stamp(path)
    H, W = shape
    first, last = place or (0, 1)
    spans = ((0, W), (first * H, last * H)) if H > W else ((first * W, last * W), (0, H))
    room = [end - begin for begin, end in spans]
    scale = min(np.sqrt(share * H * W / stamp[..., 3].sum()), ZOOM,
                0.9 * min(room[1] / stamp.shape[0], room[0] / stamp.shape[1]))
    height, width = (max(2, round(side * scale)) for side in stamp.shape[:2])
    stamp = cv2.resize(stamp, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    stamp = np.clip(stamp[:, ::-1] if mirrored and rng.random() < 0.5 else stamp, 0, 1)
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-20, 20), 1)
    taken, placed, least = np.logical_or.reduce([np.zeros(shape, bool), *earlier]), None, np.inf
    for _ in range(8 if earlier else 1):
        centre = [begin + rng.uniform(min(0.42 * side, limit / 2), max(limit - 0.42 * side, limit / 2))
                  for side, limit, (begin, _) in zip((width, height), room, spans, strict=True)]
        move = turn.copy()
        move[:, 2] += centre[0] - (width - 1) / 2, centre[1] - (height - 1) / 2
        cover = cv2.warpAffine(stamp, move, (W, H), flags=cv2.INTER_LINEAR)
        if (hidden := (taken & (cover[..., 3] > 0.5)).sum()) < least:
            placed, least = cover, hidden
    colours = placed[..., :3] * rng.uniform(0.85, 1.15) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    return np.minimum(colours, placed[..., 3:]), placed[..., 3], (stamp[..., 3] > 0.5).sum()


def clean_mask(objects: list[np.ndarray]) -> np.ndarray:
    """The result of a good saliency network: all objects, their edges a little smoothed. Bool H x W."""
    inside = np.logical_or.reduce(objects).astype(np.float32)
    return cv2.GaussianBlur(inside, (0, 0), 0.004 * sum(inside.shape)) > 0.5


def noisy_mask(rng: np.random.Generator, objects: list[np.ndarray]) -> np.ndarray:
    """The result of an unsupervised method: wavering edges, lost parts, blobs beside objects, a missing object. Bool H x W, at
    least half of what it would have to find."""
    if len(objects) > 1 and rng.random() < 0.25:
        overlooked = rng.integers(len(objects))
        objects = [mask for index, mask in enumerate(objects) if index != overlooked]
    inside, damage = np.logical_or.reduce(objects), rng.uniform(0.3, 1.1)
    while True:
        mask = np.logical_or.reduce([_detected(rng, part, damage) for part in objects])
        if (mask & inside).sum() > 0.5 * inside.sum():
            return mask
        damage /= 2


def numbered(mask: np.ndarray, objects: list[np.ndarray]) -> np.ndarray:
    """The object of each pixel of a mask, the nearest one: H x W int32, 0 outside the mask, 1 to n, without a gap where the
    mask overlooks one. mask: bool H x W."""
    away = [cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5) for inside in objects]
    return consecutive(np.where(mask, np.argmin(away, 0) + 1, 0))


def _detected(rng: np.random.Generator, inside: np.ndarray, damage: float):
    unit = damage * np.sqrt(inside.sum())  # damage grows with the object
    within, beyond = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3) for part in (inside, ~inside))
    depth = within - beyond + unit * (0.03 * _noise(rng, inside.shape, unit / 4 + 2) + rng.uniform(-0.04, 0.04))
    edge = np.argwhere(np.abs(depth) < 2)
    y, x = np.mgrid[:inside.shape[0], :inside.shape[1]].astype(np.float32)
    for sign, chance in ((-1, 0.55), (1, 0.45)):
        if len(edge) and rng.random() < chance:
            row, column = edge[rng.integers(len(edge))]
            radius = unit * rng.uniform(0.1, 0.35) * (1 + 0.2 * _noise(rng, inside.shape, unit / 5 + 2))
            blob = radius - np.hypot(x - column, y - row)
            depth = np.maximum(depth, blob) if sign > 0 else np.minimum(depth, -blob)
    return depth > 0


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float):
    """Smooth noise of mean 0 and deviation about 1, with bumps of about `cell` pixels: float32 H x W."""
    coarse = rng.normal(size=[int(side / cell) + 4 for side in shape]).astype(np.float32)
    whole = cv2.resize(coarse, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    return 1.4 * whole[:shape[0], :shape[1]]
