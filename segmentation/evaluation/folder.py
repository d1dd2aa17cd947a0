"""A folder of images without labels."""
from pathlib import Path

from data.reading import read_image
from utils.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


class ImageFolder:
    """The images directly in a folder, by name. Item i is a dict: `id`, the file's name without suffix, and `image`,
    H x W x 3 uint8 RGB.

    Raises `UserError` when the folder is missing, holds no image, or two that differ in their suffix only.
    """

    def __init__(self, folder):
        folder = Path(folder or 'an empty name').resolve()
        if not folder.is_dir():
            raise UserError(f'{folder} is no folder of images')
        self.folder = folder
        try:
            self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        except OSError as error:
            raise UserError(f'{folder} could not be read ({error.strerror})') from error
        if not self.paths:
            raise UserError(f'{folder}: no images in this folder ({", ".join(SUFFIXES)})')
        by_id = {}
        for path in self.paths:
            if path.stem in by_id:
                raise UserError(f'{by_id[path.stem]} and {path.name} would have predictions of one name: rename one of them')
            by_id[path.stem] = path
        self.ids = list(by_id)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {'id': self.ids[index], 'image': read_image(self.paths[index])}
