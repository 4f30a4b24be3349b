"Transfers between real networks, checked tensor by tensor, and what holds for any two networks"
import json, math, time
from collections import OrderedDict
from copy import deepcopy
from types import SimpleNamespace
import fastai.vision.all as fastai_vision
import pytest
import torch
import torchvision
from hypothesis import assume, given, strategies as st
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from helpers import on_more, saying, some
from nbtransfer.files import digest, seal
from nbtransfer.networks import article_cnn, count_flops, create_network, flops_by_layer, resnet9, stages, tensors_of
from nbtransfer.sources import read_source
from nbtransfer.transfer import TransferError, match_tensors, network_of_card, transfer_weights
from weight_files import fill_with_any_bits

nightly = pytest.mark.nightly

def fill(model, seed=0):
    "Random numbers everywhere, so that no two tensors are alike and BatchNorm's statistics matter"
    generator = torch.Generator().manual_seed(seed)
    for n, t in model.state_dict().items():
        if not t.is_floating_point():
            t.fill_(seed + 1)
            continue
        noise = torch.rand(t.shape, generator=generator) - .5
        fan_in = t[0].numel() if t.ndim > 1 else 1
        t.copy_(1 + .2 * noise if t.ndim == 1 and not n.endswith(('bias', 'mean')) else noise * (2 / fan_in ** .5))
    return model.eval()

def build(name, n_classes, **kwargs):
    torch.manual_seed(len(name) + n_classes)
    return create_network(name, n_classes, **kwargs).eval()

def parts(body, d, n_classes): return nn.Sequential(OrderedDict(body=body, head=nn.Linear(d, n_classes)))

def torchvision_vit(n_classes, size_px=32):
    body = torchvision.models.VisionTransformer(size_px, 8, 2, 2, 16, 64)
    body.heads = nn.Identity()
    return parts(body, 16, n_classes)

def timm_vit(n_classes, size_px=32, depth=2):
    return parts(TimmViT(size_px, 8, num_classes=0, embed_dim=16, depth=depth, num_heads=2), 16, n_classes).eval()

def fastai_resnet(n_classes):
    body = fastai_vision.create_body(torchvision.models.resnet18(), pretrained=False, cut=-2)
    return nn.Sequential(body, fastai_vision.create_head(512, n_classes)).eval()

def check(receipt, source, target, before):
    "Recount a receipt: each tensor of both sides once, with its numbers, and what is said of it is so"
    theirs, ours, rows = source.state_dict(), target.state_dict(), receipt.rows
    here, left = rows[rows.status != 'left behind'], rows[rows.status == 'left behind']
    assert here.tensor.tolist() == list(ours) and left.target_shape.isna().all()
    used = here[here.status.isin(['copied', 'adapted'])].source_tensor
    assert sorted([*used, *left.tensor]) == sorted(theirs)
    assert rows.numbers.tolist() == [t.numel() for t in [*ours.values(), *(theirs[n] for n in left.tensor)]]
    for r in here.itertuples():
        if r.status == 'copied': assert torch.equal(ours[r.tensor], theirs[r.source_tensor]), r.tensor
        elif r.status == 'adapted': assert r.rule and r.carried and theirs[r.source_tensor].shape == r.source_shape
        elif not r.rule.startswith(('deeper', 'BatchNorm')):
            assert torch.equal(ours[r.tensor], before[r.tensor]), r.tensor
    params = {n: p.numel() for n, p in target.body.named_parameters()}
    assert receipt.share == sum(here[here.tensor.isin({f'body.{n}' for n in params})].carried) / sum(params.values())

def carry(source, target, **options):
    before = {n: t.clone() for n, t in target.state_dict().items()}
    receipt = transfer_weights(source, target, **options)
    check(receipt, source, target, before)
    return receipt

def statuses(receipt):
    here = receipt.rows[(receipt.rows.part == 'body') & (receipt.rows.status != 'left behind')]
    return here.status.value_counts().to_dict()

def features(model, x):
    with torch.no_grad(): return model[0](x)

# Real pairs: the same network under other names

resnets = 'torchvision/resnet18', 'timm/resnet18'
convnexts = 'torchvision/convnext_tiny', 'timm/convnext_tiny'
efficientnets = 'torchvision/efficientnet_b0', 'timm/efficientnet_b0'
same_network = [   # source, target, tensors of the body copied and adapted, how they are paired
    (*resnets, 120, 0, 'same name'), (*efficientnets, 358, 0, 'same order and shapes'),
    pytest.param(*convnexts, 162, 18, 'same order and shapes', marks=nightly),
    pytest.param(*resnets[::-1], 120, 0, 'same name', marks=nightly),
    pytest.param(*convnexts[::-1], 162, 18, 'same order and shapes', marks=nightly),
    pytest.param(*efficientnets[::-1], 358, 0, 'same order and shapes', marks=nightly)]

