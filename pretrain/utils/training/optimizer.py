"""Optimiser and learning-rate schedule (paper section 3)."""
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch


def get_optimizer(parameters: Iterable[torch.nn.Parameter], name: str, lr: float, weight_decay: float = 0.0,
                  momentum: float | None = None, nesterov: bool | None = None, head_lr: float | None = None,
                  heads: Iterable[torch.nn.Parameter] = ()) -> torch.optim.Optimizer:
    """SGD or Adam over the trained parameters: one group, weight decay on all of it, batch norm and biases too.

    head_lr: a separate learning rate for the parameters in `heads`, which then are a second group; the schedule multiplies both
    alike.
    """
    groups: list[dict[str, Any]] = [{'params': [parameter for parameter in parameters if parameter.requires_grad]}]
    if head_lr is not None:
        own = {id(parameter) for parameter in heads}
        groups = [{'params': [one for one in groups[0]['params'] if (id(one) in own) == inside]} for inside in (False, True)]
        groups[1].update(lr=head_lr, lr_factor=head_lr / lr)
    if name == 'adam':
        return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, momentum=momentum or 0, nesterov=bool(nesterov))


def learning_rate(scheduler: str, lr: float, epoch: int, epochs: int, lr_decay_rate: float | None = None,
                  lr_decay_epochs: Sequence[int] | None = None) -> float:
    """The learning rate of `epoch` (counted from 0) of `epochs`, for a schedule that starts from `lr`.

    poly: lr * (1 - epoch / epochs) ** 0.9. step: lr * rate ** (number of decay epochs that are < epoch).
    cosine: from lr down to lr * rate ** 3. constant: lr.
    """
    if scheduler == 'constant':
        return lr
    if scheduler == 'poly':
        return lr * (1 - epoch / epochs) ** 0.9
    if scheduler == 'step':
        assert lr_decay_rate is not None and lr_decay_epochs is not None  # `create_config` sees to it
        return lr * lr_decay_rate ** sum(milestone < epoch for milestone in lr_decay_epochs)
    if scheduler == 'cosine':
        assert lr_decay_rate is not None
        lowest = lr * lr_decay_rate ** 3
        return lowest + (lr - lowest) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    raise ValueError(f'unknown scheduler {scheduler}')


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Of all groups: `lr`, times the factor of one with a rate of its own."""
    for group in optimizer.param_groups:
        group['lr'] = lr * group.get('lr_factor', 1)
