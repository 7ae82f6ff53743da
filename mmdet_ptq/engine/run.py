# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One run of the runner: float test, quantization, artefact, test."""

from pathlib import Path
from typing import Any

from mmengine.dist import (
    all_gather_object,
    barrier,
    get_dist_info,
    is_main_process,
)

from ..artefact import save_artefact
from ..calibration import (
    CalibrationImages,
    ResumeStore,
    Session,
    from_config,
    notes_on,
    share_of_rank,
)
from ..detectors import without_wrapper
from ..surgery import copy_model
from .checkpoint import sha256
from .dataset import dataset_meta, tested_images
from .fingerprint import fingerprint_of
from .float_weights import load_float_weights
from .loops import CalibLoop
from .outputs import Outputs
from .quantize import prepare, run_quantization
from .report import ReportParts
from .result import Result


def quantize_and_test(
    runner: Any, checkpoint: dict, path: Path, outputs: Outputs
) -> dict:
    """Quantizes the runner's detector and tests it.

    Args:
        runner (PTQRunner): With a ``quant_cfg``; its test loop is built.
        checkpoint (dict): The float checkpoint.
        path (Path): Where it was read from.
        outputs (Outputs): Where files go.

    Returns:
        dict: Metrics of the quantized model.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.
    """
    config, resume = runner.quant_config, runner.options['resume']
    load_float_weights(without_wrapper(runner.model), checkpoint, path)
    runner.model.eval()
    # before the float test, so that a wrong source is told at once
    images = from_config(runner.cfg, config.calibration)
    result, fingerprint = _result(runner, path, outputs)
    rank, world = get_dist_info()
    loop = CalibLoop(runner, share_of_rank(images, rank, world), images)
    # every rank surveys the same image
    example = images.first()
    doubts = _doubts(runner, images)
    kept = ResumeStore(
        Path(runner.work_dir) / 'ptq_resume_float.pth', fingerprint
    )
    parts = ReportParts(runner, kept)
    to_test = runner.options['float_eval'] and result.float_metrics is None
    if to_test:
        # a mistake in quant_cfg shall not cost a float test first
        prepare(copy_model(runner.detector), config, example, loop)
    outputs.begin(runner.cfg, resume)
    if to_test:
        result.float_metrics = _test(runner, result, parts, 'float')
        result.write()
    elif runner.options['float_eval']:
        parts.resume()
    store = ResumeStore(
        Path(runner.work_dir) / f'ptq_resume_{rank}.pth', fingerprint
    )
    _quantize(runner, example, loop, store, parts)
    runner.session.notes += doubts
    _save(runner, checkpoint, outputs)
    result.add_session(runner.session)
    result.write()
    result.quantized_metrics = _test(runner, result, parts, 'quantized')
    result.write()
    # kept until here, so that a stop in the test can be resumed too
    barrier()
    store.clear()
    if is_main_process():
        result.print_table()
        parts.write(result)
        kept.clear()
    return result.quantized_metrics


def _result(runner: Any, path: Path, outputs: Outputs) -> tuple[Result, str]:
    """The result of a run that begins, and what identifies the run."""
    cfg, config = runner.cfg, runner.quant_config
    digest = sha256(path)
    fingerprint = fingerprint_of(digest, config, cfg, runner.world_size)
    name, resume = str(cfg.load_from or path), runner.options['resume']
    result = Result(
        outputs,
        cfg,
        config,
        name,
        digest,
        fingerprint,
        resume,
        runner.command,
    )
    return result, fingerprint


def _test(runner: Any, result: Result, parts: ReportParts, side: str) -> dict:
    """Metrics of the detector as it is now, and the time they took."""
    with parts.predictions(side), result.stage(f'{side} evaluation'):
        return runner.test_loop.run()


def _doubts(runner: Any, images: CalibrationImages) -> list[str]:
    """Notes on all images, so that ranks have the same."""
    test = tested_images(runner.test_dataloader.dataset)
    return notes_on(CalibLoop(runner, images), len(images), test)


def _quantize(
    runner: Any,
    example: dict,
    loop: CalibLoop,
    store: ResumeStore,
    parts: ReportParts,
) -> None:
    def keep(session: Session) -> None:
        runner.session = session

    def progress(stage: str, item: str, done: int, total: int) -> None:
        runner.call_hook(
            'on_progress', stage=stage, item=item, done=done, total=total
        )

    try:
        runner.session = run_quantization(
            runner.detector,
            runner.quant_config,
            example,
            loop,
            progress=progress,
            on_session=keep,
            store=store,
            resume=runner.options['resume'],
            work_dir=runner.work_dir,
            before_freeze=parts.layers_of,
        )
    except BaseException:
        runner.call_hook('after_quantize', finished=False)
        raise
    runner.call_hook('after_quantize', finished=True)
    skipped = {n for names in all_gather_object(loop.skipped) for n in names}
    runner.session.notes += [
        f'{name}: cannot be read, not used for calibration'
        for name in sorted(skipped)
    ]


def _save(runner: Any, checkpoint: dict, outputs: Outputs) -> None:
    if is_main_process():
        save_artefact(
            outputs.artefact,
            runner.detector,
            runner.session.plan,
            runner.session.edits,
            runner.quant_config.to_dict(),
            dataset_meta(checkpoint, runner.metainfo),
        )
        runner.logger.info(f'Quantized checkpoint saved to {outputs.artefact}')
        outputs.settle()
    barrier()
