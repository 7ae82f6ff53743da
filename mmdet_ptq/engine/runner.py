# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A runner that quantizes before it tests."""

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..artefact import is_artefact, load_artefact, settings_of
from ..calibration import Session
from ..detectors import detector_of, without_wrapper
from ..errors import CalibrationError, CheckpointError, QuantConfigError
from ..quant_cfg import QuantConfig, parse_quant_cfg
from .arguments import run_options
from .asked import check_asked
from .checkpoint import check_file, read_checkpoint
from .dataset import check_classes
from .environment import check_device, check_writable, name_ranks, tolerate
from .fetch import local_checkpoint
from .float_weights import load_float_weights
from .hooks import CalibrationHook, ProgressHook
from .outputs import Outputs
from .quantize import check_names
from .run import quantize_and_test


@RUNNERS.register_module()
class PTQRunner(Runner):
    """Quantizes a detector, then runs MMEngine's own test loop on it.

    It reads two blocks of the config. ``quant_cfg`` is described in
    ``docs/quant_cfg.md``. ``ptq_cfg`` holds options of the run:
    ``resume``, ``float_eval`` (test the float model first),
    ``trust_checkpoint``, ``artefact`` (file name in the work dir) and
    ``report`` (make ``report.html``).

    Given a quantized checkpoint of its own, it rebuilds that model and
    tests it without calibrating. ``train`` and ``val`` are MMEngine's.

    Attributes:
        asked (dict): Parts of a spelled-out ``quant_cfg`` that a quantized
            checkpoint is refused without.
        command (str): That started the run, for the result.
        session (Session, optional): Of the last quantization.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cfg = kwargs.get('cfg') or Config()
        self.options = run_options(cfg.get('ptq_cfg'))
        self.quant_config: QuantConfig | None = None
        if cfg.get('quant_cfg') is not None:
            self.quant_config = parse_quant_cfg(cfg.quant_cfg)
        self.session: Session | None = None
        self.asked: dict[str, Any] = {}
        self.command = shlex.join(sys.argv)
        # all of it before a model or a dataset is built
        if cfg.get('device'):
            check_device(cfg.device)
        path = str(kwargs.get('load_from') or '')
        if path and '://' not in path and '::' not in path:
            check_file(local_checkpoint(path))
        check_writable(kwargs['work_dir'])
        super().__init__(*args, **kwargs)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """MMEngine's logger; terminal and log file take any character."""
        logger = super().build_logger(*args, **kwargs)
        streams = [
            handler.stream
            for handler in logger.handlers
            if isinstance(handler, logging.StreamHandler)
        ]
        tolerate(sys.stdout, sys.stderr, *streams)
        return logger

    def setup_env(self, env_cfg: dict) -> None:
        """Joins the process group; on CPU MMEngine's own way needs CUDA."""
        on_cpu = self._device().type == 'cpu'
        if self.distributed and on_cpu and not is_distributed():
            timeout = env_cfg.get('dist_cfg', {}).get('timeout', 1800)
            name_ranks(self._launcher)
            torch.distributed.init_process_group(
                'gloo', timeout=timedelta(seconds=timeout)
            )
        super().setup_env(env_cfg)

    def wrap_model(
        self, model_wrapper_cfg: dict | None, model: nn.Module
    ) -> nn.Module:
        """Leaves the model as it is until it is known what it is for."""
        self._wrapper_cfg = model_wrapper_cfg
        return model

    def dump_config(self) -> None:
        """Leaves the work dir as it is until a run starts."""

    def train(self) -> nn.Module:
        """See MMEngine's; nothing of it is changed."""
        self._as_mmengine()
        return super().train()

    def val(self) -> dict:
        """See MMEngine's; nothing of it is changed."""
        self._as_mmengine()
        return super().val()

    def _as_mmengine(self) -> None:
        super().dump_config()
        if not is_model_wrapper(self.model):
            self.model = super().wrap_model(self._wrapper_cfg, self.model)

    def _device(self) -> torch.device:
        wanted = self.cfg.get('device')
        if wanted:
            return torch.device(wanted)
        if torch.cuda.is_available():
            return torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
        return torch.device('cpu')

    @contextmanager
    def own_hooks(self) -> Iterator[None]:
        """Adds the calibration hooks and leaves out weight averaging.

        An ``EMAHook`` swaps its own copy of the weights in before a test,
        which would undo the quantization. Checkpoints hold the averaged
        weights already.
        """
        before = list(self._hooks)
        self._hooks[:] = [h for h in before if not isinstance(h, EMAHook)]
        present = {type(h) for h in before}
        for hook in (CalibrationHook, ProgressHook):
            if hook not in present:
                self.register_hook(hook())
        try:
            yield
        finally:
            self._hooks[:] = before

    @property
    def detector(self) -> nn.Module:
        """The detector, without what is wrapped around it."""
        return detector_of(self.model)

    def choose(self, quant_cfg: dict) -> None:
        """Takes another ``quant_cfg`` than that of the config.

        Args:
            quant_cfg (dict): Not yet parsed.

        Raises:
            QuantConfigError: If it is wrong.
        """
        self.quant_config = parse_quant_cfg(quant_cfg)
        self.cfg.quant_cfg = quant_cfg

    def load_float(self) -> Path:
        """Loads the float checkpoint, for what runs no test.

        Returns:
            Path: Where it was read from.

        Raises:
            CheckpointError: If it is quantized already, or of another model.
            QuantConfigError: If there is none, or ``quant_cfg`` is wrong.
        """
        path, checkpoint = self._read()
        if is_artefact(checkpoint):
            raise CheckpointError(
                f'{path} is quantized already; give the float checkpoint'
            )
        self._to_device()
        load_float_weights(without_wrapper(self.model), checkpoint, path)
        self.model.eval()
        return path

    def _read(self) -> tuple[Path, dict]:
        """The checkpoint; of a float one, what is asked for fits."""
        if not self._load_from:
            raise QuantConfigError(
                'no checkpoint: give one, or set load_from in the config'
            )
        path = local_checkpoint(self._load_from)
        checkpoint = read_checkpoint(path, self.options['trust_checkpoint'])
        if not is_artefact(checkpoint):
            if self.quant_config is None:
                raise QuantConfigError(
                    'the checkpoint is float and the config has no '
                    "'quant_cfg'; add e.g. quant_cfg = dict(recipe='uniform', "
                    "bits='w8a8')"
                )
            check_names(self.detector, self.quant_config)
        return path, checkpoint

    def _to_device(self) -> None:
        if is_model_wrapper(self.model):
            # nothing here needs DDP
            self.model = self.model.module
        self.model.to(self._device())

    def test(self) -> dict:
        """Loads, quantizes if the checkpoint is float, and tests.

        Returns:
            dict: Metrics of the quantized model.
        """
        if self._test_loop is None:
            raise QuantConfigError(
                'the config has no test_dataloader, test_cfg and '
                'test_evaluator'
            )
        path, checkpoint = self._read()
        try:
            self._test_loop = self.build_test_loop(self._test_loop)
        except OSError as error:
            raise CalibrationError(
                f'cannot build the test dataset: {error}. Check data_root '
                'and ann_file of test_dataloader and test_evaluator'
            ) from error
        check_classes(self.detector, self.metainfo)
        self._to_device()
        with self.own_hooks():
            return self._test(path, checkpoint)

    def _test(self, path: Path, checkpoint: dict) -> dict:
        self.call_hook('before_run')
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        self._has_loaded = True
        outputs = Outputs(
            self.work_dir,
            self.options['artefact'],
            Path(self.cfg.filename or f'{self.timestamp}.py').name,
        )
        if is_artefact(checkpoint):
            check_asked(self.asked, settings_of(checkpoint), str(path))
            load_artefact(self.detector, checkpoint)
            self.logger.info(
                f'Load quantized checkpoint {path}; the quant_cfg of the '
                'config is not used'
            )
            if not outputs.artefact.exists():
                outputs.begin(self.cfg, False)
            metrics = self.test_loop.run()
        else:
            metrics = quantize_and_test(self, checkpoint, path, outputs)
        self.call_hook('after_run')
        return metrics

    @property
    def metainfo(self) -> dict:
        """What the test dataset says of itself."""
        return self.test_dataloader.dataset.metainfo
