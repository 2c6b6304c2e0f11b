"""Balancers as pure functions: worked examples, laws for every rule, and the effect that each is made for."""

import math
import random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_train.balancing.balancers import RULES, task_weights
from mft_train.balancing.coba import divergence_factor
from mft_train.balancing.slopes import slopes
from mft_train.config.loss_config import CobaConfig, FamoConfig, FocalConfig, LossConfig, SelfPacedConfig

# Histories short enough that a few updates leave the warm-up.
LOSSES = {
    "static": LossConfig(balancer="static", task_weights={"b": 3.0}),
    "self_paced": LossConfig(balancer="self_paced", self_paced=SelfPacedConfig(history_length=3)),
    "coba": LossConfig(balancer="coba", coba=CobaConfig(warmup_updates=2, history_length=4)),
    "famo": LossConfig(balancer="famo"),
    "focal": LossConfig(balancer="focal"),
}
PROBING = sorted(set(LOSSES) - {"static"})


def run(loss, updates, state=None):
    """The weights after every update, and the last state."""
    names = "abcdefgh"[: len(updates[0])]
    state, found = state or {}, []
    for losses in updates:
        weights, state = task_weights(loss, names, state, losses)
        found.append(weights)
    return found, state


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_every_rule_is_tested():
    assert set(LOSSES) == set(RULES)


def test_slopes_of_a_worked_example():
    # Points (0, 1), (2, 2), (3, 2), means 5/3 and 5/3: slope (10 + 1 + 4) / (25 + 1 + 16) = 5/14.
    found = slopes([[[0, 1.0], [2, 2.0], [3, 2.0]], [[0, 0.1], [1, 0.1], [2, 0.1]], [[1, 5.0]]])
    assert found[0] == pytest.approx(5 / 14, rel=1e-12)
    assert found[1:] == [0.0, None]


def test_static_weights_are_the_given_ones_scaled_to_the_number_of_tasks():
    assert run(LOSSES["static"], [[None, None]])[0] == [[0.5, 1.5]]


def test_self_paced_of_a_worked_example():
    # Slopes -0.5 and 0 over three updates: n = (-2, 0), softmax(n) * -n = (2 s, 0) with s = 1 / (1 + e^2).
    settings = SelfPacedConfig(history_length=3, scale=4.0)
    rule, state = RULES["self_paced"], {}
    for losses in ([2.0, 3.0], [1.5, 3.0], [1.0, 3.0]):
        shares, state = rule(state, losses, settings)
    assert shares[0] == pytest.approx(sigmoid(4 * 2 * sigmoid(-2)), rel=1e-12)


def test_coba_of_a_worked_example():
    settings = CobaConfig(warmup_updates=1, history_length=10, tau=5.0)
    rule = RULES["coba"]
    shares, state = rule({}, [2.0, 4.0], settings)
    assert shares == [0.5, 0.5]
    # Ratios 1, 0.5 and 1, 1: slopes -0.5 and 0. The worst slope is 0, so DF = 1 and RCS decides: softmax(-2, 0).
    shares, state = rule(state, [1.0, 4.0], settings)
    assert shares == pytest.approx([sigmoid(-2), sigmoid(2)], rel=1e-12)
    # Ratios 1, 0.5, 0.5 and 1, 1, 1.5: slopes -1/4 and 1/4. RCS = softmax(-1, 1).
    # ACS = softmax(1/4 / mean(1/2, 1/4), -1/4 / mean(0, 1/4)) = softmax(2/3, -2).
    # DF = 2 softmax(-5 * (0, 2))[1] = 2 / (1 + e^10).
    shares, state = rule(state, [1.0, 6.0], settings)
    factor = 2 * sigmoid(-10)
    assert shares[0] == pytest.approx(factor * sigmoid(-2) + (1 - factor) * sigmoid(8 / 3), rel=1e-12)


def test_famo_is_adam_on_the_task_logits_as_torch_computes_it():
    import torch

    updates = [[2.0, 1.0, 3.0], [1.5, 1.1, 2.9], [1.0, 0.9, 2.9], [0.8, 0.95, 1.0]]
    settings = FamoConfig(learning_rate=0.1, decay=0.01)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1, weight_decay=0.01)
    state, before = {}, None
    for losses in updates:
        shares, state = RULES["famo"](state, losses, settings)
        distances = torch.tensor(losses, dtype=torch.float64) + 1e-8
        if before is not None:
            logits.grad = torch.autograd.grad(logits.softmax(0), logits, before.log() - distances.log())[0]
            adam.step()
        before = distances
        expected = logits.softmax(0) / distances
        assert shares == pytest.approx((expected / expected.sum()).tolist(), rel=1e-12)


