"The command line as it is typed: what it prints and where, how it ends, and what is in the folder afterwards"
import json, os, re, shlex, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from fastai.data.external import fastai_cfg
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from sklearn.datasets import load_digits
from helpers import IMAGES, NOTEBOOKS, ROOT, find_script, run_ok
from nbtransfer import cli
from nbtransfer.comparison import load_comparison
from nbtransfer.files import digest, seal
from nbtransfer.folders import cifar10, cifar100
from nbtransfer.networks import create_network
from nbtransfer.weights import load_weights

COMMANDS = 'demo', 'pretrain', 'finetune', 'compare', 'playground', 'notebooks'
RESULTS = {'runs.parquet', 'runs.json', 'differences.csv', 'table.txt', 'comparison.png', 'report.html'}
env = dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))   # small networks gain nothing from a second thread

def words(line): return [find_script('nbtransfer'), *shlex.split(line)]

def started(line, cwd): return run_ok(words(line), cwd, **env)

def start(line, cwd, **kwargs):
    "Start a command with its two streams apart"
    return subprocess.Popen(words(line), cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)

@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    "A function that types a command in an empty folder, sees it end well, and returns what it printed"
    monkeypatch.chdir(tmp_path)
    def type_it(line):
        assert cli.main(shlex.split(line)) == 0
        return capsys.readouterr().out
    return type_it

@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    "A function that types a command, sees it refused with code 2 and nothing written, and returns what it says in one line"
    monkeypatch.chdir(tmp_path)
    def type_it(line):
        before = tree(tmp_path)
        assert cli.main(shlex.split(line)) == 2
        said = capsys.readouterr()
        assert re.fullmatch(r'nbtransfer: .+\n', said.err), said.err
        assert not bars(said.out) and tree(tmp_path) == before
        return said.err
    return type_it

def tree(folder): return {str(o.relative_to(folder)): o.is_file() and o.read_bytes() for o in folder.rglob('*')}

