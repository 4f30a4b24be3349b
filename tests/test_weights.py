"Weights: saved and loaded bit for bit, sent to the Hub and back; cards that are not true are refused"
import json, math, os, pickle, re, signal
from functools import lru_cache
from itertools import product
import huggingface_hub
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from hypothesis import given, strategies as st
from safetensors.torch import save
from torch import nn
from helpers import saying, some
from nbtransfer.files import digest, seal
from nbtransfer.finetuning import fine_tune, transfer_learner
from nbtransfer.folders import DataMissing
from nbtransfer.networks import article_cnn, create_network, resnet9
from nbtransfer.pretraining import Quiet, pretrain, task_learner
from nbtransfer.sources import from_hub, read_source
from nbtransfer.tasks import Task, digits, split_per_class
from nbtransfer.transfer import transfer_weights
from nbtransfer.weights import load_weights, pretrained, push_to_hub, save_weights
from weight_files import answers, bits, fill_with_any_bits, not_written_by_us, path_of, same, sealed, small_arch, small_file, small_state, with_card

pytest_plugins = ['weight_fixtures']

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

def test_old_file_is_whole_after_a_kill(apart, tmp_path):
    path = path_of(small_file(), tmp_path)
    assert apart('save_killed', path).said == f'died of signal {signal.SIGKILL}'
    assert bits(load_weights(path).state_dict()) == bits(small_state())

seeds = st.integers(0, 2**31)

networks = st.one_of(st.builds(lambda k: article_cnn(k), st.integers(2, 9)),
    st.builds(lambda k, width: resnet9(k, width), st.integers(2, 9), st.integers(1, 6)))

def state_bits(model): return bits(model.state_dict())

