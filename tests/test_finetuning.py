"Frozen parts stay still, plans run as written, and what is recorded is what was done, on four kinds of networks"
import math, re
from collections import OrderedDict
from copy import deepcopy
from functools import lru_cache
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.schedule import lr_find  # noqa: F401, gives Learner its `lr_find`
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from helpers import saying, some
from nbtransfer.finetuning import (SCHEDULES, Inspector, batch_size_for, default_epochs, fine_tune, freeze, lrs_by_group, plan_phases,
    transfer_learner, unfreeze)
from nbtransfer.networks import create_network, layer_groups, stages, tensors_of
from nbtransfer.pretraining import Checkpoint, EarlyStop, Quiet, SkipValid, compute_settings, task_learner
from nbtransfer.sources import read_source
from nbtransfer.tasks import digits, normalization

kinds = {   # small, with dropout and stochastic depth where there is any
    'article_cnn': {}, 'resnet9': dict(width=8),
    'timm/convnext_atto': dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), drop_path_rate=.2),
    'timm/vit_tiny_patch16_224': dict(img_size=32, patch_size=8, depth=3, embed_dim=48, num_heads=3, drop_rate=.1,
        drop_path_rate=.2)}
training = pytest.mark.training
each = pytest.mark.parametrize('kind', [pytest.param(kind, marks=[] if kind == 'resnet9' else training,
    id=re.split('[/_]', kind.removeprefix('timm/'))[0]) for kind in kinds])   # one of them answers quickly for all
task = lru_cache(lambda: digits().subset(5))

def network(kind, n_classes=26):
    torch.manual_seed(n_classes)
    return create_network(kind, n_classes, **kinds[kind])

source = lru_cache(network)

def learner(kind, *cbs, **options):
    "Three steps an epoch, and no validation"
    options = dict(bs=16, compute=compute_settings(precision=torch.float32)) | options
    return transfer_learner(task(), source(kind), cbs=[Quiet(), SkipValid(), *cbs], **options)

def names_of(learn): return [s.name for s in stages(learn.model)]

strays = {'body.cls_token': 'patch_embed', 'body.pos_embed': 'patch_embed', 'body.norm.': 'blocks.2'}

def stage_of(tensor, names):
    "The stage that a tensor belongs to, by its name alone"
    fits = [n for n in names if tensor.startswith((f'body.{n}.', f'{n}.'))]
    return fits[0] if fits else next(s for start, s in strays.items() if tensor.startswith(start))

def bits(t): return t.detach().cpu().numpy().tobytes()
def all_bits(model): return {n: bits(t) for n, t in model.state_dict().items()}

def moved(before, model): return {n for n, t in all_bits(model).items() if t != before[n]}

class At(Callback):
    "Do something at one event: `At('after_step', f, step=2)` calls `f(learn)` in the third step of each fit"
    def __init__(self, event, f, step=None, order=0):
        self.f, self.step, self.order = f, step, order
        setattr(self, event, self.act)

    def act(self):
        if self.step is None or self.learn.train_iter == self.step: self.f(self.learn)

def find(learn): learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)

def skip(learn): raise CancelBatchException

def interrupt(learn): raise KeyboardInterrupt

def test_source_that_nobody_knows():
    with saying("'resnet9-lettres'"): transfer_learner(digits(), 'resnet9-lettres')

# What follows from the task and the source

@given(st.integers(1, 200_000))
def test_batches_fit_the_pictures(n):
    bs = batch_size_for(n)
    whole = min(bs, n)   # as the loaders make it
    assert bs in (4, 8, 16, 32, 64, 128) and n % whole < n / 5
    assert bs >= 8 or n < 32
    if n >= 80: assert n // bs >= 10 and (bs == 128 or n // (2 * bs) < 10), 'the largest that makes ten steps'

def test_batches_are_those_of_the_learner():
    learn = transfer_learner(digits().subset(21), 'resnet9-letters', cbs=[Quiet()])
    assert learn.dls.bs == batch_size_for(210) == 16 and len(learn.dls.train) == 13
    assert transfer_learner(digits().subset(1), 'resnet9-letters', cbs=[Quiet()]).dls.bs == 10

def test_no_pictures_no_batches():
    with saying('batch_size_for: n_train must be at least 1 (got 0)'): batch_size_for(0)

mean, std = [.1, .2, .3], [.4, .5, .6]
whose = {'card': ('resnet9-letters', {}, None, "the source's, as the card of"), 'stats': ('resnet9-letters', dict(stats=(mean, std)), mean, 'stats='),
    'timm': ('timm/resnet18', {}, [.485, .456, .406], "timm's pretrained_cfg"),
    'nobody': ('resnet9', {}, None, "the task's own")}

@pytest.mark.parametrize('case', whose)
def test_whose_normalisation_it_is(case):
    name, options, mean, words = whose[case]
    source = name if '-' in name else create_network(name, 26)
    learn = transfer_learner(task(), source, cbs=[Quiet()], **options)
    wanted = mean or (read_source(source).card['mean'] if case == 'card' else task().stats[0])
    assert normalization(learn.dls)[0] == pytest.approx(list(wanted), abs=1e-6)
    assert words in learn.record.normalization and '\n' not in learn.record.normalization

def test_a_bare_file_is_normalised_as_its_library_says(tmp_path):
    file = tmp_path/'stranger.pth'
    torch.save(create_network('torchvision/resnet18', 10).state_dict(), file)
    learn = transfer_learner(task(), file, arch='torchvision/resnet18', cbs=[Quiet()])
    assert normalization(learn.dls)[1] == pytest.approx([.229, .224, .225]) and 'torchvision' in learn.record.normalization

@pytest.mark.parametrize('n_steps, n_epochs', [(1, 200), (6, 34), (13, 16), (66, 4), (67, 3), (391, 3)])
def test_epochs_that_nobody_asked_for(n_steps, n_epochs):
    assert default_epochs(SimpleNamespace(dls=SimpleNamespace(train=range(n_steps)))) == n_epochs

