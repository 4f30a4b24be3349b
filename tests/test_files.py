"Files: written whole or not at all, one process at a time, the same bits, and one rule by which a picture is read"
import datetime, errno, hashlib, io, json, os, signal
from pathlib import Path, PureWindowsPath
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from forked import Forked, die, needs_fork, wait_for
from helpers import PACKAGE, saying
from nbtransfer import files
from nbtransfer.files import (cache_folder, check_facts, digest, hold_lock, package_folder, read_picture, read_pictures, seal,
    write_whole)

def tree(folder): return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}

# Where files go

def test_cache_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv('NBTRANSFER_CACHE', str(tmp_path/'mine'))
    assert cache_folder() == tmp_path/'mine' and not cache_folder().exists()
    monkeypatch.delenv('NBTRANSFER_CACHE')
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'fastai'))
    assert cache_folder() == tmp_path/'fastai'/'nbtransfer'
    monkeypatch.setenv('FASTAI_HOME', '~/fastai')
    assert cache_folder() == Path.home()/'fastai'/'nbtransfer'
    monkeypatch.delenv('FASTAI_HOME')
    assert cache_folder() == Path.home()/'.fastai'/'nbtransfer'

def test_package_folder_is_beside_the_modules(): assert package_folder('weights') == PACKAGE/'weights'

# Whole or not at all

@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt()], ids=['full', 'Ctrl-C'])
@pytest.mark.parametrize('when', ['while writing', 'at the sync'])
def test_error_changes_nothing(error, when, tmp_path, monkeypatch):
    file = tmp_path/'new'/'a.txt'
    with write_whole(file) as part: part.write(b'old')
    before = tree(tmp_path)
    def stop(number): raise error
    for name in ('a.txt', 'b.txt'):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            if when == 'at the sync': patch.setattr(os, 'fsync', stop)
            with write_whole(file.with_name(name)) as part:
                part.write(b'new')
                if when == 'while writing': raise error
    assert tree(tmp_path) == before == {'new/a.txt': b'old'}

def test_folder_of_the_same_name_is_an_error_and_stays(tmp_path):
    (tmp_path/'a').mkdir()
    with pytest.raises(OSError):
        with write_whole(tmp_path/'a') as part: part.write(b'new')
    assert [path.name for path in tmp_path.iterdir()] == ['a'] and (tmp_path/'a').is_dir()

@needs_fork
@pytest.mark.process
@pytest.mark.parametrize('moment', ['before the rename', 'after it'])
def test_killed_writer_leaves_the_old_file_or_the_new_one(moment, tmp_path):
    file = tmp_path/'a'/'a.txt'
    with write_whole(file) as part: part.write(b'old')
    def run():
        replace = Path.replace
        def killed(self, to):
            if moment == 'after it': replace(self, to)
            die()
        Path.replace = killed
        with write_whole(file) as part: part.write(b'new')
    code, printed = Forked(run, tmp_path/'log').end()
    assert code == -signal.SIGKILL, printed
    assert file.read_bytes() == (b'old' if moment == 'before the rename' else b'new')
    with write_whole(file) as part: part.write(b'newer')   # whatever the dead one left is in nobody's way
    assert file.read_bytes() == b'newer'

@needs_fork
@pytest.mark.process
def test_two_writers_do_not_write_into_each_others_file(tmp_path):
    file, ready = tmp_path/'a.bin', tmp_path/'ready'
    def run():
        with write_whole(file) as part:
            part.write(b'x' * 1000)
            ready.touch()
            part.flush()
    with write_whole(file) as part:
        part.write(b'y' * 500)
        code, printed = Forked(run, tmp_path/'log').end()
        assert code == 0 and ready.exists() and file.read_bytes() == b'x' * 1000, printed
        part.write(b'y' * 500)
    assert file.read_bytes() == b'y' * 1000

# One at a time

def test_lock_is_refused_and_given_back(tmp_path):
    lock = tmp_path/'deep'/'lock'
    with hold_lock(lock):
        with saying('another process holds', 'lock', error=BlockingIOError):
            with hold_lock(lock): pass
    with pytest.raises(KeyError):
        with hold_lock(lock): raise KeyError('of the work, not of the lock')
    with hold_lock(lock): pass

@needs_fork
@pytest.mark.process
def test_lock_of_a_killed_process_is_free(tmp_path, capsys):
    lock, held = tmp_path/'lock', tmp_path/'held'
    def run():
        with hold_lock(lock):
            held.touch()
            signal.pause()
    process = Forked(run, tmp_path/'log')
    wait_for(held.exists)
    with saying('another process holds', error=BlockingIOError):
        with hold_lock(lock): pass
    os.kill(process.pid, signal.SIGKILL)
    assert process.end()[0] == -signal.SIGKILL
    with hold_lock(lock, 'waits'): pass
    assert capsys.readouterr().out == ''

