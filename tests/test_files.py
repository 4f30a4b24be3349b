"Files: written whole or not at all, one process at a time, the same bits, and one rule by which a picture is read"
import datetime, errno, hashlib, io, json, os, re, shutil, signal, struct, zlib
from dataclasses import asdict
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from unittest import mock
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.core import PILImage, TensorImage
from hypothesis import given, strategies as st
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from forked import Forked, die, needs_fork, wait_for
from helpers import PACKAGE, saying, some
from nbtransfer import files
from nbtransfer.files import (FITS, PICTURE_ENDINGS, PictureRule, Reading, cache_folder, check_facts, describe_kinds, digest,
    hold_lock, is_picture_file, package_folder, printable, read_picture, read_pictures, seal, write_whole)

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

def photo(height=40, width=60):
    "Smooth, so that formats that lose something lose little"
    return Image.fromarray(noise(height // 8, width // 8, 3)).resize((width, height), Image.Resampling.BICUBIC)

def saved(image, form, **kwargs):
    "A file's bytes"
    out = io.BytesIO()
    frames = [frame.copy() for frame in kwargs.pop('append_images', [])]   # Pillow leaves a save's options on the image
    if frames: kwargs['append_images'] = frames
    image.copy().save(out, form, **kwargs)
    return out.getvalue()

def png16(values):
    "A PNG with 16 bits a channel, of values `(h,w,channels)`, which Pillow cannot write"
    height, width, n = values.shape
    def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    head = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[n], 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

def tif16(values, order, compress=False):
    "A TIFF with 16 bits a channel, of values `(h,w,channels)`, in one of the two byte orders"
    height, width, n = values.shape
    pixels = values.astype(f'{order}u2').tobytes()
    if compress: pixels = zlib.compress(pixels)
    place = 8 + len(pixels) + len(pixels) % 2
    entries = [(256, 3, width), (257, 3, height), (258, 3, place), (259, 3, 8 if compress else 1), (262, 3, 2), (273, 4, 8), (277, 3, n),
        (278, 3, height), (279, 4, len(pixels))]
    if n == 4: entries.append((338, 3, 2))
    table = struct.pack(f'{order}H', len(entries))
    for tag, kind, value in entries:
        count = n if tag == 258 else 1
        held = struct.pack(f'{order}I', value) if kind == 4 or tag == 258 else struct.pack(f'{order}HH', value, 0)
        table += struct.pack(f'{order}HHI', tag, kind, count) + held
    head = struct.pack(f'{order}2sHI', b'II' if order == '<' else b'MM', 42, place + 2 * n)
    return head + pixels.ljust(place - 8, b'\0') + struct.pack(f'{order}{n}H', *[16] * n) + table + bytes(4)

def plain_reading(image, rule): return read_picture(saved(image.convert('RGB'), 'PNG'), rule).pixels

PHOTO = photo()
FRAMES = dict(save_all=True, append_images=[PHOTO.rotate(180)])
HALF = PHOTO.copy()
HALF.putalpha(Image.fromarray(np.repeat(np.arange(60, dtype=np.uint8)[None] // 30 * 255, 40, 0)))
ON_WHITE = Image.alpha_composite(Image.new('RGBA', HALF.size, 'white'), HALF)
GREY = PHOTO.convert('L')
PALETTE = PHOTO.quantize(16)
CLEAR_INDEX = PALETTE.copy()
CLEAR_INDEX.info['transparency'] = 300   # of no pixel

kinds_of_file = {   # bytes, kind, the picture it shows, grey levels by which it may differ
    'jpg': (saved(PHOTO, 'JPEG', quality=95), 'RGB', PHOTO, 20),
    'progressive jpg': (saved(PHOTO, 'JPEG', quality=95, progressive=True), 'RGB', PHOTO, 20),
    'grey jpg': (saved(GREY, 'JPEG', quality=95), 'grey', GREY, 20),
    'CMYK jpg': (saved(PHOTO.convert('CMYK'), 'JPEG', quality=95), 'CMYK', PHOTO, 20),
    'mpo': (saved(PHOTO, 'MPO', quality=95, **FRAMES), 'RGB', PHOTO, 20),   # a phone's JPEG with a small one for looking through
    'png': (saved(PHOTO, 'PNG'), 'RGB', PHOTO, 0),
    'apng': (saved(PHOTO, 'PNG', **FRAMES), 'several frames', PHOTO, 0),
    'grey png': (saved(GREY, 'PNG'), 'grey', GREY, 0),
    'grey with a colour that is clear': (saved(GREY, 'PNG', transparency=256), 'grey, transparent', GREY, 0),
    'black and white png': (saved(PHOTO.convert('1'), 'PNG'), 'grey', PHOTO.convert('1'), 0),
    'palette png': (saved(PALETTE, 'PNG'), 'palette', PALETTE, 0),
    'transparent png': (saved(HALF, 'PNG'), 'transparent', ON_WHITE, 0),
    'grey transparent png': (saved(HALF.convert('LA'), 'PNG'), 'grey, transparent', ON_WHITE.convert('L'), 1),
    'gif': (saved(PALETTE, 'GIF'), 'palette', PALETTE, 0),
    'moving gif': (saved(PALETTE, 'GIF', save_all=True, append_images=[PALETTE.rotate(180)]), 'palette, several frames', PALETTE, 0),
    'bmp': (saved(PHOTO, 'BMP'), 'RGB', PHOTO, 0),
    'dib': (saved(PHOTO, 'DIB'), 'RGB', PHOTO, 0),
    'webp': (saved(PHOTO, 'WEBP', lossless=True), 'RGB', PHOTO, 0),
    'moving webp': (saved(PHOTO, 'WEBP', lossless=True, **FRAMES), 'several frames', PHOTO, 0),
    'tif': (saved(PHOTO, 'TIFF'), 'RGB', PHOTO, 0),
    'lzw tif': (saved(PHOTO, 'TIFF', compression='tiff_lzw'), 'RGB', PHOTO, 0),
    'CMYK tif': (saved(PHOTO.convert('CMYK'), 'TIFF'), 'CMYK', PHOTO, 0),
    'tif of pages': (saved(PHOTO, 'TIFF', **FRAMES), 'several frames', PHOTO, 0),
    'ppm': (saved(PHOTO, 'PPM'), 'RGB', PHOTO, 0),
    'pgm': (saved(GREY, 'PPM'), 'grey', GREY, 0),
    'pbm': (saved(PHOTO.convert('1'), 'PPM'), 'grey', PHOTO.convert('1'), 0),
    'jp2': (saved(PHOTO, 'JPEG2000'), 'RGB', PHOTO, 1),
    'tga': (saved(PHOTO, 'TGA'), 'RGB', PHOTO, 0),
    'qoi': (saved(PHOTO, 'QOI'), 'RGB', PHOTO, 0),
    'avif': (saved(PHOTO, 'AVIF', quality=95), 'RGB', PHOTO, 20)}

@pytest.mark.parametrize('name', kinds_of_file)
def test_every_kind_is_read_and_said(name, tmp_path):
    data, kind, shown, eps = kinds_of_file[name]
    rule = PictureRule(16)
    (tmp_path/'a').write_bytes(data)
    reading = read_picture(tmp_path/'a', rule)
    assert (reading.kind, reading.size, reading.fault, reading.values) == (kind, (60, 40), '', None)
    assert np.abs(reading.pixels.astype(int) - plain_reading(shown, rule)).max() <= eps
    assert read_picture(tmp_path/'a', rule, head_only=True) == reading._replace(pixels=None)
    image = Image.open(tmp_path/'a')
    same = read_pictures([tmp_path/'a', str(tmp_path/'a'), data, bytearray(data), image], rule, verbose=False)
    assert all(np.array_equal(pixels, reading.pixels) for pixels in same)
    assert image.size == (60, 40) and np.array_equal(image, Image.open(tmp_path/'a')), 'the image was left as it was'
    assert (read_pictures([image], rule, verbose=False)[0].int() - same[0].int()).abs().max() <= 4, 'decoded by now'

@pytest.mark.parametrize('name', kinds_of_file)
def test_every_kind_without_an_ending_is_found_to_be_a_picture(name, tmp_path):
    (tmp_path/'a').write_bytes(kinds_of_file[name][0])
    assert is_picture_file(tmp_path/'a') == (name != 'tga')   # which has no mark of its own

deep = np.random.default_rng(0).integers(100, 4096, (40, 60, 4)).astype(np.uint16)
deep_files = {   # bytes, kind, values
    'png': (png16(deep[..., :1]), 'grey, beyond 8 bits', deep[..., :1]),
    'grey transparent png': (png16(deep[..., :2]), 'transparent, beyond 8 bits', deep[..., :2]),
    'colour png': (png16(deep[..., :3]), 'beyond 8 bits', deep[..., :3]),
    'colour transparent png': (png16(deep), 'transparent, beyond 8 bits', deep),
    'colour tif': (tif16(deep[..., :3], '<'), 'beyond 8 bits', deep[..., :3]),
    'colour tif of a Mac': (tif16(deep[..., :3], '>'), 'beyond 8 bits', deep[..., :3]),
    'compressed colour tif': (tif16(deep[..., :3], '<', True), 'beyond 8 bits', deep[..., :3]),
    'compressed colour tif of a Mac': (tif16(deep[..., :3], '>', True), 'beyond 8 bits', deep[..., :3]),
    'colour transparent tif': (tif16(deep, '<'), 'transparent, beyond 8 bits', deep),
    'tif': (saved(Image.fromarray(deep[..., 0]), 'TIFF'), 'grey, beyond 8 bits', deep[..., :1]),
    'int32 tif': (saved(Image.fromarray(deep[..., 0].astype(np.int32) - 1024), 'TIFF'), 'grey, beyond 8 bits', deep[..., :1].astype(int) - 1024),
    'float tif': (saved(Image.fromarray(deep[..., 0] / np.float32(7)), 'TIFF'), 'grey, beyond 8 bits', deep[..., :1] / np.float32(7)),
    'jp2': (saved(Image.fromarray(deep[..., 0]), 'JPEG2000'), 'grey, beyond 8 bits', deep[..., :1]),
    'pgm': (b'P5 60 40 4095\n' + deep[..., 0].astype('>u2').tobytes(), 'grey, beyond 8 bits', deep[..., :1]),
    'plain pgm': (b'P2 60 40 4095\n' + ' '.join(map(str, deep[..., 0].flatten())).encode(), 'grey, beyond 8 bits', deep[..., :1])}

@pytest.mark.parametrize('name', deep_files)
def test_beyond_8_bits_is_refused_with_its_range_or_goes_through_the_window(name):
    data, kind, values = deep_files[name]
    n_colours = values.shape[2] - (values.shape[2] in (2, 4))
    colours = values[..., :n_colours]
    low, high = colours.min(), colours.max()
    for head_only in (False, True):
        reading = read_picture(data, PictureRule(40), head_only=head_only)
        assert reading.pixels is None and (reading.kind, reading.size, reading.values) == (kind, (60, 40), (low, high))
        assert reading.fault == f'beyond 8 bits ({low:.6g} to {high:.6g})'
    with saying('cannot be read: beyond 8 bits'): read_pictures([data], PictureRule(40))
    window = low + .1 * (high - low), high - .2 * (high - low)
    pixels = read_picture(data, PictureRule(40, window=window)).pixels
    share = ((colours - window[0]) / (window[1] - window[0])).clip(0, 1)
    wanted = np.broadcast_to(np.round(255 * share), (40, 60, 3))[:, 10:50]
    if n_colours != values.shape[2]:   # what is clear shows the paper
        alpha = np.round(values[..., n_colours:] / 257)[:, 10:50]
        wanted = (wanted * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(pixels - wanted).max() <= 1

def jp2_of_12_bits():
    data = bytearray(saved(PHOTO, 'JPEG2000'))
    place = data.find(b'\xff\x4f\xff\x51') + 42
    for channel in range(3): data[place + 3 * channel] = 11   # the head says so
    return bytes(data)

@pytest.mark.parametrize('data, form', [(b'P6 4 4 65535\n' + bytes(96), 'PPM'), (jp2_of_12_bits(), 'JPEG2000')], ids=['ppm', 'jp2'])
def test_colours_whose_lower_bits_would_be_lost_are_refused(data, form):
    for window in (None, (0, 4095)):
        reading = read_picture(data, PictureRule(16, window=window))
        assert reading.pixels is None and f'a {form} with colours' in reading.fault and '16-bit PNG' in reading.fault

def test_five_or_six_bits_a_colour_are_not_beyond_8():
    head = struct.pack('<IiiHHIIiiII', 40, 4, 2, 1, 16, 0, 16, 0, 0, 0, 0)
    data = struct.pack('<2sIHHI', b'BM', 70, 0, 0, 54) + head + struct.pack('<8H', *[31 << 10] * 8)
    reading = read_picture(data, PictureRule(2))
    assert reading.kind == 'RGB' and (reading.pixels == [255, 0, 0]).all()

@pytest.mark.parametrize('numbers', [np.array([[np.nan, np.inf], [-np.inf, 7]]), np.full((2, 2), np.nan)])
def test_numbers_that_are_none_are_not_counted(numbers):
    data = saved(Image.fromarray(numbers.astype(np.float32)), 'TIFF')
    assert read_picture(data, PictureRule(2)).fault in ('beyond 8 bits (7 to 7)', 'beyond 8 bits (no finite value)')
    assert read_picture(data, PictureRule(2, window=(0, 14))).pixels[..., 0].flatten().tolist() in ([0, 255, 0, 128], [0] * 4)

@some(100)
@given(st.integers(-2000, 2000), st.integers(1, 5000), st.lists(st.integers(-9999, 9999), min_size=1, max_size=9))
def test_a_window_is_linear_cut_off_and_keeps_the_order(low, width, values):
    row = np.array([[low, low + width, *sorted(values)]])
    pixels = files._through_window(row, (low, low + width))[0].astype(int)
    assert pixels[0] == 0 and pixels[1] == 255 and (np.diff(pixels[2:]) >= 0).all()
    exact = 255 * (row[0] - low) / width
    assert np.abs(pixels - exact.clip(0, 255)).max() <= .5

# Upright, and square

@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'WEBP', 'deep PNG', 'deep TIFF'])
def test_every_exif_orientation_comes_upright(turn, form):
    upright = Image.fromarray(noise(24, 32, 3) if 'deep' not in form else noise(24, 32).astype(np.uint16))
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = upright.transpose(undo[turn]) if turn in undo else upright
    data = saved(stored, form.split()[-1], exif=exif, **(dict(lossless=True) if form == 'WEBP' else {}))
    rule = PictureRule(24, window=(0, 255))
    reading = read_picture(data, rule)
    wanted = np.asarray(upright.crop((4, 0, 28, 24)))
    assert np.array_equal(reading.pixels, wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, 2))
    assert reading.size == read_picture(data, rule, head_only=True).size == (32, 24)

@pytest.mark.parametrize('exif', [b'Exif\0\0' + b'no TIFF', b'Exif\0\0MM\0*\0\0\0\x08' + b'\xff' * 30, b'Exif\0\0'])
def test_damaged_exif_does_not_make_a_picture_unreadable(exif):
    data = saved(PHOTO, 'JPEG', exif=exif)
    assert exif in data
    reading = read_picture(data, PictureRule(16))
    assert (reading.kind, reading.size, reading.fault) == ('RGB', (60, 40), '')
    assert np.array_equal(reading.pixels, read_picture(saved(PHOTO, 'JPEG'), PictureRule(16)).pixels)

def test_same_picture_however_it_comes(tmp_path):
    pixels = noise(20, 20, 3)
    Image.fromarray(pixels).save(tmp_path/'a.png')
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)
    same = [tmp_path/'a.png', str(tmp_path/'a.png'), (tmp_path/'a.png').read_bytes(), Image.open(tmp_path/'a.png'), pixels,
        Image.fromarray(pixels), torch.from_numpy(pixels), channels_first, TensorImage(channels_first), channels_first.numpy(),
        PILImage.create(pixels), PILImage.create(tmp_path/'a.png')]
    read = read_pictures(same, PictureRule(20))
    assert read.dtype == torch.uint8 and all(np.array_equal(picture, pixels) for picture in read)
    read[0] = 0   # a tensor of its own
    assert np.array_equal(pixels, noise(20, 20, 3)) and read_pictures([], PictureRule(8)).shape == (0, 8, 8, 3)

def test_grey_arrays_of_every_shape():
    grey = noise(20, 20)
    same = [grey, grey[..., None], grey[None], torch.from_numpy(grey), torch.from_numpy(grey)[None], Image.fromarray(grey)]
    with pytest.warns(UserWarning, match=re.escape('converted 6 grey (repeated three times)')):
        read = read_pictures(same, PictureRule(20))
    assert all(np.array_equal(picture, np.repeat(grey[..., None], 3, 2)) for picture in read)

@pytest.mark.parametrize('item, error, words', [
    (np.random.rand(8, 8, 3), ValueError, ('array of float64', 'not guessed at', 'uint8')),
    (np.random.rand(8, 8).astype(np.float32), ValueError, ('array of float32', 'not guessed at')),
    (torch.rand(3, 8, 8), ValueError, ('array of float32', 'not guessed at')),
    (torch.rand(3, 8, 8).bfloat16(), ValueError, ('array of float32', 'not guessed at')),
    (TensorImage(torch.randn(3, 8, 8)), ValueError, ('array of float32', 'not guessed at')),
    (noise(8, 8).astype(np.uint16) * 7, ValueError, ('array of uint16', 'not guessed at', 'window')),
    (noise(8, 8, 3).astype(int), ValueError, ('array of int64', 'not guessed at')),
    (noise(8, 8) > 9, TypeError, ('array of bool', 'take a path')), (noise(8, 8, 3).astype(complex), TypeError, ('complex128',)),
    (noise(3, 8, 3), TypeError, ('(3, 8, 3) could be channels first or last',)), (noise(8, 8, 2), TypeError, ('(8, 8, 2) is no picture',)),
    (noise(1, 8, 3), TypeError, ('(1, 8, 3) could be channels first or last',)), (noise(5), TypeError, ('(5,) is no picture',)), (noise(0, 8, 3), TypeError, ('(0, 8, 3) is no picture',)), (noise(0, 0), TypeError, ('is no picture',)),
    (noise(2, 8, 8, 3), TypeError, ('(2, 8, 8, 3) is no picture',)), (None, TypeError, ('NoneType is no picture',)),
    ([1, 2], TypeError, ('list is no picture', 'a path, the bytes of a file, a PIL image')), (io.BytesIO(), TypeError, ('BytesIO is no picture',))],
    ids=lambda item: None if isinstance(item, (np.ndarray, torch.Tensor, io.BytesIO)) else str(item)[:40])
def test_what_is_no_picture_or_could_be_read_in_two_ways(item, error, words):
    with saying('read_pictures: ', *words, error=error): read_pictures([item], PictureRule(8))

@pytest.mark.parametrize('make', [lambda x: x, torch.from_numpy, lambda x: torch.from_numpy(x).permute(2, 0, 1)], ids=['array', 'tensor', 'channels first'])
def test_arrays_through_a_window(make):
    pixels = noise(8, 8, 3)
    read = read_pictures([make(pixels / 255), make(pixels.astype(np.float32) / 255)], PictureRule(8, window=(0, 1)), verbose=False)
    assert all(np.array_equal(picture, pixels) for picture in read)
    assert np.array_equal(read_pictures([make(pixels)], PictureRule(8, window=(0, 9)))[0], pixels), 'bytes need no window'

def test_only_a_list_of_pictures_and_a_rule_is_taken():
    for item in ('a.jpg', Path('a.jpg'), b'', PHOTO, noise(8, 8, 3), torch.zeros(8, 8), 7, None):
        with saying('items must be a list', 'put it in brackets', error=TypeError): read_pictures(item, PictureRule(8))
    for read in (lambda: read_pictures([PHOTO], 32), lambda: read_picture('a.jpg', 32)):
        with saying('rule must be a PictureRule', 'got 32', error=TypeError): read()

def test_any_list_of_pictures_is_taken():
    whole = noise(2, 8, 8, 3)
    for items in (whole, torch.from_numpy(whole), list(whole), tuple(whole), iter(whole)):
        assert np.array_equal(read_pictures(items, PictureRule(8)), whole)

def test_image_whose_file_was_closed_too_early(tmp_path):
    PHOTO.save(tmp_path/'a.jpg')
    with Image.open(tmp_path/'a.jpg') as image: pass
    with saying('JpegImageFile object cannot be read', 'closed too early'): read_pictures([image], PictureRule(8))

def test_a_later_frame_is_taken_where_somebody_went_to_it():
    image = Image.open(io.BytesIO(saved(PHOTO, 'TIFF', **FRAMES)))
    image.seek(1)
    assert np.array_equal(read_pictures([image], PictureRule(16), verbose=False)[0], plain_reading(PHOTO.rotate(180), PictureRule(16)))

@pytest.mark.parametrize('quality', [75, 95])
@pytest.mark.parametrize('size', [(800, 600), (1003, 770), (603, 2001)])
def test_large_jpeg_is_decoded_small_and_looks_the_same(size, quality):
    data = saved(photo(size[1], size[0]), 'JPEG', quality=quality)
    drafts, draft = [], JpegImageFile.draft
    def noted(self, mode, size):
        done = draft(self, mode, size)
        drafts.append(self.size)
        return done
    for size_px in (32, 100):
        with mock.patch.object(JpegImageFile, 'draft', noted): of_file = read_picture(data, PictureRule(size_px)).pixels
        assert min(drafts[-1]) >= 2 * size_px and (min(drafts[-1]) < 4.1 * size_px or min(size) / min(drafts[-1]) > 7.9)
        decoded = Image.open(io.BytesIO(data))
        decoded.load()
        difference = (read_pictures([decoded], PictureRule(size_px))[0].int() - torch.from_numpy(of_file).int()).abs()
        assert difference.float().mean() < 2 and difference.max() <= 12   # of the brightest colours side by side

@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('size', [(60, 40), (40, 60), (64, 64), (400, 300), (1, 9), (500, 3), (20, 20)], ids=str)
def test_fit_is_pillows(fit, size):
    image, size_px = photo(max(size[1], 8), max(size[0], 8)).resize(size), 20
    pixels = read_pictures([image], PictureRule(size_px, fit))[0].numpy().astype(int)
    ratio = min(size) // (2 * size_px)
    if ratio > 1: image = image.reduce(2 ** (ratio.bit_length() - 1))
    width, height = image.size
    if fit == 'crop':
        side = min(image.size)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if fit == 'pad':
        shape = max(1, round(size_px * width / max(width, height))), max(1, round(size_px * height / max(width, height)))
        wanted = Image.new('RGB', (size_px, size_px))
        wanted.paste(image.resize(shape), ((size_px - shape[0]) // 2, (size_px - shape[1]) // 2))
    else: wanted = image.resize((size_px, size_px))
    assert np.abs(pixels - np.asarray(wanted)).max() <= 2

@some(60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.sampled_from(FITS))
def test_every_size_becomes_the_square_and_one_colour_stays_one(height, width, size_px, fit):
    pixels = read_pictures([Image.new('RGB', (width, height), (200,) * 3)], PictureRule(size_px, fit))[0]
    assert pixels.shape == (size_px, size_px, 3)
    if fit != 'pad': assert (pixels == 200).all()
    else: assert set(pixels.unique().tolist()) <= {0, 200} and 200 in pixels and (height != width or 0 not in pixels)

# The rule

@pytest.mark.parametrize('kwargs, words', [
    (dict(size_px=32.), ('size_px must be a whole number', '32.0')), (dict(size_px='32'), ('whole number', "'32'")),
    (dict(size_px=0), ('of 1 or more', 'got 0')), (dict(size_px=True), ('whole number', 'True')), (dict(size_px=None), ('whole number', 'None')),
    (dict(size_px=(64, 48)), ('must be one number', '(64, 48)')), (dict(size_px=[64, 64]), ('must be one number', '[64, 64]')),
    (dict(fit='stretch'), ('fit must be one of crop, pad, squish', "'stretch'")), (dict(fit=None), ('fit must be one of', 'None')),
    (dict(fit=['crop']), ('fit must be one of', "['crop']")),
    (dict(window=5), ('window must be two numbers', 'got 5')), (dict(window=(1, 2, 3)), ('two numbers', '(1, 2, 3)')),
    (dict(window='ab'), ('two numbers', "'ab'")), (dict(window=(0, 'b')), ('two numbers',)), (dict(window=(9, 9)), ('the lower first', '(9, 9)')),
    (dict(window=(0, float('inf'))), ('two finite numbers', 'inf')), (dict(window=(float('nan'), 1)), ('two finite numbers', 'nan'))], ids=str)
def test_rule_says_what_is_wrong_with_it(kwargs, words):
    with saying('PictureRule: ', *words): PictureRule(**kwargs)

def test_rule_holds_plain_numbers():
    rule = PictureRule(np.int64(32), 'pad', np.array([0, 4095]))
    assert rule == PictureRule(32, 'pad', [0, 4095]) and hash(rule) == hash(PictureRule(32, 'pad', (0, 4095)))
    assert json.loads(json.dumps(asdict(rule))) == dict(size_px=32, fit='pad', window=[0, 4095])

# Files that are no pictures, or need something

@pytest.mark.parametrize('error', [OSError(errno.EMFILE, 'Too many open files'), OSError(errno.ENOMEM, 'Cannot allocate memory'), MemoryError('no memory')])
def test_what_is_not_the_files_fault_is_raised(error, tmp_path, monkeypatch):
    def fail(path): raise error
    monkeypatch.setattr(files.Image, 'open', fail)
    with saying('a.png cannot be read now', str(error), 'try again', error=RuntimeError):
        read_picture(tmp_path/'a.png', PictureRule(32))

def test_file_that_is_no_picture_is_named(tmp_path):
    whole = saved(Image.fromarray(noise(40, 40, 3)), 'PNG')
    for name, data in dict(text=b'no', cut=whole[:-2000], empty=b'').items():
        (tmp_path/f'{name}.png').write_bytes(data)
        assert read_picture(tmp_path/f'{name}.png', PictureRule(32)) == Reading(fault='unreadable')
        with saying(f'{name}.png is no picture, or is cut short'): read_pictures([tmp_path/f'{name}.png'], PictureRule(32))
    (tmp_path/'folder.png').mkdir()
    assert read_picture(tmp_path/'folder.png', PictureRule(32)).fault == 'a folder, not a file'
    with saying('none.png cannot be read: no such file'): read_pictures([tmp_path/'none.png'], PictureRule(32))

def test_over_pillows_limit(tmp_path, monkeypatch):
    PHOTO.save(tmp_path/'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)   # refused at twice as many
    reading = read_picture(tmp_path/'a.png', PictureRule(8))
    assert reading.pixels is None and "over Pillow's limit" in reading.fault and 'MAX_IMAGE_PIXELS' in reading.fault
    with saying("a.png cannot be read: over Pillow's limit"): read_pictures([tmp_path/'a.png'], PictureRule(8))

without_plug_in = {'HEIC': b'\0\0\0\x18ftypheic' + bytes(40), 'AVIF': b'\0\0\0\x18ftypavif' + bytes(40), 'JPEG XL': b'\xff\x0a' + bytes(40)}

@pytest.mark.parametrize('kind', without_plug_in)
def test_a_missing_package_is_named(kind, monkeypatch):
    def unknown(source): raise UnidentifiedImageError
    monkeypatch.setattr(files.Image, 'open', unknown)
    monkeypatch.setattr(files, 'find_spec', lambda module: None)
    files._plug_in.cache_clear()
    package = {'HEIC': 'pillow-heif', 'AVIF': 'pillow-avif-plugin', 'JPEG XL': 'pillow-jxl-plugin'}[kind]
    try: assert read_picture(without_plug_in[kind], PictureRule(8)).fault == f'{kind}, which needs a package: pip install {package}'
    finally: files._plug_in.cache_clear()

def test_a_package_is_called_in_once_when_the_first_file_needs_it(monkeypatch):
    "A plug-in of our own, which reads nothing but says that it was called"
    called = []
    def known_after(source):
        if not called: raise UnidentifiedImageError
        return PHOTO.copy()
    plug_in = SimpleNamespace(register_heif_opener=lambda: called.append('registered'))
    monkeypatch.setattr(files.Image, 'open', known_after)
    monkeypatch.setattr(files, 'find_spec', lambda module: module == 'pillow_heif')
    monkeypatch.setattr(files.importlib, 'import_module', lambda module: plug_in)
    files._plug_in.cache_clear()
    try:
        for _ in range(3): assert read_picture(without_plug_in['HEIC'], PictureRule(8)).fault == ''
    finally: files._plug_in.cache_clear()
    assert called == ['registered']

def test_heic_is_read_where_its_package_is_installed(tmp_path):
    pillow_heif = pytest.importorskip('pillow_heif')
    pillow_heif.from_pillow(PHOTO).save(tmp_path/'a.HEIC', quality=95)
    reading = read_picture(tmp_path/'a.HEIC', PictureRule(16))
    assert (reading.fault, reading.kind, reading.size) == ('', 'RGB', (60, 40))
    assert np.abs(reading.pixels.astype(int) - plain_reading(PHOTO, PictureRule(16))).max() < 20

def test_home_and_names_that_are_no_utf8(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    PHOTO.save(tmp_path/'a.png')
    assert read_picture('~/a.png', PictureRule(8)).fault == '' and is_picture_file('~/a.png')
    shutil.copy(tmp_path/'a.png', tmp_path/'b')
    assert is_picture_file('~/b')
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9.png'))
    try: odd.write_bytes(b'no picture')
    except OSError: pytest.skip('this file system takes no such name')
    with saying(r'caf\xe9.png is no picture'): read_pictures([odd], PictureRule(8))
    printable(odd).encode('utf-8')
    PHOTO.save(odd)
    assert read_picture(odd, PictureRule(8)).fault == '' and is_picture_file(odd)

# Which files are pictures

@pytest.mark.parametrize('ending', """.jpg .jpeg .jpe .jfif .png .apng .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .tga .avif .heic .heif
    .jxl .mpo .qoi""".split())
def test_endings_are_known_in_any_case(ending):
    assert ending in PICTURE_ENDINGS and is_picture_file(f'a{ending}') and is_picture_file(f'deep/a.b{ending.upper()}')

def test_endings_do_not_depend_on_the_machine(monkeypatch):
    monkeypatch.setattr('mimetypes.types_map', {})
    assert is_picture_file('a.webp') and PICTURE_ENDINGS == {ending.lower() for ending in PICTURE_ENDINGS}

@pytest.mark.parametrize('data', [b'', b'class,file\ncat,1.jpg\n', b'%PDF-1.4', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'\x89HDF\r\n\x1a\n', bytes(300)])
def test_other_files_without_an_ending_are_no_pictures(data, tmp_path):
    (tmp_path/'notes').write_bytes(data)
    (tmp_path/'labels.csv').write_bytes(saved(PHOTO, 'PNG'))   # an ending that says otherwise
    assert not is_picture_file(tmp_path/'notes') and not is_picture_file(tmp_path/'labels.csv') and not is_picture_file(tmp_path/'none')

def test_kinds_are_counted_in_one_line():
    assert describe_kinds(['RGB', 'RGB']) == describe_kinds([]) == describe_kinds(['']) == ''
    assert describe_kinds(['palette, transparent', 'transparent', 'RGB', 'several frames', 'transparent', 'LAB']) == (
        '3 transparent (laid on white), 1 with a palette (looked up), 1 of several frames (the first taken), 1 LAB (made RGB)')

def test_nothing_is_said_of_plain_pictures_or_where_it_is_not_wanted(recwarn):
    read_pictures([PHOTO], PictureRule(8))
    read_pictures([GREY], PictureRule(8), verbose=False)
    assert not [warning for warning in recwarn if 'read_pictures' in str(warning.message)]