def test_epochs_are_said_and_a_plan_goes_first(capsys):
    learn = transfer_learner(digits().subset(40), 'resnet9-letters', cbs=[Quiet(), SkipValid(), At('before_batch', skip)])
    fine_tune(learn)
    assert capsys.readouterr().out == 'fine_tune: 17 epochs of 12 steps, for 204 steps in all; n_epochs= says another number\n'
    assert learn.record.recipe['n_epochs'] == 17 and learn.record.recipe['task'] == learn.dls.task.name == 'digits-40'
    plan_phases(learn, 2)
    fine_tune(learn)
    assert learn.record.recipe['n_epochs'] == 2 and not capsys.readouterr().out

def test_the_recipe_names_the_task_of_others_learners():
    theirs = Learner(DataLoaders(*task().dls(16).loaders), network('resnet9', 10), loss_func=CrossEntropyLossFlat(), splitter=layer_groups,
        cbs=[Quiet(), At('before_batch', skip)])
    fine_tune(theirs, 1, schedule='together')
    assert theirs.record.recipe['task'] == task().name

# Freezing

class Modes(Callback):
    "Names of the modules without children that were in training mode in any training batch, and in all of them"
    def before_fit(self): self.any, self.all = set(), None
    def after_pred(self):
        if not self.training: return
        on = {n for n, m in self.model.named_modules() if m.training and not any(m.children())}
        self.any, self.all = self.any | on, on if self.all is None else self.all & on
        self.body_trains = self.model.body.training

def leaves(model): return {n for n, m in model.named_modules() if not any(m.children())}

def modules_of(learn, names):
    inside = {o for s in stages(learn.model) if s.name in names for m in s.modules for o in m.modules()}
    return {n for n, m in learn.model.named_modules() if m in inside and not any(m.children())}

def check_only_these_train(learn, trained, n_epochs=1):
    "A fit moves every tensor of these stages and no bit of the others, whose modules evaluate"
    names, before = names_of(learn), all_bits(learn.model)
    assert {s.name for s in stages(learn.model) for p in s.params if p.requires_grad} == set(trained)
    learn.fit_one_cycle(n_epochs, 1e-2)
    assert moved(before, learn.model) == {n for n in before if stage_of(n, names) in trained}
    modes = next(cb for cb in learn.cbs if isinstance(cb, Modes))
    assert modes.any == modes.all == modules_of(learn, trained)
    assert leaves(learn.model) == modules_of(learn, names)   # each module is in a stage
    assert modes.body_trains == bool(set(trained) - {'head'})

@each
@pytest.mark.parametrize('upto, by_name', [(0, False), (1, False), (2, True), (-2, False), (-1, False), (-1, True)])
def test_stages_before_upto_stay_bit_for_bit(kind, upto, by_name):
    learn = learner(kind, Modes())
    names = names_of(learn)
    freeze(learn, names[upto] if by_name else upto)
    check_only_these_train(learn, names[upto:])

@each
@pytest.mark.parametrize('only', [[0], [1], [0, 2], [-1, 1], None])
def test_only_the_named_stages_train(kind, only):
    learn = learner(kind, Modes())
    names = names_of(learn)
    chosen = only and [names[i] for i in only]
    unfreeze(learn, only=chosen[0] if chosen and len(chosen) == 1 else chosen)
    check_only_these_train(learn, chosen or names)

@each
def test_what_was_frozen_can_train_again(kind):
    learn = learner(kind, Modes())
    names = names_of(learn)
    for trained in (names[-1:], names[1:3], names, names[2:]):
        unfreeze(learn, only=trained)
        check_only_these_train(learn, trained, n_epochs=2)

def test_freezing_what_is_not_there_changes_nothing():
    learn = learner('resnet9')
    freeze(learn, 2)
    free = [p.requires_grad for p in learn.model.parameters()]
    for bad in (5, -6, 'none', None, 1.5):
        with saying('freeze: upto must be', repr(bad)): freeze(learn, bad)
    for bad in ('none', ['stem', 'none']):
        with saying('unfreeze: only must name stages among', repr(bad)): unfreeze(learn, only=bad)
    with saying('unfreeze: only names no stage (got [])', "'stem'"): unfreeze(learn, only=[])
    with saying('freeze: batchnorm must be'): freeze(learn, 1, batchnorm='none')
    with saying('unfreeze: batchnorm must be'): unfreeze(learn, batchnorm='none')
    assert free == [p.requires_grad for p in learn.model.parameters()] and learn.keep_still.frozen == ['stem', 'stage1']

def test_a_plan_with_an_unknown_batchnorm_is_refused_at_the_door():
    learn = learner('resnet9')
    former = plan_phases(learn, 2)
    for call in (plan_phases, fine_tune):
        with saying('plan_phases: batchnorm must be one of', "'statistics'", "got 'stil'"): call(learn, 3, batchnorm='stil')
    assert learn.record.plan is former

def test_dropout_is_there_to_be_turned_off():
    for kind, n in (('timm/convnext_atto', 3), ('timm/vit_tiny_patch16_224', 5)):
        drops = [m for m in network(kind).modules() if (getattr(m, 'p', None) or getattr(m, 'drop_prob', 0)) > 0]
        assert len(drops) >= n

@each
@pytest.mark.parametrize('batchnorm, upto', [('still', 2), ('statistics', 2), ('statistics', -1), ('train', 2), ('train', -1)])
def test_batchnorm_of_frozen_stages_moves_as_asked(kind, batchnorm, upto):
    learn = learner(kind)
    freeze(learn, upto, batchnorm=batchnorm)
    names, before = names_of(learn), all_bits(learn.model)
    learn.fit_one_cycle(2, 1e-2)
    of_norm = {n for n in before if re.search(r'\bbn\.', n)}
    assert bool(of_norm) == (kind == 'resnet9')
    statistics = {n for n in of_norm if re.search('running|tracked', n)}
    free = dict(still=set(), statistics=statistics, train=of_norm)[batchnorm]
    assert moved(before, learn.model) == free | {n for n in before if stage_of(n, names) in names[upto:]}

