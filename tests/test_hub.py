"Weights by name: sent to the Hugging Face Hub, and fetched from it, timm and torchvision; all on this machine"
import hashlib, io, json, pickle, re, socket
from pathlib import Path
import huggingface_hub
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save
from helpers import saying
from hub import Hub
from nbtransfer.networks import create_network, resnet9
from nbtransfer.pretraining import task_learner
from nbtransfer.similarity import rank_sources
from nbtransfer.tasks import DataMissing, digits
from nbtransfer.weights import from_hub, load_weights, push_to_hub, read_source, save_weights, transfer_weights

@pytest.fixture(autouse=True)
def on_this_machine(monkeypatch, tmp_path):
    "Empty caches, nobody logged in, no look at an address of the internet, no waiting between attempts"
    look_up, asked = socket.getaddrinfo, []
    def here_only(host, *args, **kwargs):
        asked.append(host)
        if host != '127.0.0.1': raise OSError('no network in tests')
        return look_up(host, *args, **kwargs)
    monkeypatch.setattr(socket, 'getaddrinfo', here_only)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    for name in ('no_proxy', 'NO_PROXY'): monkeypatch.setenv(name, '127.0.0.1')
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'): monkeypatch.delenv(name, raising=False)
    for name, value in dict(   # read when huggingface_hub is imported, so too late for the environment
        HF_HUB_CACHE=str(tmp_path/'hub'), HF_TOKEN_PATH=str(tmp_path/'token'), HF_HUB_OFFLINE=False,
        HF_HUB_DISABLE_XET=True, AGENT_HARNESSES_PATH=str(tmp_path/'agents.json')).items():
        monkeypatch.setattr(constants, name, value, raising=False)
    (tmp_path/'agents.json').write_text('{"harnesses": {}}')   # a list that huggingface_hub would fetch
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    yield
    assert set(asked) <= {'127.0.0.1'}

@pytest.fixture
def hub(monkeypatch):
    "An empty Hub, to which nobody has logged in"
    with Hub() as hub:
        monkeypatch.setenv('HF_ENDPOINT', hub.endpoint)
        yield hub

@pytest.fixture
def logged_in(hub, monkeypatch): monkeypatch.setenv('HF_TOKEN', 'hf_me')

@pytest.fixture
def lose(hub, monkeypatch):
    "A function that takes the Hub away for the rest of the test"
    return lambda: monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')

def gets(hub, name): return [path for method, path in hub.requests if method == 'GET' and path.endswith(name)]

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Two files of `save_weights` for the same task, and the networks in them"
    folder = tmp_path_factory.mktemp('files')
    learners = [task_learner(digits(), resnet9(10, width=2), seed=s) for s in (0, 1)]
    for i, learn in enumerate(learners):
        scramble(learn.model)
        save_weights(learn, folder/f'{i}.safetensors', licence='Apache-2.0', metrics=dict(valid_accuracy=.1), nth=i)
    return [folder/f'{i}.safetensors' for i in (0, 1)], [learn.model for learn in learners]

def scramble(model):
    "Give a network random tensors that no other has, none as it was built, through which pictures still can be seen"
    rng = torch.Generator().manual_seed(sum(p.numel() for p in model.parameters()))
    with torch.no_grad():
        for t in model.state_dict().values():
            if t.ndim > 1: t.normal_(0, (2 / t[0].numel()) ** .5, generator=rng)
            elif t.is_floating_point(): t.add_(torch.rand(t.shape, generator=rng) - .5, alpha=.2)
    return model.eval()

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

# Sent to the Hub, and back

@pytest.fixture
def pushed(hub, logged_in, files):
    "Address of the commit that sent the first file"
    return push_to_hub(files[0][0], 'me/digits')

def test_pushed_file_comes_back_byte_for_byte(hub, pushed, files):
    assert from_hub('me/digits').read_bytes() == files[0][0].read_bytes()
    assert pushed == f'{hub.endpoint}/me/digits/commit/{hub.repos["me/digits"]["hashes"][-1]}'

def test_pushed_network_predicts_the_same(pushed, files):
    loaded, local = load_weights('me/digits'), load_weights(files[0][0])
    assert torch.equal(answers(loaded), answers(files[1][0])) and not loaded.training
    assert same(loaded.state_dict(), files[1][0].state_dict())
    assert loaded.card == local.card and loaded.card['nth'] == 0 and loaded.card['vocab'] == [str(i) for i in range(10)]

