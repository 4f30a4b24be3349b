"""Training: how a device computes, runs that are cut off anywhere and go on as if nothing had happened, runs that stop by themselves

Most are cut off by an exception at an event of fastai's training loop, a fresh learner going on; some processes are killed."""
import json, os, pickle, random, signal, struct, sys
from collections import OrderedDict
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from io import BytesIO
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import lr_find  # noqa: F401 gives Learner its `lr_find`
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.learner import Learner, Metric
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from fastai.torch_core import set_seed
from fastai.vision.augment import aug_transforms
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.torch import load, save
from torch import nn
from helpers import saying, some, write_folder
from nbtransfer import pretraining
from nbtransfer.files import digest
from nbtransfer.finetuning import Inspector, fine_tune, freeze, transfer_learner
from nbtransfer.folders import image_folder
from nbtransfer.loaders import TaskSplit
from nbtransfer.networks import article_cnn, create_network, resnet9
from nbtransfer.pretraining import (Autocast, Checkpoint, EarlyStop, Quiet, SkipValid, compute_settings, measure_compute, pretrain,
    task_learner)
from nbtransfer.tasks import digits
from nbtransfer.weights import save_weights

training = pytest.mark.training   # trains for more than about a second

@pytest.fixture(scope='module', autouse=True)
def unwaited_disk():
    "Checkpoints are written by the thousand here; that a file is synced before it gets its name is a test of `files`"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, 'fsync', lambda file: None)
        yield

# How a device computes

eight = digits().subset(8)
kinds = pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16], ids=str)

def look(seen, module, args, out):
    if module.training: seen.add((out.dtype, args[0].is_contiguous(memory_format=torch.channels_last)))
    else: assert out.dtype == torch.float32, 'all that is measured is computed in float32'

def watch(learn):
    "Types of what the first layer gives while training, and whether what it gets is channels-last; float32 otherwise"
    seen = set()
    next(m for m in learn.model.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(partial(look, seen))
    return seen

def is_channels_last(model):
    return {p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1}

@kinds
def test_precision_is_that_of_the_layers_and_only_in_the_network(precision):
    learn = task_learner(eight, article_cnn(10), bs=40, cbs=[Quiet()], compute=compute_settings(precision=precision))
    seen = watch(learn)
    learn.fit(1)
    preds, _ = learn.get_preds()
    assert seen == {(precision, True)} and preds.dtype == torch.float32
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32} and not torch.is_autocast_enabled('cpu')
    assert ('precision=' + str(precision)) in repr(learn.record.compute)

@pytest.mark.parametrize('frozen', [False, True])
def test_a_reloaded_network_gives_the_same_probabilities(frozen, tmp_path):
    rounded = compute_settings(precision=torch.bfloat16)
    learn = transfer_learner(eight, 'resnet9-letters', bs=40, cbs=[Quiet()], compute=rounded)
    if frozen: freeze(learn)
    seen = set() if frozen else watch(learn)
    learn.fit(2)
    assert frozen or {kind for kind, _ in seen} == {torch.bfloat16}
    preds, labels = learn.get_preds()
    save_weights(learn, tmp_path/'w.safetensors')
    again = transfer_learner(eight, tmp_path/'w.safetensors', head=True, compute=compute_settings(precision=torch.float32), cbs=[Quiet()])
    assert (again.get_preds()[0] - preds).abs().max() < 1e-6
    assert abs(again.validate()[0] - learn.validate()[0]) < 1e-5 and learn.curves.rows[-1]['valid_loss'] == pytest.approx(again.validate()[0], abs=1e-5)

@pytest.mark.parametrize('when', ['train', 'valid'])
def test_rounding_is_checked_where_it_is_asked_for(when):
    "A layer that forgets to round is found in training, and does as it should in validation"
    class Own(torch.nn.Linear):
        def forward(self, x): return super().forward(x).float() if self.training == (when == 'train') else super().forward(x)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Sequential(Own(3 * 32 * 32, 10)))
    learn = Learner(eight.dls(40), model, loss_func=CrossEntropyLossFlat(), cbs=[Quiet(), Autocast(torch.bfloat16)])
    if when == 'valid': learn.fit(1)
    else:
        with saying('Own gives torch.float32', error=RuntimeError): learn.fit(1)

# Weighted classes, sizes of pictures, tasks without test pictures

def unequal():
    "Eight pictures of each digit but one, of which there are two"
    train = eight.splits['train']
    nines = train[eight.labels[train] == 9]
    return eight.replaced(splits={**eight.splits, 'train': torch.cat([train[eight.labels[train] != 9], nines[:2]])})

def test_class_weights_are_scikit_learns_and_in_every_loss(tmp_path):
    task = unequal()
    learn = pretrain(task, 'article_cnn', 1, class_weights='balanced', smoothing=.2, cbs=[Quiet()])
    weights = learn.record.class_weights
    assert weights == pytest.approx([74 / (10 * 8)] * 9 + [74 / (10 * 2)]) and learn.record.recipe['class_weights'] == weights
    json.dumps(learn.record.recipe)
    assert learn.loss_func.func.weight.device == next(learn.model.parameters()).device
    logits, labels = learn.get_preds(act=lambda x: x)
    theirs = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights), label_smoothing=.2)
    per_batch = [(theirs(x, y).item(), len(y)) for x, y in zip(logits.split(learn.dls.valid.bs), labels.split(learn.dls.valid.bs))]
    assert learn.validate()[0] == pytest.approx(sum(loss * n for loss, n in per_batch) / len(labels), abs=1e-4)
    plain = pretrain(task, 'article_cnn', 1, smoothing=.2, cbs=[Quiet()])
    assert plain.record.recipe['class_weights'] is None and plain.loss_func.func.weight is None
    assert not torch.equal(plain.model.head.weight, learn.model.head.weight)
    tuned = transfer_learner(task, learn, class_weights=[1] * 9 + [3], cbs=[Quiet()])
    fine_tune(tuned, 1, schedule='together')
    assert tuned.record.recipe['class_weights'] == [1.] * 9 + [3.]

@pytest.mark.parametrize('weights', ['equal', [1, 2], [1] * 9 + [0], [1] * 9 + [float('nan')], [1] * 9 + [float('inf')], 3, [None] * 10, True])
def test_class_weights_that_are_none(weights):
    with saying('weigh_classes: class_weights must be None'): task_learner(eight, article_cnn(10), class_weights=weights)