def test_fastais_freeze_moves_the_body():
    "Why there is another: BatchNorm trains on, its statistics at least"
    for learn, also in ((learner('resnet9'), False), (task_learner(task(), network('resnet9', 10), 16, cbs=[Quiet()],
            compute=compute_settings(precision=torch.float32)), True)):
        learn.create_opt()
        learn.freeze()
        before = all_bits(learn.model)
        learn.fit_one_cycle(1, 1e-2)
        found = {n for n in moved(before, learn.model) if n.startswith('body.')}
        assert found == {n for n in before if n.startswith('body.') and '.bn.' in n and (also or re.search('running|tracked', n))}

def first_tensor(learn): return next(iter(learn.model.body.parameters()))
def nudge(t): t.data.add_(1e-3)

@each
@pytest.mark.parametrize('event', ['before_batch', 'after_step', 'after_train', 'before_validate', 'after_epoch'])
def test_moved_frozen_parameter_is_named(kind, event):
    "Whenever it moved: here, in the first of two epochs"
    def move(learn):
        if learn.epoch == 0: nudge(first_tensor(learn))
    learn = learner(kind, At(event, move, order=-5))   # before `SkipValid`
    freeze(learn)
    name = next(n for n, p in learn.model.named_parameters() if p is first_tensor(learn))
    with saying('KeepStill', '1 moved', name, error=RuntimeError): learn.fit(2, 1e-3)

@each
def test_moved_frozen_buffer_is_named(kind):
    learn = learner(kind)
    for s in stages(learn.model): s.modules[-1].register_buffer('seen', torch.zeros(2))
    inner = stages(learn.model)[1].modules[-1]
    freeze(learn, 2)
    learn.add_cb(At('after_step', lambda learn: learn.model.head.seen.add_(1)))
    learn.fit(1, 1e-3)     # that of the head may
    learn.add_cb(At('after_step', lambda learn: inner.seen.add_(1), step=2))
    name = next(n for n, b in learn.model.named_buffers() if b is inner.seen)
    with saying('KeepStill', '1 moved', name, error=RuntimeError): learn.fit(1, 1e-3)

@pytest.mark.parametrize('batchnorm, tensor', [('statistics', 'body.stem.bn.weight'), ('statistics', 'body.stem.conv.weight'),
    ('train', 'body.stem.conv.weight')])
def test_all_but_batchnorm_is_watched(batchnorm, tensor):
    learn = learner('resnet9', At('after_step', lambda learn: nudge(learn.model.get_parameter(tensor))))
    freeze(learn, batchnorm=batchnorm)
    with saying('KeepStill', '1 moved', tensor, error=RuntimeError): learn.fit(1, 1e-3)

def test_batchnorm_that_is_turned_on_again_is_named():
    learn = learner('resnet9', At('before_batch', lambda learn: learn.model.train()))
    freeze(learn, 1)
    with saying('KeepStill', '3 moved', 'body.stem.bn.', error=RuntimeError): learn.fit(1, 1e-3)

@each
@pytest.mark.parametrize('fastai', ['unfreeze', 'freeze', 'freeze_to'])
def test_fastais_functions_afterwards_are_refused(kind, fastai):
    learn = learner(kind)
    if fastai == 'unfreeze': freeze(learn, 2)
    else: unfreeze(learn, only=names_of(learn)[1])
    learn.freeze_to(-2) if fastai == 'freeze_to' else getattr(learn, fastai)()
    before = all_bits(learn.model)
    with saying('KeepStill', 'use unfreeze of nbtransfer', error=RuntimeError): learn.fit(1, 1e-3)
    assert not moved(before, learn.model)
    unfreeze(learn)
    learn.fit(1, 1e-3)

@each
def test_looking_at_a_frozen_learner_raises_nothing(kind, tmp_path):
    learn = learner(kind)
    learn.model_dir = tmp_path
    freeze(learn)
    def look():
        before = all_bits(learn.model)
        learn.validate()
        learn.get_preds()
        find(learn)
        assert not moved(before, learn.model)
    look()
    learn.fit(1, 1e-3)
    nudge(first_tensor(learn))   # between fits all is allowed
    look()
    learn.fit(1, 1e-3)

@each
def test_gradients_of_an_interrupted_fit_move_nothing(kind):
    learn = learner(kind, Modes())
    stop = At('before_step', interrupt, step=2)
    learn.add_cb(stop)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3)
    learn.remove_cb(stop)
    assert first_tensor(learn).grad.any()
    freeze(learn, -1)
    assert all(p.grad is None for p in learn.model.parameters())
    check_only_these_train(learn, ['head'])

# Groups

many = {'article_cnn': {}, 'timm/resnet18': dict(channels=(4, 8, 8, 16), stem_width=4), 'timm/mobilenetv3_small_050': {},
    'timm/densenet121': dict(block_config=(1, 1, 1, 1)), 'timm/regnetx_002': {},
    'timm/convnext_atto': kinds['timm/convnext_atto'],
    'timm/deit_tiny_distilled_patch16_224': dict(img_size=32, patch_size=8, depth=2), 'timm/edgenext_xx_small': {},
    'timm/swin_tiny_patch4_window7_224': dict(img_size=32, embed_dim=12, depths=(1,) * 4, num_heads=(1,) * 4, window_size=2),
    'timm/beit_base_patch16_224': dict(img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3),
    'timm/efficientvit_b0': {}, 'timm/cait_xxs24_224': dict(img_size=32, depth=2), 'timm/pvt_v2_b0': {},
    'timm/coat_lite_tiny': dict(img_size=32), 'torchvision/shufflenet_v2_x0_5': {},
    'torchvision/mobilenet_v3_small': {}, 'torchvision/regnet_y_400mf': {}}
architectures = st.one_of(st.sampled_from(list(many.items())), st.integers(1, 12).map(lambda w: ('resnet9', dict(width=w))))

