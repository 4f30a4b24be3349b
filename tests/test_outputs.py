"Saved outputs: they belong to the code beside them, and hold nothing private, broken or left over"
import json, re
from pathlib import Path
import pytest
from helpers import NOTEBOOKS, code_cells, directives, read_notebook, source
from refresh import code_hash, is_cifar

notebooks = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda o: o.stem)

def outputs(nb): return [(cell, o) for cell in code_cells(nb) for o in cell['outputs']]

@notebooks
def test_outputs_belong_to_the_code(path):
    nb, again = read_notebook(path), f'run python tools/refresh.py nbs/{path.name}'
    stamp = nb['metadata'].get('nbtransfer')
    assert stamp, f'no stamp: {again}'
    assert stamp['code_sha256'] == code_hash(nb), f'the code changed since its outputs were made: {again}'
    assert stamp['date'] and stamp['device'] and {'python', 'torch', 'fastai', 'nbdev'} <= stamp['versions'].keys()
    if any(map(is_cifar, code_cells(nb))):
        assert stamp['cifar']['code_sha256'] == code_hash(nb, only_cifar=True), f'CIFAR cells were not run: {again}, with the data'

@notebooks
def test_no_errors_or_dead_widgets(path):
    for cell, output in outputs(read_notebook(path)):
        assert output['output_type'] != 'error', source(cell)
        assert output.get('name') != 'stderr', f'a warning was saved:\n{source(cell)}'
        kinds = ' '.join(output.get('data', {}))
        assert 'widget' not in kinds and '<progress' not in json.dumps(output), f'a widget or progress bar was saved:\n{source(cell)}'

@notebooks
def test_outputs_are_clean(path):
    nb = read_notebook(path)
    assert 'widgets' not in nb['metadata']
    for cell in code_cells(nb): assert cell['execution_count'] is None
    for cell, output in outputs(nb):
        assert output.get('execution_count') is None
        text = json.dumps({k: v for k, v in output.get('data', {}).items() if not k.startswith('image/')}) + json.dumps(output.get('text', ''))
        private = re.search(r'/(home|Users)/\w|/root\b|[A-Z]:\\\\+Users', text) or str(Path.home()) in text
        assert not private, f'a home folder was saved:\n{source(cell)}'
        assert not re.search(r'at 0x[0-9a-f]{6}', text), f'an address was saved:\n{source(cell)}'
        assert '\\r' not in text and '\\u2588' not in text, f'a progress bar was saved:\n{source(cell)}'

@notebooks
def test_size(path): assert path.stat().st_size < 1_000_000

@notebooks
def test_figures_are_described(path):
    for cell, output in outputs(read_notebook(path)):
        if any(k.startswith('image/') for k in output.get('data', {})):
            assert 'fig-alt' in directives(cell), f'a figure without #| fig-alt:\n{source(cell)}'

@notebooks
def test_shows_something(path): assert outputs(read_notebook(path)), f'{path.name} has no saved output'
