"Bad input: the error names what came and what is needed, and nothing half-written is left"
import io, json, os, pickle, re, shlex, shutil, socket, struct, subprocess, tarfile, zlib
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.external import fastai_cfg
from PIL import Image
from safetensors.torch import save
from helpers import saying
from nbtransfer import cli
from nbtransfer.comparison import compare, paired_interval
from nbtransfer.finetuning import transfer_learner
from nbtransfer.networks import create_network, resnet9
from nbtransfer.pretraining import task_learner
from nbtransfer.tasks import DataMissing, cifar10, cifar100, digits, image_folder, letters, split_per_class, task_named
from nbtransfer.networks import digest
from nbtransfer.weights import _seal, load_weights, pretrained, save_weights, transfer_weights

def tree(folder): return {str(o.relative_to(folder)): o.is_file() and o.read_bytes() for o in folder.rglob('*')}

@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    "A function that types a command in an empty folder, sees it refused with code 2, and returns what it says"
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    def type_it(line):
        before = tree(tmp_path)
        assert cli.main(shlex.split(line)) == 2
        said = capsys.readouterr()
        assert re.fullmatch(r'nbtransfer: .+\n', said.err), said.err
        assert '█' not in said.out and tree(tmp_path) == before
        return said.err
    return type_it

# CIFAR that is not there

@pytest.fixture
def home(tmp_path_factory, monkeypatch):
    "An empty fastai home, and a proxy at which nobody answers"
    for key in ('http_proxy', 'https_proxy'): monkeypatch.setenv(key, 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '')
    home = tmp_path_factory.mktemp('fastai')
    monkeypatch.setenv('FASTAI_HOME', str(home))
    for o in (fastai_cfg, cifar10, cifar100): o.cache_clear()   # what an earlier test has loaded
    yield home
    fastai_cfg.cache_clear()

def archive(home):
    "Put an archive of CIFAR-10 where fastai looks for it, cut short, and return its path"
    path, packed = home/'archive'/'cifar10.tgz', io.BytesIO()
    with tarfile.open(fileobj=packed, mode='w:gz') as tar:
        info = tarfile.TarInfo('cifar10/train/cat/1.png')
        info.size = 100_000
        tar.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(info.size)))
    path.parent.mkdir(parents=True)
    path.write_bytes(packed.getvalue()[:50_000])
    return path

@pytest.mark.parametrize('cifar', [cifar10, cifar100])
def test_cifar_without_network(cifar, home):
    with saying(cifar.__name__, 'could not be fetched', 'connect to the network', error=DataMissing): cifar()
    assert not list(home.glob('data/*')) and not list(home.glob('archive/*.part'))

def test_cifar_archive_cut_short_is_not_unpacked(home):
    path = archive(home)
    before = path.read_bytes()
    with saying('cifar10', 'cut short', error=DataMissing): cifar10()
    assert path.read_bytes() == before and not list(home.glob('data/*'))

def test_cifar_archive_that_breaks_while_unpacking(home, monkeypatch):
    "fastai compares the first megabyte only, so a later cut is seen when it unpacks"
    monkeypatch.setattr('fastdownload.core.check', lambda *args: True)
    archive(home)
    with saying('cifar10', 'EOFError', 'cut short', error=DataMissing): cifar10()
    assert not list(home.glob('data/*'))

def test_cifar_folder_with_too_few_pictures(home):
    for name in ('train/cat/1.png', 'train/dog/2.png', 'test/cat/3.png'):
        path = home/'data'/'cifar10'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32)).save(path)
    with saying('cifar10', '50,000 train', 'has 2 and 1', 'delete that folder', error=DataMissing): cifar10()

def test_command_line_without_cifar(home, refused):
    assert 'cifar100: its pictures' in refused('finetune --source resnet9-letters --target cifar100')

# Names that nothing has

