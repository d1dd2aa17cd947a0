"""Read every file that an experiment would read, and list all problems.

    python -m data.check --config_env configs/env.yml --config_exp configs/demo.yml [--script SCRIPT] [--json PATH]

run from inside a script tree, prints a line for each problem, naming the file and what to do, in the order of the splits and
their ids. Lines that begin with `note:` do not stop a run. The last line counts them. Exit code 2 with problems, 0 with none.
Nothing is downloaded, drawn or changed.
"""
import utils.cli.packages  # noqa: F401

# isort: split
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from easydict import EasyDict

from data import contents, files
from data.contents import Contents
from data.dataset import SegmentationDataset
from data.decoding import HALF, LOSSY, THRESHOLDED, exif_turn, read_gray
from data.files import IMAGE, LABEL, MASK, Fault, size_text
from data.label_space import VOC, VOID, LabelSpace, label_space
from utils.cli.command import EXIT_USER_ERROR, command
from utils.cli.flags import make_env_parser
from utils.cli.progress import progress
from utils.config import create_config
from utils.config.keys import CLASSIFIERS, EVAL, KMEANS, KNN, LINEAR, PRETRAIN, RETRIEVAL, SCRIPTS
from utils.errors import UserError
from utils.storage.atomic import atomic_file

Part = tuple[str, str, str | None, bool | None]  # data set, split, saliency, labels

NOTES = ('id in both splits', 'empty mask', 'full mask', 'label of another size', 'JPEG mask', 'turned image',
         'class that never occurs')

log = logging.getLogger('maskcontrast')


@dataclasses.dataclass(frozen=True)
class Finding:
    """A problem, or a note. split, id: None where it is not about one. kind: in the words of the summary. line: for people."""
    split: str | None
    id: str | None
    kind: str
    file: str
    line: str
    note: bool


class FileChecks:
    """Problems in the files of each id of a split. An id that is listed twice is read once.

    dataset: a `SegmentationDataset`, whose folders say what is read. space: the meaning of the labels; None: unknown, any
    values are accepted. training: ids of the training split, of which this one should hold none.
    Item i is a dict: `findings`, a list of `Finding`, and `contents`, a `Contents` of what it read. Broken files raise nothing.
    """

    def __init__(self, dataset: SegmentationDataset, space: LabelSpace | None, training: Iterable[str]):
        self.dataset, self.space, self.training = dataset, space, frozenset(training)
        self.listed = Counter(dataset.ids)
        self.ids = list(self.listed)  # in the order of the split

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int):
        name, seen = self.ids[index], Contents()
        return {'findings': [Finding(self.dataset.split, name, kind, str(file), f'{file}{words}', kind in NOTES)
                             for kind, file, words in self._findings(name, seen)], 'contents': seen}

    def _findings(self, name: str, seen: Contents):
        """Yield kind, file, and what the line says after the file's name. What is read is added to `seen`."""
        data, sample = self.dataset, {'id': name}
        if self.listed[name] > 1:
            yield 'repeated id', data.split_file, f': {name} is listed {self.listed[name]} times: keep one of the lines'
        if name in self.training:
            yield 'id in both splits', data.split_file, f': {name} is in the training split, too'
        image_path = data.path_of(IMAGE, name)
        image = yield from self._read(IMAGE, image_path, name)
        turn = 1 if image is None else exif_turn(image_path)
        if turn != 1:
            yield 'turned image', image_path, (
                f' has EXIF orientation {turn}, which viewers apply: it is read as stored, and masks and labels must match '
                'the stored pixels')
        for part, folder, look in ((MASK, data.masks, self._mask_findings), (LABEL, data.labels, self._label_findings)):
            if folder:
                path = data.path_of(part, name)
                values = yield from self._read(part, path, name)
                if values is not None:
                    yield from look(values, path, sample)
                    yield from self._size_findings(part, path, values, image_path, image)
        seen.add(Contents.of(sample))

    def _read(self, part: str, path: Path, name: str):
        """The array of a file, or None after a finding."""
        if not files.is_there(path):
            yield (f'missing {part}', path, f' is missing: put it there, or take {name} out of {self.dataset.split_file}'
                   f'{files.nearest(path, self.dataset.folder_of(part))}')
            return None
        try:
            return self.dataset.read(part, path)
        except Fault as error:
            yield error.kind, path, str(error).removeprefix(str(path)).replace('\n', ' ')
            return None

    def _size_findings(self, part: str, path: Path, values: np.ndarray, image_path: Path, image: np.ndarray | None):
        """image: H x W x 3, or None if it can't be read."""
        try:
            if image is not None:
                files.check_size(part, path, values, image_path, image)
                if values.shape != image.shape[:2]:
                    yield ('label of another size', path,
                           f' is {size_text(values)}, but its image is {size_text(image)}: it is resized when it is read')
        except Fault as error:
            yield error.kind, path, str(error).removeprefix(str(path))

    def _label_findings(self, labels: np.ndarray, path: Path, sample: dict[str, Any]):
        """labels: H x W uint8 as stored."""
        if self.space is None:
            return
        sample['labels'] = self.space.lookup[labels]
        wrong = self.space.wrong_values(labels)
        if wrong:
            shown = ', '.join(map(str, wrong[:5])) + (', ...' if len(wrong) > 5 else '')
            yield 'label that is not a class', path, (
                f': label {shown} in its labels, but there are only {len(self.space)} classes ({self.space.values_text()}): '
                f'correct the file, or {self.space.source}')

    def _mask_findings(self, mask: np.ndarray, path: Path, sample: dict[str, Any]):
        """mask: H x W uint8, of `read_mask`, or int32, of `read_instances`."""
        if self.dataset.instances:
            mask = (mask > 0).view(np.uint8)
        inside = sample['saliency'] = mask & 1
        cover, said = np.mean(inside), files.object_text(self.dataset.folder)
        if mask[0, 0] & THRESHOLDED:
            yield 'JPEG mask', path, f' is a JPEG, which is not lossless: values from {HALF} on count as object'
        if mask[0, 0] & LOSSY:
            other = np.mean((read_gray(path) != 0) & (inside == 0))
            yield 'lossy mask', path, (
                f': {100 * other:.3g}% of the pixels are neither 0 nor {said}, and only {said} counts as object: store masks '
                f'as PNG with the values 0 and {said}, or name the values of the object in dataset.yml')
        if cover in (0, 1):
            yield f'{"full" if cover else "empty"} mask', path, (
                f': {"every" if cover else "no"} pixel is {said} (object), so none of its views passes in pre-training')