# The same bits

def test_digest_is_of_names_types_shapes_and_numbers_in_order():
    "By hand: it is in files that were written before, and must not change"
    tensors = dict(b=torch.tensor([[1., 2.]]), a=torch.tensor([3, 4]), none=torch.zeros(0, 3))
    sha = hashlib.sha256()
    sha.update(b'a torch.int64 (2,)' + np.array([3, 4]).tobytes())
    sha.update(b'b torch.float32 (1, 2)' + np.array([1, 2], np.float32).tobytes())
    sha.update(b'none torch.float32 (0, 3)')
    assert digest(tensors) == sha.hexdigest() == digest(dict(reversed(tensors.items())))

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.bool, torch.float16, torch.complex64, torch.uint8])
def test_digest_of_any_type_and_layout(dtype):
    x = (torch.rand(4, 3, 2) * 9).to(dtype)
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_(dtype.is_floating_point)
    assert digest(dict(x=x)) == digest(dict(x=turned)) != digest(dict(x=x.flatten()))
    assert digest(dict(x=torch.tensor(0.))) != digest(dict(x=torch.tensor(-0.))), 'bits, not values'

def test_seal_leaves_itself_out_and_nothing_else():
    card = dict(a=1, b=[1, 2], c={'d': None})
    assert seal(card) == hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    assert seal({**card, 'card_sha256': seal(card)}) == seal(card) == seal(dict(reversed(card.items())))
    assert len({seal(card), seal({**card, 'a': 2}), seal({**card, 'sha256': ''}), seal({'a': 1}), seal([card])}) == 5
    assert seal(['x', 1]) == hashlib.sha256(b'["x", 1]').hexdigest()

# What a card can hold

converted = {
    'numpy scalar': (np.float32(.5), .5), 'numpy bool': (np.bool_(True), True), 'numpy word': (np.str_('cat'), 'cat'),
    'numpy date': (np.datetime64('2026-12-01'), '2026-12-01'), 'array': (np.arange(3), [0, 1, 2]),
    'tensor': (torch.tensor([[1., 2.]]), [[1., 2.]]), 'torch scalar': (torch.tensor(3), 3), 'dtype': (torch.float16, 'torch.float16'),
    'column': (pd.Series([1, 2]), [1, 2]), 'tuple': ((1, np.int8(2)), [1, 2]), 'set': ({'b', 'a'}, ['a', 'b']), 'range': (range(2), [0, 1]),
    'dict': ({np.int64(1): np.str_('a')}, {'1': 'a'}), 'none': (None, None), 'path': (Path('/home/ann/pets'), 'pets'),
    'path within': (dict(a=[Path('/home/ann/pets')]), dict(a=['pets'])), 'Windows': (PureWindowsPath('C:\\Users\\Ann\\pets'), 'pets'),
    'day': (datetime.date(2026, 12, 1), '2026-12-01'), 'moment': (datetime.datetime(2026, 12, 1, 9, 30), '2026-12-01T09:30:00')}

@pytest.mark.parametrize('kind', converted)
def test_fact_is_converted(kind):
    value, expected = converted[kind]
    found = check_facts(fact=value)['fact']
    assert found == expected and type(found) is type(expected)
    assert json.loads(json.dumps(found)) == found

refused_facts = {'class': (torch.nn.ReLU, 'the class ReLU'), 'function': (len, 'builtin_function'), 'object': (object(), 'object'),
    'bytes': (b'a', 'bytes'), 'table': (pd.DataFrame(dict(a=[1])), 'DataFrame'), 'duration': (datetime.timedelta(1), 'timedelta'),
    'complex': (1j, 'complex'), 'within': (dict(a=[torch.nn.ReLU]), '`fact`', "['a'][0]", 'the class ReLU')}

@pytest.mark.parametrize('kind', refused_facts)
def test_fact_is_refused(kind):
    value, *parts = refused_facts[kind]
    with saying('check_facts: `fact`', *[part for part in parts if part != '`fact`'], error=TypeError): check_facts(fact=value)

def test_facts_that_are_too_much_for_a_card():
    for value in (torch.zeros(100_001), np.zeros((1000, 1000))):
        with saying('`fact`', '100,000 numbers'): check_facts(fact=value)
    with saying('over a megabyte', 'shorten `long`'): check_facts(long='x' * 2**20, short='y')
    assert check_facts(fact=torch.zeros(100_000))

