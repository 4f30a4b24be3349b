"Pickles: those that lie or run code are refused, whatever they claim; whole ones are read as they were written"
import os, pickle, re, struct, zipfile
from itertools import product
import pytest
import torch
from helpers import saying
from nbtransfer.networks import resnet9
from nbtransfer.sources import read_source
from weight_files import (Call, Storage, archive, each_format, each_maker, four, legacy, legacy_file, ops, saved,
    small_state, view, zip_file, zip_records)

pytest_plugins = ['weight_fixtures']

@each_maker
def test_file_made_by_hand_is_read(make, tmp_path):
    "So that those below are refused for what is wrong with them"
    (tmp_path/'a.pth').write_bytes(make(dict(a=view(4, 4), b=view(4, 2, offset=2)), four))
    assert torch.load(tmp_path/'a.pth')['b'].tolist() == [3, 4]
    state = read_source(tmp_path/'a.pth').state
    assert state['a'].tolist() == [1, 2, 3, 4] and state['b'].tolist() == [3, 4]

# Files that claim more than they hold

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

def test_parser_is_not_heard(tmp_path, capfd):
    (tmp_path/'a.pth').write_bytes(legacy_file(dict(a=view(4, 2, offset=-2)), four))
    with saying('read_source', 'a.pth'): read_source(tmp_path/'a.pth')
    assert capfd.readouterr() == ('', '')

@pytest.mark.parametrize('old, new', [(rb'K\x00\)\)', b'K\x09))'), (rb'(K\x03\x85q.)K\x01\x85', rb'\1)')], ids=['a number', 'no strides'])
def test_tensor_outside_of_its_numbers_is_refused(old, new, tmp_path):
    "Torch does not pass an empty stride on; a number at place 9 of one made it ask for memory"
    data, n = re.subn(old, new, saved(dict(a=torch.tensor(7), b=torch.ones(3)), **legacy), flags=re.S)
    assert n == 1
    (tmp_path/'a').write_bytes(data)
    with saying('read_source', 'reaches outside'): read_source(tmp_path/'a')

@pytest.mark.parametrize('name', ['../x', 'w/../../x', '/etc/x', '\\x', 'w/data/../0'])
def test_archive_that_names_files_outside(name, tmp_path):
    (tmp_path/'a').write_bytes(archive(zip_records(dict(a=view(4, 4)), four) | {name: b'x'}))
    before = set(tmp_path.parent.iterdir())
    with saying('read_source', 'outside'): read_source(tmp_path/'a')
    assert set(tmp_path.parent.iterdir()) == before and list(tmp_path.iterdir()) == [tmp_path/'a']

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

@each_format
def test_torch_is_told_to_read_tensors_only(options, tmp_path, monkeypatch):
    told, torch_load = [], torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, **kwargs: [told.append(kwargs), torch_load(*args, **kwargs)][1])
    for name in ('load', 'loads', 'Unpickler'): monkeypatch.delattr(pickle, name)
    (tmp_path/'a').write_bytes(saved(small_state(), **options))
    read_source(tmp_path/'a')
    assert told and all(o['weights_only'] is True for o in told)
