"Rules for a weight of another shape, tried on any sizes, and each fault named by its own message"
import pytest
import torch
from hypothesis import assume, given, strategies as st
from torch import nn
from helpers import saying, some
from nbtransfer.adaptation import adapt_channels, channel_change, identity_start, resize_positions, rows_by_name, widen
from nbtransfer.networks import Residual

def test_block_that_could_never_learn_is_no_identity():
    with pytest.raises(ValueError, match='still learn'): identity_start(Residual(4), torch.rand(2, 4, 8, 8))

def test_block_that_is_refused_or_not_is_left_as_it_was():
    for block in (Residual(4), nn.Conv2d(4, 4, 3, padding=1)):
        block.train()
        before = {n: t.clone() for n, t in block.state_dict().items()}
        try: identity_start(block, torch.rand(2, 4, 8, 8))
        except ValueError: pass
        assert block.training and all(torch.equal(t, before[n]) for n, t in block.state_dict().items())
        assert all(p.grad is None for p in block.parameters())

counts = st.integers(1, 5)

@some(50)
@given(counts, counts, st.sampled_from(['sum', 'repeat', 'zero']))
def test_grey_pictures_look_the_same_to_a_first_layer_where_channels_go_round(n, n_in, rule):
    "Or the rule says that it does not fit the numbers"
    weight = torch.randn(4, n, 3, 3)
    fits = n % n_in == 0 if rule == 'sum' else n_in >= n
    if not fits:
        with saying(f'{rule!r} for {n} → {n_in}'): adapt_channels(weight, n_in, rule)
        return
    adapted = adapt_channels(weight, n_in, rule)
    assert adapted.shape == (4, n_in, 3, 3)
    if rule != 'repeat' or n_in % n == 0: assert channel_change(weight, adapted)[0] < 1e-5

@some(50)
@given(counts, st.integers(0, 9), st.integers(0, 9), st.integers(0, 5))
def test_widened_layers_compute_the_same(k, more, more_out, seed):
    "Of two layers: the units between them are repeated, and so are those of the second"
    first, second, x = torch.randn(k, 3), torch.randn(2, k), torch.randn(3, 7)
    wide, reads = widen(first, (k + more, 3)), widen(second, (2 + more_out, k + more), seed)
    y = second @ (first @ x).relu()
    assert torch.allclose(reads @ (wide @ x).relu(), y[torch.arange(2 + more_out) % 2], atol=1e-4)

@some(50)
@given(st.integers(0, 2), st.integers(1, 6), st.integers(1, 6))
def test_positions_of_square_grids_are_found(n_tokens, old, new):
    "Class tokens stay as they are; a grid of the same size too"
    n_places = n_tokens + old ** 2
    assume(old > 1 and new > 1)
    pos = torch.randn(1, n_places, 4)
    resized = resize_positions(pos, n_tokens + new ** 2, (old, old), (new, new))
    assert torch.equal(resized[:, :n_tokens], pos[:, :n_tokens]) and resized.shape == (1, n_tokens + new ** 2, 4)
    if old == new: assert torch.allclose(resized, pos, atol=1e-5)

@pytest.mark.parametrize('vocab, wanted, part', [
    ([], ['a', 'b'], '`vocab` must name at least one class (got none)'),
    (['a', 'b', 'c'], ['a'], '`wanted` must have a name for each of 2 rows (got 1)'),
    (['a', 'a', 'b'], ['a', 'b'], "`vocab` must name its classes each once (got 'a' 2 times)"),
    (['a', 'b', 'c'], ['x', 'y'], "none of ['x', 'y']")])
def test_rows_by_name_says_what_is_wrong_with_the_names(vocab, wanted, part):
    with saying(part): rows_by_name(torch.zeros(len(vocab), 3), torch.zeros(2, 3), vocab, wanted)

@pytest.mark.parametrize('call, part', [
    (lambda w: adapt_channels(w, 1, 'mean'), "`rule` must be 'sum', 'repeat' or 'zero' (got 'mean')"),
    (lambda w: adapt_channels(w, 0, 'sum'), '`n_in` must be at least 1 (got 0)'),
    (lambda w: widen(w, (4, 3)), '`shape` must have 4 sides'), (lambda w: widen(w, (4, 2, 3, 3)), 'no side may become smaller'),
    (lambda w: identity_start(nn.Linear(3, 4), torch.rand(2, 3)), 'can give back')])
def test_each_fault_has_a_message_of_its_own(call, part):
    with saying(part): call(torch.zeros(4, 3, 3, 3))
