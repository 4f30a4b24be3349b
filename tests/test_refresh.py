"The tool that makes saved outputs: what it keeps, what it cleans away, and that it breaks nothing"
import base64, io, json, sys
import numpy as np
import pytest
from PIL import Image
from helpers import read_notebook, run, run_ok
from refresh import clean_outputs, clean_stream, code_hash, lighter, scrub

def cell(code, kind='code'):
    extra = dict(outputs=[], execution_count=None) if kind == 'code' else {}
    return dict(cell_type=kind, id=f'c{abs(hash(code)) % 10**8}', metadata={}, source=code.splitlines(True), **extra)

def notebook(*codes): return dict(cells=[cell(o) for o in codes], metadata={}, nbformat=4, nbformat_minor=5)

def texts(nb): return [''.join(o.get('text', '')) for c in nb['cells'] for o in c['outputs']]

def test_stream_is_what_a_terminal_shows():
    text = '█\repoch  loss\n█\r\rEpoch 1/2 |--| 0%\rEpoch 1/2 |██| 100%\r          \r0     0.70\n\nend\n |███| 100% [3/3]'
    assert clean_stream(text) == ['epoch  loss\n', '0     0.70\n', '\n', 'end\n']
    assert clean_stream('\r |██--| 50.00% [1/2 00:01<00:01]\r |████| 100.00% [2/2 00:02<00:00]said\nend\n') == ['said\n', 'end\n']

def test_large_figures_get_lighter_and_look_the_same():
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    large, small = (as_png(np.clip(o, 0, 255)) for o in (200 + noise // 8, noise[:20, :20]))
    assert lighter(small) == small and len(lighter(large)) < len(large) / 2
    one, two = (np.asarray(Image.open(io.BytesIO(base64.b64decode(o))).convert('RGB'), float) for o in (large, lighter(large)))
    assert abs(one - two).mean() < 4

def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()

def test_scrub_removes_what_is_private(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    monkeypatch.setenv('FASTAI_HOME', '/data/fastai/')
    assert scrub('<A at 0x7f00aabbcc> in /home/someone/x, /data/fastai/data') == '<A> in ~/x, ~/.fastai/data'

def test_widgets_bars_and_warnings_are_dropped(capsys):
    outputs = [dict(output_type='stream', name='stderr', text=['UserWarning: old\n']),
        dict(output_type='display_data', data={'application/vnd.jupyter.widget-view+json': {}, 'text/plain': ['Slider']}),
        dict(output_type='display_data', data={'text/html': ['<progress value=1>']}),
        dict(output_type='execute_result', data={'text/plain': ['7']})]
    assert [o['output_type'] for o in clean_outputs(outputs, 'here')] == ['execute_result']
    assert 'UserWarning: old' in capsys.readouterr().err

def test_hash_is_of_the_code():
    one, two = notebook('a = 1', '#| cifar\nb = 2'), notebook('a = 1', '#| cifar\nb = 3')
    assert code_hash(one) != code_hash(two) and code_hash(one, only_cifar=True) != code_hash(one)
    one['cells'].append(cell('Prose', 'markdown'))
    one['cells'][0]['outputs'] = ['anything']
    assert code_hash(one) == code_hash(notebook('a = 1', '#| cifar\nb = 2'))

@pytest.fixture
def written(clean_copy):
    path = clean_copy/'nbs/89_trial.ipynb'
    yield path
    path.unlink()

@pytest.mark.process
def test_refresh_keeps_outputs_of_unchanged_cifar_cells(written, clean_copy):
    def refresh(nb, *flags):
        written.write_text(json.dumps(nb), encoding='utf-8')
        run_ok([sys.executable, 'tools/refresh.py', str(written), *flags], clean_copy)
        return read_notebook(written)
    full = refresh(notebook("print('live')", "#| cifar\nprint('real')"))
    assert texts(full) == ['live\n', 'real\n']
    full['cells'][0]['source'] = ["print('new')"]
    kept = refresh(full, '--no-cifar')
    assert texts(kept) == ['new\n', 'real\n']
    assert kept['metadata']['nbtransfer']['cifar'] == full['metadata']['nbtransfer']['cifar']
    kept['cells'][1]['source'] = ["#| cifar\n", "print('other')"]
    dropped = refresh(kept, '--no-cifar')
    assert texts(dropped) == ['new\n'] and dropped['metadata']['nbtransfer']['cifar']['code_sha256'] is None

@pytest.mark.process
def test_failing_notebook_is_left_as_it_was(written, clean_copy):
    written.write_text(json.dumps(notebook("print('a')", '1/0')), encoding='utf-8')
    before = written.read_bytes()
    code, printed = run([sys.executable, 'tools/refresh.py', str(written)], clean_copy)
    assert code == 1 and 'ZeroDivisionError' in printed and written.read_bytes() == before
    assert not list(written.parent.glob('.*.part'))
