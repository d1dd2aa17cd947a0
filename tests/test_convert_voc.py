"""convert_voc.py, on small data with the folders, files and .mat structure of the official PASCAL VOC 2012 and SBD."""
import contextlib
import gzip
import io
import json
import resource
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.sparse import csc_matrix

import convert_voc
from data.dataset import VOC_CLASSES, SegmentationDataset
from data.reading import read_labels
from data.shapes import draw_shapes

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
        # SBD's own images of what VOC has, too, are other files here, so that a mistake shows.
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


@pytest.mark.parametrize('split', ['trainaug', 'train', 'val'])
def test_every_split_loads(converted, split):
    dataset = SegmentationDataset(converted, split, labels=True)
    assert dataset.ids == SPLITS[split]
    for sample in dataset:
        assert sample['labels'].shape == sample['image'].shape[:2]
        assert {*np.unique(sample['labels'])} <= {*range(9), 255}


def test_labels_are_those_of_their_sources(originals, converted):
    voc = originals / 'VOCdevkit' / 'VOC2012' / 'SegmentationClass'
    for image_id in [*TRAIN, *VAL]:
        labels = read_labels(converted / 'SegmentationClass' / f'{image_id}.png')
        assert np.array_equal(labels, read_labels(voc / f'{image_id}.png'))
    for image_id in TRAINAUG:
        labels = read_labels(converted / 'SegmentationClassAug' / f'{image_id}.png')
        if image_id in TRAIN:  # VOC's even where SBD has some, with their void
            assert np.array_equal(labels, read_labels(voc / f'{image_id}.png')) and 255 in labels
        else:
            assert np.array_equal(labels, sbd_labels(originals, image_id)) and 255 not in labels


def test_files(originals, converted):
    images = {path.stem: path.read_bytes() for path in (converted / 'images').iterdir()}
    assert images.keys() == {*TRAINAUG, *VAL}
    for image_id, data in images.items():
        name = f'{image_id}.jpg'
        source = originals / ('benchmark_RELEASE/dataset/img' if image_id == ONLY_IN_SBD else 'VOCdevkit/VOC2012/JPEGImages')
        assert data == (source / name).read_bytes()
    labels = {path.stem for path in (converted / 'SegmentationClass').iterdir()}
    assert labels == {*TRAIN, *VAL}
    assert {path.stem for path in (converted / 'SegmentationClassAug').iterdir()} == {*TRAINAUG}
    assert all(Image.open(path).mode == 'P' for path in converted.glob('SegmentationClass*/*.png'))
    assert tuple((converted / 'classes.txt').read_text().split()) == VOC_CLASSES
    assert {path.name for path in converted.parent.iterdir()} == {'VOCSegmentation'}


def test_record(originals, converted):
    assert json.loads((converted / 'conversion.json').read_text()) == {
        'counts': {'trainaug': 6, 'train': 3, 'val': 2, 'images': 8, 'images_from_sbd': 1, 'labels_from_voc': 5,
                   'labels_from_sbd': 3},
        'warnings': ['trainaug has 6 images, the official split 10,582', 'train has 3 images, the official split 1,464',
                     'val has 2 images, the official split 1,449'],
        'sources': {'voc': str(originals / 'VOCdevkit'), 'sbd': str(originals / 'benchmark_RELEASE')}}


def without_record(folder):
    return {name: data for name, data in contents(folder).items() if name != 'conversion.json'}


def test_archives_give_the_same_as_folders(originals, converted, tmp_path, capsys):
    voc, sbd = pack(originals, tmp_path)
    out = tmp_path / 'db' / 'VOCSegmentation'
    convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(out)])
    assert without_record(out) == without_record(converted)
    assert [path.name for path in out.parent.iterdir()] == ['VOCSegmentation']
    printed = capsys.readouterr().out
    assert 'train has 3 images, the official split 1,464' in printed
    assert f'{out}: 8 images (trainaug 6, train 3, val 2), labels of 5 from VOC and of 3 from SBD' in printed
    assert f'python generate_masks.py --images {out}/images --out {out} --model NAME' in printed


