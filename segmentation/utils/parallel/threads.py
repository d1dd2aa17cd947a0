"""Work on many files in threads."""
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from utils.parallel import ranks
from utils.parallel.workers import cores

Item = TypeVar('Item')
Result = TypeVar('Result')


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` of each item in order, computed in as many threads as there are cores. The first error is raised,
    and what has not begun is left."""
    jobs: deque[Future[Result]] = deque()
    threads = ranks.per_process(cores())
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                jobs.append(pool.submit(function, item))
                if len(jobs) > 4 * threads:  # of their results in memory
                    yield jobs.popleft().result()
            while jobs:
                yield jobs.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # the rest would fail too, for example at a full disk