def test_a_run_with_other_class_weights_is_not_gone_on_with(tmp_path):
    path = tmp_path/'run.safetensors'
    def run(resume, weights):
        learn = task_learner(eight, article_cnn(10), 40, class_weights=weights, cbs=[Quiet(), Checkpoint(path, resume=resume)])
        learn.fit(1)
    run(False, 'balanced')
    run(True, 'balanced')
    with saying('with class_weights [1.0'): run(True, None)

@pytest.mark.parametrize('arch, size_px, taken', [('resnet9', 7, 8), ('article_cnn', 9, 18), ('timm/vit_tiny_patch16_224', 32, 224)])
def test_a_size_that_the_network_cannot_take_is_said_before_training(arch, size_px, taken):
    small = eight.replaced(images=torch.zeros(len(eight.images), size_px, size_px, 3, dtype=torch.uint8))
    model = create_network(arch, 10).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with saying(f'pictures of {size_px} px, which it cannot take', f'size_px={taken}'): task_learner(small, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), 'looking changes nothing'
    assert not any(module.training for module in model.modules())

def test_looking_at_the_size_draws_no_random_numbers():
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout()), torch.nn.Linear(3 * 32 * 32, 10))
    torch.manual_seed(0)
    pretraining._check_size(model, 32, 8)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))

def test_one_value_a_channel_is_said_before_training():
    one = eight.replaced(splits={**eight.splits, 'train': eight.splits['train'][:1]})
    with saying('more than 1 value per channel', 'size_px=33'): task_learner(one, create_network('timm/resnet18', 10))

def test_a_task_without_test_pictures_trains():
    few = eight.replaced(splits={**eight.splits, 'test': torch.tensor([], dtype=torch.int64)})
    source = pretrain(few, 'resnet9', 1, width=2, cbs=[Quiet()])
    learn = fine_tune(transfer_learner(few, source, cbs=[Quiet()]), 2)
    assert len(learn.dls[2].dataset) == 0 and len(learn.curves.rows) == 2 and 0 <= learn.validate()[1] <= 1

def test_a_folder_without_test_pictures_trains(tmp_path):
    task = image_folder(write_folder(tmp_path/'pictures', 12), 32, in_memory=False)
    task = task.replaced(splits={**task.splits, 'test': torch.tensor([], dtype=torch.int64)})
    learn = task_learner(task, resnet9(task.n_classes, width=2), 4, class_weights='balanced', cbs=[Quiet()])
    learn.fit(1)
    assert len(learn.curves.rows) == 1

class Stop(Callback):
    def after_pred(self): raise Broken.error('stopped')

class Broken(torch.nn.Module):
    def forward(self, x): raise self.error('stopped')

@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_interrupted_fit_leaves_no_rounding_behind(error):
    Broken.error = error
    learn = task_learner(eight, article_cnn(10), bs=40, cbs=[Quiet(), Stop()], compute=compute_settings(precision=torch.bfloat16))
    with pytest.raises(error): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu')
    plain = task_learner(eight, learn.model, bs=40, cbs=[Quiet()], compute=compute_settings(precision=torch.float32))
    seen = watch(plain)
    plain.fit(1)
    assert {o for o, _ in seen} == {torch.float32}, 'the next learner is not rounded'
    learn.remove_cb(Stop)
    learn.fit(1)
    assert 'forward' not in learn.model.__dict__
    learn.model.head = Broken()
    with pytest.raises(error): learn.fit(1)
    pickle.dumps(learn.model)
    assert not torch.is_autocast_enabled('cpu')

def test_learners_that_are_made_for_the_user_take_the_settings():
    compute = compute_settings(precision=torch.bfloat16, channels_last=False, fused=False)
    source = pretrain(eight, 'resnet9', 1, width=2, cbs=[Quiet()], compute=compute)
    target = transfer_learner(eight, source, cbs=[Quiet()], compute=compute)
    for learn in (source, target):
        seen = watch(learn)
        learn.fit(1)
        assert seen == {(torch.bfloat16, False)}
        learn.create_opt()
        assert learn.record.compute == compute and learn.opt.opt.defaults['fused'] is False and is_channels_last(learn.model) == {False}
        assert any(isinstance(cb, Autocast) for cb in learn.cbs)
    assert source.record.recipe['precision'] == 'bfloat16'
    plain = task_learner(eight, resnet9(10, width=2), compute=compute_settings(precision=torch.float32, channels_last=True))
    assert is_channels_last(plain.model) == {True} and not any(isinstance(cb, Autocast) for cb in plain.cbs)

@pytest.mark.parametrize('units', [True, False])
def test_rule(units, monkeypatch):
    monkeypatch.setattr(pretraining, '_computes_bfloat16', lambda device: units)
    chosen = compute_settings()
    assert chosen.precision == (torch.bfloat16 if units else torch.float32) and chosen.channels_last and chosen.fused
    assert compute_settings(precision=torch.float32).precision == torch.float32

def test_what_cannot_be_had_is_said(monkeypatch):
    for precision in (torch.float16, torch.float64, 'bfloat16'):
        with pytest.raises(ValueError, match='precision must be torch.float32 or torch.bfloat16'): compute_settings(precision=precision)
    monkeypatch.setattr(pretraining, '_can_fuse', lambda device: False)
    assert compute_settings().fused is False
    with pytest.raises(ValueError, match='no fused AdamW'): compute_settings(fused=True)

def test_measuring_leaves_the_network_alone():
    model = create_network('resnet9', 10, width=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    table = measure_compute(model, bs=8, repeats=1)
    assert len(table) == 8 and (table.images_per_s > 0).all() and table.times.is_monotonic_decreasing
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items()) and is_channels_last(model) == {False}

def test_two_precisions_are_refused():
    learn = task_learner(eight, article_cnn(10), bs=40, cbs=[Quiet()], compute=compute_settings(precision=torch.bfloat16)).to_fp16()
    with pytest.raises(RuntimeError, match='Autocast: a learner must have one precision'): learn.fit(1)

def test_networks_own_forward_is_given_back():
    model, calls = article_cnn(10), []
    def own(x):
        calls.append(x)
        return type(model).forward(model, x)
    model.forward = own
    task_learner(eight, model, bs=40, cbs=[Quiet()], compute=compute_settings(precision=torch.bfloat16)).fit(1)
    assert calls and model.forward is own

