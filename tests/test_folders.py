"""Pictures in folders: what is decoded once and found again, what a killed process, a full disk, a second process and a
changed folder leave, folders too large for memory, and folders and files with something wrong in them"""
import hashlib, io, json, os, re, shutil, struct, subprocess, sys, tarfile, time, warnings, zlib
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.external import fastai_cfg
from hypothesis import given as given_, strategies as st
from PIL import Image
from forked import Forked, die, needs_fork, wait_for
from helpers import ROOT, saying, some, write_folder
from nbtransfer import files as files_module, folders
from nbtransfer.files import PictureRule, digest, read_pictures
from nbtransfer.folders import DataMissing, FileTask, cifar10, cifar100, image_folder, task_named
from nbtransfer.loaders import inference_card
from nbtransfer.networks import resnet9
from nbtransfer.pretraining import Quiet, task_learner
from nbtransfer.tasks import Task
from nbtransfer.weights import save_weights

# Decoded once

N, SIZE = 24, 16

@pytest.fixture
def pets(tmp_path):
    "Two classes of twelve pictures of several sizes"
    rng = np.random.default_rng(0)
    for i in range(N):
        path = tmp_path/'pets'/('cat', 'dog')[i % 2]/f'{i:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16 + i, 40 - i, 3), dtype=np.uint8)).save(path)
    return tmp_path/'pets'

@pytest.fixture
def cache(tmp_path): return tmp_path/'cache'

def files(path): return sorted(p.relative_to(path).as_posix() for p in path.rglob('*') if p.is_file())

def pixel_files(cache): return [name for name in files(cache) if name.endswith('.u8')]

def read(folder, cache, **kwargs): return image_folder(folder, SIZE, cache=cache, verbose=False, **kwargs)

def right(task, folder):
    "Whether a task's pictures are those of the files, each decoded here"
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.png'))
    wanted = read_pictures([Image.open(folder/name) for name in names], PictureRule(SIZE))
    return torch.equal(task.images, wanted) and [task.vocab[c] for c in task.labels] == [name.split('/')[0] for name in names]

@pytest.fixture
def settle(monkeypatch):
    "A function after which all files are old enough for their times to be trusted, by the clock that the module looks at"
    def go_on():
        later = SimpleNamespace(time=time.time, time_ns=lambda: time.time_ns() + 2_100_000_000)
        monkeypatch.setattr(folders, 'time', later)
    return go_on

@pytest.fixture
def no_decoding(monkeypatch):
    def forbid(name):
        def fail(*args, **kwargs): raise AssertionError(f'{name} was called')
        monkeypatch.setattr(folders, name, fail)
    return forbid

def test_second_reading_opens_no_picture(pets, cache, settle, no_decoding):
    settle()
    first = read(pets, cache)
    for name in ('_content', '_decode', 'write_whole'): no_decoding(name)
    again = read(pets, cache)
    assert right(first, pets) and torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert all(torch.equal(first.splits[s], again.splits[s]) for s in first.splits)

def test_times_are_not_trusted_yet_where_a_file_has_just_been_written(pets, cache, no_decoding):
    "As the tests with `settle` would pass with a clock that is not looked at, here is the other side"
    read(pets, cache)
    no_decoding('_content')
    with pytest.raises(AssertionError, match='_content was called'): read(pets, cache)

def test_pixels_stay_in_the_file_until_they_are_used_and_cannot_change_it(pets, cache):
    task = read(pets, cache)
    file = cache/pixel_files(cache)[0]
    before = file.read_bytes()
    assert len(before) == N * SIZE**2 * 3 == task.images.nbytes
    task.images[0] = 0
    assert file.read_bytes() == before and not torch.equal(read(pets, cache).images[0], task.images[0])

def test_same_content_elsewhere_is_not_decoded(pets, cache, no_decoding):
    read(pets, cache)
    shutil.copytree(pets, pets.with_name('copy'))
    no_decoding('_decode')
    assert right(read(pets.with_name('copy'), cache), pets)
    assert len(pixel_files(cache)) == 1

def change_pixels(folder):
    "Other pixels, same size of file, time of change set back: as a backup tool might leave it"
    path = folder/'cat'/'00.png'
    stat, old = path.stat(), path.read_bytes()
    for seed in range(500):
        Image.fromarray(np.random.default_rng(seed + 1).integers(0, 256, (16, 40, 3), dtype=np.uint8)).save(path)
        if path.stat().st_size == stat.st_size and path.read_bytes() != old: break
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns

changes = [change_pixels, lambda o: (o/'cat'/'00.png').unlink(), lambda o: (o/'cat').rename(o/'lion'),
    lambda o: (o/'cat'/'00.png').rename(o/'dog'/'00.png'), lambda o: shutil.copy(o/'cat'/'00.png', o/'cat'/'99.png')]

@pytest.mark.parametrize('settled', [True, False], ids=['old', 'just written'])
@pytest.mark.parametrize('change', changes, ids=['pixels', 'gone', 'class renamed', 'moved', 'more'])
def test_changed_folder_is_noticed(change, settled, pets, cache, settle):
    if settled: settle()
    read(pets, cache)
    change(pets)
    assert right(read(pets, cache), pets)
    assert len(pixel_files(cache)) == 1, 'the old pixels are gone'

