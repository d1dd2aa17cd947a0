"""Published saliency networks that the package rembg fetches and runs."""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils.cli.packages import require
from utils.errors import UserError, one_line
from utils.storage.fetch import by_hand

RELEASE = 'https://github.com/danielgatis/rembg/releases/download/v0.0.0'
FILES = {'u2net': 'u2net.onnx', 'isnet-general-use': 'isnet-general-use.onnx',
         'birefnet-general': 'BiRefNet-general-epoch_244.onnx'}  # as they are called there; on disk, <name>.onnx


class RembgSaliency:
    """estimator(image): H x W x 3 uint8 RGB -> H x W float32 in [0, 1], the probability that a pixel is salient.

    name: 'u2net' (U2-Net, Qin et al., Pattern Recognition 2020, arXiv 2005.09007), 'isnet-general-use' (IS-Net, Qin et al.,
    ECCV 2022, arXiv 2203.03041) or 'birefnet-general' (BiRefNet, Zheng et al., 2024, arXiv 2401.03407). rembg stretches each
    image's output to [0, 1] and rounds it to 1/255. It fetches the file when it is first needed, to
    <home>/models/<name>/<name>.onnx, where home is $U2NET_HOME, $REMBG_HOME or ~/.rembg; an existing file, or one in
    $U2NET_HOME itself, is used without checking its checksum. $OMP_NUM_THREADS limits its threads.
    Raises `UserError` for another name, and when the file can't be fetched or loaded.
    """

    def __init__(self, name: str):
        if name not in FILES:
            raise UserError(f"{name}: unknown saliency network, available: {', '.join(FILES)}")
        require('onnxruntime', 'this saliency network')  # first, as rembg ends the program without it
        threads = torch.get_num_threads()
        rembg = require('rembg', 'this saliency network')
        torch.set_num_threads(threads)  # numba, which comes with rembg, has set OpenMP's to the number of cores
        network = rembg.sessions.sessions[name]
        path, url = Path(network.model_dir()) / f'{name}.onnx', f'{RELEASE}/{FILES[name]}'
        try:
            path = Path(network.download_models())
        except (OSError, ValueError) as error:  # the disk's and requests' are OSErrors; pooch's for a wrong checksum isn't
            raise UserError(f'{url} could not be downloaded to {path} ({one_line(error)}): run again, or '
                            f'{by_hand(url, path)}') from error
        try:
            self._session = rembg.new_session(name)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise UserError(f'{path}: onnxruntime could not load it ({one_line(error)}): delete it and run again, or '
                            f'{by_hand(url, path)}') from error

    def __call__(self, image: np.ndarray) -> np.ndarray:
        mask = self._session.predict(Image.fromarray(image))[0]
        return np.asarray(mask, np.float32) / 255