@training
@some(40)
@given(architectures, st.integers(1, 100), st.data())
def test_each_parameter_is_in_one_group_and_once_in_the_optimiser(arch, n_classes, data):
    model = create_network(arch[0], n_classes, **arch[1])
    names, params = [s.name for s in stages(model)], [id(p) for p in model.parameters()]
    groups = [[id(p) for p in g] for g in layer_groups(model)]
    assert sorted(sum(groups, [])) == sorted(params) and all(groups) and len(set(names)) == len(names)
    assert set(sum(groups[:-1], [])) == {id(p) for p in model.body.parameters()}
    parts = [tensors_of(model, n) for n in names]   # nor is a buffer left out, or in two
    assert set().union(*parts) == set(model.state_dict()) and sum(map(len, parts)) == len(model.state_dict())
    learn = Learner(task().dls(), model, loss_func=CrossEntropyLossFlat(), splitter=layer_groups)
    upto = data.draw(st.integers(-len(names), len(names) - 1))
    freeze(learn, upto)
    assert [[id(p) for p in g] for g in learn.opt.param_lists] == groups
    free = {id(p) for p in model.parameters() if p.requires_grad}
    assert free == set(sum(groups[upto:], []))

@training
def test_module_that_several_stages_use_is_in_one():
    "CoaT's position encodings are shared by all blocks of a stage"
    model = create_network('timm/coat_lite_tiny', 10, **many['timm/coat_lite_tiny'])
    assert sorted(id(p) for g in layer_groups(model) for p in g) == sorted(id(p) for p in model.parameters())
    learn = task_learner(task(), model, 16, cbs=[Quiet(), SkipValid(), Modes()])
    freeze(learn, 4)
    learn.fit(1, 1e-3)

@each
def test_optimiser_of_a_learner_has_each_parameter_once(kind):
    learn = learner(kind)
    learn.create_opt()
    held = [id(p) for g in learn.opt.opt.param_groups for p in g['params']]
    assert sorted(held) == sorted(id(p) for p in learn.model.parameters())
    assert len(learn.opt.opt.param_groups) == len(stages(learn.model))

# Rates as they are asked for

rates, group_counts = st.floats(1e-8, 10), st.integers(2, 20)

@some(100)
@given(rates, rates, group_counts)
def test_slice_of_rates_is_monotone_from_first_to_last(first, last, n_groups):
    lrs = lrs_by_group(slice(first, last), n_groups)
    assert len(lrs) == n_groups and np.allclose([lrs[0], lrs[-1]], [first, last], rtol=1e-9, atol=0)
    steps = np.diff(np.log(lrs))
    assert np.allclose(steps, math.log(last / first) / (n_groups - 1), rtol=0, atol=1e-9)   # equal factors

@some(50)
@given(rates, rates, group_counts, st.data())
def test_there_is_a_rate_for_each_group(body, head, n_groups, data):
    assert lrs_by_group(body, n_groups) == [body] * n_groups
    assert lrs_by_group((body, head), n_groups) == [body] * (n_groups - 1) + [head]
    each = data.draw(st.lists(rates, min_size=n_groups, max_size=n_groups))
    assert lrs_by_group(each, n_groups) == each == lrs_by_group(np.array(each), n_groups)

@some(10)
@given(rates, rates)
def test_a_slice_for_one_group_is_the_rate_of_the_head(first, last):
    assert lrs_by_group(slice(first, last), 1) == [last]

# Rates, as torch's optimiser had them

class Read(Callback):
    "At each step: rates of torch's optimiser, and the norms of what it was given and did, recomputed in float64"
    order = 95
    def __init__(self): self.rows, self.phase, self.start = [], -1, None

    def before_fit(self): self.run = not hasattr(self.learn, 'lr_finder')

    def before_train(self):
        if self.epoch == 0: self.phase += 1
        if self.start is None: self.start = self._copy()

    def before_step(self):
        self.before = self._copy()
        grads = [[torch.zeros(1) if p.grad is None else p.grad for p in g] for g in self._groups()]
        self.grad = [norm(g) for g in grads]

    def after_step(self):
        opt = getattr(self.opt, 'opt', None)
        if opt: given = [(g['lr'], g['betas'][0]) for g in opt.param_groups]
        else: given = [(h['lr'], h['mom']) for h in self.opt.hypers]
        now = self._copy()
        update, distance = ([norm(minus(a, b)) for a, b in zip(now, then)] for then in (self.before, self.start))
        weight, start = ([norm(g) for g in then] for then in (self.before, self.start))
        self.rows.append(dict(phase=self.phase, step=self.train_iter, given=given, grad_norm=self.grad, distance=distance,
            update_ratio=ratio(update, weight), relative_distance=ratio(distance, start)))

    def _groups(self): return [list(g) for g in self.opt.param_lists]
    def _copy(self): return [[p.detach().clone() for p in g] for g in self._groups()]

def norm(tensors): return math.sqrt(sum(t.detach().double().square().sum().item() for t in tensors))
def minus(a, b): return [p.double() - q.double() for p, q in zip(a, b)]
def ratio(a, b): return [p / q if q else 0. for p, q in zip(a, b)]

def one_cycle(step, n_steps, lr):
    "Rate of fastai's one cycle at a step: up from lr/25 in a quarter, and down to lr/100000"
    at = step / n_steps
    start, end, part = (lr / 25, lr, at / .25) if at < .25 else (lr, lr / 1e5, (at - .25) / .75)
    return start + (end - start) * (1 - math.cos(math.pi * part)) / 2

def momentum(step, n_steps):
    at = step / n_steps
    start, end, part = (.95, .85, at / .25) if at < .25 else (.85, .95, (at - .25) / .75)
    return start + (end - start) * (1 - math.cos(math.pi * part)) / 2

asked = {'number': dict(lr_max=3e-3), 'slice': dict(lr_max=slice(1e-5, 1e-2)), 'pair': dict(lr_max=(1e-4, 5e-3)),
    'list': dict(lr_max='list'), 'array': dict(lr_max='array'), 'decay': dict(lr_max=1e-2, decay=.7)}

