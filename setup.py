"Package metadata, read from settings.ini. The notebooks of nbs/ are installed as nbtransfer/notebooks."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

root = Path(__file__).parent
parser = ConfigParser(interpolation=None)
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
name = cfg['lib_name']
lines = lambda key: cfg[key].strip().splitlines()
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable']
github, branch = f"https://github.com/{cfg['user']}/{cfg['repo']}", cfg['branch']

def read_version():
    text = (root/name/'__init__.py').read_text(encoding='utf-8')
    return re.search(r'^__version__ = "(.+)"$', text, re.M)[1]

def read_readme():
    "The README with links that work from anywhere, for the package's page on PyPI"
    text = (root/'README.md').read_text(encoding='utf-8')
    text = re.sub(r'!\[([^]]*)\]\((?!https?:)', rf'![\1]({github}/raw/{branch}/', text)
    return re.sub(r'(?<!!)\[([^]]*)\]\((?!https?:|#)', rf'[\1]({github}/blob/{branch}/', text)

setup(
    version=read_version(),
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license_expression=cfg['license'],
    keywords=cfg['keywords'].split(),
    classifiers=[
        f"Development Status :: {statuses[int(cfg['status']) - 1]}",
        'Intended Audience :: Developers',
        'Intended Audience :: Education',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires=f">={cfg['min_python']}",
    install_requires=lines('requirements'),
    extras_require={extra: lines(f'{extra}_requirements') for extra in ('dev', 'export', 'imagenet', 'playground')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': [f'{name}={name}._modidx:d']},
    packages=[name, f'{name}.notebooks'],
    package_dir={f'{name}.notebooks': 'nbs'},
    package_data={name: ['weights/*.safetensors', 'results/*.parquet', 'results/*.json'], f'{name}.notebooks': ['[0-9]*.ipynb', 'index.ipynb', 'images/*']},
    include_package_data=False,
    zip_safe=False,
)
