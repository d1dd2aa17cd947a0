"""Warnings and errors at the start of a run that can hardly help, or not at all."""
from utils.errors import UserError

PAGE = 'docs/learning-curves.md'
ENOUGH_PAIRS = 50_000  # of views: after these the backbone scored better than its initial weights, at the published settings


def short_run(pretraining: str | None, epochs: int, steps: int, batch_size: int) -> str | None:
    """A warning for a run that starts from pre-trained weights and will see few pairs of views, or None.

    pretraining: the initial weights, or None for random ones, of which anything is better. steps: of an epoch.
    batch_size: pairs in a step, over all processes.
    """
    pairs = epochs * steps * batch_size
    if pretraining is None or pairs > ENOUGH_PAIRS // 2:
        return None
    return (f'This run is short: {epochs} epochs of {steps} steps of {batch_size} are {pairs} pairs of views. With the '
            f'published settings the backbone improved on its initial weights after {ENOUGH_PAIRS}; fewer than half of that '
            f'may not help, see {PAGE}')


def check_negatives(exp_file: str, queue: int, batch_size: int, processes: int) -> None:
    """Raise a `UserError` if there is nothing to contrast prototypes with. queue: its length. batch_size: over all processes,
    each of which sees the prototypes of its own images only."""
    if not queue and batch_size <= processes:
        raise UserError(f'{exp_file}: without a queue (moco_kwargs.K: 0) each process needs at least two images in a batch: '
                        f'train_batch_size is {batch_size} over {processes} processes')