@pytest.mark.parametrize('source, target, copied, adapted, rule', same_network)
def test_same_network_of_another_library(source, target, copied, adapted, rule):
    one, other, x = fill(build(source, 5)), build(target, 10), torch.randn(2, 3, 64, 64)
    receipt = carry(one, other)
    assert statuses(receipt) == dict(copied=copied) | (dict(adapted=adapted) if adapted else {})
    assert receipt.share == receipt.share_flops == 1
    assert rule in set(receipt.rows.rule) and not torch.equal(features(one, x), features(build(target, 10), x))
    assert torch.equal(features(one, x), features(other, x))

@pytest.mark.parametrize('ours', [torchvision_vit, timm_vit])
def test_vision_transformers_of_two_libraries(ours):
    other = dict(zip((torchvision_vit, timm_vit), (timm_vit, torchvision_vit)))[ours]
    one, target, x = fill(other(5)), ours(10).eval(), torch.randn(2, 3, 32, 32)
    receipt = carry(one, target)
    assert statuses(receipt) == dict(copied=30)
    assert torch.allclose(features(one, x), features(target, x), atol=1e-5)

def test_fastais_network_has_other_names_and_another_head():
    one, target, x = fill(fastai_resnet(5)), build('timm/resnet18', 10), torch.randn(2, 3, 64, 64)
    receipt = carry(one, target)
    assert statuses(receipt) == dict(copied=120)
    assert receipt.rows.query('status == "left behind"').tensor.str.startswith('1.').all()
    assert torch.allclose(features(one, x).mean((2, 3)), features(target, x), atol=1e-5)

def test_plain_networks_of_the_libraries_are_sources():
    "Without body and head, as most people have them"
    plain = fill(torchvision.models.resnet18(num_classes=5))
    for source in (plain, plain.state_dict()):
        target = build('timm/resnet18', 5)
        receipt = transfer_weights(source, target, head=True)
        assert set(receipt.rows.status) == {'copied'} and len(receipt.rows) == 122
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad(): assert torch.equal(plain(x), target(x))

wrappers = dict(DataParallel=nn.DataParallel, compiled=torch.compile, module=lambda m: nn.ModuleDict(dict(backbone=m)),
    inner=lambda m: nn.Sequential(OrderedDict(body=torch.compile(m.body), head=m.head)))

@pytest.mark.parametrize('wrap', ['DataParallel', 'module', *(pytest.param(name, marks=nightly) for name in ('compiled', 'inner'))])
def test_wrapped_networks_are_sources(wrap):
    one, target = fill(resnet9(5, width=2)), resnet9(3, width=2)
    receipt = transfer_weights(wrappers[wrap](one), target)
    assert receipt.share == 1
    assert all(torch.equal(t, one.body.state_dict()[n]) for n, t in target.body.state_dict().items())

@pytest.mark.parametrize('wrap', ['DataParallel', pytest.param('compiled', marks=nightly)])
def test_wrapped_networks_are_targets(wrap):
    one, target = fill(resnet9(5, width=2)), resnet9(3, width=2)
    assert transfer_weights(one, wrappers[wrap](target)).share == 1
    assert torch.equal(one.body.stem.conv.weight, target.body.stem.conv.weight)

# Pairs that order cannot decide

class Linears(nn.Module):
    "Square layers under given names, which order alone cannot tell apart"
    def __init__(self, *names):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        for n in names: setattr(self, n, nn.Linear(8, 8))

def linears(*names): return parts(Linears(*names), 8, 4)

def test_words_that_would_be_crossed_are_refused():
    state = linears('key', 'query', 'value').state_dict()
    source = {n.replace('weight', 'base.weight').replace('bias', 'base.bias'): t for n, t in state.items()}
    with pytest.raises(TransferError, match=r'key\.base\.weight of the source query\.weight here'):
        transfer_weights(source, linears('query', 'key', 'value'))

def test_more_layers_of_the_same_kind_are_refused():
    "A shorter network agrees with the beginning of a longer one up to its last layer, which is another there"
    source = nn.Sequential(fill(torchvision_vit(5).body), nn.Linear(16, 5))
    with pytest.raises(TransferError): transfer_weights(source, timm_vit(10, depth=1))

