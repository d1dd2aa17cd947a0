"""The two networks: DeepLab with an embedding and a saliency head, and DeepLab with a classifier (DeepLabv3, arXiv 1706.05587).
With `head: linear` both have their last layers on the backbone's grid itself, which may be a transformer's tokens.

Axes: B batch, D embedding, C classes, H W the input's height and width, h w the backbone's grid (H, W over its output stride).
"""
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPPPooling, DeepLabHead

from models.atrous import AtrousConv2d
from models.base import Backbone
from models.interpolation import resize

DECODER_CHANNELS = 256
ATROUS_RATES = (12, 24, 36)  # DeepLabv3's for output stride 8; torchvision's ResNets have them at every stride, as published


class PretrainingNetwork(nn.Module):
    """Backbone and DeepLab decoder with a D-channel embedding head and a one-channel saliency head.

    ndim: D. upsample: outputs at the input's size, otherwise at the backbone's grid. use_classification_head: without it
    there is no saliency output (None in its place). decoder: without it the heads are on the backbone's grid (`head: linear`).
    """

    backbone: Backbone
    decoder: nn.Sequential | None
    head: nn.Conv2d
    classification_head: nn.Conv2d | None

    def __init__(self, backbone: Backbone, ndim: int = 32, upsample: bool = True, use_classification_head: bool = True,
                 decoder: bool = True):
        super().__init__()
        self.backbone = backbone
        self.decoder = _decoder(backbone, ndim) if decoder else None
        channels = DECODER_CHANNELS if decoder else backbone.channels
        if self.decoder is None:
            self.head = nn.Conv2d(channels, ndim, 1)
        else:
            head = self.decoder[-1]
            assert isinstance(head, nn.Conv2d)
            self.head = head
            self.decoder[-1] = nn.Identity()
        self.classification_head = nn.Conv2d(channels, 1, 1, bias=False) if use_classification_head else None
        self.upsample = upsample

    def grid(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs before upsampling. B x 3 x H x W -> embeddings B x D x h x w, saliency logits B x h x w or None."""
        features = self.backbone(images)
        if self.decoder is not None:
            features = self.decoder(features)
        saliency = self.classification_head(features).squeeze(1) if self.classification_head is not None else None
        return self.head(features), saliency

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """B x 3 x H x W normalised images -> embeddings B x D x H x W (not normalised), saliency logits B x H x W.

        Without `upsample` both are B x ... x h x w.
        """
        embeddings, saliency = self.grid(images)
        if not self.upsample:
            return embeddings, saliency
        size = images.shape[-2:]
        if saliency is not None:
            saliency = resize(saliency.unsqueeze(1), size).squeeze(1)
        return resize(embeddings, size), saliency


def fresh_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parts that a backbone's initial weights do not fill: decoder and heads of a network."""
    return [parameter for name, parameter in network.named_parameters() if not name.startswith('backbone.')]


class BackboneNetwork(nn.Module):
    """A backbone alone, for baselines: its grid is the embedding."""

    backbone: Backbone

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def grid(self, images: Tensor) -> tuple[Tensor, None]:
        """As `PretrainingNetwork.grid`: B x 3 x H x W -> embeddings B x channels x h x w, and no saliency: None."""
        return self.backbone(images), None


class LinearNetwork(nn.Module):
    """Backbone, DeepLab decoder if `decoder`, and a last 1x1 convolution that predicts `num_classes` (background too): it is
    `decoder.4`, or without decoder `linear`."""

    backbone: Backbone
    decoder: nn.Sequential
    linear: nn.Conv2d

    def __init__(self, backbone: Backbone, num_classes: int, decoder: bool = True):
        super().__init__()
        self.backbone = backbone
        if decoder:
            self.decoder = _decoder(backbone, num_classes)
        else:
            self.linear = nn.Conv2d(backbone.channels, num_classes, 1)
        self.eval_parts: tuple[nn.Module, ...] = ()

    @property
    def classifier(self) -> nn.Conv2d:
        """The last 1x1 convolution: features -> class logits B x C x h x w."""
        last = self.decoder[-1] if hasattr(self, 'decoder') else self.linear
        assert isinstance(last, nn.Conv2d)
        return last

    def features(self, images: Tensor) -> Tensor:
        """The input of the classifier: B x 3 x H x W normalised images -> B x 256 (without decoder: channels) x h x w."""
        features = self.backbone(images)
        for part in list(self.decoder)[:-1] if hasattr(self, 'decoder') else ():
            features = part(features)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """B x 3 x H x W normalised images -> class logits B x C x H x W."""
        return resize(self.classifier(self.features(images)), images.shape[-2:])

    def freeze(self, batchnorm: str = 'all') -> Self:
        """No gradient but the classifier's. batchnorm: the part that stays in eval mode, with running statistics and without
        dropout: 'all' of the network, its 'backbone', or 'none'."""
        self.requires_grad_(False)
        self.classifier.requires_grad_(True)
        self.eval_parts = {'all': tuple(self.children()), 'backbone': (self.backbone,), 'none': ()}[batchnorm]
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.eval_parts:
            part.eval()
        return self


class _ImagePooling(ASPPPooling):
    """torchvision's image pooling branch, which can also train on a batch of one image.

    Its batch norm sees one value per image and channel, so one image has no batch variance: then the running statistics
    normalise, as they do at evaluation, and stay as they are. That all stays in channels_last spares 4 to 6% of a step
    (ResNet-18, views of 96) to 12% (ResNet-50, 224, frozen to layer2), on two cores.
    """

    def forward(self, x: Tensor) -> Tensor:
        pool, convolution, norm, relu = self
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        pooled = convolution(_channels_last_mean(x) if layout == torch.channels_last else pool(x))
        if norm.training and len(pooled) == 1:
            pooled = F.batch_norm(pooled, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            pooled = norm(pooled)
        return relu(pooled).expand(-1, -1, *x.shape[-2:]).contiguous(memory_format=layout)  # or all branches would lose it


def _channels_last_mean(x: Tensor):
    """B x C x H x W -> B x C x 1 x 1, with a gradient in the layout of `x`; the other branches' are added to it."""
    return x.permute(0, 2, 3, 1).mean((1, 2)).unflatten(1, (-1, 1, 1))


def _decoder(backbone: Backbone, out_channels: int):
    rates = atrous_rates(backbone.output_stride) if backbone.rates_at_stride_8 else ATROUS_RATES
    decoder = DeepLabHead(backbone.channels, out_channels, rates)
    branches = decoder[0].convs
    for branch, rate in zip(branches[1:-1], rates, strict=True):
        branch[0] = AtrousConv2d(branch[0], rate)
    branches[-1] = _ImagePooling(backbone.channels, DECODER_CHANNELS)
    return decoder


def atrous_rates(output_stride: int) -> tuple[int, ...]:
    """DeepLab's rates in steps of a grid of this stride, with which it sees as far in the image as at output stride 8: 6, 12,
    18 at 16, as in DeepLabv3."""
    return tuple(max(1, round(rate * 8 / output_stride)) for rate in ATROUS_RATES)
