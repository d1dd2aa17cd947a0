"""timm's networks as backbones against timm itself: grids, keys, strides, what is frozen, weights and mistakes."""
import dataclasses

import pytest
import timm
import torch
from helpers.checks import refusal
from torchvision.models import resnet18

from contrastive.builder import ContrastiveModel
from models.backbones import build_backbone, find_backbone, fits, output_stride
from models.factory import get_model
from models.networks import atrous_rates
from models.timm_backbones import nearest_names
from utils.config import create_config, differing_keys
from utils.config.keys import PRETRAIN

VIT, CONVNEXT, RESNET = 'timm/test_vit', 'timm/test_convnext', 'timm/test_resnet'
EFFICIENTNET = 'timm/test_efficientnet'
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def pair(name, stride=None, seed=0):
    """A backbone in eval mode, whose norms have statistics, and timm's own network with the same weights."""
    torch.manual_seed(seed)
    backbone = build_backbone(name, {'output_stride': stride} if stride else {}).eval()
    for key, tensor in backbone.state_dict().items():
        if key.endswith('running_var'):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(('ls1.gamma', 'ls2.gamma', '.gamma')):
            tensor.uniform_(0.5, 1.5)  # tiny at the start, where blocks do nothing
    vit = 'vit' in name or 'dino' in name
    own = timm.create_model(name.removeprefix('timm/'), num_classes=0, **({'dynamic_img_size': True} if vit else {})).eval()
    own.load_state_dict({key.removeprefix('model.'): value for key, value in backbone.state_dict().items()}, strict=False)
    return backbone, own


@pytest.mark.parametrize('name, prefix', [(VIT, 1), ('timm/test_vit2', 1), ('timm/test_vit4', 1)])
def test_tokens_are_timms(name, prefix):
    """Class and register tokens are left out, and the grid has the picture's shape."""
    backbone, own = pair(name)
    with torch.no_grad():
        grid, tokens = backbone(IMAGES), own.forward_features(IMAGES)
    assert own.num_prefix_tokens == prefix and grid.shape == (2, backbone.channels, 4, 6)
    assert torch.equal(grid, tokens[:, prefix:].transpose(1, 2).unflatten(2, (4, 6)))


def test_registers_and_rotary_embeddings():
    """DINOv3's kind: a class token, four registers, and positions inside the attention."""
    torch.manual_seed(0)
    name = 'timm/vit_small_patch16_dinov3.lvd1689m'
    backbone, own = pair(name)
    with torch.no_grad():
        grid, tokens = backbone(IMAGES), own.forward_features(IMAGES)
    assert torch.equal(grid, tokens[:, 5:].transpose(1, 2).unflatten(2, (4, 6)))
    assert backbone.grid(IMAGES, 'keys').shape == (2, 384, 4, 6)


def test_stages_are_the_blocks_outputs():
    backbone, own = pair(VIT)
    seen = []
    own.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        own.forward_features(IMAGES)
        grid = backbone.grid(IMAGES, 'blocks.1')
    assert torch.equal(grid, seen[0][:, 1:].transpose(1, 2).unflatten(2, (4, 6)))


@pytest.mark.parametrize('name', [VIT, 'timm/test_vit2'])
def test_keys_are_the_last_attentions(name):
    backbone, own = pair(name)
    seen = []
    own.blocks[-1].attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        own.forward_features(IMAGES)
        keys = backbone.grid(IMAGES, 'keys')
    wanted = seen[0][:, own.num_prefix_tokens:].chunk(3, dim=2)[1]
    assert torch.allclose(keys, wanted.transpose(1, 2).unflatten(2, (4, 6)), atol=1e-5)


@pytest.mark.parametrize('name', [CONVNEXT, RESNET])
def test_grids_of_convolutional_networks_are_timms(name):
    backbone, own = pair(name, 32)
    features = timm.create_model(name.removeprefix('timm/'), features_only=True, output_stride=8).eval()
    dense, _ = pair(name, 8)
    flat = {key.replace('.', '_'): value for key, value in dense.state_dict().items()}
    features.load_state_dict({key: flat[f'model_{key.replace(".", "_")}'] for key in features.state_dict()})
    with torch.no_grad():
        assert torch.equal(backbone(IMAGES), own.forward_features(IMAGES))
        for stage, wanted in zip(dense.stages, features(IMAGES), strict=True):
            assert torch.equal(dense.grid(IMAGES, stage), wanted)
    assert backbone(IMAGES).shape[2:] == (2, 3) and dense(IMAGES).shape[2:] == (8, 12)
    assert [info['num_chs'] for info in own.feature_info] == [dense.grid(IMAGES, stage).shape[1] for stage in dense.stages]


@pytest.mark.parametrize('name, stride, first', [('timm/resnet18', 8, 0), (RESNET, 16, 0), (CONVNEXT, 16, 0), (CONVNEXT, 8, 1),
                                                 ('timm/tf_efficientnet_lite0', 8, 3)])