def test_pushed_network_is_a_source(pushed, files):
    model = resnet9(7, width=2)
    receipt = transfer_weights('me/digits', model)
    assert receipt.share == 1 and same(model.body.state_dict(), files[1][0].body.state_dict())

def test_page_has_licence_and_card(hub, pushed, files):
    page = hub.repos['me/digits']['commits'][-1]['README.md'].decode()
    about = huggingface_hub.ModelCard(page).data
    assert about.license == 'apache-2.0' and about.library_name == 'nbtransfer'
    shown = json.loads(re.search(r'```json\n(.*?)\n```', page, re.S)[1])
    assert shown == load_weights(files[0][0]).card

def test_page_without_licence_says_other(hub, logged_in, tmp_path):
    learn = task_learner(digits(), resnet9(10, width=2))
    push_to_hub(save_weights(learn, tmp_path/'a.safetensors'), 'me/digits')
    page = hub.repos['me/digits']['commits'][-1]['README.md'].decode()
    assert huggingface_hub.ModelCard(page).data.license == 'other'

@pytest.mark.parametrize('repo_id', ['me/digits', 'digits'])
def test_line_of_the_page_loads_it(repo_id, hub, logged_in, files):
    push_to_hub(files[0][0], repo_id)
    page = hub.repos['me/digits']['commits'][-1]['README.md'].decode()
    names = {}
    exec(re.search(r'```python\n(.*?)\n```', page, re.S)[1], names)
    assert same(names['model'].state_dict(), files[1][0].state_dict())

def test_pushing_again_keeps_the_old_revision(hub, pushed, files):
    again = push_to_hub(files[0][1], 'me/digits')
    assert again != pushed and len(hub.repos['me/digits']['commits']) == 3   # the first one made the repository
    old, new = f'me/digits@{pushed.rpartition("/")[2]}', 'me/digits'
    for name, i in ((new, 1), (old, 0), (new, 1)):
        assert load_weights(name).card['nth'] == i
        assert same(load_weights(name).state_dict(), files[1][i].state_dict())
    model = resnet9(10, width=2)
    transfer_weights(old, model)
    assert same(model.body.state_dict(), files[1][0].body.state_dict())

def test_pushing_leaves_other_files_alone(hub, logged_in, files):
    hub.add('me/digits', {'notes.txt': b'mine', 'README.md': b'old'})
    push_to_hub(files[0][0], 'me/digits')
    now = hub.repos['me/digits']['commits'][-1]
    assert now['notes.txt'] == b'mine' and now['README.md'] != b'old' and now['model.safetensors']

@pytest.mark.parametrize('private', [False, True])
def test_private_is_passed_on(private, hub, logged_in, files):
    push_to_hub(files[0][0], 'me/digits', private=private)
    assert hub.repos['me/digits']['private'] is private
    push_to_hub(files[0][1], 'me/digits')   # of a new repository only
    assert hub.repos['me/digits']['private'] is private

def test_private_repository_needs_a_token(hub, files, monkeypatch):
    push_to_hub(files[0][0], 'me/digits', private=True, token='hf_me')
    with saying('me/digits', 'log in', error=DataMissing): load_weights('me/digits')
    monkeypatch.setenv('HF_TOKEN', 'hf_me')
    assert load_weights('me/digits').card['nth'] == 0

# What is not sent

def test_push_without_a_token(hub, files):
    with pytest.raises(Exception, match='401'): push_to_hub(files[0][0], 'me/digits')
    assert not hub.repos and not hub.sent

def test_push_to_a_hub_that_is_lost(hub, logged_in, lose, files):
    lose()
    with pytest.raises(Exception, match='refused|connect'): push_to_hub(files[0][0], 'me/digits')
    assert not hub.repos

def test_push_to_a_bad_name(hub, logged_in, files):
    with saying('me/my digits'): push_to_hub(files[0][0], 'me/my digits')
    assert not hub.repos

def changed(path, **card):
    "A file's bytes with one number of its tensors changed, or something in its card, and no hash"
    with safe_open(path, 'pt') as f: state, old = {n: f.get_tensor(n) for n in f.keys()}, f.metadata()['card']
    if not card: state['head.bias'][0] += 1
    return save(state, metadata=dict(card=json.dumps({**json.loads(old), **card}) if card else old))

