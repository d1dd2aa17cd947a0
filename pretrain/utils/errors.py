"""A user's mistake, as opposed to our own bugs, which keep their traceback, and the words of its message."""
import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that only the user can fix. The message is one line that names the file and what to do."""

    def line(self) -> str:
        """The message in one line, also when a DataLoader worker has wrapped it in its traceback."""
        text = str(self).strip()
        prefix = f'{type(self).__module__}.{type(self).__name__}: '
        if prefix in text:
            text = text.rpartition(prefix)[2]
        return ' '.join(text.split())


def nearest_name(name: str, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The valid name most similar to `name`, ignoring case, or None if none reaches `cutoff`."""
    names = {item.lower(): item for item in valid}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None


def one_line(error: BaseException) -> str:
    """An exception's message in one line."""
    return ' '.join(str(error).split()) or type(error).__name__