def test_dense_grids_contain_the_coarse_one(name, stride, first):
    """A dilation in the place of a stride gives the same values at every second or fourth step, as convolutions see the same
    pixels. first: the first of these steps, which padding decides."""
    torch.manual_seed(0)
    dense, coarse = (build_backbone(name, {'output_stride': each}).double().eval() for each in (stride, 32))
    for key, tensor in coarse.state_dict().items():
        if key.endswith('gamma'):
            tensor.uniform_(0.5, 1.5)  # tiny at the start, where blocks do nothing
    dense.load_state_dict(coarse.state_dict())
    step, images = 32 // stride, IMAGES[:1].double()
    with torch.no_grad():
        wanted, grid = coarse(images), dense(images)
    assert torch.allclose(grid[:, :, first::step, first::step], wanted, atol=1e-9) and wanted.std() > 0


@pytest.mark.parametrize('name, channels', [('resnet34', 512), ('resnet101', 2048), ('resnet152', 2048),
                                            ('wide_resnet50_2', 2048), ('wide_resnet101_2', 2048)])
def test_larger_resnets_of_torchvision(name, channels):
    spec = find_backbone(name)
    with torch.device('meta'):
        backbone, images = build_backbone(name, {}).eval(), torch.empty(1, 3, 64, 96)
        assert backbone(images).shape == (1, channels, 8, 12) and spec.channels == channels
    assert {'conv1.weight', 'layer4.0.conv1.weight'} < set(backbone.state_dict()) and spec.imagenet in spec.published()
    assert fits(name, {key: value.shape for key, value in backbone.state_dict().items()})


def test_rates_see_as_far_at_every_stride():
    assert [atrous_rates(stride) for stride in (8, 16, 14, 32)] == [(12, 24, 36), (6, 12, 18), (7, 14, 21), (3, 6, 9)]
    for name, kwargs, wanted in ((VIT, {}, 6), (CONVNEXT, {'output_stride': 8}, 12), (CONVNEXT, {'dilated': False}, 3),
                                 ('resnet18', {'dilated': False}, 12)):  # as published
        network = get_model({'backbone': name, 'backbone_kwargs': kwargs, 'model_kwargs': {}})
        assert network.decoder[0].convs[1][0].dilation == (wanted, wanted)


def learning(name, layers):
    backbone = build_backbone(name, {}).freeze(layers).train()
    parameters = dict(backbone.named_parameters())
    modes = {key: module.training for key, module in backbone.named_modules() if not list(module.children())}
    return [key for key in parameters if parameters[key].requires_grad], modes


@pytest.mark.parametrize('name, layers, first', [
    ('resnet18', 1, 'layer2.0.conv1.weight'), ('resnet18', True, 'layer3.0.conv1.weight'),
    ('resnet18', 2, 'layer3.0.conv1.weight'),
    (VIT, 1, 'model.blocks.1.norm1.weight'), (VIT, True, 'model.blocks.3.norm1.weight'), (VIT, 6, 'model.norm.weight'),
    (CONVNEXT, True, 'model.stages.2.downsample.0.weight'), (RESNET, True, 'model.layer3.0.conv1.weight'),
    (EFFICIENTNET, 1, 'model.blocks.1.0.conv_exp.weight'), (VIT, False, 'model.cls_token'), (RESNET, 'all', None)])
def test_frozen_layers(name, layers, first):
    """Everything before the first that learns is frozen, and in eval mode; all else learns."""
    learns, modes = learning(name, layers)
    every = [key for key, _ in build_backbone(name, {}).named_parameters()]
    assert learns == (every[every.index(first):] if first else [])
    edge = [key for key in modes if first and first.startswith(f'{key}.')]
    before = list(modes)[:list(modes).index(edge[0])] if edge else list(modes) if first is None else []
    assert all(mode == (key not in before) for key, mode in modes.items() if 'relu' not in key and 'maxpool' not in key)


@pytest.mark.parametrize('layers', [1, 'all'])
@pytest.mark.parametrize('name, head', [(VIT, 'linear'), (EFFICIENTNET, 'linear'), (RESNET, 'deeplab')])
def test_a_step_moves_only_what_learns(name, head, layers):
    """Parameters and statistics of frozen parts stay as they are in both networks, bit for bit; a batch of one image."""
    torch.manual_seed(0)
    model = ContrastiveModel({'backbone': name, 'backbone_kwargs': {}, 'head': head, 'model_kwargs': {'ndim': 4},
                              'moco_kwargs': {'T': 0.5, 'm': 0.5, 'K': 2}, 'freeze_layers': layers}).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mask = torch.zeros(1, 64, 64, dtype=torch.long)
    mask[:, :32] = 1
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1)
    for _ in range(2):
        images = torch.randn(2, 1, 3, 64, 64)
        optimizer.zero_grad()
        model(images[0], images[1], mask, mask)['loss'].backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    backbone = {key.partition('backbone.')[2] for key in changed if '.backbone.' in key}
    assert {'model_q.head.weight', 'model_k.head.weight', 'model_q.classification_head.weight'} <= changed
    if layers == 'all':
        assert not backbone
    else:
        first = ('model.blocks.0.', 'model.patch_embed', 'model.pos', 'model.conv1', 'model.conv_stem', 'model.bn1')
        assert backbone and not any(key.startswith(first) for key in backbone)


