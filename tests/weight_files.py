"""Files of weights made by hand: whole ones, those that lie, and mutated ones

Run as a program, this file reads them in processes of their own; `weight_fixtures` starts it."""
import io, json, math, os, pickle, random, re, resource, signal, struct, sys, time, warnings, zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
import pytest
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load, save
import helpers   # first of ours: this checkout, whatever is installed
from nbtransfer import weights
from nbtransfer.files import digest, seal
from nbtransfer.networks import resnet9
from nbtransfer.sources import read_source
from nbtransfer.weights import load_weights

assert helpers.PACKAGE == Path(weights.__file__).parent

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

def with_card(state, card):
    "The bytes of a file of tensors and a card, which may be any text"
    return save(state, metadata=dict(card=card if isinstance(card, str) else json.dumps(card)))

def sealed(state, **card):
    "A card whose hashes are right"
    card = {**card, 'sha256': digest(state)}
    return {**card, 'card_sha256': seal(card)}

@cache
def small_state():
    "The tensors of a network of 2,000 numbers"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet9(2, width=1).state_dict()

def small_arch(name='resnet9', **kwargs): return dict(name=name, kwargs=dict(n_classes=2, width=1) | kwargs)

def small_file(**card): return with_card(small_state(), sealed(small_state(), **dict(arch=small_arch()) | card))

def path_of(data, tmp_path):
    (tmp_path/'a.safetensors').write_bytes(data)
    return tmp_path/'a.safetensors'

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

each_format = pytest.mark.parametrize('options', [{}, legacy], ids=['zip', 'legacy'])
each_maker = pytest.mark.parametrize('make', [zip_file, legacy_file], ids=['zip', 'legacy'])

# Networks to send and fetch

def scramble(model):
    "Give a network random tensors that no other has, none as it was built, through which pictures still can be seen"
    rng = torch.Generator().manual_seed(sum(p.numel() for p in model.parameters()))
    with torch.no_grad():
        for t in model.state_dict().values():
            if t.ndim > 1: t.normal_(0, (2 / t[0].numel()) ** .5, generator=rng)
            elif t.is_floating_point(): t.add_(torch.rand(t.shape, generator=rng) - .5, alpha=.2)
    return model.eval()

def fill_with_any_bits(model, seed):
    "Fill all parameters and buffers with random bits, NaN and infinity among them"
    rng = np.random.default_rng(seed)
    for t in model.state_dict().values():
        t.copy_(torch.from_numpy(np.frombuffer(rng.bytes(t.nbytes), t.numpy().dtype).copy()).view(t.shape))
    return model

def pictures(size_px=32): return torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))

def answers(model, size_px=32):
    "What a network makes of two pictures, which it has to tell apart"
    model.to(memory_format=torch.contiguous_format)   # of all alike: another adds in another order
    with torch.no_grad(): out = model.eval()(pictures(size_px))
    assert out.isfinite().all() and (out[0] - out[1]).abs().max() > 1e-3 * out.abs().max()
    return out

def tensors(seed=0):
    torch.manual_seed(seed)
    return {n: t.contiguous() for n, t in resnet9(3, width=2).state_dict().items()}

def torch_save(o):
    out = io.BytesIO()
    torch.save(o, out)
    return out.getvalue()

def gets(hub, name): return [path for method, path in hub.requests if method == 'GET' and path.endswith(name)]

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

def changed(path, **card):
    "A file's bytes with one number of its tensors changed, or something in its card, and no hash"
    with safe_open(path, 'pt') as f: state, old = {n: f.get_tensor(n) for n in f.keys()}, f.metadata()['card']
    if not card: state['head.bias'][0] += 1
    return save(state, metadata=dict(card=json.dumps({**json.loads(old), **card}) if card else old))

not_written_by_us = {
    'no card': lambda path: save(tensors()), 'pickle': lambda path: torch_save(tensors()), 'text': lambda path: b'text',
    'short': lambda path: path.read_bytes()[:-9], 'number': changed, 'card': lambda path: changed(path, licence='MIT')}

class Bomb:
    "Writes a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)

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
    for data in (saved(dict(a=torch.ones(2))), saved(dict(a=torch.ones(2)), **legacy), small_file(), small_file(
            arch=small_arch(width=math.nan))):
        (folder/'warm').write_bytes(data)
        be_refused(folder/'warm')

def be_refused(path):
    try: load_network(path)
    except ValueError: pass

def measured(name, path, warm):
    """Run a function of this file on a file, with memory for 4 times its bytes and 64 MB

    Before, a network of the file `warm` is refused: a fresh copy of a process has none of torch's code in memory, which
    comes there as it is used, and is not what the file takes."""
    warnings.simplefilter('ignore')
    be_refused(warm)
    signal.alarm(20)
    limit_memory(4 * os.path.getsize(path) + 64 * MB)
    before, start = memory('VmRSS'), time.process_time()
    try: said = globals()[name](path)
    except BaseException as e: said = f'{type(e).__name__}: {e}'
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    return dict(said=said[:20_000], time_s=time.process_time() - start, grown=grown)

def serve(folder):
    "Run a function of this file, as asked for on stdin, each time in a copy of this process"
    warm_up(Path(folder))
    for line in sys.stdin:
        result, answer = os.pipe()
        child = os.fork()
        if not child:
            name, *args = json.loads(line)
            with os.fdopen(answer, 'wb') as file: file.write(json.dumps(globals()[name](*args)).encode())
            os._exit(0)
        os.close(answer)
        status = os.waitpid(child, 0)[1]
        with os.fdopen(result, 'rb') as f: said = f.read().decode()
        sys.stdout.write((said or json.dumps(dict(said=f'died of signal {status}', time_s=0, grown=0))) + '\n')
        sys.stdout.flush()

alone = {**os.environ, 'OMP_NUM_THREADS': '1', 'RUST_BACKTRACE': '0'}

def command(*args): return [sys.executable, __file__, *map(str, args)]

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

def fuzz_kind(kind, n, rng, path):
    "Read so many mutated files of a kind, and count how that ended; those that ended badly are kept"
    whole, counts, wrong = original(kind), dict(accepted=0, refused=0), []
    for i in range(n):
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

def fuzz(seed, n_files, folder):
    "Read so many mutated files of each kind, with memory for 64 MB and 4 times the bytes of one"
    warnings.simplefilter('ignore')
    folder, rng, results = Path(folder), random.Random(seed), {}
    limit_memory(64 * MB + 4 * len(original('ours')))
    for kind, n in n_files.items():
        start = time.process_time()
        result = fuzz_kind(kind, n, rng, folder/'file')
        results[kind] = dict(result, time_s=time.process_time() - start)
    return results

# Programs

if __name__ == '__main__': serve(sys.argv[1])
