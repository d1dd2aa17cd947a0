"""Put the pictures of an evaluation on one sheet: every so manyth, none chosen.

    .venv/bin/python images/examples.py output/demo_linear/eval/best_model.pth.tar_crf --out examples.jpg

images/examples.jpg is such a sheet of a linear classifier with CRF on photographs (see the README).
"""
import sys
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'segmentation'))

from evaluation.pictures import contact_sheet  # noqa: E402
from utils.command import command, make_plain_parser  # noqa: E402
from utils.errors import UserError  # noqa: E402


def spread(items, number):
    """`number` of the items, evenly spread over all."""
    number = min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]


@command
def main(argv=None):
    parser = make_plain_parser(__doc__)
    parser.add_argument('run', type=Path, help='what eval.py leaves, with visualization/ in it')
    parser.add_argument('--out', type=Path, required=True, help='the JPEG to write')
    parser.add_argument('--number', type=int, default=12, help='of pictures (default: 12)')
    parser.add_argument('--columns', type=int, default=2, help='of pictures (default: 2)')
    args = parser.parse_args(argv)
    files = spread(sorted((args.run / 'visualization').glob('**/*.png')), args.number)
    if not files:
        raise UserError(f'{args.run} has no visualization/*.png: name the folder that eval.py leaves')
    pictures = [cv2.imread(str(file)) for file in files]
    cv2.imwrite(str(args.out), contact_sheet(pictures, args.columns, (200, 475)), [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(args.out)


if __name__ == '__main__':
    main()