def test_device_that_is_not_here():
    if torch.cuda.is_available(): pytest.skip('it is here')
    with pytest.raises(ValueError, match='cuda is not'): compute_settings(torch.device('cuda'))

@pytest.mark.skipif(sys.platform != 'linux', reason='other C libraries need no reminder')
def test_free_memory_is_given_back_once_a_minute():
    learn = task_learner(digits().subset(1), resnet9(10, width=2), cbs=[Quiet()])
    clock = next(cb for cb in learn.cbs if type(cb).__name__ == '_GiveBack')
    before = clock.since
    learn.fit(1)
    assert clock.since == before
    clock.since -= 61
    learn.fit(1)
    assert clock.since > before

plain = compute_settings(precision=torch.float32)
few = digits().subset(5)   # 3 batches of 16 an epoch
few.splits['valid'] = few.splits['valid'][::5]

# What runs end with, and how they are cut off

def bits(o):
    "Anything as lists, numbers and bytes that can be compared"
    if isinstance(o, torch.Tensor):
        stride = [s for s, n in zip(o.stride(), o.shape) if n > 1]
        return [str(o.dtype), list(o.shape), stride, o.detach().contiguous().view(-1).numpy().tobytes()]
    if isinstance(o, np.ndarray): return o.tolist()
    if isinstance(o, dict): return [[k, bits(v)] for k, v in o.items()]
    if isinstance(o, (str, int, float, type(None))): return o
    return [bits(v) for v in o]

def end(learn):
    "What a run ends with: weights, the optimiser's averages, what was recorded, and random numbers still to come"
    kept = {k: getattr(learn.recorder, k) for k in ('values', 'losses', 'lrs', 'iters')}
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state(), learn.dls.train.rng.getstate()
    rows = learn.curves.rows if hasattr(learn, 'curves') else []
    return dict(model=bits(learn.model.state_dict()), opt=bits(learn.opt.state_dict()), rows=bits(rows), random=bits(generators),
                **{k: bits(o) for k, o in kept.items()})

def differing(a, b): return [k for k in a if a[k] != b[k]]

class Cut(Callback):
    "Raise as Ctrl-C does, at an event of a given number or the `n`th of a given name; before or after all other callbacks"
    def __init__(self, at=None, n=0, order=200): self.at, self.left, self.order, self.seen = at, n, order, 0
    def __call__(self, event):
        self.seen += 1
        if event == self.at: self.left -= 1
        if self.seen == self.at or event == self.at and self.left < 0: raise KeyboardInterrupt

def again_and_again(train, path, cuts, every_steps=2):
    "Cut a run off at each of `cuts`, a fresh learner going on each time, until it ends"
    for i, cut in enumerate([*cuts, Cut()]):
        set_seed(1000 + i)   # another process
        try: return train(Checkpoint(path, every_steps, resume=True), cut)
        except KeyboardInterrupt: pass

def uncut(train):
    "What a run ends with that is not cut off, and the number of its events"
    cut = Cut()
    set_seed(1000)
    return end(train(cut)), cut.seen

archs = dict(article_cnn=('article_cnn', {}), resnet9=('resnet9', dict(width=8)),
    convnext=('timm/convnext_atto', dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 32), drop_path_rate=.2)),
    vit=('timm/vit_tiny_patch16_224', dict(img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3, proj_drop_rate=.1)),
    tiny=('resnet9', dict(width=2)))

@cache
def source(name): return create_network(archs[name][0], 26, **archs[name][1])

def carried(name, *cbs, bs=16, augment=True, task=few):
    return transfer_learner(task, source(name), bs=bs, augment=augment, cbs=[Quiet(), *cbs], compute=plain)

def tuned(name, schedule, n_epochs, *cbs, **kwargs):
    return fine_tune(carried(name, *cbs, **kwargs), n_epochs, schedule=schedule)

# Cut off at any moment

schedules = {'head first': 3, 'gradual': 4}

@cache
def uncut_tuning(name, schedule, n_epochs): return uncut(partial(tuned, name, schedule, n_epochs))

@training
@pytest.mark.parametrize('schedule', schedules)
@pytest.mark.parametrize('name', ['article_cnn', 'resnet9', 'convnext', 'vit'])
def test_fine_tuning_cut_off_in_any_phase(name, schedule, tmp_path):
    "Networks with BatchNorm, dropout, stochastic depth; pictures augmented; several cuts in one run"
    train, rng = partial(tuned, name, schedule, schedules[schedule]), random.Random(f'{name} {schedule}')
    whole, n_events = uncut_tuning(name, schedule, schedules[schedule])
    cuts = [Cut(rng.randint(1, n_events), order=rng.choice([-200, 200])) for _ in range(3)]
    assert differing(end(again_and_again(train, tmp_path/'run', cuts, rng.randint(1, 4))), whole) == []

moments = {   # of head first: one epoch of 3 steps, then two
    'before the first fit': ('before_fit', 0), 'first step of all': ('before_batch', 0), 'first step': ('after_batch', 0),
    'second step, half done': ('before_step', 1), 'last step of an epoch': ('after_batch', 2),
    'end of training': ('after_train', 0), 'validation begins': ('before_validate', 0), 'during validation': ('after_batch', 3),
    'validation ends': ('after_validate', 0), 'end of an epoch': ('after_epoch', 0), 'end of a fit': ('after_fit', 0),
    'next fit begins': ('before_fit', 1), 'first step of the next fit': ('after_batch', 4),
    'last step of its first epoch': ('after_batch', 6), 'between its epochs': ('before_epoch', 2),
    'last step of all': ('after_batch', 10), 'last validation': ('before_validate', 2), 'end of all': ('after_fit', 1)}

@training
@pytest.mark.parametrize('moment', moments)
def test_each_moment(moment, tmp_path):
    "Before all other callbacks have seen the event, or after"
    train, cut = partial(tuned, 'tiny', 'head first', 3), Cut(*moments[moment], random.Random(moment).choice([-200, 200]))
    resumed = again_and_again(train, tmp_path/'run', [cut], 1)
    assert cut.left == -1 and differing(end(resumed), uncut_tuning('tiny', 'head first', 3)[0]) == []

