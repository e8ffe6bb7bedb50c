"""Packaging of mmorepa.

It asks for torch and nothing of OpenMMLab, so that installing it beside a working stack leaves
that stack alone; the extras name the rest.
"""

import runpy
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent

if not (ROOT / 'mmorepa/.mim/tools').is_dir():
    raise SystemExit(
        'mmorepa/.mim/tools is not a folder: this checkout lacks its symbolic links; '
        'run `git config core.symlinks true`, then `git checkout -- mmorepa/.mim`'
    )


class EditableWheel(editable_wheel):
    """An editable install that mim and MMEngine find, too.

    Both join the folder of the metadata with the first line of top_level.txt. In an editable
    install the package is not there, so that line has to be the whole path of the package.
    """

    def run(self):
        """Build the wheel, then write that line into it."""
        from wheel.wheelfile import WheelFile  # setuptools carries it

        super().run()
        (built,) = Path(self.dist_dir).glob('mmorepa-*editable*.whl')
        with tempfile.TemporaryDirectory() as folder:
            with WheelFile(built) as wheel:
                wheel.extractall(folder)
            (names,) = Path(folder).glob('*.dist-info/top_level.txt')
            names.write_text(f'{ROOT / "mmorepa"}\n{names.read_text()}', encoding='utf-8')
            with WheelFile(built, 'w') as wheel:
                wheel.write_files(folder)


def version():
    """The version of the package, read without importing it."""
    return runpy.run_path(str(ROOT / 'mmorepa/version.py'))['__version__']


def extras():
    """The optional requirements, from the table that the package checks itself against."""
    of = runpy.run_path(str(ROOT / 'mmorepa/environment.py'))['requirements']
    parts = {part: of(part) for part in ('pretrain', 'det', 'seg', 'mim', 'export')}
    parts['tests'] = [
        'hypothesis>=6.100',
        'pytest>=8.0',
        'pytest-timeout>=2.3',
        'pytest-xdist>=3.5',
        'ruff>=0.9',
        'scikit-learn>=1.3',
        'scipy>=1.10',
        'tensorboard>=2.15',
        'timm>=1.0',
    ]
    parts['docs'] = ['mkdocs>=1.6', 'mkdocs-material>=9.5', 'mkdocstrings[python]>=0.26']
    # What tools/analyze.py, benchmark.py and compare.py draw and print with; the scanned digits;
    # the weights beside configs/fashion.
    drawn = ['matplotlib>=3.7', 'rich>=13', 'scipy>=1.10']
    parts['lab'] = [*parts['pretrain'], *drawn, 'scikit-learn>=1.3', 'safetensors>=0.4']
    # mim stays out of it: a dependency of openmim pins a setuptools too old for torch.
    together = ('pretrain', 'det', 'seg', 'export', 'lab')
    parts['all'] = sorted({need for part in together for need in parts[part]})
    return parts


setup(
    name='mmorepa',
    version=version(),
    description='Online convolutional re-parameterization (OREPA) for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    install_requires=['torch>=2.5'],
    extras_require=extras(),
    packages=find_packages(include=['mmorepa', 'mmorepa.*']),
    # The links in .mim are followed, so that a wheel holds the files themselves.
    package_data={'mmorepa': ['.mim/*', '.mim/**/*']},
    exclude_package_data={
        '': ['*.pyc'],
        'mmorepa': ['.mim/tools/setup_env.py', '.mim/tools/targets.py'],
    },
    include_package_data=False,
    zip_safe=False,
    cmdclass={'editable_wheel': EditableWheel},
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