def test_other_rules_are_other_entries(pets, cache):
    a, b = read(pets, cache), image_folder(pets, 8, cache=cache)
    assert b.images.shape == (N, 8, 8, 3) and torch.equal(read(pets, cache).images, a.images)
    assert len(pixel_files(cache)) == 2
    shutil.rmtree(pets)
    for f in (cache/'folders').iterdir(): os.utime(f, (0, 0))   # gone for long
    other = pets.with_name('other')
    for i in range(12):
        (other/f'{i % 2}').mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (9, 9), (i, 0, 0)).save(other/f'{i % 2}'/f'{i}.png')
    read(other, cache)
    assert len(pixel_files(cache)) == 1, 'pixels of a folder that is gone are swept'

def test_files_that_are_not_ours_stay(pets, cache):
    cache.mkdir()
    for name in ('notes.json', 'a.u8', '.hidden'): (cache/name).write_text('mine')
    read(pets, cache)
    assert {'notes.json', 'a.u8', '.hidden'} <= set(files(cache))

@pytest.mark.parametrize('damage', [lambda f: f.write_bytes(f.read_bytes()[:-1]), lambda f: f.write_bytes(b''), lambda f: f.unlink(),
    lambda f: f.with_suffix('.facts').unlink(), lambda f: f.with_suffix('.json').write_text('{'), lambda f: f.with_suffix('.json').unlink(),
    lambda f: [o.write_text('{}') for o in f.parent.glob('folders/*')], lambda f: [o.write_text('') for o in f.parent.glob('folders/*')]],
    ids=['cut', 'empty', 'gone', 'no facts', 'bad note', 'no note', 'bad record', 'empty record'])
def test_damaged_entry_is_made_again(damage, pets, cache, settle):
    settle()
    read(pets, cache)
    damage(cache/pixel_files(cache)[0])
    assert right(read(pets, cache), pets)

# Processes that are killed, and several at once

def die_at_call(number, function):
    "`function`, but its call of that number kills the process"
    calls = []
    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == number: die()
        return function(*args, **kwargs)
    return call

def die_at_rename(part, before):
    "Kill the process before, or after, a file gets a name that has this `part`"
    replace = Path.replace
    def rename(self, to):
        if before and part in str(to): die()
        replace(self, to)
        if part in str(to): die()
    Path.replace = rename

def in_the_middle(): folders.read_picture = die_at_call(13, folders.read_picture)
def at_sync(number): os.fsync = die_at_call(number, os.fsync)
def before_sweeping(): folders._sweep = lambda cache: die()

killed_at = {
    'in the middle of the pixels': in_the_middle,
    'before the first sync': lambda: at_sync(1),
    'before the second sync': lambda: at_sync(2),
    'before the pixels get their name': lambda: die_at_rename('.u8', before=True),
    'after the pixels got their name': lambda: die_at_rename('.u8', before=False),
    'before the record gets its name': lambda: die_at_rename('folders', before=True),
    'before sweeping': before_sweeping}

@needs_fork
@pytest.mark.process
@pytest.mark.parametrize('moment', killed_at)
def test_killed_process_leaves_nothing_that_looks_whole(moment, pets, cache, tmp_path):
    def run():
        killed_at[moment]()
        read(pets, cache)
    code, printed = Forked(run, tmp_path/'log').end()
    assert code == -9, printed
    assert right(read(pets, cache), pets)
    assert len(pixel_files(cache)) == 1 and len(files(cache)) <= 5, files(cache)   # pixels, facts, note, record and lock

@needs_fork
@pytest.mark.process
def test_two_processes_at_once_decode_once(pets, cache, tmp_path):
    "The first is held up in decoding until the second has said that it waits"
    decode, said = folders._decode, 'waits for another process'
    logs = [tmp_path/'first', tmp_path/'second']
    def run():
        def slowly(*args):
            Path(tmp_path, f'{os.getpid()}.decoded').touch()
            wait_for(lambda: logs[1].exists() and said in logs[1].read_text())
            return decode(*args)
        folders._decode = slowly
        read(pets, cache)
    one = Forked(run, logs[0])
    wait_for(lambda: list(tmp_path.glob('*.decoded')))
    two = Forked(run, logs[1])
    ended = [one.end(), two.end()]
    assert [code for code, _ in ended] == [0, 0], ended
    assert len(list(tmp_path.glob('*.decoded'))) == 1 and right(read(pets, cache), pets)
    assert [said in printed for _, printed in ended] == [False, True]

def test_full_disk_is_said_before_the_first_byte(pets, cache, monkeypatch):
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=N * SIZE**2 * 3 - 1))
    with pytest.raises(OSError, match='MiB of decoded pictures.*No space left.*NBTRANSFER_CACHE'): read(pets, cache)
    assert files(cache) in ([], ['lock'])

