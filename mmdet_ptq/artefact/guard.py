# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Keeps a quantized file from being loaded as random weights.

MMEngine loads whatever names fit and passes over the rest with a warning.
A quantized file has no names that fit a float detector. What does reach
every loader is ``_metadata``, the attribute in which PyTorch keeps versions
of modules: it is asked once for each module, the root first. So a guard
stands in its place. The detectors of this package disarm it when they are
asked; any other model is stopped at its first child.
"""

from typing import Any

import torch

from ..errors import CheckpointError

KEY = 'mmdet_ptq'


class NeedsConfigOfWorkDir:
    """Stands in the ``_metadata`` of a quantized file.

    Its name is a message: where ``mmdet_ptq`` was not imported, PyTorch
    refuses the file and names this class.
    """

    def __init__(self) -> None:
        self.versions: dict[str, Any] | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """Metadata of a module, as ``load_state_dict`` asks for it.

        Args:
            name (str): Of the module; the root is ``''``.
            default (Any): If nothing is known of the module.

        Raises:
            CheckpointError: If the root did not call :meth:`disarm`.
        """
        if not name:
            self.versions = None
            return {KEY: self}
        if self.versions is None:
            raise CheckpointError(
                'this file holds a quantized detector, which a float model '
                'cannot load: use the config that lies beside the file in '
                'its work dir, or mmdet_ptq.load_quantized(model, file)'
            )
        return self.versions.get(name, default)

    def disarm(self, versions: dict[str, Any]) -> None:
        """Lets the load go on, after the root has become quantized.

        Args:
            versions (dict): ``_metadata`` of its state dict.
        """
        self.versions = versions

    def __reduce__(self) -> tuple:
        return type(self), ()


torch.serialization.add_safe_globals([NeedsConfigOfWorkDir])
