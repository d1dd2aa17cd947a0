"""A folder of images of any kind, without labels."""
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.decoding import MAX_PIXELS, read_photograph
from utils.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


class ImageFolder:
    """The images in a folder and its sub-folders, by name, without hidden files and folders and without following links to
    folders.

    Item i is a dict: `id` and `image`, H x W x 3 uint8 RGB as `read_photograph` has it. An id is the path below the folder
    without suffix (`holiday/beach 1`), so that it can name files of results. Characters that can't be in a list of ids (line
    breaks, spaces at an end) become `_`; images that would share an id have their suffix in it (`a_jpg`, `a_png`).
    without: a folder to leave out. max_pixels: of one image. others: files that are not images, by suffix. labels: none, as a
    `SegmentationDataset` says. Raises `UserError` if the folder is missing or holds no image.
    """

    labels = None

    def __init__(self, folder: str | Path, without: str | Path | None = None, max_pixels: int = MAX_PIXELS):
        folder = os.path.expanduser(folder or 'an empty name')
        self.max_pixels = max_pixels
        self.folder = Path(os.path.realpath(folder))  # Path.resolve() fails on a loop of links
        if not self.folder.is_dir():
            raise UserError(f'{self.folder} is not a folder of images{"" if self.folder.exists() else ": it does not exist"}')
        self.others: Counter[str] = Counter()
        files = sorted(self._files(without))
        if not files:
            others = f', only files in {", ".join(sorted(map(str, filter(None, self.others))))}' if self.others else ''
            raise UserError(f'{self.folder}: no images in this folder ({", ".join(SUFFIXES)}){others}')
        by_id = dict(zip(_unique_ids(files), files, strict=True))
        self.ids = sorted(by_id)
        self.paths = [self.folder / by_id[name] for name in self.ids]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int):
        return {'id': self.ids[index], 'image': read_photograph(self.paths[index], self.max_pixels)}

    def _files(self, without: str | Path | None):
        """Paths of the images below the folder, as text."""
        def fail(error: OSError):
            raise UserError(f'{error.filename} could not be read ({error.strerror})') from error
        without = without and os.path.realpath(without)
        for root, folders, files in os.walk(self.folder, onerror=fail):
            folders[:] = [name for name in folders
                          if not name.startswith('.') and os.path.realpath(os.path.join(root, name)) != without]
            for name in files:
                suffix = os.path.splitext(name)[1].lower()
                if name.startswith('.'):
                    continue
                if suffix in SUFFIXES:
                    yield os.path.relpath(os.path.join(root, name), self.folder)
                else:
                    self.others[suffix] += 1


def segmented_folder(root: str | Path, name: str, images: str | Path) -> Path:
    """The folder below `root` for the results of the photographs in `images` that are assigned to the clusters called `name`:
    <root>/<name>_segment/<the folder's own name>."""
    return Path(root) / f'{name}_segment' / (Path(os.path.realpath(os.path.expanduser(images))).name or 'photographs')


def _unique_ids(files: Sequence[str]):
    """An id for each path."""
    ids = [_id(os.path.splitext(file)[0]) for file in files]
    shared = Counter(ids)
    taken = {name for name, count in shared.items() if count == 1}
    result = []
    for file, name in zip(files, ids, strict=True):
        if shared[name] > 1:
            name += '_' + os.path.splitext(file)[1][1:]
            number, plain = 2, name
            while name in taken:
                name, number = f'{plain}_{number}', number + 1
            taken.add(name)
        result.append(name)
    return result


def _id(stem: str):
    """A path without suffix, with nothing in it that a list of ids, or a folder beside files of results, can't have."""
    *folders, name = ''.join(char if char.isprintable() else '_' for char in stem).split(os.sep)
    # A folder `a.jpg` could not stand beside the image `a.jpg`.
    folders = [part.replace('.', '_') if part.lower().endswith(SUFFIXES) else part for part in folders]
    text = '/'.join([*folders, name])
    start, end = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    return '_' * start + text.strip() + '_' * end
