"What several test files share: where things are, how to read notebooks and run commands, and what to expect"
import ast, json, os, re, shutil, subprocess, sys
from pathlib import Path
from types import FunctionType
import numpy as np
import pytest
from PIL import Image
from hypothesis import given, settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT/'nbtransfer'
sys.path[:0] = [str(ROOT), str(ROOT/'tools')]  # this checkout, whatever is installed

NOTEBOOKS = sorted(o for o in (ROOT/'nbs').glob('*.ipynb') if o.name[0] not in '_.')
CHAPTERS = [o for o in NOTEBOOKS if o.stem != 'index']
IMAGES = sorted((ROOT/'nbs/images').iterdir())
MODULES = sorted(o for o in PACKAGE.glob('*.py') if o.stem not in ('__init__', '_modidx', 'all'))

def read_notebook(path): return json.loads(path.read_text(encoding='utf-8'))

def code_cells(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code']

def source(cell): return ''.join(cell['source'])

def directives(cell): return re.findall(r'^#\|\s*([\w-]+)', source(cell), re.M)

def parse_file(path): return ast.parse(path.read_text(encoding='utf-8'))

def exported_names(module):
    "`__all__` of the module's file"
    found = [o.value for o in parse_file(module).body if isinstance(o, ast.Assign) and o.targets[0].id == '__all__']
    return ast.literal_eval(found[0]) if found else []

def imported_modules(tree):
    "Names of all modules that the syntax tree imports, those of our own package as `nbtransfer.name`"
    names = []
    for o in ast.walk(tree):
        if isinstance(o, ast.Import): names += [a.name for a in o.names]
        if isinstance(o, ast.ImportFrom): names.append(f'nbtransfer.{o.module}' if o.level else o.module)
    return names

def find_browser():
    "Chromium or Chrome; a test that has none is skipped"
    found = next(filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chromium-browser'))), None)
    return found or pytest.skip('no Chromium here')

def find_script(name):
    "The console script `name` of this environment"
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed here; run pip install -e '.[dev]'"
    return found

def run(command, cwd, **env):
    "Run a command (a list), and return its exit code and what it printed, all in one"
    bin_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, 'PATH': bin_path, **env})
    return result.returncode, result.stdout

def run_ok(command, cwd, **env):
    code, printed = run(command, cwd, **env)
    assert code == 0, f"{' '.join(map(str, command))} ended with {code}:\n{printed}"
    return printed

def saying(*parts, error=ValueError):
    "Expect an error whose message has all `parts`, in this order"
    return pytest.raises(error, match='.*'.join(map(re.escape, parts)))

def some(n): return settings(max_examples=n, deadline=None, derandomize=True)

def on_more(test, n, *drawn):
    "A test of things that hypothesis draws once more, on `n` of them, for the nightly run"
    check = test.hypothesis.inner_test
    again = FunctionType(check.__code__, check.__globals__, check.__name__)   # hypothesis marks the function that it is given
    return pytest.mark.nightly(some(n)(given(*drawn)(again)))

def write_folder(path, n):
    "Two classes of small pictures in files"
    rng = np.random.default_rng(0)
    for i in range(n):
        file = path/('cat', 'dog')[i % 2]/f'{i:02}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file)
    return path
