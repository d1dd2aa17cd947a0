"""Fetches files, from Google Drive or any other address, so that each is either complete or absent."""
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError, one_line
from utils.storage.atomic import atomic_file

TIMEOUT = 60  # seconds without a byte; gdown's own default waits forever
CHUNK = 2 ** 20  # bytes
QUOTA = ('too many users have viewed or downloaded this file recently', 'quota exceeded')

log = logging.getLogger('maskcontrast')


def fetch(url: str, path: Path, starts: tuple[bytes, ...], kind: str, room: str,
          check: Callable[[io.BufferedRandom], None] | None = None) -> None:
    """Fetch `url` to `path`, which gets its name only when all of it has come.

    starts: the bytes that such a file may begin with, a tuple. kind: its description, and room: where there may be more room
    on the disk, both for messages. check: called with the open file, may raise a `UserError` of its own.
    Raises `UserError` if the file can't be fetched (Google Drive's quota, the network), is something else, or can't be written.
    Nothing half-done is left.
    """
    import gdown  # here, because it takes a third of a second and only the first run needs it
    import requests  # gdown's own; its exceptions are OSErrors, so they must be told from those of the disk

    log.info('downloading %s to %s', url, path)
    with atomic_file(path, 'w+b') as file:
        assert isinstance(file, io.BufferedRandom)  # as this mode gives it
        try:
            # Into an open file: given a path, gdown leaves a partial file beside it after a failure. Cookies would be
            # kept in the user's home folder. A length other than the announced one is an error.
            gdown.download(url, output=file, quiet=not sys.stderr.isatty(), use_cookies=False, timeout=TIMEOUT,
                           log_messages={'start': '', 'output': f'To: {path}\n'})
            file.seek(0)
            start = file.read(CHUNK)
        except (gdown.exceptions.DownloadError, requests.RequestException) as error:
            if _is_quota(str(error)):
                raise _quota_error(url, path) from error
            raise UserError(f'{url} could not be downloaded ({one_line(error)}): run again, or {by_hand(url, path)}') from error
        except OSError as error:
            raise UserError(f'{path} could not be written ({one_line(error)}): make room there or choose another '
                            f'{room}') from error
        if not start.startswith(starts):
            if _is_quota(start.decode(errors='replace')):
                raise _quota_error(url, path)
            what = 'a web page' if start.lstrip().startswith(b'<') else 'something else'
            raise UserError(f'{url} gave {what} instead of {kind}: {by_hand(url, path)}')
        if check:
            check(file)


def by_hand(url: str, path: Path) -> str:
    """What a user can do when a program can't."""
    return f'open {url} in a browser, save the file as {path} and run again'


def _is_quota(text: str):
    text = ' '.join(text.lower().split())  # pages and gdown's messages are wrapped
    return any(sentence in text for sentence in QUOTA)


def _quota_error(url: str, path: Path):
    return UserError(f'Google Drive refuses {path.name} for now because its download quota is used up: '
                     f'wait a day, or {by_hand(url, path)}')
