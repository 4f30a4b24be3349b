"Features that are computed once: the same as without, found again while nothing changes, and never when something did"
import os, time
from collections import OrderedDict
from copy import deepcopy
from functools import cache
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import lr_find  # noqa: F401, gives Learner its `lr_find`
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import TensorImage, set_seed
from fastai.vision.augment import aug_transforms
from fasttransform import Transform
from hypothesis import given, strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from helpers import saying, some, write_folder
from nbtransfer import features
from nbtransfer.augmentation import AffineAugment, Cutout, ReflectCrop
from nbtransfer.features import Features, body_features, head_learner, linear_probe
from nbtransfer.finetuning import freeze, transfer_learner
from nbtransfer.folders import FileTask, image_folder
from nbtransfer.loaders import TaskSplit
from nbtransfer.networks import article_cnn, body_and_head, create_network, layer_groups, resnet9
from nbtransfer.pretraining import Checkpoint, Quiet, SkipValid, compute_settings, task_learner
from nbtransfer.tasks import Task, digits, normalization

few, plain, splits = digits().subset(5), compute_settings(precision=torch.float32), ('train', 'valid', 'test')
archs = dict(article_cnn=('article_cnn', {}), resnet9=('resnet9', dict(width=8)),
    convnext=('timm/convnext_atto', dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 32), drop_path_rate=.2)),
    vit=('timm/vit_tiny_patch16_224', dict(img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3, proj_drop_rate=.1)))
training = pytest.mark.training
each_arch = pytest.mark.parametrize('name', [pytest.param(name, marks=[] if name == 'resnet9' else training) for name in archs])

@cache
def source(name):
    "A network whose BatchNorm has seen something"
    torch.manual_seed(0)
    model = create_network(archs[name][0], 26, **archs[name][1])
    model.train()(torch.randn(32, 3, 32, 32) + .2)
    return model

def carried(name='resnet9', *cbs, task=few, bs=25, augment=False, compute=plain, **kwargs):
    return transfer_learner(task, source(name), bs=bs, augment=augment, cbs=[Quiet(), *cbs], compute=compute, **kwargs)

def copied(task, **changes):
    "A task of its own, that can be changed"
    own = Task('own', task.images.clone(), task.labels.clone(), task.vocab, splits=task.splits)
    for k, v in changes.items(): setattr(own, k, v)
    return own

def pixels(learn, split):
    "Pictures of a split as the network gets them, computed by hand"
    data = learn.dls[splits.index(split)].dataset
    mean, std = (torch.tensor(o).view(3, 1, 1) for o in normalization(learn.dls))
    return (data.images[data.idxs].permute(0, 3, 1, 2) / 255 - mean) / std

def by_hand(learn, split, times=1):
    body = deepcopy(learn.model[0]).eval()
    with torch.no_grad(): return body(times * pixels(learn, split))

def predicted(learn, split):
    "Probabilities that the head gives from features"
    with torch.no_grad(): return learn.model[1](body_features(learn, split).feats[0]).softmax(1)

def close(a, b, eps=1e-5): return a.shape == b.shape and (a - b).abs().max() <= eps

def states_equal(a, b): return all(torch.equal(t, b[n]) for n, t in a.items())

def cloned(model): return {n: t.clone() for n, t in model.state_dict().items()}

class Passes:
    "Counts the batches and pictures that go through a body; raises an error at a batch"
    def __init__(self, learn, fail_at=None, error=None):
        self.pictures, self.n, self.fail_at, self.error = 0, 0, fail_at, error
        learn.model[0].register_forward_hook(self)
    def __call__(self, body, args, out):
        self.pictures, self.n = self.pictures + len(out), self.n + 1
        if self.n == self.fail_at: raise self.error

