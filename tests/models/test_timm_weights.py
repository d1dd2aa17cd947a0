"""Weights of timm's networks: files of others, safetensors, published ones, and what doesn't fit."""

import pytest
import timm
import torch
from helpers.checks import refusal
from huggingface_hub import constants as hub
from safetensors.torch import save_file

from models.backbone_weights import backbone_weights, load_initial_weights
from models.backbones import build_backbone, find_backbone

VIT, RESNET = 'timm/test_vit', 'timm/test_resnet'


def vit_state():
    torch.manual_seed(3)
    return timm.create_model('test_vit', num_classes=7).state_dict()


def resnet_state():
    torch.manual_seed(3)
    return timm.create_model('test_resnet', num_classes=7).state_dict()


def prefixed(state, prefix):
    return {f'{prefix}{key}': value for key, value in state.items()}


def dino(state, prefix, network):
    other = {key: torch.zeros_like(value) for key, value in state.items() if key != 'head.weight'}
    heads = {f'{prefix.removesuffix("backbone.")}head.mlp.0.weight': torch.zeros(3)}
    backbone = {key: value for key, value in state.items() if 'head' not in key and 'fc.' not in key}
    content = {network: {**prefixed(backbone, prefix), **heads}, 'epoch': 100, 'dino_loss': {'center': torch.zeros(1)}}
    return {'student': prefixed(other, 'module.backbone.'), **content}


FILES = {
    'plain': lambda state: state,
    'MoCo v2': lambda state: {'state_dict': {**prefixed(state, 'module.encoder_q.'), 'module.queue': torch.zeros(2),
                                             **prefixed(state, 'module.encoder_k.')}, 'arch': 'x'},
    'MoCo v3': lambda state: {'state_dict': {**prefixed(state, 'module.base_encoder.'), 'module.base_encoder.head.0.weight':
                                             torch.zeros(2), 'module.predictor.0.weight': torch.zeros(2)}},
    'DINO teacher': lambda state: dino(state, 'backbone.', 'teacher'),
    'DINO student': lambda state: dino(state, 'module.backbone.', 'student'),
    'MAE': lambda state: {'model': {**state, 'mask_token': torch.zeros(2), 'decoder_embed.weight': torch.zeros(2),
                                    'decoder_blocks.0.norm1.weight': torch.zeros(2)}},
}


@pytest.mark.parametrize('kind', FILES)
@pytest.mark.parametrize('name, state', [(VIT, vit_state), (RESNET, resnet_state)], ids=['vit', 'resnet'])
def test_files_of_others(tmp_path, caplog, kind, name, state):
    path, state = tmp_path / 'weights.pth', state()
    torch.save(FILES[kind](state), path)
    backbone = build_backbone(name, {})
    with caplog.at_level('INFO', logger='maskcontrast'):
        kwargs = {'pretraining': 'imagenet_moco', 'moco_state_dict': path} if 'MoCo' in kind else {'state_dict': path}
        assert load_initial_weights(backbone, name, **kwargs) == str(path)
    own = backbone.state_dict()
    assert all(value.equal(state[key.removeprefix('model.')]) for key, value in own.items())
    mean, deviation = find_backbone(name).normalization
    unit = '6 blocks' if name == VIT else '5 stages'
    assert caplog.messages == [f'{path}: {len(own)} keys matched, all of backbone: {name}, {unit}, output stride '
                               f'{backbone.output_stride}; mean {mean}, deviation {deviation}']


def test_safetensors(tmp_path):
    save_file(vit_state(), tmp_path / 'model.safetensors')
    assert backbone_weights(tmp_path / 'model.safetensors', VIT).keys() == build_backbone(VIT, {}).state_dict().keys()
    (tmp_path / 'model.safetensors').write_bytes(b'damaged')
    assert 'damaged, or not a safetensors file' in refusal(backbone_weights, tmp_path / 'model.safetensors', VIT)


