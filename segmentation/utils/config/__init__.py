"""env.yml and experiment files, the table of their keys (`keys`), and the checked configuration that they become."""
from utils.config.create import create_config, differing_keys, plain, read_env
from utils.config.values import TREE, path_text

__all__ = ['TREE', 'create_config', 'differing_keys', 'path_text', 'plain', 'read_env']