@pytest.mark.parametrize(('voc', 'sbd'), [('', ''), ('VOCdevkit/VOC2012', 'benchmark_RELEASE/dataset')])
def test_every_level_of_the_folders_will_do(originals, converted, tmp_path, monkeypatch, voc, sbd):
    monkeypatch.chdir(tmp_path)  # a bare name is a path, too
    convert_voc.main(arguments(originals, 'VOCSegmentation', voc, sbd))
    assert without_record(tmp_path / 'VOCSegmentation') == without_record(converted)


def test_what_is_there_is_not_touched(originals, tmp_path, user_error):
    out = tmp_path / 'VOCSegmentation'
    out.mkdir()
    (out / 'mine.txt').write_text('mine')
    line = user_error(lambda: convert_voc.main(arguments(originals, out)))
    assert f'{out} exists already' in line
    assert contents(tmp_path) == {'VOCSegmentation/mine.txt': b'mine'}


VOC, SBD = 'VOCdevkit/VOC2012', 'benchmark_RELEASE/dataset'
LISTS = f'{VOC}/ImageSets/Segmentation'


def put_mat(change):
    """Replace the labels of a .mat file by what `change` makes of them."""
    def put(path):
        save_mat(path, change(sbd_labels(path.parents[3], path.stem)))
    return put


def one_pixel(value):
    def change(labels):
        labels = labels.astype(np.int16)
        labels[3, 5] = value
        return labels
    return change


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


def repeat(path):
    path.write_text(path.read_text() + path.read_text().split()[0] + '\n')


def put_png(change):
    """The same for a PNG of labels."""
    return lambda path: Image.fromarray(change(read_labels(path)).astype(np.uint8)).save(path)


def remove_image(path):
    path.unlink()
    (path.parents[3] / SBD / 'img' / path.name).unlink()


CHECKS = {
    'no image': (f'{VOC}/JPEGImages/val_0001.jpg', remove_image, 'is missing'),
    'cut image': (f'{VOC}/JPEGImages/train_0002.jpg', cut, 'not a whole image'),
    'no VOC labels': (f'{VOC}/SegmentationClass/train_0001.png', lambda path: path.unlink(), 'is missing'),
    'cut VOC labels': (f'{VOC}/SegmentationClass/train_0001.png', cut, 'not a whole image'),
    'colours': (f'{VOC}/SegmentationClass/val_0000.png', lambda path: Image.new('RGB', (9, 9)).save(path), 'mode RGB'),
    'VOC size': (f'{VOC}/SegmentationClass/val_0000.png', put_png(lambda labels: labels[:7, :9]), 'is 9 x 7, but its image'),
    'VOC label 21': (f'{VOC}/SegmentationClass/val_0000.png', put_png(one_pixel(21)), 'the label 21'),
    'no SBD labels': (f'{SBD}/cls/train_0004.mat', lambda path: path.unlink(), 'is missing'),
    'cut .mat': (f'{SBD}/cls/train_0004.mat', cut, 'not a whole .mat file'),
    'empty .mat': (f'{SBD}/cls/train_0004.mat', lambda path: path.write_bytes(b''), 'not a whole .mat file'),
    'no GTcls': (f'{SBD}/cls/train_0004.mat', lambda path: savemat(path, {'GTinst': 1}), "KeyError: 'GTcls'"),
    'GTcls is a number': (f'{SBD}/cls/train_0004.mat', lambda path: savemat(path, {'GTcls': 1}), 'GTcls.Segmentation'),
    'no Segmentation': (f'{SBD}/cls/train_0004.mat', lambda path: savemat(path, {'GTcls': {'a': 1}}), 'GTcls.Segmentation'),
    'floats': (f'{SBD}/cls/train_0004.mat', put_mat(lambda labels: labels / 1), 'not 2-d float64'),
    '3-d': (f'{SBD}/cls/train_0004.mat', put_mat(lambda labels: np.stack([labels] * 2, axis=2)), 'not 3-d uint8'),
    'sparse': (f'{SBD}/cls/train_0004.mat', put_mat(lambda labels: csc_matrix(labels, dtype=float)), 'must be a 2-d array'),
    'SBD size': (f'{SBD}/cls/train_0004.mat', put_mat(lambda labels: labels[:7, :9]), 'is 9 x 7, but its image'),
    'SBD label -1': (f'{SBD}/cls/train_0004.mat', put_mat(one_pixel(-1)), 'the label -1'),
    'SBD label 276': (f'{SBD}/cls/train_0004.mat', put_mat(one_pixel(276)), 'the label 276'),  # 20 modulo 256
    'id twice': (f'{LISTS}/val.txt', repeat, 'lists val_0000 twice'),
    'id twice in SBD': (f'{SBD}/train.txt', repeat, 'lists train_0004 twice'),
    'empty list': (f'{SBD}/val.txt', lambda path: path.write_text('\n'), 'lists no image'),
    'bytes for a list': (f'{SBD}/val.txt', lambda path: path.write_bytes(b'\xff\xfe'), 'not a text file'),
    'id that leads outside': (f'{SBD}/val.txt', lambda path: path.write_text('../../evil\n'), "'../../evil' is not the id"),
}


