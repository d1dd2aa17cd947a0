"""One step with weights generated from the names of the keys, compared with the published implementation (CPU, float32)."""
import math
import zlib

import torch
from torch.nn import functional as F

from contrastive.builder import LOSSES, ContrastiveModel
from gpu.common import report

FIGURES = {
    'resnet18': {'contrastive_loss': 1.8807135820388794, 'saliency_loss': 0.171695277094841, 'acc1': 53.635501861572266,
                 'acc5': 100.0, 'grad_norm': 45.56456346396513},
    'resnet50': {'contrastive_loss': 2.0603110790252686, 'saliency_loss': 0.15509600937366486, 'acc1': 29.461755752563477,
                 'acc5': 98.58356475830078, 'grad_norm': 612.1378987718131},
}
# Relative, of the gradient's norm and of the rest. ResNet-50's random weights amplify rounding; a GPU adds in other orders.
TOLERANCES = {'cpu': {'resnet18': (1e-3, 1e-5), 'resnet50': (2e-2, 1e-4)},
              'cuda': {'resnet18': (5e-3, 1e-4), 'resnet50': (5e-2, 2e-3)}}
PIXEL = 100 / 1059  # what one of the object pixels adds to an accuracy: rounding may turn some
PIXELS = {'cpu': 0, 'cuda': 5}


def fill(model):
    """Give every tensor of a state dict values that follow from its name alone, and leave dropout out."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(_values(key, tensor))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _values(key, tensor):
    g = torch.Generator().manual_seed(zlib.crc32(('example ' + key.replace('model_k.', 'model_q.')).encode()))
    if key == 'queue':
        return F.normalize(torch.randn(tensor.shape, generator=g), dim=0)
    if tensor.dim() >= 2:
        return torch.randn(tensor.shape, generator=g) * (2.0 / tensor[0].numel()) ** 0.5
    if key.endswith('running_var'):
        return torch.ones(tensor.shape)
    if key.endswith(('running_mean', 'bias')):
        return torch.zeros(tensor.shape)
    return torch.ones(tensor.shape) + 0.1 * torch.randn(tensor.shape, generator=g)


def inputs(images=3, size=56):
    """Query and key views, B x 3 x H x W, and their masks, B x H x W."""
    g = torch.Generator().manual_seed(7)
    views = [torch.randn(images, 3, size, size, generator=g) for _ in range(2)]
    masks = torch.zeros(2, images, size, size, dtype=torch.long)
    for view in range(2):
        for image in range(images):
            y, x = torch.randint(0, size // 2, (2,), generator=g).tolist()
            h, w = torch.randint(size // 4, size // 2, (2,), generator=g).tolist()
            masks[view, image, y:y + h, x:x + w] = 1
    return [*views, *masks]


def figures(backbone, device, loss='fused'):
    """Those of a step on `device`, and of its gradients."""
    model = ContrastiveModel({'backbone': backbone, 'model_kwargs': {'ndim': 32},
                              'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 12, 'loss': loss}})
    fill(model)
    model = model.to(device, memory_format=torch.channels_last).train()
    arguments = inputs()
    counts = arguments[2].flatten(1).sum(1).tolist()
    output = model(*(argument.to(device) for argument in arguments), counts)
    output['loss'].backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return {**{name: output[name].item() for name in FIGURES[backbone] if name in output}, 'grad_norm': norm.item()}


def run(settings):
    for backbone, want in FIGURES.items():
        norm_tolerance, tolerance = TOLERANCES[settings.device.type][backbone]
        for loss in LOSSES:
            got = figures(backbone, settings.device, loss)
            off = {name: abs(got[name] / value - 1) for name, value in want.items()}
            right = [math.isclose(got[name], value, rel_tol=norm_tolerance if name == 'grad_norm' else tolerance,
                                  abs_tol=PIXELS[settings.device.type] * PIXEL if name.startswith('acc') else 0)
                     for name, value in want.items()]
            report(f'{backbone}, losses {loss}', ok=all(right), detail='off by ' + ', '.join(
                f'{name} {value:.1e}' for name, value in off.items()), figures=got)
