# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The order of a quantization. It knows no algorithm and no detector."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from torch import nn

from ..calibration import ResumeStore, Session
from ..errors import CalibrationError, PTQError
from ..graph import survey
from ..layers import (
    convert,
    is_leaf,
    named_tensors,
    ports_of,
    quant_layers,
    restore_tensors,
)
from ..plan import (
    attach,
    check_globs,
    make_plan,
    plan_of,
    plan_to_dict,
    unmatched_rules,
)
from ..quant_cfg import QuantConfig
from ..structures import LayerGraph
from ..surgery import decompose


def run_quantization(
    model: nn.Module,
    config: QuantConfig,
    example: dict,
    feed: Any,
    extra_feed: Callable[[int], None],
    progress: Callable[[str, str, int, int], None] = lambda *_: None,
    store: ResumeStore | None = None,
    resume: bool = False,
    on_session: Callable[[Session], None] = lambda _: None,
    work_dir: str | Path = '.',
) -> Session:
    """Quantizes a float detector in place.

    Args:
        model (nn.Module): The detector with its float weights, in eval.
        config (QuantConfig): From :func:`parse_quant_cfg`.
        example (dict): One batch, for the survey.
        feed (Any): See :class:`Session`.
        extra_feed (Callable): See :class:`Session`.
        progress (Callable): Told stage, item, done and total.
        store (ResumeStore, optional): Where progress is kept.
        resume (bool): Whether to go on from what the store holds.
        on_session (Callable): Given the session before the first pass.
        work_dir (str | Path): Where passes may put files for a while.

    Returns:
        Session: The finished session; its model is frozen.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.
    """
    session = prepare(model, config, example, feed, extra_feed, progress)
    session.work_dir = Path(work_dir)
    on_session(session)
    _run_passes(session, store, resume)
    with session.stage('freeze'):
        for layer in quant_layers(model).values():
            layer.bake()
    return session


def prepare(
    model: nn.Module,
    config: QuantConfig,
    example: dict,
    feed: Any = None,
    extra_feed: Callable[[int], None] = lambda _: None,
    progress: Callable[[str, str, int, int], None] = lambda *_: None,
) -> Session:
    """Everything before the first pass; finds what is wrong with a config.

    Args:
        model (nn.Module): Changed in place.
        config (QuantConfig): From :func:`parse_quant_cfg`.
        example (dict): One batch, for the survey.
        feed (Any): See :class:`Session`.
        extra_feed (Callable): See :class:`Session`.
        progress (Callable): Told stage, item, done and total.

    Returns:
        Session: With graph and plan; quantizers are attached.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.
    """
    model.eval()
    uncovered = decompose(model)
    check_globs(config, quantizable_names(model))
    convert(model)
    session = Session(model, None, None, config, feed, extra_feed, progress)
    with session.stage('survey'):
        progress('survey', 'one forward', 0, 1)
        session.graph = survey_detector(model, example)
    session.plan = make_plan(
        config, session.graph, {**uncovered, **uncovered_modules(model)}
    )
    session.notes += unmatched_rules(config, session.graph)
    if not any(not p.why_float for p in session.plan.layers.values()):
        raise PTQError('the rules quantize nothing: every layer is skipped')
    attach(model, session.plan, session.levels)
    return session


def _run_passes(
    session: Session, store: ResumeStore | None, resume: bool
) -> None:
    passes = session.config.build_passes()
    saved = _saved_progress(store, resume)
    done = saved.get('done', 0)
    finished = saved.get('finished')
    # images that broke before the stop are not read again
    skipped = getattr(session.feed, 'skipped', [])
    skipped += [n for n in saved.get('skipped', []) if n not in skipped]
    pending = finished is not None
    for i, one in enumerate(passes):
        if i < done and not one.structural:
            continue
        if i >= done and pending:
            _restore(session, finished)
            pending = False
        session.state = saved.get('state', {}) if i == done else {}

        def save(i: int = i, finished: dict | None = finished) -> None:
            if store is not None:
                export = session.state.get('export', dict)
                store.save(
                    dict(
                        done=i,
                        state=export(),
                        finished=finished,
                        skipped=list(skipped),
                    )
                )

        session.save = save
        with torch.no_grad():
            one.run(session)
        session.state = {}
        if store is not None and not one.structural:
            finished = dict(
                # on a CPU these share memory with the model
                tensors={
                    n: t.clone()
                    for n, t in named_tensors(session.model).items()
                },
                plan=plan_to_dict(session.plan),
                notes=list(session.notes),
                records=list(session.records),
            )
            store.save(
                dict(done=i + 1, finished=finished, skipped=list(skipped))
            )
    if pending:
        _restore(session, finished)


def _restore(session: Session, finished: dict) -> None:
    """Puts back what finished passes did; they may have replanned."""
    session.plan = plan_of(finished['plan'])
    session.notes[:] = finished['notes']
    session.records[:] = finished['records']
    attach(session.model, session.plan, session.levels)
    restore_tensors(session.model, finished['tensors'])


def _saved_progress(store: ResumeStore | None, resume: bool) -> dict:
    if not resume or store is None:
        return {}
    saved = store.load()
    at = all_gather_object(saved['done'] if saved else None)
    if saved is None or len(set(at)) > 1:
        print_log(
            'nothing to resume of this checkpoint and configuration: '
            'starting from the beginning',
            'current',
            30,
        )
        return {}
    return saved


def survey_detector(model: nn.Module, example: dict) -> LayerGraph:
    """Surveys one raw forward; falls back to a prediction.

    Raises:
        CalibrationError: If the float model fails in both modes.
    """
    errors = []
    for mode in ('tensor', 'predict'):
        data = model.data_preprocessor(_shallow(example), False)
        try:
            with torch.no_grad():
                graph = survey(
                    model,
                    lambda data=data, mode=mode: _forward(model, data, mode),
                    is_leaf=is_leaf,
                    ports=ports_of,
                )
            graph.mode = mode
            return graph
        except PTQError:
            raise
        except Exception as error:
            # some detectors of MMDetection have no working raw mode
            errors.append(f'{mode}: {type(error).__name__}: {error}')
    raise CalibrationError(
        'the float model fails on the first calibration image. '
        + ' '.join(errors)
    )


def _forward(model: nn.Module, data: Any, mode: str) -> Any:
    if isinstance(data, dict):
        return model(**data, mode=mode)
    return model(*data, mode=mode)


def _shallow(example: dict) -> dict:
    return {
        k: list(v) if isinstance(v, list) else v for k, v in example.items()
    }


def quantizable_names(model: nn.Module) -> list[str]:
    """Names of all modules that have a twin."""
    return [n for n, m in model.named_modules() if is_leaf(m)]


def uncovered_modules(model: nn.Module) -> dict[str, str]:
    """Modules with a weight matrix of their own that have no twin."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, 'weight', None)
        if is_leaf(module) or not isinstance(weight, torch.Tensor):
            continue
        if weight.dim() >= 2 and not isinstance(module, nn.Embedding):
            found[name] = f'no twin for {type(module).__name__}'
    return found