def test_two_networks_in_one_source_are_refused_and_named():
    one = resnet9(5, width=2).state_dict()
    both = {f'{who}.{n}': t for who in ('student', 'teacher') for n, t in one.items()}
    with pytest.raises(TransferError, match="'student.body.', 'teacher.body.'"):
        transfer_weights(both, resnet9(3, width=2))
    assert transfer_weights(one | both, resnet9(3, width=2)).share == 1   # unless one has the names themselves

def test_alphabetical_order_does_not_mislead():
    "Safetensors files hold tensors by name: bias before weight"
    source = fill(torchvision_vit(5)).state_dict()
    with pytest.raises(TransferError): transfer_weights(dict(sorted(source.items())), timm_vit(10))

# Where shapes differ

first_layers = ['timm/resnet18', *(pytest.param(name, marks=nightly) for name in
    ('timm/convnext_atto', 'timm/efficientnet_b0', 'torchvision/mobilenet_v3_small'))]

@pytest.mark.parametrize('name', first_layers)
@pytest.mark.parametrize('n_in, rule', [(1, 'sum'), (4, 'repeat'), (6, 'repeat'), (4, 'zero'), (6, 'zero'), (4, 'new')])
def test_input_channels(name, n_in, rule):
    one, target = fill(build(name, 5)), build(name, 10)
    conv = next(n for n, m in target.body.named_modules() if isinstance(m, nn.Conv2d))
    old = target.body.get_submodule(conv)
    new = nn.Conv2d(n_in, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    target.body.set_submodule(conv, new)
    with pytest.raises(TransferError, match=f'3 input channels, the target {n_in}'): transfer_weights(one, target)
    receipt = carry(one, target, in_channels=rule)
    row = receipt.rows[receipt.rows.tensor == f'body.{conv}.weight'].iloc[0]
    assert row.status == ('initialised' if rule == 'new' else 'adapted') and rule in row.rule
    assert statuses(receipt).get('adapted', 0) == (rule != 'new')
    grey = torch.rand(2, 1, 64, 64)
    if (n_in, rule) != (4, 'repeat') and rule != 'new':    # the same for grey pictures, to rounding
        a, b = (features(m, grey.expand(-1, n, -1, -1)) for m, n in ((one, 3), (target, n_in)))
        assert (a - b).abs().max() < 1e-3 * a.abs().max() and '0.0% on grey' in row.detail

@pytest.mark.parametrize('size_px, n_places', [(64, 17), (224, 197), (256, 257)])
def test_vit_at_another_image_size(size_px, n_places):
    one = fill(build('timm/vit_tiny_patch16_224', 5, depth=1))
    target = build('timm/vit_tiny_patch16_224', 10, depth=1, img_size=size_px)
    receipt, n = carry(one, target), sum(1 for t in target.body.state_dict())
    same = size_px == 224
    assert statuses(receipt) == (dict(copied=n) if same else dict(copied=n - 1, adapted=1))
    assert target.body.pos_embed.shape[1] == n_places and receipt.share == 1
    assert torch.equal(target.body.pos_embed[:, 0], one.body.pos_embed[:, 0])
    if not same: assert f'197 → {n_places} places, grid of the source' in set(receipt.rows.detail)

def test_position_embedding_that_is_no_grid_is_refused():
    one, target = timm_vit(5), timm_vit(10)
    target.body.pos_embed = nn.Parameter(torch.zeros(1, 16, 16))
    with pytest.raises(TransferError, match=r"17 → 16 places.*skip='\*pos_embed'"): transfer_weights(one, target)
    assert transfer_weights(one, target, skip='*pos_embed').share < 1

def test_rows_of_classes_by_name():
    one, target = fill(resnet9(4, width=2)), resnet9(3, width=2)
    one.card = dict(vocab=['cat', 'dog', 'fish', 'owl'])
    before = target.head.weight.clone()
    receipt = carry(one, target, head='names', vocab=['owl', 'horse', 'cat'])
    assert torch.equal(target.head.weight, torch.stack([one.head.weight[3], before[1], one.head.weight[0]]))
    assert receipt.rows.query('part == "head"').detail.tolist() == ['2 of 3 classes'] * 2
    with pytest.raises(ValueError, match='a class that both know'):
        transfer_weights(one, target, head='names', vocab=['a', 'b', 'c'])
    with pytest.raises(ValueError, match='each once'): transfer_weights(one, target, head='names', vocab=['cat'] * 3)

def test_batchnorm_statistics_can_be_reset():
    one, target = fill(resnet9(4, width=2)), fill(resnet9(3, width=2), 7)
    receipt = carry(one, target, batchnorm='reset')
    for m in target.body.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert (m.running_mean == 0).all() and (m.running_var == 1).all() and m.num_batches_tracked == 0
    assert receipt.share == 1 and receipt.rows.rule.str.startswith('BatchNorm').sum() == 2 * 3 * 8

# Wider and deeper

def slim(*layers, arch='resnet18', channels=(4, 8, 8, 16)):
    return f'timm/{arch}', dict(layers=layers, channels=channels, stem_width=4)

def small_convnext(*depths, dims=(8, 8, 16, 16)): return 'timm/convnext_atto', dict(depths=depths, dims=dims)

def small_vit(depth, **kwargs): return 'timm/vit_tiny_patch16_224', dict(depth=depth, img_size=32, **kwargs)

growth = {   # source, target: both compute the same
    'resnet9 twice as wide': (('resnet9', dict(width=4)), ('resnet9', dict(width=8))),
    'resnet9 half as wide again': (('resnet9', dict(width=4)), ('resnet9', dict(width=6))),
    'resnet deeper': (slim(1, 1, 1, 1), slim(2, 3, 1, 2)),
    'bottlenecks deeper': (slim(1, 1, 1, 1, arch='resnet50'), slim(2, 1, 2, 1, arch='resnet50')),
    'resnet wider and deeper': (slim(1, 1, 1, 1), slim(1, 2, 1, 1, channels=(8, 12, 8, 20))),
    'convnext wider': (small_convnext(1, 1, 1, 1), small_convnext(1, 1, 1, 1, dims=(16, 16, 32, 32))),
    'convnext deeper': (small_convnext(1, 1, 1, 1), small_convnext(1, 2, 3, 1)),
    'article_cnn': (('article_cnn', {}), ('article_cnn', {})),
    'vit deeper': (small_vit(1), small_vit(3)),
    'efficientnet deeper': (('torchvision/efficientnet_b0', {}), ('torchvision/efficientnet_b1', {}))}

@pytest.mark.parametrize('name', [pytest.param(o, marks=nightly if o.startswith('efficientnet') else ()) for o in growth])
@pytest.mark.parametrize('head', [False, pytest.param(True, marks=nightly)], ids=['features', 'answers'])
def test_grown_network_computes_the_same(name, head):
    one, target = (build(n, 5, **kwargs) for n, kwargs in growth[name])
    fill(one)
    receipt = carry(one, target, head=head, grow=True, min_share=.2)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        a, b = (m(x) if head else m.body(x) for m in (one, target))
        copies = torch.arange(b.shape[1]) % a.shape[1]
        assert (b - a[:, copies]).abs().max() < 1e-4 * a.abs().max() and a.std() > 1e-3
    assert 'differ by' in receipt.note and set(statuses(receipt)) <= {'copied', 'adapted', 'initialised'}

def test_grown_network_learns_with_all_its_units():
    "Every new unit and block gets a gradient, and no unit the same as its copy"
    one, target = fill(resnet9(5, width=4)), resnet9(5, width=8)
    transfer_weights(one, target, grow=True)
    target.train()(torch.randn(8, 3, 32, 32)).logsumexp(1).sum().backward()
    for n, p in target.body.named_parameters():
        assert p.grad.abs().sum() > 0, n
        if p.ndim == 4: assert (p.grad[:len(p) // 2] - p.grad[len(p) // 2:]).abs().max() > 1e-6, n

def densenet(growth_rate): return 'timm/densenet121', dict(block_config=(1, 1, 1, 1), growth_rate=growth_rate)

not_growable = {
    'attention': (small_vit(1), small_vit(1, embed_dim=384, num_heads=6)), 'concatenation': (densenet(8), densenet(16)),
    'a stage more': (slim(1, 1, 1, 1), slim(1, 1, 1, 1)),
    'narrower': (('resnet9', dict(width=8)), ('resnet9', dict(width=4)))}

@pytest.mark.parametrize('name', not_growable)
def test_growth_that_would_change_the_function_is_refused(name):
    one, target = (build(n, 5, **kwargs) for n, kwargs in not_growable[name])
    fill(one)
    if name == 'a stage more': target.body.layer4.append(nn.Conv2d(16, 16, 3, 2, 1))
    before = {n: t.clone() for n, t in target.state_dict().items()}
    with pytest.raises(TransferError): transfer_weights(one, target, grow=True, min_share=0)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())

def test_growth_from_a_file_of_half_precision():
    "Shipped weights are 16-bit floats"
    target = resnet9(10, width=20)
    receipt = transfer_weights('resnet9-letters', target, grow=True)
    assert receipt.share == 1 and {p.dtype for p in target.parameters()} == {torch.float32}

def test_growth_needs_a_source_that_can_be_run():
    with pytest.raises(ValueError, match='cannot be run'):
        transfer_weights(resnet9(5, width=2).state_dict(), resnet9(5, width=4), grow=True)

# Parts

words = ['stem', 'stage1', 'stage2', 'stage3', '*.bn.*', 'body.stem.*', '*conv.weight']
choices = st.one_of(st.integers(-4, 5), st.sampled_from(words),
    st.lists(st.sampled_from(['stem', 'stage3', '*running*']), min_size=1, max_size=3))

@some(10)
@given(st.none() | choices, st.none() | choices)
def test_only_what_was_asked_for_is_carried(only, skip):
    one, target = fill(resnet9(4, width=1)), resnet9(3, width=1)
    body = {n for n in target.state_dict() if n.startswith('body.')}
    asked = body if only is None else tensors_of(target, only) & body
    if skip is not None: asked = asked - tensors_of(target, skip)
    receipt = carry(one, target, only=only, skip=skip, min_share=0)
    assert set(receipt.rows.tensor[receipt.rows.carried > 0]) == asked

test_only_what_was_asked_for_is_carried_of_many = on_more(test_only_what_was_asked_for_is_carried, 60, st.none() | choices, st.none() | choices)

def test_share_to_carry_is_of_what_was_asked_for():
    one, target = resnet9(4, width=2), resnet9(3, width=2)
    assert 0 < carry(one, target, only='stem', min_share=1).share < .01
    with pytest.raises(TransferError, match='only 0.0%'): transfer_weights(one, target, only=0)
    with pytest.raises(TransferError, match='of the head'):
        transfer_weights({n: t for n, t in one.state_dict().items() if 'head' not in n}, target, head=True)

def test_names_of_stages_are_those_of_fine_tuning():
    for name in ('resnet9', 'article_cnn', 'timm/convnext_atto', 'timm/vit_tiny_patch16_224'):
        model = create_network(name, 3)
        names = [s.name for s in stages(model)]
        assert len(set(names)) == len(names) and names[-1] == 'head'
        assert set().union(*(tensors_of(model, n) for n in names)) == set(model.state_dict())

# Any two networks

layers = st.sampled_from([lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(4, 4, 1, bias=False), lambda: nn.BatchNorm2d(4),
    lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 5), lambda: nn.LayerNorm(4), nn.ReLU, lambda: nn.Embedding(3, 4),
    lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), lambda: nn.MultiheadAttention(4, 2),
    lambda: nn.ModuleDict(dict(a=nn.Linear(4, 4), b=nn.Linear(4, 4)))])
