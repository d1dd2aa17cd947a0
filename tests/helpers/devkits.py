"""Small data with the folders, files and .mat structure of the official PASCAL VOC 2012 and SBD."""
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

import convert_voc
from data.decoding import read_labels
from data.synthetic_shapes import draw_shapes

VOC, SBD = 'VOCdevkit/VOC2012', 'benchmark_RELEASE/dataset'
TRAIN = ['train_0000', 'train_0001', 'train_0002']  # VOC's
VAL = ['val_0000', 'val_0001']
# SBD annotates images of all of VOC: of its train, of its val, and others.
SBD_TRAIN = ['train_0004', 'val_0001', 'train_0001', 'train_0003']
SBD_VAL = ['train_0005', 'val_0000']
TRAINAUG = ['train_0000', 'train_0001', 'train_0002', 'train_0003', 'train_0004', 'train_0005']
ONLY_IN_SBD = 'train_0005'  # its image
NOT_LISTED = 'val_0002'  # as most of VOC's images, which are for detection
SPLITS = {'trainaug': TRAINAUG, 'train': TRAIN, 'val': VAL}


def save_mat(path, labels):
    """A file of SBD's cls/: GTcls has Boundaries (a sparse matrix for each class), Segmentation and CategoriesPresent."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = csc_matrix(labels.shape[:2], dtype=bool)
    present = np.unique(labels[labels > 0])[:, None] if isinstance(labels, np.ndarray) else 0
    savemat(path, {'GTcls': {'Boundaries': boundaries, 'Segmentation': labels, 'CategoriesPresent': present}},
            do_compression=True)


@pytest.fixture(scope='session')
def originals(tmp_path_factory):
    """A folder with VOCdevkit/VOC2012/ and benchmark_RELEASE/dataset/. Not to be written to."""
    root = tmp_path_factory.mktemp('originals')
    drawn = root / 'drawn'
    draw_shapes(drawn, train=6, val=3, size=48)
    voc, sbd = root / 'VOCdevkit' / 'VOC2012', root / 'benchmark_RELEASE' / 'dataset'
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationObject', 'ImageSets/Segmentation', 'ImageSets/Main'):
        (voc / folder).mkdir(parents=True)
    for folder in ('cls', 'inst', 'img'):
        (sbd / folder).mkdir(parents=True)
    for image_id in [*TRAINAUG, *VAL, NOT_LISTED]:
        if image_id != ONLY_IN_SBD:
            shutil.copy(drawn / 'images' / f'{image_id}.jpg', voc / 'JPEGImages')
    for image_id in [*TRAIN, *VAL]:
        shutil.copy(drawn / 'SegmentationClass' / f'{image_id}.png', voc / 'SegmentationClass')
    for image_id in [*SBD_TRAIN, *SBD_VAL]:
        # SBD's copies of VOC's images differ from them here, so that a mistake shows.
        with Image.open(drawn / 'images' / f'{image_id}.jpg') as image:
            image.save(sbd / 'img' / f'{image_id}.jpg', quality=50)
        folder = 'SegmentationClass' if image_id in VAL else 'SegmentationClassAug'
        labels = read_labels(drawn / folder / f'{image_id}.png')
        save_mat(sbd / 'cls' / f'{image_id}.mat', np.where(labels == 255, 0, labels))  # SBD has no void
    lists = voc / 'ImageSets' / 'Segmentation'
    (lists / 'train.txt').write_text('\n'.join(TRAIN) + '\n')
    (lists / 'val.txt').write_text('\n'.join(VAL) + '\n')
    (lists / 'trainval.txt').write_text('\n'.join([*TRAIN, *VAL]) + '\n')
    (sbd / 'train.txt').write_text('\n'.join(SBD_TRAIN) + '\n')
    (sbd / 'val.txt').write_text('\n'.join(SBD_VAL) + '\n')
    (voc / 'SegmentationObject' / f'{VAL[-1]}.png').write_bytes(b'not needed')
    (sbd.parent / 'README').write_text('not needed')
    shutil.rmtree(drawn)
    return root


@pytest.fixture
def broken(originals, tmp_path):
    """A copy of `originals` to break."""
    return shutil.copytree(originals, tmp_path / 'broken')


def arguments(root, out, voc='VOCdevkit', sbd='benchmark_RELEASE'):
    return ['--voc', str(root / voc), '--sbd', str(root / sbd), '--out', str(out)]


def pack(root, folder):
    """The archives of what is in `root`, with the official names."""
    paths = folder / 'VOCtrainval_11-May-2012.tar', folder / 'benchmark.tgz'
    with tarfile.open(paths[0], 'w') as tar:
        tar.add(root / 'VOCdevkit', 'VOCdevkit')
    with tarfile.open(paths[1], 'w:gz') as tar:
        tar.add(root / 'benchmark_RELEASE', 'benchmark_RELEASE')
    return paths


def contents(folder):
    """The bytes of every file below `folder`, hidden ones included, by its relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def sbd_labels(root, image_id):
    """By the positions in the nested struct, as SBD is usually read."""
    return loadmat(root / 'benchmark_RELEASE' / 'dataset' / 'cls' / f'{image_id}.mat')['GTcls'][0]['Segmentation'][0]


@pytest.fixture(scope='session')
def converted(originals, tmp_path_factory):
    """The data set made from the folders. Not to be written to."""
    out = tmp_path_factory.mktemp('converted') / 'new' / 'VOCSegmentation'
    convert_voc.main(arguments(originals, out))
    return out


def without_record(folder):
    return {name: data for name, data in contents(folder).items() if name != 'conversion.json'}
