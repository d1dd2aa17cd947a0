"""Label maps as COCO JSON (https://cocodataset.org/#format-data): polygons or RLE, by pycocotools.

Axis legend: H W space, P points.
"""
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from data.label_space import VOID
from evaluation.annotations.labelled_images import LabelledImages
from utils.cli.progress import progress
from utils.parallel.threads import in_threads

LEAST_IOU = 0.98  # of polygons with the mask, its holes filled; below it, the tolerance is halved
FINEST = 0.25  # pixels: with less, the polygons follow every pixel


def coco_document(images: LabelledImages, rle: bool, parts: bool, tolerance: float) -> tuple[dict[str, Any], int]:
    """The content of the JSON, and the number of objects whose holes the polygons fill (with RLE 0).

    rle: compressed RLE in place of polygons. parts: one annotation for each connected part of a class, where there are no
    instances. tolerance: maximum distance of polygons from the edge of a mask, in pixels.
    """
    def annotate(image_id: str):
        labels, instances = images.read(image_id)
        found = [(category, *encode(mask, rle, tolerance)) for category, mask in objects_of(labels, instances, parts)]
        return labels.shape, found

    entries, annotations, holes = [], list[dict[str, Any]](), 0
    work = zip(images.ids, in_threads(annotate, images.ids), strict=True)
    for number, (image_id, (size, found)) in enumerate(progress(work, 'Images', len(images)), 1):
        entries.append({'id': number, 'file_name': images.file_name(image_id), 'height': size[0], 'width': size[1]})
        for category, segmentation, area, box, filled in found:
            holes += filled
            annotations.append({'id': len(annotations) + 1, 'image_id': number, 'category_id': category,
                                'segmentation': segmentation, 'area': area, 'bbox': box, 'iscrowd': 0})
    categories = [{'id': number, 'name': name, 'supercategory': ''} for number, name in sorted(images.categories.names.items())]
    return {'info': {'description': images.what}, 'licenses': [], 'categories': categories, 'images': entries,
            'annotations': annotations}, holes


def objects_of(labels: np.ndarray, instances: np.ndarray | None, parts: bool) -> Iterator[tuple[int, np.ndarray]]:
    """The category and the mask, H x W uint8, of each object of an image.

    labels: H x W uint8, categories. instances: H x W int32, or None; an object has the most frequent category of its pixels,
    without background and void, and is left out if it has none. Without instances all pixels of a category are one object, or
    with `parts` those that are connected, over corners too.
    """
    if instances is not None:
        for number in range(1, int(instances.max(initial=0)) + 1):
            mask = instances == number
            counts = np.bincount(labels[mask], minlength=256)
            counts[[0, VOID]] = 0
            if counts.any():
                yield int(counts.argmax()), mask.astype(np.uint8)
        return
    for category in np.unique(labels[(labels > 0) & (labels != VOID)]).tolist():
        mask = (labels == category).astype(np.uint8)
        if not parts:
            yield category, mask
            continue
        count, numbers = cv2.connectedComponents(mask, connectivity=8)
        for number in range(1, count):
            yield category, (numbers == number).astype(np.uint8)


def encode(mask: np.ndarray, rle: bool, tolerance: float) -> tuple[Any, int, list[float], bool]:
    """The segmentation of a mask, its area and its box [x, y, width, height] in pixels, and whether holes are filled.

    mask: H x W uint8, 1 = object, not empty. The others: as in `coco_document`."""
    packed = coco_mask.encode(np.asfortranarray(mask))
    if rle:
        segmentation: Any = {'size': list(mask.shape), 'counts': packed['counts'].decode('ascii')}
        return segmentation, int(coco_mask.area(packed)), coco_mask.toBbox(packed).tolist(), False
    outlines = outlines_of(mask)
    exact = _rasterised(outlines, mask.shape)
    holes = int(coco_mask.area(exact)) > int(coco_mask.area(packed))
    simple, drawn = outlines, exact
    while tolerance >= FINEST:
        coarse = [_simplified(outline, tolerance) for outline in outlines]
        raster = _rasterised(coarse, mask.shape)
        if coco_mask.iou([raster], [exact], [0])[0, 0] >= LEAST_IOU:
            simple, drawn = coarse, raster
            break
        tolerance /= 2
    return _flat(simple), int(coco_mask.area(drawn)), coco_mask.toBbox(drawn).tolist(), holes


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """The outer edges of a mask's connected parts: P x 2 integers each, x and y, along the edges of the pixels, where pixel 0
    reaches from 0 to 1. Rasterised, they give the mask with its holes filled.

    OpenCV goes through the centres of pixels, which makes an object smaller by half a pixel all around. In the mask at twice
    its size each pixel has two centres to a side, which are rounded to its edges.
    """
    double = np.ascontiguousarray(mask.repeat(2, 0).repeat(2, 1))
    contours, _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = []
    for contour in contours:
        points = (contour[:, 0] + 1) // 2
        points = points[(points != np.roll(points, 1, 0)).any(1)]
        before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
        outlines.append(points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]])  # the corners alone
    return outlines


def _simplified(outline: np.ndarray, tolerance: float):
    simple = cv2.approxPolyDP(outline[:, None].astype(np.int32), tolerance, True)[:, 0]
    return simple if len(simple) >= 3 else outline


def _rasterised(outlines: list[np.ndarray], size: tuple[int, ...]):
    return coco_mask.merge(coco_mask.frPyObjects([list(map(float, points)) for points in _flat(outlines)], *size))


def _flat(outlines: list[np.ndarray]) -> list[list[int]]:
    return [outline.ravel().tolist() for outline in outlines]