bodies = st.lists(layers, min_size=1, max_size=6).map(lambda made: [m() for m in made]).filter(
    lambda made: any(len(m.state_dict()) for m in made))
networks = st.tuples(bodies, st.integers(2, 4)).map(lambda o: parts(nn.Sequential(*o[0]), 4, o[1]))
prefixes = st.sampled_from(['', 'module.', 'body.', 'x.y.', 'head.'])

any_two = (networks, networks, st.booleans(), prefixes, st.booleans(), st.booleans(), st.sampled_from(['keep', 'reset']))

@some(25)
@given(*any_two)
def test_every_tensor_is_accounted_for(one, other, alike, prefix, shuffled, head, batchnorm):
    "For any two networks, alike or not, under any names: the receipt has each tensor once, or nothing has changed"
    if alike: other = parts(deepcopy(one.body), 4, 3)
    state = {prefix + n: t for n, t in fill(one).state_dict().items()}
    if shuffled: state = dict(sorted(state.items()))
    before = {n: t.clone() for n, t in other.state_dict().items()}
    try: receipt = transfer_weights(state, other, head=head, min_share=0, batchnorm=batchnorm, in_channels='new')
    except TransferError: assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())
    else: check(receipt, SimpleNamespace(state_dict=lambda: state), other, before)

