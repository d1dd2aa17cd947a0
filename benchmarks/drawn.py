"""Inputs that the benchmarks draw."""
import cv2
import numpy as np
import torch
from PIL import Image

HEIGHT, WIDTH = 375, 500  # of a drawn image, as of many in PASCAL VOC


def draw_views(batch, size, device=None):
    """Two views and their masks, a third of each of which is object. Images: 2 x B x 3 x size x size, normal noise. Masks:
    2 x B x size x size uint8, 1 = object."""
    images = torch.randn(2, batch, 3, size, size, device=device)
    masks = torch.zeros(2, batch, size, size, dtype=torch.uint8, device=device)
    side = round(size / 3 ** 0.5)
    masks[:, :, size // 5:size // 5 + side, size // 5:size // 5 + side] = 1
    return images, masks


def draw_images(folder, count):
    """A data set of pictures of about the size of photographs' files: smooth colours, an object with an edge, fine texture."""
    for part in ('images', 'saliency_drawn', 'sets'):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        image = cv2.resize(rng.uniform(0, 255, (8, 10, 3)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        blobs = cv2.resize(rng.normal(size=(6, 8)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        mask = blobs > np.quantile(blobs, 2 / 3)
        image = np.where(mask[..., None], 255 - image, image) + rng.normal(0, 6, image.shape)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f'images/{number}.jpg', quality=90)
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f'saliency_drawn/{number}.png')
    (folder / 'sets/trainaug.txt').write_text('\n'.join(map(str, range(count))))
