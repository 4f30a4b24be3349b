"Networks: names that nothing has, parts that are shared, and what a count leaves behind"
import json
import pytest, timm, torch, torchvision
from torch import nn
from helpers import saying
from nbtransfer.networks import (body_and_head, count_flops, create_network, evaluating, flops_by_layer, known_input, picture_shape,
    resnet9, stages, tensors_of)

@pytest.mark.parametrize('call, parts', [
    (lambda: create_network('resnet99', 10), ("'resnet99'", 'resnet9')),
    (lambda: create_network('timm/resnet9', 10), ("'timm/resnet9'",)),
    (lambda: create_network('keras/resnet50', 10), ("'keras/resnet50'",)),
    (lambda: create_network('torchvision/squeezenet1_1', 10), ('torchvision/squeezenet1_1 has no linear classifier', 'timm twin')),
    (lambda: create_network('resnet9', 0), ('n_classes must be at least 1 (got 0)',))])
def test_unknown_network(call, parts):
    with saying('create_network: ', *parts): call()

def test_network_without_parts():
    with saying('body_and_head: ', 'got Linear with []'): body_and_head(nn.Linear(2, 2))
    with saying('got Sequential', "['0', '1', '2']"): stages(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(2, 2)))

@pytest.mark.parametrize('fails', [False, True])
def test_each_part_is_put_back_into_its_own_mode(fails):
    "Also those that two networks share, and after an error"
    shared = nn.BatchNorm2d(3)
    one, other = nn.Sequential(shared, nn.Dropout().eval()), nn.Sequential(shared, nn.Dropout())
    try:
        with evaluating(one, other):
            assert not any(module.training for network in (one, other) for module in network.modules())
            assert not torch.is_grad_enabled()
            if fails: raise KeyboardInterrupt
    except KeyboardInterrupt: assert fails
    assert [module.training for module in (one, other, shared, one[1], other[1])] == [True, True, True, False, True]
    assert torch.is_grad_enabled()

def test_counting_leaves_no_trace():
    model = resnet9(3, width=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    assert count_flops(model, backward=True) > 2 * count_flops(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(param.grad is None for param in model.parameters()) and model.training
    assert torch.backends.mha.get_fastpath_enabled() == fast

class Twice(nn.Module):
    "A body whose second block uses the first one's layer, with a parameter and a buffer of its own"
    def __init__(self):
        super().__init__()
        layer = nn.Conv2d(3, 3, 3, padding=1)
        self.token = nn.Parameter(torch.zeros(1))
        self.register_buffer('seen', torch.zeros(1))
        self.one, self.two = nn.Sequential(layer, nn.ReLU()), nn.Sequential(layer, nn.BatchNorm2d(3))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x): return self.pool(self.two(self.one(x)) + self.token)

def test_what_is_shared_belongs_to_the_first_stage():
    model = nn.Sequential(Twice(), nn.Linear(3, 2))
    names = {id(param): name for name, param in model.named_parameters()}
    held = {stage.name: [names[id(param)] for param in stage.params] for stage in stages(model)}
    assert held == {'one': ['0.token', '0.one.0.weight', '0.one.0.bias'], 'two': ['0.two.1.weight', '0.two.1.bias'],
        'head': ['1.weight', '1.bias']}
    assert {'0.token', '0.seen'} <= tensors_of(model, 'one')
    assert flops_by_layer(model, 8)['1'] == 2 * 3 * 2

def test_tensors_by_numbers_and_words():
    model = resnet9(3, width=2)
    everything, n_stages = set(model.state_dict()), len(stages(model))
    assert tensors_of(model, 0) == tensors_of(model, []) == set()
    assert tensors_of(model, n_stages) == tensors_of(model, '*') == everything
    assert tensors_of(model, {'head', 'stem'}) == tensors_of(model, 'stem') | {'head.weight', 'head.bias'}
    for nothing in (n_stages + 1, -n_stages, -n_stages - 1, 'body.no', 'no*', None):
        with saying('tensors_of: ', f'{nothing!r} names nothing', 'stages: stem, stage1, stage2, stage3, head'): tensors_of(model, nothing)

@pytest.mark.parametrize('arch, kwargs, shape', [('resnet9', dict(n_in=1), (1, 32, 32)), ('article_cnn', {}, (3, 32, 32)),
    ('timm/resnet18', {}, (3, 224, 224)), ('torchvision/resnet18', {}, (3, 224, 224)),
    ('timm/vit_tiny_patch16_224', dict(img_size=(32, 64), patch_size=8), (3, 32, 64))])
def test_pictures_a_network_was_made_for(arch, kwargs, shape):
    assert picture_shape(create_network(arch, 2, **kwargs)) == shape

@pytest.mark.parametrize('arch', [f'timm/{name}' for name in timm.list_models()[::40]]
    + [f'torchvision/{name}' for name in torchvision.models.list_models(module=torchvision.models)[::5]])
def test_pictures_that_a_library_knows_of(arch):
    "Looked up as the libraries themselves look it up"
    known = known_input(arch)
    library, name = arch.split('/')
    if library == 'timm':
        cfg = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        expected = cfg['mean'], cfg['std'], cfg['input_size'][-1]
    else:
        shown = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        expected = shown.mean, shown.std, shown.crop_size[0]
    assert (tuple(known['mean']), tuple(known['std']), known['size_px']) == tuple(tuple(o) if isinstance(o, (list, tuple)) else o for o in expected)
    assert library in known['where'] and json.dumps(known)

@pytest.mark.parametrize('arch', ['resnet9', 'article_cnn', 'resnet99', 'timm/resnet9', 'torchvision/test_vit', 'ann/resnet18', '', 'resnet9-letters'])
def test_pictures_that_no_library_knows_of(arch): assert known_input(arch) is None

@pytest.mark.parametrize('name, value', [('norm_layer', torch.nn.BatchNorm2d), ('act_layer', torch.nn.ReLU), ('drop', lambda: 1)])
def test_argument_that_no_card_can_hold_is_refused_before_training(name, value):
    with saying('check_facts', f'`{name}`', error=TypeError): create_network('resnet9', 3, **{name: value})
    with saying('check_facts', f'`{name}`', error=TypeError): create_network('timm/test_resnet', 3, **{name: value})
