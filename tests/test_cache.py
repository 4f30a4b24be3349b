"Pictures decoded once: what a killed process, a full disk, a second process and a changed folder leave; and folders too large for memory"
import os, shutil, subprocess, sys, time, warnings
import numpy as np, pytest, torch
from PIL import Image
from helpers import ROOT
from nbtransfer import tasks
from nbtransfer.networks import resnet9
from nbtransfer.pretraining import Quiet, task_learner
from nbtransfer.tasks import FileTask, Task, image_folder, inference_card
from nbtransfer.weights import save_weights

N, SIZE = 24, 16

@pytest.fixture
def folder(tmp_path):
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

def pixel_files(cache): return [o for o in files(cache) if o.endswith('.u8')]

def read(folder, cache, **kwargs): return image_folder(folder, SIZE, cache=cache, **kwargs)

def right(task, folder):
    "Whether a task's pictures are those of the files, each decoded here"
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.png'))
    wanted = np.stack([tasks._scaled(Image.open(folder/n), SIZE) for n in names])
    return np.array_equal(task.images.numpy(), wanted) and [task.vocab[c] for c in task.labels] == [n.split('/')[0] for n in names]

def settle():
    "Make all files old enough for their times to be trusted"
    time.sleep(2.1)

@pytest.fixture
def no_decoding(monkeypatch):
    def forbid(name):
        def fail(*args, **kwargs): raise AssertionError(f'{name} was called')
        monkeypatch.setattr(tasks, name, fail)
    return forbid

def test_second_reading_opens_no_picture(folder, cache, no_decoding):
    settle()
    first = read(folder, cache)
    for name in ('_content', '_decode', 'write_whole'): no_decoding(name)
    again = read(folder, cache)
    assert right(first, folder) and torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert all(torch.equal(first.splits[s], again.splits[s]) for s in first.splits)

def test_pixels_stay_in_the_file_until_they_are_used_and_cannot_change_it(folder, cache):
    task = read(folder, cache)
    file = cache/pixel_files(cache)[0]
    before = file.read_bytes()
    assert len(before) == N * SIZE**2 * 3 == task.images.nbytes
    task.images[0] = 0
    assert file.read_bytes() == before and not torch.equal(read(folder, cache).images[0], task.images[0])

def test_same_content_elsewhere_is_not_decoded(folder, cache, no_decoding):
    read(folder, cache)
    shutil.copytree(folder, folder.with_name('copy'))
    no_decoding('_decode')
    assert right(read(folder.with_name('copy'), cache), folder)
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
def test_changed_folder_is_noticed(change, settled, folder, cache):
    if settled: settle()
    read(folder, cache)
    change(folder)
    assert right(read(folder, cache), folder)
    assert len(pixel_files(cache)) == 1, 'the old pixels are gone'

def test_other_rules_are_other_entries(folder, cache):
    a, b = read(folder, cache), image_folder(folder, 8, cache=cache)
    assert b.images.shape == (N, 8, 8, 3) and torch.equal(read(folder, cache).images, a.images)
    assert len(pixel_files(cache)) == 2
    shutil.rmtree(folder)
    for f in (cache/'folders').iterdir(): os.utime(f, (0, 0))   # gone for long
    other = folder.with_name('other')
    for i in range(12):
        (other/f'{i % 2}').mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (9, 9), (i, 0, 0)).save(other/f'{i % 2}'/f'{i}.png')
    read(other, cache)
    assert len(pixel_files(cache)) == 1, 'pixels of a folder that is gone are swept'

def test_files_that_are_not_ours_stay(folder, cache):
    cache.mkdir()
    for name in ('notes.json', 'a.u8', '.hidden'): (cache/name).write_text('mine')
    read(folder, cache)
    assert {'notes.json', 'a.u8', '.hidden'} <= set(files(cache))

@pytest.mark.parametrize('damage', [lambda f: f.write_bytes(f.read_bytes()[:-1]), lambda f: f.write_bytes(b''), lambda f: f.unlink(),
    lambda f: f.with_suffix('.json').write_text('{'), lambda f: f.with_suffix('.json').unlink(),
    lambda f: [o.write_text('{}') for o in f.parent.glob('folders/*')], lambda f: [o.write_text('') for o in f.parent.glob('folders/*')]],
    ids=['cut', 'empty', 'gone', 'bad note', 'no note', 'bad record', 'empty record'])
def test_damaged_entry_is_made_again(damage, folder, cache):
    settle()
    read(folder, cache)
    damage(cache/pixel_files(cache)[0])
    assert right(read(folder, cache), folder)

run = '''
import os, signal, sys
from pathlib import Path
from nbtransfer import tasks
{before}
tasks.image_folder(sys.argv[1], {size}, cache=sys.argv[2])
'''

def in_another_process(folder, cache, before='', **kwargs):
    code = run.format(before=before, size=SIZE)
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, str(folder), str(cache)], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, **kwargs)