@pytest.mark.parametrize('call, parts', [
    (lambda: task_named('digtis'), ('letters, cifar10', "'digtis'")),
    (lambda: image_folder('no/such/folder'), ('no/such/folder',)),
    (lambda: create_network('resnet99', 10), ("'resnet99'", 'resnet9')),
    (lambda: create_network('timm/resnet9', 10), ("'timm/resnet9'",)),
    (lambda: load_weights('resnet9-lettres'), ('resnet9-letters', "'resnet9-lettres'")),
    (lambda: pretrained('no/file.safetensors'), ('resnet9-letters', "'no/file.safetensors'")),
    (lambda: transfer_weights('no/file.safetensors', resnet9(2)), ("'no/file.safetensors'",)),
    (lambda: transfer_learner(digits(), 'resnet9-lettres'), ("'resnet9-lettres'",)),
    (lambda: compare(digits(), 'resnet9-lettres'), ("'resnet9-lettres'",)),
    (lambda: compare(digits(), 'resnet9-letters', strategies=['magic']), ('head first', "['magic']"))])
def test_unknown_name(call, parts):
    with saying(*parts): call()

# Folders

@pytest.fixture
def folder(tmp_path):
    "A folder of cats and dogs, six pictures each"
    return write_pictures(tmp_path/'pets', cat=6, dog=6)

def write_pictures(folder, **counts):
    "Write noise as so many RGB pictures of each class"
    for name, n in counts.items():
        (folder/name).mkdir(parents=True)
        for i in range(1, n + 1): noise(f'{folder} {name} {i}').save(folder/name/f'{i}.png')
    return folder

def noise(name):
    "A picture of noise that is another for every name"
    rng = np.random.default_rng(list(name.encode()))
    return Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))

def write_splits(folder, **splits):
    for split, counts in splits.items(): write_pictures(folder/split, **counts)
    return folder

def test_folder_without_pictures(tmp_path):
    (tmp_path/'pets'/'cat').mkdir(parents=True)
    (tmp_path/'pets'/'cat'/'notes.txt').write_text('none yet')
    with saying('no picture files', 'pets'): image_folder(tmp_path/'pets')

def test_folder_that_is_a_file(tmp_path):
    (tmp_path/'pets').write_text('a file')
    with saying('a folder is needed', 'pets'): image_folder(tmp_path/'pets')

def test_one_class_only(tmp_path):
    with saying('two classes or more', 'got 1', "['cat']"): image_folder(write_pictures(tmp_path/'pets', cat=6))

@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_split_without_a_class(split, tmp_path):
    full = dict(cat=4, dog=4)
    folder = write_splits(tmp_path/'pets', **{**dict(train=full, valid=full, test=full), split: dict(cat=4)})
    with saying(f'split {split} has no picture of', "['dog'] (1 of 2 classes)"): image_folder(folder)

def test_class_too_small_to_split(tmp_path):
    folder = write_pictures(tmp_path/'pets', cat=6, dog=2)
    with saying('3 or more training pictures', "['dog']"): image_folder(folder)

def test_class_too_small_to_cut_one_split_from(tmp_path):
    folder = write_splits(tmp_path/'pets', train=dict(cat=6, dog=1), test=dict(cat=2, dog=2))
    with saying('2 or more training pictures', 'cut valid from', "['dog']"): image_folder(folder)

def test_split_with_nothing_but_twins(tmp_path):
    full = dict(cat=4, dog=4)
    folder = write_splits(tmp_path/'pets', train=full, valid=dict(cat=1, dog=1), test=full)
    shutil.copy(folder/'test'/'dog'/'1.png', folder/'valid'/'dog'/'1.png')
    with pytest.warns(UserWarning, match='left out 1 pictures of pets'):
        with saying('split valid has no picture of', "['dog']"): image_folder(folder)

@pytest.mark.parametrize('shares', [dict(valid_frac=.5, test_frac=.5), dict(test_frac=0), dict(valid_frac=-.1)])
def test_shares_that_leave_a_split_empty(shares, folder):
    with saying('shares above 0 that sum to less than 1', str([*shares.values()][0])): image_folder(folder, **shares)