def test_one_stage_is_not_true(experiment):
    """A run that froze one stage does not go on as one that froze the first half."""
    configs = {}
    for value in (True, 1, False, 'all'):
        arguments = experiment({'freeze_layers': value})
        configs[str(value)] = create_config(arguments[1], arguments[3])
        assert configs[str(value)].freeze_layers is value or value == 'all'
    assert differing_keys(configs['True'], configs['1'], PRETRAIN) == ['freeze_layers']
    assert differing_keys(configs['1'], configs['1'], PRETRAIN) == []
    assert differing_keys(configs['False'], configs['all'], PRETRAIN) == ['freeze_layers']


# Weights


def test_mean_and_deviation_are_the_models_own():
    for name, own in ((VIT, 'test_vit'), ('timm/vit_small_patch16_224.dino', 'vit_small_patch16_224.dino'),
                      (RESNET, 'test_resnet')):
        config = timm.get_pretrained_cfg(own)
        assert find_backbone(name).normalization == (config.mean, config.std)
    assert find_backbone(VIT).normalization[0] == (0.5, 0.5, 0.5)


def test_strides_are_asked_of_timm():
    assert find_backbone(VIT).output_strides == (16,) and find_backbone(CONVNEXT).output_strides == (8, 16, 32)
    assert find_backbone('timm/swin_tiny_patch4_window7_224').output_strides == (32,)
    assert [output_stride(CONVNEXT, kwargs) for kwargs in ({}, {'dilated': False}, {'output_stride': 16})] == [8, 32, 16]


def test_mistakes(experiment):
    changes = {'backbone': VIT, 'backbone_kwargs': {}}
    resolution = {'transformation_kwargs.crop_size': 50}
    for more, words in (
            ({'backbone': 'timm/vit_smal_patch16_224'}, 'timm has no network of this name (nearest: vit_small_patch16_224'),
            ({'backbone': 'timm/crossvit_9_240'}, 'this network of timm has no grid of features'),
            ({'backbone': CONVNEXT, 'backbone_kwargs': {'output_stride': 4}}, 'must be one of 8, 16, 32 for backbone: timm'),
            ({'backbone': CONVNEXT, 'backbone_kwargs': {'output_stride': 32, 'dilated': True}}, 'contradict each other'),
            ({'backbone': CONVNEXT, 'backbone_kwargs': {'output_stride': 16, 'dilated': False}}, 'contradict each other'),
            (resolution, 'transformation_kwargs.crop_size: 50 x 50 pixels must be multiples of 16, the patch of backbone: '
                         'timm/test_vit (nearest: 48 x 48)'),
            ({'backbone': CONVNEXT, **resolution}, 'multiples of 8, or the grid of backbone: timm/test_conv'),
            ({'backbone': 'timm/levit_128s', 'transformation_kwargs.crop_size': 64}, 'its own size is 224 x 224'),
            ({'freeze_layers': 7}, 'freeze_layers is 7, but backbone: timm/test_vit has 6 stages')):
        arguments = experiment({**changes, **more})
        message = refusal(create_config, arguments[1], arguments[3], PRETRAIN)
        assert message.startswith(arguments[3]) and words in message, message
    for more in ({'backbone': CONVNEXT, 'backbone_kwargs': {'output_stride': 16, 'dilated': True}},
                 {'backbone': RESNET, **resolution}):
        arguments = experiment({**changes, **more})
        assert create_config(arguments[1], arguments[3], PRETRAIN).backbone == more['backbone']
    assert nearest_names('resnet5O.a1_in1k')[0] == 'resnet50.a1_in1k'


def test_torchvisions_entries_are_what_they_were():
    """timm's ResNets and torchvision's have weights of the same names, so files serve both."""
    spec = find_backbone('resnet50')
    assert (spec.channels, spec.output_strides, spec.frozen) == (2048, (8, 32), ('conv1', 'bn1', 'layer1', 'layer2'))
    with torch.device('meta'):
        state = resnet18(weights=None).state_dict()
    own = find_backbone('timm/resnet18').own_names(state)
    with torch.device('meta'):
        timms = build_backbone('timm/resnet18', {'output_stride': 8}).state_dict()
    assert own.keys() == timms.keys() and dataclasses.is_dataclass(spec)
