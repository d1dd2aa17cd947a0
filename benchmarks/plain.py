"""The method in its plainest form: full-size embeddings and logits, one operation after the other, no economy at all.

What the fast version is measured against and, in the tests, must agree with. Axes: B images, D embedding, K queue,
P object pixels of the batch, H W the input's size, C classes.
"""
import functools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.dataset import VOID
from models.atrous import AtrousConv2d


def plain_network(network):
    """`network`, whose atrous convolutions are computed as any other from here on: all nine taps everywhere."""
    for module in network.modules():
        if isinstance(module, AtrousConv2d):
            module.forward = functools.partial(nn.Conv2d.forward, module)
    return network


def plain_step(model, im_q, im_k, sal_q, sal_k):
    """`ContrastiveModel.forward` of one process, written out from the method's steps 1 to 8 (same arguments, results and
    effects on the key network and the queue)."""
    q, logits = model.model_q(im_q)                                     # B x D x H x W, B x H x W
    q = F.normalize(q, dim=1)
    saliency = plain_saliency_loss(logits, sal_q) if logits is not None else q.new_zeros(())
    with torch.no_grad():
        for query, key in zip(model.model_q.parameters(), model.model_k.parameters(), strict=True):
            if query.requires_grad:
                key.copy_(model.m * key + (1 - model.m) * query)
        k = F.normalize(model.model_k(im_k)[0], dim=1)
        prototypes = plain_prototypes(k, sal_k)
    contrastive, acc1, acc5 = plain_contrastive_loss(q, sal_q, prototypes, model.queue.clone(), model.T)
    with torch.no_grad():
        pointer = int(model.queue_ptr)
        for column, prototype in enumerate(prototypes, start=pointer):
            model.queue[:, column % model.K] = prototype
        model.queue_ptr[0] = (pointer + len(prototypes)) % model.K
    return {'loss': contrastive + saliency, 'contrastive_loss': contrastive, 'saliency_loss': saliency,
            'acc1': acc1, 'acc5': acc5}


def plain_saliency_loss(logits, mask):
    """Step 2. logits, mask: B x H x W."""
    inside = mask.bool()
    weight = (~inside).to(logits.dtype).mean()
    losses = -torch.where(inside, F.logsigmoid(logits), F.logsigmoid(-logits))
    return (weight * losses[inside].sum() + (1 - weight) * losses[~inside].sum()) / mask.numel()


def plain_prototypes(k, mask):
    """Step 5. k: B x D x H x W, normalised. mask: B x H x W."""
    return F.normalize((k * mask.unsqueeze(1)).sum((2, 3)), dim=1)


def plain_contrastive_loss(q, mask, prototypes, queue, temperature):
    """Steps 6 and 7. q: B x D x H x W, normalised."""
    images, height, width = mask.shape
    target = torch.arange(images, device=q.device).view(-1, 1, 1).expand(images, height, width)[mask.bool()]
    pixels = q.permute(0, 2, 3, 1)[mask.bool()]                         # P x D
    logits = torch.cat([pixels @ prototypes.t(), pixels @ queue], dim=1) / temperature
    weight = torch.full((logits.shape[1],), 1.02, dtype=logits.dtype, device=q.device)
    classes, counts = target.unique(return_counts=True)
    weight[classes] += counts.to(logits.dtype) / len(target)
    loss = F.cross_entropy(logits, target, 1 / weight.log())
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == target.unsqueeze(1)
    return loss, hits[:, :1].any(1).double().mean() * 100, hits.any(1).double().mean() * 100


def hits_and_misses(confusion):
    """True positives, false positives and false negatives of each class, 3 x C, from a C x C confusion matrix."""
    hits = confusion.diagonal()
    return np.stack([hits, confusion.sum(1) - hits, confusion.sum(0) - hits])


def plain_hits_and_misses(predictions, labels, classes):
    """The same by C x 3 boolean passes over all pixels. predictions, labels: B x H x W uint8, 255 = void."""
    valid, rows = labels != VOID, []
    for c in range(classes):
        predicted, true = predictions == c, labels == c
        rows.append([(predicted & true & valid).sum(), (predicted & ~true & valid).sum(), (~predicted & true & valid).sum()])
    return np.array(rows).T
