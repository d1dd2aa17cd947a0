"""The training loop and what it is made of: optimiser, device, precision, metrics, resuming."""