def test_fewer_pictures_than_labels_asked_for(folder):
    task = image_folder(folder)
    with saying('5 per class asked for', 'class cat has 4'): task.subset(5)
    with saying('per_class must be 1 or more', 'got 0'): task.subset(0)
    with saying('98 per class', 'class 8 has 97'): compare(digits(), 'resnet9-letters', (1, 98))

@pytest.mark.parametrize('call, part', [
    (lambda: letters(77), 'got 77'), (lambda: digits().dls(bs=0), 'got 0'),
    (lambda: split_per_class(torch.tensor([0, 0, 0, 1, 1]), dict(test=.2, valid=.2)), 'class 1 needs 3 pictures'),
    (lambda: compare(digits(), 'resnet9-letters', seeds=1), 'got 1')])
def test_number_too_small(call, part):
    with saying(part): call()

@pytest.mark.parametrize('a, b', [([1], [2]), ([1, 2], [1, 2, 3]), ([1], [1, 2, 3]), (1, 2)])
def test_pairs_without_partners(a, b):
    with pytest.raises(ValueError): paired_interval(a, b)

# Files that cannot be decoded

def encoded(kind):
    out = io.BytesIO()
    noise('any').save(out, kind)
    return out.getvalue()

def file_name(o): return o if isinstance(o, str) and '.' in o else ''

unreadable = pytest.mark.parametrize('name, data', [
    ('text.png', b'not a picture'), ('empty.jpg', b''), ('short.png', encoded('png')[:1000]),
    ('short.jpg', encoded('jpeg')[:-50]), ('header.png', encoded('png')[:30]), ('header.jpg', encoded('jpeg')[:30])],
    ids=file_name)

@unreadable
def test_unreadable_picture_is_named_and_counted(name, data, folder):
    (folder/'dog'/name).write_bytes(data)
    with saying('1 of 13 files cannot be decoded', f'dog/{name}', 'skip_bad'): image_folder(folder)

@unreadable
def test_unreadable_picture_is_skipped_when_asked(name, data, folder, recwarn):
    without = image_folder(folder, skip_bad=True)
    assert not recwarn.list
    (folder/'cat'/name).write_bytes(data)
    with pytest.warns(UserWarning, match=re.escape(f'left out 1 of 13 files that cannot be decoded: cat/{name}')):
        task = image_folder(folder, skip_bad=True)
    assert torch.equal(task.images, without.images) and torch.equal(task.labels, without.labels)

def test_many_unreadable_pictures_are_counted(folder):
    for i in range(5): (folder/'cat'/f'bad{i}.png').write_bytes(b'')
    with saying('5 of 17 files', 'cat/bad0.png, cat/bad1.png, cat/bad2.png, …'): image_folder(folder)

def test_nothing_readable(folder):
    for path in folder.glob('*/*.png'): path.write_bytes(b'')
    with pytest.warns(UserWarning, match='12 of 12'), saying('none of 12 files'): image_folder(folder, skip_bad=True)

# Pictures that are not 8-bit RGB

def halves(left, right):
    "Pixels of a 32×32 picture whose left and right halves have one value each"
    pixels = np.empty((32, 32, len(left)), np.uint16)
    pixels[:, :16], pixels[:, 16:] = left, right
    return pixels

def png16(pixels):
    "A 16-bit PNG, which PIL cannot write in colour"
    def number(n): return struct.pack('>I', n)
    def chunk(kind, data): return number(len(data)) + kind + data + number(zlib.crc32(kind + data))
    h, w, n = pixels.shape
    head = number(w) + number(h) + bytes([16, {1: 0, 2: 4, 3: 2, 4: 6}[n], 0, 0, 0])
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

def eight_bit(mode, kind, left, right, **options):
    out = io.BytesIO()
    image = Image.fromarray(halves(left, right).astype(np.uint8).squeeze(), {'1': 'L', 'P': 'L'}.get(mode, mode))
    if mode == 'P': image = image.convert('RGB').quantize(8)
    image.convert(mode).save(out, kind, **options)
    return out.getvalue()

def deep(*halves_of_256): return png16(halves(*([257 * o for o in half] for half in halves_of_256)))

