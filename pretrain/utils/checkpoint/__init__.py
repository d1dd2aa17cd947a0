"""Checkpoints: written completely or not at all, read without running code in them, loaded with exactly the right keys."""
from utils.checkpoint.background import BackgroundWriter, snapshot
from utils.checkpoint.loading import load_data, load_exactly, load_file
from utils.checkpoint.saving import previous_checkpoint, save_checkpoint
from utils.checkpoint.wrapping import unwrapped

__all__ = ['BackgroundWriter', 'load_data', 'load_exactly', 'load_file', 'previous_checkpoint', 'save_checkpoint', 'snapshot',
           'unwrapped']
