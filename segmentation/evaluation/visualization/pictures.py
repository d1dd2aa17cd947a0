"""Pictures for people: predictions as palette images, and image, ground truth and prediction side by side."""
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data.label_space import VOID, LabelSpace
from data.palette import save_labels
from utils.storage.atomic import atomic_file

OPACITY = 0.6  # of the class colours over the image
GAP = 4  # pixels between images
FONT, TEXT_SCALE, LINE = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 18  # of the legend; LINE: its height in pixels


def save_prediction(path: str | Path, prediction: np.ndarray, space: LabelSpace) -> None:
    """Write an H x W uint8 prediction as a palette PNG in the colours of the classes."""
    with atomic_file(path, flush=False) as file:
        save_labels(file, prediction, space.colours)


def overlay(image: np.ndarray, labels: np.ndarray, space: LabelSpace) -> np.ndarray:
    """Class colours over an image: H x W x 3 uint8 and H x W uint8 -> H x W x 3 uint8. Background and void stay clear."""
    colours = cv2.addWeighted(image, 1 - OPACITY, space.colours[labels], OPACITY, 0)
    clear = (labels == space.outside) | (labels == VOID)
    return np.where(clear[..., None], image, colours)


def side_by_side(image: np.ndarray, space: LabelSpace, *labels: np.ndarray) -> np.ndarray:
    """The image and its overlays, of one height, in one picture."""
    gap = np.full((image.shape[0], GAP, 3), 255, np.uint8)
    parts = [image]
    for one in labels:
        parts += [gap, overlay(image, one, space)]
    return np.concatenate(parts, axis=1)


def with_legend(picture: np.ndarray, captions: Sequence[str], space: LabelSpace, *labels: np.ndarray) -> np.ndarray:
    """A picture of `side_by_side`, below each part its caption, and below them colour and name of each class that occurs in
    `labels`, background aside.

    labels: H x W uint8 arrays. The picture's size but for the height, which grows by two lines or more.
    """
    width, present = picture.shape[1], np.unique(np.concatenate([np.unique(one) for one in labels]))
    lines, x, y = [], 4, LINE
    for index in present[np.isin(present, space.objects)]:
        length = 18 + cv2.getTextSize(space.names[index], FONT, TEXT_SCALE, 1)[0][0]
        if x > 4 and x + length > width:
            x, y = 4, y + LINE
        lines.append((index, x, y))
        x += length + 12
    strip = np.full((y + LINE, width, 3), 255, np.uint8)
    for number, caption in enumerate(captions):
        cv2.putText(strip, caption, (number * (labels[0].shape[1] + GAP) + 4, 13), FONT, TEXT_SCALE, (90, 90, 90), 1,
                    cv2.LINE_AA)
    for index, left, top in lines:
        cv2.rectangle(strip, (left, top + 4), (left + 11, top + 14), space.colours[index].tolist(), cv2.FILLED)
        cv2.putText(strip, space.names[index], (left + 16, top + 13), FONT, TEXT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([picture, strip])


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write an H x W x 3 uint8 RGB picture as a PNG."""
    with atomic_file(path, flush=False) as file:
        file.write(cv2.imencode('.png', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def jpeg(picture: np.ndarray, quality: int) -> bytes:
    """An H x W x 3 uint8 RGB picture as the bytes of a JPEG. quality: 0 to 100."""
    return cv2.imencode('.jpg', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def thumbnail(picture: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """The picture as large as fits into a cell of (height, width) with a margin of 3 pixels."""
    height, width = cell
    scale = min((height - 6) / picture.shape[0], (width - 6) / picture.shape[1])
    size = (max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, cell: tuple[int, int]) -> np.ndarray:
    """Pictures of any size in rows of `columns`, each shrunk into a cell of (height, width); a row is as high as its highest
    picture. RGB uint8."""
    columns = min(columns, len(pictures))
    rows = []
    for first in range(0, len(pictures), columns):
        thumbs = [thumbnail(picture, cell) for picture in pictures[first:first + columns]]
        row = np.full((max(len(thumb) for thumb in thumbs) + 6, columns * cell[1], 3), 255, np.uint8)
        for number, thumb in enumerate(thumbs):
            left = number * cell[1] + 3
            row[3:3 + thumb.shape[0], left:left + thumb.shape[1]] = thumb
        rows.append(row)
    return np.concatenate(rows)
