"""`finetune.py`: the whole network on a share of the labels."""
import copy
import json

import numpy as np
import pytest
import torch
from helpers.checks import assert_same
from helpers.experiments import LINEAR, RESNET
from torch.nn import functional as F

from data.dataset import SegmentationDataset
from data.label_space import VOID
from evaluation.finetune_views import labelled_ids, render_crop
from evaluation.linear_training import FinetuneTrainer
from finetune import main
from models.backbones import build_backbone
from models.networks import LinearNetwork, fresh_parameters
from utils.parallel.random_streams import RandomStreams
from utils.training.optimizer import get_optimizer

FINETUNE = {key: value for key, value in LINEAR.items() if key not in ('freeze_batchnorm', 'scheduler_kwargs')} | {
    'scheduler': 'poly', 'optimizer_kwargs': {'lr': 0.01, 'momentum': 0.9, 'weight_decay': 0.0001, 'head_lr': 0.1}}


@pytest.fixture
def arguments(experiment, pretrained):
    """arguments(changes, ...) are the script's, for a small run on the pre-trained checkpoint."""
    def make(changes=None, **named):
        return experiment({'pretraining': str(pretrained), **(changes or {})}, base=FINETUNE, **named)
    return make


def load(folder, name='checkpoint.pth.tar'):
    return torch.load(folder / name, weights_only=True)


@pytest.mark.slow
def test_what_a_run_leaves(arguments, pretrained, shapes_root, tmp_path, capsys):
    main(arguments({'train_db_kwargs.share': 0.5, 'epochs': 3, 'eval_every': 2}))
    folder, printed = tmp_path / 'output' / 'small', capsys.readouterr().out
    state, before = load(folder), torch.load(pretrained, weights_only=True)['model']
    learnt = [key for key in state['model'] if not key.endswith(('running_mean', 'running_var', 'batches_tracked'))]
    unchanged = [key for key in learnt if not key.startswith('decoder.4.')
                 and torch.equal(state['model'][key], before[f'module.model_q.{key}'])]
    assert not unchanged
    ids = (folder / 'train_ids.txt').read_text().split()
    split = (shapes_root / 'Shapes' / 'sets' / 'trainaug.txt').read_text().split()
    assert len(ids) == 6 and set(ids) < set(split)
    assert '6 of 12 labelled images' in printed
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert ['mIoU' in row for row in rows] == [False, True, True]
    assert [row['lr'] for row in rows] == pytest.approx([0.01 * (1 - epoch / 3) ** 0.9 for epoch in range(3)])
    results = json.loads((folder / 'results.json').read_text())
    assert results['script'] == 'finetune.py' and results['pretraining'] == str(pretrained)
    assert results['online_mIoU'] == max(row.get('mIoU', 0) for row in rows)
    main(arguments({'train_db_kwargs.share': 0.5, 'epochs': 3, 'eval_every': 2}))
    assert 'This run has finished (3 epochs)' in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_was_cut_ends_in_the_same_bits(arguments, tmp_path, monkeypatch):
    changes = {'train_db_kwargs.share': 0.7, 'checkpoint_every': 1}
    main(arguments(changes, name='whole'))
    step = FinetuneTrainer.train_step

    def cut(trainer, batch):
        if (trainer.epoch, trainer.step) == (1, 1):
            raise KeyboardInterrupt
        return step(trainer, batch)
    monkeypatch.setattr(FinetuneTrainer, 'train_step', cut)
    with pytest.raises(SystemExit):
        main(arguments(changes, name='cut'))
    monkeypatch.undo()
    main(arguments(changes, name='cut'))
    whole, resumed = (load(tmp_path / 'output' / name) for name in ('whole', 'cut'))
    assert_same({key: whole[key] for key in ('model', 'optimizer', 'best_iou')},
                {key: resumed[key] for key in ('model', 'optimizer', 'best_iou')})


@pytest.mark.slow
def test_a_share_smaller_than_a_batch_from_the_backbones_own_weights(arguments, tmp_path):
    torch.manual_seed(1)
    weights = build_backbone('resnet18', {}).state_dict()
    torch.save(weights, tmp_path / 'backbone.pth')
    main(arguments({**RESNET, 'train_db_kwargs.share': 0.1, 'pretraining': None, 'epochs': 1, 'optimizer_kwargs.lr': 1e-9,
                    'backbone_kwargs.state_dict': str(tmp_path / 'backbone.pth')}))
    folder = tmp_path / 'output' / 'small'
    assert len((folder / 'train_ids.txt').read_text().split()) == 1
    model = load(folder)['model']  # the backbone's learning rate is next to nothing, the head's is not
    assert torch.allclose(model['backbone.layer4.1.conv2.weight'], weights['layer4.1.conv2.weight'], atol=1e-5)


