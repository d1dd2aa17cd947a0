"""The key batch's shuffle and the shared queue, over two real gloo processes."""
import torch
from torch import distributed, multiprocessing

from contrastive.builder import ContrastiveModel

SETTINGS = {'backbone': 'resnet18', 'backbone_kwargs': {'dilated': True}, 'model_kwargs': {'ndim': 8},
            'moco_kwargs': {'T': 0.5, 'm': 0.9, 'K': 8}}


def worker(rank, folder):
    distributed.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ContrastiveModel(SETTINGS).train()
    torch.manual_seed(rank)  # from here on, the processes draw differently
    images = torch.randn(2, 2, 3, 32, 32)
    masks = torch.randint(0, 2, (2, 2, 32, 32))
    with torch.no_grad():
        model.model_k.eval()  # running statistics: the shuffle must not show in the result
        shuffled, straight = model._key_grid(images[1]), model.model_k.grid(images[1])[0]
    model.train()
    model(images[0], images[1], masks[0], masks[1])
    torch.save({'shuffled': shuffled, 'straight': straight, 'queue': model.queue, 'pointer': model.queue_ptr},
               f'{folder}/rank{rank}')
    distributed.destroy_process_group()


def test_two_processes(tmp_path):
    multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    zero, one = (torch.load(tmp_path / f'rank{rank}', weights_only=True) for rank in range(2))
    for result in (zero, one):
        assert torch.allclose(result['shuffled'], result['straight'], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(zero['straight'], one['straight'], rtol=1e-2)
    assert torch.equal(zero['queue'], one['queue'])
    assert zero['pointer'].item() == one['pointer'].item() == 4
