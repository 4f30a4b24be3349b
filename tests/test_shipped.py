"The networks and comparisons that ship: small enough, good enough, and described well enough to be made again"
import shlex
import pytest
import torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from helpers import PACKAGE
from nbtransfer.cli import _parser
from nbtransfer.comparison import STRATEGIES, load_comparison
from nbtransfer.files import digest, seal
from nbtransfer.folders import cifar100
from nbtransfer.loaders import inference_dls
from nbtransfer.networks import create_network
from nbtransfer.outcomes import shipped_pairs, subtask
from nbtransfer.pretraining import Quiet, default_lr
from nbtransfer.similarity import SCORES
from nbtransfer.sources import read_source, shipped_names
from nbtransfer.weights import pretrained

FLOORS = {'article_cnn-cifar10': .78, 'article_cnn-cifar100': .45, 'resnet9-cifar10': .91, 'resnet9-cifar100': .68,
    'resnet9-letters': .95}
FILES = sorted((PACKAGE/'weights').iterdir())
CASES = sorted(o.stem for o in (PACKAGE/'results').glob('*.json'))
each_network = pytest.mark.parametrize('name', shipped_names())
each_case = pytest.mark.parametrize('name', CASES)

def test_weights_are_small():
    assert sum(o.stat().st_size for o in FILES) <= 12e6 and {o.suffix for o in FILES} == {'.safetensors'}

@pytest.mark.parametrize('name', FLOORS)
def test_networks_are_good_enough(name):
    assert pretrained(name).card['metrics']['test_accuracy'] >= FLOORS[name]

@each_network
def test_card_names_data_recipe_and_a_command_that_can_be_typed(name):
    card = pretrained(name).card
    typed = _parser().parse_args(shlex.split(card['command'])[1:])
    recipe, arch = card['recipe'], card['arch']
    assert (typed.command, typed.source, typed.arch, typed.epochs) == ('pretrain', recipe['task'], arch['name'], recipe['n_epochs'])
    assert (typed.batch_size, typed.wd, typed.smoothing, 0) == (*(recipe.get(o, 0) for o in ('bs', 'wd', 'smoothing')), recipe['seed'])
    net = create_network(arch['name'], arch['kwargs']['n_classes'], **({'width': typed.width} if typed.width else {}))
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in pretrained(name).state_dict().items()}
    assert (typed.lr or default_lr(net)) == recipe['lr_max']
    assert recipe.get('augment', []) == {'crop': ['ReflectCrop', 'Cutout'], 'none': [],
        'article': ['AffineAugment'] if recipe['task'] != 'letters' else []}[typed.augment]
    assert card['licence'] and 0 <= card['metrics']['valid_accuracy'] <= 1

@each_network
def test_networks_are_stored_in_16_bits_and_predict_without_their_task(name):
    net = pretrained(name)
    learn = Learner(inference_dls(net.card), net, loss_func=CrossEntropyLossFlat(), cbs=[Quiet()])
    pictures = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).numpy()
    preds = learn.get_preds(dl=learn.dls.test_dl(list(pictures)))[0]
    assert preds.shape == (2, len(net.card['vocab'])) and preds.isfinite().all()
    assert torch.allclose(preds.sum(1), torch.ones(2))
    assert (PACKAGE/'weights'/f'{name}.safetensors').stat().st_size < 2.1 * sum(t.numel() for t in net.state_dict().values()) + 20_000

@each_case
def test_comparisons_are_of_the_networks_that_ship(name):
    case = load_comparison(name)
    net = pretrained(name.rpartition('-')[0])
    assert case.facts['source']['sha256'] == digest(net.state_dict()) and case.facts['source']['arch'] == net.card['arch']

@each_case
def test_comparisons_are_whole(name):
    "Every number of labels and every strategy, five seeds where labels are few and three with all, at one budget"
    case = load_comparison(name)
    runs, sizes = case.runs, set(case.runs.per_class)
    assert sizes == {10, 50, 100, 4500 if name.endswith('cifar10') else 450} and {int(n) for n in case.facts['budgets']} == sizes
    seeds = runs.groupby(['per_class', 'strategy']).seed.apply(sorted)
    assert set(seeds.index.get_level_values(1)) == set(STRATEGIES) and len(seeds) == len(sizes) * len(STRATEGIES)
    assert all(s == list(range(3 if n > 100 else 5)) for (n, _), s in seeds.items())
    assert (runs.groupby('per_class').n_steps.nunique() == 1).all() and runs.notna().all(axis=None)
    assert (case.trials.groupby(['per_class', 'strategy']).lr_max.nunique() == 4).all() and not {1000} & set(runs.seed)

def test_pairs_are_whole_and_of_the_networks_that_ship(request):
    pairs = shipped_pairs()
    sources = {*shipped_names(), 'random article_cnn', 'random resnet9w16'}
    assert pairs.task.nunique() == 60 and set(pairs.source) == sources and len(pairs) == 60 * len(sources)
    assert pairs[['head only', 'copy and tune']].notna().all(axis=None)
    assert pairs[[*SCORES]].notna().all(axis=1).equals(pairs.refused == '')   # no NaN without a reason
    assert set(pairs.task[pairs.refused != '']) == {'cifar100-sub43-18'}      # which has one picture twice
    assert pairs.n_classes.between(2, 10).all() and pairs.per_class.between(5, 20).all()
    if not request.config.getoption('cifar'): return
    task = subtask(cifar100(), 0)
    for name in shipped_names():
        carried = digest(read_source(name).state)
        assert pairs[(pairs.task == task.name) & (pairs.source == name)].sha256.item() == seal(dict(task=task.fingerprint(), source=carried))

@each_case
def test_rates_are_those_of_the_search(name):
    case = load_comparison(name)
    chosen = case.choices().chosen
    for (n, strategy), rows in case.runs.groupby(['per_class', 'strategy']):
        assert set(rows.lr_max) == {chosen[n, strategy]}
