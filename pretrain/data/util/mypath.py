"""Where the data sets are. `db_root` in configs/env.yml is the better place to say so; this is its default."""
import os


class Path:
    @staticmethod
    def db_root_dir(name: str = '') -> str:
        """The folder that holds the data set folders, or with `name` that data set's own folder."""
        db_root = os.path.join(os.path.dirname(__file__), '..', '..', '..', 'datasets')
        return os.path.join(os.path.abspath(db_root), name) if name else os.path.abspath(db_root)
