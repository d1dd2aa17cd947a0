"""A step in float32, bfloat16 and float16 against the same step in float32 on the CPU."""
import torch

from contrastive.builder import ContrastiveModel
from drawn import draw_views
from gpu.common import report
from utils.training.precision import autocast

# Of the loss, and of the gradients, relative. In bfloat16 the gradients are off by 0.45 on a CPU as on an H200.
LIMITS = {'none': (1e-3, 1e-2), 'bf16': (5e-2, 0.6), 'fp16': (2e-2, 0.2)}
CPU = torch.device('cpu')


def step(device, precision):
    """Losses and gradients of a step, on the CPU."""
    torch.manual_seed(0)
    model = ContrastiveModel({'backbone': 'resnet18', 'model_kwargs': {'ndim': 32},
                              'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 16}})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its random numbers are others on each device
    images, masks = draw_views(8, 64)
    model = model.to(device, memory_format=torch.channels_last).train()
    with autocast(device, precision):
        output = model(*images.to(device), *masks.to(device))
    scale = 256 if precision == 'fp16' else 1  # as the gradient scaler does, so that small gradients don't vanish
    (output['loss'] * scale).backward()
    gradients = torch.cat([p.grad.flatten().cpu() / scale for p in model.parameters() if p.grad is not None])
    return output['loss'].item(), gradients


def run(settings):
    want, want_gradients = step(CPU, 'none')
    for precision, limits in LIMITS.items():
        loss, gradients = step(settings.device, precision)
        off = abs(loss / want - 1), ((gradients - want_gradients).norm() / want_gradients.norm()).item()
        report(f'step in {precision}', ok=off[0] <= limits[0] and off[1] <= limits[1],
               detail=f'loss off by {off[0]:.1e} (limit {limits[0]:g}), gradients by {off[1]:.1e} (limit {limits[1]:g})')