def bars(printed): return re.findall('[█\r\x1b]', printed)

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
def test_help(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended: cli.main([*command.split(), '--help'])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert printed.startswith(f'usage: nbtransfer {command}'.rstrip()) and 'show this help' in printed
    if not command: assert all(re.search(rf'^ +{o}\b', printed, re.M) for o in COMMANDS)
    assert not names(tmp_path)

@pytest.mark.process
def test_help_takes_less_than_a_second(tmp_path):
    times_s = []
    for _ in range(3):
        begin = time.perf_counter()
        started('--help', tmp_path)
        times_s.append(time.perf_counter() - begin)
    assert min(times_s) < 1

@pytest.mark.process
def test_importing_the_command_line_imports_no_torch(tmp_path):
    code = "import sys, nbtransfer.cli; print(*{o.split('.')[0] for o in sys.modules})"
    imported = run_ok([sys.executable, '-c', code], tmp_path, **env).split()
    assert 'nbtransfer' in imported and not {'torch', 'fastai', 'pandas', 'matplotlib'} & set(imported)

# The road

@pytest.mark.process
@pytest.mark.training
def test_demo_ends_with_what_it_shows_and_does_not_show(tmp_path):
    printed, out = started('demo --seeds 2', tmp_path), tmp_path/'nbtransfer-demo'
    assert names(out) == {'resnet9-letters.safetensors', *RESULTS}
    runs, last = load_comparison(out/'runs').runs, printed.splitlines()[-1]
    assert (runs.groupby(['strategy', 'per_class']).seed.nunique() == 2).all() and len(runs) == 2 * 2 * 2
    by_strategy = runs[runs.per_class == 1].pivot(index='seed', columns='strategy', values='accuracy')
    difference = (by_strategy['head first'] - by_strategy.scratch).mean()
    assert last.startswith('With 1 label per class, ') and f'({difference:+.1f} points, 95 % interval ' in last
    assert ', 2 seeds)' in last and 'does not show that transfer pays elsewhere' in last
    assert (out/'table.txt').read_text(encoding='utf-8').strip() in printed
    assert not bars(printed)

@pytest.mark.training
def test_pictures_to_weights_to_networks_over_seeds(pictures, typed, tmp_path):
    folder = shlex.quote(str(pictures))
    line = f'pretrain --source {folder} --epochs 2 --batch-size 16'
    printed, weights = typed(line), 'nbtransfer-pretrain/resnet9-scans.safetensors'
    assert names(tmp_path/'nbtransfer-pretrain') == {'resnet9-scans.safetensors', 'curves.png'}
    facts = card(tmp_path/weights)
    assert facts['command'] == f'nbtransfer {line}' and facts['vocab'] == ['0', '1', '2']
    assert f'test accuracy {100 * facts["metrics"]["test_accuracy"]:.1f} %; weights in {weights}' in printed
    assert len(printed.splitlines()) == 2 and not bars(printed)
    line = f"finetune --source {weights} --target {folder} --epochs 1 --seeds 2 --out 'my results'"
    tuned, out = typed(line), tmp_path/'my results'
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

@pytest.mark.training
def test_compare_into_a_folder_that_has_files(typed, refused, tmp_path):
    line = ("compare --source resnet9-letters --target digits --per-class 1 --epochs 2 --seeds 2"
        " --strategies scratch 'head only' --out results")
    (tmp_path/'results').mkdir()
    for name in ('notes.txt', 'runs.json'): (tmp_path/'results'/name).write_text('mine')
    before = tree(tmp_path)
    assert 'results has files' in refused(line) and tree(tmp_path) == before
    printed, out = typed(f'{line} --overwrite'), tmp_path/'results'
    assert names(out) == {'notes.txt', *RESULTS}
    assert (out/'notes.txt').read_text() == 'mine'
    runs, differences = load_comparison(out/'runs').runs, pd.read_csv(out/'differences.csv')
    assert runs[['strategy', 'seed', 'n_epochs']].values.tolist() == [
        ['scratch', 0, 2], ['head only', 0, 2], ['scratch', 1, 2], ['head only', 1, 2]]
    acc = runs.groupby('strategy').accuracy.mean()
    assert differences.difference.tolist() == [round(acc['head only'] - acc['scratch'], 2)]
    assert 'letters to digits' in printed and not bars(printed)

@pytest.mark.process
@pytest.mark.training
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

@pytest.mark.training
def test_compare_goes_on_and_adds_seeds(typed, refused, tmp_path):
    line = "compare --source resnet9-letters --target digits --per-class 1 --epochs 1 --strategies scratch 'head only' --seeds"
    assert 'no runs.json' in refused(f'{line} 2 --resume')
    typed(f'{line} 2')
    before = load_comparison(tmp_path/'nbtransfer-compare'/'runs').runs
    typed(f'{line} 3 --resume')
    after = load_comparison(tmp_path/'nbtransfer-compare'/'runs').runs
    assert len(before) == 4 and len(after) == 6 and after.time_s.tolist()[:4] == before.time_s.tolist()

def test_notebooks_are_copied(typed, refused, tmp_path):
    printed = typed('notebooks book')
    found = {o: content for o, content in tree(tmp_path/'book').items() if content}
    assert found == {str(o.relative_to(ROOT/'nbs')): o.read_bytes() for o in [*NOTEBOOKS, *IMAGES]}
    assert printed == f'{len(NOTEBOOKS)} notebooks in book; open them with: jupyter lab book\n'
    (tmp_path/'book'/NOTEBOOKS[0].name).write_text('edited')
    before = tree(tmp_path)
    assert 'book has files' in refused('notebooks book') and tree(tmp_path) == before

# Bad input

@pytest.mark.process
def test_unknown_source_is_one_line(tmp_path):
    process = start('finetune --source digtis --target digits', tmp_path)
    printed, said = process.communicate()
    assert process.returncode == 2 and re.fullmatch(r'nbtransfer: .+\n', said), said
    assert "'digtis'" in said and not printed and not names(tmp_path)

@pytest.mark.parametrize('line, part', [
    ('', 'COMMAND'), ('train', "'train'"), ('pretrain', '--source'), ('finetune --source digits', '--target'),
    ('notebooks', 'DIR'), ('demo --seeds many', "'many'"), ('pretrain --source digits --colour', '--colour')])
def test_line_that_cannot_be_parsed(line, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended: cli.main(shlex.split(line))
    printed, said = capsys.readouterr()
    assert ended.value.code == 2 and part in said.splitlines()[-1] and 'Traceback' not in said and not printed
    assert not names(tmp_path)

def test_command_line_without_cifar(refused, tmp_path_factory, monkeypatch):
    "An empty fastai home, and a proxy at which nobody answers"
    for key in ('http_proxy', 'https_proxy'): monkeypatch.setenv(key, 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '')
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path_factory.mktemp('fastai')))
    for o in (fastai_cfg, cifar10, cifar100): o.cache_clear()   # what an earlier test has loaded
    try: assert 'cifar100: its pictures' in refused('finetune --source resnet9-letters --target cifar100')
    finally: fastai_cfg.cache_clear()

commands = {'demo': '', 'pretrain': '--source digits', 'finetune': '--source resnet9-letters --target digits',
    'compare': '--source resnet9-letters --target digits', 'notebooks': ''}

def line(command, out):
    option = '' if command == 'notebooks' else '--out '
    return f'{command} {commands[command]} {option}{shlex.quote(str(out))}'

each_command = pytest.mark.parametrize('command', commands)

@each_command
def test_output_folder_with_files(command, refused, tmp_path):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'.hidden').write_text('mine')
    assert 'full has files' in refused(line(command, tmp_path/'full'))

@each_command
def test_output_path_that_is_a_file(command, refused, tmp_path):
    (tmp_path/'file').write_text('mine')
    assert 'file is a file' in refused(line(command, tmp_path/'file'))

@each_command
def test_output_path_inside_a_file_is_seen_before_training(command, refused, tmp_path, monkeypatch):
    def train(*args, **kwargs): raise AssertionError('trained first')
    for name in ('pretrain', 'fine_tune', 'compare'): monkeypatch.setattr(f'nbtransfer.all.{name}', train)
    (tmp_path/'file').write_text('mine')
    assert 'file' in refused(line(command, tmp_path/'file'/'new'))

