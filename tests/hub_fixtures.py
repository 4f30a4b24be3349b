"""A Hub on this machine, empty caches beside it, and small networks to send and fetch

Its fixtures are for test modules that name it in `pytest_plugins`. Every test that starts the Hub is marked `process`."""
import io, json, socket
from pathlib import Path
import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save
import helpers   # first of ours: this checkout, whatever is installed
from hub import Hub
from nbtransfer.networks import resnet9
from nbtransfer.pretraining import task_learner
from nbtransfer.tasks import digits
from nbtransfer.weights import push_to_hub, save_weights

assert helpers.PACKAGE.is_dir()

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if {'hub', 'server'} & set(getattr(item, 'fixturenames', ())): item.add_marker('process')

@pytest.fixture
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
def hub(on_this_machine, monkeypatch):
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

@pytest.fixture(scope='session')
def hub_files(tmp_path_factory):
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

@pytest.fixture
def pushed(hub, logged_in, hub_files):
    "Address of the commit that sent the first file"
    return push_to_hub(hub_files[0][0], 'me/digits')

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