@training
@some(5)
@given(st.lists(st.tuples(st.integers(1, 180), st.sampled_from([-200, 200])), min_size=1, max_size=4), st.integers(1, 4))
def test_cut_off_again_and_again(tmp_path_factory, cuts, every_steps):
    path, train = tmp_path_factory.mktemp('cuts')/'run', partial(tuned, 'tiny', 'gradual', 5)
    whole, n_events = uncut_tuning('tiny', 'gradual', 5)
    assert n_events >= 180
    resumed = again_and_again(train, path, [Cut(at, order=order) for at, order in cuts], every_steps)
    assert differing(end(resumed), whole) == []

def of_layers(*layers): return nn.Sequential(OrderedDict(body=nn.Sequential(*layers[:-1]), head=layers[-1]))

def with_dropout():
    stem = nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(.2)
    head = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return of_layers(*stem, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), head)

def of_a_learner(learn):
    learn.fit_one_cycle(3, 5e-3)
    return learn

def pretrained(*cbs, compute=plain, **kwargs):
    return pretrain(few, 'resnet9', 3, bs=16, width=2, compute=compute, cbs=[Quiet(), *cbs], **kwargs)

def own_learner(*cbs, model=with_dropout, task=few, **kwargs):
    set_seed(0)
    return task_learner(task, model(), bs=16, compute=plain, cbs=[Quiet(), *cbs], **kwargs)

def of_files(path, *cbs):
    "Decoded by other processes, two batches an epoch"
    learn = own_learner(*cbs, model=pet_network, task=file_task(path/'pets'))
    learn.fit_one_cycle(2, 5e-3)
    return learn

pet_network = partial(resnet9, 2, width=2)

@cache
def file_task(path): return image_folder(write_folder(path, 46), 16, valid_frac=.2, in_memory=False)

chances = {   # runs that draw from one generator or another
    'augmented pretraining': lambda path, *cbs: pretrained(*cbs),
    'bfloat16': lambda path, *cbs: pretrained(*cbs, compute=compute_settings(precision=torch.bfloat16)),
    'dropout': lambda path, *cbs: of_a_learner(own_learner(*cbs)),
    'mixup': lambda path, *cbs: pretrained(*cbs, MixUp()),
    'cutmix': lambda path, *cbs: pretrained(*cbs, CutMix()),
    "fastai's augmentation": lambda path, *cbs: pretrained(*cbs, augment=aug_transforms()),
    'all of that in phases': lambda path, *cbs: tuned('tiny', 'gradual', 3, *cbs, MixUp(), augment=aug_transforms()),
    'pictures in files': of_files}