killed_at = {
    'in the middle of the pixels': 'read, seen = tasks._read, []\ndef die(path, *args):\n    seen.append(path)\n    if len(seen) == 13: os.kill(os.getpid(), signal.SIGKILL)\n    return read(path, *args)\ntasks._read = die',
    'before the first sync': 'os.fsync = lambda f: os.kill(os.getpid(), signal.SIGKILL)',
    'before the second sync': 'n = []\nsync = os.fsync\ndef die(f):\n    n.append(f)\n    if len(n) == 2: os.kill(os.getpid(), signal.SIGKILL)\n    sync(f)\nos.fsync = die',
    'before the pixels get their name': 'replace = Path.replace\ndef die(self, to):\n    if str(to).endswith(".u8"): os.kill(os.getpid(), signal.SIGKILL)\n    return replace(self, to)\nPath.replace = die',
    'after the pixels got their name': 'replace = Path.replace\ndef die(self, to):\n    replace(self, to)\n    if str(to).endswith(".u8"): os.kill(os.getpid(), signal.SIGKILL)\nPath.replace = die',
    'before the record gets its name': 'replace = Path.replace\ndef die(self, to):\n    if "folders" in str(to): os.kill(os.getpid(), signal.SIGKILL)\n    return replace(self, to)\nPath.replace = die',
    'before sweeping': 'tasks._sweep = lambda cache: os.kill(os.getpid(), signal.SIGKILL)'}

@pytest.mark.parametrize('moment', killed_at)
def test_killed_process_leaves_nothing_that_looks_whole(moment, folder, cache):
    process = in_another_process(folder, cache, killed_at[moment])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -9, errors
    assert right(read(folder, cache), folder)
    assert len(pixel_files(cache)) == 1 and len(files(cache)) <= 4, files(cache)   # pixels, note, record and lock

def test_two_processes_at_once_decode_once(folder, cache, tmp_path):
    count = f'decode = tasks._decode\ndef counted(*args):\n    Path({str(tmp_path)!r}, str(os.getpid())+".decoded").touch()\n    tasks.time.sleep(2)\n    return decode(*args)\ntasks._decode = counted'
    both = [in_another_process(folder, cache, count) for _ in range(2)]
    printed = [o.communicate(timeout=120) for o in both]
    assert [o.returncode for o in both] == [0, 0], printed
    assert len(list(tmp_path.glob('*.decoded'))) == 1 and right(read(folder, cache), folder)
    assert sum('waits for another process' in out for out, _ in printed) <= 1

def test_full_disk_is_said_before_the_first_byte(folder, cache, monkeypatch):
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=N * SIZE**2 * 3 - 1))
    with pytest.raises(OSError, match='MiB of decoded pictures.*No space left.*NBTRANSFER_CACHE'): read(folder, cache)
    assert files(cache) in ([], ['lock'])