test_every_tensor_is_accounted_for_of_many = on_more(test_every_tensor_is_accounted_for, 300, *any_two)

# What a receipt says

def test_flops_of_a_receipt_are_those_of_the_network():
    one, target = resnet9(4), resnet9(3)
    receipt = transfer_weights(one, target, only=2)
    assert receipt.flops.sum() == count_flops(target)
    own = flops_by_layer(target)
    carried = sum(v for n, v in own.items() if n.startswith(('body.stem', 'body.stage1')))
    assert receipt.share_flops == pytest.approx(carried / sum(v for n, v in own.items() if n != 'head'))
    assert receipt.summary().MFLOPs.sum() == pytest.approx(count_flops(target) / 1e6)

def test_network_that_takes_no_pictures_has_a_receipt_without_flops():
    one, target = (parts(nn.Sequential(nn.Linear(7, 4)), 4, 2) for _ in range(2))
    receipt = transfer_weights(one, target)
    text = str(receipt)
    assert 'FLOPs not counted' in text and '100.0% of the body' in text and 'by FLOPs' not in text

def test_receipt_shows_no_markup_of_a_source():
    state = resnet9(3, width=1).state_dict()
    receipt = transfer_weights(state | {f'body.<script>{n}': t for n, t in state.items()}, resnet9(3, width=1))
    assert '<script>' not in receipt.to_html() and '&lt;script&gt;' in receipt.to_html()

