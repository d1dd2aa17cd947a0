"""Variations of the method, one switch each: what it switches changes, and nothing else does, bit for bit."""
import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from test_builder import batch
from test_losses import example
from torch import nn
from torch.nn import functional as F

from contrastive import fused_losses, gathered_losses, losses
from contrastive.augmentations import AUGMENTATIONS, View, central_crop, render, sample_view, without
from contrastive.builder import ContrastiveModel
from contrastive.view_pairs import ViewPairs
from data.dataset import SegmentationDataset
from data.loaders import item_rng
from main import main
from utils.config import create_config, differing_keys, plain
from utils.config.keys import PRETRAIN

FORMS = pytest.mark.parametrize('form', [losses, fused_losses, gathered_losses], ids=['plain', 'fused', 'gathered'])


def build(moco=None, **network):
    """In float64, all of one start: what two of them have in common is equal."""
    torch.manual_seed(0)
    model = ContrastiveModel({'backbone': 'resnet18', 'model_kwargs': {'ndim': 8, **network},
                              'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 6, **(moco or {})}}).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if model.K:  # of which the numbers drawn before depend on the heads there are
        model.queue.copy_(F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), dim=0))
    return model


def step(model):
    """The results of a step, and the gradient of its loss by name."""
    im_q, im_k, sal_q, sal_k = batch(dtype=torch.float64)
    output = model(im_q, im_k, sal_q, sal_k, sal_q.flatten(1).sum(1).tolist())
    output['loss'].backward()
    return ({name: value.item() for name, value in output.items()},
            {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})


@torch.no_grad()
def grid_and_mask(model):
    """Of the query views, in the step to come, which sees a network that is not changed by this."""
    return copy.deepcopy(model.model_q).grid(batch(dtype=torch.float64)[0])[0], batch()[2]


def differing(a, b):
    """Names of the tensors and numbers that differ, or that one of them lacks."""
    return {name for name in {*a, *b} if name not in a or name not in b or (
        not torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] != b[name])}


def statistics(model):
    """What a step changes besides the weights that learn: key network, batch-norm statistics, queue."""
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in learning}


@pytest.mark.slow
def test_without_a_queue_the_negatives_are_the_batch():
    published, varied = build(), build({'K': 0})
    q, mask = grid_and_mask(published)
    (numbers, _), (got, gradients) = step(published), step(varied)
    assert differing(numbers, got) <= {'loss', 'contrastive_loss', 'acc1', 'acc5'}
    assert got['contrastive_loss'] < numbers['contrastive_loss']  # three columns in place of nine
    assert differing(statistics(published), statistics(varied)) == {'queue', 'queue_ptr'}
    assert varied.queue.shape == (8, 0) and varied.queue_ptr.item() == 0
    prototypes = published.queue[:, :3].t()  # as the step wrote them
    pixels = losses.pixel_embeddings(q, mask).permute(0, 2, 3, 1)
    share = mask.flatten(1).sum(1).double() / mask.sum()
    total = weights = 0
    for i in range(3):
        logits = pixels[i][mask[i] == 1] @ prototypes.t() / 0.5         # P x 3
        weight = 1 / math.log(1.02 + share[i])
        total += weight * (logits.logsumexp(1) - logits[:, i]).sum()
        weights += weight * len(logits)
    assert got['contrastive_loss'] == pytest.approx((total / weights).item(), rel=1e-9)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.slow
def test_without_the_saliency_loss_the_rest_is_the_same():
    published, varied = build(), build(use_classification_head=False)
    alone = copy.deepcopy(published)
    (numbers, _), (got, gradients) = step(published), step(varied)
    assert differing(numbers, got) == {'loss', 'saliency_loss'}
    assert got['saliency_loss'] == 0 and got['loss'] == got['contrastive_loss']
    assert differing(statistics(published), statistics(varied)) == {'model_k.classification_head.weight'}
    output = alone(*batch(dtype=torch.float64))
    output['contrastive_loss'].backward()
    assert alone.model_q.classification_head.weight.grad is None
    assert not differing({name: parameter.grad for name, parameter in alone.named_parameters()
                          if parameter.grad is not None}, gradients)


