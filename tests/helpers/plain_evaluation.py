"""Images and the linear classifier's evaluation in the plainest way: one image at a time, scikit-learn's confusion matrix."""
import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

CLASSES, RESOLUTION = 9, (40, 32)
# Mean and deviation of the channels, of ResNets and of timm's small networks for tests
IMAGENET, HALF = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def plain_input(path, resolution, normalization):
    """1 x 3 x H x W float32, normalised. resolution: (H, W)."""
    image = cv2.resize(np.asarray(Image.open(path)), resolution[::-1], interpolation=cv2.INTER_CUBIC)
    mean, deviation = map(torch.tensor, normalization)
    return ((torch.tensor(image) / 255 - mean) / deviation).permute(2, 0, 1).unsqueeze(0)


def plain_images(root, normalization, split='val'):
    """(id, 1 x 3 x 40 x 32 float32, labels H x W) of each image of Shapes, one at a time."""
    folder = root / 'Shapes'
    for name in (folder / 'sets' / f'{split}.txt').read_text().split():
        image = plain_input(folder / 'images' / f'{name}.jpg', RESOLUTION, normalization)
        yield name, image, np.array(Image.open(folder / 'SegmentationClass' / f'{name}.png'))


def plain_iou(predictions, labels):
    """IoU of each class in percent over the valid pixels of all images."""
    valid = [label != 255 for label in labels]
    truth, predicted = (np.concatenate([one[v] for one, v in zip(images, valid, strict=True)])
                        for images in (labels, predictions))
    counts = confusion_matrix(truth, predicted, labels=range(CLASSES)).astype(float)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return np.where(union > 0, 100 * counts.diagonal() / np.maximum(union, 1), 0)
