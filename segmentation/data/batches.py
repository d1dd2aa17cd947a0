"""From decoded images to what a network takes."""
import functools
import warnings

import cv2
import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, for values in [0, 1]


def to_images(batch, device):
    """B x H x W x 3 uint8 RGB -> normalised B x 3 x H x W float32 on `device`, in channels_last layout."""
    mean, std = _normalisation(device)
    return batch.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)


@functools.lru_cache(maxsize=8)
def _normalisation(device):
    """Mean and deviation, 1 x 3 x 1 x 1 each. Copied to a GPU once, as each such copy makes the host wait."""
    return [torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD)]


def make_loader(dataset, num_workers, device, **options):
    """A DataLoader of `dataset` for batches that go to `device`. options: of the DataLoader, `batch_size`, say.

    Its own generator keeps it from drawing its workers' seeds from the global one, which would then depend on how often
    a run was cut. PyTorch's warning about more workers than cores is left out: files from GPU servers ask for eight.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='This DataLoader will create')
        return torch.utils.data.DataLoader(dataset, num_workers=num_workers, pin_memory=device.type == 'cuda',
                                           worker_init_fn=_one_thread, generator=torch.Generator(), **options)


def _one_thread(_):
    """Workers are the parallelism: OpenCV's threads inside them would only fight for the cores (torch sets its own)."""
    cv2.setNumThreads(0)
