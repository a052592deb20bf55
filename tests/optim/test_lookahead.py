"""Lookahead worked by hand for several periods, its edge values, and Optax's own as a second opinion."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxresnet import OptimConfig, lookahead, make_optimizer
from jaxresnet.optim.lookahead import LookaheadState

RNG = np.random.default_rng(0)
START = RNG.normal(size=4)
GRADS = RNG.normal(size=(11, 4))  # of eleven steps: two whole periods of five, and one step more
RATE = 0.1


def run(tx: optax.GradientTransformation, grads=GRADS) -> tuple[np.ndarray, list]:
    """(fast weights after each step (steps, 4), the states after each step)."""
    fast = {"w": jnp.asarray(START, jnp.float32)}
    state = tx.init(fast)
    update = jax.jit(tx.update)
    weights, states = [], []
    for g in grads:
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, fast)
        fast = optax.apply_updates(fast, updates)
        weights.append(np.asarray(fast["w"]))
        states.append(state)
    return np.stack(weights), states


def slow_of(states: list[LookaheadState]) -> np.ndarray:
    return np.stack([state.slow_params["w"] for state in states])


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_two_periods_in_numbers():
    """One weight at 1, gradient 1, rate 0.1, k=2, alpha=0.5.

    fast 0.9, 0.8 -> slow (1 + 0.8) / 2 = 0.9, fast restarts there: 0.8, 0.7 -> slow (0.9 + 0.7) / 2 = 0.8.
    """
    tx = lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
    fast = jnp.float32(1)
    state = tx.init(fast)
    found = []
    for _ in range(4):
        updates, state = tx.update(jnp.float32(1), state, fast)
        fast = fast + updates
        found.append((float(fast), float(state.slow_params), int(state.count)))
    expected = [(0.9, 1.0, 1), (0.9, 0.9, 2), (0.8, 0.9, 3), (0.8, 0.8, 4)]
    assert found == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_algorithm_1(k, alpha):
    slow = fast = START
    fasts, slows = [], []
    for t, g in enumerate(GRADS, start=1):
        fast = fast - RATE * g
        if t % k == 0:
            slow = slow + alpha * (fast - slow)
            fast = slow
        fasts.append(fast)
        slows.append(slow)
    found, states = run(lookahead(optax.sgd(RATE), k, alpha))
    assert_close(found, fasts)
    assert_close(slow_of(states), slows)
    assert [int(state.count) for state in states] == list(range(1, 12))


INNER = {"sgd": optax.sgd(RATE), "momentum": optax.sgd(RATE, 0.9, nesterov=True), "adam": optax.adam(RATE)}


@pytest.mark.parametrize("momentum", ["none", "pullback"])
def test_alpha_1_is_the_inner_optimiser_for_any_k(momentum):
    found, _ = run(lookahead(INNER["momentum"], 5, 1.0, momentum))
    assert_close(found, run(INNER["momentum"])[0])


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize(("k", "alpha"), [(1, 0.5), (2, 0.8), (5, 0.5)])
def test_agrees_with_optax(inner, k, alpha):
    found, states = run(lookahead(INNER[inner], k, alpha))
    tx = optax.lookahead(INNER[inner], k, alpha)
    pair = optax.LookaheadParams.init_synced(jnp.asarray(START, jnp.float32))
    state = tx.init(pair)
    update = jax.jit(tx.update)
    for t, g in enumerate(GRADS):
        updates, state = update(jnp.asarray(g, jnp.float32), state, pair)
        pair = optax.apply_updates(pair, updates)
        assert_close(found[t], pair.fast)
        assert_close(states[t].slow_params["w"], pair.slow)


@pytest.mark.parametrize("momentum", ["reset", "pullback"])
def test_the_trace_by_hand(momentum):
    """Reset, it starts again at zero after each synchronisation. Pulled back, it goes alpha of the way from what it was
    after the last one, zero at first. The schedule inside goes on."""
    rates = RATE * (1 + np.cos(np.pi * np.arange(11) / 11)) / 2
    slow = fast = START
    trace = kept = np.zeros(4)
    fasts, traces = [], []
    for t, (g, rate) in enumerate(zip(GRADS, rates, strict=True), start=1):
        trace = 0.9 * trace + g
        fast = fast - rate * trace
        if t % 3 == 0:
            slow = fast = slow + 0.8 * (fast - slow)
            trace = kept = np.zeros(4) if momentum == "reset" else kept + 0.8 * (trace - kept)
        fasts.append(fast)
        traces.append(trace)
    inner = optax.sgd(optax.cosine_decay_schedule(RATE, 11), 0.9)
    found, states = run(lookahead(inner, 3, 0.8, momentum))
    assert_close(found, fasts)
    assert_close([optax.tree.get(state.inner, "trace")["w"] for state in states], traces)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_reset_zeroes_the_momentum_and_nothing_else(optimizer):
    inner = make_optimizer(OptimConfig(optimizer=optimizer, lookahead=False), 11, 1)
    (_, [*_, kept]), (_, [*_, reset]) = (run(lookahead(inner, 5, 0.5, m), GRADS[:5]) for m in ("none", "reset"))
    field = "trace" if optimizer == "sgd" else "mu"
    assert np.asarray(optax.tree.get(kept.inner, field)["w"]).all()
    zeroed = optax.tree.set(kept.inner, **{field: {"w": jnp.zeros(4)}})
    assert jax.tree.structure(reset) == jax.tree.structure(kept)
    jax.tree.map(np.testing.assert_array_equal, reset, kept._replace(inner=zeroed))


@pytest.mark.parametrize("momentum", ["none", "reset", "pullback"])
def test_state_can_be_donated(momentum):
    """The slow weights are a copy: XLA refuses to be given one buffer twice."""
    tx = make_optimizer(OptimConfig(lookahead_momentum=momentum), steps_per_epoch=11, num_epochs=1)
    params = {"w": jnp.asarray(START, jnp.float32)}
    state = tx.init(params)
    assert state.slow_params["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))]
    assert len(set(pointers)) == len(pointers)

    def step(params, state):
        updates, state = tx.update(params, state, params)  # the gradient of a bowl
        return optax.apply_updates(params, updates), state

    donating, keeping = jax.jit(step, donate_argnums=(0, 1)), jax.jit(step)
    expected = jax.tree.map(jnp.copy, (params, state))
    for _ in range(6):
        given = params
        params, state = donating(params, state)
        expected = keeping(*expected)
        assert given["w"].is_deleted()
    jax.tree.map(np.testing.assert_array_equal, (params, state), expected)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="sync_period=0: must be a whole number, at least 1"):
        lookahead(optax.sgd(RATE), sync_period=0)
    with pytest.raises(ValueError, match="momentum='pull': must be one of 'none', 'reset', 'pullback'"):
        lookahead(optax.sgd(RATE), momentum="pull")  # type: ignore[arg-type]
    tx = lookahead(optax.sgd(RATE))
    with pytest.raises(ValueError, match="needs the fast weights"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