@given(st.lists(st.tuples(*[st.floats(0.05, 20)] * 4), min_size=2, max_size=12), st.floats(0, 0.1))
def test_famo_weighs_losses_as_torchjd_does(updates, decay):
    import torch
    from torchjd.scalarization import FAMO

    oracle, state = FAMO(4, weight_decay=decay).double(), {}
    settings = FamoConfig(learning_rate=0.025, decay=decay)
    for number, losses in enumerate(updates):
        shares, state = RULES["famo"](state, losses, settings)
        values = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
        if number:
            oracle.update(values)
        oracle(values).backward()
        assert shares == pytest.approx(values.grad.tolist(), rel=1e-9)


def test_focal_of_a_worked_example():
    # Mean token probabilities 1/2 and 3/4: (1/4, 1/16) with gamma 2.
    shares, _ = RULES["focal"]({}, [math.log(2), math.log(4 / 3)], FocalConfig(gamma=2.0))
    assert shares == pytest.approx([0.8, 0.2], rel=1e-12)


losses = st.one_of(st.none(), st.just(0.0), st.just(1.5), st.floats(0, 50))


@st.composite
def updates(draw):
    num_tasks = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(losses, min_size=num_tasks, max_size=num_tasks), min_size=1, max_size=8))


@given(st.sampled_from(sorted(LOSSES)), updates())
def test_weights_are_positive_and_sum_to_the_number_of_tasks(balancer, history):
    for weights in run(LOSSES[balancer], history)[0]:
        assert all(math.isfinite(weight) and weight > 0 for weight in weights)
        assert sum(weights) == pytest.approx(len(weights), rel=1e-9)
        if balancer != "static":
            assert min(weights) >= 0.1


