"""A small data set with everything that can go wrong, a network that finds partial masks in it, and both the plain way."""
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, adjusted_rand_score, normalized_mutual_info_score

from data.synthetic_shapes import draw_shapes
from helpers.plain_evaluation import HALF, plain_input
from models.factory import get_model
from models.interpolation import resize

RESOLUTION = (48, 40)
IDS, D = [f'val_{index:04d}' for index in reversed(range(18))], 8
EMPTY = IDS[0]  # its masks are empty, predicted and given
NETWORK = {'backbone': 'timm/test_resnet', 'backbone_kwargs': {'output_stride': 8}, 'model_kwargs': {'ndim': D},
           'kmeans_eval': True}


@pytest.fixture(scope='session')
def toys(tmp_path_factory):
    """A db_root with `Toys`: Shapes whose last class never occurs, with labels of other sizes and an all-void image."""
    folder = tmp_path_factory.mktemp('toys') / 'Toys'
    draw_shapes(folder, train=16, val=len(IDS), size=64)
    (folder / 'classes.txt').write_text((folder / 'classes.txt').read_text() + 'unicorn\n')
    (folder / 'sets' / 'val.txt').write_text('\n'.join(IDS))
    for number, change in ((1, lambda image: image.resize((150, 111), Image.NEAREST)),
                           (2, lambda image: image.resize((30, 41), Image.NEAREST)),
                           (3, lambda image: image.point(lambda _: 255)),
                           (4, lambda image: Image.fromarray(np.array(image)))):  # gray instead of palette
        path = folder / 'SegmentationClass' / f'val_000{number}.png'
        change(Image.open(path)).save(path)
    for name in (EMPTY, 'train_0002'):
        empty = folder / 'saliency_supervised_model' / f'{name}.png'
        Image.open(empty).point(lambda value: 0).save(empty)
    return folder.parent


def toy_input(folder, name, normalization=HALF):
    """1 x 3 x 48 x 40 float32, normalised."""
    return plain_input(folder / 'images' / f'{name}.jpg', RESOLUTION, normalization)


@pytest.fixture(scope='session')
def toy_network(toys):
    """A network whose saliency head is fitted to the data set's masks, so that masks are partial, and one is empty."""
    torch.manual_seed(0)
    network, folder = get_model(NETWORK), toys / 'Toys'
    images = torch.cat([toy_input(folder, name) for name in IDS])
    masks = [Image.open(folder / 'saliency_supervised_model' / f'{name}.png').resize((5, 6), Image.BOX) for name in IDS]
    target = torch.tensor(np.stack(masks).reshape(-1, 1) / 255).float()
    weight = torch.tensor([100.0 if name == EMPTY else 1.0 for name in IDS]).repeat_interleave(5 * 6).unsqueeze(1)
    for module in filter(lambda module: hasattr(module, 'momentum'), network.modules()):
        module.momentum = 1
    with torch.no_grad():
        network(images)  # in train mode: batch norm takes the statistics of the images
        network.eval()
        features = network.decoder(network.backbone(images)).permute(0, 2, 3, 1)
        A = features.reshape(-1, 256)
        fitted = torch.linalg.solve(A.T @ (weight * A) + torch.eye(256), A.T @ (weight * target))
        # Scale the logits so that the threshold lies in the widest gap near it: rounding then flips no pixel.
        logits = resize((features @ fitted).permute(0, 3, 1, 2), RESOLUTION)
        near = logits[(logits > 0.3) & (logits < 0.4)].sort().values
        threshold = near[:-1][near.diff().argmax()] + near.diff().max() / 2
        network.classification_head.weight.copy_((0.5 / threshold * fitted).view(1, 256, 1, 1))
    return network


@pytest.fixture(scope='session')
def toy_checkpoint(toy_network, tmp_path_factory):
    """As main.py leaves it."""
    state = {'module.model_k.head.bias': torch.zeros(D), 'module.queue': torch.zeros(D, 8), 'module.queue_ptr': torch.zeros(1),
             **{f'module.model_q.{key}': value for key, value in toy_network.state_dict().items()}}
    path = tmp_path_factory.mktemp('weights') / 'checkpoint.pth.tar'
    torch.save({'model': state, 'optimizer': {}, 'epoch': 3}, path)
    return path


@torch.no_grad()
def plain_embedding(network, folder, saliency=None, ids=IDS, labels_folder='SegmentationClass', at_resolution=False,
                    ignored=(), normalization=HALF):
    """Per image: prototype (float64), mask and labels, both at the labels' size, or at the network's resolution."""
    found = []
    for name in ids:
        embedding, logit = network(toy_input(folder, name, normalization))
        if saliency:
            given = np.array(Image.open(folder / saliency / f'{name}.png'))
            mask = torch.tensor(cv2.resize(given, (40, 48), interpolation=cv2.INTER_NEAREST)) == 255
        else:
            mask = logit[0] > 0.5
        prototype = torch.zeros(embedding.shape[1], dtype=torch.float64)
        for row, column in mask.nonzero().tolist():
            prototype += embedding[0, :, row, column].double() * (1 if saliency else logit[0, row, column].double())
        prototype /= max(prototype.norm(), 1e-12)
        labels = np.array(Image.open(folder / labels_folder / f'{name}.png'))
        labels[np.isin(labels, ignored)] = 255
        size = Image.open(folder / 'images' / f'{name}.jpg').size
        if labels.shape != size[::-1]:
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        mask = mask.numpy().astype(np.uint8)
        if at_resolution:
            labels = cv2.resize(labels, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
        else:
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        found.append((prototype, mask == 1, labels))
    return found


def plain_score(embedding, prototypes, n_clusters, seed, classes=10):
    """Predicted classes of every image, IoU of each class, and accuracy, NMI and ARI, all from full predictions."""
    whitened = PCA(min(32, *prototypes.shape), whiten=True, svd_solver='full').fit_transform(prototypes)
    clusters = MiniBatchKMeans(n_clusters - 1, batch_size=1000, n_init=3, random_state=seed).fit_predict(whitened)
    ids = [np.where(mask, cluster + 1, 0) for (_, mask, _), cluster in zip(embedding, clusters, strict=True)]
    pixels = np.concatenate([p[labels != 255] for p, (_, _, labels) in zip(ids, embedding, strict=True)])
    truth = np.concatenate([labels[labels != 255] for _, _, labels in embedding])

    def iou(predicted, c):
        union = (predicted | (truth == c)).sum()
        return (predicted & (truth == c)).sum() / union if union else 0.0

    pairs = np.array([[iou(pixels == i, c) for c in range(classes)] for i in range(n_clusters)])
    vote = np.array([min(c for c in range(classes) if row[c] == max(row)) for row in pairs])
    classes_of = linear_sum_assignment(-pairs)[1] if n_clusters == classes else vote
    measures = [accuracy_score(truth, classes_of[pixels]), normalized_mutual_info_score(truth, pixels),
                adjusted_rand_score(truth, pixels)]
    return [classes_of[p] for p in ids], [100 * iou(classes_of[pixels] == c, c) for c in range(classes)], measures
