# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The order of a quantization. It knows no algorithm and no detector."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..calibration import Feed, Progress, ResumeStore, Session, timed
from ..cost import storage_bits
from ..errors import CalibrationError, NumericError
from ..layers import convert, non_finite, quant_layers
from ..passes import BasePass, checked
from ..plan import (
    attach,
    check_globs,
    check_plan,
    make_plan,
    unmatched_rules,
)
from ..quant_cfg import QuantConfig
from ..surgery import copy_model, decompose, fuse_weights, norm_inputs
from .arguments import check_model
from .progress import restore, saved_progress, snapshot, without_twice
from .survey import (
    quantizable_names,
    run_forward,
    survey_detector,
    uncovered_modules,
)


def run_quantization(
    model: nn.Module,
    config: QuantConfig,
    example: dict,
    feed: Feed,
    progress: Progress = lambda *_: None,
    store: ResumeStore | None = None,
    resume: bool = False,
    on_session: Callable[[Session], None] = lambda _: None,
    work_dir: str | Path = '.',
    before_freeze: Callable[[Session], None] = lambda _: None,
) -> Session:
    """Quantizes a float detector in place.

    Args:
        model (nn.Module): The detector with its float weights, in eval.
        config (QuantConfig): From :func:`parse_quant_cfg`.
        example (dict): One batch, for the survey.
        feed (Feed): This rank's calibration images.
        progress (Progress): Told stage, item, done and total.
        store (ResumeStore, optional): Where progress is kept.
        resume (bool): Whether to go on from what the store holds.
        on_session (Callable): Given the session before the first pass.
        work_dir (str | Path): Where passes may put files for a while.
        before_freeze (Callable): Given the session after the last pass,
            while the float weights are still there; changes nothing.

    Returns:
        Session: The finished session; its model is frozen.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.
    """
    session = prepare(model, config, example, feed, progress, work_dir)
    on_session(session)
    _run_passes(session, config.built_passes, store, resume)
    _check_ranges(session)
    before_freeze(session)
    with session.stage('freeze'):
        for layer in quant_layers(model).values():
            layer.bake()
    return session


def prepare(
    model: nn.Module,
    config: QuantConfig,
    example: dict,
    feed: Feed,
    progress: Progress = lambda *_: None,
    work_dir: str | Path = '.',
) -> Session:
    """Everything before the first pass; finds what is wrong with a config.

    Layers become their twins only once the plan stands.

    Args:
        model (nn.Module): Changed in place.
        config (QuantConfig): From :func:`parse_quant_cfg`.
        example (dict): One batch, for the survey.
        feed (Feed): This rank's calibration images; none is run here.
        progress (Progress): Told stage, item, done and total.
        work_dir (str | Path): Where passes may put files for a while.

    Returns:
        Session: Quantizers are attached and have no ranges yet.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.
    """
    passes = checked(config.built_passes)
    check_model(model)
    model.eval()
    _check_finite(model)
    fused, computed = fuse_weights(model)
    taken, refused = decompose(model)
    edits = [*fused, *taken]
    for one in passes:
        found = one.restructure(model, partial(run_forward, model, example))
        for edit in found:
            edit.apply(model)
        edits += found
    if config.names_norms():
        edits += norm_inputs(model)
    check_globs(config, quantizable_names(model))
    seconds: dict[str, float] = {}
    with timed(seconds, 'survey'):
        progress('survey', 'two forwards', 0, 1)
        graph = survey_detector(model, example)
    uncovered = {**uncovered_modules(model, graph), **refused, **computed}
    plan = make_plan(config, graph, uncovered)
    check_plan(model, plan, graph)
    convert(model)
    attach(model, plan, graph.levels, graph.heads)
    session = Session(
        model,
        graph,
        plan,
        config,
        feed,
        progress,
        Path(work_dir),
        edits,
        notes=[
            *unmatched_rules(config, graph),
            *plan.notes,
            *_larger_than_float(model),
        ],
        seconds=seconds,
    )
    for one in passes:
        one.prepare(session)
    return session


def _larger_than_float(model: nn.Module) -> list[str]:
    """Says which layers take more memory than before, if any do."""
    found = [n for n, (full, bits) in storage_bits(model).items()
             if bits > full]  # fmt: skip
    if not found:
        return []
    more = f' and {len(found) - 3} more' * (len(found) > 3)
    return [
        'larger than in float32, as what a channel stores beside its codes '
        '(a scale, or a table of 2^bits values) is more than the codes save: '
        f'{", ".join(found[:3])}{more}; give such layers fewer bits or '
        'another quantizer by a rule, or skip=True'
    ]


def check_names(model: nn.Module, config: QuantConfig) -> None:
    """Finds globs that match no layer, before there is an image.

    Args:
        model (nn.Module): The float detector; a copy is taken apart.
        config (QuantConfig): From :func:`parse_quant_cfg`.

    Raises:
        QuantConfigError: Names the rule and the nearest layer.
    """
    model = copy_model(model)
    fuse_weights(model)
    decompose(model)
    if config.names_norms():
        norm_inputs(model)
    check_globs(config, quantizable_names(model))


def _check_finite(model: nn.Module) -> None:
    """Refuses now what could not be saved in the end."""
    wrong = non_finite(dict(model.named_parameters()))
    if wrong:
        raise NumericError(
            f'NaN or Inf in {", ".join(wrong[:8])} of the float model; '
            'mend its checkpoint first'
        )


def _run_passes(
    session: Session,
    passes: list[BasePass],
    store: ResumeStore | None,
    resume: bool,
) -> None:
    saved = saved_progress(store, resume)
    done, finished = saved.get('done', 0), saved.get('finished')
    # images that broke before the stop are not read again
    session.feed.skip(saved.get('skipped', []))
    if finished is not None:
        restore(session, finished, saved.get('state', {}))
    for i in range(done, len(passes)):
        session.wanted = _needs(passes[i + 1 :])
        before = saved.get('state', {}) if i == done else {}
        session.state = dict(before)

        session.save = partial(_save, session, store, i, finished, before)
        with torch.no_grad():
            passes[i].run(session)
        session.state = {}
        if not session.wanted & {'observers', 'means'}:
            session.stats.clear()
        if store is not None:
            finished = snapshot(session)
            skipped = list(session.feed.skipped)
            store.save(dict(done=i + 1, finished=finished, skipped=skipped))
    # it holds a copy of the tensors
    session.save = lambda: None


def _save(
    session: Session,
    store: ResumeStore | None,
    done: int,
    finished: dict | None,
    before: dict,
) -> None:
    """Keeps the progress of the pass that is running.

    Args:
        session (Session): The running quantization.
        store (ResumeStore, optional): Where to.
        done (int): How many passes are finished.
        finished (dict, optional): What they left.
        before (dict): Progress of an earlier start, which counts until the
            pass has taken it over.
    """
    if store is not None:
        state = session.export() or before
        kept = without_twice(finished, state)
        skipped = list(session.feed.skipped)
        store.save(
            dict(done=done, state=state, finished=kept, skipped=skipped)
        )


def _check_ranges(session: Session) -> None:
    """Names a quantizer that the passes left without a range."""
    for name, layer in session.layers.items():
        found = dict(layer.act_quantizers.items())
        if layer.weight_quantizer is not None:
            found['weight'] = layer.weight_quantizer
        for tensor, quantizer in found.items():
            if not quantizer.initialized:
                raise CalibrationError(
                    f'{name}: no pass set the range of its {tensor}; a pass '
                    'that replaces a quantizer has to'
                )


def _needs(passes: list[BasePass]) -> frozenset[str]:
    return frozenset().union(*(one.needs for one in passes))