@pytest.mark.parametrize(('name', 'damage', 'words'), CHECKS.values(), ids=CHECKS.keys())
def test_each_check_names_the_file(broken, tmp_path, user_error, name, damage, words):
    damage(broken / name)
    line = user_error(lambda: convert_voc.main(arguments(broken, tmp_path / 'db' / 'out')))
    assert f'{broken / name}' in line and words in line
    assert list((tmp_path / 'db').iterdir()) == []


def test_train_and_val_share_an_image(broken, tmp_path, user_error):
    with open(broken / LISTS / 'train.txt', 'a') as file:
        file.write('val_0001\n')
    line = user_error(lambda: convert_voc.main(arguments(broken, tmp_path / 'out')))
    assert f'{broken / LISTS}: train.txt and val.txt both list val_0001' in line


def test_the_first_broken_file_is_named(broken, tmp_path, user_error):
    for image_id in ('val_0001', 'train_0002', 'train_0004'):
        cut(broken / VOC / 'JPEGImages' / f'{image_id}.jpg')
    assert 'train_0002.jpg' in user_error(lambda: convert_voc.main(arguments(broken, tmp_path / 'out')))


def test_a_broken_file_of_an_archive_is_named_by_the_archive(broken, tmp_path, user_error):
    cut(broken / VOC / 'JPEGImages' / 'train_0002.jpg')
    voc, sbd = pack(broken, tmp_path)
    line = user_error(lambda: convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(tmp_path / 'db' / 'out')]))
    assert f'error: {voc}: {VOC}/JPEGImages/train_0002.jpg is not a whole image' in line
    assert list((tmp_path / 'db').iterdir()) == []


def test_255_and_20_are_labels(broken, tmp_path):
    path = broken / SBD / 'cls' / 'train_0004.mat'
    labels = one_pixel(255)(sbd_labels(broken, 'train_0004'))
    labels[0, 0] = 20
    save_mat(path, labels)
    convert_voc.main(arguments(broken, tmp_path / 'out'))
    assert np.array_equal(read_labels(tmp_path / 'out' / 'SegmentationClassAug' / 'train_0004.png'), labels)


def member(name, content=b'', kind=tarfile.REGTYPE, link=''):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


@pytest.mark.parametrize('hostile', [
    lambda outside: [member(f'{VOC}/../../../../evil', b'x')],
    lambda outside: [member('../evil', b'x')],
    lambda outside: [member(f'{outside}/evil', b'x')],
    lambda outside: [member(f'{VOC}/JPEGImages', kind=tarfile.SYMTYPE, link=str(outside)),
                     member(f'{VOC}/JPEGImages/evil.jpg', b'x')],
    lambda outside: [member(f'{VOC}/JPEGImages', kind=tarfile.SYMTYPE, link='../../../../..')],
    lambda outside: [member(f'{VOC}/JPEGImages/evil.jpg', kind=tarfile.LNKTYPE, link='../../../../evil')],
    lambda outside: [member(f'{VOC}/JPEGImages/evil.jpg', kind=tarfile.CHRTYPE)],
    lambda outside: [member('pipe', kind=tarfile.FIFOTYPE)],
], ids=['parent inside', 'parent', 'absolute', 'absolute link', 'relative link', 'hard link', 'device', 'pipe'])
def test_hostile_archives_are_refused(originals, tmp_path, user_error, hostile):
    voc = tmp_path / 'voc.tar'
    with tarfile.open(voc, 'w') as tar:
        for info, content in hostile(tmp_path):
            tar.addfile(info, io.BytesIO(content))
        tar.add(originals / 'VOCdevkit', 'VOCdevkit')
    arguments = ['--voc', str(voc), '--sbd', str(originals), '--out', str(tmp_path / 'db' / 'VOCSegmentation')]
    line = user_error(lambda: convert_voc.main(arguments))
    assert f'{voc} is not the official archive' in line
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*')} == {'voc.tar', 'db'}


