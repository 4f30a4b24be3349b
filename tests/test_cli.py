"The command line as it is typed: what it prints and where, how it ends, and what is in the folder afterwards"
import json, os, re, shlex, signal, subprocess, sys, time
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits
from helpers import IMAGES, NOTEBOOKS, ROOT, find_script, run_ok
from nbtransfer.comparison import load_comparison

COMMANDS = 'demo', 'pretrain', 'finetune', 'compare', 'playground', 'notebooks'
RESULTS = {'runs.parquet', 'runs.json', 'differences.csv', 'table.txt', 'comparison.png', 'report.html'}
env = dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))   # small networks gain nothing from a second thread

def words(line): return [find_script('nbtransfer'), *shlex.split(line)]

def typed(line, cwd): return run_ok(words(line), cwd, **env)

def start(line, cwd, **kwargs):
    "Start a command with its two streams apart"
    return subprocess.Popen(words(line), cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)

def refused(line, cwd):
    "Type a command, see it end with code 2 and one line on the error stream, and return both streams"
    process = start(line, cwd)
    printed, said = process.communicate()
    assert process.returncode == 2, said
    assert re.fullmatch(r'nbtransfer: .+\n', said), said
    return printed, said

def tree(folder): return {str(o.relative_to(folder)): o.is_file() and o.read_bytes() for o in folder.rglob('*')}

def names(folder): return {o.name for o in folder.iterdir()}

def card(path):
    with safe_open(path, 'numpy') as f: return json.loads(f.metadata()['card'])

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Handwritten zeros, ones and twos, 20 of each, in class folders"
    folder, raw = tmp_path_factory.mktemp('my pictures')/'scans', load_digits()
    for label in range(3):
        (folder/str(label)).mkdir(parents=True)
        for i in np.flatnonzero(raw.target == label)[:20]:
            image = Image.fromarray((raw.images[i] * 255 / 16).astype(np.uint8)).resize((32, 32))
            image.convert('RGB').save(folder/str(label)/f'{i}.png')
    return folder

# Help, at once

@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_help(command, tmp_path):
    printed = typed(f'{command} --help', tmp_path)
    assert printed.startswith(f'usage: nbtransfer {command}'.rstrip()) and 'show this help' in printed
    if not command: assert all(re.search(rf'^ +{o}\b', printed, re.M) for o in COMMANDS)
    assert not names(tmp_path)

def test_help_takes_less_than_a_second(tmp_path):
    times_s = []
    for _ in range(3):
        begin = time.perf_counter()
        typed('--help', tmp_path)
        times_s.append(time.perf_counter() - begin)
    assert min(times_s) < 1

def test_importing_the_command_line_imports_no_torch(tmp_path):
    code = "import sys, nbtransfer.cli; print(*{o.split('.')[0] for o in sys.modules})"
    imported = run_ok([sys.executable, '-c', code], tmp_path, **env).split()
    assert 'nbtransfer' in imported and not {'torch', 'fastai', 'pandas', 'matplotlib'} & set(imported)

# The road

def bars(printed): return re.findall('[█\r\x1b]', printed)

def test_demo_ends_with_what_it_shows_and_does_not_show(tmp_path):
    printed, out = typed('demo --seeds 2', tmp_path), tmp_path/'nbtransfer-demo'
    assert names(out) == {'resnet9-letters.safetensors', *RESULTS}
    runs, last = load_comparison(out/'runs').runs, printed.splitlines()[-1]
    assert (runs.groupby(['strategy', 'per_class']).seed.nunique() == 2).all() and len(runs) == 2 * 2 * 2
    by_strategy = runs[runs.per_class == 1].pivot(index='seed', columns='strategy', values='accuracy')
    difference = (by_strategy['head first'] - by_strategy.scratch).mean()
    assert last.startswith('With 1 label per class, ') and f'({difference:+.1f} points, 95 % interval ' in last
    assert ', 2 seeds)' in last and 'does not show that transfer pays elsewhere' in last
    assert (out/'table.txt').read_text(encoding='utf-8').strip() in printed
    assert not bars(printed)

def test_pictures_to_weights_to_networks_over_seeds(pictures, tmp_path):
    folder = shlex.quote(str(pictures))
    line = f'pretrain --source {folder} --epochs 2 --batch-size 16'
    printed, weights = typed(line, tmp_path), 'nbtransfer-pretrain/resnet9-scans.safetensors'
    assert names(tmp_path/'nbtransfer-pretrain') == {'resnet9-scans.safetensors', 'curves.png'}
    facts = card(tmp_path/weights)
    assert facts['command'] == f'nbtransfer {line}' and facts['vocab'] == ['0', '1', '2']
    assert f'test accuracy {100 * facts["metrics"]["test_accuracy"]:.1f} %; weights in {weights}' in printed
    assert len(printed.splitlines()) == 2 and not bars(printed)
    line = f"finetune --source {weights} --target {folder} --epochs 1 --seeds 2 --out 'my results'"
    tuned, out = typed(line, tmp_path), tmp_path/'my results'
    files = [f'finetuned-seed{seed}.safetensors' for seed in range(2)]
    assert names(out) == {*files, 'receipt.csv', 'learning-rates.png'}
    first, second = (card(out/o) for o in files)
    assert first['command'] == second['command'] == f'nbtransfer {line}' and first['sha256'] != second['sha256']
    accs = [100 * o['metrics']['test_accuracy'] for o in (first, second)]
    assert tuned.splitlines()[-1] == f'2 seeds: {np.mean(accs):.1f} ± {np.std(accs, ddof=1):.1f} % (mean ± sd)'
    receipt = pd.read_csv(out/'receipt.csv')
    assert receipt.groupby('part').status.unique().map(list).to_dict() == {
        'body': ['copied'], 'head': ['initialised', 'left behind']}
    assert not bars(tuned)