def test_source_is_read_once_and_can_be_used_again():
    src = read_source(fill(resnet9(4, width=2)))
    assert read_source(src) is src and src.label == 'resnet9'
    assert transfer_weights(src, resnet9(3, width=2)).share == transfer_weights(src, resnet9(3, width=2)).share == 1

# Speed

@nightly
def test_carrying_a_resnet50_costs_at_most_twice_a_bare_load():
    one, target = build('timm/resnet50', 10), build('timm/resnet50', 10)
    state, bare, ours = one.state_dict(), [], []
    for _ in range(10):
        for times, run in ((bare, target.load_state_dict), (ours, lambda o: transfer_weights(o, target, head=True))):
            start = time.process_time()   # however busy the machine
            run(state)
            times.append(time.process_time() - start)
    assert min(ours) <= 2 * min(bare), f'{min(ours) / min(bare):.2f} times as long'

# Found in reviews

def stack(*names):
    "Equal layers under given names"
    return parts(nn.Sequential(OrderedDict((n, nn.Conv2d(4, 4, 3, padding=1)) for n in names)), 4, 2)

def test_order_never_goes_against_a_name_that_fits():
    one, other = stack('stem', 'stage0', 'stage1', 'stage2'), stack('stem', 'stage1', 'stage2', 'stage3')
    receipt = transfer_weights(one, other, min_share=0)
    pairs = receipt.rows.query('carried > 0').set_index('tensor').source_tensor
    assert all(s == t for t, s in pairs.items()) and len(pairs) == 6

@pytest.mark.parametrize('only', ['*two*', None])
def test_tied_tensors_have_one_fate(only):
    target = parts(nn.ModuleDict(dict(one=nn.Linear(4, 4), two=nn.Linear(4, 4))), 4, 2)
    target.body.two.weight = target.body.one.weight
    before, source = target.body.one.weight.clone(), parts(deepcopy(target.body), 4, 3)
    source.body.two.weight = nn.Parameter(torch.randn(4, 4))
    with pytest.raises(TransferError, match='body.one.weight and body.two.weight are one tensor'):
        transfer_weights(source, target, only=only)
    assert torch.equal(target.body.one.weight, before)

def test_numbers_that_do_not_fit_a_type_are_refused():
    one, other = resnet9(3, width=1), resnet9(3, width=1).half()
    transfer_weights(one, other)
    one.body.stem.conv.weight.data += 1e6
    with pytest.raises(TransferError, match='too large for torch.float16'): transfer_weights(one, other)
    state = {n: t.int() for n, t in one.state_dict().items()}
    with pytest.raises(TransferError, match='torch.int32 in the source'): transfer_weights(state, resnet9(3, width=1))

@pytest.mark.parametrize('fails', [False, True])
def test_a_receipt_leaves_modes_as_they_were(fails):
    model = resnet9(3, width=1).train()
    model.body.stem.bn.eval()
    receipt = transfer_weights(resnet9(4, width=1), model)
    if fails: model.body.stage1.register_forward_pre_hook(lambda *_: 1 / 0)
    assert ('not counted' in str(receipt)) == fails
    assert [n for n, m in model.named_modules() if not m.training] == ['body.stem.bn']

def test_flops_of_attention_are_those_of_its_twin():
    counts = {count_flops(m, 32) for m in (torchvision_vit(3), timm_vit(3))}
    assert len(counts) == 1 and counts.pop() > 0