def test_disk_that_fills_up_meanwhile(folder, cache):
    "A limit on the size of files is a disk that ends in the middle of the pixels"
    limit = f'import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({N * SIZE**2 * 3 // 2},) * 2)'
    process = in_another_process(folder, cache, limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and 'of decoded pictures have to be written in' in errors and 'NBTRANSFER_CACHE' in errors
    assert files(cache) in ([], ['lock'])
    assert right(read(folder, cache), folder)

@pytest.mark.skipif(os.name == 'nt' or not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_folder_that_cannot_be_written(folder, cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(OSError, match='NBTRANSFER_CACHE'): read(folder, cache)

def test_cache_that_is_a_file(folder, cache):
    cache.write_text('mine')
    with pytest.raises(OSError, match='NBTRANSFER_CACHE'): read(folder, cache)
    assert cache.read_text() == 'mine'

def test_nothing_is_written_outside_the_cache_folder(folder, tmp_path):
    home, work, cache = (tmp_path/o for o in ('home', 'work', 'home/.fastai/nbtransfer'))
    for o in (home, work): o.mkdir()
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob('*') if p.is_file()}
    env = {k: v for k, v in os.environ.items() if k not in ('NBTRANSFER_CACHE', 'FASTAI_HOME')}
    code = ('import sys\nfrom nbtransfer.tasks import image_folder\nfrom nbtransfer import tasks\n'
            f'task = image_folder(sys.argv[1], {SIZE})\nprint(len(task.images))')
    done = subprocess.run([sys.executable, '-c', code, str(folder)], cwd=work, capture_output=True, text=True,
        env={**env, 'HOME': str(home), 'USERPROFILE': str(home), 'PYTHONPATH': str(ROOT), 'PYTHONDONTWRITEBYTECODE': '1',
             'MPLCONFIGDIR': str(tmp_path/'mpl'), 'XDG_CACHE_HOME': str(tmp_path/'xdg')})
    assert done.returncode == 0, done.stderr
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob('*') if p.is_file()}
    assert not files(work) and len(pixel_files(cache)) == 1
    assert all(o.startswith('.fastai/nbtransfer/') for o in files(home)), files(home)

def test_what_is_wrong_is_remembered(folder, cache, no_decoding):
    (folder/'cat'/'bad.png').write_bytes(b'no')
    settle()
    with pytest.raises(ValueError, match='1 of 25 files cannot be decoded: cat/bad.png'): read(folder, cache)
    no_decoding('_decode')
    with pytest.raises(ValueError, match='cat/bad.png'): read(folder, cache)
    with pytest.warns(UserWarning, match='left out 1 of 25'): task = read(folder, cache, skip_bad=True)
    (folder/'cat'/'bad.png').unlink()
    assert right(task, folder)

def test_link_to_nothing_is_unreadable(folder, cache):
    (folder/'cat'/'zz.png').symlink_to(folder/'nowhere.png')
    with pytest.raises(ValueError, match='1 of 25 files cannot be decoded: cat/zz.png'): read(folder, cache)
    with pytest.warns(UserWarning, match='cat/zz.png'): assert len(read(folder, cache, skip_bad=True).images) == N

def test_folder_that_is_away_for_a_while_keeps_its_pixels(folder, cache, no_decoding):
    settle()
    read(folder, cache)
    folder.rename(folder.with_name('away'))
    read(folder.with_name('away'), cache, seed=1)
    folder.with_name('away').rename(folder)
    no_decoding('_decode')
    assert right(read(folder, cache), folder)

def test_trouble_that_passes_is_not_blamed_on_the_file(folder, cache, monkeypatch):
    def too_many(path): raise OSError(24, 'Too many open files')
    with monkeypatch.context() as patch:
        patch.setattr(tasks.Image, 'open', too_many)
        with pytest.raises(RuntimeError, match='cannot be read now.*Too many open files.*try again'): read(folder, cache)
    assert right(read(folder, cache), folder)

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
        with Image.open(tmp_path/'photos'/name) as im: whole = tasks._scaled(im, 32).astype(int)
        assert np.abs(task.images[k].numpy() - whole).mean() < 2, 'a reduced decoding looks the same'

# Too large for memory

@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(tasks, 'free_memory', lambda device=None: 2 * N * SIZE**2 * 3 - 1)

def test_folder_that_does_not_fit_stays_in_its_files_and_says_so(folder, cache, small_memory):
    with pytest.warns(UserWarning, match='over half.*stay in their files.*in_memory=True'): task = read(folder, cache)
    assert isinstance(task, FileTask) and not cache.exists()
    assert not isinstance(read(folder, cache, in_memory=True), FileTask)

@pytest.fixture
def both(folder, cache): return read(folder, cache), read(folder, cache, in_memory=False)

def test_both_kinds_of_task_are_the_same_task(both):
    memory, file = both
    assert repr(memory) == repr(file) and memory.vocab == file.vocab and torch.equal(memory.labels, file.labels)
    assert all(torch.equal(memory.splits[s], file.splits[s]) for s in memory.splits) and memory.counts().equals(file.counts())
    for a, b in zip(memory.stats, file.stats): assert np.allclose(a, b, atol=1e-6)
    for a, b in zip(memory.dls(4, augment=False), file.dls(4, augment=False, num_workers=0)):
        (x, y), (u, v) = ((torch.cat(o) for o in zip(*dl.new(shuffle=False, drop_last=False))) for dl in (a, b))
        assert torch.equal(y, v) and torch.allclose(x, u, atol=1e-5)

def test_file_task_trains_and_shows(both, tmp_path):
    memory, file = both
    few = file.subset(3, seed=1)
    assert few.counts()['train'].tolist() == [3, 3] and torch.equal(few.splits['train'], memory.subset(3, seed=1).splits['train'])
    learn = task_learner(few, resnet9(2, width=2), bs=4, cbs=[Quiet()])
    learn.fit(1)
    assert learn.predict(file.files[0])[0] in file.vocab and len(learn.validate(2)) == 2
    learn.dls.show_batch(max_n=2)
    assert inference_card(learn.dls).keys() == {'vocab', 'size_px', 'mean', 'std'}
    save_weights(learn, tmp_path/'a.safetensors')

def test_file_task_orders_by_seed(both):
    def order(seed):
        train = both[1].dls(4, augment=False, seed=seed, num_workers=0).train
        return [torch.cat([y for _, y in train]).tolist() for _ in range(3)]
    assert order(1) == order(1) != order(2) and len({tuple(o) for o in order(3)}) > 1

def test_file_task_finds_bad_files_and_twins_first(folder, cache):
    shutil.copy(folder/'cat'/'00.png', folder/'dog'/'98.png')
    for seed in range(20):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            task = read(folder, cache, in_memory=False, seed=seed)
        if any('left out 1' in str(o.message) for o in said): break
    else: raise AssertionError('the twins were never in two splits')
    assert sum(map(len, task.splits.values())) == N
    (folder/'cat'/'bad.png').write_bytes(b'no')
    with pytest.raises(ValueError, match='cat/bad.png'): read(folder, cache, in_memory=False)
    (folder/'cat'/'bad.png').unlink()
    Image.new('L', (20, 20)).save(folder/'cat'/'grey.png')
    with pytest.raises(ValueError, match='1-channel: cat/grey.png'): read(folder, cache, in_memory=False)
    assert len(read(folder, cache, in_memory=False, convert=True).files) == N + 2

def test_wrong_batch_size_of_a_file_task(both):
    with pytest.raises(ValueError, match='bs must be 1'): both[1].dls(0)
    assert isinstance(both[0], Task)
