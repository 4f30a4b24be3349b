"Memory format, precision and optimiser: what the rule chooses, that it can be overridden, and that what was chosen is really on"
import pickle, sys
from functools import partial
import pytest, torch
from fastai.callback.core import Callback
from nbtransfer import pretraining
from nbtransfer.finetuning import transfer_learner
from nbtransfer.networks import article_cnn, create_network, resnet9
from nbtransfer.pretraining import Autocast, Quiet, compute_settings, measure_compute, pretrain, task_learner
from nbtransfer.tasks import digits

task = digits().subset(8)
kinds = pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16], ids=str)

def look(seen, module, args, out): seen.add((out.dtype, args[0].is_contiguous(memory_format=torch.channels_last)))

def watch(learn):
    "Types of what the first layer gives, and whether what it gets is channels-last, in all steps"
    seen = set()
    next(m for m in learn.model.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(partial(look, seen))
    return seen

def is_channels_last(model):
    return {p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1}

@kinds
def test_precision_is_that_of_the_layers_and_only_in_the_network(precision):
    learn = task_learner(task, article_cnn(10), bs=40, cbs=[Quiet()], compute=compute_settings(precision=precision))
    seen = watch(learn)
    learn.fit(1)
    preds, _ = learn.get_preds()
    assert seen == {(precision, True)} and preds.dtype == torch.float32
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32} and not torch.is_autocast_enabled('cpu')
    assert ('precision=' + str(precision)) in repr(learn.compute)

class Stop(Callback):
    def after_pred(self): raise Broken.error('stopped')

class Broken(torch.nn.Module):
    def forward(self, x): raise self.error('stopped')

@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_interrupted_fit_leaves_no_rounding_behind(error):
    Broken.error = error
    learn = task_learner(task, article_cnn(10), bs=40, cbs=[Quiet(), Stop()], compute=compute_settings(precision=torch.bfloat16))
    with pytest.raises(error): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu')
    plain = task_learner(task, learn.model, bs=40, cbs=[Quiet()], compute=compute_settings(precision=torch.float32))
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
    source = pretrain(task, 'resnet9', 1, width=2, cbs=[Quiet()], compute=compute)
    target = transfer_learner(task, source, cbs=[Quiet()], compute=compute)
    for learn in (source, target):
        seen = watch(learn)
        learn.validate()
        assert seen == {(torch.bfloat16, False)}
        learn.create_opt()
        assert learn.compute == compute and learn.opt.opt.defaults['fused'] is False and is_channels_last(learn.model) == {False}
        assert any(isinstance(cb, Autocast) for cb in learn.cbs)
    assert source.recipe['precision'] == 'bfloat16'
    plain = task_learner(task, resnet9(10, width=2), compute=compute_settings(precision=torch.float32, channels_last=True))
    assert is_channels_last(plain.model) == {True} and not any(isinstance(cb, Autocast) for cb in plain.cbs)

@pytest.mark.parametrize('units', [True, False])
def test_rule(units, monkeypatch):
    monkeypatch.setattr(pretraining, '_computes_bfloat16', lambda device: units)
    chosen = compute_settings()
    assert chosen.precision == (torch.bfloat16 if units else torch.float32) and chosen.channels_last and chosen.fused
    assert compute_settings(precision=torch.float32).precision == torch.float32

def test_what_cannot_be_had_is_said(monkeypatch):
    for precision in (torch.float16, torch.float64, 'bfloat16'):
        with pytest.raises(ValueError, match='torch.float32 or torch.bfloat16 is needed'): compute_settings(precision=precision)
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
    learn = task_learner(task, article_cnn(10), bs=40, cbs=[Quiet()], compute=compute_settings(precision=torch.bfloat16)).to_fp16()
    with pytest.raises(RuntimeError, match='one precision is needed'): learn.fit(1)

def test_networks_own_forward_is_given_back():
    model, calls = article_cnn(10), []
    def own(x):
        calls.append(x)
        return type(model).forward(model, x)
    model.forward = own
    task_learner(task, model, bs=40, cbs=[Quiet()], compute=compute_settings(precision=torch.bfloat16)).fit(1)
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