@training
@each
@pytest.mark.parametrize('how', asked)
def test_rates_asked_for_are_those_of_torchs_optimiser(kind, how):
    reads, looks = Read(), Inspector()
    learn, given = learner(kind, looks, reads), dict(asked[how])
    names = names_of(learn)
    if how in ('list', 'array'): given['lr_max'] = [1e-3 * (i + 1) for i in range(len(names))]
    if how == 'array': given['lr_max'] = np.array(given['lr_max'])
    fine_tune(learn, 3, n_frozen=1, **given)
    n, lr_max = len(names), given['lr_max']
    written = dict(number=[lr_max] * n, slice=np.geomspace(1e-5, 1e-2, n), pair=[1e-4] * (n - 1) + [5e-3], list=lr_max,
        array=lr_max, decay=[1e-2 * .7 ** (n - 1 - i) for i in range(n)])[how]
    lrs = dict(zip(names, lrs_by_group(lr_max, n, given.get('decay'))))
    assert list(lrs.values()) == pytest.approx(list(written))
    for phase, trained, n_steps in ((0, names[-1:], 3), (1, names, 6)):
        rows = [r for r in reads.rows if r['phase'] == phase]
        assert [r['step'] for r in rows] == list(range(n_steps))
        for i, name in enumerate(names):
            lr = lrs[name] if name in trained else 0.
            got = [r['given'][i][0] for r in rows]
            assert got == pytest.approx([one_cycle(s, n_steps, lr) for s in range(n_steps)], abs=1e-6 * lr)
            if lr: assert [r['given'][i][1] for r in rows] == pytest.approx([momentum(s, n_steps) for s in range(n_steps)])
        tops = [max(r['given'][names.index(n)][0] for r in rows) for n in trained]
        top = max(one_cycle(s, n_steps, 1.) for s in range(n_steps))
        assert tops == pytest.approx([top * lrs[n] for n in trained])
        assert [lrs[n] for n in trained] == learn.record.plan[trained].loc[phase + 1].tolist()
    check_table(looks.table(), reads.rows, names, [])

numbers = ['grad_norm', 'update_ratio', 'distance', 'relative_distance']

def check_table(table, rows, names, numbers=numbers):
    "The records of an inspector are what was read and recomputed, and zeros where nothing trained"
    assert table.group.tolist() == names * len(rows)
    found = {n: t.reset_index(drop=True) for n, t in table.groupby('group')}
    for i, name in enumerate(names):
        t = found[name]
        assert t.step.tolist() == [r['step'] for r in rows]
        assert (t.phase - t.phase[0]).tolist() == [r['phase'] - rows[0]['phase'] for r in rows]
        for r, row in zip(rows, t.itertuples()):
            trains = r['grad_norm'][i] > 0
            assert (row.lr, row.momentum) == (r['given'][i] if trains else (0, 0))
            for what in numbers:
                assert getattr(row, what) == pytest.approx(r[what][i], rel=1e-5, abs=0), (name, what, row.step)

@each
def test_inspectors_numbers_are_those_recomputed(kind):
    looks, reads = Inspector(), Read()
    learn = learner(kind, looks, reads)
    fine_tune(learn, 3, slice(1e-4, 1e-2), 'gradual')
    check_table(looks.table(), reads.rows, names_of(learn))
    assert set(looks.table().phase) == set(learn.record.plan.index)

@each
def test_frozen_groups_have_zeros(kind):
    looks = Inspector()
    learn = learner(kind, looks)
    fine_tune(learn, 2, schedule='together', only='head')
    table, what = looks.table(), ['lr', 'momentum', *numbers]
    still, head = table[table.group != 'head'], table[table.group == 'head']
    assert len(still) == 6 * (len(names_of(learn)) - 1) and (still[what] == 0).all(axis=None) and (head[what] > 0).all(axis=None)

@each
def test_inspector_of_every_third_step(kind):
    looks, reads = Inspector(every=3), Read()
    learn = learner(kind, looks, reads, bs=8)   # 6 steps an epoch
    fine_tune(learn, 2, n_frozen=1)
    assert [s for _, s in looks.steps] == [0, 3, 0, 3]
    check_table(looks.table(), [r for r in reads.rows if r['step'] % 3 == 0], names_of(learn), ['grad_norm', 'distance'])

@training
@each
def test_inspector_looks_at_training_alone(kind, tmp_path):
    looks, reads = Inspector(), Read()
    learn = learner(kind, looks, reads)
    learn.model_dir = tmp_path
    def look():
        find(learn)
        learn.validate()
        learn.get_preds()
    look()
    with saying('Inspector', 'has no steps yet', error=RuntimeError): looks.table()
    learn.fit_one_cycle(1, 1e-3)
    before = looks.table()
    look()
    assert looks.table().equals(before)
    learn.fit_one_cycle(1, 1e-3)
    table = looks.table()
    assert table[:len(before)].equals(before) and sorted(set(table.phase)) == [1, 2] and len(table) == 2 * len(before)
    check_table(table, reads.rows, names_of(learn), ['grad_norm', 'distance'])

@each
def test_inspector_with_fastais_adam_and_one_group(kind):
    looks, reads = Inspector(), Read()
    learn = Learner(task().dls(16), network(kind, 10), loss_func=CrossEntropyLossFlat(), cbs=[Quiet(), looks, reads])
    learn.fit_one_cycle(2, 1e-3)
    assert len(reads.rows) == 6
    check_table(looks.table(), reads.rows, ['group 0'])

class Shift(nn.Module):
    "Add the mean of many numbers that lie in one row, as those of a position embedding do"
    def __init__(self):
        super().__init__()
        self.row = nn.Parameter(torch.zeros(1, 2**19))
    def forward(self, x): return x + self.row.mean()

def test_inspector_of_a_long_row():
    "A float32 sum of half a million squares loses digits, and steps of Adam are all alike at first"
    model = nn.Sequential(OrderedDict(body=nn.Sequential(Shift(), nn.Flatten()), head=nn.Linear(3072, 10)))
    looks, reads = Inspector(), Read()
    learn = task_learner(task(), model, 16, cbs=[Quiet(), SkipValid(), looks, reads],
        compute=compute_settings(precision=torch.float32))
    learn.fit_one_cycle(1, 1e-3)
    check_table(looks.table(), reads.rows, names_of(learn))

