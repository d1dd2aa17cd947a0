"""Evaluate and visualise a fine-tuned network (arXiv 2102.06191, section 4).

    python eval.py --config_env configs/env.yml \\
        --config_exp configs/linear_finetune/linear_finetune_VOCSegmentation_supervised_saliency.yml --state-dict PATH

PATH is best_model.pth.tar or checkpoint.pth.tar of linear_finetune.py, or the zoo:// name of a published model (see
python -m utils.model_zoo). Results are under
<root_dir>/<experiment file's name>/eval/<PATH's file name>/, with _crf at its end where the CRF is used.
"""
from pathlib import Path

import yaml

from evaluation.flags import add_pictures_flag
from utils.cli.command import parallel_command
from utils.cli.flags import check_early, make_parser
from utils.cli.log import start_log
from utils.config import create_config
from utils.config.keys import EVAL
from utils.config.snapshot import write_config
from utils.errors import UserError


def parse_arguments(argv):
    parser = make_parser(__doc__, amp='none')
    parser.add_argument('--state-dict', required=True, help='weights of the fine-tuned network: a path, or zoo://<name>')
    parser.add_argument('--crf-postprocess', action='store_true',
                        help='refine the predictions with a fully connected CRF (default: no)')
    parser.add_argument('--images', help="a folder of images without labels, in place of the data set's split: "
                                         'predictions and pictures, no score')
    add_pictures_flag(parser)
    return parser.parse_args(argv)


@parallel_command
def main(argv=None):
    args = parse_arguments(argv)
    check_early(args, EVAL)
    # Here, since PyTorch takes seconds that --help and a mistake in the configuration should not cost.
    import torch

    from data.dataset import VOC, class_names, dataset_folder
    from data.image_folder import ImageFolder
    from data.loaders import split_loader
    from evaluation.dataset import EvaluationImages
    from evaluation.inference import evaluate
    from evaluation.metrics import class_iou
    from evaluation.model_loading import finetuned_network
    from evaluation.results import print_iou, write_results
    from evaluation.splits import evaluation_split
    from utils.model_zoo.zoo import local_file, sha256
    from utils.parallel.distributed import main_first
    from utils.parallel.ranks import is_main
    from utils.storage.run_folder import set_aside
    from utils.training.device import join_processes
    from utils.training.precision import choose_precision

    device = join_processes(args)
    p = create_config(args.config_env, args.config_exp, EVAL)
    precision = choose_precision(args.amp, device)
    with main_first():  # which may fetch them
        weights = Path(local_file(args.state_dict, p.root_dir)).resolve()
    if not weights.is_file():
        raise UserError(f'--state-dict names {weights}, which is {"no file" if weights.exists() else "not there"}')
    given = ImageFolder(args.images, without=p.root_dir) if args.images is not None else None
    # Data
    only_names = given and p.val_db_name == VOC  # whose class names are known without fetching it
    with main_first():
        folder = Path(p.db_root) / VOC if only_names else dataset_folder(p.db_root, p.val_db_name)
    dataset = given or evaluation_split(folder, p.val_db_kwargs.split)
    classes = class_names(folder)
    images = EvaluationImages(dataset, p.transformation_kwargs.resolution, len(classes))

    # Model
    network = finetuned_network(p, len(classes), weights).to(device, memory_format=torch.channels_last)

    # Output
    output = Path(p.output_dir) / 'eval' / (weights.name + ('_crf' if args.crf_postprocess else ''))
    other = given.folder if given else dataset.split_file if p.val_db_kwargs.split != 'val' else None
    subject = {'weights_sha256': sha256(weights), 'images': other and str(other)}
    aside = None
    with main_first():
        if is_main() and subject_of(output) not in (None, subject):
            aside = set_aside(output)
        log = start_log(output / 'log_file.txt')
    if aside:
        log.info('The evaluation of another model or of other images is now in %s', aside)
    log.info('%s: %d images, %d classes; weights: %s', given.folder if given else folder, len(images), len(classes), weights)

    # Evaluation
    loader = split_loader(images, p.num_workers, device, p.val_db_kwargs.batch_size)
    confusion = evaluate(network, loader, classes, output, device, precision, args.crf_postprocess, args.num_visualizations)
    if not is_main():
        return
    write_config(output / 'config.yml', p, resolved={'device': str(device), 'precision': precision, 'weights': str(weights),
                                                     'crf': args.crf_postprocess, **subject})
    log.info('Predictions and pictures are in %s', output)
    iou = None if confusion is None else class_iou(confusion) * 100
    write_results(output, EVAL, weights, classes, iou, crf=args.crf_postprocess)
    if iou is not None:
        print_iou(log, classes, iou)


def subject_of(output):
    """The model and images of the evaluation in `output`, or None without a whole one."""
    try:
        resolved = yaml.safe_load((output / 'config.yml').read_text())['resolved']
        return {key: resolved[key] for key in ('weights_sha256', 'images')}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


if __name__ == '__main__':
    main()