def test_compare_into_a_folder_that_has_files(tmp_path):
    line = ("compare --source resnet9-letters --target digits --per-class 1 --epochs 2 --seeds 2"
        " --strategies scratch 'head only' --out results")
    (tmp_path/'results').mkdir()
    for name in ('notes.txt', 'runs.json'): (tmp_path/'results'/name).write_text('mine')
    before = tree(tmp_path)
    assert 'results has files' in refused(line, tmp_path)[1] and tree(tmp_path) == before
    printed, out = typed(f'{line} --overwrite', tmp_path), tmp_path/'results'
    assert names(out) == {'notes.txt', *RESULTS}
    assert (out/'notes.txt').read_text() == 'mine'
    runs, differences = load_comparison(out/'runs').runs, pd.read_csv(out/'differences.csv')
    assert runs[['strategy', 'seed', 'n_epochs']].values.tolist() == [
        ['scratch', 0, 2], ['head only', 0, 2], ['scratch', 1, 2], ['head only', 1, 2]]
    acc = runs.groupby('strategy').accuracy.mean()
    assert differences.difference.tolist() == [round(acc['head only'] - acc['scratch'], 2)]
    assert 'letters to digits' in printed and not bars(printed)

def test_interrupted_compare_keeps_what_was_finished(tmp_path):
    out = tmp_path/'nbtransfer-compare'
    line = ("compare --source resnet9-letters --target digits --per-class 1 --epochs 1 --seeds 1000"
        " --strategies 'head only'")
    def heed(): signal.signal(signal.SIGINT, signal.SIG_DFL)   # which a job in the background does not inherit
    process = start(line, tmp_path, preexec_fn=heed)
    try:
        while not (out/'runs.parquet').exists() and process.poll() is None: time.sleep(.05)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    finally: process.kill()
    assert process.returncode == 130 and 'Traceback' not in said
    assert said.strip() == 'nbtransfer: stopped; what was finished is in nbtransfer-compare'
    table = load_comparison(out/'runs').runs
    assert len(table) >= 1 and table.notna().all(axis=None) and table.seed.tolist() == list(range(len(table)))
    assert names(out) == {'runs.parquet', 'runs.json'}

def test_compare_goes_on_and_adds_seeds(tmp_path):
    line = "compare --source resnet9-letters --target digits --per-class 1 --epochs 1 --strategies scratch 'head only' --seeds"
    assert 'no runs.json' in refused(f'{line} 2 --resume', tmp_path)[1]
    typed(f'{line} 2', tmp_path)
    before = load_comparison(tmp_path/'nbtransfer-compare'/'runs').runs
    typed(f'{line} 3 --resume', tmp_path)
    after = load_comparison(tmp_path/'nbtransfer-compare'/'runs').runs
    assert len(before) == 4 and len(after) == 6 and after.time_s.tolist()[:4] == before.time_s.tolist()

def test_notebooks_are_copied(tmp_path):
    printed = typed('notebooks book', tmp_path)
    found = {o: content for o, content in tree(tmp_path/'book').items() if content}
    assert found == {str(o.relative_to(ROOT/'nbs')): o.read_bytes() for o in [*NOTEBOOKS, *IMAGES]}
    assert printed == f'{len(NOTEBOOKS)} notebooks in book; open them with: jupyter lab book\n'
    (tmp_path/'book'/NOTEBOOKS[0].name).write_text('edited')
    before = tree(tmp_path)
    assert 'book has files' in refused('notebooks book', tmp_path)[1] and tree(tmp_path) == before

# Bad input

def test_unknown_source_is_one_line(tmp_path):
    printed, said = refused('finetune --source digtis --target digits', tmp_path)
    assert "'digtis'" in said and not printed and not names(tmp_path)

@pytest.mark.parametrize('line, part', [
    ('', 'COMMAND'), ('train', "'train'"), ('pretrain', '--source'), ('finetune --source digits', '--target'),
    ('notebooks', 'DIR'), ('demo --seeds many', "'many'"), ('pretrain --source digits --colour', '--colour')])
def test_line_that_cannot_be_parsed(line, part, tmp_path):
    process = start(line, tmp_path)
    printed, said = process.communicate()
    assert process.returncode == 2 and part in said.splitlines()[-1] and 'Traceback' not in said and not printed
    assert not names(tmp_path)
