"""Networks of every kind that checkpoints hold, with random weights, in files."""
import torch

from data.dataset import SegmentationDataset
from models.factory import get_model

PRETRAINING = {'kmeans_eval': True, 'model_kwargs': {'ndim': 5}}
NETWORKS = {
    'linear': ({'num_classes': 6}, ['logits']),
    'linear_on_backbone': ({'num_classes': 6, 'head': 'none'}, ['logits']),
    'output_stride_32': ({'num_classes': 6, 'head': 'none', 'backbone_kwargs': {'dilated': False}}, ['logits']),
    'pretraining': (PRETRAINING, ['embeddings', 'saliency']),
    'no_saliency': ({**PRETRAINING, 'head': 'linear', 'model_kwargs': {'ndim': 5, 'use_classification_head': False}},
                    ['embeddings']),
}


def weights_of(p, path):
    """A network with random weights and statistics that are not the identity, stored at `path` as the scripts store it."""
    torch.manual_seed(0)
    network = get_model({'backbone': 'resnet18', **p}).eval()
    for name, buffer in network.named_buffers():
        if name.endswith('running_var'):
            buffer.uniform_(0.5, 1.5)
    state = network.state_dict()
    if 'kmeans_eval' in p:
        state = {'model': {f'module.model_q.{key}': value for key, value in state.items()}}
    torch.save(state, path)
    return network


def pretraining_checkpoint(path, p, root):
    """What main.py leaves, of a random network whose batch norms know images of `Shapes`. p: its backbone. Returns path."""
    torch.manual_seed(0)
    network = get_model({**p, 'model_kwargs': {'ndim': 8}})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1
            torch.nn.init.ones_(module.weight)  # timm begins with zeros at the end of each residual branch
    dataset = SegmentationDataset(root / 'Shapes', 'trainaug')
    images = torch.stack([torch.from_numpy(dataset[index]['image'][:48, :48]) for index in range(len(dataset))])
    with torch.no_grad():
        network(images.permute(0, 3, 1, 2) / 64 - 2)
    state = {f'module.{part}.{key}': value for part in ('model_q', 'model_k') for key, value in network.state_dict().items()}
    torch.save({'model': {**state, 'module.queue': torch.zeros(8, 8), 'module.queue_ptr': torch.zeros(1)}, 'epoch': 1}, path)
    return path