@needs_fork
@pytest.mark.process
def test_disk_that_fills_up_meanwhile(pets, cache, tmp_path):
    "A limit on the size of files is a disk that ends in the middle of the pixels"
    def run():
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (N * SIZE**2 * 3 // 2,) * 2)
        read(pets, cache)
    code, printed = Forked(run, tmp_path/'log').end()
    assert code == 1 and 'of decoded pictures have to be written in' in printed and 'NBTRANSFER_CACHE' in printed
    assert files(cache) in ([], ['lock'])
    assert right(read(pets, cache), pets)

@pytest.mark.skipif(os.name == 'nt' or not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_folder_that_cannot_be_written(pets, cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(OSError, match='NBTRANSFER_CACHE'): read(pets, cache)

def test_cache_that_is_a_file(pets, cache):
    cache.write_text('mine')
    with pytest.raises(OSError, match='NBTRANSFER_CACHE'): read(pets, cache)
    assert cache.read_text() == 'mine'

@pytest.mark.process
def test_nothing_is_written_outside_the_cache_folder(pets, tmp_path):
    home, work, cache = (tmp_path/o for o in ('home', 'work', 'home/.fastai/nbtransfer'))
    for o in (home, work): o.mkdir()
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in pets.rglob('*') if p.is_file()}
    env = {k: v for k, v in os.environ.items() if k not in ('NBTRANSFER_CACHE', 'FASTAI_HOME')}
    code = ('import sys\nfrom nbtransfer.folders import image_folder\n'
            f'task = image_folder(sys.argv[1], {SIZE})\nprint(len(task.images))')
    done = subprocess.run([sys.executable, '-c', code, str(pets)], cwd=work, capture_output=True, text=True,
        env={**env, 'HOME': str(home), 'USERPROFILE': str(home), 'PYTHONPATH': str(ROOT), 'PYTHONDONTWRITEBYTECODE': '1',
             'MPLCONFIGDIR': str(tmp_path/'mpl'), 'XDG_CACHE_HOME': str(tmp_path/'xdg')})
    assert done.returncode == 0, done.stderr
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in pets.rglob('*') if p.is_file()}
    assert not files(work) and len(pixel_files(cache)) == 1
    assert all(o.startswith('.fastai/nbtransfer/') for o in files(home)), files(home)

def test_what_is_wrong_is_remembered(pets, cache, settle, no_decoding):
    (pets/'cat'/'bad.png').write_bytes(b'no')
    settle()
    with pytest.raises(ValueError, match='1 of 25 files cannot be decoded: cat/bad.png'): read(pets, cache)
    no_decoding('_decode')
    with pytest.raises(ValueError, match='cat/bad.png'): read(pets, cache)
    with pytest.warns(UserWarning, match='left out 1 of 25'): task = read(pets, cache, skip_bad=True)
    (pets/'cat'/'bad.png').unlink()
    assert right(task, pets)

def test_link_to_nothing_is_unreadable(pets, cache):
    (pets/'cat'/'zz.png').symlink_to(pets/'nowhere.png')
    with pytest.raises(ValueError, match=r'1 of 25 files cannot be decoded \(no such file\): cat/zz.png'): read(pets, cache)
    with pytest.warns(UserWarning, match='cat/zz.png'): assert len(read(pets, cache, skip_bad=True).images) == N

def test_folder_that_is_away_for_a_while_keeps_its_pixels(pets, cache, settle, no_decoding):
    settle()
    read(pets, cache)
    pets.rename(pets.with_name('away'))
    read(pets.with_name('away'), cache, seed=1)
    pets.with_name('away').rename(pets)
    no_decoding('_decode')
    assert right(read(pets, cache), pets)

def test_trouble_that_passes_is_not_blamed_on_the_file(pets, cache, monkeypatch):
    def too_many(path): raise OSError(24, 'Too many open files')
    with monkeypatch.context() as patch:
        patch.setattr(files_module.Image, 'open', too_many)
        with pytest.raises(RuntimeError, match='cannot be read now.*Too many open files.*try again'): read(pets, cache)
    assert right(read(pets, cache), pets)

def test_large_photographs_are_decoded_in_threads_and_in_order(tmp_path, cache):
    rng = np.random.default_rng(0)
    for i in range(14):
        path = tmp_path/'photos'/str(i % 2)/f'{i:02}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((800, 600), Image.Resampling.BICUBIC).save(path, quality=95)
        assert path.stat().st_size > 16_384
    task = image_folder(tmp_path/'photos', 32, cache=cache)
    for k, name in enumerate(sorted(p.relative_to(tmp_path/'photos') for p in (tmp_path/'photos').rglob('*.jpg'))):
        with Image.open(tmp_path/'photos'/name) as im: whole = read_pictures([im], PictureRule(32))[0].int()
        assert (task.images[k] - whole).abs().float().mean() < 2, 'a reduced decoding looks the same'

# Too large for memory

@pytest.fixture
def small_memory(monkeypatch):
    for module in ('loaders', 'folders'):
        monkeypatch.setattr(f'nbtransfer.{module}.free_memory', lambda device=None: 2 * N * SIZE**2 * 3 - 1)

def test_folder_that_does_not_fit_stays_in_its_files_and_says_so(pets, cache, small_memory):
    with pytest.warns(UserWarning, match='over half.*stay in their files.*in_memory=True'): task = read(pets, cache)
    assert isinstance(task, FileTask) and not cache.exists()
    assert not isinstance(read(pets, cache, in_memory=True), FileTask)

@pytest.fixture
def both(pets, cache): return read(pets, cache), read(pets, cache, in_memory=False)

def test_both_kinds_of_task_are_the_same_task(both):
    memory, file = both
    assert repr(memory) == repr(file) and memory.vocab == file.vocab and torch.equal(memory.labels, file.labels)
    assert all(torch.equal(memory.splits[s], file.splits[s]) for s in memory.splits) and memory.counts().equals(file.counts())
    assert len(memory) == len(file) and torch.equal(memory.picture(5), file.picture(5))
    for a, b in zip(memory.stats, file.stats): assert np.allclose(a, b, atol=1e-6)
    for a, b in zip(memory.dls(4, augment=False), file.dls(4, augment=False, num_workers=0)):
        (x, y), (u, v) = ((torch.cat(o) for o in zip(*dl.new(shuffle=False, drop_last=False))) for dl in (a, b))
        assert torch.equal(y, v) and torch.allclose(x, u, atol=1e-5)

@pytest.mark.process
@pytest.mark.training
def test_file_task_trains_and_shows(both, tmp_path):
    memory, file = both
    few = file.subset(3, seed=1)
    assert few.counts()['train'].tolist() == [3, 3] and torch.equal(few.splits['train'], memory.subset(3, seed=1).splits['train'])
    learn = task_learner(few, resnet9(2, width=2), bs=4, cbs=[Quiet()])
    learn.fit(1)
    assert learn.predict(file.files[0])[0] in file.vocab and len(learn.validate(2)) == 2
    learn.dls.show_batch(max_n=2)
    assert inference_card(learn.dls).keys() == {'vocab', 'size_px', 'mean', 'std', 'fit', 'window'}
    save_weights(learn, tmp_path/'a.safetensors')

def test_file_task_orders_by_seed(both):
    def order(seed):
        train = both[1].dls(4, augment=False, seed=seed, num_workers=0).train
        return [torch.cat([y for _, y in train]).tolist() for _ in range(3)]
    assert order(1) == order(1) != order(2) and len({tuple(o) for o in order(3)}) > 1

def test_file_task_finds_bad_files_and_twins_first(pets, cache):
    shutil.copy(pets/'cat'/'00.png', pets/'dog'/'98.png')
    for seed in range(20):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            task = read(pets, cache, in_memory=False, seed=seed)
        if any('left out 1' in str(o.message) for o in said): break
    else: raise AssertionError('the twins were never in two splits')
    assert sum(map(len, task.splits.values())) == N
    (pets/'cat'/'bad.png').write_bytes(b'no')
    with pytest.raises(ValueError, match='cat/bad.png'): read(pets, cache, in_memory=False)
    (pets/'cat'/'bad.png').unlink()
    Image.new('L', (20, 20)).save(pets/'cat'/'grey.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        task = read(pets, cache, in_memory=False)
    assert len(task.files) == N + 2 and task.folder.converted == {'grey': ['cat/grey.png']}

def test_wrong_batch_size_of_a_file_task(both):
    with pytest.raises(ValueError, match='bs must be at least 1'): both[1].dls(0)
    assert isinstance(both[0], Task)

def test_fingerprint_of_files_is_of_names_and_sizes(both, pets, cache):
    "Comparisons that were written before hold it: the same facts, hashed here by hand"
    task = both[1]
    named = [(o.parent.name, o.name, o.stat().st_size) for o in task.files]
    facts = [digest(dict(task.splits, labels=task.labels)), task.vocab, named]
    assert task.fingerprint() == hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    assert read(pets, cache, in_memory=False).fingerprint() == task.fingerprint() != both[0].fingerprint()

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

# Names that nothing has

@pytest.mark.parametrize('call, parts', [
    (lambda: task_named('digtis'), ("'digtis'", 'letters, cifar10')),
    (lambda: image_folder('no/such/folder'), ('no/such/folder',))])
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
    with saying('image_folder: ', 'pets is no folder'): image_folder(tmp_path/'pets')

def test_one_class_only(tmp_path):
    with saying('at least two classes', 'got 1', "['cat']"): image_folder(write_pictures(tmp_path/'pets', cat=6))

@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_split_without_a_class(split, tmp_path):
    full = dict(cat=4, dog=4)
    folder = write_splits(tmp_path/'pets', **{**dict(train=full, valid=full, test=full), split: dict(cat=4)})
    with saying(f'split {split} has no picture of', "['dog'] (1 of 2 classes)"): image_folder(folder)

def test_class_too_small_to_split(tmp_path):
    folder = write_pictures(tmp_path/'pets', cat=6, dog=2)
    with saying('at least 3 training pictures', "['dog']"): image_folder(folder)

def test_class_too_small_to_cut_one_split_from(tmp_path):
    folder = write_splits(tmp_path/'pets', train=dict(cat=6, dog=1), test=dict(cat=2, dog=2))
    with saying('at least 2 training pictures', 'cut valid from', "['dog']"): image_folder(folder)

def test_split_with_nothing_but_twins(tmp_path):
    full = dict(cat=4, dog=4)
    folder = write_splits(tmp_path/'pets', train=full, valid=dict(cat=1, dog=1), test=full)
    shutil.copy(folder/'test'/'dog'/'1.png', folder/'valid'/'dog'/'1.png')
    with pytest.warns(UserWarning, match='left out 1 pictures'):
        with saying('split valid has no picture of', "['dog']"): image_folder(folder)

@pytest.mark.parametrize('shares, parts', [
    (dict(valid_frac=.5, test_frac=.5), ('sum to less than 1', 'test_frac=0.5 and valid_frac=0.5', 'left for train')),
    (dict(test_frac=-.1), ('test_frac must be above 0 (got -0.1)', 'no test folder')),
    (dict(test_frac=5.), ('test_frac must be a share below 1, or a whole number', '5.0')),
    (dict(valid_frac=0), ('valid_frac must be above 0 (got 0)',)),
    (dict(valid_frac=-.1), ('valid_frac must be above 0 (got -0.1)', 'no valid folder'))])
def test_shares_that_leave_a_split_empty(shares, parts, folder):
    (folder/'cat'/'bad.png').write_bytes(b'no picture')   # would be met later
    with saying('image_folder: ', *parts): image_folder(folder, **shares)

def test_a_share_is_not_asked_for_where_a_folder_is_given(tmp_path):
    full = dict(cat=4, dog=4)
    folder = write_splits(tmp_path/'pets', train=full, valid=full, test=full)
    assert len(image_folder(folder, valid_frac=0, test_frac=1).splits['valid']) == 8

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
    ('grey', '1-bit.png', eight_bit('1', 'png', [0], [255]), grey(0), white),
    ('grey', 'grey.png', eight_bit('L', 'png', [7], [200]), grey(7), grey(200)),
    ('grey', 'grey.jpg', eight_bit('L', 'jpeg', [7], [200]), grey(7), grey(200)),
    ('grey, transparent', 'grey-alpha.png', eight_bit('LA', 'png', [100, 255], [100, 0]), grey(100), white),
    ('transparent', 'alpha.png', eight_bit('RGBA', 'png', [1, 2, 3, 255], [0, 0, 255, 51]), (1, 2, 3), (204, 204, 255)),
    ('palette, transparent', 'palette.png', eight_bit('P', 'png', [9], [90], transparency=b'\xff\0'), white, grey(90)),
    ('CMYK', 'cmyk.jpg', eight_bit('CMYK', 'jpeg', [0, 255, 255, 0], [0, 0, 0, 255]), (255, 0, 0), grey(0)),
    ('deep', 'grey16.png', deep([7], [200]), grey(7), grey(200)),
    ('deep', 'grey-alpha16.png', deep([100, 255], [100, 0]), grey(100), white),
    ('deep', 'rgb16.png', deep([7, 130, 200], [1, 2, 3]), (7, 130, 200), (1, 2, 3)),
    ('deep', 'alpha16.png', deep([10, 20, 30, 255], [10, 20, 30, 0]), (10, 20, 30), white)],
    ids=file_name)

