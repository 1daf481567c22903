"""Embedding with ONNX Runtime, from the towers written by `tools.export --onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from processor.types import Embeddings
from tools.loading import LoadedRun, require
from tools.onnx_towers import FINGERPRINT, IMAGE, REQUIREMENTS, TEXT
from tools.search.encode import Encoder
from utils.errors import OptionError, brief


class OnnxEncoder(Encoder):
    """A run's model, executed by ONNX Runtime.

    Raises:
        OptionError: the run folder has no ONNX towers, or those of other weights.
    """

    def __init__(self, run: LoadedRun) -> None:
        super().__init__(run)
        self._runtime = require("onnxruntime", REQUIREMENTS)
        self._image, self._text = (self._open(run.folder / name) for name in (IMAGE, TEXT))

    def _open(self, file: Path) -> Any:
        if not file.is_file():
            raise OptionError(f"--engine onnx: no {file}; tools.export RUN_DIR --onnx writes it, its folder is --run")
        try:
            session = self._runtime.InferenceSession(str(file), providers=self._runtime.get_available_providers())
        except Exception as error:  # the runtime raises many types
            raise OptionError(f"{file} can't be read: {brief(error)}") from None
        if session.get_modelmeta().custom_metadata_map.get(FINGERPRINT) != self.fingerprint:
            raise OptionError(f"{file} was exported from other weights than {self.run.file}: export again")
        return session

    def embed_images(self, pixels: np.ndarray) -> Embeddings:
        """See `Encoder.embed_images`."""
        return _run(self._image, pixels)

    def embed_texts(self, ids: np.ndarray) -> Embeddings:
        """See `Encoder.embed_texts`."""
        return _run(self._text, ids.astype(np.int64))


def _run(session: Any, batch: np.ndarray) -> Embeddings:
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {session.get_inputs()[0].name: np.ascontiguousarray(batch)})
    return {name: torch.from_numpy(part) for name, part in zip(names, outputs, strict=True)}
