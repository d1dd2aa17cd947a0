"""Published weights by name. `python -m utils.model_zoo` lists them."""
