"""Files of weights: those that lie are refused, whatever they claim; whole ones are read as they were written

Run as a program, this file reads mutated files (`fuzz`), or runs functions in processes of their own (`serve`)."""
import io, json, math, os, pickle, random, re, resource, signal, struct, subprocess, sys, time, warnings, zipfile
from collections import OrderedDict
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from helpers import saying   # first of ours: this checkout, whatever is installed
from nbtransfer import networks, weights
from nbtransfer.networks import resnet9
from nbtransfer.pretraining import task_learner
from nbtransfer.tasks import digits
from nbtransfer.weights import load_weights, read_source, save_weights, transfer_weights

MB = 1 << 20
OURS = re.compile('ValueError: (read_source|load_weights): ')
NO_MEMORY = re.compile('MemoryError|bad_alloc|allocate')   # said by Python, C++ and torch when there is no more

def bits(state): return {n: (t.dtype, t.shape, number_bytes(t)) for n, t in state.items()}

def number_bytes(t):
    flat = t.detach().clone(memory_format=torch.contiguous_format).view(-1)
    return flat.view(torch.uint8).numpy().tobytes() if len(flat) else b''

def saved(state, **options):
    "The bytes of a file of torch.save"
    out = io.BytesIO()
    torch.save(state, out, **options)
    return out.getvalue()

legacy = dict(_use_new_zipfile_serialization=False)
each_format = pytest.mark.parametrize('options', [{}, legacy], ids=['zip', 'legacy'])

def with_card(state, card):
    "The bytes of a file of tensors and a card, which may be any text"
    return save(state, metadata=dict(card=card if isinstance(card, str) else json.dumps(card)))

def sealed(state, **card):
    "A card whose hashes are right"
    card = {**card, 'sha256': networks.digest(state)}
    return {**card, 'card_sha256': weights._seal(card)}

@cache
def small_state():
    "The tensors of a network of 2,000 numbers"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet9(2, width=1).state_dict()

def small_arch(name='resnet9', **kwargs): return dict(name=name, kwargs=dict(n_classes=2, width=1) | kwargs)

def small_file(**card): return with_card(small_state(), sealed(small_state(), **dict(arch=small_arch()) | card))

# Files made by hand

class Storage:
    "A pickled storage that claims what it likes"
    def __init__(self, numel, key='0'): self.id = 'storage', torch.FloatStorage, key, 'cpu', numel

class Call:
    "An object that is made by a call when it is unpickled"
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call

def view(numel, size, stride=1, offset=0, key='0'):
    "A pickled tensor that claims what it likes"
    storage = Storage(numel, key)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, (size,), (stride,), False, OrderedDict())

def pickled(o, is_legacy=False, protocol=2):
    out = io.BytesIO()
    class Pickler(pickle.Pickler):
        def persistent_id(self, o): return o.id + (None,) * is_legacy if isinstance(o, Storage) else None
    Pickler(out, protocol).dump(o)
    return out.getvalue()

