"""The two views of an image and its mask (paper section 3). Everything stays uint8.

Random draws and pixel operations are separate: `sample_view` draws a view's parameters, `render` applies them, so that tests
can give the same parameters to torchvision.
"""
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

SCALE, LOG_RATIO, ATTEMPTS = (0.2, 1.0), (math.log(3 / 4), math.log(4 / 3)), 10
JITTER, HUE = 0.4, 0.1
P_JITTER, P_GRAYSCALE, P_FLIP = 0.8, 0.2, 0.5

# The key of transformation_kwargs that switches it off -> its field of a `View`
AUGMENTATIONS = {'random_resized_crop': 'crop', 'color_jitter': 'jitter', 'random_grayscale': 'grayscale',
                 'random_horizontal_flip': 'flip'}


@dataclass(frozen=True)
class View:
    """Parameters of one view. crop: top, left, height, width in pixels. jitter: (name, factor) in the order in which
    they are applied, empty for none; hue's factor is the shift as a share of the circle."""
    crop: tuple[int, int, int, int]
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    flip: bool = False


def sample_view(rng: np.random.Generator, height: int, width: int) -> View:
    """Draw a view of an image of the given size from a numpy Generator."""
    crop = sample_crop(rng, height, width)
    jitter: tuple[tuple[str, float], ...] = ()
    if rng.random() < P_JITTER:
        factors = [(name, rng.uniform(1 - JITTER, 1 + JITTER)) for name in ('brightness', 'contrast', 'saturation')]
        factors.append(('hue', rng.uniform(-HUE, HUE)))
        jitter = tuple(factors[i] for i in rng.permutation(4))
    return View(crop, jitter, grayscale=rng.random() < P_GRAYSCALE, flip=rng.random() < P_FLIP)


def without(view: View, names: Collection[str], height: int, width: int) -> View:
    """`view`, of an image of the given size, without some of the AUGMENTATIONS; the others keep what was drawn for them.

    Without crops it is the central one: the whole image if its aspect ratio is between 3:4 and 4:3."""
    if not names:
        return view
    none = View(central_crop(height, width))
    changes: dict[str, Any] = {AUGMENTATIONS[name]: getattr(none, AUGMENTATIONS[name]) for name in names}
    return replace(view, **changes)


def sample_crop(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """torchvision's RandomResizedCrop rule: up to ten attempts at area and ratio, then the largest central crop."""
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(*LOG_RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return central_crop(height, width)


def central_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """The largest central crop of a permitted ratio: top, left, height, width."""
    ratio = min(max(width / height, math.exp(LOG_RATIO[0])), math.exp(LOG_RATIO[1]))
    w, h = (width, round(width / ratio)) if width / height < ratio else (round(height * ratio), height)
    w, h = min(w, width), min(h, height)
    return (height - h) // 2, (width - w) // 2, h, w


def render(image: np.ndarray, mask: np.ndarray, view: View, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The view's pixels: image (H x W x 3 uint8), mask (H x W uint8) -> size x size x 3 and size x size uint8."""
    top, left, height, width = view.crop
    window = np.s_[top:top + height, left:left + width]
    image = resize_image(image[window], size)
    mask = resize_mask(mask[window], size)
    for name, factor in view.jitter:
        image = _ADJUST[name](image, factor)
    if view.grayscale:
        image = cv2.cvtColor(gray(image), cv2.COLOR_GRAY2RGB)
    if view.flip:
        image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
    return image, mask


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """PIL's bilinear (antialiased) to size x size, within one level; OpenCV's filters differ.

    The batch of one is added before `permute`, so that its strides, too, say channels_last: otherwise PyTorch would give back
    planes, which costs 12% of the time of a pair of views.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0).permute(0, 3, 1, 2)
    tensor = F.interpolate(tensor, (size, size), mode='bilinear', antialias=True)
    return tensor.permute(0, 2, 3, 1)[0].numpy()


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """PIL's nearest, which takes the source pixel floor((x + 0.5) * src / dst)."""
    rows, columns = (_nearest(length, size) for length in mask.shape)
    return mask[rows][:, columns]


def _nearest(source: int, target: int):
    """PIL's source indices. It adds the step up instead of multiplying, which decides where a position is whole."""
    steps = np.full(target, source / target)
    steps[0] /= 2
    return np.cumsum(steps).astype(np.intp)


def gray(image: np.ndarray) -> np.ndarray:
    """PIL's conversion to gray: H x W x 3 uint8 -> H x W uint8."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    values = gray(image)
    mean = int(cv2.sumElems(values)[0] / values.size + 0.5)  # cv2.mean rounds halves otherwise
    table = np.clip(np.arange(256) * factor + mean * (1 - factor), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, cv2.cvtColor(gray(image), cv2.COLOR_GRAY2RGB), 1 - factor, 0)


def adjust_hue(image: np.ndarray, factor: float) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    # One less than PIL: its hues are cut off, not rounded, and OpenCV's circle has 256 steps there but 255 back.
    shift = np.uint8((int(factor * 255) - 1) % 256)
    hsv[..., 0] += shift  # wraps around, like hues
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


_ADJUST = {'brightness': adjust_brightness, 'contrast': adjust_contrast, 'saturation': adjust_saturation,
           'hue': adjust_hue}
