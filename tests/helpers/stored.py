"""Networks of every kind that checkpoints hold, with random weights, in files."""
import torch

from models.factory import get_model

PRETRAINING = {'kmeans_eval': True, 'model_kwargs': {'ndim': 5}}
NETWORKS = {
    'linear': ({'num_classes': 6}, ['logits']),
    'linear_on_backbone': ({'num_classes': 6, 'head': 'none'}, ['logits']),
    'output_stride_32': ({'num_classes': 6, 'backbone_kwargs': {'dilated': False}}, ['logits']),
    'pretraining': (PRETRAINING, ['embeddings', 'saliency']),
    'no_saliency': ({**PRETRAINING, 'model_kwargs': {'ndim': 5, 'use_classification_head': False}}, ['embeddings']),
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
