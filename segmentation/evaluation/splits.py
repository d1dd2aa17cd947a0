"""The data sets of an evaluation, which may train or look up on one and be scored on another."""
from pathlib import Path

from data.dataset import VOC, SegmentationDataset, class_names, dataset_folder
from utils.cli.log import warn_once
from utils.config import nearest_name
from utils.errors import UserError


def evaluation_split(folder, split, saliency=None):
    """A split with labels, or without where the data set has no folder of them: then what lacks its mask is left out too.

    PASCAL VOC has labels: there their folder is as necessary as all else. Raises `UserError` as `SegmentationDataset` does.
    """
    dataset = SegmentationDataset(folder, split, saliency, labels=True if Path(folder).name == VOC else None)
    if dataset.labels:
        return dataset
    dataset = SegmentationDataset(folder, split, saliency, drop_missing=True)
    warn_once('%s has no labels for the split %s: nothing is scored%s', folder, split,
              f' ({dataset.dropped} ids without image or mask are left out)' if dataset.dropped else '')
    return dataset


def data_folders(p, file):
    """Folders of `train_db_name` (without that key, `val_db_name`) and `val_db_name`, made first if need be, and their
    classes' names. Raises `UserError` when the classes differ. file: the experiment's, for messages."""
    train = p.get('train_db_name', p.val_db_name)
    folder, val_folder = (dataset_folder(p.db_root, name) for name in (train, p.val_db_name))
    classes = class_names(folder)
    if class_names(val_folder) != classes:
        raise UserError(f'{file}: {train} and {p.val_db_name} do not have the same classes')
    return folder, val_folder, classes


def known_classes(p):
    """The classes of the validation data where they are known without making or fetching it, else None."""
    folder = Path(p.db_root) / p.val_db_name
    return class_names(folder) if folder.is_dir() or p.val_db_name == VOC else None


def ignored_classes(names, classes, file):
    """Indices of the class names in `retrieval_kwargs.ignore_classes`. Raises `UserError`, with the nearest name, for one that
    is none of `classes`, and when none would be left but background."""
    for name in names:
        if name not in classes:
            near = nearest_name(name, classes, cutoff=0)
            raise UserError(f"{file}: retrieval_kwargs.ignore_classes: no class is called '{name}' (nearest: '{near}')")
    ignored = sorted({classes.index(name) for name in names})
    if len({0, *ignored}) == len(classes):
        raise UserError(f'{file}: retrieval_kwargs.ignore_classes leaves no class to retrieve')
    return ignored
