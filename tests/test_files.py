"""Files of weights: those that lie are refused, whatever they claim, and whole ones read as they were written

Run as a program, this file reads mutated files (`fuzz`), or runs functions in processes of their own (`serve`)."""
import io, json, math, os, pickle, random, re, resource, signal, struct, subprocess, sys, time, warnings, zipfile
from collections import OrderedDict
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from helpers import ROOT
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from nbtransfer import weights
from nbtransfer.networks import resnet9
from nbtransfer.pretraining import task_learner
from nbtransfer.tasks import digits
from nbtransfer.weights import load_weights, read_source, save_weights, transfer_weights

MB = 1 << 20
OURS = re.compile('ValueError: (read_source|load_weights): ')
NO_MEMORY = re.compile('MemoryError|alloc')   # what Python, Rust and torch say when they got less than they asked for

def saying(*parts, error=ValueError):
    "Expect an error whose message has all `parts`, in this order"
    return pytest.raises(error, match='(?s)' + '.*'.join(map(re.escape, parts)))

def bits(state): return {n: (t.dtype, t.shape, number_bytes(t)) for n, t in state.items()}

def number_bytes(t): return t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b''

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
    card = {**card, 'sha256': weights._digest(state)}
    return {**card, 'card_sha256': weights._seal(card)}

def small_state():
    "The tensors of a network of 3,000 numbers"
    torch.manual_seed(0)
    return {n: t.contiguous() for n, t in resnet9(2, width=1).state_dict().items()}

def small_arch(name='resnet9', **kwargs): return dict(name=name, kwargs=dict(n_classes=2, width=1) | kwargs)

def small_file(**card): return with_card(small_state(), sealed(small_state(), **dict(arch=small_arch()) | card))

# Files of torch.save, made by hand

class Storage:
    "A storage that claims what it likes"
    def __init__(self, numel, key='0'): self.id = 'storage', torch.FloatStorage, key, 'cpu', numel

class Call:
    "An object that is made by a call when it is unpickled"
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call

def view(storage, size, stride=(1,), offset=0):
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())

def pickled(o, is_legacy=False, protocol=2):
    out = io.BytesIO()
    class Pickler(pickle.Pickler):
        def persistent_id(self, o): return o.id + (None,) * is_legacy if isinstance(o, Storage) else None
    Pickler(out, protocol).dump(o)
    return out.getvalue()

def archive(records, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', compression) as z:
        for name, data in records.items(): z.writestr(name, data)
    return out.getvalue()

def zip_file(o, *storages, protocol=2, compression=zipfile.ZIP_STORED):
    "What torch.save writes for `o`, an object or its pickle"
    records = {'w/data.pkl': o if isinstance(o, bytes) else pickled(o, protocol=protocol), 'w/version': b'3\n'}
    return archive(records | {f'w/data/{i}': data for i, data in enumerate(storages)}, compression)

def legacy_file(o, *storages, protocol=2, keys=None):
    "What torch.save once wrote for `o`, an object or its pickle"
    about = dict(protocol_version=1001, little_endian=True, type_sizes=dict(short=2, int=4, long=4))
    parts = [0x1950a86a20f9469cfc6c, 1001, about, o, [str(i) for i in range(len(storages))] if keys is None else keys]
    return b''.join([*(p if isinstance(p, bytes) else pickled(p, True, protocol) for p in parts),
                     *(struct.pack('<q', len(s) // 4) + s for s in storages)])

def ops(code): return b'\x80\2' + code + b'.'

def named_a(code): return ops(b'}X\1\0\0\0a' + code + b's')

both_formats = {'zip': zip_file, 'legacy': legacy_file}

four = struct.pack('<4f', 1, 2, 3, 4)

def test_files_made_by_hand_are_read():
    "So that those below are refused for what is wrong with them"
    good = dict(a=view(Storage(4), (2, 2), (2, 1)))
    for make in (zip_file, legacy_file):
        read = torch.load(io.BytesIO(make(good, four)), weights_only=True)
        assert read['a'].tolist() == [[1, 2], [3, 4]]

@pytest.mark.parametrize('make', both_formats.values(), ids=both_formats)
def test_file_made_by_hand_is_read_by_us(make, tmp_path):
    (tmp_path/'a.pth').write_bytes(make(dict(a=view(Storage(4), (2, 2), (2, 1))), four))
    assert read_source(tmp_path/'a.pth').state['a'].tolist() == [[1, 2], [3, 4]]

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
    "Import and cache what reading needs, in place of the first file's reader"
    for name, data in dict(ours=small_file(), zip=zip_file({}), legacy=legacy_file({})).items():
        (folder/name).write_bytes(data)
        for o in (saved(dict(a=torch.ones(2))), saved(dict(a=torch.ones(2)), **legacy), data):
            (folder/name).write_bytes(o)
            try: load_network(folder/name)
            except ValueError: pass
        (folder/name).unlink()

def measured(name, path):
    "Run a function of this file on a file, with memory for 4 times its bytes and 64 MB"
    warnings.simplefilter('ignore')
    signal.alarm(60)
    before, start = memory('VmRSS'), time.process_time()
    limit_memory(4 * os.path.getsize(path) + 64 * MB)
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
        sys.stdout.write((said or json.dumps(dict(said=f'died: {status}', time_s=0, grown=0))) + '\n')
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
        assert OURS.match(end.said) or end.said.endswith('tensors'), end.said
        assert not NO_MEMORY.search(end.said), f'it was asked for: {end.said}'
        assert end.grown < max(50 * MB, 4 * len(data)), f'{end.grown / MB:.0f} MB for {len(data)} bytes: {end.said}'
        assert end.time_s < 5, end
        return end.said
    return run

@pytest.fixture
def refused(ends_well):
    "A function that sees bytes refused by us, in little time and memory"
    def run(data, *parts, function='read'):
        said = ends_well(data, function)
        assert OURS.match(said), said
        for part in parts: assert part in said
        return said
    return run

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
n_files = dict(ours=12_000, safetensors=31_000, zip=5_500, legacy=1_500, cards=400)   # for each of two seeds
fuzz_card = dict(arch=small_arch(), recipe=dict(task='digits'), vocab=['a', 'b'], metrics=dict(valid_accuracy=.5))

def original(kind):
    "The file that is mutated"
    both = torch.arange(6.).reshape(2, 3)
    state = {'body.0.weight': both, 'body.0.bias': both[1].clone(), 'n': torch.tensor(7), 'half.x': torch.ones(4).half()}
    if kind == 'safetensors': return save(state)
    if kind in ('zip', 'legacy'): return saved({**state, 'tied': both[1]}, **(legacy if kind == 'legacy' else {}))
    return with_card(small_state(), sealed(small_state(), **fuzz_card))

def others_read(kind, data):
    "What safetensors or torch makes of a file"
    if kind not in ('zip', 'legacy'): return load(data)
    o = torch.load(io.BytesIO(data), weights_only=True)
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
    wrong = [o for r in results.values() for o in r['wrong']]
    assert not wrong, f'{len(wrong)} in {tmp_path}, such as\n' + '\n'.join(wrong[:20])
    few = {k: o for k, o in results.items() if min(o['accepted'], o['refused']) < n_files[k] / 100}
    assert not few

# Programs

if __name__ == '__main__': dict(fuzz=fuzz, serve=serve)[sys.argv[1]](*sys.argv[2:])
