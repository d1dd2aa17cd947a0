"""Images, masks and labels from files. A file that can't be read whole is an error that names it."""
import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from utils.errors import UserError

JPEG_START, JPEG_END, PNG_START, PNG_END = b'\xff\xd8', b'\xff\xd9', b'\x89PNG', b'IEND\xaeB`\x82'
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # that undo an EXIF orientation


def read_image(path: str | Path) -> np.ndarray:
    """H x W x 3 uint8, RGB. An EXIF orientation is not applied, as labels and masks are drawn on the stored pixels.

    Raises `UserError` when the file is missing, truncated or no image.
    """
    data = _bytes(path)
    if _ends_whole(data):
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:  # more pixels than OpenCV reads
            image = None
        if image is not None:
            return image
    return np.asarray(_open(path, data).convert('RGB')).copy()  # also says what is wrong with the file


def read_photograph(path: str | Path) -> np.ndarray:
    """H x W x 3 uint8, RGB, as a viewer shows the file: turned by its EXIF orientation, transparent pixels over white, 16-bit
    values scaled to 8 bit. For images that have neither labels nor masks yet.

    Raises `UserError` when the file is missing, truncated or no image.
    """
    if is_plain_jpeg(path):
        return read_image(path)
    image = _open(path, _bytes(path))
    turn = TURNS.get(_orientation(image))
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith('I'):
        values = np.asarray(image)
        gray = (values.clip(0, 65535) // 257).astype(np.uint8)
        gray[values == image.info.get('transparency')] = 255
        image = Image.fromarray(gray)
    elif image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    elif image.mode == 'F':
        raise UserError(f'{path}: pixels are floating-point numbers of unknown range: save it with 8 or 16 bits')
    return np.asarray(image.convert('RGB')).copy()


def is_plain_jpeg(path: str | Path) -> bool:
    """Whether a file is a JPEG in RGB or gray that is stored upright, of which `read_image` gives what a viewer shows."""
    try:
        with Image.open(path) as image:
            return image.format == 'JPEG' and image.mode in ('RGB', 'L') and _orientation(image) == 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # whoever reads it will say so
        return False


def read_saliency(path: str | Path) -> np.ndarray:
    """H x W uint8 mask, 1 = object: where the file holds 255. With several channels the first counts.

    Raises `UserError` when the file is missing, truncated, no image or not 8-bit.
    """
    return (read_gray(path) == 255).view(np.uint8)


def read_labels(path: str | Path) -> np.ndarray:
    """H x W uint8, the stored values of a palette or grayscale PNG; `data.label_space` says what they mean.

    Raises `UserError` when the file is missing, truncated, or holds colours instead of indices.
    """
    image = _open(path, _bytes(path))
    if image.mode not in ('P', 'L', '1'):
        raise UserError(f'{path}: labels must be a palette or 8-bit grayscale image, not one of mode {image.mode}')
    return np.array(image, dtype=np.uint8)


def read_gray(path: str | Path) -> np.ndarray:
    """H x W uint8: the stored values of an 8-bit image, of its first channel if there are several.

    Raises `UserError` when the file is missing, truncated, no image or not 8-bit.
    """
    image = _open(path, _bytes(path))
    if image.mode == '1':
        image = image.convert('L')
    values = np.array(image)
    if values.dtype != np.uint8:
        raise UserError(f'{path}: masks must be 8-bit images (255 = object), not of mode {image.mode}')
    return values[..., 0] if values.ndim == 3 else values


def _orientation(image: Image.Image):
    """The EXIF orientation, 1 for upright, which is also what a damaged EXIF block says."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, struct.error):
        return 1


def _bytes(path: str | Path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f'{path} could not be read ({error.strerror})') from error


def _ends_whole(data: bytes):
    """Whether a JPEG or PNG holds its end marker: OpenCV fills what is missing of a truncated file with gray."""
    if data.startswith(JPEG_START):
        return JPEG_END in data[-64:]
    return data.startswith(PNG_START) and PNG_END in data[-64:]


def _open(path: str | Path, data: bytes):
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = 'of no known format' if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f'{path} is not a whole image ({reason}): replace it, or leave it out') from error
    return image