@given(st.sampled_from(PROBING), updates(), st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(balancer, history, generator):
    order = list(range(len(history[0])))
    generator.shuffle(order)
    plain, _ = run(LOSSES[balancer], history)
    permuted, _ = run(LOSSES[balancer], [[row[task] for task in order] for row in history])
    for one, other in zip(plain, permuted, strict=True):
        assert other == pytest.approx([one[task] for task in order], rel=1e-6, abs=1e-9)


@given(st.sampled_from(sorted(LOSSES)), updates(), st.integers(0, 8))
def test_a_state_from_json_goes_on_bit_for_bit(balancer, history, cut):
    loss = LOSSES[balancer]
    whole, last = run(loss, history)
    _, state = run(loss, history[:cut]) if history[:cut] else ([], {})
    assert orjson.loads(orjson.dumps(state)) == state
    rest, resumed = run(loss, history[cut:], orjson.loads(orjson.dumps(state))) if history[cut:] else ([], state)
    assert rest == whole[cut:]
    assert resumed == last


@pytest.mark.parametrize("balancer", PROBING)
@pytest.mark.parametrize("value", [0.0, 0.1, 2.5])
def test_equal_constant_losses_leave_equal_weights(balancer, value):
    for weights in run(LOSSES[balancer], [[value] * 3] * 12)[0]:
        assert weights == pytest.approx([1, 1, 1], rel=1e-12)


@pytest.mark.parametrize("balancer", ["self_paced", "coba"])
def test_constant_losses_of_any_size_leave_equal_weights(balancer):
    for weights in run(LOSSES[balancer], [[0.1, 0.7, 3.3]] * 12)[0]:
        assert weights == pytest.approx([1, 1, 1], rel=1e-12)


def test_a_task_missing_from_some_probes_keeps_its_slope():
    whole = [[3 - 0.1 * t, 2 - 0.05 * t] for t in range(6)]
    gaps = [[a, None if t in (2, 4) else b] for t, (a, b) in enumerate(whole)]
    for balancer in ("self_paced", "coba"):
        loss = LossConfig(
            balancer=balancer,
            coba=CobaConfig(warmup_updates=1, history_length=9),
            self_paced=SelfPacedConfig(history_length=6),
        )
        assert run(loss, gaps)[0][-1] == pytest.approx(run(loss, whole)[0][-1], rel=1e-6)


@pytest.mark.parametrize("balancer", ["self_paced", "coba"])
def test_tasks_measured_in_turn_get_the_weights_of_tasks_measured_at_once(balancer):
    whole = [[3 - 0.1 * t, 2 - 0.05 * t, 4 - 0.01 * t] for t in range(20)]
    turns = [
        [loss if t == 0 or (t - 1) % 3 == k else None for k, loss in enumerate(row)] for t, row in enumerate(whole)
    ]
    loss = LossConfig(
        balancer=balancer,
        coba=CobaConfig(warmup_updates=1, history_length=5),
        self_paced=SelfPacedConfig(history_length=5),
    )
    assert run(loss, turns)[0][-1] == pytest.approx(run(loss, whole)[0][-1], rel=1e-6)
    assert run(loss, turns)[0][-1] != pytest.approx([1, 1, 1], rel=1e-2)


@pytest.mark.parametrize("balancer", PROBING)
def test_a_state_does_not_grow_with_the_updates(balancer, monkeypatch):
    monkeypatch.setattr("mft_train.balancing.coba.WORST_LENGTH", 50)
    generator = random.Random(0)

    def sizes(state):
        return [len(value) for value in state.values() if isinstance(value, list)] + [
            len(own) for name in ("points", "slopes") for own in state.get(name, [])
        ]

    history = [[generator.random() if generator.random() < 0.5 else None for _ in range(3)] for _ in range(300)]
    _, state = run(LOSSES[balancer], history[:150])
    assert sizes(run(LOSSES[balancer], history[150:], state)[1]) == sizes(state)


def curves(*rates, num_updates=60):
    """Losses that fall (or rise, for a negative rate) exponentially from 2 nats."""
    return [[2 * math.exp(-rate * t) for rate in rates] for t in range(num_updates)]


def coba_config():
    return LossConfig(balancer="coba", coba=CobaConfig(warmup_updates=10, history_length=20))


def test_coba_gives_a_slowly_converging_task_more():
    fast, slow = run(coba_config(), curves(0.05, 0.005))[0][-1]
    assert slow > 1.2 * fast


def test_coba_takes_weight_from_a_task_that_starts_to_diverge():
    history = curves(0.02, 0.03, 0.02)
    for t in range(30, 60):
        history[t][1] = history[30][1] * math.exp(0.05 * (t - 30))
    found, _ = run(coba_config(), history)
    before, after = found[29], found[-1]
    assert after[1] == min(after) < 0.5
    assert after[1] < 0.5 * before[1]
    assert all(weight == pytest.approx(1, abs=1e-12) for weight in found[5])


def test_coba_never_leaves_its_bounds_on_a_flat_then_falling_curve():
    # Where an unclamped divergence factor reached 60 and weights left [0, 1].
    history = [[2.0, 2.0] for _ in range(60)] + [[2 - 0.01 * t, 2 - 0.02 * t] for t in range(60)]
    for weights in run(coba_config(), history)[0]:
        assert 0 < min(weights) <= max(weights) < 2


@pytest.mark.parametrize("is_diverging", [False, True])
def test_coba_sees_through_the_noise_of_small_probes(is_diverging):
    generator = random.Random(0)
    history = []
    for t in range(400):
        fast, slow = 0.8 + 1.2 * math.exp(-t / 100), 0.8 + 1.2 * math.exp(-t / 400)
        if is_diverging:
            fast += max(0, t - 200) * 0.003
        history.append([loss * (1 + 0.1 * generator.gauss(0, 1)) for loss in (fast, slow)])
    settings = CobaConfig(warmup_updates=100, history_length=200)
    found, state = run(LossConfig(balancer="coba", coba=settings), history)
    # From the end of the warm-up RCS takes part; the noisy slopes of the very first updates would keep DF at 0.
    factors = [divergence_factor(state["worst"][:t], 5.0) for t in range(1, 101)]
    assert min(factors) > 0.3
    fast, slow = found[-1]
    assert fast < slow
    assert (fast < 0.6) == is_diverging


def test_self_paced_takes_weight_from_a_diverging_task():
    loss = LossConfig(balancer="self_paced", self_paced=SelfPacedConfig(history_length=20))
    converging, diverging = run(loss, curves(0.02, -0.02))[0][-1]
    assert diverging < 0.2 < 1.8 < converging


def test_famo_gives_weight_to_the_task_that_improves_least():
    # Both have the same loss at the end, so that only the logits tell them apart.
    history = [[2.0 * 2 ** (1 - t / 100), 2.0] for t in range(101)]
    improving, stuck = run(LOSSES["famo"], history)[0][-1]
    assert stuck > 1.2 * improving


def test_focal_gives_more_to_the_task_with_the_larger_loss():
    easy, hard = run(LOSSES["focal"], [[0.1, 2.0]])[0][-1]
    assert hard > 10 * easy
