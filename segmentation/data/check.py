"""Read every file that an experiment would read, and list what is wrong with them.

    python -m data.check --config_env configs/env.yml --config_exp configs/demo.yml [--script SCRIPT] [--json PATH]

run from inside a script tree, prints a line for each problem, naming the file and what to do, in the order of the splits and
their ids. Lines that begin with `note:` tell what stops no run. The last line counts them. Exit code 2 with problems, 0 with
none. Nothing is fetched, drawn or changed.
"""
import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from easydict import EasyDict

from data.dataset import SegmentationDataset, size_text
from data.decoding import read_gray, read_image, read_labels
from data.label_space import VOC, LabelSpace, label_space
from utils.cli.command import EXIT_USER_ERROR, command
from utils.cli.flags import make_env_parser
from utils.cli.progress import progress
from utils.config import create_config
from utils.config.keys import CLASSIFIERS, EVAL, KMEANS, PRETRAIN, RETRIEVAL, SCRIPTS
from utils.errors import UserError
from utils.storage.atomic import atomic_file

Part = tuple[str, str, str | None, bool | None]  # data set, split, saliency, labels

OBJECT = 255
NOTES = ('id in both splits', 'empty mask', 'full mask', 'label of another size')

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
    """What is wrong with the files of each id of a split. An id that is listed twice is read once.

    dataset: a `SegmentationDataset`, whose folders say what is read. split: its name. space: what the labels mean; None: not
    known, and they may hold anything. training: ids of the training split, of which this one should hold none.
    Item i is a dict: `findings`, a list of `Finding`. Broken files raise nothing.
    """

    def __init__(self, dataset: SegmentationDataset, split: str, space: LabelSpace | None = None,
                 training: Iterable[str] = ()):
        self.dataset, self.split, self.space, self.training = dataset, split, space, frozenset(training)
        self.listed = Counter(dataset.ids)
        self.ids = list(self.listed)  # in the order of the split

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index: int):
        name = self.ids[index]
        return {'findings': [Finding(self.split, name, kind, str(file), f'{file}{words}', kind in NOTES)
                             for kind, file, words in self._findings(name)]}

    def _findings(self, name: str):
        """Yield kind, file, and what the line says after the file's name."""
        data = self.dataset
        if self.listed[name] > 1:
            yield 'repeated id', data.split_file, f': {name} is listed {self.listed[name]} times: keep one of the lines'
        if name in self.training:
            yield 'id in both splits', data.split_file, f': {name} is in the training split, too'
        image = yield from self._read('image', read_image, data.images / f'{name}.jpg', name)
        for what, reader, folder, look in (('mask', read_gray, data.masks, _mask_findings),
                                           ('label', read_labels, data.labels, self._label_findings)):
            if folder:
                path = folder / f'{name}.png'
                values = yield from self._read(what, reader, path, name)
                for kind, words in () if values is None else look(values, image):
                    yield kind, path, words

    def _read(self, what: str, reader: Callable[[Path], np.ndarray], path: Path, name: str):
        """The array that `reader` gives, or None after a finding."""
        if not os.path.exists(path):
            yield f'missing {what}', path, f' is missing: put it there, or take {name} out of {self.dataset.split_file}'
            return None
        try:
            return reader(path)
        except UserError as error:
            yield f'unusable {what}', path, str(error).removeprefix(str(path)).replace('\n', ' ')
            return None

    def _label_findings(self, labels: np.ndarray, image: np.ndarray | None):
        """labels: H x W uint8 as stored. image: H x W x 3, or None if it can't be read."""
        wrong = self.space.wrong_values(labels) if self.space else []
        if self.space and wrong:
            shown = ', '.join(map(str, wrong[:5])) + (', ...' if len(wrong) > 5 else '')
            yield 'label that is no class', (f': label {shown} in its labels, but there are only {len(self.space)} classes '
                                             f'({self.space.values_text()}): correct the file, or {self.space.source}')
        if image is not None and labels.shape != image.shape[:2]:
            yield ('label of another size',
                   f' is {size_text(labels)}, but its image is {size_text(image)}: it is resized when it is read')


