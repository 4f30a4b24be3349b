"""Fixtures of weights: processes of their own to read files in, and a Hub on this machine with empty caches beside it

A test module that names this one in `pytest_plugins` has them. Every test that starts either is marked `process`."""
import json, socket, subprocess
from types import SimpleNamespace
import pytest
from huggingface_hub import constants
from hub import Hub
from nbtransfer.networks import resnet9
from nbtransfer.pretraining import task_learner
from nbtransfer.tasks import digits
from nbtransfer.weights import push_to_hub, save_weights
from weight_files import MB, NO_MEMORY, OURS, alone, command, scramble

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if {'hub', 'server'} & set(getattr(item, 'fixturenames', ())): item.add_marker('process')

# A learner

@pytest.fixture(scope='module')
def learn():
    "A learner whose BatchNorm layers and optimiser have seen a batch"
    learn = task_learner(digits().subset(2), resnet9(10, width=2))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn

# Processes of their own

@pytest.fixture(scope='session')
def server(tmp_path_factory):
    "A function that has one of this file's run in a process of its own, and tells what it gave or how that ended"
    folder = tmp_path_factory.mktemp('serve')
    server = subprocess.Popen(command(folder), stdin=subprocess.PIPE, text=True, stdout=subprocess.PIPE, env=alone)
    def run(name, *args):
        server.stdin.write(json.dumps([name, *args]) + '\n')
        server.stdin.flush()
        return json.loads(server.stdout.readline())
    run.warm = str(folder/'warm')
    yield run
    server.kill()   # between two questions it holds nothing
    server.wait()

@pytest.fixture
def apart(server):
    "A function that runs one of this file's on a file, with little memory, and tells how that ended"
    return lambda name, path: SimpleNamespace(**server('measured', name, str(path), server.warm))

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

# The Hub

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

@pytest.fixture(scope='session')
def hub_files(tmp_path_factory):
    "Two files of `save_weights` for the same task, and the networks in them"
    folder = tmp_path_factory.mktemp('files')
    learners = [task_learner(digits(), resnet9(10, width=2), seed=s) for s in (0, 1)]
    for i, learn in enumerate(learners):
        scramble(learn.model)
        save_weights(learn, folder/f'{i}.safetensors', licence='Apache-2.0', metrics=dict(valid_accuracy=.1), nth=i)
    return [folder/f'{i}.safetensors' for i in (0, 1)], [learn.model for learn in learners]

@pytest.fixture
def pushed(hub, logged_in, hub_files):
    "Address of the commit that sent the first file"
    return push_to_hub(hub_files[0][0], 'me/digits')
