"""Evaluate and visualise a fine-tuned network (arXiv 2102.06191, section 4).

    python eval.py --config_env configs/env.yml \\
        --config_exp configs/linear_finetune/linear_finetune_VOCSegmentation_supervised_saliency.yml --state-dict PATH

PATH is best_model.pth.tar or checkpoint.pth.tar of linear_finetune.py or finetune.py, or the zoo:// name of a published model
(see python -m utils.model_zoo). Results are under <root_dir>/<experiment file's name>/eval/<PATH's file name>/, with the suffix
_crf if the CRF is used.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
import argparse
import logging
from pathlib import Path

import yaml

from evaluation.flags import add_pictures_flag
from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.config.keys import EVAL
from utils.errors import UserError

log = logging.getLogger('maskcontrast')


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, amp='none')
    parser.add_argument('--state-dict', required=True, help='weights of the fine-tuned network: a path, or zoo://<name>')
    parser.add_argument('--crf-postprocess', action='store_true',
                        help='refine the predictions with a fully connected CRF (default: no)')
    parser.add_argument('--images', help='a folder of images without labels, instead of the split of the data set: '
                                         'predictions and pictures, no score')
    add_pictures_flag(parser)
    return parser.parse_args(argv)


@parallel_command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    check_early(args, EVAL)
    # Imported here, so that --help and mistakes in the configuration do not wait for PyTorch.
    from data.dataset import dataset_folder
    from data.image_folder import ImageFolder
    from data.label_space import VOC, label_space
    from evaluation.context import EvaluationContext
    from evaluation.inference import evaluate
    from evaluation.metrics import class_iou
    from evaluation.model_loading import finetuned_network
    from evaluation.results import print_iou, write_results
    from evaluation.splits import evaluation_split
    from utils.model_zoo.zoo import local_file, sha256
    from utils.parallel.distributed import main_first
    from utils.parallel.ranks import is_main
    from utils.storage.run_folder import set_aside
    from utils.training.device import on_device

    run = EvaluationContext(args, EVAL)
    p = run.p
    with main_first():  # which may fetch them
        weights = Path(local_file(args.state_dict, p.root_dir)).resolve()
    if not weights.is_file():
        raise UserError(f'--state-dict names {weights}, which {"is not a file" if weights.exists() else "does not exist"}')
    given = ImageFolder(args.images, without=p.root_dir, max_pixels=p.max_image_pixels) if args.images is not None else None

    # Data
    only_names = given and p.val_db_name == VOC  # whose class names are known without downloading it
    with main_first():
        folder = Path(p.db_root) / VOC if only_names else dataset_folder(p.db_root, p.val_db_name)
    dataset = given or evaluation_split(folder, p.val_db_kwargs.split, max_pixels=p.max_image_pixels)
    space = label_space(folder)

    # Model
    network = on_device(finetuned_network(p, len(space), weights), run.device)

    # Output
    run.output = Path(p.output_dir) / 'eval' / (weights.name + ('_crf' if args.crf_postprocess else ''))
    other = None
    if given:
        other = str(given.folder)
    elif p.val_db_kwargs.split != 'val':
        other = str(Path(folder) / 'sets' / f'{p.val_db_kwargs.split}.txt')
    subject = {'weights_sha256': sha256(weights), 'images': other}
    aside = None
    with main_first():
        if is_main() and subject_of(run.output) not in (None, subject):
            aside = set_aside(run.output)
        run.start_log()
    if aside:
        log.info('The evaluation of another model or of other images is now in %s', aside)
    log.info('%s: %d images, %d classes; weights: %s', given.folder if given else folder, len(dataset), len(space), weights)

    # Evaluation
    loader = run.loader(dataset, len(space))
    confusion = evaluate(network, loader, space, run.output, run.device, run.precision, args.crf_postprocess,
                         args.num_visualizations)
    if not is_main():
        return
    run.write_config(weights=str(weights), crf=args.crf_postprocess, **subject)
    log.info('Predictions and pictures are in %s', run.output)
    iou = None if confusion is None else class_iou(confusion) * 100
    write_results(run.output, EVAL, weights, space.names, iou, crf=args.crf_postprocess)
    if iou is not None:
        print_iou(log, space.names, iou)


def subject_of(output: Path) -> dict[str, str | None] | None:
    """The model and images of the evaluation in `output`, or None without a whole one."""
    try:
        resolved = yaml.safe_load((output / 'config.yml').read_text())['resolved']
        return {key: resolved[key] for key in ('weights_sha256', 'images')}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


if __name__ == '__main__':
    main()