white, grey = (255, 255, 255), lambda o: (o, o, o)
other_kinds = pytest.mark.parametrize('kind, name, data, left, right', [
    ('1-channel', '1-bit.png', eight_bit('1', 'png', [0], [255]), grey(0), white),
    ('1-channel', 'grey.png', eight_bit('L', 'png', [7], [200]), grey(7), grey(200)),
    ('1-channel', 'grey.jpg', eight_bit('L', 'jpeg', [7], [200]), grey(7), grey(200)),
    ('2-channel', 'grey-alpha.png', eight_bit('LA', 'png', [100, 255], [100, 0]), grey(100), white),
    ('4-channel', 'alpha.png', eight_bit('RGBA', 'png', [1, 2, 3, 255], [0, 0, 255, 51]), (1, 2, 3), (204, 204, 255)),
    ('4-channel', 'palette.png', eight_bit('P', 'png', [9], [90], transparency=b'\xff\0'), white, grey(90)),
    ('4-channel', 'cmyk.jpg', eight_bit('CMYK', 'jpeg', [0, 255, 255, 0], [0, 0, 0, 255]), (255, 0, 0), grey(0)),
    ('16-bit', 'grey16.png', deep([7], [200]), grey(7), grey(200)),
    ('16-bit', 'grey-alpha16.png', deep([100, 255], [100, 0]), grey(100), white),
    ('16-bit', 'rgb16.png', deep([7, 130, 200], [1, 2, 3]), (7, 130, 200), (1, 2, 3)),
    ('16-bit', 'alpha16.png', deep([10, 20, 30, 255], [10, 20, 30, 0]), (10, 20, 30), white)],
    ids=file_name)

@other_kinds
def test_other_kind_of_picture_is_named(kind, name, data, left, right, folder):
    (folder/'cat'/name).write_bytes(data)
    with saying('8-bit RGB', f'1 of 13 are {kind}', f'cat/{name}', 'convert'): image_folder(folder, skip_bad=True)

@other_kinds
def test_other_kind_of_picture_is_converted(kind, name, data, left, right, folder):
    (folder/'cat'/name).write_bytes(data)
    task = image_folder(folder, convert=True)
    off = (task.images.int() - torch.from_numpy(halves(left, right).astype(np.int32))).abs().amax((1, 2, 3))
    assert len(off) == 13 and (off <= 1).sum() == 1

def test_palette_without_transparency_is_rgb(folder):
    (folder/'cat'/'plain.png').write_bytes(eight_bit('P', 'png', [9], [90]))
    assert len(image_folder(folder).images) == 13

# Weights files

@pytest.fixture(scope='module')
def learn():
    return task_learner(digits(), resnet9(10, width=2))

def tensors(): return {n: t.contiguous() for n, t in resnet9(3, width=2).state_dict().items()}

def with_card(card):
    "A file with this card; the hashes of a dict are made right where it does not give them"
    state = tensors()
    if isinstance(card, dict) and card:
        card = dict(sha256=digest(state)) | card
        card |= dict(card_sha256=_seal(card))
    return save(state, metadata=dict(card=card if isinstance(card, str) else json.dumps(card)))

def arch(name='resnet9', **kwargs): return dict(arch=dict(name=name, kwargs=dict(n_classes=3, width=2) | kwargs))

whole = with_card(arch())

wrong_files = {
    'text': b'weights', 'empty': b'', 'pickle': pickle.dumps(dict(a=1)), 'short': whole[:-9], 'header': whole[:20],
    'no card': save(tensors()), 'no json': with_card('{"arch"'), 'list': with_card([1]), 'empty card': with_card({}),
    'no name': with_card(dict(arch={})), 'no arch': with_card(dict(arch=None)), 'wider': with_card(arch(width=4)),
    'more classes': with_card(arch(n_classes=4)), 'other network': with_card(arch('resnet99')),
    'unknown argument': with_card(arch(colour=3)), 'other digest': with_card(arch() | dict(sha256='0'))}

@pytest.mark.parametrize('name', wrong_files)
def test_file_that_holds_no_weights(name, tmp_path):
    path = tmp_path/'bad.safetensors'
    path.write_bytes(wrong_files[name])
    with saying("'resnet99'" if name == 'other network' else str(path)): load_weights(path)
    assert list(tmp_path.iterdir()) == [path]