@pytest.mark.parametrize('change, words', [
    (lambda state: state.pop('blocks.5.norm1.bias'), 'missing model.blocks.5.norm1.bias'),
    (lambda state: state.update({'blocks.6.norm1.bias': torch.zeros(64)}), 'left over model.blocks.6.norm1.bias'),
    (lambda state: state.update(pos_embed=torch.zeros(1, 5, 64)), 'of another shape model.pos_embed')])
def test_partial_matches_are_mistakes(tmp_path, change, words):
    state = vit_state()
    change(state)
    torch.save(state, tmp_path / 'vit.pth')
    backbone = build_backbone(VIT, {})
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    message = refusal(load_initial_weights, backbone, VIT, state_dict=tmp_path / 'vit.pth')
    assert message == f'{tmp_path / "vit.pth"}: its weights do not fit this network: {words}'
    assert all(value.equal(before[key]) for key, value in backbone.state_dict().items())


def test_names_that_timm_translates(tmp_path):
    """DINOv2's authors have registers and a mask token under other names."""
    name = 'timm/vit_small_patch14_reg4_dinov2'
    state = timm.create_model('vit_small_patch14_reg4_dinov2', num_classes=0).state_dict()
    theirs = {key.replace('reg_token', 'register_tokens'): value for key, value in state.items()}
    grid = state['pos_embed']
    theirs['pos_embed'] = torch.cat([torch.zeros(1, 1, grid.shape[2]), grid], dim=1)
    theirs |= {'mask_token': torch.zeros(1, 384)}
    torch.save(theirs, tmp_path / 'dinov2.pth')
    weights = backbone_weights(tmp_path / 'dinov2.pth', name)
    assert all(weights[f'model.{key}'].shape == value.shape for key, value in state.items())
    assert weights['model.blocks.3.mlp.fc1.weight'].equal(state['blocks.3.mlp.fc1.weight'])


def test_weights_that_timm_fetches(monkeypatch, tmp_path):
    """Without network the hub's client tries again for a minute, so it is told at once that there is none."""
    monkeypatch.setattr(hub, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(hub, 'HF_HUB_CACHE', str(tmp_path))
    for source in ('timm://', 'timm://test_vit.r160_in1k'):
        message = refusal(backbone_weights, source, 'timm/test_vit.r160_in1k')
        assert message.startswith('timm://test_vit.r160_in1k could not be downloaded (')
        assert 'download model.safetensors of https://huggingface.co/timm/test_vit.r160_in1k by hand' in message
        assert 'backbone_kwargs.state_dict' in message
    name = 'timm/vit_small_patch16_224.dino'
    assert 'there are timm://, ' in refusal(backbone_weights, 'timm://resnet50.a1_in1k', name)
    message = refusal(backbone_weights, 'timm://vit_small_patch16_224.augreg_in21k', name)
    assert 'name backbone: timm/vit_small_patch16_224.augreg_in21k' in message and '(0.5, 0.5, 0.5)' in message
    kwargs = {'pretraining': 'imagenet_classification'}
    message = refusal(load_initial_weights, build_backbone(VIT, {}), VIT, **kwargs)
    assert 'backbone_kwargs.state_dict to a file or to timm://' in message


def test_fetched_weights_are_loaded(monkeypatch):
    state = vit_state()
    create = timm.create_model

    def fetched(name, pretrained=False, **options):  # what the hub would give
        model = create(name, **options)
        if pretrained:
            model = create(name, num_classes=7)
            model.load_state_dict(state)
        return model
    monkeypatch.setattr(timm, 'create_model', fetched)
    backbone = build_backbone('timm/test_vit.r160_in1k', {})
    assert load_initial_weights(backbone, 'timm/test_vit.r160_in1k', state_dict='timm://') == 'timm://test_vit.r160_in1k'
    assert backbone.state_dict()['model.norm.weight'].equal(state['norm.weight'])


# Configuration
