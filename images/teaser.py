"""Draw images/teaser.png, the method in one figure, from a network that was trained: that of `make demo`.

    .venv/bin/python images/teaser.py --out images/teaser.png

Every part is computed: two views of an image as the training draws them, the prototype of the key view's mask, those of other
images, and the query's pixel embeddings, on the two axes in which their variance is largest.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'pretrain'))

from contrastive.losses import mask_prototypes  # noqa: E402
from contrastive.view_pairs import ViewPairs  # noqa: E402
from data.dataset import SegmentationDataset, dataset_folder  # noqa: E402
from data.normalization import to_images  # noqa: E402
from models.backbones import grid_kwargs  # noqa: E402
from models.factory import get_model  # noqa: E402
from models.interpolation import resize  # noqa: E402
from utils.checkpoint import load_exactly, load_file  # noqa: E402
from utils.cli.command import command  # noqa: E402
from utils.cli.flags import make_env_parser  # noqa: E402
from utils.config import create_config  # noqa: E402
from utils.config.keys import PRETRAIN  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.storage.atomic import atomic_file  # noqa: E402

OTHERS = 12    # images whose prototypes stand for the batch and the queue
BLUE, RED, GRAY = '#2c6fbb', '#c0392b', '#8a8f98'


def parse_arguments(argv):
    parser = make_env_parser(__doc__, default=ROOT / 'pretrain' / 'configs' / 'env.yml')
    parser.add_argument('--config_exp', default=ROOT / 'pretrain' / 'configs' / 'demo.yml',
                        help="YAML file of the pre-training (default: the demo's)")
    parser.add_argument('--image', type=int, default=3, help='index of the image in the training split (default: 3)')
    parser.add_argument('--out', type=Path, required=True, help='picture to write')
    return parser.parse_args(argv)


def embedded(p, items):
    """Grids of the query network for the query views, B x D x h x w, and prototypes of the key views, B x D."""
    checkpoint = Path(p.output_dir) / 'checkpoint.pth.tar'
    state = load_file(checkpoint)['model']
    grids = {}
    for part, view in (('model_q', 'query'), ('model_k', 'key')):
        network = get_model({**p, 'backbone_kwargs': grid_kwargs(p.backbone_kwargs)}).eval()
        prefix = f'module.{part}.'
        weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        load_exactly(network, weights, checkpoint)
        images = to_images(torch.stack([item[view] for item in items]), torch.device('cpu'), network.backbone.normalization)
        with torch.no_grad():
            grids[view] = network.grid(images)[0]
    masks = torch.stack([item['key_mask'] for item in items])
    return grids['query'], mask_prototypes(grids['key'], masks)


def pixel_embeddings(grid, mask):
    """Normalised embeddings of the object's pixels in one view: D x h x w, H x W -> N x D."""
    pixels = F.normalize(resize(grid[None], mask.shape)[0], dim=0)
    return pixels.permute(1, 2, 0)[mask.bool()]


def picture(figure, box, image, title, mask):
    """An image, H x W x 3 uint8, pale around its mask, in a box of (left, bottom, width, height) as shares of the figure."""
    axes = figure.add_axes(box)
    axes.imshow(np.where(mask[..., None] > 0, image, image // 3 + 150))
    axes.contour(mask, [0.5], colors=RED, linewidths=1.4)
    axes.set_title(title, fontsize=9)
    axes.axis('off')


def block(canvas, left, bottom, width, height, text, colour):
    canvas.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle='round,pad=0.004,rounding_size=0.012',
                                    facecolor=colour, edgecolor='none'))
    canvas.text(left + width / 2, bottom + height / 2, text, ha='center', va='center', color='white', fontsize=9)


def arrow(canvas, start, end, **style):
    canvas.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=11, color='#444444', linewidth=1.1, **style))


def contrast(axes, pixels, prototypes):
    """pixels: N x D of image 0. prototypes: B x D, image 0's first. Plotted on the two main axes of all of them."""
    points = torch.cat([prototypes, pixels[::max(1, len(pixels) // 300)]])
    centred = points - points.mean(0)
    flat = (centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].t()).numpy()
    own, others, cloud = flat[0], flat[1:len(prototypes)], flat[len(prototypes):]
    axes.scatter(*cloud.T, s=7, color=BLUE, alpha=0.35, linewidths=0, label="the object's pixels in the query view")
    axes.scatter(*others.T, s=60, marker='s', color=GRAY, label='prototypes of other images (batch and queue): pushed away')
    axes.scatter(*own, s=190, marker='*', color=RED, zorder=3, label="its own prototype, of the key view's mask: pulled closer")
    axes.set(xticks=[], yticks=[])
    axes.set_title("contrast: which image's prototype is it?", fontsize=9)
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.02), fontsize=8, frameon=False)


def draw(sample, items, grid, prototypes):
    figure = Figure(figsize=(11, 4.4), dpi=110)
    canvas = figure.add_axes([0, 0, 1, 1])
    canvas.set(xlim=(0, 1), ylim=(0, 1))
    canvas.axis('off')
    picture(figure, [0.01, 0.32, 0.135, 0.34], sample['image'], 'image and mask,\nwithout labels', sample['saliency'])
    for bottom, view, network, colour in ((0.56, 'query', 'query network\n(learns)', BLUE),
                                          (0.08, 'key', 'key network\n(moving average)', RED)):
        mask = items[0][f'{view}_mask'].numpy()
        picture(figure, [0.19, bottom, 0.135, 0.34], items[0][view].numpy(), f'{view} view and its mask', mask)
        block(canvas, 0.37, bottom + 0.09, 0.12, 0.16, network, colour)
        arrow(canvas, (0.145, 0.52), (0.182, bottom + 0.17))
        arrow(canvas, (0.328, bottom + 0.17), (0.364, bottom + 0.17))
    arrow(canvas, (0.43, 0.64), (0.43, 0.345), linestyle='--')
    block(canvas, 0.53, 0.65, 0.115, 0.16, 'embedding of\neach pixel', BLUE)
    block(canvas, 0.53, 0.17, 0.115, 0.16, 'prototype:\nmean in the mask', RED)
    arrow(canvas, (0.495, 0.73), (0.525, 0.73))
    arrow(canvas, (0.495, 0.25), (0.525, 0.25))
    arrow(canvas, (0.65, 0.73), (0.675, 0.68))
    arrow(canvas, (0.65, 0.25), (0.675, 0.42))
    contrast(figure.add_axes([0.68, 0.3, 0.3, 0.58]), pixel_embeddings(grid, items[0]['query_mask']), prototypes)
    return figure


@command
def main(argv=None):
    args = parse_arguments(argv)
    p = create_config(args.config_env, args.config_exp, PRETRAIN)
    dataset = SegmentationDataset(dataset_folder(p.db_root, p.train_db_name), 'trainaug', saliency=p.train_db_kwargs.saliency,
                                  drop_missing=True)
    if not 0 <= args.image < len(dataset):
        raise UserError(f'--image must be from 0 to {len(dataset) - 1}, not {args.image}')
    pairs = ViewPairs(dataset, seed=0, size=p.transformation_kwargs.crop_size)
    items = [pairs[0, (args.image + number) % len(pairs)] for number in range(OTHERS + 1)]
    grid, prototypes = embedded(p, items)
    sample = dataset[dataset.ids.index(items[0]['id'])]  # another than args.image where no view of that one would do
    with atomic_file(args.out) as file:
        draw(sample, items, grid[0], prototypes).savefig(file, format='png')
    print(args.out)


if __name__ == '__main__':
    main()