def test_grid_that_is_not_square():
    def body(size_px): return TimmViT(size_px, 8, num_classes=0, embed_dim=16, depth=1, num_heads=2)
    one, other = parts(body((32, 128)), 16, 3), parts(body((64, 64)), 16, 2)
    receipt = transfer_weights(one, other)    # 4×16 and 8×8 places: as many, and not the same
    assert statuses(receipt)['adapted'] == 1 and not torch.equal(one.body.pos_embed, other.body.pos_embed)

def test_options_that_cannot_be_met_are_refused():
    one, target = fill(resnet9(3, width=1)), resnet9(5, width=2)
    with pytest.raises(TransferError, match='of the head'): transfer_weights(one, target, head=True, grow=True)
    with pytest.raises(ValueError, match='leave out only'): transfer_weights(one, target, grow=True, only=1)
    with pytest.raises(ValueError, match='`min_share` must be in'): transfer_weights(one, target, min_share=50)
    with pytest.raises(ValueError, match="no classes' names"): transfer_weights(one, target, head='names', vocab=['a'])

def test_wrappers_inside_of_a_file_do_not_hide_its_names(tmp_path):
    "Of a network whose parts were compiled one by one"
    one, target = fill(resnet9(3, width=2)), resnet9(4, width=2)
    state = {n.replace('stage1.', 'stage1._orig_mod.'): t for n, t in one.state_dict().items()}
    (tmp_path/'a.safetensors').write_bytes(save(state))
    receipt = transfer_weights(tmp_path/'a.safetensors', target)
    assert receipt.share == 1 and 'body.stage1._orig_mod.down.conv.weight' in set(receipt.rows.source_tensor)

def test_parts_are_chosen_by_the_name_of_a_layer():
    one, target = fill(resnet9(3, width=2)), resnet9(4, width=2)
    receipt = carry(one, target, only=['body.stem.conv', 'body.stage1.down.bn.weight'])
    assert set(receipt.rows.tensor[receipt.rows.carried > 0]) == {'body.stem.conv.weight', 'body.stage1.down.bn.weight'}

# Found by hypothesis

seeds = st.integers(0, 2**31)
small_networks = st.one_of(st.builds(lambda k: article_cnn(k), st.integers(2, 9)),
    st.builds(lambda k, width: resnet9(k, width), st.integers(2, 9), st.integers(1, 6)))

def bits(t): return t.shape, t.dtype, t.contiguous().numpy().tobytes()

def state_bits(model): return {n: bits(t) for n, t in model.state_dict().items()}

def build_again(model):
    make = dict(article_cnn=article_cnn, resnet9=resnet9)[model.arch['name']]
    return make(**model.arch['kwargs'])

@some(4)
@given(small_networks, seeds)
def test_transfer_to_the_same_network_copies_every_bit(source, seed):
    target = build_again(fill_with_any_bits(source, seed))
    receipt = transfer_weights(source, target, head=True)
    assert state_bits(target) == state_bits(source) and receipt.share == 1
    assert set(receipt.rows.status) == {'copied'} and len(receipt.rows) == len(source.state_dict())

test_transfer_to_the_same_network_copies_every_bit_of_many = on_more(test_transfer_to_the_same_network_copies_every_bit, 15, small_networks, seeds)

@st.composite
def partial_states(draw):
    "A small network, and a state dict that has some of its tensors, some of another shape, and some of its own"
    target = build_again(resnet9(3, width=2))
    fates = draw(st.lists(st.sampled_from(['same', 'same', 'other shape', 'absent']), min_size=50, max_size=50))
    state = {}
    for (n, t), fate in zip(fill_with_any_bits(build_again(target), draw(seeds)).state_dict().items(), fates):
        if fate == 'same': state[n] = t
        if fate == 'other shape': state[n] = torch.stack([t, t])
    for n in draw(st.lists(st.sampled_from(['body.more', 'head.more', 'x']), unique=True)): state[n] = torch.ones(2)
    return target, dict(draw(st.permutations(list(state.items()))))

def fits(theirs, ours, head):
    "Names of the tensors that are to be copied"
    same = {n for n, t in theirs.items() if n in ours and t.shape == ours[n].shape}
    return {n for n in same if head or not n.startswith('head.')}

def share_of(names, model):
    params = {n: p.numel() for n, p in model.named_parameters() if n.startswith('body.')}
    return sum(params[n] for n in names if n in params) / sum(params.values())