@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('NBTRANSFER_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'/'features'

def files(folder): return sorted(o.name for o in folder.glob('*')) if folder.exists() else []

# The same numbers

@each_arch
def test_head_of_features_is_the_network(name):
    learn, augmented = carried(name), carried(name, augment=True)
    for i, split in enumerate(splits):
        feats = body_features(learn, split)
        assert close(predicted(learn, split), learn.get_preds(i)[0]) and close(feats.feats[0], by_hand(learn, split))
        assert torch.equal(feats.labels, few.labels[few.splits[split]]) and feats.vocab == few.vocab
        assert feats.feats.dtype == torch.float32 and not feats.feats.requires_grad
        assert feats.feats.shape[:2] == (1, len(few.splits[split])) == (1, len(feats))
        assert torch.equal(body_features(augmented, split).feats, feats.feats), 'the picture as it is'

def test_features_as_a_data_set():
    feats = Features(torch.arange(24.).view(2, 4, 3), torch.tensor([0, 1, 1, 0]), ['a', 'b'])
    x, y = feats.batch([3, 1])
    assert torch.equal(x, feats.feats[0][[3, 1]]) and y.tolist() == [0, 1] and len(feats) == 4 and feats.c == 2
    feats.view = 1
    assert torch.equal(feats[2][0], feats.feats[1, 2]) and feats[2][1] == 1

@pytest.mark.parametrize('split, n_views, says', [('Train', 0, "split must be one of ('train', 'valid', 'test'); got 'Train'"),
    (0, 0, 'got 0'), ('train', -1, 'n_views must be at least 0 (got -1)'), ('valid', 1, "only train is augmented"),
    ('valid', 1, "got 'valid', n_views=1"), ('test', 2, "got 'test', n_views=2")])
def test_what_is_no_split_is_refused(split, n_views, says):
    with saying('body_features: ', says): body_features(carried(), split, n_views)

# Training on them

def compare(live, cached, n_epochs=8):
    "Train one frozen, another's head on features; both must end alike"
    set_seed(3)
    live.fit_one_cycle(n_epochs, 1e-2)
    before, head = cloned(cached.model[0]), cloned(cached.model[1])
    learn = head_learner(cached, cbs=[Quiet()])
    set_seed(3)
    learn.fit_one_cycle(n_epochs, 1e-2)
    assert not states_equal(head, cached.model[1].state_dict()) and states_equal(before, cached.model[0].state_dict())
    for n, t in live.model.state_dict().items(): assert t.dtype == torch.int64 or close(t, cached.model.state_dict()[n]), n
    for i in range(3): assert close(live.get_preds(i)[0], cached.get_preds(i)[0])
    return learn

@training
@each_arch
def test_training_is_the_same(name):
    live, cached = carried(name), carried(name)
    freeze(live)
    learn = compare(live, cached)
    for a, b in zip(live.curves.rows, learn.curves.rows, strict=True): assert a == pytest.approx(b, abs=1e-4)

@training
@pytest.mark.parametrize('bs', [50, 16, 7])
def test_batches_are_the_same(bs):
    "Also where the last pictures of an epoch are left out"
    live, cached = carried('vit', bs=bs), carried('vit', bs=bs)
    freeze(live)
    compare(live, cached, 3)

def with_own_head(*layers):
    def build():
        set_seed(0)
        head = nn.Sequential(*deepcopy(layers), nn.Linear(64, 10))
        return nn.Sequential(OrderedDict(body=deepcopy(source('resnet9').body), head=head))
    live, cached = (task_learner(few, build(), 25, False, cbs=[Quiet()], compute=plain, train_bn=False) for _ in range(2))
    freeze(live)
    return live, cached

heads = dict(dropout=[nn.Dropout()], batchnorm=[nn.BatchNorm1d(64)], deep=[nn.Linear(64, 64), nn.ReLU(), nn.Dropout(.2)])

@training
@pytest.mark.parametrize('name', heads)
def test_heads_of_several_layers(name): compare(*with_own_head(*heads[name]), n_epochs=4)

@training
def test_bfloat16():
    rounded = compute_settings(precision=torch.bfloat16)
    live, cached = (carried('vit', compute=rounded) for _ in range(2))
    freeze(live)
    live.fit_one_cycle(4, 1e-2)
    head_learner(cached, cbs=[Quiet()]).fit_one_cycle(4, 1e-2)
    assert 'forward' not in cached.model.head.__dict__
    assert close(live.get_preds()[0], cached.get_preds()[0], .05)
    assert torch.equal(body_features(cached).feats, body_features(carried('vit', compute=plain)).feats), 'float32 either way'
    head = body_and_head(cached.model)[1]
    with torch.no_grad(): logits = head(body_features(cached, 'valid').feats[0])
    assert close(cached.get_preds(act=lambda x: x)[0], logits, 1e-4), 'what a head scores is what its network scores'

# Views

class Inputs(Callback):
    "Keep what is trained on"
    order = 80
    def __init__(self): self.seen = {}
    def before_batch(self):
        if self.training: self.seen.setdefault(self.epoch, []).append((self.xb[0].clone(), self.yb[0].clone()))

@training
@pytest.mark.parametrize('n_views', [1, 3])
def test_an_epoch_takes_the_next_view(n_views):
    learn, inputs = carried(augment=True), Inputs()
    feats = body_features(learn, 'train', n_views)
    head_learner(learn, n_views, cbs=[Quiet(), inputs]).fit(2 * n_views + 1, 1e-3)
    assert list(inputs.seen) == list(range(2 * n_views + 1))
    for epoch, batches in inputs.seen.items():
        x, y = (torch.cat(o) for o in zip(*batches))
        found = (x[:, None] == feats.feats[epoch % n_views][None]).all(-1).nonzero()
        assert found[:, 0].tolist() == list(range(50)) == sorted(found[:, 1].tolist())
        assert torch.equal(y, feats.labels[found[:, 1]]) and found[:, 1].tolist() != list(range(50))

augments = dict(article=True, crop=[ReflectCrop(mirror=False), Cutout()], fastai=None, files=True)

@training
@pytest.mark.parametrize('name', augments)
def test_views_are_chosen_by_the_seed_alone(name, tmp_path):
    task = image_folder(write_folder(tmp_path/'pets', 24), in_memory=False) if name == 'files' else few
    def views(k, chance, seed=0):
        learn = carried(task=task, augment=aug_transforms() if name == 'fastai' else augments[name], bs=8)
        set_seed(chance)
        return body_features(learn, 'train', k, seed).feats
    feats, other = views(3, 0), views(2, 0, 1)
    as_it_is = body_features(carried(task=task), 'train').feats[0]
    for v in feats: assert (v != as_it_is).any(1).float().mean() > .9
    for i, j in ((0, 1), (0, 2), (1, 2)): assert (feats[i] != feats[j]).any(1).float().mean() > .9
    assert not torch.equal(other, feats[:2])
    assert torch.equal(views(2, 7), feats[:2]), 'more views begin with the same'

@training
def test_training_on_views_can_be_repeated():
    heads = []
    for chance in (0, 1):
        learn = carried(augment=True)
        set_seed(chance)
        head_learner(learn, 2, 5, cbs=[Quiet()]).fit(3, 1e-2)
        heads.append(cloned(learn.model.head))
    assert states_equal(*heads)

# Computed again, or not

places = pytest.mark.parametrize('in_memory', [True, False], ids=['memory', 'disk'])

def shifted(t):
    with torch.no_grad(): t += .3

def of_loaders(**kwargs):
    def change(learn): learn.dls = learn.dls.train_ds.task.dls(25, **kwargs)
    return change

def another_picture(learn): learn.dls.train_ds.images[learn.dls.train_ds.idxs[3], 5, 5] ^= 128

def another_label(learn): learn.dls.train_ds.labels[learn.dls.train_ds.idxs[3]] ^= 1

class Inverted(Transform):
    "Of all pictures, whether trained on or not"
    order = 200
    def encodes(self, x:TensorImage): return -x

stats = [.5, .4, .3], [.2, .2, .2]
changes = {   # what changes, and which of features and labels it changes, with and without views
    'a weight': lambda learn: shifted(learn.model.body.stage2.down.conv.weight[0, 0, 0, 0]),
    "BatchNorm's mean": lambda learn: shifted(learn.model.body.stem.bn.running_mean),
    "BatchNorm's variance": lambda learn: shifted(learn.model.body.stage3.residual.conv2.bn.running_var),
    'a picture': another_picture, 'a label': another_label, 'normalisation': of_loaders(augment=False, stats=stats),
    'a transform of all pictures': of_loaders(augment=[Inverted()])}

@places
@pytest.mark.parametrize('name', changes)
def test_computed_anew_when_something_changed(name, in_memory, cache_folder):
    learn = carried(task=copied(few))
    passes, first = Passes(learn), body_features(learn, in_memory=in_memory)
    feats, labels = first.feats.clone(), first.labels.clone()
    assert body_features(learn, in_memory=in_memory) is first and passes.n == 1
    changes[name](learn)
    second = body_features(learn, in_memory=in_memory)
    assert passes.n == 2 and second is not first
    assert torch.equal(second.feats, feats) == (name == 'a label') and torch.equal(second.labels, labels) == (name != 'a label')
    unknown = name == 'a transform of all pictures'   # one that the package does not know
    assert close(second.feats[0], by_hand(learn, 'train', -1 if unknown else 1))
    assert unknown or body_features(learn, in_memory=in_memory) is second and len(files(cache_folder)) == (0 if in_memory else 4)

of_views = {'views': dict(n_views=3), 'seed': dict(seed=1), 'no views': dict(n_views=0), 'nothing': {}}
augmentations = {'other numbers': [AffineAugment(40)], 'one more': [AffineAugment(), Cutout()], 'none': False,
    'of fastai': aug_transforms(max_rotate=40), 'other numbers of fastai': aug_transforms(max_rotate=2, max_zoom=1.)}

@places
@pytest.mark.parametrize('name', of_views)
def test_views_are_computed_anew(name, in_memory, cache_folder):
    learn = carried(augment=True)
    passes, first = Passes(learn), body_features(learn, n_views=2, in_memory=in_memory)
    second = body_features(learn, in_memory=in_memory, **{'n_views': 2, **of_views[name]})
    assert passes.n == {'views': 5, 'seed': 4, 'no views': 3, 'nothing': 2}[name] and (second is first) == (name == 'nothing')
    assert torch.equal(second.feats, first.feats) == (name == 'nothing')

@pytest.mark.parametrize('name', ['article', 'crop'])
def test_views_are_found_again(name):
    learn = carried(augment=augments[name])
    passes = Passes(learn)
    assert len({id(body_features(learn, n_views=2)) for _ in range(3)}) == 1 and passes.n == 2

@training
@places
def test_views_are_computed_anew_when_augmentation_changes(in_memory, cache_folder):
    learn = carried(augment=True)
    passes, seen = Passes(learn), [body_features(learn, n_views=2, in_memory=in_memory).feats.clone()]
    for i, (name, augment) in enumerate(augmentations.items()):
        of_loaders(augment=augment)(learn)
        seen.append(body_features(learn, n_views=2, in_memory=in_memory).feats.clone())
        assert passes.n == 2 * (i + 2), name
        assert not any(torch.equal(seen[-1], o) for o in seen[:-1]), name

def test_seed_matters_to_views_only():
    learn = carried(augment=True)
    assert body_features(learn, seed=0) is body_features(learn, seed=1)

def test_splits_and_learners_are_kept_apart():
    learn, other = carried(), carried('vit')
    passes, kept = [Passes(o) for o in (learn, other)], {}
    for _ in range(2):
        for o in (learn, other):
            for split in splits:
                feats = body_features(o, split)
                assert kept.setdefault((id(o), split), feats) is feats
    assert len({o.pictures for o in passes} | {sum(len(data) for data in kept.values()) // 2}) == 1 and len({len(o) for o in kept.values()}) == 3

def test_training_a_head_computes_once(cache_folder):
    learn = carried(augment=True)
    passes = Passes(learn)
    for _ in range(2):
        head = head_learner(learn, 2, cbs=[Quiet()])
        head.fit(3, 1e-2)
        linear_probe(learn, 2, Cs=[.1])
    assert passes.pictures == 2 * 50 + len(learn.dls.valid_ds) and files(cache_folder) == []   # two views, and valid

def test_validation_that_is_skipped_needs_no_features():
    "Nor does a learner that was made and not used"
    learn = carried(task=copied(few))
    passes = Passes(learn)
    head_learner(learn, cbs=[Quiet(), SkipValid()]).fit(2, 1e-2)
    assert passes.n <= 2

# On the disk

@training
def test_found_again_by_another_learner(cache_folder):
    kinds = [('train', 0), ('train', 2), ('valid', 0), ('test', 0)]
    first = [body_features(carried(augment=True), split, k, in_memory=False) for split, k in kinds]
    assert len(files(cache_folder)) == 8 and not any(o.startswith('.') for o in files(cache_folder))
    for in_memory in (False, None):
        learn = carried(augment=True)
        passes = Passes(learn)
        for (split, k), a in zip(kinds, first):
            b = body_features(learn, split, k, in_memory=in_memory)
            assert torch.equal(a.feats, b.feats) and torch.equal(a.labels, b.labels) and a.vocab == b.vocab
        assert passes.n == 0
        assert close(predicted(learn, 'test'), learn.get_preds(2)[0])
    in_memory = carried(augment=True)
    for (split, k), a in zip(kinds, first): assert torch.equal(body_features(in_memory, split, k, in_memory=True).feats, a.feats)

@training
def test_training_from_the_disk(cache_folder, monkeypatch):
    "Where memory is short, nothing else has to be said"
    live, cached = carried('vit'), carried('vit')
    freeze(live)
    monkeypatch.setattr(features, 'fits', lambda *args: False)
    compare(live, cached, 3)
    assert len(files(cache_folder)) == 4

def test_files_are_not_changed_by_those_who_use_them(cache_folder):
    feats = body_features(carried(), in_memory=False)
    before = feats.feats.clone()
    feats.feats.add_(1)
    feats.labels.zero_()
    again = body_features(carried(), in_memory=False)
    assert torch.equal(again.feats, before) and torch.equal(again.labels, few.labels[few.splits['train']])

def damage(folder, what):
    feats, labels = sorted(folder.glob('*'), key=lambda o: o.suffix == '.labels')
    data = feats.read_bytes()
    if what == 'cut short': feats.write_bytes(data[:-4])
    if what == 'head only': feats.write_bytes(data[:128])
    if what == 'empty': feats.write_bytes(b'')
    if what == 'no labels': labels.unlink()
    if what == 'labels cut short': labels.write_bytes(labels.read_bytes()[:-8])
    if what == 'no features': feats.unlink()
    if what == 'still being written': feats.rename(feats.with_name(f'.{feats.stem}.1.npy'))

damages = 'cut short', 'head only', 'empty', 'no labels', 'labels cut short', 'no features', 'still being written'

@pytest.mark.parametrize('what', damages)
def test_partial_files_are_never_found(what, cache_folder):
    learn = carried()
    before = body_features(carried(), in_memory=False).feats.clone()
    damage(cache_folder, what)
    passes, feats = Passes(learn), body_features(learn, in_memory=False)
    assert passes.n == 1 and torch.equal(feats.feats, before) and len(feats) == 50
    assert len([o for o in files(cache_folder) if not o.startswith('.')]) == 2

@places
@pytest.mark.parametrize('error', [KeyboardInterrupt(), ValueError('no')], ids=['Ctrl-C', 'error'])
def test_error_in_the_middle_leaves_nothing(error, in_memory, cache_folder):
    learn = carried(augment=True)
    learn.model.train()
    learn.model.body.stem.eval()
    passes, modes = Passes(learn, 3, error), [m.training for m in learn.model.modules()]
    with pytest.raises(type(error)): body_features(learn, n_views=4, in_memory=in_memory)
    assert learn.dls.train_ds.split_idx == 0 and torch.is_grad_enabled() and not torch.is_autocast_enabled('cpu')
    assert [m.training for m in learn.model.modules()] == modes
    assert files(cache_folder) == []
    assert body_features(learn, n_views=4, in_memory=in_memory).feats.isfinite().all() and passes.n == 7

def test_no_room_on_the_disk(cache_folder, monkeypatch):
    learn, n_bytes = carried(augment=True), 4 * 2 * 50 * 64
    def room(free): return lambda path: SimpleNamespace(free=free)
    monkeypatch.setattr(features.shutil, 'disk_usage', room(n_bytes - 1))
    with saying('body_features: 0 MiB', str(cache_folder), 'make room', 'NBTRANSFER_CACHE', 'fewer views', error=OSError):
        body_features(learn, n_views=2, in_memory=False)
    assert files(cache_folder) == [] and learn.dls.train_ds.split_idx == 0
    monkeypatch.setattr(features.shutil, 'disk_usage', room(10**6))
    assert len(body_features(learn, n_views=2, in_memory=False).feats) == 2

def test_old_files_go(cache_folder):
    body_features(carried(), in_memory=False)
    old, month = files(cache_folder), time.time() - 31 * 86_400
    (cache_folder/'.0.1.npy').write_bytes(b'of a process that was killed')
    for o in cache_folder.iterdir(): os.utime(o, (month, month))
    body_features(carried(), 'valid', in_memory=False)
    assert len(files(cache_folder)) == 2 and not set(files(cache_folder)) & {*old, '.0.1.npy'}

# Pictures that stay in their files

@pytest.fixture
def pets(tmp_path): return write_folder(tmp_path/'pets', 24)

def of_files(pets, size_px=32, **kwargs): return image_folder(pets, size_px, in_memory=False, **kwargs)

def features_of(task, split='train', **kwargs):
    "Features of a new learner, and how many batches were computed"
    learn = carried(task=task, bs=8, **kwargs)
    passes = Passes(learn)
    return body_features(learn, split, in_memory=False), passes.n

@training
def test_files_or_memory(pets, cache_folder):
    "The same pictures give the same features"
    task, held = of_files(pets), image_folder(pets, in_memory=True)
    assert isinstance(task, FileTask)
    for split in splits:
        a, b = (body_features(carried(task=o, bs=8, augment=True), split) for o in (task, held))
        assert torch.equal(a.labels, b.labels) and a.labels.tolist() == task.labels[task.splits[split]].tolist()
    learn = carried(task=task, bs=8)
    for i, split in enumerate(splits): assert close(predicted(learn, split), learn.get_preds(i)[0])

def test_files_are_known_by_name_size_and_time(pets, cache_folder):
    first, n = features_of(of_files(pets))
    again, none = features_of(of_files(pets))
    assert n > 0 == none and torch.equal(first.feats, again.feats) and torch.equal(first.labels, again.labels)
    task = of_files(pets)
    file = task.files[task.splits['train'][2]]
    Image.fromarray(np.full((20, 24, 3), 77, np.uint8)).save(file)
    os.utime(file, ns=(1, 1))
    changed, m = features_of(of_files(pets))
    assert m == n and (changed.feats != first.feats).any(2).sum() >= 1   # normalisation changes a little too

@training
def test_files_read_at_another_size(pets, cache_folder):
    stats = [.5] * 3, [.3] * 3
    def read(size_px):
        learn = task_learner(of_files(pets, size_px), resnet9(2, width=2), 8, False, stats=stats, compute=plain, cbs=[Quiet()])
        set_seed(0)
        learn.model.load_state_dict(resnet9(2, width=2).state_dict())
        passes = Passes(learn)
        return body_features(learn, in_memory=False), passes.n
    large, n = read(32)
    small, m = read(16)
    assert n == m > 0 and not torch.equal(small.feats, large.feats)

@training
def test_files_under_other_class_numbers(pets, cache_folder):
    task = of_files(pets)
    turned = FileTask(task.name, task.files, 1 - task.labels, task.vocab[::-1], splits=task.splits, size_px=32)
    turned.stats = task.stats
    for o in (task, turned):
        feats, _ = features_of(o)
        assert feats.vocab == o.vocab and torch.equal(feats.labels, o.labels[o.splits['train']])

# The head alone

@training
def test_head_is_shared_and_body_left_alone(tmp_path):
    learn = carried(augment=True)
    learn.model.train()
    learn.model.body.stage1.eval()
    for p in learn.model.body.stage2.parameters(): p.requires_grad_(False)
    body, preds = cloned(learn.model.body), learn.get_preds()[0]
    learn.model.body.train()
    learn.model.body.stage1.eval()
    facts = [(m.training, [p.requires_grad for p in m.parameters()]) for m in learn.model.body.modules()]
    head = head_learner(learn, 2, cbs=[Quiet()])
    assert head.model is learn.model.head
    head.model_dir = tmp_path
    before = cloned(learn.model.head)
    head.lr_find(num_it=10, show_plot=False)
    assert states_equal(before, learn.model.head.state_dict())
    head.fit_one_cycle(3, 1e-2)
    assert facts == [(m.training, [p.requires_grad for p in m.parameters()]) for m in learn.model.body.modules()]
    assert states_equal(body, learn.model.body.state_dict()) and not states_equal(before, learn.model.head.state_dict())
    assert all(p.grad is None for p in learn.model.body.parameters())
    assert not close(learn.get_preds()[0], preds, .01) and close(learn.get_preds()[0], head.get_preds()[0])
    assert learn.validate()[1] == pytest.approx(head.validate()[1]) == head.curves.rows[-1]['accuracy']

def test_finding_a_rate_is_no_epoch_of_the_curves(tmp_path):
    "Ten steps are five epochs here"
    head = head_learner(carried(), cbs=[Quiet()])
    head.model_dir = tmp_path
    head.lr_find(num_it=10, show_plot=False)
    head.fit(2, 1e-3)
    assert len(head.curves.rows) == 2 and all('valid_loss' in o for o in head.curves.rows)

def test_progress_bars():
    learn = transfer_learner(few, source('vit'), bs=25, compute=plain)
    head = head_learner(learn, 2)
    head.fit_one_cycle(2, 1e-2)
    assert [o['accuracy'] for o in head.curves.rows][-1] == learn.validate()[1]

def test_frozen_head_is_trained():
    learn = carried()
    for p in learn.model.parameters(): p.requires_grad_(False)
    before = cloned(learn.model.head)
    head_learner(learn, cbs=[Quiet()]).fit(1, 1e-2)
    assert not states_equal(before, learn.model.head.state_dict())

class Cut(Callback):
    order = 200
    def __init__(self, at): self.left = at
    def after_batch(self):
        self.left -= self.training
        if self.left == 0: raise KeyboardInterrupt

cuts_and_steps = given(st.lists(st.integers(1, 15), min_size=1, max_size=3), st.integers(1, 3))

def check_going_on(path, cuts, every_steps):
    states = []
    for cbs in ([], *([Cut(n)] for n in cuts), []):
        learn = carried('vit', augment=True, bs=16)
        if states: cbs = [*cbs, Checkpoint(path, every_steps, resume=True)]
        head = head_learner(learn, 2, cbs=[Quiet(), *cbs])
        try: head.fit_one_cycle(5, 1e-2)
        except KeyboardInterrupt: continue
        states.append((cloned(learn.model), head.curves.rows))
    assert len(states) >= 2 and all(states_equal(states[0][0], s) and rows == states[0][1] for s, rows in states[1:])

@training
@some(2)
@cuts_and_steps
def test_training_of_a_head_goes_on(tmp_path_factory, cuts, every_steps):
    "Cut off and resumed from a checkpoint, it ends bit for bit as if it had not been, view by view"
    check_going_on(tmp_path_factory.mktemp('run')/'head', cuts, every_steps)

@pytest.mark.nightly
@training
@some(8)
@cuts_and_steps
def test_training_of_a_head_goes_on_however_it_is_cut(tmp_path_factory, cuts, every_steps):
    check_going_on(tmp_path_factory.mktemp('run')/'head', cuts, every_steps)

# Linear probes

def pipeline(C): return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=500))

def two_classes():
    "Zeros and ones"
    d = digits()
    own = {s: o[d.labels[o] < 2] for s, o in d.splits.items()}
    return Task('two', d.images, d.labels.clamp(max=1), ['no', 'yes'], splits=own).subset(8)

probes = {**{name: (name, few) for name in archs}, 'two classes': ('resnet9', two_classes())}

@training
@pytest.mark.parametrize('n_views', [0, 2])
@pytest.mark.parametrize('name', probes)
def test_probe_is_that_of_scikit_learn(name, n_views):
    arch, task = probes[name]
    learn = carried(arch, task=task, augment=True)
    body, table = cloned(learn.model.body), linear_probe(learn, n_views, Cs=(.1, 1e-3, 1e-2))   # the solver gets to the end
    train = body_features(learn, 'train', n_views)
    x, y = train.feats.flatten(0, 1).numpy(), train.labels.repeat(len(train.feats)).numpy()
    x_valid, y_valid = (o.numpy() for o in (body_features(learn, 'valid').feats[0], body_features(learn, 'valid').labels))
    C = table.C[table.chosen].item()
    right = pipeline(C).fit(x, y)
    for i, split in enumerate(splits[1:]):
        preds = learn.get_preds(i + 1)[0].numpy()
        wanted = right.predict_proba(body_features(learn, split).feats[0].numpy())
        assert np.abs(preds - wanted).max() < 5e-4
    assert states_equal(body, learn.model.body.state_dict())
    accuracies = [pipeline(o).fit(x, y).score(x_valid, y_valid) for o in table.C]
    assert table.valid_accuracy.tolist() == pytest.approx(accuracies, abs=2.5 / len(y_valid))
    assert table.chosen.sum() == 1 and table.chosen.idxmax() == table.valid_accuracy.idxmax()
    assert table.valid_accuracy.max() == pytest.approx(learn.validate()[1]) and table.C.is_monotonic_increasing

def test_probe_never_looks_at_test(monkeypatch):
    seen, batch = [], TaskSplit.batch
    def noted(self, *args, **kwargs):
        seen.append(self.split)
        return batch(self, *args, **kwargs)
    monkeypatch.setattr(TaskSplit, 'batch', noted)
    linear_probe(carried(augment=True), 2, Cs=[.1])
    assert set(seen) == {'train', 'valid'}

@training
def test_probe_says_what_converged():
    table = linear_probe(carried(), Cs=[10, 1e-4], max_iter=3)
    assert table.C.tolist() == [1e-4, 10] and not table.converged[1] and linear_probe(carried(), Cs=[1e-3]).converged.all()

def test_what_cannot_be_probed_is_refused():
    learn = carried()
    learn.dls.train_ds.labels = learn.dls.train_ds.labels.clone()
    learn.dls.train_ds.labels[learn.dls.train_ds.labels == 3] = 2
    before = cloned(learn.model)
    with saying('linear_probe: every class must have a training picture', "none of ['3']"): linear_probe(learn)
    deep, _ = with_own_head(nn.Linear(64, 64), nn.ReLU())
    with saying('linear_probe: the head must be linear', 'got Sequential'): linear_probe(deep)
    with saying('linear_probe: Cs must hold at least one', 'got ()'): linear_probe(carried(), Cs=())
    assert states_equal(before, learn.model.state_dict())

def test_probe_of_a_head_without_bias():
    "Refused in words, or set as well as that goes: not an error of Python's"
    model = nn.Sequential(OrderedDict(body=deepcopy(source('resnet9').body), head=nn.Linear(64, 10, bias=False)))
    with saying('linear_probe: the head has no bias'): linear_probe(task_learner(few, model, compute=plain, cbs=[Quiet()]))

# fastai's own learners

def bare(model, task=few, augment=False, **kwargs):
    set_seed(0)
    return Learner(task.dls(25, augment), model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[Quiet()],
        splitter=layer_groups, train_bn=False, **kwargs)

def parts():
    "Features that are maps, for the head to pool"
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()
    return nn.Sequential(nn.Sequential(*layers), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)))

