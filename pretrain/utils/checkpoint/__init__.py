"""Checkpoints: written whole or not at all, read without running code from them, loaded with exactly the right keys."""
from utils.checkpoint.loading import load_exactly, load_file
from utils.checkpoint.saving import previous_checkpoint, save_checkpoint

__all__ = ['load_exactly', 'load_file', 'previous_checkpoint', 'save_checkpoint']