@some(6)
@given(partial_states(), st.booleans())
def test_receipt_accounts_for_every_tensor_once(drawn, head):
    target, theirs = drawn
    before, ours = state_bits(target), target.state_dict()
    fit = fits(theirs, ours, head)
    receipt = transfer_weights(theirs, target, head, min_share=0)
    expected = [(n, 'copied' if n in fit else 'initialised', t.numel()) for n, t in ours.items()]
    expected += [(n, 'left behind', t.numel()) for n, t in theirs.items() if n not in fit]
    rows = receipt.rows
    assert sorted(zip(rows.tensor, rows.status, rows.numbers)) == sorted(expected)
    assert rows.carried.tolist() == [n if s == 'copied' else 0 for s, n in zip(rows.status, rows.numbers)]
    assert receipt.summary().tensors.sum() == len(expected) and receipt.summary().numbers.sum() == rows.numbers.sum()
    assert math.isclose(receipt.share, share_of(fit, target))
    after = state_bits(target)
    assert after == {n: bits(theirs[n]) if n in fit else o for n, o in before.items()}

test_receipt_accounts_for_every_tensor_once_of_many = on_more(test_receipt_accounts_for_every_tensor_once, 40, partial_states(), st.booleans())

@some(6)
@given(partial_states(), st.booleans(), st.floats(0, 1, exclude_min=True))
def test_too_small_a_share_is_refused_and_changes_nothing(drawn, head, min_share):
    target, theirs = drawn
    before, share = state_bits(target), share_of(fits(theirs, target.state_dict(), head), target)
    assume(share < min_share)
    with pytest.raises(TransferError, match=f'only {share:.1%}'): transfer_weights(theirs, target, head, min_share)
    assert state_bits(target) == before

test_too_small_a_share_is_refused_and_changes_nothing_of_many = on_more(test_too_small_a_share_is_refused_and_changes_nothing, 40, partial_states(), st.booleans(), st.floats(0, 1, exclude_min=True))

# Files and cards

def file_with_card(**kwargs):
    "The bytes of a weights file whose card names a ResNet-9 with these arguments"
    state = {n: t.contiguous() for n, t in resnet9(3, width=2).state_dict().items()}
    card = dict(arch=dict(name='resnet9', kwargs=dict(n_classes=3, width=2) | kwargs), sha256=digest(state))
    card |= dict(card_sha256=seal(card))
    return save(state, metadata=dict(card=json.dumps(card)))

def test_unknown_name_of_a_source():
    with saying("'no/file.safetensors'"): transfer_weights('no/file.safetensors', resnet9(2))

@pytest.mark.parametrize('kwargs, part', [(dict(width=10**6), 'width of at most 1024'), (dict(pretrained=True), "got ['pretrained']"),
    (dict(checkpoint_path='any'), "got ['checkpoint_path']"), (dict(colour=3), 'colour'), (dict(n_classes=4), 'differ')])
def test_growth_from_a_card_that_names_another_network_is_refused(kwargs, part, tmp_path):
    "Whoever wrote the file wrote the card: nothing is fetched, run or built too large for its tensors"
    path, model = tmp_path/'odd.safetensors', resnet9(3, width=4)
    path.write_bytes(file_with_card(**kwargs))
    with saying('transfer_weights', part): transfer_weights(path, model, grow=True)
    path.write_bytes(file_with_card())
    assert transfer_weights(path, model, grow=True).share == 1
    assert network_of_card(read_source(path)).card['arch']['kwargs'] == dict(n_classes=3, width=2)

# Matching, without networks

@some(50)
@given(st.lists(st.sampled_from(['a', 'b.c', 'd', 'e.f.g', '0', '1']), min_size=1, unique=True), prefixes, st.data())
def test_tensors_of_any_names_match_themselves_after_any_prefix(names, prefix, data):
    shapes = st.lists(st.integers(1, 3), max_size=3)
    ours = {name: torch.zeros(data.draw(shapes)) for name in names}
    theirs = {prefix + name: t for name, t in ours.items()}
    expected = {name: prefix + name for name in ours}
    if len(ours) == 1 or not any(name == other or name.endswith(f'.{other}') for name in theirs for other in theirs if name != other):
        assert {name: match.name for name, match in match_tensors(ours, theirs).items()} == expected

def test_each_option_that_growth_cannot_meet_is_named():
    one, target = resnet9(3, width=1), resnet9(3, width=2)
    for option in (dict(only=1), dict(skip='stem'), dict(in_channels='sum'), dict(batchnorm='reset')):
        (name, value), = option.items()
        with saying(f'leave out {name}={value!r}'): transfer_weights(one, target, grow=True, **option)
