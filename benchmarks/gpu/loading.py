"""Images a second of the loader alone, and of a step fed by it."""
import tempfile
import time
from pathlib import Path

from contrastive.view_pairs import ViewPairs
from data.dataset import SegmentationDataset
from data.loaders import epoch_loader
from data.normalization import to_images
from drawn import draw_images
from gpu.common import Meter, report
from gpu.steps import make
from models.backbones import IMAGENET


def epoch_rate(loader, meter, use):
    """Images a second over the second epoch, when all workers have started."""
    for epoch in range(2):
        loader.batch_sampler.epoch = epoch
        meter.synchronize()
        start = time.perf_counter()
        for batch in loader:
            use(batch)
        meter.synchronize()
    return len(loader) * loader.batch_sampler.batch_size / (time.perf_counter() - start)


def run(settings):
    meter = Meter(settings.device, settings.steps)
    steps = make(settings, loss='gathered')

    def feed(batch):
        steps.images = [to_images(batch[view], meter.device, IMAGENET) for view in ('query', 'key')]
        steps.masks = [batch[view].to(meter.device, non_blocking=True) for view in ('query_mask', 'key_mask')]
        steps.object_pixels = batch['object_pixels']
        steps.whole()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / 'drawn'
        draw_images(folder, settings.images)
        pairs = ViewPairs(SegmentationDataset(folder, 'trainaug', 'drawn'), 0, settings.size)
        for workers in settings.workers:
            for name, use in (('loader alone', lambda batch: None), ('step fed by it', feed)):
                loader = epoch_loader(pairs, settings.batch, 0, workers, meter.device)
                report(f'{name}, {workers} workers', value=epoch_rate(loader, meter, use), unit='images/s')
                del loader
