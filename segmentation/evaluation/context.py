"""The context of every evaluation script: configuration, device, data, log and output folder.

The context stays in the script. The functions of this package take the values that they need.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from data.dataset import SegmentationDataset
from data.image_folder import ImageFolder
from data.label_space import LabelSpace
from data.loaders import split_loader
from evaluation.evaluation_images import EvaluationImages
from evaluation.splits import data_folders
from utils.cli.log import start_log
from utils.config import create_config
from utils.config.keys import TRAINED
from utils.config.snapshot import require_own_folder, write_config
from utils.model_zoo.sources import require_files
from utils.parallel.distributed import main_first
from utils.parallel.ranks import is_main
from utils.training.device import join_processes
from utils.training.precision import choose_precision


class EvaluationContext:
    """args: of the script's command line. script: its name.

    Attributes: device; p, the configuration; precision of the networks (of a script that trains, to be set by it); output,
    the folder of the results. All processes of a run make one, after which they have met.
    """

    def __init__(self, args: argparse.Namespace, script: str):
        self.args = args
        self.device = join_processes(args)
        self.p = create_config(args.config_env, args.config_exp, script)
        self.precision = 'none' if script in TRAINED else choose_precision(args.amp, self.device)
        self.output = Path(self.p.output_dir)
        if is_main():
            require_own_folder(self.output, script, args.config_exp)

    def fetch_files(self, *keys: str) -> None:
        """Have the files that these keys name, downloaded if needed. Raises `UserError` for one that is not there."""
        with main_first():
            require_files(self.p, self.args.config_exp, *keys)

    def start_log(self) -> None:
        """Send the log to the output folder, too."""
        start_log(self.output / 'log_file.txt')

    def data_folders(self) -> tuple[Path, Path, LabelSpace]:
        """As `splits.data_folders`: a data set that is missing is made once."""
        with main_first():
            return data_folders(self.p, self.args.config_exp)

    def loader(self, dataset: SegmentationDataset | ImageFolder, classes: int) -> DataLoader:
        """This process's part of `dataset`, at the network's resolution. classes: how many its labels may have."""
        images = EvaluationImages(dataset, self.p.transformation_kwargs.resolution, classes)
        return split_loader(images, self.p.num_workers, self.device, self.p.val_db_kwargs.batch_size)

    def write_config(self, **resolved: Any) -> None:
        """Write config.yml: the configuration as run, and the resolved settings."""
        if is_main():
            write_config(self.output / 'config.yml', self.p,
                         resolved={'device': str(self.device), 'precision': self.precision, **resolved})
