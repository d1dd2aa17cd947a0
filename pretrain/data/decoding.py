"""Images, masks and labels from files. A file that can't be read completely is an error that names it."""
import io
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from data.label_colours import VOC_TABLE, ColourTable
from utils.errors import UserError

MAX_PIXELS = 178_956_970  # of one image, by default: Pillow's own limit
OBJECT = 255  # in masks as stored
THRESHOLDED, LOSSY = 2, 4  # bits of `read_mask`, in every pixel: properties of the file
HALF = 128  # of JPEG's masks, from which on a pixel is an object's
JPEGS = ('JPEG', 'MPO')  # of Pillow's formats
JPEG_START, JPEG_END, PNG_START, PNG_END = b'\xff\xd8', b'\xff\xd9', b'\x89PNG', b'IEND\xaeB`\x82'
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # that undo an EXIF orientation


def read_image(path: str | Path, limit: int = MAX_PIXELS) -> np.ndarray:
    """H x W x 3 uint8, RGB. An EXIF orientation is not applied, as labels and masks are drawn on the stored pixels.

    Raises `UserError` if the file is missing, truncated, not an image, or of more than `limit` pixels.
    """
    data = _bytes(path)
    if _ends_whole(data) and _check_pixels(path, _stored_size(data), limit):
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:  # more pixels than OpenCV reads, or than there is memory for
            image = None
        if image is not None:
            return image
    return np.asarray(_open(path, data, limit).convert('RGB')).copy()  # also says what is wrong with the file


def read_photograph(path: str | Path, limit: int = MAX_PIXELS) -> np.ndarray:
    """H x W x 3 uint8, RGB, as a viewer shows the file: turned by its EXIF orientation, transparent pixels over white, 16-bit
    values scaled to 8 bit. For images that have neither labels nor masks yet.

    Raises `UserError` if the file is missing, truncated, not an image, or of more than `limit` pixels.
    """
    if is_plain_jpeg(path):
        return read_image(path, limit)
    image = open_whole(path, limit)
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
        with _opened(path) as image:
            return image.format == 'JPEG' and image.mode in ('RGB', 'L') and _orientation(image) == 1
    except (OSError, SyntaxError, ValueError):  # whoever reads it will say so
        return False


def exif_turn(path: str | Path) -> int:
    """The EXIF orientation of an image file, 1 to 8; 1, upright, where there is none, or no image."""
    try:
        with _opened(path) as image:
            return _orientation(image)
    except (OSError, SyntaxError, ValueError):
        return 1


def read_saliency(path: str | Path) -> np.ndarray:
    """H x W uint8 mask, 1 = object, as `read_mask` has it, without its marks."""
    return read_mask(path) & 1


def read_mask(path: str | Path, object_values: Sequence[int] | None = None, limit: int = MAX_PIXELS) -> np.ndarray:
    """H x W uint8 mask, whose lowest bit is 1 for object: where the file holds 255, or one of `object_values` if these are
    given (none of them: anything but 0). With several channels the first counts. 16-bit files must hold two values at most: 0,
    and 255 or 65535.

    JPEG changes values: there object is what is at least half of 255, and all pixels have the bit THRESHOLDED. Other files with
    values that are neither 0 nor object have the bit LOSSY in all pixels.
    Raises `UserError` if the file is missing, truncated, not an image, not 8-bit, or of more than `limit` pixels.
    """
    image = open_whole(path, limit)
    values = _channel(path, image, object_values is not None)
    if image.format in JPEGS:
        return (values >= HALF).view(np.uint8) | np.uint8(THRESHOLDED)
    mask = _inside(values, object_values).view(np.uint8)
    if cv2.countNonZero(np.ascontiguousarray(values)) != cv2.countNonZero(np.ascontiguousarray(mask)):
        mask |= np.uint8(LOSSY)
    return mask


def read_labels(path: str | Path, colours: ColourTable = VOC_TABLE, limit: int = MAX_PIXELS) -> np.ndarray:
    """H x W uint8, the stored values of a palette or grayscale PNG of 1 to 16 bits; `data.label_space` says what they mean.
    65535 of 16 bits is read as 255. An RGB file has the values that `colours` gives to its colours.

    Raises `UserError` if the file is missing, truncated, lossy, of more than `limit` pixels, or holds unknown colours, values
    above 255, or is ambiguous.
    """
    data = _bytes(path)
    image = _open(path, data, limit)
    if image.format in JPEGS:
        raise UserError(f'{path}: labels must be stored without loss, and JPEG changes values: save them as PNG')
    if image.mode == 'P':
        return colours.of_palette(path, np.array(image), bytes(image.getpalette('RGB') or ()))
    if image.mode in ('L', '1'):
        values = np.array(image, dtype=np.uint8)
        bits, gray = (data[24], data[25] == 0) if data.startswith(PNG_START) else (8, False)
        return values // np.uint8(255 // (2 ** bits - 1)) if gray and bits in (2, 4) else values  # Pillow scales them
    if image.mode.startswith('I'):
        return _eight_bit(path, np.array(image))
    channels = np.array(image)
    if image.mode in ('RGBA', 'LA') and (channels[..., -1] != 255).any():
        raise UserError(f'{path}: labels must not have transparent pixels, since these have no class (mode {image.mode})')
    if image.mode == 'LA':
        return np.ascontiguousarray(channels[..., 0])
    if image.mode not in ('RGB', 'RGBA'):
        raise UserError(f'{path}: labels must be a palette or grayscale image, or in colours, not of mode {image.mode}')
    return colours.of_pixels(path, channels[..., :3], image.mode)