@other_kinds
@pytest.mark.parametrize('in_memory', [True, False])
def test_other_kind_of_picture_is_made_rgb_and_named(kind, name, data, left, right, in_memory, folder):
    (folder/'cat'/name).write_bytes(data)
    if kind == 'deep':
        with saying('1 of 13 are beyond 8 bits', 'values from', f'cat/{name}', 'window=('):
            image_folder(folder, skip_bad=True, in_memory=in_memory)
    task = image_folder(folder, window=(0, 65535) if kind == 'deep' else None, in_memory=in_memory)
    found = task.folder.converted
    assert list(found.values()) == [[f'cat/{name}']] and ('beyond 8 bits' in str(found) if kind == 'deep' else kind in found)
    images = torch.stack([task.picture(i) for i in range(13)])
    off = (images.int() - torch.from_numpy(halves(left, right).astype(np.int32))).abs().amax((1, 2, 3))
    assert (off <= 1).sum() == 1

def test_values_beyond_8_bits_are_never_scaled_by_a_guess(folder):
    Image.fromarray(np.linspace(0, 4095, 1024, dtype=np.float32).reshape(32, 32)).save(folder/'cat'/'scan.tiff')
    for in_memory in (True, False):
        with saying('1 of 13 are beyond 8 bits', 'from 0 to 4095', 'window=(0, 4095)'): image_folder(folder, in_memory=in_memory)
        task = image_folder(folder, window=(0, 4095), in_memory=in_memory)
        scan = task.picture(task.folder.counts.sum().sum() and 6)
        assert scan.min() == 0 and scan.max() == 255 and task.rule == PictureRule(32, 'crop', (0, 4095))

