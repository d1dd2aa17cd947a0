"""Cityscapes (Cordts et al., CVPR 2016): the classes of `gtFine/.../*_gtFine_labelIds.png`.

Ids, names and colours are those of the official cityscapesScripts, helpers/labels.py. The other ids from 0 to 33 are void there
(`ignoreInEval`), as are license plates, whose id is -1, 255 in 8 bits.
"""
from devkit.label_files import LabelFiles

CLASSES = {7: ('road', (128, 64, 128)), 8: ('sidewalk', (244, 35, 232)), 11: ('building', (70, 70, 70)),
           12: ('wall', (102, 102, 156)), 13: ('fence', (190, 153, 153)), 17: ('pole', (153, 153, 153)),
           19: ('traffic light', (250, 170, 30)), 20: ('traffic sign', (220, 220, 0)), 21: ('vegetation', (107, 142, 35)),
           22: ('terrain', (152, 251, 152)), 23: ('sky', (70, 130, 180)), 24: ('person', (220, 20, 60)),
           25: ('rider', (255, 0, 0)), 26: ('car', (0, 0, 142)), 27: ('truck', (0, 0, 70)), 28: ('bus', (0, 60, 100)),
           31: ('train', (0, 80, 100)), 32: ('motorcycle', (0, 0, 230)), 33: ('bicycle', (119, 11, 32))}  # by id: name, RGB

CITYSCAPES = LabelFiles(
    'Cityscapes', {stored: name for stored, (name, _) in CLASSES.items()}, frozenset({*range(34), 255} - CLASSES.keys()),
    {'trainaug': 'train', 'val': 'val'}, 'leftImg8bit/{split}', '_leftImg8bit.png', 'gtFine/{split}', '_gtFine_labelIds.png',
    dict(CLASSES.values()), 'https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip)')