def test_inspector_sees_gradients_as_they_are_used():
    looks, reads = Inspector(), Read()
    learn = learner('resnet9', looks, reads, GradientClip(1e-3))
    learn.fit_one_cycle(1, 1e-3)
    table = looks.table()
    assert table.groupby('step').grad_norm.apply(np.linalg.norm).tolist() == pytest.approx([1e-3] * 3, rel=1e-2)
    check_table(table, reads.rows, names_of(learn))

@training
def test_inspector_changes_nothing():
    ends = []
    for cbs in ([], [Inspector()], [Inspector(every=2)]):
        learn = learner('timm/vit_tiny_patch16_224', *cbs)
        ends.append(all_bits(fine_tune(learn, 2).model))
    assert ends[0] == ends[1] == ends[2]

@training
@pytest.mark.parametrize('event, order', [('before_step', 85), ('before_step', 99), ('after_step', 85), ('after_step', 99)])
def test_inspector_of_an_interrupted_fit(event, order):
    "Ctrl-C in the optimiser's step: the steps that were finished are there, and the next fit is recorded"
    looks, stop = Inspector(), At(event, interrupt, step=2, order=order)
    learn = learner('resnet9', looks, stop)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3)
    done = 3 if (event, order) == ('after_step', 99) else 2
    assert looks.table().step.unique().tolist() == list(range(done))
    learn.remove_cb(stop)
    reads = Read()
    learn.add_cb(reads)
    looks.now.rows.copy_(looks.start)
    views = iter([v.clone() for v in looks.now.views])
    reads.start = [[next(views) for _ in g] for g in learn.opt.param_lists]
    learn.fit(1, 1e-3)
    table = looks.table()
    check_table(table[table.phase == 2].reset_index(drop=True), reads.rows, names_of(learn))
    assert len(table) == (done + 3) * len(names_of(learn))

# Plans

kept = lru_cache(learner)

@some(150)
@given(st.sampled_from(list(kinds)), st.sampled_from(SCHEDULES), st.integers(1, 12), st.data())
def test_plan_has_all_epochs_and_phases_that_grow(kind, schedule, n_epochs, data):
    learn = kept(kind)
    names = names_of(learn)
    only = data.draw(st.none() | st.lists(st.sampled_from(names), min_size=1, unique=True))
    lr_max = data.draw(st.sampled_from([1e-3, slice(1e-5, 1e-2), (1e-4, 1e-2), [1e-3 * (i + 1) for i in range(len(names))]]))
    decay = data.draw(st.sampled_from([None, .5])) if lr_max == 1e-3 else None
    chosen = [n for n in names if only is None or n in only]
    settable = schedule == 'head first' and n_epochs > 1 and len(chosen) > 1
    if schedule == 'head first' and 'head' not in chosen[1:]:
        with saying('plan_phases', "pass schedule='together'"): plan_phases(learn, n_epochs, lr_max, schedule, only=only, decay=decay)
        return
    n_frozen = data.draw(st.none() | st.integers(1, n_epochs - 1)) if settable else None
    plan = plan_phases(learn, n_epochs, lr_max, schedule, n_frozen=n_frozen, only=only, decay=decay)
    assert plan is learn.record.plan and list(plan) == ['epochs', *names] and plan.index.tolist() == list(range(1, len(plan) + 1))
    assert plan.epochs.sum() == n_epochs and (plan.epochs >= 1).all() and plan.epochs.dtype.kind == 'i'
    trained = [{n for n in names if row[n] == row[n]} for _, row in plan.iterrows()]
    assert trained[-1] == set(chosen) and all(a <= b for a, b in zip(trained, trained[1:])) and all(trained)
    lrs = lrs_by_group(lr_max, len(names), decay)
    for n, lr in zip(names, lrs): assert set(plan[n].dropna()) <= {lr}
    if schedule == 'together': assert len(plan) == 1
    if schedule == 'head first' and n_epochs > 1:
        assert trained[0] == set(chosen[-1:]) and len(plan) == 2
        assert plan.epochs[1] == (n_frozen or min(max(1, round(n_epochs / 10)), n_epochs - 1))
    if schedule == 'gradual':
        assert len(plan) == min(n_epochs, len(chosen)) and all(a < b for a, b in zip(trained, trained[1:]))
        for t in trained: assert t == set(chosen[-len(t):])
        assert plan.epochs.max() - plan.epochs.min() <= 1 and plan.epochs.is_monotonic_increasing
        if n_epochs > 1: assert trained[0] == set(chosen[-1:])

class Fits(Callback):
    "For each fit: its epochs, its steps, and the stages whose parameters moved"
    def __init__(self): self.fits = []
    def before_fit(self):
        self.fits.append(dict(epochs=self.n_epoch, steps=0))
        self.before = all_bits(self.model)
    def after_step(self): self.fits[-1]['steps'] += 1
    def after_fit(self):
        found = moved(self.before, self.model)
        self.fits[-1]['trained'] = {s for s in names_of(self.learn) if any(stage_of(n, names_of(self.learn)) == s for n in found)}

def ran(learn, log):
    "Whether the fits that ran are the plan's phases"
    n = len(learn.dls.train)
    expected = [dict(epochs=row.epochs, steps=row.epochs * n, trained=set(row.drop('epochs').dropna().index))
        for _, row in learn.record.plan.iterrows()]
    assert log.fits == expected
    return sum(o['steps'] for o in log.fits) // n

@training
@each
@pytest.mark.parametrize('schedule, only', [('head first', None), ('gradual', None), ('together', None), ('gradual', [1, -1])])
def test_fine_tune_runs_the_plan_and_no_step_more(kind, schedule, only):
    log = Fits()
    learn = learner(kind, log)
    names = names_of(learn)
    chosen = names if only is None else [names[i] for i in only]
    assert fine_tune(learn, 3, 1e-2, schedule, only=only and chosen) is learn
    assert ran(learn, log) == 3 == learn.record.recipe['n_epochs'] and log.fits[-1]['trained'] == set(chosen)

