"The package says the same thing everywhere, and its wheel holds what it should and works in an empty environment"
import re, sys, venv
from configparser import ConfigParser
from email.parser import Parser
from importlib.metadata import packages_distributions
from zipfile import ZipFile
import pytest
from helpers import CHAPTERS, IMAGES, MODULES, PACKAGE, ROOT, imported_modules, parse_file, run_ok

try: import tomllib
except ImportError: import tomli as tomllib  # before Python 3.11

parser = ConfigParser(interpolation=None)
parser.read(ROOT/'settings.ini', encoding='utf-8')
settings = parser['DEFAULT']
project = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))
version = re.search(r'__version__ = "(.+)"', (PACKAGE/'__init__.py').read_text(encoding='utf-8'))[1]

EXTRAS = [key.removesuffix('_requirements') for key in settings if key.endswith('_requirements')]

def lines(key): return settings[key].strip().splitlines()

def normal(name): return re.sub(r'[-_.]+', '-', name).lower()

def names(key): return {normal(re.match(r'[\w.-]+', o)[0]) for o in lines(key)}

# Settings

def test_pyproject_agrees_with_settings():
    static = project['project']
    assert static['name'] == settings['lib_name'] and static['description'] == settings['description']
    assert static['urls']['Repository'] == f"https://github.com/{settings['user']}/{settings['repo']}"
    assert project['tool']['nbdev']['branch'] == settings['branch']
    assert {'dependencies', 'optional-dependencies', 'version', 'requires-python'} <= set(static['dynamic'])

def test_citation_agrees():
    text = (ROOT/'CITATION.cff').read_text(encoding='utf-8')
    assert f'version: {version}\n' in text and f"license: {settings['license']}\n" in text

def test_changelog_has_this_version():
    assert f'## {version}' in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')

def test_package_imports_nothing_by_itself():
    assert not imported_modules(parse_file(PACKAGE/'__init__.py'))

def distributions(modules):
    "The packages that `modules` come from, without Python's own and ours"
    tops = {o.split('.')[0] for o in modules} - sys.stdlib_module_names - {'nbtransfer'}
    by_module = packages_distributions()
    return {o: {normal(d) for d in by_module.get(o, [o])} for o in tops}

def test_imports_are_required():
    modules = [o for path in MODULES for o in imported_modules(parse_file(path))]
    undeclared = [o for o, dists in distributions(modules).items() if not dists & names('requirements')]
    assert not undeclared, f'imported by the library, not among the requirements: {undeclared}'

def test_imports_of_tools_and_tests_are_required():
    own = {o.stem for folder in ('tools', 'tests') for o in (ROOT/folder).glob('*.py')}
    modules = [o for folder in ('tools', 'tests') for path in (ROOT/folder).glob('*.py') for o in imported_modules(parse_file(path))]
    declared = names('requirements') | names('dev_requirements') | {'execnb', 'pyyaml', 'tomli'}  # which come with nbdev
    undeclared = [o for o, dists in distributions(set(modules) - own).items() if not dists & declared]
    assert not undeclared, f'imported by tools or tests, not among the requirements: {undeclared}'

# The wheel

@pytest.fixture(scope='module')
def wheel(clean_copy, tmp_path_factory):
    "Path of the wheel, built from a source distribution built from a clean clone"
    out = tmp_path_factory.mktemp('dist')
    run_ok([sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(out), str(clean_copy)], clean_copy)
    return next(out.glob('*.whl'))

@pytest.mark.process
def test_wheel_holds_these_files_only(wheel):
    found = {o for o in ZipFile(wheel).namelist() if '.dist-info/' not in o}
    code = {f'nbtransfer/{o}.py' for o in ('__init__', '_modidx', 'all', *(m.stem for m in MODULES))}
    weights = {f'nbtransfer/weights/{o.name}' for o in (PACKAGE/'weights').glob('*.safetensors')}
    results = {f'nbtransfer/results/{o.name}' for o in (PACKAGE/'results').iterdir()}
    book = {f'nbtransfer/notebooks/{o}.ipynb' for o in ('index', *(c.stem for c in CHAPTERS))}
    images = {f'nbtransfer/notebooks/images/{o.name}' for o in IMAGES}
    assert found == code | weights | results | book | images

@pytest.mark.process
def test_metadata_is_that_of_settings(wheel):
    text = ZipFile(wheel).read(f'nbtransfer-{version}.dist-info/METADATA').decode()
    meta = Parser().parsestr(text)
    one = {'Name': 'lib_name', 'Summary': 'description', 'Author': 'author', 'License-Expression': 'license'}
    for field, key in one.items(): assert meta[field] == settings[key], field
    assert meta['Version'] == version
    assert meta['Requires-Python'] == f">={settings['min_python']}"
    assert meta['Keywords'].split(',') == settings['keywords'].split()
    squeezed = lambda items: sorted(o.replace(' ', '').replace("'", '"') for o in items)
    required = meta.get_all('Requires-Dist')
    assert squeezed(o for o in required if 'extra ==' not in o) == squeezed(lines('requirements'))
    assert set(meta.get_all('Provides-Extra')) == set(EXTRAS)
    for extra in EXTRAS:
        own = [re.sub(rf'\s*(;|and)\s*extra == .{extra}.', '', o) for o in required if re.search(f'extra == .{extra}', o)]
        assert squeezed(own) == squeezed(lines(f'{extra}_requirements'))

@pytest.mark.process
def test_wheel_works_in_an_empty_environment(wheel, tmp_path):
    env = tmp_path/'env'
    venv.create(env, with_pip=False, symlinks=True)
    python = env/'bin/python'
    run_ok([sys.executable, '-m', 'pip', '--python', str(python), 'install', '--quiet', '--no-deps', '--no-index', str(wheel)], tmp_path)
    # Its requirements are those of this environment, seen as a plain folder: an editable install there is not seen
    target = run_ok([str(python), '-c', "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    folders = [o for o in sys.path if o.endswith(('site-packages', 'dist-packages'))]
    with open(f'{target}/requirements.pth', 'w') as f: f.write('\n'.join(folders))
    assert 'usage: nbtransfer' in run_ok([str(env/'bin/nbtransfer'), '--help'], tmp_path)
    where = run_ok([str(python), '-c', 'import nbtransfer.files; print(nbtransfer.__file__)'], tmp_path).strip().splitlines()[-1]
    assert where.startswith(target)