def test_mistakes(arguments, tmp_path, user_error):
    listed = tmp_path / 'ids.txt'
    listed.write_text('train_0001\nnowhere\n')
    assert 'nowhere is not in' in user_error(lambda: main(arguments({'train_db_kwargs.ids': str(listed)})))
    assert 'train_db_kwargs.share must be at most 1' in user_error(lambda: main(arguments({'train_db_kwargs.share': 5})))
    line = user_error(lambda: main(arguments({'backbone_kwargs.pretraining': 'imagenet_classification'})))
    assert 'both name initial weights' in line


def test_shares_are_drawn_by_the_seed_and_nested(shapes_root, tmp_path):
    dataset = SegmentationDataset(shapes_root / 'Shapes', 'trainaug', labels=True)
    shares = [labelled_ids(dataset, share, seed=4) for share in (0.01, 0.25, 0.5, 1)]
    assert [len(ids) for ids in shares] == [1, 3, 6, 12] and shares[3] == dataset.ids
    for smaller, larger in zip(shares, shares[1:], strict=False):
        assert set(smaller) <= set(larger)
    assert shares[2] == labelled_ids(dataset, 0.5, seed=4) != labelled_ids(dataset, 0.5, seed=5)
    (tmp_path / 'ids.txt').write_text('\n'.join([dataset.ids[7], dataset.ids[2]]))
    assert labelled_ids(dataset, 1, 0, str(tmp_path / 'ids.txt')) == [dataset.ids[2], dataset.ids[7]]


@pytest.mark.parametrize('scale', [0.5, 1, 1.7])
@pytest.mark.parametrize('place', [(0, 0), (0.3, 0.99)])
def test_crops_against_single_pixels(scale, place):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(256, size=(20, 30, 3), dtype=np.uint8), rng.integers(5, size=(20, 30), dtype=np.uint8)
    image[..., 0] = labels * 40  # so that image and labels can be told to move together
    size = (40, 60)
    view, view_labels = render_crop(image, labels, scale, False, np.array(place), size)
    assert view.shape == (*size, 3) and view_labels.shape == size
    height, width = (round(scale * side) for side in size)
    for y in range(size[0]):
        for x in range(size[1]):
            row = y + int(place[0] * (abs(height - 40) + 1)) * (1 if height > 40 else -1)
            column = x + int(place[1] * (abs(width - 60) + 1)) * (1 if width > 60 else -1)
            if 0 <= row < height and 0 <= column < width:
                assert view_labels[y, x] == labels[int(row * 20 / height), int(column * 30 / width)]
            else:
                assert view_labels[y, x] == VOID and not view[y, x].any()


def test_a_step_against_plain_autograd():
    torch.manual_seed(0)
    network = LinearNetwork(build_backbone('resnet18', {}), 4).train()
    plain = copy.deepcopy(network)
    for net in (network, plain):  # dropout would draw other numbers
        net.decoder[0].project[3].p = 0.0
    batch = {'image': torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8), 'labels': torch.randint(4, (3, 32, 32)).byte()}
    batch['labels'][0, :9] = VOID
    optimizer = get_optimizer(network.parameters(), 'sgd', lr=0.1, head_lr=0.5, heads=fresh_parameters(network))
    trainer = FinetuneTrainer(network, optimizer, None, RandomStreams(0, 0, 1, torch.device('cpu')), 'none', 'unused',
                              best_model='unused')
    loss = trainer.train_step(batch)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((batch['image'] / 255 - mean) / deviation).permute(0, 3, 1, 2)
    expected = F.cross_entropy(plain(images), batch['labels'].long(), ignore_index=VOID)
    expected.backward()
    for name, parameter in plain.named_parameters():
        own = dict(network.named_parameters())[name]
        lr = 0.1 if name.startswith('backbone.') else 0.5
        assert torch.allclose(own, parameter - lr * parameter.grad, atol=2e-5), name
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
