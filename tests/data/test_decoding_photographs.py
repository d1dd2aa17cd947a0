"""Reading photographs of any format as a viewer shows them. All values are worked out by hand."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from data.decoding import is_plain_jpeg, read_image, read_photograph
from utils.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
RED = np.full((16, 24, 3), (254, 0, 0), np.uint8)
UPRIGHT = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
           5: lambda x: x.transpose(1, 0, 2), 6: lambda x: np.rot90(x, -1), 7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
           8: np.rot90}
FORMATS = {'jpg': 'JPEG', 'png': 'PNG', 'bmp': 'BMP', 'webp': 'WEBP', 'tif': 'TIFF'}
LOSSLESS = {'png': {}, 'tif': {}, 'webp': {'lossless': True}}


def error_of(path, read=read_photograph):
    with pytest.raises(UserError) as error:
        read(path)
    line = error.value.line()
    assert line.startswith(str(path)) and '\n' not in line
    return line.removeprefix(str(path))


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def write_png(path, size, depth, colours, rows, *chunks):
    """A PNG from its bytes. colours: 0 gray, 2 RGB, 3 palette, 4 gray and alpha. rows: bytes of each."""
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', *size, depth, colours, 0, 0, 0))
                     + b''.join(chunk(*pair) for pair in chunks)
                     + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in rows))) + chunk(b'IEND', b''))
    return path


def values(path):
    image = read_photograph(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.flags.writeable
    assert not is_plain_jpeg(path)
    return image.tolist()


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg(tmp_path, mode):
    path = tmp_path / 'image.jpg'
    Image.fromarray(RED).convert(mode).save(path)
    expected = RED if mode != 'L' else np.full_like(RED, 76)  # 0.299 * 254
    assert np.abs(read_photograph(path).astype(int) - expected).max() <= 3
    assert is_plain_jpeg(path) == (mode != 'CMYK')


@pytest.mark.parametrize(('kind', 'suffix'), [('PNG', 'jpg'), ('BMP', 'bmp'), ('WEBP', 'webp'), ('TIFF', 'tif')])
def test_lossless_formats(tmp_path, kind, suffix):
    path = tmp_path / f'image.{suffix}'
    Image.fromarray(NOISE).save(path, format=kind, **({'lossless': True} if kind == 'WEBP' else {}))
    assert values(path) == NOISE.tolist()


@pytest.mark.parametrize('suffix', LOSSLESS)
def test_transparent_pixels_are_over_white(tmp_path, suffix):
    path = tmp_path / f'image.{suffix}'
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    Image.fromarray(pixels).save(path, **LOSSLESS[suffix], **({'exact': True} if suffix == 'webp' else {}))
    # A fifth of the colour and four of white: 244, 224, 204
    assert values(path) == [[[200, 100, 0], [255] * 3, [244, 224, 204]]]


def test_palettes_and_gray_with_transparency(tmp_path):
    path = tmp_path / 'image.png'
    palette = bytes([10, 20, 30, 200, 100, 0, 7, 8, 9])
    write_png(path, (3, 1), 8, 3, [b'\0\1\2'], (b'PLTE', palette), (b'tRNS', b'\xff\x33\x00'))
    assert values(path) == [[[10, 20, 30], [244, 224, 204], [255] * 3]]
    write_png(path, (3, 1), 8, 3, [b'\0\1\2'], (b'PLTE', palette))
    assert values(path) == [[[10, 20, 30], [200, 100, 0], [7, 8, 9]]]
    write_png(path, (3, 1), 8, 4, [b'\x64\xff\x64\x33\x64\x00'])  # 100 at alpha 255, 51 and 0
    assert values(path) == [[[100] * 3, [224] * 3, [255] * 3]]
    write_png(path, (3, 1), 8, 0, [b'\0\7\x08'], (b'tRNS', b'\0\7'))  # gray 7 means transparent
    assert values(path) == [[[0] * 3, [255] * 3, [8] * 3]]
    write_png(path, (2, 1), 8, 2, [b'\1\2\3\1\2\4'], (b'tRNS', b'\0\1\0\2\0\3'))
    assert values(path) == [[[255] * 3, [1, 2, 4]]]


def test_depths(tmp_path):
    path = tmp_path / 'image.png'
    write_png(path, (4, 1), 16, 0, [struct.pack('>4H', 0, 257 * 100, 257 * 100 + 256, 65535)])
    assert values(path) == [[[0] * 3, [100] * 3, [100] * 3, [255] * 3]]
    write_png(path, (3, 1), 16, 2, [struct.pack('>9H', *[257 * value for value in (0, 50, 100, 150, 200, 250, 255, 1, 2)])])
    assert values(path) == [[[0, 50, 100], [150, 200, 250], [255, 1, 2]]]
    write_png(path, (3, 1), 16, 0, [struct.pack('>3H', 0x1234, 257 * 100, 65535)], (b'tRNS', b'\x12\x34'))
    assert values(path) == [[[255] * 3, [100] * 3, [255] * 3]]
    write_png(path, (2, 1), 16, 4, [struct.pack('>4H', 257 * 100, 257 * 51, 257 * 100, 65535)])
    assert values(path) == [[[224] * 3, [100] * 3]]
    write_png(path, (8, 2), 1, 0, [b'\xa5', b'\x0f'])
    assert [[pixel[0] // 255 for pixel in row] for row in values(path)] == [[1, 0, 1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1, 1, 1]]
    Image.fromarray(np.array([[0, 257 * 100, 10 ** 6]], np.int32)).save(tmp_path / 'image.tif')
    assert values(tmp_path / 'image.tif') == [[[0] * 3, [100] * 3, [255] * 3]]
    Image.fromarray(np.array([[0, 0.5]], np.float32)).save(tmp_path / 'float.tif')
    assert error_of(tmp_path / 'float.tif').startswith(': pixels are floating-point numbers of unknown range')


@pytest.mark.parametrize('orientation', UPRIGHT)
def test_orientations(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for suffix, options in LOSSLESS.items():
        path = tmp_path / f'image.{suffix}'
        Image.fromarray(NOISE).save(path, exif=exif, **options)
        assert values(path) == UPRIGHT[orientation](NOISE).tolist()
    path = tmp_path / 'image.jpg'
    Image.fromarray(NOISE).save(path, exif=exif, quality=95)
    stored = np.asarray(Image.open(path))
    difference = np.abs(read_photograph(path).astype(int) - UPRIGHT[orientation](stored))
    assert difference.max() <= 4  # of two JPEG decoders
    assert is_plain_jpeg(path) == (orientation == 1)


def test_palette_with_transparency_is_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = write_png(tmp_path / 'image.png', (2, 1), 8, 3, [b'\0\1'], (b'PLTE', bytes(6)), (b'tRNS', b'\0\xff'),
                     (b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0')))
    assert values(path) == [[[255] * 3], [[0] * 3]]


@pytest.mark.filterwarnings('ignore:Corrupt EXIF data')
@pytest.mark.parametrize('exif', [b'neither', b'MM', b'II*\0', b'II*\0\xff\xff\xff\x7f', b'II*\0\x08\0\0\0\xff\xff\1\2\3'])
def test_damaged_exif_says_nothing(tmp_path, exif):
    path = write_png(tmp_path / 'image.png', (2, 1), 8, 0, [b'\x0a\x14'], (b'eXIf', exif))
    assert values(path) == [[[10] * 3, [20] * 3]]
    Image.fromarray(RED).save(tmp_path / 'image.jpg', exif=b'Exif\0\0' + exif)
    assert is_plain_jpeg(tmp_path / 'image.jpg')
    assert np.abs(read_photograph(tmp_path / 'image.jpg').astype(int) - RED).max() <= 3


@pytest.mark.filterwarnings('ignore:Truncated File Read')
def test_orientation_beside_damaged_tags(tmp_path):
    """The orientation is 6; the next entry lies outside the file."""
    entries = struct.pack('<HHLHH', 0x0112, 3, 1, 6, 0) + struct.pack('<HHLL', 0x010e, 12, 1, 2 ** 31)
    path = tmp_path / 'image.png'
    write_png(path, (2, 1), 8, 0, [b'\x0a\x14'], (b'eXIf', b'II*\0\x08\0\0\0\x02\0' + entries + bytes(4)))
    assert values(path) == [[[10] * 3], [[20] * 3]]


@pytest.mark.filterwarnings('ignore:Truncated File Read', 'ignore:Corrupt EXIF data')
@pytest.mark.parametrize(('suffix', 'kind'), FORMATS.items())
def test_truncated(tmp_path, suffix, kind):
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, format=kind)
    path = tmp_path / f'image.{suffix}'
    for share in (0, 0.01, 0.1, 0.5, 0.9, 0.97):
        path.write_bytes(file.getvalue()[:int(share * len(file.getvalue()))])
        for read in (read_photograph, read_image):
            assert error_of(path, read).startswith(' is not a complete image')


def test_no_image(tmp_path):
    path = tmp_path / 'image.jpg'
    assert error_of(path).startswith(' could not be read (No such file') and not is_plain_jpeg(path)
    assert error_of(tmp_path).startswith(' could not be read (Is a directory') and not is_plain_jpeg(tmp_path)
    path.write_bytes(b'This is no image.\n')
    assert error_of(path).startswith(' is not a complete image (of unknown format)') and not is_plain_jpeg(path)


@pytest.mark.parametrize('read', [read_photograph, read_image])
def test_headers_of_images_too_large_to_read(tmp_path, read):
    path = write_png(tmp_path / 'image.png', (60000, 60000), 8, 2, [])
    assert error_of(path, read).startswith(' is 60000 x 60000, more pixels than max_image_pixels (178956970): shrink it')
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, format='JPEG')
    head, sizes, rest = file.getvalue().partition(b'\xff\xc0\x00\x11\x08')  # start of frame, then height and width
    path = tmp_path / 'image.jpg'
    path.write_bytes(head + sizes + struct.pack('>HH', 65000, 65000) + rest[4:])
    assert error_of(path, read).startswith(' is 65000 x 65000, more pixels than max_image_pixels')
