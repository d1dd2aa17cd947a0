"""The data sets of an evaluation: one for training or lookup, and possibly another for the score."""
from collections.abc import Iterable
from pathlib import Path

from easydict import EasyDict

from data.dataset import SegmentationDataset, dataset_folder
from data.label_space import VOC, LabelSpace, label_space
from utils.cli.log import warn_once
from utils.errors import UserError, nearest_name


def evaluation_split(folder: str | Path, split: str, saliency: str | None = None, *, max_pixels: int,
                     instances: bool = False) -> SegmentationDataset:
    """A split with labels, or without where the data set has no folder of them: then what lacks its mask is left out too.

    PASCAL VOC has labels: there their folder is as necessary as all else. Raises `UserError` as `SegmentationDataset` does.
    """
    dataset = SegmentationDataset(folder, split, saliency, labels=True if Path(folder).name == VOC else None,
                                  max_pixels=max_pixels, instances=instances)
    if dataset.labels:
        return dataset
    dataset = SegmentationDataset(folder, split, saliency, drop_missing=True, max_pixels=max_pixels, instances=instances)
    warn_once('%s has no labels for the split %s: there will be no score%s', folder, split,
              f' ({dataset.dropped} ids without image or mask are left out)' if dataset.dropped else '')
    return dataset


def data_folders(p: EasyDict, file: str | Path) -> tuple[Path, Path, LabelSpace]:
    """Folders of `train_db_name` (without that key, `val_db_name`) and `val_db_name`, made first if needed, and the meaning of
    the labels of the latter. Raises `UserError` if the classes differ. file: the experiment's, for messages."""
    train = p.get('train_db_name', p.val_db_name)
    folder, val_folder = (dataset_folder(p.db_root, name) for name in (train, p.val_db_name))
    space = label_space(val_folder)
    if label_space(folder) != space:
        raise UserError(f'{file}: {train} and {p.val_db_name} do not have the same classes')
    return folder, val_folder, space


def known_labels(p: EasyDict) -> LabelSpace | None:
    """The meaning of the labels of the validation data, if it is known without making or downloading the data."""
    folder = Path(p.db_root) / p.val_db_name
    return label_space(folder) if folder.is_dir() or p.val_db_name == VOC else None


def ignored_classes(names: Iterable[str], space: LabelSpace, file: str | Path) -> list[int]:
    """Indices of the class names in `retrieval_kwargs.ignore_classes`. Raises `UserError`, with the nearest name, for an
    unknown class, and if only background would be left."""
    ignored = set()
    for name in names:
        if name not in space.names:
            near = nearest_name(name, space.names, cutoff=0)
            raise UserError(f"{file}: retrieval_kwargs.ignore_classes: no class is called '{name}' (nearest: '{near}')")
        ignored.add(space.names.index(name))
    if ignored.issuperset(space.objects):
        raise UserError(f'{file}: retrieval_kwargs.ignore_classes leaves no class to retrieve')
    return sorted(ignored)
