"Augmentation against slow references, picture by picture; how its parameters are spread; in loaders and copies"
import pickle
import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import get_image_files, parent_label
from fastai.vision.data import ImageBlock
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy import ndimage, stats
from torchvision.transforms.v2 import functional as tv
from helpers import saying
from nbtransfer.augmentation import AffineAugment, Cutout, ReflectCrop
from nbtransfer.loaders import TaskSplit
from nbtransfer.tasks import digits

few = settings(max_examples=20, deadline=None)
augments = [AffineAugment(), ReflectCrop(), Cutout(), Cutout(.02, .33, 3.3, .5)]
each_augment = pytest.mark.parametrize('augment', augments,
    ids=lambda augment: f'{type(augment).__name__}{"" if not hasattr(augment, "p") else augment.p}')

def pixels(x, dls):
    "Bytes of a normalised batch"
    mean, std = (torch.tensor(channels).view(3, 1, 1) for channels in dls.task.stats)
    return ((torch.Tensor(x) * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

# Against slow references

def picture_batch(n=6, size=(12, 12)):
    "Smooth pictures: `scipy` and `grid_sample` agree on them to float32"
    rng = np.random.default_rng(0)
    return torch.tensor(rng.random((n, 3, *size)), dtype=torch.float32)

def test_affine_is_scipys():
    "scipy's map goes from output to input in pixels, rows first; its `reflect` mirrors at the outer edge, as ours does"
    x, augment = picture_batch(8), AffineAugment(40, .3)
    augment.seed(1)
    turn, shift, side = augment.draw(8)
    got, n = augment.apply(x, turn, shift, side), x.shape[2]
    for k in range(8):
        c, s = turn[k].cos().item(), turn[k].sin().item()
        m = np.array([[c, side[k] * s], [-s, side[k] * c]])             # rows, columns
        offset = shift[k].flip(0).numpy() * n + (n - 1) / 2 - m @ np.full(2, (n - 1) / 2)
        for channel in range(3):
            want = ndimage.affine_transform(x[k, channel].numpy(), m, offset, order=1, mode='reflect')
            assert np.abs(got[k, channel].numpy() - want).max() < 1e-4

def test_rotation_is_torchvisions_inside_the_picture():
    x, augment = picture_batch(1, (33, 33)), AffineAugment()
    got = augment.apply(x, torch.tensor([torch.pi / 9]), torch.zeros(1, 2), torch.ones(1))
    want = tv.rotate(x, 20, interpolation=tv.InterpolationMode.BILINEAR)
    assert (got - want)[..., 8:-8, 8:-8].abs().max() < 1e-3
    assert torch.allclose(augment.apply(x, torch.zeros(1), torch.zeros(1, 2), -torch.ones(1)), x.flip(3), atol=1e-4)

@few
@given(seed=st.integers(0, 999), pad=st.integers(0, 9), h=st.integers(10, 14), w=st.integers(10, 14))
def test_crop_is_numpys_pad_and_a_window(seed, pad, h, w):
    x, augment = (picture_batch(5, (h, w)) * 255).to(torch.uint8), ReflectCrop(pad)
    augment.seed(seed)
    shift, mirror = augment.draw(5)
    got = augment.apply(x, shift, mirror)
    for k in range(5):
        wide = np.pad(x[k].numpy(), ((0, 0), (pad, pad), (pad, pad)), mode='reflect')
        dx, dy = (shift[k] + pad).tolist()
        want = wide[:, dy:dy + h, dx:dx + w]
        assert np.array_equal(got[k].numpy(), want[:, :, ::-1] if mirror[k] else want)

@few
@given(seed=st.integers(0, 999), h=st.integers(8, 14), w=st.integers(8, 14))
def test_cutout_is_torchvisions_erase(seed, h, w):
    x, augment = picture_batch(5, (h, w)) + .1, Cutout(.02, .4, 3., .7)
    augment.seed(seed)
    centre, sides = augment.draw(5)
    got = augment.apply(x, centre, sides)
    for k in range(5):
        (cx, cy), (sx, sy) = (centre[k].double()).tolist(), (sides[k].double()).tolist()
        cols = [j for j in range(w) if abs((j + .5) / w - cx) < sx / 2]
        rows = [i for i in range(h) if abs((i + .5) / h - cy) < sy / 2]
        want = x[k]
        if rows and cols: want = tv.erase(x[k], rows[0], cols[0], len(rows), len(cols), torch.zeros(3, len(rows), len(cols)))
        assert torch.equal(got[k], want)

# What is drawn

def looks_even(u, low, high):
    "Kolmogorov-Smirnov against the uniform distribution; one draw in 10,000 that is even would fail"
    assert low <= u.min() and u.max() <= high
    assert stats.kstest(u.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-4

def test_drawn_parameters_are_spread_as_said():
    n, augment = 20_000, AffineAugment(15, .1)
    augment.seed(0)
    turn, shift, side = augment.draw(n)
    looks_even(turn * 180 / torch.pi, -15, 15)
    for k in range(2): looks_even(shift[:, k], -.1, .1)
    assert abs((side < 0).float().mean() - .5) < 4 * .5 / n**.5
    assert abs(np.corrcoef(torch.stack([turn, *shift.T, side]).numpy()) - np.eye(4)).max() < 5 / n**.5
    augment = ReflectCrop(4)
    augment.seed(0)
    shift, mirror = augment.draw(n)
    for k in range(2): assert stats.chisquare(shift[:, k].add(4).bincount(minlength=9)).pvalue > 1e-4
    assert abs(mirror.float().mean() - .5) < 4 * .5 / n**.5
    augment = Cutout(.05, .3, 3., .25)
    augment.seed(0)
    centre, sides = augment.draw(n)
    hidden = sides[:, 0] > 0
    assert abs(hidden.float().mean() - .25) < 4 * (.25 * .75 / n)**.5
    for k in range(2): looks_even(centre[:, k], 0, 1)
    looks_even(sides[hidden].prod(1), .05, .3)
    looks_even((sides[hidden, 0] / sides[hidden, 1]).log(), 2 * -np.log(3) / 2, np.log(3))

def test_zero_range_is_identity():
    x = picture_batch()
    for augment in (ReflectCrop(0, mirror=False), Cutout(p=0), Cutout(0, 0)):
        assert torch.equal(augment.apply(x, *augment.draw(len(x))), x)
    assert torch.allclose(AffineAugment(0, 0, False).apply(x, *AffineAugment(0, 0, False).draw(len(x))), x, atol=1e-5)
    task = digits()
    nothing = task.dls(100, [ReflectCrop(0, mirror=False), AffineAugment(0, 0, False), Cutout(p=0)], seed=1).train
    for (x, y), (a, b) in zip(nothing, task.dls(100, False, seed=1).train):
        assert torch.equal(y, b) and torch.allclose(x, a, atol=1e-4)

@pytest.mark.parametrize('areas, words', [((-.1, .2), 'min_area must be between 0 and 1 (got -0.1)'), ((float('nan'),), 'min_area must be'),
    ((.1, 1.5), 'max_area must be between 0 and 1 (got 1.5)'), ((.5, .2), 'max_area must be at least min_area, 0.5 (got 0.2)')])
def test_cutout_names_the_area_that_is_wrong(areas, words):
    with saying(f'Cutout: {words}'): Cutout(*areas)

# In loaders, fastai's and ours

@each_augment
def test_each_picture_is_augmented_differently_and_only_in_training(augment):
    task = digits()
    dls = task.dls(len(task.splits['train']), [augment])
    numbers = [0] * 16
    one = dls.train.new(TaskSplit(task, 'train', numbers), bs=16).one_batch()[0]
    assert len({picture.numpy().tobytes() for picture in torch.Tensor(one).contiguous()}) > 8 * getattr(augment, 'p', 1)
    assert torch.equal(pixels(torch.cat([x for x, _ in dls.valid]), dls), task.images[task.splits['valid']])
    x = dls.train.new(TaskSplit(task, 'valid', numbers), bs=16).one_batch()[0]
    assert len({picture.numpy().tobytes() for picture in torch.Tensor(x).contiguous()}) == 1

def test_our_augmentations_fit_into_a_datablock(tmp_path):
    task = digits()
    for i in range(40):
        file = tmp_path/task.vocab[task.labels[i]]/f'{i}.png'
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(task.picture(i).numpy()).save(file)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, batch_tfms=augments)
    x, y = block.dataloaders(tmp_path, bs=8, num_workers=0).one_batch()
    assert x.shape == (8, 3, 32, 32) and len(y) == 8

def test_pickled_and_copied_augmentation():
    augment = AffineAugment()
    augment.seed(3)
    assert torch.equal(pickle.loads(pickle.dumps(augment)).draw(5)[0], augment.draw(5)[0])
