"""Score the checkpoints that a pre-training keeps (`keep_every`), and draw what it gains over its start.

    python curve.py --config_env configs/env.yml --run ../output/VOCSegmentation_supervised_saliency_model [--follow]

The start is the backbone alone with its initial weights. Results are under <run>/curve/: curve.json and curve.png, which grow
with each checkpoint. When run again, it scores the new checkpoints.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import time
from collections.abc import Sequence

from utils.cli.command import command
from utils.cli.flags import add_machine_flags, make_env_parser
from utils.config import read_env
from utils.config.keys import MAX_SEED

BATCH, FIRST_SEED = 10, 1234  # those of kmeans.py
POLL = 2                      # seconds between looks at a running pre-training


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_env_parser(__doc__)
    parser.add_argument('--run', required=True, metavar='FOLDER', help="folder of the pre-training, or its name below root_dir")
    parser.add_argument('--follow', action='store_true', help='wait for further checkpoints until the run ends (default: no)')
    parser.add_argument('--resolution', type=_positive, nargs=2, default=(512, 512), metavar=('HEIGHT', 'WIDTH'),
                        help="size of the network's input (default: 512 512)")
    parser.add_argument('--database', default='trainaug', metavar='SPLIT',
                        help='split for the retrieval database and for fitting the classifier (default: trainaug)')
    parser.add_argument('--saliency', metavar='NAME',
                        help="use the masks saliency_NAME of the data set (default: the objects in the labels)")
    parser.add_argument('--num_seeds', type=_positive, default=5, help='clusterings to average over (default: 5)')
    parser.add_argument('--num_workers', type=int, default=2, help='processes that read images (default: 2)')
    add_machine_flags(parser, amp='none', seed=f'{FIRST_SEED}; of the first clustering')
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    env = read_env(args.config_env)
    # Imported here, so that --help and mistakes in a flag do not wait for PyTorch.
    from easydict import EasyDict

    from data.dataset import SegmentationDataset, dataset_folder
    from data.decoding import MAX_PIXELS
    from data.label_space import label_space
    from data.loaders import make_loader
    from evaluation.evaluation_images import EvaluationImages
    from evaluation.learning_curve.following import first_checkpoint, new_checkpoints, run_folder
    from evaluation.learning_curve.record import CURVE, Curve
    from evaluation.learning_curve.scoring import point_text, score_network
    from evaluation.model_loading import embedding_network
    from evaluation.visualization.curve import curve_figure, save_curve
    from models.networks import PretrainingNetwork
    from utils.checkpoint import load_file
    from utils.cli.log import start_log
    from utils.storage.run_folder import hold_folder
    from utils.training.device import be_deterministic, choose_device, keep_freed_memory, on_device
    from utils.training.precision import choose_precision

    if args.deterministic:
        be_deterministic()
    device = choose_device(args.device)
    keep_freed_memory()
    run = run_folder(args.run, env.root_dir)
    p = EasyDict(load_file(first_checkpoint(run, args.follow, POLL))['config'])
    output = run / 'curve'
    hold_folder(output)
    log = start_log(output / 'log_file.txt')
    precision = choose_precision(args.amp, device)

    # Data
    folder = dataset_folder(env.db_root, p.train_db_name)
    space, masks = label_space(folder), f'saliency_{args.saliency}' if args.saliency else 'labels'
    splits = [SegmentationDataset(folder, split, args.saliency, labels=True, max_pixels=p.get('max_image_pixels', MAX_PIXELS))
              for split in (args.database, 'val')]
    if len(splits[1]) < space.n_clusters - 1:
        log.warning('%s: %d images are too few for %d clusters of objects: K-means is left out', splits[1].split_file,
                    len(splits[1]), space.n_clusters - 1)
    database, queries = (make_loader(EvaluationImages(split, args.resolution, len(space)), args.num_workers, device,
                                     batch_size=BATCH) for split in splits)
    first_seed = FIRST_SEED if args.seed is None else min(args.seed, MAX_SEED + 1 - args.num_seeds)
    seeds = range(first_seed, first_seed + args.num_seeds)
    curve = Curve(output / CURVE, {
        'data': p.train_db_name, 'database': args.database, 'database_images': len(splits[0]), 'val_images': len(splits[1]),
        'masks': masks, 'resolution': list(args.resolution), 'seeds': list(seeds), 'precision': precision})
    if curve.set_aside:
        log.info('The earlier scores, of other settings, are now in %s', curve.set_aside)
    log.info('%s: %d images of %s, %d of val, masks: %s, %d x %d, precision %s', folder, len(splits[0]), args.database,
             len(splits[1]), masks, *args.resolution, precision)

    # Scores
    for epoch, path in new_checkpoints(curve, run, args.follow, POLL):
        started = time.perf_counter()
        network = embedding_network(p, path)
        assert isinstance(network, PretrainingNetwork)  # main.py trains no other
        scores = score_network(on_device(network, device).eval(), database, queries, device, precision, space, seeds)
        curve.add(epoch, path, load_file(path)['steps'], scores)
        save_curve(output / 'curve.png', curve_figure(curve.in_order(), curve.start(), f'{run.name}, {p.train_db_name}'))
        log.info('%s (%.0f s)', point_text(curve.points[epoch], curve.start()), time.perf_counter() - started)
    log.info('%d checkpoints scored: %s, %s', len(curve.points), output / CURVE, output / 'curve.png')


def _positive(text: str):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'must be an integer of at least 1, not {text}')
    return int(text)


if __name__ == '__main__':
    main()
