"""Backbone: torchvision's ResNet without average pool and classifier, output stride 8 or 32 (DeepLabv3, arXiv 1706.05587)."""
from torch import nn
from torchvision.models import resnet

from models.atrous import AtrousConv2d

CHANNELS = {'resnet18': 512, 'resnet50': 2048}  # of the last grid
FROZEN = ('conv1', 'bn1', 'layer1', 'layer2')   # what `freeze` freezes


def output_stride(dilated):
    """Input pixels to a step of the grid."""
    return 8 if dilated else 32


class Backbone(nn.Module):
    """A ResNet that returns the grid before the average pool.

    name: 'resnet18' or 'resnet50'. dilated: output stride 8 (DeepLab), else 32. Weights start from torchvision's random
    initialisation; parameter names are torchvision's own.
    """

    def __init__(self, name, dilated=True):
        super().__init__()
        net = getattr(resnet, name)(weights=None)
        for part in ('conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3', 'layer4'):
            self.add_module(part, getattr(net, part))
        self.channels = CHANNELS[name]
        self.frozen = False
        if dilated:
            _dilate(self.layer3, first=1, others=2)
            _dilate(self.layer4, first=2, others=4)

    def forward(self, x):
        """B x 3 x H x W -> B x channels x h x w, with h = ceil(H / output stride)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def freeze(self):
        """No gradient for conv1, bn1, layer1 and layer2, which stay in eval mode: no graph is built below layer3."""
        self.frozen = True
        for part in FROZEN:
            getattr(self, part).requires_grad_(False)
        return self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            for part in FROZEN:
                getattr(self, part).eval()
        return self


def _dilate(layer, first, others):
    """Trade the stride of `layer` for dilation: `first` where the stride was, `others` in every later 3x3 convolution.

    torchvision's `replace_stride_with_dilation` does the same, for bottleneck blocks only.
    """
    for block in layer:
        for name, module in block.named_children():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                setattr(block, name, AtrousConv2d(module, first if module.stride == (2, 2) else others))
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
