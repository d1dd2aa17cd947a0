"""The training loop and its parts: optimiser, device, precision, metrics, resuming."""