def unnamed(): return nn.Sequential(article_cnn(10).body, nn.Linear(512, 10))

@training
@pytest.mark.parametrize('model', [unnamed, parts])
def test_plain_learners(model, tmp_path, cache_folder):
    live, cached = bare(model), bare(model)
    live.freeze()
    head = compare(live, cached, 4)
    head.path = tmp_path
    head.lr_find(num_it=8, show_plot=False)
    for i, split in enumerate(splits): assert close(predicted(cached, split), cached.get_preds(i)[0])
    new, feats = bare(model), body_features(cached, 'test').feats
    passes = [Passes(o) for o in (live, new)]
    assert torch.equal(body_features(live, 'test', in_memory=False).feats, feats) and len(files(cache_folder)) == 2
    assert torch.equal(body_features(new, 'test').feats, feats) and [o.pictures for o in passes] == [feats.shape[1], 0]
    if model is unnamed:
        table = linear_probe(cached, Cs=[.01, .1])
        assert cached.validate()[1] == pytest.approx(table.valid_accuracy.max())

def test_plain_learner_with_views():
    learn = bare(unnamed, augment=True)
    feats = body_features(learn, n_views=2)
    assert feats.feats.shape == (2, 50, 512) and not torch.equal(*feats.feats)
    head_learner(learn, 2, cbs=[Quiet()]).fit(2, 1e-3)
    assert body_features(learn, n_views=2) is feats