local = {
    '/home/ann/pets': 'pets', '~/pets/': 'pets', '~ann/my/pets': 'pets', 'file:///home/ann/pets': 'pets',
    'C:\\Users\\Ann\\pets': 'pets', '\\\\server\\share\\pets': 'pets',
    "--target '/home/ann/my pets' --out=/tmp/out/": "--target 'my pets' --out=out",
    'trained on /data/pets, twice': 'trained on pets, twice'}

@pytest.mark.parametrize('text', local)
def test_local_path_is_cut(text): assert check_facts(fact=text, facts=[text]) == dict(fact=local[text], facts=[local[text]])

@pytest.mark.parametrize('text', ['owner/name', 'timm/resnet18', 'https://huggingface.co/me/net', 'see http://a.b:80/c/d', 'and/or', 'a / b',
    '3 km/s', r'(\d+)_\w+', 'runs/pets', '', '.', '~', '2026/12/01'])
def test_other_words_are_left_alone(text): assert check_facts(fact=text)['fact'] == text

def test_path_with_blanks_is_cut_where_it_is_one(tmp_path):
    folder = tmp_path/'my pets'
    folder.mkdir()
    assert check_facts(fact=str(folder))['fact'] == 'my pets'

def test_classes_keep_their_slashes():
    "Open Images calls its classes /m/01yrx and the like"
    assert check_facts(vocab=['/m/01yrx', np.int64(3)]) == dict(vocab=['/m/01yrx', 3])

# Pictures

def noise(*shape): return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

@pytest.mark.parametrize('turn', range(1, 9))
def test_every_exif_orientation_comes_upright(turn, tmp_path):
    upright = Image.fromarray(noise(24, 32, 3))
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = upright.transpose(undo[turn]) if turn in undo else upright
    stored.save(tmp_path/'a.png', exif=exif)
    assert np.array_equal(read_picture(tmp_path/'a.png', PictureRule(24)).pixels, np.asarray(upright.crop((4, 0, 28, 24))))

def test_same_picture_however_it_comes(tmp_path):
    pixels = noise(20, 20, 3)
    Image.fromarray(pixels).save(tmp_path/'a.png')
    same = [tmp_path/'a.png', str(tmp_path/'a.png'), pixels, Image.fromarray(pixels), torch.from_numpy(pixels)]
    read = read_pictures(same, 20)
    assert read.dtype == torch.uint8 and all(np.array_equal(picture, pixels) for picture in read)
    read[0] = 0   # a tensor of its own
    assert read_pictures([], 8).shape == (0, 8, 8, 3)

def test_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, monkeypatch):
    small = Image.fromarray(noise(6, 8, 3)).resize((800, 600), Image.Resampling.BICUBIC)
    small.save(tmp_path/'a.jpg', quality=95)
    sizes, fit = [], files.ImageOps.fit
    def noted(image, size):
        sizes.append(image.size)
        return fit(image, size)
    monkeypatch.setattr(files.ImageOps, 'fit', noted)
    drafted = read_picture(tmp_path/'a.jpg', 32, False)
    whole = read_pictures([Image.open(tmp_path/'a.jpg')], 32)[0]
    assert sizes == [(100, 75), (800, 600)], 'never below twice what is needed'
    assert np.abs(drafted.astype(int) - whole.numpy()).mean() < 2

@pytest.mark.parametrize('error', [OSError(errno.EMFILE, 'Too many open files'), OSError(errno.ENOMEM, 'Cannot allocate memory')])
def test_what_is_not_the_files_fault_is_raised(error, tmp_path, monkeypatch):
    def fail(path): raise error
    monkeypatch.setattr(files.Image, 'open', fail)
    with saying('a.png cannot be read now', error.strerror, 'try again', error=RuntimeError):
        read_picture(tmp_path/'a.png', 32, True)

def test_file_that_is_no_picture_is_named(tmp_path):
    out = io.BytesIO()
    Image.fromarray(noise(40, 40, 3)).save(out, 'png')
    for name, data in dict(text=b'no', cut=out.getvalue()[:-2000], empty=b'').items():
        (tmp_path/f'{name}.png').write_bytes(data)
        assert read_picture(tmp_path/f'{name}.png', 32, True) == 'unreadable'
        with saying(f'{name}.png is no picture, or is cut short'): read_pictures([tmp_path/f'{name}.png'], 32)
    with saying('none.png is no picture'): read_pictures([tmp_path/'none.png'], 32)