@contextlib.contextmanager
def largest_file(size):
    """Within the block no file can grow beyond `size` bytes, which fails as a full disk does: with an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_only_what_is_needed_is_unpacked(broken, converted, tmp_path):
    """A link inside the archive is harmless and not needed."""
    (broken / 'benchmark_RELEASE' / 'link').symlink_to('README')
    (broken / SBD / 'inst' / 'huge.mat').write_bytes(bytes(2 ** 21))
    (broken / SBD / 'img' / 'train_0003.jpg').write_bytes(bytes(2 ** 21))  # which VOC has
    voc, sbd = pack(broken, tmp_path)
    out = tmp_path / 'out'
    with largest_file(2 ** 20):
        convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(out)])
    assert without_record(out) == without_record(converted)


def header_of_last_member(archive):
    """Where it begins. The last file is one that is not needed, so that its loss alone would go unnoticed."""
    with tarfile.open(archive) as tar:
        return tar.getmembers()[-1].offset


DAMAGES = {
    'cut in a file': lambda tar, at: tar[:at + 512 + 7],
    'cut in its padding': lambda tar, at: tar[:at + 512 + 100],
    'cut in a header': lambda tar, at: tar[:at + 100],
    'broken header': lambda tar, at: tar[:at] + b'?' * 512 + tar[at + 512:],
    'cut gzip': lambda tar, at: gzip.compress(tar)[:-5000],
    'cut checksum': lambda tar, at: gzip.compress(tar)[:-4],
    'wrong checksum': lambda tar, at: gzip.compress(tar)[:-8] + bytes(8),
    'empty': lambda tar, at: b'',
    'no tar': lambda tar, at: b'no tar' * 1000,
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES.keys())
def test_broken_archives(originals, tmp_path, user_error, damage):
    voc, sbd = pack(originals, tmp_path)
    voc.write_bytes(damage(voc.read_bytes(), header_of_last_member(voc)))
    out = tmp_path / 'db' / 'VOCSegmentation'
    line = user_error(lambda: convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(out)]))
    assert f'{voc} is cut off, broken or no tar archive' in line and 'fetch it again' in line
    assert list(out.parent.iterdir()) == []


def test_no_room(originals, tmp_path, user_error):
    voc, sbd = pack(originals, tmp_path)
    out = tmp_path / 'db' / 'VOCSegmentation'
    with largest_file(200):
        line = user_error(lambda: convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(out)]))
        assert f'{voc} could not be unpacked to {out.parent} (File too large): make room' in line
        line = user_error(lambda: convert_voc.main(arguments(originals, out)))
        assert f'{out} could not be written (File too large): make room or choose another --out' in line
    assert list(out.parent.iterdir()) == []


def test_wrong_paths(originals, tmp_path, user_error):
    file = tmp_path / 'file'
    file.write_text('a file')

    def error(voc='VOCdevkit', sbd='benchmark_RELEASE', out='out'):
        return user_error(lambda: convert_voc.main(arguments(originals, tmp_path / out, voc, sbd)))

    assert f'--voc {originals}/none does not exist: give VOCtrainval_11-May-2012.tar' in error(voc='none')
    assert f'--sbd {file}/none does not exist: give benchmark.tgz' in error(sbd=file / 'none')
    assert f'--sbd {originals}/VOCdevkit does not hold cls/, train.txt, val.txt' in error(sbd='VOCdevkit')
    assert f'--voc {originals}/benchmark_RELEASE does not hold JPEGImages/, ' in error(voc='benchmark_RELEASE')
    assert f'the folder {file} could not be made (File exists): choose another --out' in error(out='file/out')
    assert 'required: --voc, --sbd, --out (see --help)' in user_error(lambda: convert_voc.main([]))
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_an_archive_of_something_else(originals, tmp_path, user_error):
    voc, sbd = pack(originals, tmp_path)
    line = user_error(lambda: convert_voc.main(['--voc', str(sbd), '--sbd', str(voc), '--out', str(tmp_path / 'db' / 'out')]))
    assert f'--voc {sbd} does not hold JPEGImages/' in line
    assert list((tmp_path / 'db').iterdir()) == []