def test_training_that_diverges_is_one_line(refused, tmp_path, monkeypatch):
    monkeypatch.setattr('nbtransfer.pretraining.default_lr', lambda model: 1e9)
    said = refused(f'pretrain --source digits --per-class 2 --arch article_cnn --epochs 20 --out {tmp_path}/new')
    assert 'StopOnNaN: finite numbers are needed' in said and 'lower lr_max' in said

def test_playground_without_what_serves_it(refused, monkeypatch):
    monkeypatch.setattr(cli, 'find_spec', lambda name: None)
    assert "pip install 'nbtransfer[playground]'" in refused('playground --no-browser')

def test_playground_on_a_port_that_is_taken(refused):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        assert 'is in use: name another' in refused(f'playground --no-browser --port {taken.getsockname()[1]}')
    assert '--port must be from 1 to 65535 (got 0)' in refused('playground --port 0')

def test_playground_whose_server_fails(refused, monkeypatch):
    monkeypatch.setattr(cli.subprocess, 'run', lambda *args, **kwargs: subprocess.CompletedProcess(args, 1))
    assert 'Voilà ended with 1' in refused('playground --no-browser')

def test_copy_of_chapters_that_stops(tmp_path, monkeypatch, capsys):
    def copy_half(source, to):
        Path(to).write_bytes(Path(source).read_bytes()[:99])
        raise OSError('No space left on device')
    monkeypatch.setattr('shutil.copyfile', copy_half)
    assert cli.main(['notebooks', str(tmp_path/'book')]) == 2
    assert not list(tmp_path.glob('book/*'))

def weights_file(width):
    "A file of a small network, whose card says this width"
    state = {name: tensor.contiguous() for name, tensor in create_network('resnet9', 3, width=2).state_dict().items()}
    card = dict(sha256=digest(state), arch=dict(name='resnet9', kwargs=dict(n_classes=3, width=width)))
    return save(state, metadata=dict(card=json.dumps(card | dict(card_sha256=seal(card)))))

@pytest.mark.parametrize('line, part', [
    ('pretrain --source digtis', "'digtis'"),
    ('pretrain --source digits --arch resnet99', "'resnet99'"),
    ('pretrain --source digits --epochs 0', '--epochs must be at least 1 (got 0)'),
    ('pretrain --source digits --batch-size -1', '--batch-size must be at least 1 (got -1)'),
    ('pretrain --source digits --per-class 5000', '5000 per class'),
    ('finetune --source resnet9-lettres --target digits', "'resnet9-lettres'"),
    ('finetune --source short.safetensors --target digits', 'short.safetensors'),
    ('finetune --source wider.safetensors --target digits', 'wider.safetensors'),
    ('finetune --source resnet9-letters --target nowhere/pets', "'nowhere/pets'"),
    ('finetune --source digits --target digits --arch resnet99', "'resnet99'"),
    ('compare --source resnet9-letters --target digits --strategies scratch magic', "['magic']"),
    ('compare --source resnet9-letters --target digits --seeds 1', 'got 1'),
    ('compare --source resnet9-letters --target digits --per-class 1 -3', 'got -3')])
def test_typed_value_that_nothing_can_be_done_with(line, part, refused):
    Path('short.safetensors').write_bytes(weights_file(2)[:-9])
    Path('wider.safetensors').write_bytes(weights_file(4))
    assert part in refused(line)

def test_file_of_weights_with_the_right_card_is_taken(tmp_path):
    "So that the files above are refused for what is wrong with them"
    (tmp_path/'right.safetensors').write_bytes(weights_file(2))
    load_weights(tmp_path/'right.safetensors')

@pytest.fixture
def spoilt(pictures, tmp_path):
    "Six zeros and six ones in class folders, a grey picture and one that cannot be decoded"
    folder = tmp_path/'spoilt'
    for name in '01':
        (folder/name).mkdir(parents=True)
        for file in sorted((pictures/name).iterdir())[:6]: shutil.copy(file, folder/name)
    Image.new('L', (32, 32), 7).save(folder/'0'/'grey.png')
    (folder/'0'/'bad.png').write_bytes(b'')
    return folder

def test_typed_folder(spoilt, refused):
    bad = spoilt/'0'/'bad.png'
    bad.unlink()
    assert '0/grey.png' in refused(f'pretrain --source {shlex.quote(str(spoilt))}')
    bad.write_bytes(b'')
    assert '0/bad.png' in refused(f'pretrain --convert --source {shlex.quote(str(spoilt))}')

@pytest.mark.training
def test_typed_folder_with_both_flags(spoilt, tmp_path, capsys):
    flags = ['--convert', '--skip-bad', '--epochs', '1', '--width', '2', '--out', str(tmp_path/'out')]
    assert cli.main(['pretrain', '--source', str(spoilt), *flags]) == 0
    assert re.fullmatch('nbtransfer: .*left out 1 of 14 files.*0/bad.png\n', capsys.readouterr().err)
