"""TokenCut on small real ViTs, against the same computation in numpy, and what a user can do wrong."""
import math

import numpy as np
import pytest
import scipy.linalg
import timm
import torch
from helpers.checks import refusal
from huggingface_hub import constants as hub  # these come with timm
from safetensors.torch import save_file
from torchvision.models import resnet18

from saliency.tokencut import TokenCut, cut


def random_vit(name, seed=0, **options):
    torch.manual_seed(seed)
    size = {'dynamic_img_size': True} if 'vit' in name else {}
    return timm.create_model(name, **size, **{'num_classes': 0, **options}).eval()


@pytest.fixture
def weights(tmp_path):
    """Save the state dict of a random ViT, after `change` of it, and return the path."""
    def save(name, change=None, **options):
        state = random_vit(name, **options).state_dict()
        if change:
            change(state)
        torch.save(state, tmp_path / 'vit.pth')
        return tmp_path / 'vit.pth'
    return save


def disc(height, width):
    """A bright textured disc on a dark background; the image and where the disc is."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    inside = (y - 0.5 * height) ** 2 + (x - 0.6 * width) ** 2 < (0.3 * height) ** 2
    bright, dark = (random.integers(*values, (height, width, 3), np.uint8) for values in ((150, 256), (0, 25)))
    return np.where(inside[..., None], bright, dark), inside


def plain_tokencut(model, image):
    """The bipartition and the soft map, N values each, of an image whose sides fit: 480 and a multiple of the patch size."""
    with torch.no_grad():
        x = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5  # the mean and deviation of test_vit
        x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        for block in model.blocks[:-1]:
            x = block(x)
        x = model.blocks[-1].norm1(x)[0]
        weight, bias = (part.chunk(3)[1] for part in (model.blocks[-1].attn.qkv.weight, model.blocks[-1].attn.qkv.bias))
        keys = (x @ weight.T + bias)[1:].double().numpy()  # without the class or register token
    n = len(keys)
    graph = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            cosine = keys[i] @ keys[j] / math.sqrt((keys[i] @ keys[i]) * (keys[j] @ keys[j]))
            graph[i, j] = 1 if cosine > 0.2 else 1e-5
    degrees = np.diag(graph.sum(axis=1))
    vector = scipy.linalg.eigh(degrees - graph, degrees)[1][:, 1]
    foreground = vector > vector.mean()
    if not foreground[np.argmax(np.abs(vector))]:
        vector, foreground = -vector, ~foreground
    return foreground, 1 / (1 + np.exp(-4 * (vector - vector.mean()) / vector.std()))


@pytest.mark.parametrize('name', ['test_vit', 'test_vit2'])
def test_tokencut_against_a_plain_one(weights, name):
    """test_vit2 has a register token and no class token."""
    image = disc(160, 480)[0]
    probability = TokenCut(name, weights(name)).grid(image)
    assert probability.shape == (10, 30)
    foreground, soft = plain_tokencut(random_vit(name), image)
    assert 0 < foreground.sum() < 300
    np.testing.assert_array_equal(probability.ravel() > 0.5, foreground)
    np.testing.assert_allclose(probability.ravel(), soft, atol=1e-4)


def test_tokencut_finds_the_disc(weights):
    estimator = TokenCut('test_vit', weights('test_vit'), torch.device('cpu'))
    image, inside = disc(240, 320)
    probability = estimator(image)
    assert probability.shape == (240, 320) and probability.dtype == np.float32
    assert 0 <= probability.min() < 0.2 and 0.8 < probability.max() <= 1
    found = probability > 0.5
    assert (found & inside).sum() / (found | inside).sum() > 0.85
    assert estimator.grid(image).shape == (22, 30)  # 360 x 480 in patches of 16
    np.testing.assert_array_equal(estimator(image), probability)  # nothing is left over from the image before


def test_tokencut_of_an_image_without_an_object(weights):
    def forget_places(state):
        state['pos_embed'].zero_()
    estimator = TokenCut('test_vit', weights('test_vit', forget_places))
    assert (estimator(np.full((60, 80, 3), 90, np.uint8)) == 0).all()


def test_cut_by_hand():
    """Six patches and three: the eigenvector has two values, so its standard scores are -1 / sqrt 2 and sqrt 2."""
    keys = torch.zeros(9, 4)
    keys[:, 0] = 5
    keys[[1, 4, 8]] = torch.tensor([0, 2.0, 0, 0])
    expected = np.full(9, 1 / (1 + math.exp(4 / math.sqrt(2))))
    expected[[1, 4, 8]] = 1 / (1 + math.exp(-4 * math.sqrt(2)))
    np.testing.assert_allclose(cut(keys), expected, atol=1e-6)
    assert (cut(torch.ones(5, 4)) == 0).all() and (cut(torch.eye(5)) == 0).all()


def test_tokencut_weights_with_more_than_it_needs(weights):
    image = disc(160, 480)[0]
    expected = TokenCut('test_vit', weights('test_vit')).grid(image)

    def add(state):
        state['head.weight'], state['head.bias'], state['fc_norm.weight'] = torch.ones(2, 64), torch.ones(2), torch.ones(64)
    np.testing.assert_array_equal(TokenCut('test_vit', weights('test_vit', add)).grid(image), expected)


def test_tokencut_safetensors(tmp_path, weights):
    path = tmp_path / 'model.safetensors'
    assert refusal(TokenCut, 'test_vit', path) == f'{path}: this checkpoint file does not exist'
    save_file(random_vit('test_vit').state_dict(), path)
    image = disc(160, 480)[0]
    np.testing.assert_array_equal(TokenCut('test_vit', path).grid(image), TokenCut('test_vit', weights('test_vit')).grid(image))
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(TokenCut, 'test_vit', path).startswith(f'{path}: damaged, or not a safetensors file (')


@pytest.mark.parametrize(('change', 'words'), [
    (lambda state: state.pop('blocks.5.attn.qkv.bias'), 'do not fit this network: missing model.blocks.5.attn.qkv.bias'),
    (lambda state: state.update(decoder=torch.ones(1)), 'do not fit this network: left over model.decoder'),
    (lambda state: state.update(cls_token=torch.ones(1, 1, 32)), 'do not fit this network: of another shape model.cls_token')],
    ids=['missing', 'left over', 'shape'])
def test_tokencut_weights_of_another_network(weights, change, words):
    path = weights('test_vit', change)
    assert refusal(TokenCut, 'test_vit', path) == f'{path}: its weights {words}'


def test_tokencut_other_files(tmp_path, weights):
    path = tmp_path / 'weights.pth'
    assert refusal(TokenCut, 'test_vit', path) == f'{path}: this checkpoint file does not exist'
    path.write_bytes(b'<html>what a browser saves</html>')
    assert refusal(TokenCut, 'test_vit', path).startswith(f'{path}: damaged, or not a PyTorch checkpoint')
    torch.save(torch.ones(3), path)
    assert refusal(TokenCut, 'test_vit', path) == (f'{path}: expected a state dict (names and tensors), found Tensor')
    path = weights('test_vit', lambda state: state['blocks.0.attn.qkv.bias'].fill_(math.nan))
    assert refusal(TokenCut('test_vit', path), disc(60, 80)[0]) == (
        f'{path}: the features of this network are not finite: its weights are damaged')


@pytest.mark.parametrize(('vit', 'near'), [('vit_smal_patch16_224.dino', 'vit_small_patch16_224.dino'),
                                           ('timm/vit_small_patch16_224.dinno', 'vit_small_patch16_224.dino'),
                                           ('resnet5', 'resnet50')])
def test_tokencut_unknown_vit(vit, near):
    message = refusal(TokenCut, vit)
    name = vit if vit.startswith('timm/') else f'timm/{vit}'
    assert message.startswith(f'backbone: {name}: timm has no network of this name (nearest: ') and near in message


def test_tokencut_of_networks_without_keys(weights, tmp_path):
    """Their last grid is cut, at an output stride of 16 where there is one."""
    image = disc(160, 480)[0]
    torch.save(resnet18(weights=None).state_dict(), tmp_path / 'resnet.pth')
    for name, path, shape in (('test_resnet', None, (10, 30)), ('resnet18', tmp_path / 'resnet.pth', (5, 15))):
        grid = TokenCut(name, path or weights(name)).grid(image)
        assert grid.shape == shape and 0 <= grid.min() < grid.max() <= 1


def test_tokencut_without_network(monkeypatch, tmp_path):
    """Without network the hub's client tries again for a minute, so it is told at once that there is none."""
    monkeypatch.setattr(hub, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(hub, 'HF_HUB_CACHE', str(tmp_path))
    keys = ('backbone_kwargs.state_dict in pre-training, pretraining in evaluations, --weights of generate_masks.py')
    message = refusal(TokenCut, 'vit_small_patch16_224.dino')
    assert message.startswith('timm://vit_small_patch16_224.dino could not be downloaded (')
    assert message.endswith('or download model.safetensors of https://huggingface.co/timm/vit_small_patch16_224.dino '
                            f'by hand and name that file ({keys})')
    message = refusal(TokenCut, 'test_vit4')
    assert message == f'timm://test_vit4: timm has no weights for this network: name a file ({keys})'