@training
@pytest.mark.parametrize('name', chances)
def test_chance_is_the_same(name, tmp_path):
    train, rng = partial(chances[name], tmp_path), random.Random(name)
    whole, n_events = uncut(train)
    assert differing(uncut(train)[0], whole) == [], 'the run itself cannot be repeated'
    cuts = [Cut(rng.randint(n_events // 4, n_events), order=rng.choice([-200, 200])) for _ in range(3)]
    assert differing(end(again_and_again(train, tmp_path/'run', cuts, rng.randint(1, 3))), whole) == []

@training
def test_steps_of_several_batches(tmp_path):
    "fastai's GradientAccumulation: gradients of the batches before are part of a run too"
    def train(*cbs): return pretrained(*cbs, GradientAccumulation(32))
    whole, _ = uncut(train)
    for n in (2, 5, 8): assert differing(end(again_and_again(train, tmp_path/f'{n}', [Cut('after_batch', n)], 1)), whole) == [], n

class Kill(Callback):
    "End the process as the system does, after a training step"
    order = 200
    def __init__(self, step): self.left = step
    def after_batch(self):
        if not self.training: return
        self.left -= 1
        if self.left == 0: os.kill(os.getpid(), signal.SIGKILL)

def kill_while_writing(n, sync=os.fsync):
    "End the process at the `n`th file that is being written"
    calls = iter(range(n))
    def fsync(file):
        if next(calls, None) is None: os.kill(os.getpid(), signal.SIGKILL)
        sync(file)
    os.fsync = fsync

def in_a_process(action, log):
    "Run `action` in a process forked from this one, which has all imports and data; return how it ended and what it printed"
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        return status, log.read_text()
    try:
        torch.set_num_threads(1)   # threads do not survive a fork
        with open(log, 'w', buffering=1) as file, redirect_stdout(file): action()
        os._exit(0)
    finally: os._exit(1)

@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
def test_killed_processes(tmp_path):
    "Processes that the system kills, at a step or while they write, and the last one that runs to the end"
    path, rng, killed, printed = tmp_path/'run', random.Random(0), 0, []
    def run(path, *cbs):
        learn = tuned('tiny', 'gradual', 10, Checkpoint(path, every_steps=2, resume=True), *cbs)
        print(digest(learn.model.state_dict()))
    def run_and_die(i, n):
        set_seed(1000 + i)
        if i % 2:
            kill_while_writing(n)
            run(path)
        else: run(path, Kill(n))
    source('tiny')
    for i in range(6):
        n = rng.randint(1, 2) if i % 2 else rng.randint(1, 4)
        status, said = in_a_process(partial(run_and_die, i, n), tmp_path/f'{i}.log')
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, said
        killed += 1
        printed.append(said)
    ends = []
    for name in ('run', 'whole'):
        status, said = in_a_process(partial(run, tmp_path/name), tmp_path/f'{name}.log')
        assert status == 0, said
        printed.append(said)
        ends.append(said.split()[-1])
    assert ends[0] == ends[1] and killed == 6
    assert sum('goes on from' in said for said in printed) >= 4, printed

# What was recorded goes on too

def tables_equal(a, b): return a.inspector.table().equals(b.inspector.table())

@training
@pytest.mark.parametrize('moment', ['last step of an epoch', 'end of a fit', 'first step of the next fit', 'between its epochs',
    'end of all'])
def test_inspector_goes_on(moment, tmp_path):
    def train(*cbs): return tuned('tiny', 'head first', 3, *cbs, Inspector(2))
    whole = train()
    resumed = again_and_again(train, tmp_path/'run', [Cut(*moments[moment])], 1)
    assert tables_equal(resumed, whole) and differing(end(resumed), end(whole)) == []
    assert resumed.inspector.table().phase.unique().tolist() == [1, 2]

class Given(Metric):
    "A number for each epoch, whatever was learned"
    name = 'given'
    def __init__(self, values): self.values = values
    def accumulate(self, learn): self.epoch = learn.epoch
    @property
    def value(self): return self.values[self.epoch]

class Keep(Callback):
    "Weights after each epoch"
    order = 55
    def __init__(self): self.states = []
    def after_epoch(self): self.states.append({n: t.clone() for n, t in self.model.state_dict().items()})

def stopping(*cbs, values, n_epochs=8, **kwargs):
    learn = own_learner(Keep(), EarlyStop('given', **kwargs), *cbs)
    learn.metrics = [accuracy, Given(values)]
    learn.fit_one_cycle(n_epochs, 5e-3)
    return learn

def weights_are(learn, state): return all(torch.equal(t, state[n]) for n, t in learn.model.state_dict().items())

bumpy = [.1, .5, .3, .2, .6, .6, .5, .4]   # best at 4; patience of 3 ends at 7, of 2 at 3

@training
@pytest.mark.parametrize('n_cuts', [1, 3])
def test_early_stop_decides_the_same(n_cuts, tmp_path):
    train, rng = partial(stopping, values=bumpy, patience=3), random.Random(n_cuts)
    whole, n_events = uncut(train)
    for i in range(2):
        cuts = [Cut(rng.randint(n_events // 3, n_events)) for _ in range(n_cuts)]
        resumed = again_and_again(train, tmp_path/f'{i}', cuts, 2)
        assert differing(end(resumed), whole) == [] and len(resumed.recorder.values) == 8

@training
def test_early_stop_decides_the_same_on_loss(tmp_path):
    def train(*cbs):
        learn = own_learner(*cbs, EarlyStop(patience=1))
        learn.fit(12, .05)
        return learn
    whole, n_events = uncut(train)
    assert 1 < len(whole['values']) < 12
    resumed = again_and_again(train, tmp_path/'run', [Cut(n_events * 2 // 3), Cut(n_events // 3)], 1)
    assert differing(end(resumed), whole) == []

@training
@pytest.mark.parametrize('event, n', [('after_batch', 9), ('after_fit', 0), ('after_batch', 13)])
def test_phases_that_stopped_early(event, n, tmp_path):
    "Both phases stop before their last epoch, and neither is trained any further"
    def train(*cbs):
        learn = carried('tiny', *cbs, EarlyStop('given', patience=1))
        learn.metrics = [Given([.5, .6, .1, .9, .9, .9])]
        return fine_tune(learn, 10, n_frozen=5)
    whole, _ = uncut(train)
    assert len(whole['rows']) == 6
    cut = Cut(event, n)
    assert differing(end(again_and_again(train, tmp_path/'run', [cut], 2)), whole) == [] and cut.left == -1

def test_metrics_of_training_go_on(tmp_path):
    "Of fastai's recorder, which measures each training batch if it is asked to"
    def train(*cbs):
        learn = own_learner(*cbs)
        learn.recorder.train_metrics = True
        return of_a_learner(learn)
    whole, _ = uncut(train)
    assert differing(end(again_and_again(train, tmp_path/'run', [Cut('after_batch', 5)], 1)), whole) == []

class Epochs(Callback):
    def __init__(self): self.seen = []
    def before_epoch(self): self.seen.append(self.epoch)

@pytest.mark.parametrize('n, epochs', [(0, [1, 2]), (5, [0, 1, 2])], ids=['before it goes on', 'after that'])
def test_fit_again_after_going_on_was_cut_off(n, epochs, tmp_path):
    "As in a notebook, where the same learner is there after Ctrl-C"
    path = tmp_path/'run'
    with pytest.raises(KeyboardInterrupt): of_a_learner(own_learner(Checkpoint(path, 1), Cut('after_batch', 5)))
    learn, cut = own_learner(Checkpoint(path, 1, resume=True)), Cut('after_batch', n)
    learn.add_cb(cut)
    with pytest.raises(KeyboardInterrupt): of_a_learner(learn)
    learn.remove_cb(cut)
    learn.add_cb(Epochs())
    assert of_a_learner(learn).epochs.seen == epochs

# Runs that were finished

class CountSteps(Callback):
    def __init__(self): self.n = 0
    def after_step(self): self.n += 1

bars = pytest.mark.parametrize('quiet', [True, False], ids=['quiet', 'progress bars'])

def several_fits(path, *cbs, quiet=True):
    "Three fits, with all that may stand between"
    set_seed(0)
    learn = task_learner(few, with_dropout(), 16, compute=plain, cbs=[Quiet()] * quiet + [*cbs])   # 3 batches an epoch
    learn.path = path
    learn.validate()
    learn.fit_one_cycle(1, 5e-3)
    learn.validate(2)
    learn.get_preds()
    learn.lr_find(num_it=6, show_plot=False)
    learn.fit_one_cycle(2, 5e-3)
    learn.get_preds(2)
    learn.fit(1, 1e-3)
    learn.validate()
    return learn

@training
@bars
def test_what_stands_between_fits_is_no_fit(quiet, tmp_path):
    train = partial(several_fits, tmp_path, quiet=quiet)
    whole, _ = uncut(train)
    for moment in 'after_fit 1', 'before_fit 3', 'batch 9', 'batch 13', 'batch 18', 'after_fit 5', 'batch 22':
        event, n = moment.split()
        cut = Cut(event.replace('batch', 'after_batch'), int(n))
        resumed = again_and_again(train, tmp_path/moment, [cut], 2)
        assert cut.left == -1 and differing(end(resumed), whole) == [], moment
        assert len(resumed.checkpoint.runs) == 3

@training
@bars
def test_finished_run_is_loaded(quiet, tmp_path):
    counts = [CountSteps() for _ in range(3)]
    ends = [end(several_fits(tmp_path, Checkpoint(tmp_path/'run', 2, resume=True), o, quiet=quiet)) for o in counts]
    assert differing(ends[0], ends[1]) == differing(ends[0], ends[2]) == []
    assert counts[0].n > counts[1].n == counts[2].n == 6   # of `lr_find`, which is no fit

@training
@bars
def test_finished_phases_are_loaded(quiet, tmp_path):
    counts, ends = [CountSteps() for _ in range(2)], []
    for count in counts:
        learn = transfer_learner(few, source('tiny'), bs=16, compute=plain,
            cbs=[Quiet()] * quiet + [Checkpoint(tmp_path/'run', resume=True), count])
        ends.append(end(fine_tune(learn, 4, schedule='gradual')))
        acc = learn.validate()[1]
        assert acc == learn.curves.rows[-1]['accuracy'] and len(learn.curves.rows) == 4
    assert differing(*ends) == [] and [o.n for o in counts] == [12, 0]

# A file that is whole or not there

def names(path): return sorted(o.name for o in path.iterdir())

@training
@pytest.mark.parametrize('fault', ['packing', 'half written', 'not synced', 'not renamed'])
def test_crash_while_writing_leaves_the_former_file(fault, tmp_path, monkeypatch):
    path, train = tmp_path/'run', partial(tuned, 'tiny', 'head first', 3)
    again_and_again(train, path, [Cut('after_batch', 4), Cut(1)], 1)
    path.unlink()
    with pytest.raises(KeyboardInterrupt): train(Checkpoint(path, 1), Cut('after_batch', 4))
    former = path.read_bytes()
    def fail(*args, **kwargs): raise OSError('No space left on device')
    @contextmanager
    def torn(path, whole=pretraining.write_whole):
        with whole(path) as f:
            class Half:
                def write(self, data): f.write(data[:len(data) // 2]), fail()
            yield Half()
    with monkeypatch.context() as m:
        if fault == 'packing': m.setattr(pretraining, 'save', fail)
        if fault == 'half written': m.setattr(pretraining, 'write_whole', torn)
        if fault == 'not synced': m.setattr(os, 'fsync', fail)
        if fault == 'not renamed': m.setattr(type(path), 'replace', fail)
        with saying('No space left', error=OSError): train(Checkpoint(path, 1, resume=True))
    assert path.read_bytes() == former and names(tmp_path) == ['run']
    assert differing(end(again_and_again(train, path, [])), uncut_tuning('tiny', 'head first', 3)[0]) == []

def test_nothing_but_tensors_and_json_is_in_it(tmp_path):
    path, cbs = tmp_path/'run', [EarlyStop(), Inspector(), Cut('after_batch', 8)]
    with pytest.raises(KeyboardInterrupt): tuned('vit', 'head first', 3, Checkpoint(path, 1), *cbs)
    with safe_open(path, 'pt') as f:
        assert set(f.metadata()) <= {'checkpoint', 'sha256'}
        json.loads(f.metadata()['checkpoint'])
        shapes = {n: f.get_tensor(n) for n in f.keys()}
    data = path.read_bytes()
    n_head = struct.unpack('<Q', data[:8])[0]
    places = sorted(o['data_offsets'] for n, o in json.loads(data[8:8 + n_head]).items() if n != '__metadata__')
    assert [a for a, _ in places] == [0, *(b for _, b in places[:-1])], 'bytes that are of no tensor'
    assert 8 + n_head + places[-1][1] == len(data) and len(places) == len(shapes)
    assert b'PK\x03\x04' not in data[:8 + n_head] and not data.startswith(b'\x80')
    with pytest.raises(pickle.UnpicklingError): torch.load(BytesIO(data), weights_only=False)

@pytest.fixture(scope='module')
def cut_off_bytes(tmp_path_factory):
    "Of a run that was cut off in its second phase"
    path = tmp_path_factory.mktemp('cut off')/'run'
    with pytest.raises(KeyboardInterrupt): tuned('tiny', 'head first', 3, Checkpoint(path, 1), Cut('after_batch', 4))
    return path.read_bytes()

@pytest.fixture
def cut_off(cut_off_bytes, tmp_path):
    "A file of that run"
    (tmp_path/'run').write_bytes(cut_off_bytes)
    return tmp_path/'run'

def test_existing_file_is_refused(cut_off):
    with saying(f'{cut_off} already holds a run', 'pass resume=True', error=RuntimeError): Checkpoint(cut_off)
    cut_off.write_bytes(b'')
    with saying('already holds a run', error=RuntimeError): Checkpoint(cut_off)

@pytest.mark.parametrize('every, words', [(dict(every_steps=0), 'every_steps must be at least 1 (got 0)'),
    (dict(every_steps=-1), 'every_steps must be at least 1 (got -1)'), (dict(every_min=0), 'every_min must be above 0 (got 0)')])
def test_never_writing_is_refused(every, words, tmp_path):
    with saying(f'Checkpoint: {words}'): Checkpoint(tmp_path/'run', **every)

def refused(path, data):
    path.write_bytes(data)
    with saying(f'Checkpoint: {path} is no whole file of a Checkpoint', 'delete it'): Checkpoint(path, resume=True)

def test_damaged_file_is_refused(cut_off):
    data = cut_off.read_bytes()
    for n in [0, 1, 7, 8, 100, len(data) // 2, len(data) - 1]: refused(cut_off, data[:n])
    refused(cut_off, data + b'0')
    refused(cut_off, random.Random(0).randbytes(len(data)))
    other = BytesIO()
    torch.save(resnet9(2, width=1).state_dict(), other)
    refused(cut_off, other.getvalue())
    refused(cut_off, save(resnet9(2, width=1).state_dict()))

@pytest.mark.parametrize('facts', ['{}', '{', '{"dict": 3}', '{"dict": [["place", 1]]}', '[]', '3', 'null'])
def test_other_facts_are_refused(facts, cut_off):
    refused(cut_off, save(load(cut_off.read_bytes()), metadata=dict(checkpoint=facts)))

def test_changed_byte_is_refused(cut_off):
    "One bit that turned, in names, facts or numbers"
    data, rng, missed = cut_off.read_bytes(), random.Random(0), []
    n_head = struct.unpack('<Q', data[:8])[0]
    for at in [rng.randrange(8, 8 + n_head) for _ in range(30)] + [rng.randrange(8 + n_head, len(data)) for _ in range(30)]:
        changed = bytearray(data)
        changed[at] ^= 1
        cut_off.write_bytes(changed)
        try: Checkpoint(cut_off, resume=True)
        except ValueError: pass
        else: missed.append('facts' if at < 8 + n_head else 'numbers')
    assert missed == []

others = {   # runs that are not the one that was cut off
    'more epochs': (lambda *cbs: tuned('tiny', 'head first', 5, *cbs), ('with recipe', '"n_epochs": 3', 'got', '"n_epochs": 5')),
    'fewer epochs': (lambda *cbs: tuned('tiny', 'head first', 2, *cbs), ('with recipe', '"n_epochs": 3', 'got', '"n_epochs": 2')),
    'other batches': (lambda *cbs: tuned('tiny', 'head first', 3, *cbs, bs=10), ('with batches 3; got 5',)),
    'other network': (lambda *cbs: tuned('resnet9', 'head first', 3, *cbs), ('with parameters', '; got')),
    'other first phase': (lambda *cbs: fine_tune(carried('tiny', *cbs), 4, n_frozen=2), ('with', 'got')),
    'fewer fits': (lambda *cbs: tuned('tiny', 'together', 3, *cbs), ('with', 'got'))}

@pytest.mark.parametrize('name', others)
def test_another_run_is_refused(name, cut_off):
    former, (train, parts) = cut_off.read_bytes(), others[name]
    with saying(f'Checkpoint: {cut_off} holds another run', *parts): train(Checkpoint(cut_off, 1, resume=True))
    assert cut_off.read_bytes() == former

def test_other_pictures_with_the_same_numbers_are_refused(cut_off):
    "One pixel, or one label, of a picture that is trained on"
    former = cut_off.read_bytes()
    first = few.splits['train'][0]
    images, labels = few.images.clone(), few.labels.clone()
    images[first, 3, 3, 0] ^= 1
    labels[first] = (labels[first] + 1) % few.n_classes
    for changed in (few.replaced(images=images), few.replaced(labels=labels)):
        with saying(f'Checkpoint: {cut_off} holds another run, with pictures', 'got'):
            tuned('tiny', 'head first', 3, Checkpoint(cut_off, 1, resume=True), task=changed)
        assert cut_off.read_bytes() == former

def test_pictures_are_hashed_once_a_fit(tmp_path, monkeypatch):
    hashed = []
    whole = TaskSplit.fingerprint
    monkeypatch.setattr(TaskSplit, 'fingerprint', lambda data: hashed.append(data.split) or whole(data))
    tuned('tiny', 'head first', 3, Checkpoint(tmp_path/'run', 1))
    assert hashed == ['train', 'train']   # two fits of several epochs, written at each step
    tuned('tiny', 'head first', 3, Checkpoint(tmp_path/'run', 1, resume=True))
    assert hashed == 4 * ['train']   # and of fits that were finished

def test_another_network_of_the_same_size_is_refused(tmp_path):
    def wide(*more): return of_layers(nn.AdaptiveAvgPool2d(2), nn.Flatten(), *more, nn.Linear(12, 12), nn.Linear(12, 10))
    def train(*cbs, model): return of_a_learner(own_learner(*cbs, model=model))
    path = tmp_path/'run'
    with pytest.raises(KeyboardInterrupt): train(Checkpoint(path, 1), Cut('after_batch', 1), model=wide)
    former = path.read_bytes()
    with pytest.raises((ValueError, RuntimeError)): train(Checkpoint(path, 1, resume=True), model=partial(wide, nn.Identity()))
    assert path.read_bytes() == former

# Numbers that are none

class Poison(Callback):
    "Put NaN into weights, BatchNorm's statistics or pictures at a training step of a fit"
    def __init__(self, what, step): self.what, self.step = what, step
    def before_batch(self):
        if not self.training or self.train_iter != self.step: return
        if self.what == 'pictures': self.learn.xb = tuple(x * float('nan') for x in self.xb)
        if self.what == 'weights': self.model[1].weight.data[0, 0] = float('nan')
    def after_step(self):
        if self.train_iter == self.step and self.what == 'weights after a step': self.model[1].weight.data[0, 0] = float('inf')

def all_finite(path): return all(t.isfinite().all() for t in load(path.read_bytes()).values() if t.is_floating_point())
def tensors(path): return bits(dict(sorted(load(path.read_bytes()).items())))

poisons = [('pictures', name) for name in ('article_cnn', 'resnet9', 'convnext', 'vit')]

@training
@pytest.mark.parametrize('what, name', [*poisons, ('weights', 'vit'), ('weights after a step', 'resnet9')])
def test_nan_stops_and_what_was_good_goes_on(what, name, tmp_path):
    path, train = tmp_path/'run', partial(tuned, name, 'head first', 3)
    whole, _ = uncut_tuning(name, 'head first', 3)
    for step in (1, 4):   # the second phase has 6, the first 3
        with saying('StopOnNaN: finite numbers', f'the last good checkpoint is {path}: lower', error=RuntimeError):
            train(Checkpoint(path, 1, resume=True), Poison(what, step))
        assert all_finite(path)
    assert differing(end(again_and_again(train, path, [])), whole) == []

def test_nan_before_any_checkpoint(tmp_path):
    with saying('StopOnNaN', 'at step 1 (epoch 0)', 'no checkpoint was kept', error=RuntimeError):
        pretrained(Checkpoint(tmp_path/'run', 3), Poison('pictures', 1))
    assert names(tmp_path) == []

def bare(model, *cbs, opt_func=Adam, task=few, **kwargs):
    "fastai's own learner, without the callbacks and the optimiser of this package"
    set_seed(0)
    return Learner(task.dls(16), model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, opt_func=opt_func,
        cbs=[Quiet(), *cbs], **kwargs)

@training
@pytest.mark.parametrize('what', ['pictures', 'weights', 'weights after a step'])
def test_bad_weights_are_never_written(what, tmp_path):
    "Nothing stops this run; the file stays that of the last good step"
    path, model = tmp_path/'run', partial(resnet9, 10, width=2)
    of_a_learner(bare(model, Checkpoint(path, 1), Poison(what, 4)))
    assert all_finite(path)
    with pytest.raises(KeyboardInterrupt): of_a_learner(bare(model, Checkpoint(tmp_path/'good', 1), Cut('after_batch', 4)))
    assert tensors(path) == tensors(tmp_path/'good')
    of_a_learner(bare(model, Checkpoint(tmp_path/'none', 1), Poison(what, 0)))
    assert names(tmp_path) == ['good', 'run']

# Early stopping

@pytest.mark.parametrize('patience, n_rows, best', [(1, 3, 1), (2, 4, 1), (3, 8, 4), (9, 8, 4)])
def test_early_stop_ends_with_the_best_epoch(patience, n_rows, best):
    learn = stopping(values=bumpy, patience=patience)
    assert len(learn.recorder.values) == len(learn.curves.rows) == n_rows
    assert weights_are(learn, learn.keep.states[best]) and not weights_are(learn, learn.keep.states[-1])
    stopping_later = stopping(values=[0, .1, .15, .2, .3, .35, .4], n_epochs=7, patience=1, min_delta=.08)
    assert len(stopping_later.recorder.values) == 3 and weights_are(stopping_later, stopping_later.keep.states[1])

def test_nothing_else_stops_or_changes(tmp_path):
    learn = stopping(values=bumpy, patience=1)
    before, rows = bits(learn.model.state_dict()), list(learn.curves.rows)
    learn.path = tmp_path
    for _ in range(3):
        learn.recorder.values.clear()
        for split in (0, 1, 2): assert len(learn.validate(split)) == 3
        learn.get_preds(2)
    assert bits(learn.model.state_dict()) == before and learn.curves.rows == rows
    learn.lr_find(num_it=6, show_plot=False)
    assert bits(learn.model.state_dict()) == before
    learn.metrics[1].values = [.9, .8, .7]
    learn.fit(3, 1e-3)   # a new fit begins anew
    assert len(learn.recorder.values) == 2 and not bits(learn.model.state_dict()) == before

def test_early_stop_looks_at_valid_only():
    for name in ('train_loss', 'train_accuracy'):
        with saying('EarlyStop: monitor must be measured on valid', f'got {name}'): EarlyStop(name)
    with saying('EarlyStop: no_such must be measured on valid after each epoch'): of_a_learner(own_learner(EarlyStop('no_such')))
    with saying('left out by SkipValid'): of_a_learner(own_learner(EarlyStop(), SkipValid()))

@pytest.mark.parametrize('kind', ['memory', 'files'])
def test_early_stop_on_test_is_refused(kind, tmp_path):
    task = few if kind == 'memory' else file_task(tmp_path/'pets')
    learn = own_learner(EarlyStop(), task=task, model=partial(resnet9, task.n_classes, width=2))
    of_a_learner(learn)
    for i in (2, 0):
        learn.dls = DataLoaders(learn.dls[0], task.dls(16)[i], device=learn.dls.device)
        with saying('EarlyStop: valid_loss must be measured on valid after each epoch'): of_a_learner(learn)

# Minutes, other learners, other layouts

@training
def test_written_by_the_minute(tmp_path, monkeypatch):
    "A step takes a minute, by the clock that is put in"
    now, steps = [0.], []
    class Slow(Callback):
        def before_batch(self): now[0] += 60 * self.training
    @contextmanager
    def noted(path, whole=pretraining.write_whole):
        steps.append(learn[0].train_iter)
        with whole(path) as f: yield f
    class Here(Callback):
        def after_create(self): learn[:] = [self.learn]
    learn = []
    monkeypatch.setattr(pretraining.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(pretraining, 'write_whole', noted)
    def written(**kwargs):
        steps.clear()
        (tmp_path/'run').unlink(missing_ok=True)
        pretrained(Here(), Slow(), Checkpoint(tmp_path/'run', **kwargs))
        return list(steps)
    assert written(every_min=2.5) == [3, 6, 9, 9]
    assert written(every_min=.5) == [*range(1, 10), 9]
    assert written() == [9]   # ten minutes
    assert written(every_steps=4, every_min=100) == [4, 8, 9]
    assert written(every_steps=2, every_min=.5) == [*range(1, 10), 9]

of_torch = partial(partial, OptimWrapper)
optimisers = dict(Adam=Adam, SGD=partial(SGD, mom=.9), ranger=ranger, torch_SGD=of_torch(opt=torch.optim.SGD, momentum=.9),
    torch_AdamW=of_torch(opt=torch.optim.AdamW), torch_NAdam=of_torch(opt=torch.optim.NAdam))

@training
@pytest.mark.parametrize('name', optimisers)
def test_plain_learners_and_optimisers(name, tmp_path):
    def train(*cbs):
        learn = bare(with_dropout, *cbs, opt_func=optimisers[name])
        learn.fit_one_cycle(2, 5e-3)
        learn.fit(1, 1e-3)
        return learn
    (whole, n_events), rng = uncut(train), random.Random(name)
    cuts = [Cut('after_batch', rng.randint(2, 6)), *(Cut(rng.randint(n_events // 2, n_events)) for _ in range(2))]
    assert differing(end(again_and_again(train, tmp_path/'run', cuts, rng.randint(1, 2))), whole) == []

@training
def test_checkpoint_without_metrics_or_validation(tmp_path):
    def train(*cbs): return pretrained(*cbs, SkipValid())
    whole, _ = uncut(train)
    assert differing(end(again_and_again(train, tmp_path/'run', [Cut('after_batch', 1), Cut('after_train', 0)], 1)), whole) == []

class Layouts(Callback):
    "Note where the optimiser's averages are laid out otherwise than their parameters"
    order = 300
    def __init__(self): self.differing, self.n = set(), 0
    def after_batch(self):
        for p, state in self.opt.opt.state.items():
            for k, t in state.items():
                if isinstance(t, torch.Tensor) and t.ndim:
                    self.n += 1
                    if bits(t)[2] != bits(p)[2]: self.differing.add((k, tuple(p.shape), p.stride(), t.stride()))

def odd_layout():
    "A weight whose columns are rows in memory, as one has that was tied to its transpose"
    linear = nn.Linear(64, 16)
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
    return of_layers(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), linear, nn.Linear(16, 10))

layouts = dict(article_cnn=partial(article_cnn, 10), resnet9=partial(resnet9, 10, width=4),
    convnext=lambda: create_network('timm/convnext_atto', 10, **archs['convnext'][1]), odd=odd_layout)

@training
@pytest.mark.parametrize('name, channels_last', [*((o, True) for o in layouts), ('resnet9', False)])
def test_averages_lie_as_their_parameters_do(name, channels_last, tmp_path):
    def train(*cbs):
        set_seed(0)
        compute = compute_settings(channels_last=channels_last, precision=torch.float32)
        return of_a_learner(task_learner(few, layouts[name](), 16, compute=compute, cbs=[Quiet(), Layouts(), *cbs]))
    whole = train()
    resumed = again_and_again(train, tmp_path/'run', [Cut('after_batch', 4)], 1)
    assert differing(end(resumed), end(whole)) == []
    for learn in (whole, resumed): assert learn.layouts.n and not learn.layouts.differing
