from PIL import Image as PIL
import numpy as np
def open_image(source):
    if isinstance(source, PIL.Image): return source.convert("RGB")
    if isinstance(source, np.ndarray): return PIL.fromarray(source)
    return PIL.open(source).convert("RGB")
