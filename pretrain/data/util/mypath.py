"""Where the data sets are, unless `db_root` in configs/env.yml is set, which is the better place.

The published code had the folder of each data set here; here it is only the default of `db_root`.
"""
import os


class Path:
    @staticmethod
    def db_root_dir(name: str = '') -> str:
        """The folder that holds the data set folders, or with `name` that data set's own folder."""
        db_root = os.path.join(os.path.dirname(__file__), '..', '..', '..', 'datasets')
        return os.path.join(os.path.abspath(db_root), name) if name else os.path.abspath(db_root)
