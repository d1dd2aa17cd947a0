"""Real runs of the scripts on small `Shapes`."""
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from data.synthetic_shapes import draw_shapes

ROOT = Path(__file__).resolve().parents[2]
NETWORK = {'backbone': 'resnet18', 'backbone_kwargs': {'dilated': True, 'pretraining': None}, 'head': 'deeplab',
           'num_workers': 2}
OPTIMIZER = {'optimizer': 'sgd', 'optimizer_kwargs': {'lr': 0.01, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False}}
EMBEDDING = {'model_kwargs': {'ndim': 16, 'head': 'linear', 'upsample': True, 'use_classification_head': True}}
PRETRAINING = {
    **NETWORK, **OPTIMIZER, **EMBEDDING, 'train_db_name': 'Shapes', 'train_db_kwargs': {'saliency': 'supervised_model'},
    'train_batch_size': 8, 'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 16}, 'epochs': 3, 'scheduler': 'poly',
    'freeze_layers': False, 'transformation_kwargs': {'crop_size': 64}, 'seed': 3}
EVALUATION = {
    **NETWORK, **EMBEDDING, 'train_db_name': 'Shapes', 'val_db_name': 'Shapes', 'kmeans_eval': True,
    'val_db_kwargs': {'batch_size': 6, 'saliency': 'supervised_model'}, 'transformation_kwargs': {'resolution': [96, 96]},
    'retrieval_kwargs': {'train_split': 'trainaug', 'saliency': 'supervised_model'}}
LINEAR = {
    **NETWORK, **OPTIMIZER, 'train_db_name': 'Shapes', 'val_db_name': 'Shapes', 'epochs': 2, 'scheduler': 'constant', 'seed': 3,
    'train_db_kwargs': {'split': 'trainaug', 'batch_size': 8}, 'val_db_kwargs': {'batch_size': 6},
    'transformation_kwargs': {'resolution': [96, 96]}, 'freeze_batchnorm': 'all'}


class Runs:
    """Runs in `folder`, on one device, with images of their own. device: of `Settings`."""

    def __init__(self, folder, device):
        self.folder, self.device = Path(folder), device
        draw_shapes(self.folder / 'datasets' / 'Shapes', train=24, val=12, size=96)
        (self.folder / 'env.yml').write_text(yaml.safe_dump({'root_dir': str(self.folder / 'output'),
                                                             'db_root': str(self.folder / 'datasets')}))

    def command(self, script, name, experiment, *flags):
        """The command of `script` (with its tree) for an experiment of this name. Its results are in `output(name)`."""
        file = self.folder / f'{name}.yml'
        file.write_text(yaml.safe_dump(experiment))
        return [str(ROOT / script), '--config_env', str(self.folder / 'env.yml'), '--config_exp', str(file), '--device',
                self.device, *flags]

    def start(self, *command, **named):
        """Starts `command` of Python; it may use one thread, as the rounding of sums depends on their number."""
        return subprocess.Popen([sys.executable, *command], env={**os.environ, 'OMP_NUM_THREADS': '1'}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **named)

    def run(self, *command):
        """Runs it to its end. Raises RuntimeError with its output if it fails."""
        process = self.start(*command)
        said = process.communicate()[0]
        if process.returncode:
            lines = said.strip().splitlines()
            print(said, file=sys.stderr)
            raise RuntimeError(f'{Path(command[0]).name} ended with {process.returncode}: {lines[-1] if lines else ""}')
        return said

    def output(self, name):
        return self.folder / 'output' / name

    def checkpoint(self, name):
        return torch.load(self.output(name) / 'checkpoint.pth.tar', map_location='cpu', weights_only=True)

    def results(self, name):
        return json.loads((self.output(name) / 'results.json').read_text())


def difference(a, b):
    """The largest relative difference of the tensors of two models; 0 where all are equal bit for bit."""
    assert a.keys() == b.keys()
    return max((a[key].double() - b[key].double()).norm().item() / max(b[key].double().norm().item(), 1e-12) for key in a)
