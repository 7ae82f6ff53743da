# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The strongest uniform quantization that calibration alone gives.

Ranges minimise the L2.4 error (activations, on histograms) and the L2
error (weights, exactly, for each channel). A grouped convolution, above all
a depthwise one, has an input scale for each group: an output channel reads
one group only, so the scale folds into the weight's and costs nothing. The
heads of an attention are products of their own, each with its own scales. A
head that runs on every pyramid level has a range for each level. The mean
output error that quantized weights make is taken out of the biases.
"""

_base_ = './_base_/calibrated.py'