@pytest.mark.slow
def test_images_in_place_of_pixels():
    published, varied = build(), build({'contrast': 'image'})
    q, mask = grid_and_mask(published)
    queue = published.queue.clone()
    (numbers, before), (got, after) = step(published), step(varied)
    assert differing(numbers, got) <= {'loss', 'contrastive_loss', 'acc1', 'acc5'}
    assert got['contrastive_loss'] != numbers['contrastive_loss']
    assert not differing(statistics(published), statistics(varied))
    assert before.keys() == after.keys() and torch.equal(before['model_q.classification_head.weight'],
                                                         after['model_q.classification_head.weight'])
    columns = torch.cat([published.queue[:, :3], queue], dim=1)
    pixels = losses.pixel_embeddings(q, mask).permute(0, 2, 3, 1)
    means = torch.stack([pixels[i][mask[i] == 1].mean(0) for i in range(3)])
    logits = (means / means.norm(dim=1, keepdim=True)) @ columns / 0.5
    assert got['contrastive_loss'] == pytest.approx((logits.logsumexp(1) - logits.diagonal()).mean().item(), rel=1e-9)
    ranks = (logits > logits.diagonal().unsqueeze(1)).sum(1)
    assert got['acc1'] == pytest.approx(100 * (ranks < 1).double().mean().item())
    assert got['acc5'] == pytest.approx(100 * (ranks < 5).double().mean().item())