# Layouts

def laid(root, *places, n=4):
    "Folders with so many pictures each, or single files"
    for place in places:
        names = [place] if place.endswith('.png') else [f'{place}/{i}.png' for i in range(n)]
        for name in names:
            (root/name).parent.mkdir(parents=True, exist_ok=True)
            noise(name).save(root/name)
    return root

def given(task):
    "Split → the folders that its pictures come from, by their place"
    return {split: {f'{task.files[i].parent.as_posix()}/'.split('/pets/')[1].rstrip('/') for i in numbers.tolist()} for split, numbers in task.splits.items()}

def both_ways(folder, **kwargs):
    "The task over files, after seeing that the one in memory is the same"
    memory, files = (image_folder(folder, 8, in_memory=kept, **kwargs) for kept in (True, False))
    assert all(torch.equal(memory.splits[s], files.splits[s]) for s in files.splits) and torch.equal(memory.labels, files.labels)
    assert str(memory.folder) == str(files.folder)
    return files

@pytest.mark.parametrize('names', [('Training', 'Testing'), ('train', 'test'), ('TRAIN', 'Eval', 'tst'), ('tr', 'dev', 'test_set'),
    ('train_images', 'validation', 'test images'), ('trn', 'Val'), ('Train', 'VALID')], ids='-'.join)
@pytest.mark.parametrize('wrapped', ['', 'archive/', 'archive/pictures/'])
def test_split_folders_in_common_spellings(names, wrapped, tmp_path):
    task = both_ways(laid(tmp_path/'pets', *(f'{wrapped}{name}/{label}' for name in names for label in ('cat', 'dog'))))
    assert task.vocab == ['cat', 'dog']
    from_test = {'valid': names[1:2] if names[1][0] in 'eEdDvV' else (), 'test': [o for o in names if o.lower().startswith(('test', 'tst'))]}
    for split, tops in from_test.items():
        if tops: assert {o.split('/')[-2] for o in given(task)[split]} == set(tops)
    assert {o.split('/')[-2] for o in given(task)['train']} == {names[0]}
    if wrapped: assert f'all pictures lie in {wrapped}' in str(task.folder)

def test_given_test_pictures_stay_out_of_train(tmp_path):
    "The first of the inputs that failed: 12 of 20 training pictures came from Testing"
    folder = laid(tmp_path/'pets', *(f'{split}/{label}' for split in ('Training', 'Testing') for label in ('cat', 'dog')), n=10)
    for in_memory in (False, True):
        task = image_folder(folder, in_memory=in_memory)
        assert task.counts()['test'].tolist() == [10, 10] and task.counts()[['train', 'valid']].sum().sum() == 20