not_written_by_us = {
    'no card': lambda path: save(tensors()), 'pickle': lambda path: torch_save(tensors()), 'text': lambda path: b'text',
    'short': lambda path: path.read_bytes()[:-9], 'number': changed, 'card': lambda path: changed(path, licence='MIT')}

@pytest.mark.parametrize('kind', not_written_by_us)
def test_file_that_is_not_ours_is_refused_before_any_request(kind, hub, logged_in, files, tmp_path):
    path = tmp_path/'a.safetensors'
    path.write_bytes(not_written_by_us[kind](files[0][0]))
    with saying('a.safetensors'): push_to_hub(path, 'me/digits')
    with saying('none.safetensors'): push_to_hub(tmp_path/'none.safetensors', 'me/digits')
    assert not hub.requests

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
    with saying('one file of weights', 'me/net', 'README.md'): from_hub('me/net')

@pytest.mark.parametrize('ending', ['safetensors', 'bin', 'pth'])
def test_several_weight_files_are_named(ending, hub):
    names = [f'{o}.{ending}' for o in ('last', 'best')]
    hub.add('me/net', {o: save(tensors()) for o in names})
    with saying('one file of weights', f'best.{ending}', f'last.{ending}', 'name its path'): read_source('me/net')
    assert not gets(hub, ending)

def test_one_safetensors_file_comes_before_pickles(hub):
    hub.add('me/net', {'a.bin': b'no', 'b.bin': b'no', 'net.safetensors': save(tensors())})
    assert same(read_source('me/net').state, tensors())

def test_model_safetensors_comes_before_all(hub):
    hub.add('me/net', {'other.safetensors': b'no', 'pytorch_model.bin': b'no', 'model.safetensors': save(tensors())})
    assert same(read_source('me/net').state, tensors())

@pytest.mark.parametrize('name', ['me/my/net', 'me/my net', 'me/net..', '../net', '', 'me/' + 99 * 'n'])
def test_bad_name_of_a_repository(name, hub):
    with saying('from_hub: owner/name is needed', name): from_hub(name)
    assert not hub.requests

@pytest.mark.parametrize('name', ['me/my/net', 'me/my net', '../net', 'me/net@', 'http://me/net', ''])
def test_bad_name_of_a_source(name, hub):
    with saying('read_source', 'owner/name', repr(name)): load_weights(name)
    assert not hub.requests

@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_hub_that_is_lost(name, hub, lose):
    hub.add('me/net', {name: save(tensors())})
    lose()
    with saying('me/net', 'connect and call again', error=DataMissing): load_weights('me/net')

@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_hub_that_is_lost_with_the_file_in_the_cache(name, hub, lose):
    hub.add('me/net', {name: save(tensors())})
    assert same(read_source('me/net').state, tensors())
    lose()
    assert same(read_source('me/net').state, tensors())

def test_revision_in_the_cache_outlives_the_hub(hub, pushed, lose):
    name = f'me/digits@{pushed.rpartition("/")[2]}'
    card = load_weights(name).card
    lose()
    assert load_weights(name).card == card

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

class Bomb:
    "Writes a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)

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

@pytest.mark.parametrize('kind, part', [('number', 'tensors'), ('card', 'card')])
def test_tampered_file_is_refused(kind, part, hub, pushed, files):
    hub.add('me/digits', {'model.safetensors': not_written_by_us[kind](files[0][0])})
    model = resnet9(10, width=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for call in (load_weights, lambda o: transfer_weights(o, model)):
        with saying(f'the {part} in', 'not'): call('me/digits')
    assert same(model.state_dict(), before)

def test_tensors_of_a_stranger(hub):
    "Without a card they can be carried, by name, into a network that the user builds"
    hub.add('you/net', {'model.safetensors': save(tensors(), metadata=dict(format='pt'))})
    model = resnet9(5, width=2)
    receipt = transfer_weights('you/net', model)
    assert receipt.share == 1 and receipt.source == 'you/net'
    assert torch.equal(answers(model.body), answers(network(tensors()).body))
    with saying('load_weights: a card', 'you/net', 'transfer_weights'): load_weights('you/net')

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
def cached(tmp_path): return lambda: [o.name for o in (tmp_path/'torch').rglob('*') if o.is_file()]

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