def test_right_file_is_loaded(tmp_path):
    "So that the files above are refused for what is wrong with them"
    (tmp_path/'good.safetensors').write_bytes(whole)
    assert load_weights(tmp_path/'good.safetensors').arch == resnet9(3, width=2).arch

def test_refused_file_leaves_the_network_alone(tmp_path):
    path, model = tmp_path/'bad.safetensors', resnet9(3, width=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    path.write_bytes(whole[:-9])
    with saying(str(path)): transfer_weights(path, model, min_share=0)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())

@pytest.mark.parametrize('error', [OSError('No space left on device'), KeyboardInterrupt()], ids=['full', 'Ctrl-C'])
def test_weights_that_could_not_be_saved(error, learn, tmp_path, monkeypatch):
    path = save_weights(learn, tmp_path/'new'/'old.safetensors')
    before = tree(tmp_path)
    assert before['new/old.safetensors'] and len(before) == 2
    def stop(file): raise error   # the disk is full, or someone presses Ctrl-C
    monkeypatch.setattr(os, 'fsync', stop)
    for name in ('old', 'other'):
        with pytest.raises(type(error)): save_weights(learn, path.with_name(f'{name}.safetensors'), more='facts')
    assert tree(tmp_path) == before

def test_weights_saved_to_a_folder(learn, tmp_path):
    (tmp_path/'a.safetensors').mkdir()
    with saying('a.safetensors', error=OSError): save_weights(learn, tmp_path/'a.safetensors')
    with saying('.safetensors is needed', 'a.pth'): save_weights(learn, tmp_path/'a.pth')
    assert tree(tmp_path) == {'a.safetensors': False}

def test_runs_that_could_not_be_written(tmp_path, monkeypatch):
    asked = dict(per_class=(1,), strategies=['head only'], n_epochs=1, path=tmp_path/'runs')
    compare(digits(), 'resnet9-letters', seeds=2, **asked)
    before = tree(tmp_path)
    def write_half(self, file, **kwargs):
        file.write(b'half')
        raise OSError('No space left on device')
    monkeypatch.setattr(pd.DataFrame, 'to_parquet', write_half)
    with saying('No space left', error=OSError): compare(digits(), 'resnet9-letters', seeds=3, **asked)
    assert tree(tmp_path) == before

# Places to write, and what is typed

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
    assert '--port must be in 1..65535; got 0' in refused('playground --port 0')

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

@pytest.mark.parametrize('line, part', [
    ('pretrain --source digtis', "'digtis'"),
    ('pretrain --source digits --arch resnet99', "'resnet99'"),
    ('pretrain --source digits --epochs 0', '--epochs must be 1 or more; got 0'),
    ('pretrain --source digits --batch-size -1', '--batch-size must be 1 or more; got -1'),
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
    for name in ('short', 'wider'): Path(f'{name}.safetensors').write_bytes(wrong_files[name])
    assert part in refused(line)

def test_typed_folder(refused, folder):
    (folder/'cat'/'grey.png').write_bytes(eight_bit('L', 'png', [7], [200]))
    assert 'cat/grey.png' in refused(f'pretrain --source {shlex.quote(str(folder))}')
    (folder/'cat'/'bad.png').write_bytes(b'')
    assert 'cat/bad.png' in refused(f'pretrain --convert --source {shlex.quote(str(folder))}')

def test_typed_folder_with_both_flags(folder, tmp_path, capsys):
    (folder/'cat'/'grey.png').write_bytes(eight_bit('L', 'png', [7], [200]))
    (folder/'cat'/'bad.png').write_bytes(b'')
    flags = ['--convert', '--skip-bad', '--epochs', '1', '--out', str(tmp_path/'out')]
    assert cli.main(['pretrain', '--source', str(folder), *flags]) == 0
    assert re.fullmatch('nbtransfer: .*left out 1 of 14 files.*cat/bad.png\n', capsys.readouterr().err)
