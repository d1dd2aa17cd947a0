"""A step of the method, written out from its description. Axes: B images, D embedding, H W space."""
import torch

from contrastive import losses


def plain_step(model, im_q, im_k, sal_q, sal_k):
    """`ContrastiveModel.forward` of one process, written out from the method's steps 1 to 8 (same arguments, results and
    effects on the key network and the queue)."""
    q, logits = model.model_q(im_q)                                     # B x D x H x W, B x H x W
    saliency = losses.saliency_loss(logits, sal_q) if logits is not None else q.new_zeros(())
    with torch.no_grad():
        for query, key in zip(model.model_q.parameters(), model.model_k.parameters(), strict=True):
            if query.requires_grad:
                key.copy_(model.m * key + (1 - model.m) * query)
        prototypes = losses.mask_prototypes(model.model_k(im_k)[0], sal_k)
    contrastive, acc1, acc5 = losses.contrastive_loss(q, sal_q, prototypes, model.queue.clone(), model.T)
    with torch.no_grad():
        pointer = int(model.queue_ptr)
        for column, prototype in enumerate(prototypes, start=pointer):
            model.queue[:, column % model.K] = prototype
        model.queue_ptr[0] = (pointer + len(prototypes)) % model.K
    return {'loss': contrastive + saliency, 'contrastive_loss': contrastive, 'saliency_loss': saliency,
            'acc1': acc1, 'acc5': acc5}
