# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the names of torch functions and leaf modules stand for.

Names are compared in canonical form, so that ``F.pixel_shuffle`` and
``nn.PixelShuffle`` are one word.
"""

from collections.abc import Callable
from functools import lru_cache


def torch_name(func: Callable) -> str:
    """Plain name of a torch function.

    ``__radd__``, ``__iadd__`` and ``add_`` become ``add``; a property is
    called by its own name (``T``, ``data``).
    """
    name = getattr(func, '__name__', '') or type(func).__name__
    if name == '__get__':
        return getattr(func.__self__, '__name__', name)
    if name.startswith('__') and name.endswith('__'):
        name = name[2:-2]
        if name[:1] in 'ri' and name[1:] in _DUNDERS:
            name = name[1:]
        return name
    return name.strip('_') or name


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DUNDERS = _words('add sub mul div truediv floordiv mod pow matmul and or xor')


@lru_cache(maxsize=4096)
def canonical(name: str) -> str:
    """Lower case without underscores."""
    return name.replace('_', '').lower()


#: give numbers to Python, where they give no tensor
TAKES = _words('item tolist numpy array bool float int index')
#: take the shape or device of a tensor, not its numbers
CONSTANT = _words(
    'zeroslike oneslike emptylike fulllike randlike randnlike newzeros '
    'newones newempty newfull newtensor zero fill size grad gradfn base'
)
#: move numbers without changing them
SHAPE = _words(
    'view reshape flatten unflatten permute transpose t mt h mh swapaxes '
    'swapdims movedim moveaxis contiguous squeeze unsqueeze expand expandas '
    'repeat repeatinterleave tile roll pad chunk split splitwithsizes '
    'tensorsplit unbind stack cat concat concatenate getitem setitem slice '
    'select narrow indexselect gather takealongdim take unfold fold clone '
    'detach to float type typeas half bfloat16 double cuda cpu flip rot90 '
    'viewas reshapeas asstrided maskedselect data alias identity dropout '
    'dropout1d dropout2d dropout3d alphadropout featuredropout droppath '
    'pixelshuffle pixelunshuffle channelshuffle constantpad2d zeropad2d '
    'reflectionpad2d replicationpad2d atleast1d atleast2d copy rearrange '
    'broadcastto hstack vstack dstack scatter indexput'
)
#: of those, make no number
MOVES = _words(
    'view reshape flatten unflatten permute transpose t mt h mh swapaxes '
    'swapdims movedim moveaxis squeeze unsqueeze expand expandas repeat '
    'repeatinterleave tile roll chunk split splitwithsizes tensorsplit unbind '
    'stack cat concat concatenate getitem slice select narrow indexselect '
    'gather viewas reshapeas pixelshuffle pixelunshuffle channelshuffle flip'
)
#: of those, leave every number at its place
IN_PLACE = _words(
    'contiguous clone detach to float type typeas half bfloat16 double cuda '
    'cpu data alias identity dropout dropout1d dropout2d dropout3d '
    'alphadropout featuredropout droppath'
)
#: f(s x) = s f(x) for s > 0, number by number
HOMOGENEOUS = _words('relu leakyrelu prelu abs neg')
#: the same on the maps of channels, each by itself
HOMOGENEOUS_MAPS = _words(
    'maxpool2d avgpool2d adaptivemaxpool2d adaptiveavgpool2d interpolate '
    'upsample upsamplenearest2d upsamplebilinear2d'
)
#: times what is not scaled
FACTORS = _words('mul multiply div divide truediv')
#: of these only the first argument carries numbers into the result
FIRST_ONLY = _words(
    'getitem gather indexselect takealongdim take expandas viewas reshapeas '
    'typeas to topk sort maskedselect'
)
#: combine numbers across channels: nothing is "the same tensor" behind them
MIXING = _words(
    'matmul bmm mm mv dot einsum baddbmm addmm addbmm tensordot inner outer '
    'linear conv1d conv2d conv3d convtranspose1d convtranspose2d '
    'convtranspose3d multiheadattentionforward scaleddotproductattention '
    'embedding bilinear gridsample cdist inverse det'
)
#: the same for what is only part of a name
MIXING_PARTS = (
    'deform',
    'roialign',
    'roipool',
    'carafe',
    'attention',
    'attn',
    'correlation',
    'nms',
)
#: products of two activations
PRODUCTS = _words(
    'matmul bmm mm einsum baddbmm tensordot scaleddotproductattention'
)
#: whatever multiplies matrices, layers and cells included
MULTIPLIES = PRODUCTS | _words(
    'mv dot inner outer chainmatmul addmm addmv addbmm linear bilinear '
    'conv1d conv2d conv3d convtranspose1d convtranspose2d convtranspose3d '
    'multiheadattentionforward gru grucell lstm lstmcell rnntanh rnnrelu '
    'rnntanhcell rnnrelucell'
)
NORMS = _words(
    'layernorm groupnorm batchnorm instancenorm rmsnorm localresponsenorm'
)
SOFTMAX = _words('softmax softmax2d')
GELU = _words('gelu quickgelu')
ADD = _words('add')
#: choose by score
RANKING = _words('topk sort argsort kthvalue')