@lru_cache
def noise_task(n_classes):
    "A task of noise with three pictures of each class"
    labels = torch.arange(n_classes).repeat_interleave(3)
    images = torch.randint(256, (len(labels), 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    splits = split_per_class(labels, dict(test=.2, valid=.2), 0)
    return Task('noise', images, labels, [f'class {c}' for c in range(n_classes)], splits=splits)

@some(15)
@given(networks, seeds)
def test_loaded_network_is_the_saved_one_bit_for_bit(tmp_path_factory, network, seed):
    learn = task_learner(noise_task(network.head.out_features), fill_with_any_bits(network, seed))
    loaded = load_weights(save_weights(learn, tmp_path_factory.mktemp('saved')/'w.safetensors'))
    assert state_bits(loaded) == state_bits(network) and loaded.arch == network.arch and not loaded.training

@some(10)
@given(networks, seeds)
def test_half_precision_rounds_the_floats_once(tmp_path_factory, network, seed):
    torch.manual_seed(seed)
    for p in network.parameters(): torch.nn.init.normal_(p)
    learn = task_learner(noise_task(network.head.out_features), network)
    loaded = load_weights(save_weights(learn, tmp_path_factory.mktemp('saved')/'w.safetensors', half=True))
    expected = {n: t.half().float() if t.is_floating_point() else t for n, t in network.state_dict().items()}
    assert state_bits(loaded) == bits(expected)

# What is published is the user's

@pytest.fixture
def tuned(tmp_path):
    "A learner tuned from a file of ours, in a folder of somebody"
    source = save_weights(task_learner(digits().subset(2), resnet9(10, width=2)), tmp_path/'ann'/'source.safetensors', licence='Apache-2.0')
    learn = transfer_learner(digits().subset(3, seed=1).replaced(name='my digits'), source, cbs=[Quiet()])
    return fine_tune(learn, 1)

def test_card_after_fine_tuning(tuned, tmp_path):
    path = save_weights(tuned, tmp_path/'a.safetensors', out=tmp_path, command=f'nbtransfer finetune --out {tmp_path}/ann')
    card = read_source(path).card
    assert card['recipe']['task'] == 'my digits' and card['task_sha256'] == tuned.dls.task.fingerprint()
    assert card['licence'] is None
    assert card['command'] == 'nbtransfer finetune --out ann' and str(tmp_path) not in json.dumps(card)

def test_card_of_a_learner_that_fastai_trained(learn, tmp_path):
    card = read_source(save_weights(learn, tmp_path/'a.safetensors')).card
    assert card['recipe'] == dict(task=learn.dls.task.name)

@pytest.mark.parametrize('names', [[3, 7], ['ant', 'bee']], ids=['numbers', 'words'])
def test_classes_from_numpy(names, tmp_path):
    "Also for those who read labels with np.unique"
    vocab, labels = np.unique(np.repeat(names, 6), return_inverse=True)
    images = torch.randint(256, (12, 32, 32, 3), dtype=torch.uint8)
    task = Task('two', images, torch.from_numpy(labels), vocab, splits=split_per_class(torch.from_numpy(labels), dict(test=.2, valid=.2), 0))
    learn = task_learner(task, resnet9(2, width=2), cbs=[Quiet()])
    learn.fit(1)
    assert read_source(save_weights(learn, tmp_path/'a.safetensors')).card['vocab'] == names

def test_scalars_of_numpy_and_torch(tmp_path):
    learn = task_learner(digits().subset(2), create_network('resnet9', np.int64(10), width=np.int32(2)))
    facts = dict(metrics=dict(valid_accuracy=torch.tensor(.5)), seed=np.int64(3), made=np.datetime64('2026-12-01'))
    card = load_weights(save_weights(learn, tmp_path/'a.safetensors', **facts)).card
    assert card['arch']['kwargs'] == dict(n_classes=10, width=2, n_in=3)
    assert (card['metrics'], card['seed'], card['made']) == (dict(valid_accuracy=.5), 3, '2026-12-01')

@pytest.mark.parametrize('options, name', [(dict(norm_layer=nn.BatchNorm2d), '`norm_layer`'), (dict(lr_max=slice(1e-3, 1e-2)), '`lr_max`')])
def test_what_no_card_can_hold_stops_before_training(options, name):
    class Never(Callback):
        def before_batch(self): raise AssertionError('trained')
    with saying('check_facts', name, error=TypeError):
        pretrain(digits().subset(2), 'timm/test_resnet', 1, cbs=[Quiet(), Never()], **options)

def test_fact_that_no_card_can_hold_writes_nothing(learn, tmp_path):
    with saying('check_facts: `opt`', 'the class SGD', error=TypeError): save_weights(learn, tmp_path/'a.safetensors', opt=torch.optim.SGD)
    assert not list(tmp_path.iterdir())

# Cards

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

@pytest.mark.parametrize('depths', [(*range(500, 1100, 20), 10**5), pytest.param(range(500, 1100),
    marks=pytest.mark.nightly)], ids=['some', 'all'])
def test_card_nested_too_deep(depths, tmp_path):
    state = dict(a=torch.ones(1))
    start = json.dumps(dict(sha256=digest(state)))[:-1]
    for depth in depths:
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
    monkeypatch.setattr('nbtransfer.transfer.create_network', build)
    for network in ('resnet9', timm_resnet, 'torchvision/resnet18'):
        with saying('load_weights', repr(name)):
            load_weights(path_of(small_file(arch=small_arch(network, **{name: '/etc/passwd'})), tmp_path))

@pytest.mark.parametrize('key, value', [*product(['recipe', 'vocab', 'mean', 'metrics', 'more'],
    [5, 'x', [], [5], dict(task=5), dict(task=[])])])
def test_card_of_odd_kinds(key, value, tmp_path):
    "Read, or refused by us"
    try: read_source(path_of(small_file(**{key: value}), tmp_path))
    except ValueError as e: assert str(e).startswith('read_source: ')

# Files that hold no weights, and places that cannot be written

def tree(folder): return {str(o.relative_to(folder)): o.is_file() and o.read_bytes() for o in folder.rglob('*')}

def wide_tensors(): return {n: t.contiguous() for n, t in resnet9(3, width=2).state_dict().items()}

def with_any_card(card):
    "A file with this card; the hashes of a dict are made right where it does not give them"
    state = wide_tensors()
    if isinstance(card, dict) and card:
        card = dict(sha256=digest(state)) | card
        card |= dict(card_sha256=seal(card))
    return save(state, metadata=dict(card=card if isinstance(card, str) else json.dumps(card)))

def arch(name='resnet9', **kwargs): return dict(arch=dict(name=name, kwargs=dict(n_classes=3, width=2) | kwargs))

whole = with_any_card(arch())

wrong_files = {
    'text': b'weights', 'empty': b'', 'pickle': pickle.dumps(dict(a=1)), 'short': whole[:-9], 'header': whole[:20],
    'no card': save(wide_tensors()), 'no json': with_any_card('{"arch"'), 'list': with_any_card([1]), 'empty card': with_any_card({}),
    'no name': with_any_card(dict(arch={})), 'no arch': with_any_card(dict(arch=None)), 'wider': with_any_card(arch(width=4)),
    'more classes': with_any_card(arch(n_classes=4)), 'other network': with_any_card(arch('resnet99')),
    'unknown argument': with_any_card(arch(colour=3)), 'other digest': with_any_card(arch() | dict(sha256='0'))}

@pytest.mark.parametrize('name', wrong_files)
def test_file_that_holds_no_weights(name, tmp_path):
    path = tmp_path/'bad.safetensors'
    path.write_bytes(wrong_files[name])
    with saying("'resnet99'" if name == 'other network' else str(path)): load_weights(path)
    assert list(tmp_path.iterdir()) == [path]

def test_right_file_is_loaded(tmp_path):
    "So that the files above are refused for what is wrong with them"
    (tmp_path/'good.safetensors').write_bytes(whole)
    assert load_weights(tmp_path/'good.safetensors').arch == resnet9(3, width=2).arch

def test_refused_file_leaves_the_network_alone(tmp_path):
    path, model = tmp_path/'bad.safetensors', resnet9(3, width=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    path.write_bytes(whole[:-9])
    with saying(str(path)): transfer_weights(path, model, min_share=0)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())

@pytest.mark.parametrize('error', [OSError('No space left on device'), KeyboardInterrupt()], ids=['full', 'Ctrl-C'])
def test_weights_that_could_not_be_saved(error, learn, tmp_path, monkeypatch):
    path = save_weights(learn, tmp_path/'new'/'old.safetensors')
    before = tree(tmp_path)
    assert before['new/old.safetensors'] and len(before) == 2
    def stop(file): raise error   # the disk is full, or someone presses Ctrl-C
    monkeypatch.setattr(os, 'fsync', stop)
    for name in ('old', 'other'):
        with pytest.raises(type(error)): save_weights(learn, path.with_name(f'{name}.safetensors'), more='facts')
    assert tree(tmp_path) == before

def test_weights_saved_to_a_folder(learn, tmp_path):
    (tmp_path/'a.safetensors').mkdir()
    with saying('a.safetensors', error=OSError): save_weights(learn, tmp_path/'a.safetensors')
    with saying('must end in .safetensors', 'a.pth'): save_weights(learn, tmp_path/'a.pth')
    assert tree(tmp_path) == {'a.safetensors': False}

def test_loaders_without_a_task_are_refused_at_the_door(tmp_path):
    "fastai's own loaders have no size of pictures that a card could hold"
    pairs = [(torch.zeros(3, 32, 32), 0)] * 4
    learn = Learner(DataLoaders.from_dsets(pairs, pairs, bs=2, device='cpu'), resnet9(2, width=2), loss_func=nn.CrossEntropyLoss())
    with saying('save_weights', 'DataLoaders', 'task_learner', 'Task.dls'): save_weights(learn, tmp_path/'a.safetensors')
    assert tree(tmp_path) == {}

@pytest.mark.parametrize('call, parts', [
    (lambda: load_weights('resnet9-lettres'), ('resnet9-letters', "'resnet9-lettres'")),
    (lambda: pretrained('no/file.safetensors'), ('resnet9-letters', "'no/file.safetensors'"))])
def test_unknown_name(call, parts):
    with saying(*parts): call()

# Sent to the Hub, and back

def test_pushed_file_comes_back_byte_for_byte(hub, pushed, hub_files):
    assert from_hub('me/digits').read_bytes() == hub_files[0][0].read_bytes()
    assert pushed == f'{hub.endpoint}/me/digits/commit/{hub.repos["me/digits"]["hashes"][-1]}'

def test_pushed_network_predicts_the_same(pushed, hub_files):
    loaded, local = load_weights('me/digits'), load_weights(hub_files[0][0])
    assert torch.equal(answers(loaded), answers(hub_files[1][0])) and not loaded.training
    assert same(loaded.state_dict(), hub_files[1][0].state_dict())
    assert loaded.card == local.card and loaded.card['nth'] == 0 and loaded.card['vocab'] == [str(i) for i in range(10)]

def test_pushed_network_is_a_source(pushed, hub_files):
    model = resnet9(7, width=2)
    receipt = transfer_weights('me/digits', model)
    assert receipt.share == 1 and same(model.body.state_dict(), hub_files[1][0].body.state_dict())

def test_page_has_licence_and_card(hub, pushed, hub_files):
    page = hub.repos['me/digits']['commits'][-1]['README.md'].decode()
    about = huggingface_hub.ModelCard(page).data
    assert about.license == 'apache-2.0' and about.library_name == 'nbtransfer'
    shown = json.loads(re.search(r'```json\n(.*?)\n```', page, re.S)[1])
    assert shown == load_weights(hub_files[0][0]).card

def test_page_without_licence_names_none(hub, logged_in, tmp_path):
    learn = task_learner(digits(), resnet9(10, width=2))
    push_to_hub(save_weights(learn, tmp_path/'a.safetensors'), 'me/digits')
    page = hub.repos['me/digits']['commits'][-1]['README.md'].decode()
    assert huggingface_hub.ModelCard(page).data.license is None and 'license:' not in page

@pytest.mark.parametrize('repo_id', ['me/digits', 'digits'])
def test_line_of_the_page_loads_it(repo_id, hub, logged_in, hub_files):
    push_to_hub(hub_files[0][0], repo_id)
    page = hub.repos['me/digits']['commits'][-1]['README.md'].decode()
    names = {}
    exec(re.search(r'```python\n(.*?)\n```', page, re.S)[1], names)
    assert same(names['model'].state_dict(), hub_files[1][0].state_dict())

def test_pushing_again_keeps_the_old_revision(hub, pushed, hub_files):
    again = push_to_hub(hub_files[0][1], 'me/digits')
    assert again != pushed and len(hub.repos['me/digits']['commits']) == 3   # the first one made the repository
    old, new = f'me/digits@{pushed.rpartition("/")[2]}', 'me/digits'
    for name, i in ((new, 1), (old, 0), (new, 1)):
        assert load_weights(name).card['nth'] == i
        assert same(load_weights(name).state_dict(), hub_files[1][i].state_dict())
    model = resnet9(10, width=2)
    transfer_weights(old, model)
    assert same(model.body.state_dict(), hub_files[1][0].body.state_dict())

def test_pushing_leaves_other_files_alone(hub, logged_in, hub_files):
    hub.add('me/digits', {'notes.txt': b'mine', 'README.md': b'old'})
    push_to_hub(hub_files[0][0], 'me/digits')
    now = hub.repos['me/digits']['commits'][-1]
    assert now['notes.txt'] == b'mine' and now['README.md'] != b'old' and now['model.safetensors']

@pytest.mark.parametrize('private', [False, True])
def test_private_is_passed_on(private, hub, logged_in, hub_files):
    push_to_hub(hub_files[0][0], 'me/digits', private=private)
    assert hub.repos['me/digits']['private'] is private
    push_to_hub(hub_files[0][1], 'me/digits')   # of a new repository only
    assert hub.repos['me/digits']['private'] is private

def test_private_repository_needs_a_token(hub, hub_files, monkeypatch):
    push_to_hub(hub_files[0][0], 'me/digits', private=True, token='hf_me')
    with saying('me/digits', 'log in', error=DataMissing): load_weights('me/digits')
    monkeypatch.setenv('HF_TOKEN', 'hf_me')
    assert load_weights('me/digits').card['nth'] == 0

# What is not sent

def test_push_without_a_token(hub, hub_files):
    with pytest.raises(Exception, match='401'): push_to_hub(hub_files[0][0], 'me/digits')
    assert not hub.repos and not hub.sent

def test_push_to_a_hub_that_is_lost(hub, logged_in, lose, hub_files):
    lose()
    with pytest.raises(Exception, match='refused|connect'): push_to_hub(hub_files[0][0], 'me/digits')
    assert not hub.repos

def test_push_to_a_bad_name(hub, logged_in, hub_files):
    with saying('me/my digits'): push_to_hub(hub_files[0][0], 'me/my digits')
    assert not hub.repos

@pytest.mark.parametrize('kind', not_written_by_us)
def test_file_that_is_not_ours_is_refused_before_any_request(kind, hub, logged_in, hub_files, tmp_path):
    path = tmp_path/'a.safetensors'
    path.write_bytes(not_written_by_us[kind](hub_files[0][0]))
    with saying('a.safetensors'): push_to_hub(path, 'me/digits')
    with saying('none.safetensors'): push_to_hub(tmp_path/'none.safetensors', 'me/digits')
    assert not hub.requests

@pytest.mark.parametrize('kind, part', [('number', 'tensors'), ('card', 'card')])
def test_tampered_file_is_refused(kind, part, hub, pushed, hub_files):
    hub.add('me/digits', {'model.safetensors': not_written_by_us[kind](hub_files[0][0])})
    model = resnet9(10, width=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for call in (load_weights, lambda o: transfer_weights(o, model)):
        with saying(f'the {part} in', 'not'): call('me/digits')
    assert same(model.state_dict(), before)

def test_revision_in_the_cache_outlives_the_hub(hub, pushed, lose):
    name = f'me/digits@{pushed.rpartition("/")[2]}'
    card = load_weights(name).card
    lose()
    assert load_weights(name).card == card

# Mutated files

sample = dict(ours=150, safetensors=600, zip=150, legacy=80, cards=20)         # for each of two seeds
n_files = dict(ours=4_500, safetensors=40_000, zip=4_500, legacy=1_200, cards=200)

@pytest.mark.parametrize('n_files', [sample, pytest.param(n_files, marks=pytest.mark.nightly)], ids=['2000', '100000'])
@pytest.mark.parametrize('seed', [1, 2])
def test_mutated_files_are_read_rightly_or_refused(seed, n_files, server, tmp_path):
    "2,000 or 100,000 in both runs; a crash ends a run, and so does a file that takes more than 64 MB"
    assert 2 * sum(n_files.values()) in (2_000, 100_800)
    results = server('fuzz', seed, n_files, str(tmp_path))
    assert 'said' not in results, f"{results['said']} at {tmp_path}/file"
    assert {k: o['accepted'] + o['refused'] + len(o['wrong']) for k, o in results.items()} == n_files
    ends = '\n'.join(f"{k}: {o['accepted']} read, {o['refused']} refused, {len(o['wrong'])} wrong, {o['time_s']:.0f} s"
                     for k, o in results.items())
    wrong = [said for o in results.values() for said in o['wrong'][:9]]
    if wrong: pytest.fail('\n'.join([ends, f'the mutated files are in {tmp_path}', *wrong]), pytrace=False)
    for k, o in results.items(): assert min(o['accepted'], o['refused']) > n_files[k] / 100, ends
