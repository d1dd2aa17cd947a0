"""Photographs of a disc for the tests, and generate_masks.py run on them."""
import hashlib
import json
import os

import numpy as np
from PIL import Image

import generate_masks

BASE = ['--device', 'cpu', '--num_workers', '0']


def disc(height=48, width=64, seed=0):
    """A checkered orange disc on a noisy gradient: H x W x 3 uint8, and H x W bool, where the disc is."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([60 + 60 * x / width, 90 + 40 * y / height, np.full((height, width), 120)], axis=2)
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.3 * min(height, width)) ** 2
    image[inside] = (190, 120, 30) + ((x // 3 + y // 3) % 2)[inside, None] * (40, 20, 10)
    image += np.random.default_rng(seed).normal(0, 3, image.shape)
    return image.clip(0, 255).astype(np.uint8), inside


def photograph(path, height=48, width=64, seed=0, **options):
    """Save a disc where `path` says, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(disc(height, width, seed)[0]).save(path, **options)
    return path


def make_masks(images, out, *flags):
    """Run the script in this process. Returns what it wrote into results_<model>.json."""
    generate_masks.main(['--images', str(images), '--out', str(out), *BASE, *map(str, flags)])
    newest = max(out.glob('results_*.json'), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


def contents(folder, *kinds):
    """Hash of each file below `folder`, or below its sub-folders `kinds`; and the folders themselves."""
    found = {}
    for root, _, files in (entry for kind in kinds or [''] for entry in os.walk(folder / kind)):
        found[root] = None
        for name in files:
            path = os.path.join(root, name)
            with open(path, 'rb') as file:
                found[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
        found[os.path.relpath(root, folder)] = found.pop(root)
    return found


def times(folder):
    """Time of the last change of each mask and image of a data set, in nanoseconds."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob('*')
            if path.suffix in ('.png', '.jpg')}


def ids_of(folder, split):
    path = folder / 'sets' / f'{split}.txt'
    return path.read_text().splitlines() if path.exists() else []


def mask_ids(folder, name='robust_background'):
    masks = folder / f'saliency_{name}'
    return {path.relative_to(masks).with_suffix('').as_posix() for path in masks.rglob('*.png')}