def split_findings(checks: FileChecks, seen: Contents, p: EasyDict, needed: int | None) -> Iterator[Finding]:
    """Problems of a split as a whole. seen: of all its files. needed: images that it must have, None for any number."""
    data, split = checks.dataset, checks.dataset.split
    if seen.masks and seen.masks == seen.empty:
        yield Finding(split, None, 'no object in any mask', str(data.masks), contents.all_empty(data, seen.masks, False), False)
    if seen.labels is not None and checks.space is not None:
        if not seen.labels[:VOID].any():
            yield Finding(split, None, 'no labelled pixel', str(data.labels), contents.no_label(data), False)
        else:
            names = p.retrieval_kwargs.ignore_classes or () if p.script == RETRIEVAL else ()
            for name in contents.absent_classes(seen.labels, checks.space):
                if name not in names:
                    yield Finding(split, None, 'class that never occurs', str(data.labels),
                                  f'{data.labels}: no pixel in the labels of {split} has the class {name}', True)
            left = [index for index in checks.space.objects if checks.space.names[index] not in names]
            if p.script == RETRIEVAL and not seen.labels[left].any():
                yield Finding(split, None, 'no object to retrieve', str(data.labels),
                              f'{data.labels}: no pixel in the labels of {split} has a class that counts, so there is nothing '
                              'to retrieve', False)
    usable = len(seen.masks if data.masks and p.script == PRETRAIN else checks.ids)
    if needed and usable < needed:
        yield Finding(split, None, 'too few images', str(data.split_file),
                      f'{data.split_file} has only {usable} usable images, and {p.script} needs {needed}', False)


def images_needed(p: EasyDict, part: Part, space: LabelSpace | None) -> int | None:
    """How many images a split must have for the script of a configuration: a batch, or one for each cluster of objects."""
    if p.script == PRETRAIN:
        return p.train_batch_size
    if p.script == LINEAR and part[:2] == (p.train_db_name, p.train_db_kwargs.split):
        return p.train_db_kwargs.batch_size
    clusters = p.kmeans_kwargs.n_clusters or (space.n_clusters if space else None) if p.script == KMEANS else None
    return clusters and clusters - 1


