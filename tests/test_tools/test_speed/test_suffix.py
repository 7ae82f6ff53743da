# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is timed as the unit and the float network after it."""

import torch

from mmdet_ptq.layers import QuantLayer
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.records import UnitRecord
from tools.speed.suffix import suffix

BLOCK, LAYER = 'backbone.layer4.1', 'bbox_head.cls_convs.0.conv'


def test_suffix_is_what_a_step_runs(visit):
    """The same layers as often, and the same maps, without any replay."""
    calls, maps = [], []

    def layer(module, *_):
        if isinstance(module, QuantLayer):
            calls.append(module)

    def head(module, _, output):
        if type(module).__name__ == 'RetinaHead':
            maps.append([*output[0], *output[1]])

    class Compared(Trainer):
        def fit(self, learners, acts, k):
            run, model = self.images.run, self.images.model
            forward = suffix(model, self.view.name, lambda: run(0))
            hooks = torch.nn.modules.module
            handles = [
                hooks.register_module_forward_hook(h) for h in (layer, head)
            ]
            try:
                with torch.no_grad():
                    self.replayed(0)
                    # what is replayed is called, but does not run
                    names = {name for name, _ in self.replay.keys}
                    replayed = [model.get_submodule(n) for n in names]
                    expected = [m for m in calls if m not in replayed]
                    wanted = maps[-1]
                    calls.clear()
                    found = forward()
            finally:
                for handle in handles:
                    handle.remove()
            assert len(calls) == len(expected) > 4
            assert set(calls) == set(expected)
            calls.clear()
            # the boxes do not depend on a layer of the class tower
            assert len(found) == (4 if self.view.name == LAYER else 8)
            for a, b in zip(found, wanted, strict=False):
                assert torch.equal(a, b)
            # the unit is in it
            with torch.enable_grad():
                layers = self.view.layers.values()
                weights = [m.weight.requires_grad_(True) for m in layers]
                grads = torch.autograd.grad(
                    sum(t.sum() for t in forward()), weights
                )
            assert all(bool(g.any()) for g in grads)
            for weight in weights:
                weight.requires_grad_(False)
            return UnitRecord(self.view.name, 0.0, 0.0, True)

    found = visit(Compared)
    assert [r.unit for r in found] == [BLOCK, LAYER]
