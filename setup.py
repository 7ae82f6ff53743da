# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Package metadata, and the ``.mim`` folder that OpenMMLab tools look for."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# of tools only what a user runs
MIM_ITEMS = {
    name: name
    for name in (
        *(f'configs/{p.name}' for p in (ROOT / 'configs').iterdir()),
        'model-index.yml',
        'tools/cost.py',
        'tools/dist_ptq.sh',
        'tools/ptq.py',
        'tools/report.py',
        'tools/sensitivity.py',
        'tools/slurm_ptq.sh',
    )
}
# where _base_ = 'mmdet_ptq::recipes/NAME.py' looks for it
MIM_ITEMS['mmdet_ptq/recipes'] = 'configs/recipes'


def read(name: str) -> str:
    """Return the text of a file beside this one, '' if it is missing."""
    path = ROOT / name
    return path.read_text(encoding='utf-8') if path.exists() else ''


def requirements(name: str) -> list[str]:
    """Return the requirement lines of ``requirements/{name}.txt``."""
    text = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8')
    lines = (line.partition('#')[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


class BuildWithMim(build_py):
    """Put configs, commands and the model index into ``mmdet_ptq/.mim``.

    A wheel gets copies (the source tree stays clean); an editable install
    gets symlinks, so an edited config is seen at once.
    """

    def run(self) -> None:
        """Build as usual, then fill ``.mim``."""
        super().run()
        editable = self.editable_mode
        base = ROOT if editable else Path(self.build_lib)
        mim = base / 'mmdet_ptq' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for item, place in MIM_ITEMS.items():
            if (ROOT / item).exists():
                self._place(ROOT / item, mim / place, editable)

    @staticmethod
    def _place(source: Path, target: Path, link: bool) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            try:
                target.symlink_to(os.path.relpath(source, target.parent))
                return
            except OSError:  # Windows without the right to make symlinks
                pass
        if source.is_dir():
            ignore = shutil.ignore_patterns('__pycache__', '*.py[cod]')
            shutil.copytree(source, target, ignore=ignore)
        else:
            shutil.copy(source, target)  # with the right to be run


version = re.search(r"__version__ = '(.+)'", read('mmdet_ptq/version.py'))
assert version, 'mmdet_ptq/version.py holds no __version__'

setup(
    name='mmdet-ptq',
    version=version.group(1),
    description='Post-training quantization of any MMDetection 3.x detector',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    author='mmdet-ptq authors',
    keywords='quantization, post-training, object detection, mmdetection',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_namespace_packages(
        include=['mmdet_ptq', 'mmdet_ptq.*'], exclude=['*.__pycache__']
    ),
    package_data={
        'mmdet_ptq': [f'**/*.{e}' for e in ('html', 'css', 'js', 'json')]
    },
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require={
        'export': ['onnx', 'onnxscript', 'onnxruntime'],
        'demo': ['scikit-learn'],
        'dev': [*requirements('tests'), 'mypy', 'pre-commit', 'ruff>=0.6'],
    },
    entry_points={'console_scripts': ['mmdet-ptq = mmdet_ptq.cli:main']},
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