refused_layouts = {
    'inner folders': (('cat/indoor', 'cat/outdoor', 'dog/indoor'), {}, ('2 folders could name the class', 'class_level=0 for 2 classes (cat, dog)')),
    'years': (('cat/2023', 'dog/2024'), {}, ('2 folders could name the class', "class_level='path'")),
    'mixed depths': (('cat', 'dog/big', 'dog/small'), {}, ('1 and 2 folders deep', 'class_level=0 for 2 classes (cat, dog)')),
    'class called train': (('bus', 'train'), {}, ('train could be splits', 'but not bus', 'split_folders=False')),
    'class called train in splits': (('train/bus', 'train/train', 'test/bus', 'test/train'), {}, ('split_folders=True',)),
    'beside classes': (('cat', 'dog', '1.png'), {}, ('beside class folders (1: 1.png)', "ignore='1.png'")),
    'beside splits': (('train/cat', 'train/dog', '1.png'), {}, ('train could be splits', 'pictures lie beside them')),
    'flat': (tuple(f'{label}.{i:03}.png' for label in ('cat', 'dog') for i in range(4)), {}, ('in no class folders', "labels=r'", 'for cat, dog')),
    'flat without names': (('1.png', '2.png'), {}, ('in no class folders', "labels='labels.csv'")),
    'unlabelled test': (('train/cat', 'train/dog', 'test'), {}, ('test has 4 pictures', 'unlabelled', "ignore='test'")),
    'unlabelled test in a folder': (('train/cat', 'train/dog', 'test/unknown'), {}, ('unlabelled', "ignore='test'")),
    'Tiny ImageNet': (('train/n1/images', 'train/n2/images', 'val/images'), {}, ('valid has 4 pictures', "ignore='val'")),
    'test only': (('test/cat', 'test/dog'), {}, ('no train folder, only test', 'never trained on')),
    'wrong level': (('cat/a', 'dog/b'), dict(class_level=2), ('class_level must be', 'got 2')),
    'no such splits': (('cat', 'dog'), dict(split_folders=True), ('at no depth',))}

@pytest.mark.parametrize('case', refused_layouts)
def test_what_can_be_read_in_two_ways_is_refused_with_its_tree(case, tmp_path):
    places, said, parts = refused_layouts[case]
    folder = laid(tmp_path/'pets', *places)
    for in_memory in (True, False):
        with saying('image_folder: ', *parts): image_folder(folder, in_memory=in_memory, **said)
    if case != 'test only':
        with saying('What was seen:\npets/'): image_folder(folder, **said)

resolved_layouts = {
    'outer': (('cat/indoor', 'cat/outdoor', 'dog/indoor'), dict(class_level=0), ['cat', 'dog']),
    'inner': (('cat/indoor', 'cat/outdoor', 'dog/indoor'), dict(class_level=-1), ['indoor', 'outdoor']),
    'path': (('cat/2023', 'dog/2024'), dict(class_level='path'), ['cat/2023', 'dog/2024']),
    'mixed depths': (('cat', 'dog/big', 'dog/small'), dict(class_level=0), ['cat', 'dog']),
    'class called train': (('bus', 'train'), dict(split_folders=False), ['bus', 'train']),
    'class called train in splits': (('train/bus', 'train/train', 'test/bus', 'test/train'), dict(split_folders=True), ['bus', 'train']),
    'beside classes': (('cat', 'dog', '1.png'), dict(ignore='1.png'), ['cat', 'dog']),
    'odd split folders': (('seg_a/cat', 'seg_a/dog', 'seg_b/cat', 'seg_b/dog'), dict(split_folders=dict(seg_a='train', seg_b='test')), ['cat', 'dog']),
    'one folder more': (('cat/images', 'dog/images'), {}, ['cat', 'dog']),
    'splits in classes': (('cat/train', 'cat/test', 'dog/train', 'dog/test'), {}, ['cat', 'dog']),
    'splits twice': (('train/train/cat', 'train/train/dog', 'test/test/cat', 'test/test/dog'), {}, ['cat', 'dog']),
    'unlabelled test': (('train/cat', 'train/dog', 'test'), dict(ignore=('test',)), ['cat', 'dog']),
    'names': (tuple(f'{label}.{i:03}.png' for label in ('cat', 'dog') for i in range(4)), dict(labels=r'(\w+)\.\d+'), ['cat', 'dog']),
    'function': (('images/a', 'images/b'), dict(labels=lambda path: int(path.stem) % 2), ['0', '1'])}

@pytest.mark.parametrize('case', resolved_layouts)
def test_layout_that_is_plain_or_made_plain(case, tmp_path):
    places, said, vocab = resolved_layouts[case]
    task = both_ways(laid(tmp_path/'pets', *places), **said)
    assert task.vocab == vocab and task.folder.counts.sum().sum() == sum(map(len, task.splits.values()))
    assert not any('test' in o for o in given(task)['train'])

def test_empty_class_folder(folder):
    (folder/'bird').mkdir()
    with saying('class folders are empty (1: bird)', "ignore='bird'"): image_folder(folder)
    assert image_folder(folder, ignore='bird').vocab == ['cat', 'dog']

def test_empty_split_folder_is_cut_from_train(tmp_path):
    folder = laid(tmp_path/'pets', 'train/cat', 'train/dog', 'test/cat', 'test/dog')
    (folder/'valid').mkdir()
    assert 'empty folders are passed over: valid' in str(image_folder(folder).folder)