@training
@each
def test_plan_that_was_edited_is_obeyed(kind):
    log, reads = Fits(), Read()
    learn = learner(kind, log, reads)
    names = names_of(learn)
    plan_phases(learn, 4, slice(1e-4, 1e-2), 'gradual')
    learn.record.plan.loc[1, 'epochs'] = 2
    learn.record.plan.loc[1, names[1]] = 7e-3         # another stage, at another rate
    learn.record.plan = learn.record.plan.drop(index=3)
    learn.record.plan.loc[4, names[0]] = np.nan
    fine_tune(learn)
    assert ran(learn, log) == 4 and log.fits[0]['trained'] == {names[1], 'head'} and names[0] not in log.fits[2]['trained']
    tops = [[max(r['given'][i][0] for r in reads.rows if r['phase'] == k) for i in range(len(names))] for k in range(3)]
    at = [max(one_cycle(s, n, 1.) for s in range(n)) for n in (6, 3, 3)]
    for got, row, top in zip(tops, learn.record.plan[names].fillna(0.).to_numpy(), at): assert got == pytest.approx(row * top)
    assert [p['epochs'] for p in learn.record.recipe['phases']] == [2, 1, 1]
    fine_tune(learn)       # and again
    assert len(log.fits) == 6

def test_a_new_plan_takes_the_place_of_an_edited_one():
    log = Fits()
    learn = learner('resnet9', log)
    plan_phases(learn, 4, schedule='gradual')
    fine_tune(learn, 2, schedule='together')
    assert ran(learn, log) == 2 and len(log.fits) == 1

bad_calls = [dict(n_epochs=0), dict(n_epochs=-1), dict(n_epochs=3, schedule='none'), dict(n_epochs=3, schedule=None),
    dict(n_epochs=3, n_frozen=3), dict(n_epochs=3, n_frozen=0), dict(n_epochs=1, n_frozen=1), dict(n_epochs=3, only='none'),
    dict(n_epochs=3, n_frozen=1, schedule='gradual'), dict(n_epochs=3, n_frozen=1, only='head'), dict(n_epochs=3, only=[]),
    dict(n_epochs=3, only=['head', 'none']), dict(n_epochs=3, lr_max=0), dict(n_epochs=3, lr_max=-1e-3),
    dict(n_epochs=3, lr_max=math.nan), dict(n_epochs=3, lr_max=math.inf), dict(n_epochs=3, lr_max='1e-3'),
    dict(n_epochs=3, lr_max=(1e-3,) * 3), dict(n_epochs=3, lr_max=slice(1e-2)), dict(n_epochs=3, lr_max=1e-3, decay=0),
    dict(n_epochs=3, lr_max=1e-3, decay=1.5), dict(n_epochs=3, decay=.5), dict(n_epochs=3, lr_max=slice(1e-3, 1e-2), decay=.5)]

def check_refused(learn, call):
    "Nothing is trained, nor frozen or let loose"
    freeze(learn, 1)
    before, free = all_bits(learn.model), [p.requires_grad for p in learn.model.parameters()]
    with pytest.raises(ValueError) as e: call()
    assert re.match('fine_tune|plan_phases|lrs_by_group', str(e.value)), f'who says so? {e.value}'
    assert not moved(before, learn.model) and free == [p.requires_grad for p in learn.model.parameters()]
    assert learn.record.recipe is None and not learn.opt.opt.state

@each
def test_bad_calls_train_nothing(kind):
    learn = learner(kind)
    plan = plan_phases(learn, 2)
    for call in bad_calls:
        check_refused(learn, lambda: fine_tune(learn, **call))
        assert learn.record.plan is plan

def edit(row=1, **cells):
    def f(plan): return plan.assign(**{n: plan[n].astype(object).where(plan.index != row, v) for n, v in cells.items()})
    return f

bad_plans = {'no phases': lambda plan: plan[:0], 'a column less': lambda plan: plan.drop(columns='head'),
    'a column more': lambda plan: plan.assign(more=1e-3), 'another name': lambda plan: plan.rename(columns=dict(head='top')),
    'no epochs': lambda plan: plan.drop(columns='epochs'), 'another order': lambda plan: plan[plan.columns[::-1]],
    '0 epochs': edit(epochs=0), '-1 epochs': edit(2, epochs=-1), 'half an epoch': edit(epochs=.5),
    '1.5 epochs': edit(2, epochs=1.5),
    'epochs NaN': edit(2, epochs=math.nan), 'endless': edit(2, epochs=math.inf), 'epochs in words': edit(2, epochs='two'),
    'nothing trains': edit(head=math.nan), 'rate 0': edit(2, head=0.), 'rate below 0': edit(2, head=-1e-3),
    'rate infinite': edit(2, head=math.inf), 'rate in words': edit(2, head='high')}

@pytest.mark.parametrize('what', bad_plans)
def test_bad_plans_train_nothing(what):
    "Not even their first phase, if it is the second that is bad"
    for kind in kinds:
        learn = kept(kind)
        learn.record.plan = bad_plans[what](plan_phases(learn, 3))
        check_refused(learn, lambda: fine_tune(learn))

# The optimiser's state

@training
@each
@pytest.mark.parametrize('schedule', ['head first', 'gradual'])
def test_each_phase_starts_with_an_empty_optimiser(kind, schedule):
    at_start, steps = [], []
    def begin(learn): at_start.append(len(learn.opt.opt.state))
    def step(learn):
        state, free = learn.opt.opt.state, {id(p) for p in learn.model.parameters() if p.requires_grad}
        assert {id(p) for p in state} == free
        steps.append({int(s['step']) for s in state.values()})
        assert steps[-1] == {learn.train_iter + 1}
    learn = learner(kind, At('before_fit', begin), At('after_step', step))
    fine_tune(learn, 3, schedule=schedule)
    assert at_start == [0] * len(learn.record.plan) and len(steps) == 9

# The learning rate finder

def everything(learn):
    "All of a learner that a fit changes"
    opt = deepcopy(learn.opt.opt.state_dict()) if learn.opt else dict(state={}, param_groups=[])
    state = {i: {k: bits(torch.as_tensor(v)) for k, v in s.items()} for i, s in opt['state'].items()}
    return dict(model=all_bits(learn.model), free=[p.requires_grad for p in learn.model.parameters()], state=state,
        hypers=[{k: v for k, v in g.items() if k != 'lr'} for g in opt['param_groups']])   # every fit sets `lr` first

