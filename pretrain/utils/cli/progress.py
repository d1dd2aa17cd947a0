"""Progress of long work: a bar on a terminal, plain lines in a file."""
import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

from utils.parallel.ranks import is_main

EVERY = 30  # seconds between lines

log = logging.getLogger('maskcontrast')

T = TypeVar('T')


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items`, and show under the name `what` how many of `total` (None: their length) are done."""
    bar = tqdm(items, desc=what, total=total, disable=None if is_main() else True, leave=False)
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    start = last = time.monotonic()
    for done, item in enumerate(bar, start=1):
        yield item
        now = time.monotonic()
        if bar.disable and now - last >= EVERY:
            last = now
            log.info('%s: %d/%d, %s left', what, done, total, tqdm.format_interval((now - start) / done * (total - done)))