def test_what_is_no_picture_is_counted_and_named(folder, capsys):
    for name in ('notes.txt', 'Thumbs.db', '.hidden.png', 'cat/a.json', 'README'): (folder/name).write_text('x')
    laid(folder, '__MACOSX/cat/1.png')
    noise('plain').save(folder/'cat'/'plain', 'PNG')
    (folder/'dog'/'circle').symlink_to(folder)
    task = both_ways(folder)
    assert task.folder.ignored == {'.txt': 1, 'Thumbs.db': 1, 'hidden': 1, '.json': 1, 'no ending': 1, '__MACOSX': 1, 'links in a circle': 1}
    assert len(task) == 13 and '1 links in a circle' in capsys.readouterr().out

def test_names_of_any_bytes(folder):
    raw = os.fsencode(folder) + b'/caf\xe9'
    os.mkdir(raw)
    for i in range(4): noise(f'{i} bytes').save(os.fsdecode(raw + b'/\xe9%d.png' % i))
    task = both_ways(folder)
    assert task.vocab == ['caf\\xe9', 'cat', 'dog'] and print(task.folder) is None

def test_endings_do_not_depend_on_the_machine(folder, monkeypatch):
    monkeypatch.setattr('mimetypes.types_map', {})
    for i in range(3): noise(f'web {i}').save(folder/'cat'/f'w{i}.WEBP', 'WEBP')
    assert len(image_folder(folder)) == 15

def test_home_is_found(folder, monkeypatch):
    monkeypatch.setenv('HOME', str(folder.parent))
    assert len(image_folder('~/pets')) == len(task_named('~/pets', verbose=False)) == 12

@pytest.mark.parametrize('size', [32., (32, 32), 0, True, '32'])
def test_wrong_size_is_one_line(size, folder):
    with saying('size_px must be'): image_folder(folder, size)

def test_counts_instead_of_shares(folder):
    task = both_ways(folder, valid_frac=4, test_frac=0)
    assert [len(o) for o in task.splits.values()] == [8, 4, 0]

def test_summary_says_what_may_harm(tmp_path, capsys):
    folder = write_pictures(tmp_path/'pets', cat=30, lynx=4)
    task = image_folder(folder, 4)
    said = capsys.readouterr().out
    assert said.strip() == str(task.folder) and task.folder.small_classes == ['lynx']
    for part in ('unbalanced: cat', 'fewer than five pictures: lynx', '32×32; crop to 4×4 px', 'a larger size_px keeps more'): assert part in said
    image_folder(folder, 4, verbose=False)
    assert not capsys.readouterr().out

# Labels from a table

def write_table(folder, text):
    (folder/'labels.csv').write_text(text)
    return dict(labels='labels.csv')

@pytest.fixture
def flat(tmp_path): return laid(tmp_path/'pets', *(f'{i:02}.png' for i in range(12)))

def rows(n=12, ending='.png'): return ''.join(f'{i:02}{ending},{"ab"[i % 2]}\n' for i in range(n))

def test_table_of_files_and_labels(flat):
    for ending in ('.png', ''):
        task = both_ways(flat, **write_table(flat, 'image,breed\n' + rows(ending=ending)))
        assert task.vocab == ['a', 'b'] and task.labels.tolist() == [0, 1] * 6 and not task.folder.left_out

def test_table_as_a_dataframe_with_named_columns(flat):
    frame = pd.DataFrame({'what': [f'{i:02}' for i in range(12)], 'kind': [i % 2 for i in range(12)]})
    assert both_ways(flat, labels=frame, columns=dict(file='what', label='kind')).vocab == ['0', '1']
    with saying('which column', 'file', "columns=dict(file="): image_folder(flat, labels=frame)
    with saying('columns must be', "'no'"): image_folder(flat, labels=frame, columns=dict(file='no'))

def test_rows_and_files_that_do_not_meet_are_counted(flat):
    said = write_table(flat, 'file,label\n' + rows(10) + '99.png,a\n00.png,a\n10.png,\n')
    task = both_ways(flat, **said)
    assert task.folder.left_out == {'in the table without such a file': ['99.png'], 'in the table without a label': ['10.png'], 'not in the table': ['11.png']}
    assert len(task) == 10 and any('say the same again, 1: 00.png' in o for o in task.folder.decided)

def test_contradicting_rows(flat):
    with saying('more than one label', "00.png has ['a', 'b']"): image_folder(flat, **write_table(flat, 'file,label\n' + rows() + '00.png,b\n'))

