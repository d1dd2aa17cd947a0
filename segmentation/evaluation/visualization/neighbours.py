"""Pictures of retrieval: a query segment and its nearest neighbours."""
from collections.abc import Iterable

import cv2
import numpy as np

from data.label_space import VOID, LabelSpace
from evaluation.visualization.pictures import FONT, TEXT_SCALE, overlay, thumbnail

SIDE, FRAME, CAPTION = 128, 5, 18  # pixels: of a tile's content, of its frame, of the text's height
QUERY, RIGHT, WRONG = (90, 90, 90), (30, 150, 60), (200, 40, 40)  # RGB of the frames

Segment = tuple[np.ndarray, np.ndarray, int]  # image, mask, class


def neighbour_picture(query: Segment, neighbours: Iterable[Segment], space: LabelSpace) -> np.ndarray:
    """One row: the query, framed gray, and its neighbours, framed green where their class is the query's and red, with a
    notch, where it isn't.

    query, neighbours: (image H x W x 3 uint8, mask 0 or 1 of any size, class; negative for none).
    """
    tiles = [_tile(*query, space, QUERY)]
    for image, mask, label in neighbours:
        right = label == query[2] and label >= 0
        tiles.append(_tile(image, mask, label, space, RIGHT if right else WRONG, notch=not right))
    gap = np.full((len(tiles[0]), 4, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)


def _tile(image: np.ndarray, mask: np.ndarray, label: int, space: LabelSpace, colour: tuple[int, int, int],
          notch: bool = False):
    """A segment in its image, shrunk into a framed square, with the name of its class below."""
    mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    known = label >= 0
    shown = overlay(image, np.where(mask, np.uint8(label if known else len(space)), VOID), space)
    small = thumbnail(shown, (SIDE + 6, SIDE + 6))
    tile = np.full((SIDE + 2 * FRAME + CAPTION, SIDE + 2 * FRAME, 3), 255, np.uint8)
    tile[:SIDE + 2 * FRAME] = colour
    tile[FRAME:FRAME + SIDE, FRAME:FRAME + SIDE] = 255
    top, left = (FRAME + (SIDE - length) // 2 for length in small.shape[:2])
    tile[top:top + small.shape[0], left:left + small.shape[1]] = small
    if notch:  # for people who can't tell the frames' colours apart
        cv2.fillPoly(tile, [np.array([(0, 0), (22, 0), (0, 22)])], colour)
    name = space.names[label] if known else 'no class'
    colour_of_class = space.colours[label if known else len(space)].tolist()
    cv2.rectangle(tile, (0, SIDE + 2 * FRAME + 4), (10, SIDE + 2 * FRAME + 14), colour_of_class, cv2.FILLED)
    cv2.putText(tile, name, (14, SIDE + 2 * FRAME + 13), FONT, TEXT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return tile