def splits_read(p: EasyDict) -> list[Part]:
    """The data that the script of a configuration reads: a list of (data set, split, saliency, labels), the training split
    first. The last two are as in `SegmentationDataset`."""
    script = p.script
    if script == PRETRAIN:
        return [(p.train_db_name, 'trainaug', p.train_db_kwargs.saliency, False)]
    val, split = p.val_db_name, p.val_db_kwargs.get('split', 'val')
    labels = True if val == VOC else None  # of kmeans.py and eval.py, which do without
    if script == RETRIEVAL:
        return [(p.get('train_db_name', val), p.retrieval_kwargs.train_split, p.retrieval_kwargs.saliency, True),
                (val, split, p.val_db_kwargs.saliency, True)]
    if script == KNN:
        return [(p.get('train_db_name', val), p.knn_kwargs.train_split, None, True), (val, split, None, labels)]
    if script in CLASSIFIERS:
        both: list[Part] = [(p.train_db_name, p.train_db_kwargs.split, None, True), (val, 'val', None, True)]
        # The file is eval.py's, too, which may be told another split.
        return both if (val, split) in [part[:2] for part in both] else [*both, (val, split, None, labels)]
    return [(val, split, p.val_db_kwargs.saliency if script == KMEANS else None, labels)]


def _instances(p: EasyDict) -> bool:
    """Whether the script of a configuration reads single objects."""
    group = {PRETRAIN: p.get('train_db_kwargs'), KMEANS: p.get('val_db_kwargs')}.get(p.script) or {}
    return bool(group.get('instances'))


def check(p: EasyDict, read: list[str]) -> Iterator[Finding]:
    """Yield each `Finding` about the data of a configuration. Descriptions of what was read are appended to the list `read`.

    Raises `UserError` for a data set that does not exist.
    """
    parts = splits_read(p)
    spaces: dict[str, LabelSpace | None] = {}
    training: list[str] = []
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    import torch

    from data.loaders import make_loader

    for name, *_ in parts:
        if not (Path(p.db_root) / name).is_dir():  # dataset_folder() would fetch or draw it
            raise UserError(f'{Path(p.db_root) / name}: this data set does not exist yet: correct db_root in env.yml, or '
                            f'make it (the scripts download {VOC} and draw Shapes on first use)')
    for part in parts:
        name, split, saliency, labels = part
        folder = Path(p.db_root) / name
        try:
            dataset = SegmentationDataset(folder, split, saliency, labels, max_pixels=p.max_image_pixels,
                                          instances=bool(saliency) and _instances(p))
            dataset.check_description()
        except UserError as error:
            file = getattr(error, 'path', '') or folder
            yield Finding(split, None, 'unusable split', str(file), f'{error.line()}; the split {split} was not read', False)
            continue
        if (dataset.labels or p.script == EVAL) and name not in spaces:
            try:
                spaces[name] = label_space(folder)
            except UserError as error:
                spaces[name] = None
                yield Finding(None, None, 'unusable classes.txt', str(folder / 'classes.txt'), error.line(), False)
        checks, seen = FileChecks(dataset, spaces.get(name), training if name == parts[0][0] else ()), Contents()
        for batch in progress(make_loader(checks, p.num_workers, torch.device('cpu')), f'Reading {split}'):
            yield from batch['findings'][0]
            seen.add(batch['contents'][0])
        yield from split_findings(checks, seen, p, images_needed(p, part, spaces.get(name)))
        read.append(f'{len(checks)} ids of {split}')
        training = checks.ids if part is parts[0] else training
    known = [(name, space) for name, space in spaces.items() if space is not None]
    for name, space in known[1:]:
        if space != known[0][1]:
            yield Finding(None, None, 'different classes', str(Path(p.db_root) / name),
                          f'{Path(p.db_root) / name} does not have the same classes as {known[0][0]}', False)


@command
def main(argv: list[str] | None = None) -> None:
    parser = make_env_parser(__doc__)
    parser.add_argument('--config_exp', required=True, help='YAML file of the experiment')
    parser.add_argument('--script', choices=SCRIPTS, help="script that reads the experiment (default: determined by its keys)")
    parser.add_argument('--json', help='also write the list to this file')
    args = parser.parse_args(argv)
    p = create_config(args.config_env, args.config_exp, args.script)
    found: list[Finding] = []
    read: list[str] = []
    for finding in check(p, read):
        log.info('%s%s', 'note: ' if finding.note else '', finding.line)
        found.append(finding)
    if args.json is not None:
        with atomic_file(args.json, 'w') as file:
            json.dump([dataclasses.asdict(finding) for finding in found], file, indent=1)
    counts = []
    for title, note in (('Problems', False), ('notes', True)):
        kinds = Counter(finding.kind for finding in found if finding.note == note)
        listed = ', '.join(f'{kind}: {count}' for kind, count in kinds.items())
        counts.append(f'{title}: {kinds.total()}' + (f' ({listed})' if kinds else ''))
    log.info('%s; read for %s: %s', '; '.join(counts), p.script, ', '.join(read) or 'nothing')
    if not all(finding.note for finding in found):
        raise SystemExit(EXIT_USER_ERROR)


if __name__ == '__main__':
    main()
