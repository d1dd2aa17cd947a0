"""Optimiser and learning-rate schedule (paper section 3)."""
import math

import torch


def get_optimizer(parameters, name, lr, weight_decay=0.0, momentum=None, nesterov=None):
    """SGD or Adam over the parameters that learn: one group, weight decay on all of it, batch norm and biases too."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if name == 'adam':
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum or 0,
                           nesterov=bool(nesterov))


def learning_rate(scheduler, lr, epoch, epochs, lr_decay_rate=None, lr_decay_epochs=None):
    """The learning rate of `epoch` (counted from 0) of `epochs`, for a schedule that starts from `lr`.

    poly: lr * (1 - epoch / epochs) ** 0.9. step: lr * rate ** (number of decay epochs that are < epoch).
    cosine: from lr down to lr * rate ** 3. constant: lr.
    """
    if scheduler == 'constant':
        return lr
    if scheduler == 'poly':
        return lr * (1 - epoch / epochs) ** 0.9
    if scheduler == 'step':
        return lr * lr_decay_rate ** sum(milestone < epoch for milestone in lr_decay_epochs)
    if scheduler == 'cosine':
        lowest = lr * lr_decay_rate ** 3
        return lowest + (lr - lowest) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    raise ValueError(f'unknown scheduler {scheduler}')


def set_learning_rate(optimizer, lr):
    for group in optimizer.param_groups:
        group['lr'] = lr
