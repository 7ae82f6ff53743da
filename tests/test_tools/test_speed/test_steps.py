# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Steps that are timed do what the trainer's own do."""

from mmdet_ptq.passes.reconstruct.trainer import Trainer
from tools.speed import steps


def test_summary_by_hand():
    """The first step and the last, whose optimizer is not seen, go."""
    found = steps.summarize(
        dict(
            step=[9.0, 2.0, 3.0, 1.5, 9.0],
            whole=[9.0, 5.0, 6.0, 7.5, 9.0],
            float=[9.0, 2.5, 1.0, 2.0, 9.0],
            quantized=[9.0, 1.25, 2.0, 1.0, 9.0],
            optimizer=[9.0, 0.5, 1.0, 0.5],
        )
    )
    # with the optimizer: steps 2.5, 4, 2; whole 5.5, 7, 8
    assert found == dict(
        over_float=1.0,  # of 1, 4, 1
        over_quantized=2.0,  # of 2, 2, 2
        without_replay=2.2,  # of 2.2, 1.75, 4
        step_s=2.5,
        whole_s=7.0,
        float_s=2.0,
        quantized_s=1.25,
        optimizer_s=0.5,
        steps=3,
    )


def test_timing_changes_nothing(visit):
    timed, plain = visit(steps.TimedTrainer, 4), visit(Trainer, 4)
    for one, other in zip(timed, plain, strict=True):
        times = one.times
        assert {k: len(v) for k, v in times.items()} == dict(
            step=4, whole=4, float=4, quantized=4, optimizer=3
        )
        assert all(t > 0 for ts in times.values() for t in ts)
        wanted = dict(vars(other), times=times, seconds=one.seconds)
        assert vars(one) == wanted
        assert len(one.curve) == 4
