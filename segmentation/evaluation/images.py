"""Images as the evaluations read them: resized to the network's input, with labels at their own size (paper section 4)."""
import cv2
import torch

from data.batches import make_loader


class EvaluationImages(torch.utils.data.Dataset):
    """The images of a `SegmentationDataset` at one resolution, in the order of its split file.

    resolution: (height, width) of the network's input. Items have `id`; `image`, 3-channel uint8 tensor at `resolution`
    (OpenCV bicubic, aspect not kept); and, where the data set reads them, `labels` (uint8 array at the image's own size)
    and `saliency` (uint8 array at `resolution`, OpenCV nearest, 1 = object).
    """

    def __init__(self, dataset, resolution):
        self.dataset, self.resolution = dataset, tuple(resolution)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        sample = self.dataset[index]
        size = self.resolution[::-1]
        image = cv2.resize(sample['image'], size, interpolation=cv2.INTER_CUBIC)
        item = {'id': sample['id'], 'image': torch.from_numpy(image)}
        if 'labels' in sample:
            item['labels'] = sample['labels']
        if 'saliency' in sample:
            item['saliency'] = cv2.resize(sample['saliency'], size, interpolation=cv2.INTER_NEAREST)
        return item


def image_loader(images, batch_size, num_workers, device):
    """Batches of `EvaluationImages` in order. Each is a dict of lists, but for `image`: B x H x W x 3 uint8."""
    return make_loader(images, num_workers, device, batch_size=batch_size, collate_fn=_collate)


def _collate(items):
    batch = {key: [item[key] for item in items] for key in items[0]}
    return {**batch, 'image': torch.stack(batch['image'])}