def archive(records, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', compression) as z:
        for name, data in records.items(): z.writestr(name, bytes(data))
    return out.getvalue()

def zip_records(o, *storages, protocol=2):
    records = {'w/data.pkl': o if isinstance(o, bytes) else pickled(o, protocol=protocol), 'w/version': b'3\n'}
    return records | {f'w/data/{i}': data for i, data in enumerate(storages)}

def zip_file(o, *storages, protocol=2):
    "What torch.save writes for `o`, an object or its pickle"
    return archive(zip_records(o, *storages, protocol=protocol))

def legacy_file(o, *storages, protocol=2, keys='01'):
    "What torch.save once wrote for `o`, an object or its pickle"
    about = dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4))
    parts = 0x1950a86a20f9469cfc6c, 1001, about, o, list(keys[:len(storages)])
    return b''.join([*(o if isinstance(o, bytes) else pickled(o, True, protocol) for o in parts),
                     *(struct.pack('<q', len(o) // 4) + o for o in storages)])

def ops(code): return b'\x80\2' + code + b'.'

four = struct.pack('<4f', 1, 2, 3, 4)

each_maker = pytest.mark.parametrize('make', [zip_file, legacy_file], ids=['zip', 'legacy'])

@each_maker
def test_file_made_by_hand_is_read(make, tmp_path):
    "So that those below are refused for what is wrong with them"
    (tmp_path/'a.pth').write_bytes(make(dict(a=view(4, 4), b=view(4, 2, offset=2)), four))
    assert torch.load(tmp_path/'a.pth')['b'].tolist() == [3, 4]
    state = read_source(tmp_path/'a.pth').state
    assert state['a'].tolist() == [1, 2, 3, 4] and state['b'].tolist() == [3, 4]

# Processes of their own

def memory(key): return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) << 10

def limit_memory(n_bytes):
    "Let this process ask for so many bytes more, and no others"
    resource.setrlimit(resource.RLIMIT_AS, (memory('VmSize') + n_bytes,) * 2)

def read(path): return f'{len(read_source(path).state)} tensors'

def load_network(path): return f'{len(load_weights(path).state_dict())} tensors'

def save_killed(path):
    "Write another file to `path`, and be killed in the middle"
    os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    weights._write_file(path, dict(a=torch.ones(9)), {})

def warm_up(folder):
    "Read a file of each kind: what that imports and keeps is not the doing of those that follow"
    for data in (saved(dict(a=torch.ones(2))), saved(dict(a=torch.ones(2)), **legacy), small_file()):
        (folder/'warm').write_bytes(data)
        try: load_network(folder/'warm')
        except ValueError: pass

def measured(name, path):
    "Run a function of this file on a file, with memory for 4 times its bytes and 64 MB"
    warnings.simplefilter('ignore')
    signal.alarm(20)
    limit_memory(4 * os.path.getsize(path) + 64 * MB)
    before, start = memory('VmRSS'), time.process_time()
    try: said = globals()[name](path)
    except BaseException as e: said = f'{type(e).__name__}: {e}'
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    return dict(said=said[:20_000], time_s=time.process_time() - start, grown=grown)

def serve(folder):
    "Run a function on a file, as asked for on stdin, each time in a copy of this process"
    warm_up(Path(folder))
    for line in sys.stdin:
        result, answer = os.pipe()
        child = os.fork()
        if not child:
            os.write(answer, json.dumps(measured(*json.loads(line))).encode())
            os._exit(0)
        os.close(answer)
        status = os.waitpid(child, 0)[1]
        with os.fdopen(result, 'rb') as f: said = f.read().decode()
        sys.stdout.write((said or json.dumps(dict(said=f'died of signal {status}', time_s=0, grown=0))) + '\n')
        sys.stdout.flush()

alone = {**os.environ, 'OMP_NUM_THREADS': '1', 'RUST_BACKTRACE': '0'}

def command(*args): return [sys.executable, __file__, *map(str, args)]

@pytest.fixture(scope='module')
def apart(tmp_path_factory):
    "A function that runs one of this file's in a process of its own, and tells how that ended"
    server = subprocess.Popen(command('serve', tmp_path_factory.mktemp('serve')), stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE, env=alone)
    def run(name, path):
        server.stdin.write(json.dumps([name, str(path)]) + '\n')
        server.stdin.flush()
        return SimpleNamespace(**json.loads(server.stdout.readline()))
    yield run
    server.communicate()

@pytest.fixture
def ends_well(apart, tmp_path):
    "A function that has bytes read apart: well or refused by us, in little time and memory"
    def run(data, function='read'):
        (tmp_path/'file').write_bytes(data)
        end = apart(function, tmp_path/'file')
        mine, n = OURS.match(end.said) or end.said.endswith(' tensors'), max(50 * MB, 4 * len(data))
        if not mine: pytest.fail(f'neither read nor refused by us: {end.said[:500]}', pytrace=False)
        if NO_MEMORY.search(end.said): pytest.fail(f'it asked for what is claimed: {end.said[:500]}', pytrace=False)
        if end.grown > n: pytest.fail(f'{end.grown / MB:.0f} MB for {len(data):,} bytes', pytrace=False)
        if end.time_s > 5: pytest.fail(f'{end.time_s:.1f} s: {end.said[:500]}', pytrace=False)
        return end.said
    return run

@pytest.fixture
def refused(ends_well):
    "A function that sees bytes refused by us, in little time and memory"
    def run(data, *parts, function='read'):
        said = ends_well(data, function)
        if not OURS.match(said) or not all(o in said for o in parts):
            pytest.fail(f'not refused with {parts}: {said[:500]}', pytrace=False)
    return run

# Files that claim more than they hold

def safetensors_file(header, data=b'', n=None):
    text = json.dumps(header).encode()
    return (len(text) if n is None else n).to_bytes(8, 'little') + text + data

def claim(shape, n_bytes): return dict(a=dict(dtype='F32', shape=shape, data_offsets=[0, n_bytes]))

safetensors_lies = {
    'numbers': safetensors_file(claim([2**40], 2**42)),
    'numbers in 16 bytes': safetensors_file(claim([2**40], 16), four),
    'numbers that overflow': safetensors_file(claim([2**40, 2**40], 16), four),
    'header of 2**62 bytes': safetensors_file(claim([4], 16), bytes(900), 2**62),
    'header of 100 MB': safetensors_file(claim([4], 16), bytes(900), 10**8)}

@pytest.mark.parametrize('lie', safetensors_lies)
def test_safetensors_that_claim_too_much(lie, refused): refused(safetensors_lies[lie])

def beside(other): return dict(a=view(4, 4), b=other)

def parts(n): return b')' + b''.join(b'q%ch%c\x86' % (i, i) for i in range(n))   # pairs of pairs of pairs

pickle_lies = {   # an object or a pickle, and the storages in the file
    'numbers': (dict(a=view(2**40, 2**40)), four), 'few of many numbers': (dict(a=view(2**40, 4)), four),
    'numbers in a list': (beside([view(2**33, 4, key='1')]), four, four),
    'numbers deep inside': (beside(dict(c=dict(d=view(2**33, 4, key='1')))), four, four),
    'numbers twice': (beside(view(2**33, 4)), four),
    'numbers of no tensor': (beside([Storage(2**33, '1')]), four, four),
    'one number more': (dict(a=view(5, 5)), four), 'no numbers': (dict(a=view(-4, 4)), four),
    'more than the storage': (dict(a=view(4, 2**33)), four), 'the same number often': (dict(a=view(4, 10**9, 0)), four),
    'a place outside': (dict(a=view(4, 4, offset=2**33)), four),
    'a place before': (dict(a=view(4, 2, offset=-2)), four),
    'bytearray': (beside(Call(bytearray, 10**10)), four), 'call': (beside(Call(torch.UntypedStorage, 10**10)), four),
    'long bytes': (ops(b'\x96' + struct.pack('<Q', 10**10)),), 'long text': (ops(b'X' + struct.pack('<I', 2**32 - 1)),),
    'longer text': (ops(b'\x8d' + struct.pack('<Q', 10**10)),),
    'long number': (ops(b'\x8b' + struct.pack('<I', 2**31 - 1)),), 'two million operations': (ops(b'N' * 2_000_000),),
    'a key 200,000 deep': (ops(b'})' + b'\x85' * 200_000 + b'K\1s'),),
    'a key of 2**40 parts': (ops(b'}' + parts(40) + b'K\1s'),),
    'a key of 2**19 parts, a thousand times': (ops(b'}' + parts(19) + b'q\xffNs' + b'h\xffNs' * 1000),),
    'a key of 100,000 parts, as often': (ops(b'}(' + b'N' * 100_000 + b'tq\xffNs' + b'h\xffNs' * 100_000),)}

@each_maker
@pytest.mark.parametrize('lie', pickle_lies)
def test_pickle_that_claims_too_much(lie, make, refused): refused(make(*pickle_lies[lie]))

def test_numbers_that_are_not_in_the_file(refused):
    "torch.load gives what happens to lie in memory"
    refused(legacy_file(dict(a=view(4, 4))))
    refused(zip_file(dict(a=view(4, 4))))

def test_archive_that_unpacks_to_much_more(refused):
    records = zip_records(dict(a=view(5 * 10**7, 5 * 10**7)), bytes(2 * 10**8))
    bomb = archive(records, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**6
    refused(bomb, 'compressed')

@pytest.mark.parametrize('at', [20, 24], ids=['packed', 'unpacked'])
def test_archive_whose_index_claims_too_much(at, refused):
    data = bytearray(zip_file(dict(a=view(4, 4)), four))
    start = data.index(b'PK\1\2') + at
    data[start:start + 4] = struct.pack('<I', 2**31 - 1)
    refused(data)

@each_maker
def test_many_names_for_the_same_numbers(make, ends_well):
    tied = view(250_000, 250_000)
    ends_well(make({f'a{i}': tied for i in range(1000)}, bytes(10**6)))

crumbs = {
    'metadata': lambda: save(dict(a=torch.ones(1)), metadata={str(i): '' for i in range(500_000)}),
    'empty tensors': lambda: safetensors_file({f'a{i}': claim([0], 0)['a'] for i in range(100_000)}),
    'lists in a card': lambda: with_card(dict(a=torch.ones(1)), dict(x=[[]] * 1_000_000))}

@pytest.mark.parametrize('kind', crumbs)
def test_file_of_crumbs(kind, ends_well):
    "Things so small that it takes more memory to keep track of them than to hold them"
    ends_well(crumbs[kind]())

def test_parser_is_not_heard(tmp_path, capfd):
    (tmp_path/'a.pth').write_bytes(legacy_file(dict(a=view(4, 2, offset=-2)), four))
    with saying('read_source', 'a.pth'): read_source(tmp_path/'a.pth')
    assert capfd.readouterr() == ('', '')

big_files = {
    'ours': lambda big: with_card(big, sealed(big, arch=dict(name='resnet9', kwargs=dict(n_classes=10, width=88)))),
    'safetensors': save, 'zip': saved, 'legacy': lambda big: saved(big, **legacy)}

@pytest.mark.parametrize('kind', big_files)
def test_big_file_takes_at_most_four_times_its_size(kind, apart, tmp_path):
    data = big_files[kind]({n: t.contiguous() for n, t in resnet9(10, width=88).state_dict().items()})
    assert 45 * MB < len(data) < 60 * MB
    (tmp_path/'big').write_bytes(data)
    end = apart('load_network' if kind == 'ours' else 'read', tmp_path/'big')
    assert end.said == '50 tensors' and end.grown <= 4 * len(data), f'{end.grown / len(data):.2f}: {end.said[:500]}'

# Code is not run

def bare(o, protocol=2): return pickle.dumps(o, protocol)

@pytest.mark.parametrize('make, protocol', [*product([zip_file, legacy_file, bare], [2, 4])])
def test_code_in_a_pickle_is_not_run(make, protocol, tmp_path, monkeypatch):
    "Not even where torch is told to run it, and nobody is told to allow it"
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    path, marker = tmp_path/'a.pth', tmp_path/'marker'
    path.write_bytes(make(dict(a=Call(os.mkdir, str(marker))), protocol=protocol))
    try:
        with saying('read_source', 'a.pth', 'mkdir', 'state_dict()', 'save_weights') as error: read_source(path)
        assert 'weights_only' not in str(error.value)
    finally: assert not marker.exists()

def test_code_in_an_older_pickle_is_not_run(tmp_path):
    path, marker = tmp_path/'a.pth', tmp_path/'marker'
    path.write_bytes(zip_file(f"(S'{marker}'\nios\nmkdir\n.".encode()))
    with saying('read_source', 'os.mkdir', 'save_weights'): read_source(path)
    assert not marker.exists()

@each_format
def test_pickled_network_is_refused(options, tmp_path):
    (tmp_path/'a.pth').write_bytes(saved(resnet9(2, width=1), **options))
    with saying('read_source', 'a.pth', 'torch.nn', 'state_dict()', 'save_weights'): read_source(tmp_path/'a.pth')

def test_pickled_learner_is_refused(learn, tmp_path):
    learn.export(tmp_path/'a.pkl')
    with saying('read_source', 'a.pkl', 'Learner', 'state_dict()', 'save_weights'): read_source(tmp_path/'a.pkl')

# Names

@pytest.mark.parametrize('name', ['../x', '/etc/x', 'a/b', 'a\\b', '', '.', 'a.', '..', 'a..b', 'a\nb', 'a\0b',
    'a\x1b[0m', '\u202e'], ids=ascii)
def test_name_that_no_parameter_has(name, tmp_path):
    state = {'a.weight': torch.ones(1), name: torch.ones(1)}
    for data in (save(state), saved(state), saved(state, **legacy)):
        (tmp_path/'a').write_bytes(data)
        with saying('read_source', 'names of parameters', repr(name)) as error: read_source(tmp_path/'a')
        assert str(error.value).isprintable()
    with saying('read_source', 'names of parameters', repr(name)): read_source(state)

@pytest.mark.parametrize('name', [3, None])
def test_name_that_is_no_text(name, tmp_path):
    (tmp_path/'a').write_bytes(saved({name: torch.ones(1)}))
    with saying('read_source', 'names of parameters', repr(name)): read_source(tmp_path/'a')

@pytest.mark.parametrize('name', ['../x', 'w/../../x', '/etc/x', '\\x', 'w/data/../0'])
def test_archive_that_names_files_outside(name, tmp_path):
    (tmp_path/'a').write_bytes(archive(zip_records(dict(a=view(4, 4)), four) | {name: b'x'}))
    before = set(tmp_path.parent.iterdir())
    with saying('read_source', 'outside'): read_source(tmp_path/'a')
    assert set(tmp_path.parent.iterdir()) == before and list(tmp_path.iterdir()) == [tmp_path/'a']

@pytest.mark.parametrize('name', ['', '.', '..', '../../x', 'resnet9-letters/../x', 'resnet9-letters/..', '/etc', '/',
    'here', 'a/b', '~', 'a\0b', 'x' * 5000, 'a.safetensors/', 'file://a', '-', '@', 'timm/../x'],
    ids=lambda o: ascii(o[:30]))
def test_source_that_is_no_file(name, tmp_path, monkeypatch):
    "Also folders, which the Hub is not asked for"
    def ask(*args): raise AssertionError('asked the Hub')
    monkeypatch.setattr(weights, 'from_hub', ask)
    monkeypatch.chdir(tmp_path)
    for folder in ('here', 'a/b'): (tmp_path/folder).mkdir(parents=True)
    for source in (name, Path(name)):
        with saying('read_source', 'name'): read_source(source)

# Cards

def path_of(data, tmp_path):
    (tmp_path/'a.safetensors').write_bytes(data)
    return tmp_path/'a.safetensors'

def test_right_card_is_accepted(tmp_path):
    assert load_weights(path_of(small_file(), tmp_path)).card['arch'] == small_arch()

@pytest.mark.parametrize('change', [dict(arch=small_arch(width=9)), dict(more=1), dict(sha256=None),
    dict(card_sha256=None)], ids=['arch', 'more', 'no hash of tensors', 'no hash of the card'])
def test_changed_card_is_refused(change, tmp_path):
    card = sealed(small_state(), arch=small_arch()) | change
    with saying('read_source', 'card', 'fetch'):
        load_weights(path_of(with_card(small_state(), {k: v for k, v in card.items() if v}), tmp_path))

@pytest.mark.parametrize('change', [
    lambda state: {**state, 'more': torch.ones(1)}, lambda state: {n: t for n, t in state.items() if 'num_b' not in n},
    lambda state: {n: t.half() if 'bias' in n else t for n, t in state.items()},
    lambda state: {n: t[None] if 'bias' in n else t for n, t in state.items()},
    lambda state: {n.replace('stage1', 'stage4'): t for n, t in state.items()}],
    ids=['more', 'less', 'half', 'shape', 'name'])
def test_changed_tensors_are_refused(change, tmp_path):
    card = sealed(small_state(), arch=small_arch())
    with saying('read_source', 'tensors', 'card', 'fetch'):
        load_weights(path_of(with_card(change(small_state()), card), tmp_path))

@pytest.mark.parametrize('text', ['', 'text', '{"a": 1', '[]', '[1]', '""', '0', 'null', '{"a": 1}{}', '\x00',
    '{"a": 1' + '0' * 5000 + '}', json.dumps(list(sealed(small_state(), arch=small_arch()).items()))], ids=range(12))
def test_card_that_is_no_object(text, tmp_path):
    with saying('read_source', 'a.safetensors', 'fetch'): read_source(path_of(with_card(small_state(), text), tmp_path))

def test_card_nested_too_deep(tmp_path):
    state = dict(a=torch.ones(1))
    start = json.dumps(dict(sha256=networks.digest(state)))[:-1]
    for depth in (*range(500, 1100), 10**5):
        with saying('read_source', 'a.safetensors', 'fetch'):
            read_source(path_of(with_card(state, f'{start}, "x": {"[" * depth}{"]" * depth}}}'), tmp_path))

def test_card_of_ten_megabytes(refused): refused(small_file(more='x' * 10**7), 'card')

vit, timm_resnet = 'timm/vit_tiny_patch16_224', 'timm/resnet18'

untrue_archs = {
    'wider': small_arch(width=4000), 'wider still': small_arch(width=10**9), 'deeper': small_arch(depth=10**9),
    'more classes': small_arch(n_classes=10**9), 'infinite': small_arch(width=math.inf),
    'nan': small_arch(n_classes=math.nan),
    'negative': small_arch(width=-3), 'text': small_arch(width='9'), 'list': small_arch(n_classes=[2]),
    '4,000 blocks': dict(name=vit, kwargs=dict(n_classes=2, depth=4000)),
    '16,000 layers': dict(name=timm_resnet, kwargs=dict(n_classes=2, layers=[4000] * 4)),
    'nested list': dict(name=timm_resnet, kwargs=dict(n_classes=2, layers=[[10**9]])),
    'no heads': dict(name=vit, kwargs=dict(n_classes=2, num_heads=0)),
    '7 heads': dict(name=vit, kwargs=dict(n_classes=2, num_heads=7)),
    'no patches': dict(name=vit, kwargs=dict(n_classes=2, patch_size=0)),
    'block of text': dict(name=timm_resnet, kwargs=dict(n_classes=2, block='x')),
    'features': dict(name=timm_resnet, kwargs=dict(n_classes=2, features_only=True)),
    'none': None, 'a list': [], 'a name': 'resnet9', 'no name': dict(kwargs={}), 'no kwargs': dict(name='resnet9'),
    'kwargs none': dict(name='resnet9', kwargs=None), 'kwargs list': dict(name='resnet9', kwargs=[]),
    'kwargs text': dict(name='resnet9', kwargs='abc'), 'name none': dict(name=None, kwargs=dict(n_classes=2)),
    'name number': dict(name=5, kwargs=dict(n_classes=2)),
    'name list': dict(name=['resnet9'], kwargs=dict(n_classes=2)),
    'name path': dict(name='../resnet9', kwargs=dict(n_classes=2)),
    'name Hub': dict(name='hf_hub:a/b', kwargs=dict(n_classes=2))}

@pytest.mark.parametrize('arch', untrue_archs)
def test_card_with_right_hashes_that_is_not_true(arch, refused):
    refused(small_file(arch=untrue_archs[arch]), 'load_weights', 'card', function='load_network')

@pytest.mark.parametrize('name', ['checkpoint_path', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay',
    'weights', 'weights_backbone', 'cache_dir', 'scriptable'])
def test_card_that_asks_for_other_files(name, tmp_path, monkeypatch):
    def build(*args, **kwargs): raise AssertionError('built')
    monkeypatch.setattr(weights, 'create_network', build)
    for network in ('resnet9', timm_resnet, 'torchvision/resnet18'):
        with saying('load_weights', repr(name)):
            load_weights(path_of(small_file(arch=small_arch(network, **{name: '/etc/passwd'})), tmp_path))

@pytest.mark.parametrize('key, value', [*product(['recipe', 'vocab', 'mean', 'metrics', 'more'],
    [5, 'x', [], [5], dict(task=5), dict(task=[])])])
def test_card_of_odd_kinds(key, value, tmp_path):
    "Read, or refused by us"
    try: read_source(path_of(small_file(**{key: value}), tmp_path))
    except ValueError as e: assert str(e).startswith('read_source: ')

# Checkpoints

@pytest.fixture(scope='module')
def learn():
    "A learner whose BatchNorm layers and optimiser have seen a batch"
    learn = task_learner(digits().subset(2), resnet9(10, width=2))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn

@each_format
@pytest.mark.parametrize('key, more', [('model', dict(opt=dict(state=[], lr=.1))),
    ('state_dict', dict(epoch=3, name='x')), ('ema', {})])
def test_state_is_found_in_a_checkpoint(key, more, options, tmp_path):
    (tmp_path/'a.pth').write_bytes(saved({key: small_state(), **more}, **options))
    assert bits(read_source(tmp_path/'a.pth').state) == bits(small_state())

@each_format
def test_checkpoint_with_two_states_is_refused(options, tmp_path):
    (tmp_path/'a.pth').write_bytes(saved(dict(epoch=3, model=small_state(), ema=small_state()), **options))
    with saying('read_source', "['model', 'ema']", 'pass the right one'): read_source(tmp_path/'a.pth')

@pytest.mark.parametrize('with_opt', [True, False])
def test_what_fastai_saves_is_read(with_opt, learn, tmp_path, monkeypatch):
    monkeypatch.setattr(learn, 'path', tmp_path)
    path = learn.save('a', with_opt=with_opt)
    assert bits(read_source(path).state) == bits(learn.model.cpu().state_dict())
    target = resnet9(10, width=2)
    assert transfer_weights(path, target, head=True).share == 1
    assert bits(target.state_dict()) == bits(learn.model.state_dict())

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64, torch.complex64,
    torch.uint8, torch.bool], ids=str)
def test_numbers_of_any_precision_are_read(dtype, tmp_path):
    state = dict(a=torch.arange(6).reshape(2, 3).to(dtype), b=torch.tensor(1).to(dtype), c=torch.ones(0, 2).to(dtype))
    for data in (save(state), saved(state), saved(state, **legacy)):
        (tmp_path/'a').write_bytes(data)
        assert bits(read_source(tmp_path/'a').state) == bits(state)

@each_format
def test_tensors_that_lie_oddly_in_memory_are_read(options, tmp_path):
    base = torch.arange(24.).reshape(2, 3, 4)
    state = dict(a=base, b=base[1], c=base.permute(2, 0, 1), d=base[:, ::2, 1], e=nn.Parameter(base[0]))
    (tmp_path/'a').write_bytes(saved(state, **options))
    assert bits(read_source(tmp_path/'a').state) == bits(state)

def test_files_are_read_by_what_they_hold(tmp_path):
    state = small_state()
    files = {'a.safetensors': saved(state), 'b.safetensors': saved(state, **legacy), 'a.pth': save(state)}
    for name, data in files.items():
        (tmp_path/name).write_bytes(data)
        assert bits(read_source(tmp_path/name).state) == bits(state)
    (tmp_path/'b.pth').write_bytes(small_file())
    assert load_weights(tmp_path/'b.pth').card['arch'] == small_arch()

@each_format
def test_torch_is_told_to_read_tensors_only(options, tmp_path, monkeypatch):
    told, torch_load = [], torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: [told.append(kwargs), torch_load(*args, **kwargs)][1])
    for name in ('load', 'loads', 'Unpickler'): monkeypatch.delattr(pickle, name)
    (tmp_path/'a').write_bytes(saved(small_state(), **options))
    read_source(tmp_path/'a')
    assert told and all(o['weights_only'] is True for o in told)

@pytest.mark.parametrize('old, new', [(rb'K\x00\)\)', b'K\x09))'), (rb'(K\x03\x85q.)K\x01\x85', rb'\1)')], ids=['a number', 'no strides'])
def test_tensor_outside_of_its_numbers_is_refused(old, new, tmp_path):
    "Torch does not pass an empty stride on; a number at place 9 of one made it ask for memory"
    data, n = re.subn(old, new, saved(dict(a=torch.tensor(7), b=torch.ones(3)), **legacy), flags=re.S)
    assert n == 1
    (tmp_path/'a').write_bytes(data)
    with saying('read_source', 'reaches outside'): read_source(tmp_path/'a')

def test_old_file_is_whole_after_a_kill(apart, tmp_path):
    path = path_of(small_file(), tmp_path)
    assert apart('save_killed', path).said == f'died of signal {signal.SIGKILL}'
    assert bits(load_weights(path).state_dict()) == bits(small_state())

# Saved and loaded

def test_loaded_network_predicts_the_same(learn, tmp_path):
    model = learn.model.cpu().to(memory_format=torch.contiguous_format)   # as it is loaded: another adds in another order
    fresh = resnet9(10, width=2).state_dict()
    assert all((t != fresh[n]).any() for n, t in model.state_dict().items() if 'running' in n or 'num_batches' in n)
    loaded, x = load_weights(save_weights(learn, tmp_path/'a.safetensors')), torch.randn(8, 3, 32, 32)
    assert bits(loaded.state_dict()) == bits(model.state_dict())
    assert torch.equal(loaded(x), model.eval()(x)) and not torch.equal(loaded(x), model.train()(x))

def test_metrics_come_back(learn, tmp_path):
    metrics = dict(valid_loss=math.nan, test_accuracy=.5, train_loss=math.inf)
    card = load_weights(save_weights(learn, tmp_path/'a.safetensors', metrics=metrics)).card
    assert math.isnan(card['metrics'].pop('valid_loss'))
    assert card['metrics'] == dict(test_accuracy=.5, train_loss=math.inf)

@pytest.mark.parametrize('name', ['accuracy', 'validation_accuracy', 'valid', 'my_valid_accuracy', ''])
def test_metric_without_a_split_is_refused(name, learn, tmp_path):
    with saying('save_weights', 'train_…', repr([name])):
        save_weights(learn, tmp_path/'a.safetensors', metrics={'valid_accuracy': 1., name: 1.})
    assert not list(tmp_path.iterdir())

# Mutated files

EDGES = 0, 1, 2, 3, 7, 255, 2**31 - 1, 2**32, 2**40, 2**53, 2**62, 2**63 - 1

def flip(data, rng, end): data[rng.randrange(end)] ^= 1 << rng.randrange(8)

def substitute(data, rng, end): data[rng.randrange(end)] = rng.choice(b'\0\1\x7f\x80\xff{}[]",:09az./')

def cut(data, rng, end): del data[rng.randrange(end):]

def append(data, rng, end): data += rng.randbytes(rng.randrange(1, 64))

def copy_block(data, rng, end):
    "Copy a block over another, or in between"
    i, j, n = rng.randrange(end), rng.randrange(end), rng.choice((1, 4, 8, 50, 200))
    data[j:j + n * rng.randrange(2)] = data[i:i + n]

def swap_blocks(data, rng, end):
    i, j, n = *sorted((rng.randrange(end), rng.randrange(end))), rng.choice((1, 4, 8, 50))
    if i + n <= j: data[i:i + n], data[j:j + n] = data[j:j + n], data[i:i + n]

def change_digit(data, rng, end): replace(rb'\d', data, rng, end, b'%d' % rng.randrange(10))

def change_number(data, rng, end):
    "Write another number into a pickle, in as many bytes as it needs"
    n = rng.choice((1, 1, -1)) * rng.choice(EDGES)
    long = b'\x8a\x08' + n.to_bytes(8, 'little', signed=True)
    replace(b'K.', data, rng, end, rng.choice((long, b'K' + bytes([rng.randrange(9)]))))

def replace(pattern, data, rng, end, new):
    "Put `new` in place of one of the matches"
    found = re.compile(pattern, re.S).search(data, rng.randrange(end))
    if found: data[found.start():found.end()] = new

anything = flip, substitute, cut, append, copy_block, swap_blocks, change_digit

def change_some(data, rng, end, changes=anything):
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data: rng.choice(changes)(data, rng, max(1, min(end, len(data))))
    return data

def header_end(data): return 8 + int.from_bytes(data[:8], 'little')

def change_length(data, rng):
    n = header_end(data) - 8
    data[:8] = rng.choice((n - 1, n + 1, 2 * n, rng.randrange(2 * n), 10**8, *EDGES)).to_bytes(8, 'little')

words = b'', b'x', b'../x', b'a..b', b'F16', b'I32', b'F8_E4M3', b'shape', b'dtype', b'card', b'sha256'

def edit_header(data, rng):
    "Change words, numbers, spaces or order of a header, and its length with them"
    end = header_end(data)
    head = data[8:end]
    change = rng.randrange(4)
    if change == 0: replace(rb'"[\w.]+"', head, rng, len(head), b'"%s"' % rng.choice(words))
    if change == 1: replace(rb'\d+', head, rng, len(head), b'%d' % rng.choice((-1, 2**64, *EDGES)))
    if change == 2: replace(rb'[:,]', head, rng, len(head), rng.choice((b', ', b': ', b' :')))
    if change == 3: head = shuffled(head, rng)
    data[:end] = len(head).to_bytes(8, 'little') + head

def shuffled(head, rng):
    try: items = list(json.loads(head).items())
    except (ValueError, AttributeError): return head
    return json.dumps(dict(rng.sample(items, len(items)))).encode()

def mutate_safetensors(data, rng):
    change = rng.randrange(5)
    if change == 0: change_length(data, rng)
    elif change == 1: change_some(data, rng, len(data))
    elif change == 2: change_some(data, rng, header_end(data))
    else: edit_header(data, rng)
    return data

def mutate_legacy(data, rng): return change_some(data, rng, len(data), (*anything, *(change_number,) * 5))

def mutate_zip(data, rng):
    "Change a part of the archive before it is closed, or anything after"
    if rng.randrange(2): return change_some(data, rng, len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as z: parts = {o: bytearray(z.read(o)) for o in z.namelist()}
    pickles = [o for o in parts if o.endswith('.pkl')]
    name = rng.choice(pickles if rng.randrange(3) else [*parts])
    changes = (*anything, *(change_number,) * 5) if name in pickles else anything
    return archive({**parts, name: change_some(parts[name], rng, len(parts[name]), changes)})

values = (None, True, 0, 1, 2, 3, -1, 1.5, 4096, 10**9, 1e300, math.nan, math.inf, '', '2', 'x', 'article_cnn', [], [2],
          [[2]], {}, dict(a=1), dict(task=2))

def mutate_card(data, rng):
    "Write another card, with hashes that are right"
    card = json.loads(json.dumps(fuzz_card))
    for _ in range(rng.choice((1, 1, 2))):
        inside = rng.choice([o for o in (card, card['arch'], card['arch']['kwargs']) if o])
        inside[rng.choice([*inside, 'depth', 'n_in'])] = rng.choice(values)
        if not isinstance(card['arch'], dict) or not isinstance(card['arch'].get('kwargs'), dict): break
    return with_card(small_state(), sealed(small_state(), **card))

mutations = dict(ours=mutate_safetensors, safetensors=mutate_safetensors, zip=mutate_zip, legacy=mutate_legacy,
                 cards=mutate_card)
n_files = dict(ours=4_500, safetensors=40_000, zip=4_500, legacy=1_200, cards=200)   # for each of two seeds
fuzz_card = dict(arch=small_arch(), recipe=dict(task='digits'), vocab=['a', 'b'], metrics=dict(valid_accuracy=.5))

def original(kind):
    "The file that is mutated"
    both = torch.arange(6.).reshape(2, 3)
    state = {'body.0.weight': both, 'body.0.bias': both[1].clone(), 'n': torch.tensor(7), 'x': torch.ones(4).half()}
    if kind == 'safetensors': return save(state)
    if kind in ('zip', 'legacy'): return saved({**state, 'tied': both[1]}, **(legacy if kind == 'legacy' else {}))
    return with_card(small_state(), sealed(small_state(), **fuzz_card))

def others_read(kind, data):
    "What safetensors or torch makes of a file"
    if kind not in ('zip', 'legacy'): return load(data)
    o = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
    found = ({n: t for n, t in d.items() if isinstance(t, torch.Tensor)}
             for d in (o, *o.values()) if isinstance(d, dict))
    return next(d for d in found if d)

def card_in(data): return json.loads(json.loads(data[8:header_end(data)])['__metadata__']['card'])

def read_rightly(kind, path, data):
    "Read a file; complain unless it is as it was written, or as others read it where it says nothing of that"
    src = read_source(path)
    if not src.card:
        assert bits(src.state) == bits(others_read(kind, data)), 'others read other tensors'
        return
    card = card_in(data if kind == 'cards' else original(kind))
    assert bits(src.state) == bits(small_state()), 'the tensors were not written so'
    assert json.dumps(src.card, sort_keys=True) == json.dumps(card, sort_keys=True), 'the card was not written so'
    model = load_weights(path)
    assert bits(model.state_dict()) == bits(src.state), 'the network has other tensors'

def fuzz_kind(kind, rng, path):
    "Read mutated files of a kind, and count how that ended; those that ended badly are kept"
    whole, counts, wrong = original(kind), dict(accepted=0, refused=0), []
    for i in range(n_files[kind]):
        data = bytes(mutations[kind](bytearray(whole), rng))
        path.write_bytes(data)
        try: read_rightly(kind, path, data)
        except Exception as e: said = f'{type(e).__name__}: {e}'
        else: said = ''
        if not said: counts['accepted'] += 1
        elif OURS.match(said) and not NO_MEMORY.search(said): counts['refused'] += 1
        else:
            wrong.append(f'{kind}-{i}: {said[:500]}')
            path.with_name(f'{kind}-{i}').write_bytes(data)
    return dict(counts, wrong=wrong)

def fuzz(seed, folder):
    warnings.simplefilter('ignore')
    folder, rng = Path(folder), random.Random(int(seed))
    warm_up(folder)
    limit_memory(64 * MB + 4 * len(original('ours')))
    for kind in n_files:
        start = time.process_time()
        result = fuzz_kind(kind, rng, folder/'file')
        sys.stdout.write(json.dumps(dict(result, kind=kind, time_s=time.process_time() - start)) + '\n')
        sys.stdout.flush()

@pytest.mark.parametrize('seed', [1, 2])
def test_mutated_files_are_read_rightly_or_refused(seed, tmp_path):
    "100,000 in both runs; a crash ends a run, and so does a file that takes more than 64 MB"
    assert 2 * sum(n_files.values()) >= 100_000
    end = subprocess.run(command('fuzz', seed, tmp_path), env=alone, capture_output=True, text=True, timeout=900)
    assert end.returncode == 0, f'ended with {end.returncode} at {tmp_path}/file:\n{end.stdout}{end.stderr[-3000:]}'
    results = {o['kind']: o for o in map(json.loads, end.stdout.splitlines())}
    assert {k: o['accepted'] + o['refused'] + len(o['wrong']) for k, o in results.items()} == n_files
    ends = '\n'.join(f"{k}: {o['accepted']} read, {o['refused']} refused, {len(o['wrong'])} wrong, {o['time_s']:.0f} s"
                     for k, o in results.items())
    wrong = [said for o in results.values() for said in o['wrong'][:9]]
    if wrong: pytest.fail('\n'.join([ends, f'the mutated files are in {tmp_path}', *wrong]), pytrace=False)
    for k, o in results.items(): assert min(o['accepted'], o['refused']) > n_files[k] / 100, ends

# Programs

if __name__ == '__main__': dict(fuzz=fuzz, serve=serve)[sys.argv[1]](*sys.argv[2:])
