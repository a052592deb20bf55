"""The published runs, as a table to compare with by eye, what turns them into the runs that were meant, and the
published networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxresnet.config import AugmentConfig, ModelConfig, with_fields
from jaxresnet.data.augment import MEAN, STD
from jaxresnet.nn.resnet import count_params
from jaxresnet.recipes import (
    intended,
    intended_run,
    narrowed_resnet18,
    problem_as_published,
    problem_here,
    published,
    published_networks,
    published_run,
)

# name: optimiser, batch, learning rate, Lookahead, schedule, its length in epochs, epochs run, best (epoch), last
TABLE = {
    "adam_128": ("adam", 128, 1e-2, True, "cosine", 390, 51, 91.10, 50, 91.10),
    "adam_256": ("adam", 256, 1e-2, True, "cosine", 195, 51, 91.49, 44, 91.19),
    "adam_512": ("adam", 512, 1e-2, True, "cosine", 97, 51, 91.26, 49, 91.00),
    "adam_512_without_lookahead": ("adam", 512, 1e-2, False, "cosine", 97, 51, 90.78, 50, 90.78),
    "adam_256_lr_1": ("adam", 256, 1e-1, True, "cosine", 195, 51, 90.10, 49, 89.37),
    "adam_256_lr_3": ("adam", 256, 1e-3, True, "cosine", 195, 51, 90.90, 49, 90.18),
    "adam_256_lr_6": ("adam", 256, 1e-6, True, "cosine", 195, 51, 47.44, 50, 47.44),
    "adam_one_cycle": ("adam", 512, 1e-2, False, "onecycle", 1_500_000, 31, 87.87, 28, 87.25),
    "adam_one_cycle_128": ("adam", 128, 1e-2, False, "onecycle", 1_500_000, 31, 90.54, 29, 89.46),
    "sgd_128": ("sgd", 128, 1e-2, True, "cosine", 390, 30, 88.13, 24, 88.04),
    "adam": ("adam", 128, 1e-2, True, "cosine", 390, 31, 90.85, 29, 90.57),
}


AS_LONG_AS_SGD = {"adam": 30}  # epochs of the run as intended, where they are not those of the run as published


def test_as_published():
    assert set(published) == set(TABLE)
    for name, run in published.items():
        config, optim = run.config, run.config.optim
        assert TABLE[name] == (
            *(optim.optimizer, config.batch_size, optim.learning_rate, optim.lookahead, optim.schedule),
            *(optim.schedule_length, config.num_epochs, run.best, run.best_epoch, run.last),
        )
        assert optim.schedule_unit == "epoch" and optim.cycle_momentum == ("one_cycle" in name)
        assert (optim.sync_period, optim.slow_step_size, optim.lookahead_momentum) == (5, 0.5, "none")
        assert (optim.b1, optim.b2, optim.eps) == (0.9, 0.999, 1e-8)
        assert optim.weight_decay == (5e-4 if optim.optimizer == "sgd" else 0)
        assert optim.momentum == 0.9 and not optim.nesterov
        assert config.model == ModelConfig(precision="float32")
        assert (config.val_size, config.selection, config.eval_weights) == (0, "test", "fast")
        assert config.train_size is None and config.test_every_epoch
        assert config.augment == AugmentConfig(crop_padding=4, pad_mode="zero", flip=True, cutout_size=8)
    assert MEAN == (0.4914, 0.4822, 0.4465) and STD == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize("name", TABLE)
def test_intended_changes_the_protocol_and_nothing_else(name):
    config = published[name].config
    meant = intended(config)
    assert (meant.optim.schedule_unit, meant.optim.schedule_length) == ("step", None)
    assert (meant.val_size, meant.selection, meant.eval_weights, meant.test_every_epoch) == (5000, "val", "slow", True)
    back = {"schedule_unit": "epoch", "schedule_length": config.optim.schedule_length}
    back |= {"val_size": 0, "selection": "test", "eval_weights": "fast"}
    assert with_fields(meant, back) == config


@pytest.mark.parametrize("name", TABLE)
def test_a_published_run_is_recognised_under_its_own_protocol_only(name):
    """As it was meant, "adam" is as long as the SGD that it is compared with."""
    run = published[name]
    assert published_run(run.config) == (name, run) and intended_run(run.config) is None
    meant = intended(run.config)
    if name == "adam":
        assert meant.num_epochs == 31 and intended_run(meant) is None
        meant = replace(meant, num_epochs=30)
    assert intended_run(meant) == (name, run) and published_run(meant) is None


@pytest.mark.parametrize("same", [{"seed": 3}, {"eval_batch_size": 7}, {"precision": "bfloat16"}], ids=str)
def test_seed_and_arithmetic_do_not_make_it_another_run(same):
    run = published["adam_512"]
    assert published_run(with_fields(run.config, same)) == ("adam_512", run)
    assert intended_run(with_fields(intended(run.config), same)) == ("adam_512", run)


@pytest.mark.parametrize(
    "other",
    [
        *({"num_epochs": 50}, {"batch_size": 511}, {"b1": 0.95}, {"flip": False}, {"width": 63}),
        *({"train_size": 49_999}, {"initializer": "he"}, {"cycle_momentum": False}),
    ],
    ids=str,
)
def test_any_other_difference_does(other):
    """Else a published figure would stand beside a run that is not its own."""
    config = published["adam_one_cycle" if "cycle_momentum" in other else "adam_512"].config
    assert published_run(with_fields(config, other)) is None
    assert intended_run(with_fields(intended(config), other)) is None


# ------------------------------------------------------------------------------------------------------- networks

COUNTS = (12_550_218, 6_279_498, 5_419_338, 11_173_962, *[4_903_242] * 4)


def test_parameters_are_the_published_counts():
    assert tuple(map(count_params, published_networks.values())) == COUNTS


def test_which_run_as_published_and_why_the_others_do_not():
    problems = {name[-1]: problem_as_published(model) for name, model in published_networks.items()}
    assert [number for number, problem in problems.items() if problem is None] == ["3", "4", "5"]
    unpadded = "the 3x3 shortcut of stage 2, which is not padded, makes 15x15 of a 32x32 map"
    assert problems["1"].startswith(unpadded) and problems["2"] == problems["1"]
    assert problems["6"].endswith("2x2 of the last 4x4 map: 2,048 numbers, where the linear layer takes 512")
    assert problems["7"] == "a pool of 8x8 leaves nothing of the last 4x4 map"
    assert problems["8"] == "a pool of 16x16 leaves nothing of the last 4x4 map"


def as_published(model, images):
    """The published forward pass as far as shapes go: padded 3x3 paths, unpadded shortcuts, one linear layer."""
    x = jnp.repeat(images, 2, axis=-1)  # width 2
    for stage in range(1, len(model.stage_sizes)):
        c, k = x.shape[-1], model.shortcut_kernel

        def conv(size, padding, x=x, c=c):
            kernel = jnp.zeros((size, size, c, 2 * c))
            return jax.lax.conv_general_dilated(
                x, kernel, (2, 2), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        x = jax.lax.add(conv(3, (1, 1)), conv(k, (0, 0)))
        assert x.shape[-1] == 2 ** (stage + 1)
    pool = (1, model.pool_size, model.pool_size, 1)
    pooled = jax.lax.reduce_window(x, 0.0, jax.lax.add, pool, pool, "VALID")
    return pooled.reshape(len(images), -1) @ jnp.zeros((x.shape[-1], 10))


@pytest.mark.parametrize("model", [*published_networks.values(), ModelConfig(pool_size=4, stage_sizes=(3, 1, 2, 1))])
def test_the_verdicts_are_those_of_the_shapes_themselves(model):
    images = jnp.zeros((1, 32, 32, 1))
    if problem_as_published(model) is None:
        assert jax.eval_shape(lambda: as_published(model, images)).shape == (1, 10)
    else:
        with pytest.raises(TypeError):
            jax.eval_shape(lambda: as_published(model, images))


def test_here_the_padded_shortcut_runs_and_a_pool_must_fit():
    refused = {name: problem_here(model) for name, model in published_networks.items() if problem_here(model)}
    assert list(refused) == ["configuration 6", "configuration 7", "configuration 8"]
    assert refused["configuration 7"].startswith("pool_size=8: must be 4")


def test_the_narrowed_resnet18_is_the_widest_under_five_million():
    assert narrowed_resnet18 == ModelConfig(stage_sizes=(2, 2, 2, 2), width=42)
    assert count_params(narrowed_resnet18) < 5_000_000 <= count_params(replace(narrowed_resnet18, width=43))
