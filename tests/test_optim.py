"""Learning rates by hand, and what the optimiser decays."""
import pytest
import torch

from utils.optim import get_optimizer, learning_rate


@pytest.mark.parametrize('scheduler, kwargs, epoch, expected', [
    ('constant', {}, 7, 0.1),
    ('poly', {}, 0, 0.1),
    ('poly', {}, 5, 0.1 * 0.5 ** 0.9),
    ('poly', {}, 9, 0.1 * 0.1 ** 0.9),
    ('step', {'lr_decay_rate': 0.1, 'lr_decay_epochs': [3, 6]}, 3, 0.1),  # strictly below: decays after its epoch
    ('step', {'lr_decay_rate': 0.1, 'lr_decay_epochs': [3, 6]}, 4, 0.01),
    ('step', {'lr_decay_rate': 0.1, 'lr_decay_epochs': [3, 6]}, 7, 0.001),
    ('cosine', {'lr_decay_rate': 0.1}, 0, 0.1),
    ('cosine', {'lr_decay_rate': 0.1}, 5, (0.1 + 0.0001) / 2),
    ('cosine', {'lr_decay_rate': 0.1}, 10, 0.0001),
])
def test_learning_rate(scheduler, kwargs, epoch, expected):
    assert learning_rate(scheduler, 0.1, epoch, 10, **kwargs) == pytest.approx(expected, rel=1e-12)


def test_one_group_of_what_learns_with_weight_decay_on_all_of_it():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1), torch.nn.Conv2d(1, 1, 1))
    network[0].requires_grad_(False)
    optimizer = get_optimizer(network.parameters(), 'sgd', lr=0.5, weight_decay=0.1, momentum=0.9, nesterov=False)
    group, = optimizer.param_groups
    assert len(group['params']) == 4 and group['momentum'] == 0.9
    for parameter in network[1:].parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.clone() for parameter in network.parameters()]
    optimizer.step()
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert torch.allclose(parameter, old * (1 - 0.5 * 0.1) if parameter.requires_grad else old)
    assert isinstance(get_optimizer(network.parameters(), 'adam', lr=0.5), torch.optim.Adam)
