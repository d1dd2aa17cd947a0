"""convert_coco.py: labels, masks and objects of COCO JSON, drawn here by hand, and each check of the file."""
import json
import shutil

import numpy as np
import pytest
from helpers.devkits import contents
from helpers.files import save
from PIL import Image
from pycocotools import mask as coco_mask

import convert_coco
from data.check import main as check
from data.dataset import SegmentationDataset
from data.instances import read_instances
from data.label_space import label_space
from devkit.coco_masks import mask_of, unpack_counts

HEIGHT, WIDTH = 20, 30
RECTANGLE = [[2, 3, 12, 3, 12, 13, 2, 13]]  # pixels 2 to 11 and 3 to 12


def noise(seed, size=(HEIGHT, WIDTH)):
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)


def box(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def compressed(mask):
    packed = coco_mask.encode(np.asfortranarray(mask))
    return {'size': list(mask.shape), 'counts': packed['counts'].decode()}


def plain(mask):
    """Uncompressed RLE: runs down the columns, from one of background on."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {'size': list(mask.shape), 'counts': counts}


@pytest.fixture
def source(tmp_path):
    """Six images, of which d has no annotation, and a file that annotates them; category ids have gaps."""
    for index, name in enumerate(('a.jpg', 'b.png', 'sub/c.jpg', 'd.jpg', 'e.jpg', 'f.jpg')):
        save(tmp_path / 'in' / name, noise(index))
    content = {
        'info': {}, 'categories': [{'id': 90, 'name': 'tooth  brush'}, {'id': 18, 'name': 'dog'}],
        'images': [{'id': 100 + index, 'file_name': name, 'height': HEIGHT, 'width': WIDTH}
                   for index, name in enumerate(('a.jpg', 'b.png', './sub\\c.jpg', 'd.jpg', 'e.jpg', 'f.jpg'))],
        'annotations': [
            {'id': 1, 'image_id': 100, 'category_id': 18, 'segmentation': RECTANGLE, 'iscrowd': 0},
            {'id': 2, 'image_id': 100, 'category_id': 90, 'segmentation': compressed(box(0, 0, 20, 18))},
            {'id': 3, 'image_id': 100, 'category_id': 18, 'segmentation': plain(box(15, 0, 30, 10)), 'iscrowd': 1},
            {'id': 4, 'image_id': 101, 'category_id': 90, 'segmentation': plain(box(5, 5, 9, 9))},
            {'id': 5, 'image_id': 102, 'category_id': 18,
             'segmentation': [[0, 0, 5, 0, 5, 5, 0, 5], [8, 8, 10, 8, 10, 10, 8, 10]]},
            {'id': 6, 'image_id': 104, 'category_id': 18, 'segmentation': compressed(box(1, 1, 3, 3))},
            {'id': 7, 'image_id': 104, 'category_id': 90, 'segmentation': compressed(box(1, 1, 2, 3))},
            {'id': 8, 'image_id': 104, 'category_id': 90, 'segmentation': compressed(box(2, 1, 3, 3))},
            {'id': 9, 'image_id': 105, 'category_id': 18, 'segmentation': RECTANGLE}]}
    return Source(tmp_path, content)


class Source:
    def __init__(self, folder, content):
        self.folder, self.content, self.out = folder, content, folder / 'db' / 'out'

    def run(self, *flags, text=None):
        path = self.folder / 'coco.json'
        path.write_text(json.dumps(self.content) if text is None else text)
        convert_coco.main(['--annotations', str(path), '--images', str(self.folder / 'in'), '--out', str(self.out), *flags])

    def dataset(self, split='trainaug', **options):
        return {sample['id']: sample for sample in SegmentationDataset(self.out, split, labels=True, **options)}


def test_labels_masks_and_objects(source, capsys, tmp_path):
    source.run('--val_fraction', '0')
    found = source.dataset(saliency='annotated', instances=True)
    assert found['e']['instances'].max() == 2 and {*np.unique(found['e']['labels'])} == {0, 2}  # the first is hidden
    labels, instances = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    labels[:10, 15:], labels[:18, :20], labels[3:13, 2:12] = 255, 2, 1  # crowds behind, small ones in front
    instances[:18, :20], instances[3:13, 2:12] = 2, 1
    assert np.array_equal(found['a']['labels'], labels) and np.array_equal(found['a']['instances'], instances)
    saliency = np.array(Image.open(source.out / 'saliency_annotated' / 'a.png'))
    assert np.array_equal(saliency, np.where(instances > 0, 255, 0)) and saliency.dtype == np.uint8
    two_parts = box(0, 0, 5, 5) | box(8, 8, 10, 10)
    assert np.array_equal(found['sub/c']['labels'], two_parts) and np.array_equal(found['sub/c']['instances'], two_parts)
    assert found['e']['instances'].max() == 2 and set(np.unique(found['e']['labels'])) == {0, 2}  # the first is hidden
    assert np.array_equal(found['b']['image'], Image.open(source.out / 'images' / 'b.jpg'))
    assert (source.out / 'images' / 'a.jpg').read_bytes() == (tmp_path / 'in' / 'a.jpg').read_bytes()
    said = capsys.readouterr().out
    assert 'without annotation: 1 images, left out' in said and 'converted to JPEG: 1 images' in said
    assert 'hidden by smaller objects or without a pixel: 1 objects' in said
    assert '5 images (trainaug 5, val 0), 7 objects of 2 classes, 1 crowds' in said
    record = json.loads((source.out / 'conversion.json').read_text())
    assert record['counts']['without_annotation'] == 1 and record['counts']['objects'] == 7 and record['classes'] == 2
    assert {path.name for path in source.out.parent.iterdir()} == {'out'}


def test_images_without_annotation_as_background_and_a_part_for_val(source, capsys):
    source.run('--keep_unannotated', '--val_fraction', '0.3', '--masks', 'cvat')
    train, val = source.dataset(), source.dataset('val', saliency='cvat')
    assert len(train) == 4 and len(val) == 2 and not train.keys() & val.keys()
    sample = {**train, **val}['d']
    assert not sample['labels'].any() and not read_instances(source.out / 'instances_cvat' / 'd.png').any()
    assert 'without annotation: 1 images, which are background' in capsys.readouterr().out


def test_crowds_as_objects(source):
    """As CVAT writes what was drawn with its brush."""
    source.run('--val_fraction', '0', '--crowds', 'objects')
    sample = source.dataset(saliency='annotated', instances=True)['a']
    labels = np.zeros((HEIGHT, WIDTH))
    labels[:18, :20], labels[:10, 15:], labels[3:13, 2:12] = 2, 1, 1
    assert np.array_equal(sample['labels'], labels) and sample['instances'].max() == 3


@pytest.mark.parametrize('as_file', [False, True])
def test_chosen_categories(source, tmp_path, capsys, as_file):
    (tmp_path / 'names.txt').write_text('tooth brush\n\n')
    source.run('--val_fraction', '0', '--categories', str(tmp_path / 'names.txt') if as_file else ' tooth brush')
    found = source.dataset()
    assert list(found) == ['a', 'b', 'e'] and np.array_equal(found['a']['labels'], box(0, 0, 20, 18))  # no crowd of dogs
    assert label_space(source.out).names == ('background', 'tooth brush')
    assert 'without annotation of these categories: 3 images, left out' in capsys.readouterr().out


def test_two_files(source, tmp_path):
    images = [dict(source.content['images'][5], id=1, file_name='g.jpg')]
    shutil.copytree(tmp_path / 'in', tmp_path / 'other')
    save(tmp_path / 'other' / 'g.jpg', noise(9))
    val = {'images': images, 'categories': [{'id': 3, 'name': 'dog'}],
           'annotations': [{'id': 1, 'image_id': 1, 'category_id': 3, 'segmentation': RECTANGLE}]}
    (tmp_path / 'val.json').write_text(json.dumps(val))
    source.run('--val_annotations', str(tmp_path / 'val.json'), '--val_images', str(tmp_path / 'other'))
    assert len(source.dataset()) == 5 and np.array_equal(source.dataset('val')['g']['labels'], box(2, 3, 12, 13))


def test_two_files_that_do_not_fit(source, tmp_path, user_error):
    (tmp_path / 'val.json').write_text(json.dumps(source.content))
    flags = ['--val_annotations', str(tmp_path / 'val.json')]
    assert f'{tmp_path}/val.json: the image a is in both splits' in user_error(lambda: source.run(*flags))
    (tmp_path / 'val.json').write_text(json.dumps({**source.content, 'categories': [{'id': 90, 'name': 'comb'},
                                                                                    {'id': 18, 'name': 'dog'}]}))
    assert "val.json: its category 'comb' is not one of those of trainaug" in user_error(lambda: source.run(*flags))
    assert '--val_fraction and --val_annotations' in user_error(lambda: source.run(*flags, '--val_fraction', '0.1'))
    assert '--val_images needs' in user_error(lambda: source.run('--val_images', str(tmp_path)))


def test_a_turned_photograph(source, tmp_path):
    """The annotations are of what the tool showed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.add.outer(np.arange(WIDTH) * 6, np.arange(HEIGHT)).astype(np.uint8)[..., None].repeat(3, 2)  # on its side
    Image.fromarray(stored).save(tmp_path / 'in' / 'f.jpg', exif=exif, quality=95)
    source.run('--val_fraction', '0')
    sample = source.dataset()['f']
    assert sample['image'].shape == (HEIGHT, WIDTH, 3) and np.array_equal(sample['labels'], box(2, 3, 12, 13))
    shown = np.rot90(np.array(Image.open(tmp_path / 'in' / 'f.jpg')), -1).astype(int)
    assert np.abs(shown - sample['image']).mean() < 5
    source.content['images'][5].update(height=WIDTH, width=HEIGHT)  # as stored
    source.out = source.out.with_name('as_stored')
    source.content['annotations'][8]['segmentation'] = [[0, 0, 4, 0, 4, 25, 0, 25]]
    source.run('--val_fraction', '0')
    assert (source.out / 'images' / 'f.jpg').read_bytes() == (tmp_path / 'in' / 'f.jpg').read_bytes()
    assert source.dataset()['f']['labels'][:25, :4].all()


def change(path, value):
    """Set what is at a path of keys and indices, or remove it."""
    def put(content):
        for key in path[:-1]:
            content = content[key]
        if value is ...:
            del content[path[-1]]
        else:
            content[path[-1]] = value
    return put


RLE = compressed(box(5, 5, 9, 9))
CHECKS = {
    'no images': (change(['images'], ...), 'coco.json has no list of images, so it is not COCO JSON'),
    'categories as a dict': (change(['categories'], {}), 'has no list of categories'),
    'entries that are no dicts': (change(['annotations', 2], 7), 'has no list of annotations'),
    'unknown image': (change(['annotations', 3, 'image_id'], 7), 'annotation 4 is of image 7, which the file does not list'),
    'unknown category': (change(['annotations', 3, 'category_id'], 7), 'annotation 4 is of category 7, which'),
    'no id': (change(['images', 1, 'id'], ...), "image 2 has no 'id'"),
    'text for an id': (change(['images', 1, 'id'], 'b'), "image 2: 'id' must be an integer, not 'b'"),
    'image twice': (change(['images', 1, 'id'], 100), 'image 100 appears twice'),
    'category twice': (change(['categories', 1, 'id'], 90), 'category 90 appears twice'),
    'category without a name': (change(['categories', 1, 'name'], ' '), 'category 18 has no name'),
    'two names alike': (change(['categories', 1, 'name'], 'tooth brush'), "two categories are called 'tooth brush'"),
    'background': (change(['categories', 1, 'name'], 'Background'), "its category 'Background' is class 0"),
    'colour for a name': (change(['categories', 1, 'name'], 'dog #ff0000'),
                          "the class 'dog #ff0000': classes.txt cannot hold this name"),
    'image id twice': (change(['images', 1, 'file_name'], 'a.png'), 'a.jpg and a.png differ only in their suffix'),
    'file outside': (change(['images', 1, 'file_name'], '../b.png'), "image 101: '../b.png' is not the path of an image"),
    'absolute file': (change(['images', 1, 'file_name'], '/b.png'), "'/b.png' is not the path"),
    'missing image': (change(['images', 1, 'file_name'], 'g.jpg'), 'in/g.jpg is missing, and is in the list'),
    'other size': (change(['images', 1, 'height'], 21), 'in/b.png is 30 x 20, and its annotations are of 30 x 21'),
    'no mask': (change(['annotations', 3, 'segmentation'], []), 'annotation 4, of b.png, has no mask'),
    'short polygon': (change(['annotations', 3, 'segmentation'], [[1, 1, 2, 2]]), 'has a polygon that is not a list of'),
    'odd polygon': (change(['annotations', 3, 'segmentation'], [[1, 1, 2, 2, 3, 3, 4]]), 'has a polygon that is not a list of'),
    'not a number': (change(['annotations', 3, 'segmentation'], [[1, 1, 2, 2, 3, float('nan')]]),
                     'has a polygon that is not a list'),
    'polygon outside': (change(['annotations', 3, 'segmentation'], [[1, 1, 40, 2, 3, 3]]),
                        'annotation 4, of b.png, has a polygon outside of its image: x = 40, and that is 30 x 20'),
    'RLE of another size': (change(['annotations', 3, 'segmentation'], {**RLE, 'size': [WIDTH, HEIGHT]}),
                            'has an RLE of size [30, 20] (height, width), and its image is [20, 30]'),
    'RLE without counts': (change(['annotations', 3, 'segmentation'], {'size': [HEIGHT, WIDTH]}),
                           'counts are neither a string nor'),
    'RLE that is cut': (change(['annotations', 3, 'segmentation'], {**RLE, 'counts': RLE['counts'][:-2]}), 'has a damaged RLE'),
    'RLE of no text': (change(['annotations', 3, 'segmentation'], {**RLE, 'counts': '\u20ac'}), 'has a damaged RLE'),
    'negative count': (change(['annotations', 3, 'segmentation'], {**RLE, 'counts': [700, -100]}), 'neither a string nor'),
    'too many': (lambda content: content['categories'].extend({'id': 1000 + n, 'name': f'n{n}'} for n in range(253)),
                 'has 255 categories, and labels hold 254 at most: choose some with --categories'),
    'huge number': (change(['annotations', 3, 'segmentation'], [[1, 1, 2, 2, 3, 10 ** 400]]),
                    'has a polygon that is not a list'),
    'text for a crowd': (change(['annotations', 3, 'iscrowd'], '0'), "annotation 4: 'iscrowd' must be 0 or 1, not '0'"),
    'half a character': (change(['categories', 1, 'name'], 'd\ud83dg'), "category 18: 'name' has a damaged character"),
    'nothing annotated': (change(['annotations'], []), 'no image with annotations is left for trainaug'),
}


@pytest.mark.parametrize(('damage', 'words'), CHECKS.values(), ids=CHECKS.keys())
def test_each_check_is_one_line(source, user_error, damage, words):
    damage(source.content)
    line = user_error(source.run)
    assert words in line and (str(source.folder) in line or 'cannot hold' in line)
    assert not source.out.parent.exists() or list(source.out.parent.iterdir()) == []


def test_other_mistakes(source, user_error, tmp_path):
    assert 'coco.json is not complete JSON' in user_error(lambda: source.run(text=json.dumps(source.content)[:-40]))
    assert 'coco.json is not complete JSON' in user_error(lambda: source.run(text='[' * 100_000))
    assert "has no category 'dgo' (nearest: 'dog')" in user_error(lambda: source.run('--categories', 'dgo'))
    assert '--categories names no class' in user_error(lambda: source.run('--categories', ' , '))
    assert '--masks a/b: use letters' in user_error(lambda: source.run('--masks', 'a/b'))
    image = tmp_path / 'in' / 'e.jpg'
    image.write_bytes(image.read_bytes()[:300])
    assert 'e.jpg is not a complete image' in user_error(source.run)
    source.out.mkdir(parents=True, exist_ok=True)
    assert 'exists already' in user_error(source.run) and contents(source.out.parent) == {}


def test_counts_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = (rng.random(rng.integers(1, 60, 2)) < rng.random()).astype(np.uint8)
        packed = coco_mask.encode(np.asfortranarray(mask))
        assert unpack_counts(packed['counts'].decode()) == plain(mask)['counts']
        for rle in (compressed(mask), plain(mask)):
            assert np.array_equal(mask_of(rle, *mask.shape), mask)


def test_the_data_set_passes_its_check(source, tmp_path, experiment, capsys):
    from helpers.experiments import LINEAR
    source.run('--keep_unannotated')
    changes = {'train_db_name': 'out', 'val_db_name': 'out', 'pretraining': None}
    capsys.readouterr()
    check(experiment(changes, db_root=source.out.parent, base=LINEAR)[:4])
    assert 'Problems: 0; notes: 2 (class that never occurs: 2)' in (said := capsys.readouterr().out), said
