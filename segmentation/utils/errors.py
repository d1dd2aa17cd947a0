"""A user's mistake is one clear line and exit code 2; a traceback is reserved for our own bugs."""
import functools
import logging
import sys

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something only the user can mend. The message is one line that names the file and what to do."""

    def line(self):
        """The message in one line, also when a DataLoader worker has wrapped it in its traceback."""
        text = str(self).strip()
        prefix = f'{type(self).__module__}.{type(self).__name__}: '
        if prefix in text:
            text = text.rpartition(prefix)[2]
        return ' '.join(text.split())


def command(main):
    """Decorate a script's `main(argv)`: a `UserError` ends it with its line on stderr and exit code 2."""
    @functools.wraps(main)
    def run(argv=None):
        try:
            return main(argv)
        except UserError as error:
            log = logging.getLogger('maskcontrast')
            if log.handlers:
                log.error('error: %s', error.line())
            else:
                print(f'error: {error.line()}', file=sys.stderr)
            raise SystemExit(EXIT_USER_ERROR) from None
    return run
