"""The method over several real gloo processes, against a plain version in one process, and against simulated ones."""
import os
import sys

import pytest
import torch
from helpers.experiments import SMALL
from helpers.processes import OF_TESTS, Ranks

from contrastive import losses
from contrastive.builder import ContrastiveModel
from contrastive.simulation import SimulatedProcesses
from utils.parallel import distributed
from utils.parallel.random_streams import RandomStreams
from utils.training.device import choose_device

pytestmark = pytest.mark.slow

SETTINGS = {**SMALL, 'model_kwargs': {'ndim': 8}, 'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 12}}
VARIATIONS = {'no queue': {'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 0}},
              'images, no saliency loss': {'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 12, 'contrast': 'image'},
                                           'model_kwargs': {'ndim': 8, 'use_classification_head': False}}}
WORLD, SHARE, SIZE, STEPS = 2, 2, 32, 2
EMPTY = (1, 0)  # step and rank whose images have no object pixel


def build(seed, dropout, **more):
    """In float64, so that equality in real arithmetic shows to 1e-9."""
    torch.manual_seed(seed)
    model = ContrastiveModel(SETTINGS | more).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model


def batch(step, rank=None):
    """Images and masks of one process's share, or of the whole global batch."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2, WORLD * SHARE, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, 2, (2, WORLD * SHARE, SIZE, SIZE), generator=generator)
    if step == EMPTY[0]:
        masks[:, EMPTY[1] * SHARE:(EMPTY[1] + 1) * SHARE] = 0
    mine = slice(None) if rank is None else slice(rank * SHARE, (rank + 1) * SHARE)
    return images[0, mine], images[1, mine], masks[0, mine], masks[1, mine]


def train(model, step_of, rank=None):
    """What the steps give: losses, gradients of each step, final state."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    numbers, gradients = [], []
    for step in range(STEPS):
        output = step_of(*batch(step, rank))
        optimizer.zero_grad()
        output['loss'].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
        optimizer.step()
        numbers.append({name: value.item() for name, value in output.items()})
    return {'losses': numbers, 'gradients': gradients, 'state': model.state_dict()}


def plain_step(model):
    """The step of all processes, written out: everything but the queue and the shuffled key batch is each one's own."""
    def step(im_q, im_k, sal_q, sal_k):
        outputs = [model.model_q(images) for images in im_q.split(SHARE)]
        order = torch.randperm(WORLD * SHARE).tolist()
        with torch.no_grad():
            for query, key in zip(model.model_q.parameters(), model.model_k.parameters(), strict=True):
                key.copy_(model.m * key + (1 - model.m) * query)
            shuffled = torch.cat([model.model_k(im_k[order[first:first + SHARE]])[0]
                                  for first in range(0, WORLD * SHARE, SHARE)])
            k = torch.empty_like(shuffled)
            for place, image in enumerate(order):
                k[image] = shuffled[place]
            prototypes = losses.mask_prototypes(k, sal_k)
        totals = []
        for rank, (q, logits) in enumerate(outputs):
            mine = slice(rank * SHARE, (rank + 1) * SHARE)
            contrastive = q.sum() * 0
            if sal_q[mine].any():
                contrast = losses.contrastive_loss if model.contrast == 'pixel' else losses.image_contrastive_loss
                contrastive = contrast(q, sal_q[mine], prototypes[mine], model.queue.clone(), model.T)[0]
            totals.append(contrastive + (0 if logits is None else losses.saliency_loss(logits, sal_q[mine])))
        if model.K:
            for place, prototype in enumerate(prototypes, start=int(model.queue_ptr)):
                model.queue[:, place % model.K] = prototype
            model.queue_ptr[0] = (model.queue_ptr[0] + len(prototypes)) % model.K
        return {'loss': sum(totals) / WORLD}
    return step


def worker(rank, folder):
    distributed.join('cpu')
    rows = torch.arange(6.).view(3, 2) + 6 * rank
    order = distributed.shared_permutation(6)
    assert order.sort().values.tolist() == list(range(6))
    taken = distributed.take_rows(rows, order)
    assert torch.equal(taken, torch.arange(12.).view(6, 2)[order[3 * rank:3 * rank + 3]])
    assert torch.equal(distributed.take_rows(taken, order.argsort()), rows)
    assert distributed.gather_objects(rank) == ([0, 1] if rank == 0 else None)
    assert distributed.broadcast_object(('a', rank)) == ('a', 0) and distributed.all_reduce(torch.tensor(rank + 1)).item() == 3

    results = {}
    for name, dropout, more in ((0.0, 0.0, {}), (0.5, 0.5, {}), *((name, 0.0, more) for name, more in VARIATIONS.items())):
        model = build(seed=7 * rank, dropout=dropout, **more)  # its start state becomes rank 0's
        RandomStreams(3, rank, 1, choose_device('cpu'))  # sets the generators
        results[name] = train(model, distributed.data_parallel(model, choose_device('cpu')), rank)
    torch.save(results, f'{folder}/rank{rank}')
    distributed.leave()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    processes = Ranks(__file__, [folder], folder / 'logs', WORLD, **OF_TESTS)
    assert processes.wait() == [0] * WORLD, processes.printed()
    return [torch.load(folder / f'rank{rank}', weights_only=True) for rank in range(WORLD)]


def assert_close(got, want, tolerance=1e-9):
    assert got.keys() == want.keys()
    for name, value in want.items():
        if not value.numel():  # no queue
            assert got[name].shape == value.shape
            continue
        assert (got[name] - value).abs().max() <= tolerance * value.abs().max().clamp_min(1e-3), name


def statistics(name):
    return 'running_' in name or 'num_batches' in name


def test_all_processes_end_in_the_same_weights_and_queue(ranks):
    zero, one = (rank[0.5]['state'] for rank in ranks)
    assert zero['queue_ptr'].item() == STEPS * WORLD * SHARE
    assert {name for name in zero if not torch.equal(zero[name], one[name])} == {
        name for name in zero if 'running_' in name}  # which are each process's own
    for first, second in zip(ranks[0][0.5]['gradients'], ranks[1][0.5]['gradients'], strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize('which', [0.0, *VARIATIONS])
def test_gradients_are_those_of_the_plain_version(ranks, which):
    model = build(seed=0, dropout=0.0, **VARIATIONS.get(which, {}))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    want = train(model, plain_step(model))
    for step in range(STEPS):
        assert_close(ranks[0][which]['gradients'][step], want['gradients'][step])
        mean = sum(rank[which]['losses'][step]['loss'] for rank in ranks) / WORLD
        assert mean == pytest.approx(want['losses'][step]['loss'], rel=1e-9)
    got = ranks[0][which]['state']
    kept = [name for name in want['state'] if not statistics(name)]
    assert_close({name: got[name] for name in kept}, {name: want['state'][name] for name in kept})
    assert not torch.equal(got['model_k.head.weight'], start['model_k.head.weight'])


def test_a_process_without_foreground_has_no_contrast(ranks):
    step, rank = EMPTY
    assert ranks[rank][0.5]['losses'][step]['contrastive_loss'] == 0 < ranks[1 - rank][0.5]['losses'][step]['contrastive_loss']
    assert all(torch.isfinite(value).all() for value in ranks[rank][0.5]['state'].values())


@pytest.mark.slow
@pytest.mark.parametrize('dropout', [0.0, 0.5])
def test_simulated_processes_compute_what_real_ones_do(ranks, dropout):
    model = build(seed=0, dropout=dropout)
    simulated = SimulatedProcesses(model, RandomStreams(3, 0, WORLD, choose_device('cpu')))
    got, want = train(model, simulated), ranks[0][dropout]
    for step in range(STEPS):
        assert_close(got['gradients'][step], want['gradients'][step])
        for name, value in got['losses'][step].items():
            assert value == pytest.approx(sum(rank[dropout]['losses'][step][name] for rank in ranks) / WORLD, rel=1e-9), name
    assert_close(got['state'], want['state'])  # rank 0's batch-norm statistics too


def test_a_batch_that_can_not_be_divided_is_refused():
    with pytest.raises(ValueError, match='4 images cannot be divided over 3 simulated processes'):
        SimulatedProcesses(build(seed=0, dropout=0.0), RandomStreams(3, 0, 3, choose_device('cpu')))(*batch(0))


if __name__ == '__main__':
    worker(int(os.environ['RANK']), sys.argv[1])