@FORMS
@pytest.mark.parametrize('empty', [(), (1,), (0, 1, 2)])
def test_gradients_of_images(form, empty):
    """Those of the plain form, from its definition; an image without object has no query, though its prototype is a column."""
    grid, mask, prototypes, queue = example()
    mask[list(empty)] = 0
    results = []
    for compute in (form.image_contrastive_loss, by_definition):
        leaf = grid.clone().requires_grad_()
        loss = compute(leaf, mask, prototypes, queue, 0.3)[0]
        loss.backward()
        results.append((loss.item(), leaf.grad))
    (got, gradient), (want, expected) = results
    assert got == pytest.approx(want, rel=1e-10)
    assert (gradient - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert (expected.abs().max() > 0) == (len(empty) < 3) == (got > 0)


def by_definition(grid, mask, prototypes, queue, temperature):
    columns, terms = torch.cat([prototypes, queue.t()]), [grid.sum() * 0]
    upsampled = F.interpolate(grid, mask.shape[1:], mode='bilinear')
    for i in range(len(mask)):
        if mask[i].any():
            pixels = upsampled[i].permute(1, 2, 0)[mask[i] == 1]
            mean = (pixels / pixels.norm(dim=1, keepdim=True)).mean(0)
            terms.append(F.cross_entropy((columns @ mean / mean.norm() / temperature).unsqueeze(0), torch.tensor([i])))
    return (sum(terms) / max(len(terms) - 1, 1),)


def switched_off(view, name, shape):
    neutral = {'random_resized_crop': {'crop': central_crop(*shape)}, 'color_jitter': {'jitter': ()},
               'random_grayscale': {'grayscale': False}, 'random_horizontal_flip': {'flip': False}}
    return dataclasses.replace(view, **neutral[name])


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_single_augmentations_off(shapes_root, name):
    """Every item is rendered from the same draws without that one augmentation."""
    dataset = SegmentationDataset(shapes_root / 'Shapes', 'trainaug', saliency='supervised_model')
    published, varied = ViewPairs(dataset, 3, 32), ViewPairs(dataset, 3, 32, left_out=[name])
    first_try = moved = 0
    for index in range(len(dataset)):
        sample, rng = dataset[index], item_rng(3, 0, dataset.ids[index])
        drawn = [sample_view(rng, *sample['saliency'].shape) for _ in range(2)]
        items = []
        for pairs, views in ((published, drawn), (varied, [switched_off(v, name, sample['saliency'].shape) for v in drawn])):
            pixels = [render(sample['image'], sample['saliency'], view, 32) for view in views]
            if all(0.01 < mask.mean() < 0.99 for _, mask in pixels):
                item = pairs[0, index]
                for part, (image, mask) in zip(('key', 'query'), pixels, strict=True):
                    assert np.array_equal(item[part], image) and np.array_equal(item[f'{part}_mask'], mask)
                items.append(item)
        first_try += len(items)
        if len(items) == 2:
            same = all(switched_off(view, name, sample['saliency'].shape) == view for view in drawn)
            changed = {part for part in ('query', 'key') if not torch.equal(items[0][part], items[1][part])}
            assert not (same and changed)
            moved += len(changed)
    assert first_try >= 12 and moved >= 2


def test_what_is_left_of_a_view():
    view = View((3, 4, 50, 60), (('hue', 0.1),), True, True)
    assert without(view, (), 90, 100) == view
    assert without(view, AUGMENTATIONS, 90, 100) == View((0, 0, 90, 100))
    assert without(view, ['random_resized_crop'], 100, 200).crop == (0, 33, 100, 133)  # no wider than 4 by 3
    for name in AUGMENTATIONS:
        assert without(view, [name], 90, 100) == switched_off(view, name, (90, 100)) != view


@pytest.mark.parametrize('stride', [1, 8])
def test_without_masks_all_of_the_picture_is_the_object(shapes_root, stride):
    published, varied = (ViewPairs(SegmentationDataset(shapes_root / 'Shapes', 'trainaug', saliency=saliency), 3, 40, stride)
                         for saliency in ('supervised_model', None))
    equal = 0
    for index in range(len(published)):
        want, got = published[0, index], varied[0, index]
        assert got['id'] == published.dataset.ids[index] and got['object_pixels'] == got['query_mask'].numel()
        assert all(got[part].shape == want[part].shape and got[part].min() == 1 for part in ('query_mask', 'key_mask'))
        equal += all(torch.equal(got[part], want[part]) for part in ('query', 'key'))
    assert equal >= 6  # all those whose first views pass


VARIATIONS = {'moco_kwargs.K': 0, 'moco_kwargs.contrast': 'image', 'model_kwargs.use_classification_head': False,
              **{f'transformation_kwargs.{name}': False for name in AUGMENTATIONS}}


@pytest.mark.slow
def test_variations_train_and_belong_to_their_run(experiment, tmp_path, user_error):
    """All at once, over simulated processes; the published settings are another run."""
    whole = {**VARIATIONS, 'train_db_kwargs.saliency': None}
    changes = {'epochs': 1, 'moco_kwargs.loss': 'gathered', 'simulate_processes': 2, 'checkpoint_every': 2, **whole}
    folder = tmp_path / 'output' / 'small'
    main([*experiment(changes), '--amp', 'none'])
    row = json.loads((folder / 'metrics.jsonl').read_text())
    assert row['loss'] == row['contrastive_loss'] > 0 == row['saliency_loss']
    assert '12 images with the whole image as its object' in (folder / 'log_file.txt').read_text()
    assert torch.load(folder / 'checkpoint.pth.tar', weights_only=True)['model']['module.queue'].shape == (8, 0)
    main([*experiment({**changes, 'epochs': 2}), '--amp', 'none', '--override'])
    assert torch.load(folder / 'checkpoint.pth.tar', weights_only=True)['epoch'] == 2
    line = user_error(lambda: main(experiment({**changes, 'epochs': 2, **dict.fromkeys(whole, ...),
                                               'moco_kwargs.K': 8, 'train_db_kwargs.saliency': 'supervised_model'})))
    assert all(key in line for key in whole) and 'differ from' in line


def test_each_variation_is_another_run(experiment):
    def config(changes=None):
        arguments = experiment(changes)
        return create_config(arguments[1], arguments[3], PRETRAIN)
    older = plain(config())  # of a checkpoint from before there were such keys
    older['transformation_kwargs'] = {'crop_size': 32}
    del older['moco_kwargs']['contrast']
    assert differing_keys(config(), older, PRETRAIN) == []
    for key, value in VARIATIONS.items():
        assert differing_keys(config({key: value}), older, PRETRAIN) == [key]
    masks = {'train_db_kwargs.saliency': None, 'model_kwargs.use_classification_head': False}
    assert differing_keys(config(masks), older, PRETRAIN) == [*masks]


def test_what_does_not_go_together(experiment, user_error):
    line = user_error(lambda: main(experiment({'train_db_kwargs.saliency': None})))
    assert 'train_db_kwargs.saliency: null' in line and 'set model_kwargs.use_classification_head: False' in line
    line = user_error(lambda: main(experiment({'train_db_kwargs.saliency': None, 'train_db_kwargs.instances': True})))
    assert 'instances needs train_db_kwargs.saliency' in line
    for changes, words in (({'train_batch_size': 1}, '1 over 1 processes'), ({'simulate_processes': 4}, '4 over 4 processes')):
        line = user_error(lambda new=changes: main(experiment({'moco_kwargs.K': 0, **new})))
        assert 'needs at least two images in a batch' in line and words in line
    assert 'moco_kwargs.contrast must be one of pixel, image' in user_error(
        lambda: main(experiment({'moco_kwargs.contrast': 'object'})))
    assert 'transformation_kwargs.color_jitter must be True or False' in user_error(
        lambda: main(experiment({'transformation_kwargs.color_jitter': 0.4})))