def read_gray(path: str | Path) -> np.ndarray:
    """H x W: the stored values of an 8- or 16-bit image of any size, of its first channel if there are several.

    Raises `UserError` if the file is missing, truncated, or not such an image.
    """
    return _channel(path, open_whole(path, sys.maxsize), True)


def open_whole(path: str | Path, limit: int = MAX_PIXELS) -> Image.Image:
    """An image file with its pixels, as Pillow has it. Raises `UserError` if the file is missing, truncated, not an image, or
    of more than `limit` pixels."""
    return _open(path, _bytes(path), limit)


def palette_index(path: str | Path) -> tuple[int, str] | None:
    """Of a palette image: its largest index in use and that one's colour, #rrggbb; otherwise None."""
    image = open_whole(path, sys.maxsize)
    if image.mode != 'P':
        return None
    largest = int(np.max(np.array(image)))
    return largest, '#' + bytes(image.getpalette('RGB') or ())[3 * largest:][:3].hex()


def _inside(values: np.ndarray, object_values: Sequence[int] | None):
    if object_values is None:
        return values == OBJECT
    return np.isin(values, object_values) if object_values else values != 0


def _channel(path: str | Path, image: Image.Image, wide: bool):
    """The first channel of a mask, H x W uint8. wide: whether 16 bits may hold any values, which stay so."""
    values = np.array(image.convert('L') if image.mode == '1' else image)
    if image.mode.startswith('I'):
        held = np.unique(values)
        if len(held) <= 2 and set(held.tolist()) in ({0, 255}, {0, 65535}, {255}, {65535}, {0}):
            return np.where(values, np.uint8(OBJECT), np.uint8(0))
        if wide:
            return values
        raise UserError(f'{path}: masks must be 8-bit images (255 = object), not of mode {image.mode} with values up to '
                        f'{held[-1]}: if these are numbers of objects, set `object: nonzero` in dataset.yml')
    if values.dtype != np.uint8:
        raise UserError(f'{path}: masks must be 8-bit images (255 = object), not of mode {image.mode}')
    return values[..., 0] if values.ndim == 3 else values


def _eight_bit(path: str | Path, values: np.ndarray):
    void = values == 65535
    wrong = values[((values > 255) & ~void) | (values < 0)]
    if wrong.size:
        raise UserError(f'{path}: label {wrong.min()} in its labels: 16 bits may hold classes up to 254, and 255 or '
                        '65535 for void; numbers of objects are not classes')
    return np.where(void, 255, values).astype(np.uint8)


def _orientation(image: Image.Image):
    """The EXIF orientation, 1 for upright, which is also what a damaged EXIF block says."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, struct.error):
        return 1


def _bytes(path: str | Path):
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no file has such a name
        raise UserError(f'{path} could not be read ({getattr(error, "strerror", None) or error})') from error


def _ends_whole(data: bytes):
    """Whether a JPEG or PNG holds its end marker: OpenCV fills what is missing of a truncated file with gray."""
    if data.startswith(JPEG_START):
        return JPEG_END in data[-64:]
    return data.startswith(PNG_START) and PNG_END in data[-64:]


def _stored_size(data: bytes):
    """(width, height) as the head of a JPEG or PNG says; None where it doesn't."""
    if data.startswith(PNG_START):
        return struct.unpack_from('>II', data, 16) if len(data) >= 24 else None
    place = 2
    while place + 9 < len(data) and data[place] == 0xff:
        kind = data[place + 1]
        if 0xc0 <= kind <= 0xcf and kind not in (0xc4, 0xc8, 0xcc):  # a start of frame
            height, width = struct.unpack_from('>HH', data, place + 5)
            return width, height
        alone = kind == 0xff or kind == 0x01 or 0xd0 <= kind <= 0xd8
        place += (1 if kind == 0xff else 2) if alone else 2 + int.from_bytes(data[place + 2:place + 4], 'big')
    return None


def _opened(source: str | Path | io.BytesIO):
    """Image.open without Pillow's own limit, which others may rely on: `_check_pixels` asks, and names the key."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(source)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_pixels(path: str | Path, size: tuple[int, int] | None, limit: int):
    """Raise a `UserError` for a size above the limit. Returns whether the size is known."""
    if size and size[0] * size[1] > limit:
        raise UserError(f'{path} is {size[0]} x {size[1]}, more pixels than max_image_pixels ({limit}): shrink it, or, if '
                        'memory suffices, raise max_image_pixels in the experiment file')
    return size is not None


def _open(path: str | Path, data: bytes, limit: int):
    if not data:
        raise UserError(f'{path} is not a complete image (it is empty, 0 bytes): replace or remove it')
    try:
        image = _opened(io.BytesIO(data))
        _check_pixels(path, image.size, limit)
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        reason = 'of unknown format' if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f'{path} is not a complete image ({reason}): replace or remove it') from error
    except MemoryError as error:
        raise UserError(f'{path} is {image.width} x {image.height}, too large for the memory: shrink it') from error
    return image
