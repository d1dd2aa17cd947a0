"""How far long work is: a bar on a terminal, plain lines in a file."""
import logging
import time

from tqdm import tqdm

from utils.parallel.ranks import is_main

EVERY = 30  # seconds between lines

log = logging.getLogger('maskcontrast')


def progress(items, what, total=None):
    """Iterate over `items`, and show under the name `what` how many of `total` (None: their length) are done."""
    bar = tqdm(items, desc=what, total=total, disable=None if is_main() else True, leave=False)
    total = len(items) if total is None else total
    last = time.monotonic()
    for done, item in enumerate(bar, start=1):
        yield item
        if bar.disable and time.monotonic() - last >= EVERY:
            last = time.monotonic()
            log.info('%s: %d/%d', what, done, total)
