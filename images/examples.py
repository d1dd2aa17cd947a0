"""Put the pictures of an evaluation on one sheet: evenly spaced, not selected.

    .venv/bin/python images/examples.py output/demo_linear/eval/best_model.pth.tar_crf --out examples.jpg
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'segmentation'))

from data.decoding import read_image  # noqa: E402
from evaluation.visualization.pictures import contact_sheet, jpeg  # noqa: E402
from utils.cli.command import command  # noqa: E402
from utils.cli.flags import make_plain_parser  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.storage.atomic import atomic_file  # noqa: E402

CELL, QUALITY = (200, 475), 88  # height and width of a picture, and of the JPEG


def spread(items, number):
    """`number` of the items, evenly spread over all."""
    number = min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]


@command
def main(argv=None):
    parser = make_plain_parser(__doc__)
    parser.add_argument('run', type=Path, help='output folder of eval.py, with visualization/ in it')
    parser.add_argument('--out', type=Path, required=True, help='JPEG file to write')
    parser.add_argument('--number', type=int, default=12, help='number of pictures (default: 12)')
    parser.add_argument('--columns', type=int, default=2, help='pictures per row (default: 2)')
    args = parser.parse_args(argv)
    if min(args.number, args.columns) < 1:
        raise UserError('--number and --columns must be at least 1')
    files = spread(sorted((args.run / 'visualization').glob('**/*.png')), args.number)
    if not files:
        raise UserError(f'{args.run} has no visualization/*.png: name the output folder of eval.py')
    sheet = contact_sheet([read_image(file) for file in files], args.columns, CELL)
    with atomic_file(args.out) as file:
        file.write(jpeg(sheet, QUALITY))
    print(args.out)


if __name__ == '__main__':
    main()
