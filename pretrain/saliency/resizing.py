"""From the size at which a network works to that of the image."""
import numpy as np
from PIL import Image


def resize_probability(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """h x w values -> height x width float32, cut to [0, 1]. Bilinear, and antialiased where it shrinks."""
    resized = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized), 0, 1)
