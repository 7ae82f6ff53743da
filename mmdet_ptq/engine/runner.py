# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A runner that quantizes before it tests."""

import copy
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import (
    all_gather_object,
    barrier,
    get_dist_info,
    is_distributed,
    is_main_process,
)
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from torch import nn

from ..artefact import is_artefact, load_artefact, save_artefact
from ..calibration import (
    ResumeStore,
    Session,
    from_config,
    notes_on,
    share_of_rank,
)
from ..errors import CalibrationError, QuantConfigError, unknown
from ..quant_cfg import QuantConfig, parse_quant_cfg
from .checkpoint import check_file, load_float_weights, read_checkpoint, sha256
from .dataset import check_classes, dataset_meta, tested_images
from .environment import check_device, check_writable, name_ranks, tolerate
from .fingerprint import fingerprint_of
from .hooks import CalibrationHook, ProgressHook
from .loops import CalibLoop
from .quantize import check_names, prepare, run_quantization
from .result import Result

_OPTIONS = dict(
    resume=False,
    float_eval=False,
    trust_checkpoint=False,
    artefact='quantized.pth',
)


@RUNNERS.register_module()
class PTQRunner(Runner):
    """Quantizes a detector, then runs MMEngine's own test loop on it.

    It reads two blocks of the config. ``quant_cfg`` is described in
    ``docs/quant_cfg.md``. ``ptq_cfg`` holds options of the run:
    ``resume``, ``float_eval`` (test the float model first),
    ``trust_checkpoint`` and ``artefact`` (file name in the work dir).

    Given a quantized checkpoint of its own, it rebuilds that model and
    tests it without calibrating.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cfg = kwargs.get('cfg') or Config()
        given = cfg.get('ptq_cfg') or {}
        for key in given:
            if key not in _OPTIONS:
                raise QuantConfigError(
                    'ptq_cfg: ' + unknown('key', key, _OPTIONS)
                )
        self.options = {**_OPTIONS, **given}
        self.quant_config: QuantConfig | None = None
        if cfg.get('quant_cfg') is not None:
            self.quant_config = parse_quant_cfg(cfg.quant_cfg.to_dict())
        self.session: Session | None = None
        # all of it before a model or a dataset is built
        if cfg.get('device'):
            check_device(cfg.device)
        if kwargs.get('load_from'):
            check_file(kwargs['load_from'])
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
        """Moves the model to its device; nothing here needs DDP."""
        return model.to(self._device())

    def _device(self) -> torch.device:
        wanted = self.cfg.get('device')
        if wanted:
            return torch.device(wanted)
        if torch.cuda.is_available():
            return torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
        return torch.device('cpu')

    def register_hooks(
        self,
        default_hooks: dict | None = None,
        custom_hooks: list | None = None,
    ) -> None:
        """Adds the calibration hooks and leaves out weight averaging.

        An ``EMAHook`` swaps its own copy of the weights in before a test,
        which would undo the quantization. Checkpoints hold the averaged
        weights already.
        """
        kept = [h for h in custom_hooks or [] if not _averages(h)]
        present = {_hook_class(h) for h in kept}
        for hook in (CalibrationHook, ProgressHook):
            if hook not in present:
                kept.append(hook())
        super().register_hooks(default_hooks, kept)

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
        if not self._load_from:
            raise QuantConfigError(
                'no checkpoint: give one, or set load_from in the config'
            )
        checkpoint = read_checkpoint(
            self._load_from, self.options['trust_checkpoint']
        )
        if not is_artefact(checkpoint):
            if self.quant_config is None:
                raise QuantConfigError(
                    'the checkpoint is float and the config has no '
                    "'quant_cfg'; add e.g. quant_cfg = dict(recipe='uniform', "
                    "bits='w8a8')"
                )
            check_names(self.model, self.quant_config)
        try:
            self._test_loop = self.build_test_loop(self._test_loop)
        except OSError as error:
            raise CalibrationError(
                f'cannot build the test dataset: {error}. Check data_root '
                'and ann_file of test_dataloader and test_evaluator'
            ) from error
        self.call_hook('before_run')
        check_classes(self.model, self._metainfo())
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        self._has_loaded = True
        if is_artefact(checkpoint):
            load_artefact(self.model, checkpoint)
            self.logger.info(f'Load quantized checkpoint {self._load_from}')
            metrics = self.test_loop.run()
        else:
            metrics = self._quantize_and_test(checkpoint)
        self.call_hook('after_run')
        return metrics

    def _quantize_and_test(self, checkpoint: dict) -> dict:
        load_float_weights(self.model, checkpoint, self._load_from)
        self.model.eval()
        # before the float test, so that a wrong source is told at once
        images = from_config(self.cfg, self.quant_config.calibration)
        digest = sha256(self._load_from)
        fingerprint = fingerprint_of(
            digest, self.quant_config, self.cfg, self.world_size
        )
        result = Result(
            Path(self.work_dir) / 'ptq_result.json',
            self.cfg,
            self.quant_config,
            str(self._load_from),
            digest,
            fingerprint,
            self.options['resume'],
        )
        rank, world = get_dist_info()
        loop = CalibLoop(self, share_of_rank(images, rank, world), images)
        # every rank surveys the same image
        example = images.first()
        test = tested_images(self.test_dataloader.dataset)
        doubts = notes_on(loop, len(images), test)
        if self.options['float_eval'] and result.float_metrics is None:
            # a mistake in quant_cfg shall not cost a float test first
            model = copy.deepcopy(self.model)
            prepare(model, self.quant_config, example, loop)
            with result.stage('float evaluation'):
                result.float_metrics = self.test_loop.run()
            result.write()
        self._quantize(example, loop, fingerprint)
        self.session.notes += doubts
        self._save_artefact(checkpoint)
        result.add_session(self.session)
        result.write()
        with result.stage('quantized evaluation'):
            result.quantized_metrics = self.test_loop.run()
        result.write()
        # kept until here, so that a stop in the test can be resumed too
        barrier()
        self._store(fingerprint).clear()
        if is_main_process():
            result.print_table()
        return result.quantized_metrics

    def _quantize(
        self, example: dict, loop: CalibLoop, fingerprint: str
    ) -> None:
        try:
            self.session = run_quantization(
                self.model,
                self.quant_config,
                example,
                loop,
                progress=self._progress,
                on_session=self._keep_session,
                store=self._store(fingerprint),
                resume=self.options['resume'],
                work_dir=self.work_dir,
            )
        except BaseException:
            self.call_hook('after_quantize', finished=False)
            raise
        self.call_hook('after_quantize', finished=True)
        skipped = {
            n for names in all_gather_object(loop.skipped) for n in names
        }
        self.session.notes += [
            f'{name}: cannot be read, not used for calibration'
            for name in sorted(skipped)
        ]

    def _save_artefact(self, checkpoint: dict) -> None:
        if is_main_process():
            path = Path(self.work_dir) / self.options['artefact']
            save_artefact(
                path,
                self.model,
                self.session.plan,
                self.session.edits,
                self.quant_config.to_dict(),
                dict(dataset_meta=dataset_meta(checkpoint, self._metainfo())),
            )
            self.logger.info(f'Quantized checkpoint saved to {path}')
        barrier()

    def _metainfo(self) -> dict:
        return self.test_dataloader.dataset.metainfo

    def _store(self, fingerprint: str) -> ResumeStore:
        name = f'ptq_resume_{self.rank}.pth'
        return ResumeStore(Path(self.work_dir) / name, fingerprint)

    def _keep_session(self, session: Session) -> None:
        self.session = session

    def _progress(self, stage: str, item: str, done: int, total: int) -> None:
        self.call_hook(
            'on_progress', stage=stage, item=item, done=done, total=total
        )


def _hook_class(hook: Hook | dict) -> type | None:
    if isinstance(hook, Hook):
        return type(hook)
    kind = hook.get('type')
    return HOOKS.get(kind) if isinstance(kind, str) else kind


def _averages(hook: Hook | dict) -> bool:
    kind = _hook_class(hook)
    return isinstance(kind, type) and issubclass(kind, EMAHook)
