"""Pairs of views, and the order in which a run sees them. All randomness follows from (seed, epoch, image id)."""
import numpy as np
import torch

from contrastive.views import draw_view, render
from data.batches import make_loader
from data.reading import read_gray
from utils.errors import UserError

TRIES = 3            # per image, before another takes its place
REPLACEMENTS = 50    # then the data set is at fault, not the crop
COVER = (0.01, 0.99)  # exclusive bounds of the object's share of a view


class ViewPairs(torch.utils.data.Dataset):
    """The key and the query view of one image (paper section 3).

    dataset: a `SegmentationDataset` with saliency. seed: of the run. size: of a view. mask_stride: masks are taken at
    every so manyth pixel (the network's stride without `upsample`), before their cover is tested.
    skip_unreadable: another image takes the place of one that can't be read, which is then named in `skipped`.

    Item (epoch, index) is a dict: `query`, `key` (size x size x 3 uint8 tensors, RGB), `query_mask`, `key_mask` (uint8, 1 =
    object), `id` of the image, `skipped` (lines about files that were passed over). It depends on nothing else, neither
    on the worker nor on what was drawn before.
    Raises `UserError` when no view of 50 other images passes, or a file is unreadable.
    """

    def __init__(self, dataset, seed, size, mask_stride=1, skip_unreadable=False):
        self.dataset, self.seed, self.size = dataset, seed, size
        self.mask_stride, self.skip_unreadable = mask_stride, skip_unreadable

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        epoch, index = key
        name = self.dataset.ids[index]
        rng = np.random.default_rng([self.seed, epoch, int.from_bytes(name.encode(), 'little')])
        skipped, tried, tries = [], set(), TRIES
        for _ in range(REPLACEMENTS + 1):
            try:
                sample = self.dataset[index]
            except UserError as error:
                if not self.skip_unreadable:
                    raise
                skipped.append(error.line())
                tries = 0
            else:
                tried.add(sample['id'])
            for _ in range(tries):
                pair = [self._view(rng, sample) for _ in range(2)]
                if all(COVER[0] < mask.mean() < COVER[1] for _, mask in pair):
                    return self._item(sample['id'], pair, skipped)
            index, tries = int(rng.integers(len(self.dataset))), 1
        raise UserError(self._no_view_passes(tried, skipped))

    def _view(self, rng, sample):
        image, mask = sample['image'], sample['saliency']
        image, mask = render(image, mask, draw_view(rng, *mask.shape), self.size)
        return image, mask[::self.mask_stride, ::self.mask_stride]

    @staticmethod
    def _item(name, pair, skipped):
        (key, key_mask), (query, query_mask) = pair
        item = {'query': query, 'key': key, 'query_mask': query_mask, 'key_mask': key_mask}
        item = {part: torch.from_numpy(np.ascontiguousarray(array)) for part, array in item.items()}
        return {**item, 'id': name, 'skipped': skipped}

    def _no_view_passes(self, tried, skipped):
        if not tried:
            return f'{len(skipped)} images in a row could not be read, beginning with: {skipped[0]}'
        largest = max(read_gray(self.dataset.masks / f'{name}.png').max() for name in tried)
        return (f'{self.dataset.masks}: no view of {REPLACEMENTS} images in a row has a mask that covers more than 1% and '
                f'less than 99% of it (the largest value in these masks is {largest}; object pixels must be '
                '255)')


class EpochBatches(torch.utils.data.Sampler):
    """Batches of (epoch, index) keys for `ViewPairs`: a new order in every epoch, incomplete last batches dropped.

    length: images of the data set. batch_size: global; every process takes its share of each batch.
    `epoch` and `start` (the first step) are set before each iteration.
    """

    def __init__(self, length, batch_size, seed, rank=0, world_size=1):
        self.length, self.seed = length, seed
        self.batch_size, self.share, self.rank = batch_size, batch_size // world_size, rank
        self.epoch = self.start = 0

    def __len__(self):
        return self.length // self.batch_size

    def __iter__(self):
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for step in range(self.start, len(self)):
            first = step * self.batch_size + self.rank * self.share
            yield [(self.epoch, int(index)) for index in order[first:first + self.share]]


def pair_loader(pairs, batches, num_workers, device):
    """A DataLoader of `ViewPairs` in `EpochBatches`, whose workers live as long as it does."""
    return make_loader(pairs, num_workers, device, batch_sampler=batches, collate_fn=_collate,
                       persistent_workers=num_workers > 0)


def _collate(items):
    batch = {part: torch.stack([item[part] for item in items]) for part in ('query', 'key', 'query_mask', 'key_mask')}
    return {**batch, 'id': [item['id'] for item in items], 'skipped': [line for item in items for line in item['skipped']]}
