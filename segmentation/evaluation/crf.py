"""Fully connected CRF on the network's logits, in several processes (paper section 4; dense CRF, arXiv 1210.5644).

Axes: C classes, H W the image's height and width, h w the network's grid.
"""
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
from pydensecrf import densecrf

from data.dataset import SegmentationDataset
from data.image_folder import ImageFolder
from models.interpolation import resize
from utils.errors import UserError
from utils.parallel.ranks import per_process
from utils.parallel.workers import cores, end_with_parent

ITERATIONS = 10
GAUSSIAN = {'sxy': 1, 'compat': 3}
BILATERAL = {'sxy': 67, 'srgb': 3, 'compat': 4}
SMALLEST = 1e-5  # probability
KILLED = 'a process of the CRF was killed, probably because memory ran out: free some and start again'
# What workers need, or the script that they import because the main process runs it. It is imported once, in the process
# that they are forked from: seconds and some 200 MB for each worker saved.
PRELOADED = ['cv2', 'numpy', 'torch', 'pydensecrf.densecrf', 'torchvision.models.segmentation.deeplabv3', 'scipy.optimize',
             'scipy.stats', 'sklearn.metrics', 'torch.utils.tensorboard']


def dense_crf(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Refine class probabilities on an image: Potts model, diagonal kernels, symmetric normalisation.

    image: H x W x 3 uint8 RGB. probabilities: C x H x W float32, summing to 1 over C. Returns H x W uint8, the class of
    highest marginal.
    """
    classes, height, width = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    unary = -np.log(np.clip(probabilities, SMALLEST, 1)).reshape(classes, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    crf.addPairwiseGaussian(**GAUSSIAN)
    crf.addPairwiseBilateral(**BILATERAL, rgbim=np.ascontiguousarray(image[..., ::-1]))  # the published order is BGR
    marginals = np.array(crf.inference(ITERATIONS))
    return marginals.argmax(0).reshape(height, width).astype(np.uint8)


def refine(image: np.ndarray, grid: torch.Tensor, resolution: Sequence[int]) -> np.ndarray:
    """The network's C x h x w class logits (float32 tensor) as a refined H x W uint8 prediction for `image`.

    resolution: of the network's input. The logits go to it first and from there to the image's size, as published.
    """
    logits = resize(resize(grid.unsqueeze(0), resolution), image.shape[:2])
    return dense_crf(image, logits.softmax(1)[0].numpy())


class CrfPool:
    """Worker processes that refine the predictions of a data set's images. A context manager.

    processes: None for one a core of the machine, shared with this run's other processes. The result doesn't depend on their
    number.
    """

    def __init__(self, dataset: SegmentationDataset | ImageFolder, processes: int | None = None):
        context = multiprocessing.get_context('forkserver')  # forks of this process would inherit its threads' locks
        context.set_forkserver_preload(PRELOADED)
        self.processes = processes or per_process(cores())
        self.pool = ProcessPoolExecutor(self.processes, context, initializer=_start_worker, initargs=(dataset,))

    def __enter__(self):
        return self

    def __exit__(self, *_: object):
        self.pool.shutdown(cancel_futures=True)

    def submit(self, index: int, grid: torch.Tensor, resolution: Sequence[int]) -> Future[np.ndarray]:
        """Start on image `index` of the data set; give what is returned to `result`. grid: C x h x w logits.

        Raises `UserError` if a worker was killed."""
        try:
            return self.pool.submit(_refine, index, grid.float().cpu().numpy(), resolution)
        except BrokenProcessPool as error:
            raise UserError(KILLED) from error

    @staticmethod
    def result(job: Future[np.ndarray]) -> np.ndarray:
        """H x W uint8 prediction. Raises `UserError` for an unreadable image, and when a worker was killed."""
        try:
            return job.result()
        except BrokenProcessPool as error:
            raise UserError(KILLED) from error


_worker: dict[str, SegmentationDataset | ImageFolder] = {}  # of a worker process: its data set


def _start_worker(dataset: SegmentationDataset | ImageFolder):
    end_with_parent()
    _worker['dataset'] = dataset
    torch.set_num_threads(1)  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business


def _refine(index: int, grid: np.ndarray, resolution: Sequence[int]):
    return refine(_worker['dataset'][index]['image'], torch.from_numpy(grid), resolution)
