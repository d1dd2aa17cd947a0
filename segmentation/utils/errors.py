"""A user's mistake, as opposed to our own bugs, which keep their traceback."""


class UserError(Exception):
    """Something only the user can mend. The message is one line that names the file and what to do."""

    def line(self) -> str:
        """The message in one line, also when a DataLoader worker has wrapped it in its traceback."""
        text = str(self).strip()
        prefix = f'{type(self).__module__}.{type(self).__name__}: '
        if prefix in text:
            text = text.rpartition(prefix)[2]
        return ' '.join(text.split())
