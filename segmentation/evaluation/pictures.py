"""What people look at: predictions as palette images, and image, ground truth and prediction side by side."""
import cv2
import numpy as np

from data.palette import VOC_COLOURS, save_labels
from utils.files import atomic_file

OPACITY = 0.6  # of the class colours over the image


def save_prediction(path, prediction):
    """Write an H x W uint8 prediction as a palette PNG in VOC colours."""
    with atomic_file(path, flush=False) as file:
        save_labels(file, prediction)


def overlay(image, labels):
    """Class colours over an image: H x W x 3 uint8 and H x W uint8 -> H x W x 3 uint8. Background and void stay clear."""
    colours = cv2.addWeighted(image, 1 - OPACITY, VOC_COLOURS[labels], OPACITY, 0)
    clear = (labels == 0) | (labels == 255)
    return np.where(clear[..., None], image, colours)


def side_by_side(image, *labels):
    """The image and its overlays, of one height, in one picture."""
    gap = np.full((image.shape[0], 4, 3), 255, np.uint8)
    parts = [image]
    for one in labels:
        parts += [gap, overlay(image, one)]
    return np.concatenate(parts, axis=1)


def save_picture(path, picture):
    """Write an H x W x 3 uint8 RGB picture as a PNG."""
    with atomic_file(path, flush=False) as file:
        file.write(cv2.imencode('.png', cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def contact_sheet(pictures, columns, cell):
    """Pictures of any size in rows of `columns`, each shrunk into a cell of (height, width). RGB uint8."""
    height, width = cell
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        scale = min((height - 6) / picture.shape[0], (width - 6) / picture.shape[1])
        size = (max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale)))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = number // columns * height + 3, number % columns * width + 3
        sheet[top:top + size[1], left:left + size[0]] = small
    return sheet
