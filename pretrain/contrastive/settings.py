"""Settings of a pre-training for a number of images and a device, where nobody has chosen them."""
import math
import socket

from models.weights import backbone_weights
from utils.errors import UserError
from utils.sources import TORCHVISION

IMAGENET = 'imagenet_classification'
MANY = 2000  # images: from here on a larger network has enough to learn from
FEW = 500    # below, an embedding of more channels would be noise to K-means, which whitens them
STEPS, EPOCHS = {'cpu': 600, 'other': 4000}, 10  # at least: of all, and over each image
TIMEOUT = 20  # seconds to wait for a server


def backbone_for(images, device):
    return 'resnet50' if device.type != 'cpu' and images >= MANY else 'resnet18'


def weights_at_hand(backbone):
    """`imagenet_classification` where torchvision's weights are on disk or can be fetched, else None, and why."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub has none of its own
    try:
        backbone_weights(f'{TORCHVISION}{backbone}-IMAGENET1K_V1', backbone)
    except UserError as error:
        return None, f'no ImageNet weights ({error.line()}), so training starts from random ones, which find less'
    finally:
        socket.setdefaulttimeout(before)
    return IMAGENET, 'training starts from ImageNet weights'


def training_settings(name, saliency, images, device, weights):
    """The content of an experiment file for main.py, and lines that say why.

    name: the data set. saliency: its masks. images: with masks. device: a torch.device. weights: `imagenet_classification` or
    None. From pre-trained weights the published settings hold; from random ones, for a few hundred steps, those of the demo.
    Raises `UserError` for fewer than 2 images.
    """
    if images < 2:
        raise UserError(f'{name}: {images} images with masks are too few to contrast: give more photographs')
    on_cpu = device.type == 'cpu'
    backbone = backbone_for(images, device)
    batch = min(16 if on_cpu else 64, images)
    steps = STEPS['cpu' if on_cpu else 'other']
    epochs = max(EPOCHS, math.ceil(steps / (images // batch)))
    # An image's own prototype in the queue is a negative that it can't be told from: a quarter of the images at most.
    queue = batch * min(max(1, images // (4 * batch)), 4)
    settings = {
        'train_db_name': name, 'train_db_kwargs': {'saliency': saliency}, 'train_batch_size': batch,
        'num_workers': 2 if on_cpu else 8, 'transformation_kwargs': {'crop_size': 96 if on_cpu else 224},
        'on_bad_image': 'skip',
        'backbone': backbone, 'backbone_kwargs': {'dilated': True, 'pretraining': weights},
        'model_kwargs': {'ndim': 16 if images < FEW else 32, 'head': 'linear', 'upsample': True,
                         'use_classification_head': True},
        'head': 'deeplab', 'freeze_layers': weights is not None,
        'epochs': epochs, 'scheduler': 'poly', 'seed': 1,
    }
    if weights:
        settings |= {'moco_kwargs': {'T': 0.5, 'm': 0.99, 'K': queue}, 'optimizer': 'sgd',
                     'optimizer_kwargs': {'lr': 0.004, 'weight_decay': 0.0001, 'momentum': 0.9, 'nesterov': False}}
    else:
        settings |= {'moco_kwargs': {'T': 0.2, 'm': 0.9, 'K': queue}, 'optimizer': 'adam',
                     'optimizer_kwargs': {'lr': 0.001, 'weight_decay': 0.0001}}
    crop, ndim = settings['transformation_kwargs']['crop_size'], settings['model_kwargs']['ndim']
    reasons = [f'{images} images on {device.type}: {backbone}, views of {crop} pixels, batches of {batch}, '
               f'embeddings of {ndim} channels',
               f'{epochs} epochs, {epochs * (images // batch)} steps: at least {steps} steps and {EPOCHS} epochs']
    return settings, reasons
