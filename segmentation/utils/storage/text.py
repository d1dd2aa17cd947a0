"""Text files as editors write them."""
import codecs
from pathlib import Path

from utils.errors import UserError

BOM = '\ufeff'  # invisible marks that some editors put before the text
MARKS = ((codecs.BOM_UTF8, 'utf-8-sig'), (codecs.BOM_UTF32_LE, 'utf-32'), (codecs.BOM_UTF32_BE, 'utf-32'),
         (codecs.BOM_UTF16_LE, 'utf-16'), (codecs.BOM_UTF16_BE, 'utf-16'))  # UTF-32's begins as UTF-16's does


def read_text(path: str | Path) -> str:
    """`decoded_text`, with a `UserError` that names the file."""
    try:
        return decoded_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise UserError(f'{path} could not be read ({reason})') from error


def decoded_text(path: str | Path) -> str:
    """The content of a text file, in UTF-8 or as its byte order mark says, without that mark, lines ended by \\n.

    A mark at the start of a later line, as files that were joined have it, is left out too. Raises OSError, and
    UnicodeDecodeError for what is not text.
    """
    data = Path(path).read_bytes()
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), 'utf-8')
    text = data.decode(encoding).replace('\r\n', '\n').replace('\r', '\n')
    return text.removeprefix(BOM).replace(f'\n{BOM}', '\n')