def _mask_findings(mask: np.ndarray, image: np.ndarray | None):
    """mask: H x W uint8 as stored. image: H x W x 3, or None if it can't be read."""
    if image is not None and mask.shape != image.shape[:2]:
        yield ('mask of another size',
               f' is {size_text(mask)}, but its image is {size_text(image)}: make the mask again at the size of the image')
    cover, other = np.mean(mask == OBJECT), np.mean((mask != 0) & (mask != OBJECT))
    if other:
        yield 'lossy mask', (f': {100 * other:.3g}% of the pixels are neither 0 nor {OBJECT}, and only {OBJECT} counts as '
                             f'object: store masks as PNG with the values 0 and {OBJECT}')
    if cover in (0, 1):
        yield f'{"full" if cover else "empty"} mask', (
            f': {"every" if cover else "no"} pixel is {OBJECT} (object), so none of its views passes in pre-training')


def splits_read(p: EasyDict) -> list[Part]:
    """What the script of a configuration reads: a list of (data set, split, saliency, labels), the training split first. The
    last two are as in `SegmentationDataset`."""
    script = p.script
    if script == PRETRAIN:
        return [(p.train_db_name, 'trainaug', p.train_db_kwargs.saliency, False)]
    val, split = p.val_db_name, p.val_db_kwargs.get('split', 'val')
    labels = True if val == VOC else None  # of kmeans.py and eval.py, which do without
    if script == RETRIEVAL:
        return [(p.get('train_db_name', val), p.retrieval_kwargs.train_split, p.retrieval_kwargs.saliency, True),
                (val, split, p.val_db_kwargs.saliency, True)]
    if script in CLASSIFIERS:
        both: list[Part] = [(p.train_db_name, p.train_db_kwargs.split, None, True), (val, 'val', None, True)]
        # The file is eval.py's, too, which may be told another split.
        return both if (val, split) in [part[:2] for part in both] else [*both, (val, split, None, labels)]
    return [(val, split, p.val_db_kwargs.saliency if script == KMEANS else None, labels)]


def check(p: EasyDict, read: list[str]) -> Iterator[Finding]:
    """Yield each `Finding` about the data of a configuration. Descriptions of what was read are appended to the list `read`.

    Raises `UserError` for a data set that is not there.
    """
    parts = splits_read(p)
    spaces: dict[str, LabelSpace | None] = {}
    training: list[str] = []
    # Here, since PyTorch takes seconds that --help and a mistake in the configuration should not cost.
    import torch

    from data.loaders import make_loader

    for name, *_ in parts:
        if not (Path(p.db_root) / name).is_dir():  # dataset_folder() would fetch or draw it
            raise UserError(f'{Path(p.db_root) / name}: there is no such data set, or not yet: correct db_root in env.yml, or '
                            f'make it (the scripts fetch {VOC} and draw Shapes when they first need them)')
    for part in parts:
        name, split, saliency, labels = part
        folder = Path(p.db_root) / name
        try:
            dataset = SegmentationDataset(folder, split, saliency, labels)
        except UserError as error:
            yield Finding(split, None, 'unusable split', str(folder), f'{error.line()}; the split {split} was not read', False)
            continue
        if (dataset.labels or p.script == EVAL) and name not in spaces:
            try:
                spaces[name] = label_space(folder)
            except UserError as error:
                spaces[name] = None
                yield Finding(None, None, 'unusable classes.txt', str(folder / 'classes.txt'), error.line(), False)
        checks = FileChecks(dataset, split, spaces.get(name), training if name == parts[0][0] else ())
        for batch in progress(make_loader(checks, p.num_workers, torch.device('cpu')), f'Reading {split}'):
            yield from batch['findings'][0]
        read.append(f'{len(checks)} ids of {split}')
        training = checks.ids if part is parts[0] else training


@command
def main(argv: list[str] | None = None) -> None:
    parser = make_env_parser(__doc__)
    parser.add_argument('--config_exp', required=True, help='YAML file of the experiment')
    parser.add_argument('--script', choices=SCRIPTS, help="what reads the experiment (default: what its keys are for)")
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
