"""Learning rates by hand, and what the optimiser decays."""
import pytest
import torch

from utils.training.optimizer import get_optimizer, learning_rate, set_learning_rate


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


@pytest.mark.parametrize('implementation', ['foreach', 'fused'])
def test_sgd_does_not_depend_on_how_it_is_computed(implementation):
    """A GPU takes all tensors at once, a CPU one after the other; both against the formula."""
    torch.manual_seed(0)
    start = [torch.randn(5, 3), torch.randn(7)]
    settings = {'lr': 0.1, 'weight_decay': 0.01, 'momentum': 0.9}
    ours, theirs, plain = ([value.clone().requires_grad_() for value in start] for _ in range(3))
    optimizers = [get_optimizer(ours, 'sgd', **settings), torch.optim.SGD(theirs, **settings, **{implementation: True})]
    momenta = [torch.zeros_like(value) for value in start]
    for _ in range(3):
        for number, gradient in enumerate([torch.randn(5, 3), torch.randn(7)]):
            ours[number].grad, theirs[number].grad = gradient.clone(), gradient.clone()
            with torch.no_grad():
                momenta[number] = 0.9 * momenta[number] + gradient + 0.01 * plain[number]
                plain[number] -= 0.1 * momenta[number]
        for optimizer in optimizers:
            optimizer.step()
    for a, b, c in zip(ours, theirs, plain, strict=True):
        assert torch.allclose(a, c, rtol=1e-5, atol=1e-6) and torch.allclose(b, c, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize('name', ['sgd', 'adam'])
def test_heads_may_have_a_learning_rate_of_their_own(name):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    network[0].requires_grad_(False)
    heads = list(network[2].parameters())
    optimizer = get_optimizer(network.parameters(), name, lr=0.5, weight_decay=0.1, head_lr=2.0, heads=heads)
    assert [[id(one) for one in group['params']] for group in optimizer.param_groups] == [
        [id(one) for one in network[1].parameters()], [id(one) for one in heads]]
    assert [(group['lr'], group['weight_decay']) for group in optimizer.param_groups] == [(0.5, 0.1), (2.0, 0.1)]
    set_learning_rate(optimizer, 0.25)  # half of it
    assert [group['lr'] for group in optimizer.param_groups] == [0.25, 1.0]
    single = get_optimizer(network.parameters(), name, lr=0.5, heads=heads)
    set_learning_rate(single, 0.25)
    assert [group['lr'] for group in single.param_groups] == [0.25]
