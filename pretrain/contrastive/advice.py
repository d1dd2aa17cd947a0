"""What is said at the start of a run that can hardly help."""
PAGE = 'docs/learning-curves.md'
FEW_PAIRS = 8000  # of views: after these the published settings still scored below their initial weights


def short_run(pretraining: str | None, epochs: int, steps: int, batch_size: int) -> str | None:
    """A warning for a run that starts from pre-trained weights and will see few pairs of views, or None.

    pretraining: the initial weights, or None for random ones, of which anything is better. steps: of an epoch.
    batch_size: pairs in a step, over all processes.
    """
    pairs = epochs * steps * batch_size
    if pretraining is None or pairs > FEW_PAIRS:
        return None
    return (f'This run is short: {epochs} epochs of {steps} steps of {batch_size} are {pairs} pairs of views. After '
            f'{FEW_PAIRS}, at the published settings, the initial weights still scored better without pre-training, see {PAGE}')