def test_table_with_splits_and_groups(flat):
    text = 'file,label,split,patient\n' + ''.join(f'{i:02},{"ab"[i % 2]},{("Training", "dev", "testing")[i // 4]},p{i // 4}\n' for i in range(12))
    task = both_ways(flat, **write_table(flat, text))
    assert [o.tolist() for o in task.splits.values()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with saying('groups stand in more than one split', 'p0'): image_folder(flat, **write_table(flat, text.replace('p2', 'p0')))
    with saying('common spelling', 'fold'): image_folder(flat, **write_table(flat, text.replace('dev', 'fold')))

def test_table_that_contradicts_the_split_folders(tmp_path):
    folder = laid(tmp_path/'pets', 'train', 'test')
    text = 'file,label,split\n' + ''.join(f'{s}/{i}.png,{"ab"[i % 2]},{("train", "valid")[i // 2]}\n' for s in ('train', 'test') for i in range(4))
    with saying('another split in the table', 'test/0.png'): image_folder(folder, **write_table(folder, text))
    with saying('could be 2 files'): image_folder(folder, **write_table(folder, 'file,label\n0,a\n1,b\n'))

def test_table_that_is_not_there(flat):
    with saying('no table nowhere.csv'): image_folder(flat, labels='nowhere.csv')
    with saying('none of 1 files'): image_folder(flat, **write_table(flat, 'file,label\nx,a\n'))

@pytest.mark.parametrize('labels, part', [(r'\d+', 'must have a group'), (r'(x)', 'finds nothing in 12 of 12'), ('(', 'regular expression'),
    (lambda path: 1 / 0, 'fails on 00.png'), (lambda path: None, 'finds nothing')])
def test_labels_that_find_nothing(labels, part, flat):
    with saying('image_folder: labels', part): image_folder(flat, labels=labels)

def test_groups_never_cross_splits(tmp_path):
    folder = laid(tmp_path/'pets', *(f'{label}/{burst}_{i}.png' for label in ('cat', 'dog') for burst in range(10) for i in range(3)))
    for groups in (r'(.*)_', lambda path: path.as_posix().split('_')[0]):
        task = both_ways(folder, groups=groups)
        of_split = {split: {str(task.files[i]).rsplit('_', 1)[0] for i in numbers.tolist()} for split, numbers in task.splits.items()}
        assert sum(map(len, of_split.values())) == 20 and all(map(len, of_split.values()))
    with saying('no test split', 'has only 1 groups'): image_folder(folder, groups=lambda path: path.parent.name)

def test_file_task_takes_what_a_task_takes(both, pets):
    loaders = both[1].dls(4, augment=False, num_workers=0)
    path = both[1].files[3]
    same = [path, str(path), 3, path.read_bytes(), Image.open(path), np.array(Image.open(path))]
    batches = [loaders.test_dl([o]).one_batch()[0] for o in same]
    assert all(torch.equal(o, batches[0]) for o in batches)
    assert torch.allclose(both[0].dls(4, augment=False).test_dl([3]).one_batch()[0], batches[0], atol=1e-5)

# Any tree

PARTS = 'cat', 'dog', 'train', 'Testing', 'val', 'images'
trees = st.lists(st.tuples(st.lists(st.sampled_from(PARTS), max_size=3), st.integers(0, 5)), min_size=1, max_size=24, unique_by=str)

def holds_for_any_tree(tree, tmp_path_factory):
    root = tmp_path_factory.mktemp('tree')/'pets'
    root.mkdir()
    for parts, i in tree: laid(root, '/'.join([*parts, f'{i}.png']))
    try: task = image_folder(root, 4, in_memory=False, verbose=False)
    except ValueError as error:
        assert 'image_folder: ' in str(error) or 'Task pets' in str(error), error
        return
    numbers = torch.cat(list(task.splits.values())).tolist()
    assert sorted(numbers) == list(range(len(tree))) and task.folder.counts.sum().sum() == len(tree)
    in_test = lambda i: 'Testing' in task.files[i].relative_to(root).parts
    assert not any(map(in_test, task.splits['train'].tolist())) or task.vocab == sorted({'Testing', *task.vocab})

@some(25)
@given_(tree=trees)
def test_any_tree_is_a_task_or_an_error(tree, tmp_path_factory): holds_for_any_tree(tree, tmp_path_factory)

@pytest.mark.nightly
@some(1500)
@given_(tree=trees)
def test_many_trees(tree, tmp_path_factory): holds_for_any_tree(tree, tmp_path_factory)

@pytest.mark.parametrize('in_memory', [True, False])
def test_picture_under_two_labels_is_named(in_memory, tmp_path):
    folder = write_folder(tmp_path/'pets', 20)
    shutil.copy(sorted((folder/'cat').iterdir())[0], folder/'dog'/'also.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # it may stand in another split, too
        task = image_folder(folder, in_memory=in_memory, cache=tmp_path/'cache', verbose=False)
    assert '1 pictures have another label elsewhere' in str(task.folder) and 'dog/also.png is cat/' in str(task.folder)

def test_how_splits_were_drawn_is_said(tmp_path):
    folder = write_folder(tmp_path/'pets', 40)
    def said(**how): return str(image_folder(folder, cache=tmp_path/'cache', verbose=False, **how).folder)
    assert 'test (20%) and valid (10%) drawn at random, within each class, seed 0' in said()
    assert 'valid (4 pictures) drawn at random' in said(valid_frac=4, test_frac=0) and 'no test split, as was asked' in said(test_frac=0)
    assert 'groups whole' in said(groups=r'(\d)\.')

def test_groups_are_cut_where_few_are_left(tmp_path):
    "Ten groups of all classes, of which two hold most of the pictures"
    folder = write_folder(tmp_path/'pets', 60)
    task = image_folder(folder, groups=r'(\d)\d?\.', cache=tmp_path/'cache', verbose=False)
    group = [Path(task.picture_name(i)).name[0] for i in range(len(task))]
    in_splits = [{group[i] for i in numbers.tolist()} for numbers in task.splits.values()]
    assert all(in_splits) and sum(map(len, in_splits)) == len(set(group))

def test_groups_nearest_to_the_shares_that_were_asked(tmp_path):
    "Three groups a class, of 10, 10 and 5"
    folder = write_folder(tmp_path/'pets', 50)
    task = image_folder(folder, groups=lambda path: f'{path.parent.name} {int(path.stem) // 20}',
        cache=tmp_path/'cache', verbose=False)
    sizes = [len(numbers) for numbers in task.splits.values()]
    assert sizes[0] >= 20 and min(sizes[1:]) == 10 and 'so test ' in str(task.folder)