@training
@each
def test_lr_find_leaves_a_learner_as_it_was(kind, tmp_path):
    log = Fits()
    learn = learner(kind)
    learn.model_dir = tmp_path
    def look():
        if learn.opt is None: learn.create_opt()
        before = everything(learn)
        find(learn)
        assert everything(learn) == before
    look()
    plan, names = plan_phases(learn, 3, 1e-2), names_of(learn)
    for _, row in plan.iterrows():
        trained = row[names].dropna()
        unfreeze(learn, list(trained.index))
        look()     # with nothing in the optimiser
        learn.add_cb(log)
        learn.fit_one_cycle(int(row.epochs), row[names].fillna(0.).to_numpy())
        learn.remove_cb(log)
        look()     # with what the fit has left there
    assert [(o['epochs'], o['trained']) for o in log.fits] == [(row.epochs, set(row[names].dropna().index))
        for _, row in plan.iterrows()]
    learn.add_cb(log)
    fine_tune(learn, 1)
    assert log.fits[-1]['trained'] == set(names)

@training
def test_lr_find_as_it_is_called_mostly(tmp_path):
    learn = learner('resnet9')
    learn.model_dir = tmp_path
    freeze(learn)
    before = everything(learn)
    assert 0 < learn.lr_find(num_it=30, show_plot=False).valley < 10
    assert everything(learn) == before
    fine_tune(learn, 2)

@training
def test_lr_find_leaves_no_epochs_in_the_curves(tmp_path):
    learn = learner('resnet9')
    learn.model_dir = tmp_path
    find(learn)
    assert not learn.curves.rows
    learn.fit(2, 1e-3)
    find(learn)
    assert len(learn.curves.rows) == 2

stay_out = dict(Inspector=lambda file: Inspector(), Checkpoint=Checkpoint,
    EarlyStop=lambda file: EarlyStop(patience=1, min_delta=9.))

@training
@pytest.mark.parametrize('name', stay_out)
def test_callbacks_are_back_after_an_interrupted_lr_find(name, tmp_path):
    "Ctrl-C in `lr_find`, as one does when the loss has gone up: what leaves it alone is not left out of the next fit"
    cb, stop = stay_out[name](tmp_path/'run'), At('before_step', interrupt, step=2)
    learn = task_learner(task(), network('resnet9', 10), 16, cbs=[Quiet(), cb, stop])
    learn.model_dir = tmp_path
    with pytest.raises(KeyboardInterrupt): find(learn)
    learn.remove_cb(stop)
    learn.fit(3, 1e-3)
    if name == 'Inspector': assert len(cb.table()) == 9 * len(names_of(learn))
    if name == 'Checkpoint': assert (tmp_path/'run').exists()
    if name == 'EarlyStop': assert len(learn.curves.rows) == 2   # it improves by less than 9

# What frozen stages cost

def flops(f):
    with FlopCounterMode(display=False) as counter: f()
    return counter.get_total_flops()

@each
def test_frozen_stages_cost_no_backward_pass(kind):
    learn = learner(kind)
    x, y = learn.dls.one_batch()
    with torch.no_grad(): forward = flops(lambda: learn.model(x))
    costs = []
    for upto in range(len(stages(learn.model))):
        freeze(learn, upto)
        costs.append(flops(lambda: learn.loss_func(learn.model(x), y).backward()) / forward)
        assert all((p.grad is None) == (i < upto) for i, s in enumerate(stages(learn.model)) for p in s.params)
    assert costs == sorted(costs, reverse=True) and costs[0] > 2 and costs[-1] <= 1.01
    heavy = [i for i, s in enumerate(stages(learn.model)) if any(p.ndim > 1 for p in s.params)]   # not one of norms alone
    assert all(costs[i] > costs[i + 1] for i in heavy[:-1])

# A loss that is no number

def poison(name, value):
    def f(learn):
        for s in stages(learn.model):
            if s.name == name: s.params[0].data[(0,) * s.params[0].ndim] = value
    return f

def overflow(name):
    "Large numbers, and finite: it is what is computed with them that is not"
    def f(learn):
        for s in stages(learn.model):
            if s.name == name:
                for p in s.params: p.data.fill_(3e38)
    return f

def pictures(learn): learn.xb = tuple(torch.full_like(x, math.nan) for x in learn.xb)

def check_stop(kind, f, *parts):
    learn = learner(kind, At('before_batch', f, step=4, order=70))
    names, kept = names_of(learn), {}
    def keep(learn): kept.update(all_bits(learn.model))
    learn.add_cb(At('before_batch', keep, step=4, order=71))
    with saying('StopOnNaN', 'at step 4 (epoch 1)', *parts, error=RuntimeError): learn.fit_one_cycle(3, 1e-3)
    params = {n for n, _ in learn.model.named_parameters()}
    assert not moved(kept, learn.model) & params and len(names) > 3     # the step was not made

@training
@each
def test_stage_with_a_bad_parameter_is_named(kind):
    for i, name in enumerate(names_of(kept(kind))):
        check_stop(kind, poison(name, [math.nan, math.inf, -math.inf][i % 3]), f'group {name} has parameters')

@each
def test_bad_pictures_are_named(kind): check_stop(kind, pictures, 'pictures')

@training
@each
def test_stage_that_overflows_is_named(kind):
    for name in names_of(kept(kind)): check_stop(kind, overflow(name), f'group {name} gives out')

@training
@each
def test_lr_find_may_go_beyond_all_numbers(kind, tmp_path):
    for f in (pictures, poison('head', math.nan), overflow('head')):
        learn = learner(kind, At('before_batch', f, step=3, order=70))
        learn.model_dir = tmp_path
        before = all_bits(learn.model)
        find(learn)
        assert not moved(before, learn.model)
        with saying('StopOnNaN', 'at step 3', error=RuntimeError): learn.fit(2, 1e-3)
