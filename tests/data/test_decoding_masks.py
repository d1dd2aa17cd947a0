"""Gray PNGs with chunks that say more than the pixels, and damaged ones."""
import numpy as np
from helpers.checks import refusal
from helpers.files import save
from PIL import Image, ImageCms

from data.decoding import read_saliency


def test_masks_with_other_chunks_keep_their_values(tmp_path, capfd):
    """An orientation is not applied, as to images; colour profiles and gamma change nothing, nor are they talked about."""
    mask = np.random.default_rng(0).integers(0, 2, (6, 9)).astype(np.uint8) * 255
    exif = Image.Exif()
    exif[0x0112] = 3
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for options in ({'exif': exif}, {'icc_profile': profile}, {'transparency': 255}, {'dpi': (72, 72)}):
        assert np.array_equal(read_saliency(save(tmp_path / 'mask.png', mask, **options)), mask // 255), options
    assert capfd.readouterr().err == ''


def test_a_damaged_byte_in_a_mask(tmp_path, capfd):
    """In the head or the pixels it is an error, of one line, to which the libraries add none."""
    mask = np.random.default_rng(0).integers(0, 2, (40, 50)).astype(np.uint8) * 255
    whole = save(tmp_path / 'whole.png', mask).read_bytes()
    assert np.array_equal(read_saliency(tmp_path / 'whole.png'), mask // 255)
    for place in (18, 30, 60, len(whole) // 2, len(whole) - 20):
        data = bytearray(whole)
        data[place] ^= 0xff
        path = tmp_path / 'damaged.png'
        path.write_bytes(data)
        assert str(path) in refusal(read_saliency, path)
    assert capfd.readouterr().err == ''
