# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What has to be installed already, looked for at import.

None of it is in the requirements of the package. PyPI has mmengine and mmdet
under the names of their forks too (``onedl-mmengine``, ``onedl-mmdetection``)
with the same modules: a requirement would install one over the other. MMCV
has to be the build that fits the user's PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec

from .errors import MissingDependencyError

#: module, what it is, and how to get it
NEEDED = (
    ('torch', 'PyTorch', 'see https://pytorch.org/get-started'),
    ('mmengine', 'MMEngine', "pip install 'mmengine>=0.10.4'"),
    ('mmcv.ops', 'MMCV with its compiled operations', 'mim install mmcv'),
    ('mmdet', 'MMDetection 3.x', "pip install 'mmdet>=3.3.0'"),
    # and what it needs itself
    ('mmdet.apis', 'the whole MMDetection', "pip install 'mmdet>=3.3.0'"),
)
#: module, first version that will do, first that will not
VERSIONS = (('mmengine', '0.10.4', '1'), ('mmdet', '3.3.0', '4'))


def check_dependencies() -> None:
    """Looks for what MMDetection needs, so that an import says it at once.

    Raises:
        MissingDependencyError: Says what is missing and how to install it.
    """
    for module, what, how in NEEDED:
        try:
            import_module(module)
        # MMDetection asserts which MMCV it takes
        except (ImportError, AssertionError) as error:
            raise MissingDependencyError(
                f'mmdet_ptq needs {what}, but importing {module} fails: '
                f'{error}. To install it: {how}'
            ) from error
    _check_versions()
    _check_setuptools()


def _check_versions() -> None:
    from mmengine.utils import digit_version

    for module, low, high in VERSIONS:
        found = import_module(module).__version__
        if (
            not digit_version(low)
            <= digit_version(found)
            < digit_version(high)
        ):
            raise MissingDependencyError(
                f'mmdet_ptq needs {module} from {low} on and below {high}, '
                f"found {found}. To install it: pip install '{module}>={low},"
                f"<{high}'"
            )


def _check_setuptools() -> None:
    """MMEngine's releases to 0.10.7 need a part that setuptools dropped."""
    if find_spec('pkg_resources') is not None:
        return
    from mmengine.utils import get_installed_path

    try:
        get_installed_path('mmengine')
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'this MMEngine needs pkg_resources ({error}), which setuptools '
            'has below version 81 only. To install it: pip install '
            "'setuptools<81'"
        ) from error
