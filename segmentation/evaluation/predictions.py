"""The pictures of an evaluation: predictions, visualizations and a contact sheet."""
import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.contents import no_label
from data.dataset import SegmentationDataset
from data.files import size_text
from data.image_folder import ImageFolder
from data.label_space import LabelSpace
from evaluation.metrics import confusion_matrix
from evaluation.results import RESULTS
from evaluation.visualization.pictures import contact_sheet, save_picture, save_prediction, side_by_side, thumbnail, with_legend
from utils.cli.progress import progress
from utils.errors import UserError
from utils.parallel import distributed, ranks
from utils.parallel.threads import in_threads
from utils.storage.atomic import make_folder

PREDICTIONS, PICTURES, SHEET = 'predictions', 'visualization', 'contact_sheet.png'
SHEET_PICTURES, COLUMNS, CELL = 24, 3, (150, 420)  # of the contact sheet; CELL: height and width


def write_predictions(output: str | Path, dataset: SegmentationDataset | ImageFolder, predictions: Iterable[np.ndarray],
                      space: LabelSpace, pictures: int | None = None, score: bool = True,
                      part: range | None = None) -> np.ndarray | None:
    """Write predictions/<id>.png of every image, visualization/<id>.png of the first `pictures` (None: all), and the first of
    these on contact_sheet.png, as `fresh_output` does it; count the predictions against the labels.

    output: folder. dataset: a `SegmentationDataset` or an `ImageFolder`; without labels pictures lack ground truth, and
    nothing is counted. predictions: iterable of H x W uint8 classes, one an image in their order, at the image's own size.
    space: of these classes. score: whether to count. part: the range of the images that `predictions` are of, where all
    processes call this, each for its part; None: this process alone writes all.
    Returns the C x C int64 confusion matrix of all images, or None.
    Raises `UserError` as `confusion_matrix` does, where all labels are void, and when something can't be read or written.
    """
    pictures = len(dataset) if pictures is None else pictures
    counted = score and dataset.labels
    confusion, thumbnails = np.zeros((len(space), len(space)), np.int64) if counted else None, []

    def write(item: tuple[int, np.ndarray]):
        (index, prediction), counts = item, None
        name, drawn = dataset.ids[index], index < pictures
        save_prediction(folder / PREDICTIONS / f'{name}.png', prediction, space)
        if not (drawn or score):
            return None, None
        sample = dataset[index]
        labels = sample.get('labels')
        if labels is not None and score:
            counts = confusion_matrix(prediction, labels, len(space), name)
        if not drawn:
            return counts, None
        check_unchanged(sample, prediction)
        shown, captions = [prediction], [name, 'prediction']
        if labels is not None:
            shown, captions = [labels, prediction], [name, 'ground truth', 'prediction']
        picture = with_legend(side_by_side(sample['image'], space, *shown), captions, space, *shown)
        return counts, save_thumbnail(folder, name, picture, index)

    with fresh_output(output, together=part is not None) as folder:
        for counts, thumb in in_threads(write, enumerate(predictions, 0 if part is None else part.start)):
            if counts is not None:
                confusion += counts
            thumbnails.append(thumb)
        if part is not None:
            if counted:
                distributed.all_reduce(torch.from_numpy(confusion))
            thumbnails = sum(distributed.gather_objects(thumbnails) or [], [])
        if confusion is not None and not confusion.any():
            assert isinstance(dataset, SegmentationDataset)
            raise UserError(no_label(dataset))
        save_contact_sheet(folder, thumbnails)
    return confusion


def check_unchanged(sample: Mapping[str, Any], mask: np.ndarray) -> None:
    """Raise a `UserError` if an item's image no longer has the size of `mask`, H x W, which was made from it."""
    if sample['image'].shape[:2] != mask.shape:
        now, before = size_text(sample['image']), size_text(mask)
        raise UserError(f'the image {sample["id"]} is {now} now and was {before} before: it was replaced during the run; '
                        'start again when the files no longer change')


def write_pictures(output: str | Path, ids: Sequence[str], draw: Callable[[int], np.ndarray], pictures: int | None) -> None:
    """Write visualization/<id>.png of the first `pictures` (None: all) of `ids` and contact_sheet.png, as `fresh_output` does.

    draw: gives picture i, H x W x 3 uint8 RGB. Raises `UserError` if something can't be read or written.
    """
    indices = range(len(ids) if pictures is None else min(pictures, len(ids)))
    with fresh_output(output, (PICTURES, SHEET)) as folder:
        thumbnails = in_threads(lambda index: save_thumbnail(folder, ids[index], draw(index), index), indices)
        save_contact_sheet(folder, list(progress(thumbnails, 'Pictures', len(indices))))


def save_thumbnail(folder: Path, name: str, picture: np.ndarray, index: int) -> np.ndarray | None:
    """Write picture `index` to visualization/<name>.png. Returns it as small as the contact sheet has it, if it has it."""
    save_picture(folder / PICTURES / f'{name}.png', picture)
    return thumbnail(picture, CELL) if index < SHEET_PICTURES else None


def save_contact_sheet(folder: Path, thumbnails: Iterable[np.ndarray | None]) -> None:
    """Write contact_sheet.png of the thumbnails that are not None, if there is any."""
    shown = [thumb for thumb in thumbnails if thumb is not None]
    if shown:
        save_picture(folder / SHEET, contact_sheet(shown, COLUMNS, CELL))


@contextlib.contextmanager
def fresh_output(output: str | Path, made: Sequence[str] = (PREDICTIONS, PICTURES, SHEET),
                 together: bool = False) -> Iterator[Path]:
    """A folder to fill. When the block ends well, its folders and files `made` replace those in `output`, and its results.json.
    When it doesn't, the earlier ones stay. together: whether all processes fill it.

    Raises `UserError` if something can't be written or replaced.
    """
    check_output(output)
    folder = Path(output) / '.evaluation.tmp'  # one at a time: each evaluation has its own output
    if together and not ranks.is_main():
        distributed.barrier()
        yield folder
        distributed.barrier()
        return
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    try:
        if together:
            distributed.barrier()
        yield folder
        if together:
            distributed.barrier()
        for name in (RESULTS, *made):  # the score first: it is that of what goes next
            path = Path(output) / name
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                if (folder / name).exists():
                    os.rename(folder / name, path)
            except OSError as error:
                raise UserError(f'{path} could not be replaced ({error.strerror}): move it away and start again') from error
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        if ranks.world_size() == 1:  # otherwise others may be writing into it: the next evaluation removes it
            shutil.rmtree(folder, ignore_errors=True)
        raise


def check_output(output: str | Path) -> None:
    """Raise a `UserError` if the files of an evaluation could not be replaced, to find out before long work."""
    for name in (PREDICTIONS, PICTURES):
        path = Path(output) / name
        if path.exists() and not path.is_dir():
            raise UserError(f'the folder {path} could not be made, since a file has this name: move it away')
