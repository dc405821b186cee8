"""The plan of a study: keys, values, combinations, and what is refused before anything is trained."""

from __future__ import annotations

import itertools

import pytest

from spheregen.errors import ConfigError
from spheregen.evaluation.ablation.axes import ALIASES, parse_axes, resolve_setting, split_values
from spheregen.evaluation.ablation.plan import LARGEST, Plan, make_plan
from spheregen.training.recipe import load_recipe


def plan(*over: str, **options: object) -> Plan:
    return make_plan("debug", over, **options)  # type: ignore[arg-type]


# values


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("60,70, 80", ["60", "70", "80"]),
        ("nano", ["nano"]),
        ("{width: 64, depth: 2},{width: 96, depth: 2}", ["{width: 64, depth: 2}", "{width: 96, depth: 2}"]),
        ("[0.9, 0.95],[0.9, [1, 2]]", ["[0.9, 0.95]", "[0.9, [1, 2]]"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ("it's,fine", ["it's", "fine"]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_values_are_cut_at_outer_commas_alone(text: str, items: list[str]) -> None:
    assert split_values(text) == items


@pytest.mark.parametrize("text", ["{a: 1", "[1, 2}", "1]", '"a', "{a: [1}"])
def test_brackets_and_quotes_must_close(text: str) -> None:
    with pytest.raises(ConfigError, match="close"):
        split_values(text)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "at least one --over"),
        (["train.steps"], "KEY=VALUE"),
        (["=3"], "KEY=VALUE"),
        (["train.steps="], "empty value"),
        (["train.steps=1,,2"], "empty value"),
        (["train.steps=1,2,1"], "1 is there twice"),
        (["optimizer.lr=1e-3,0.001"], "0.001 is there twice"),
        (["model.max_angle=60,60.0"], "60.0 is there twice"),
        (["loss.w5=0,0.1", "loss.w5=1"], "loss.w5 is given twice"),
        (["noise.alpha_max=60", "model.max_angle=70"], "set the same thing"),
        (["model.mixer_depth=0", "model.encoder_mixer_depth=1"], "set the same thing"),
        (["train.steps=2", "train.epochs=1"], "set the same thing"),
        (["model.encoder=nano", "model.encoder.width=32"], "set the same thing"),
        (["train.log_every=1,2"], "nothing to compare"),
        (["name=a,b"], "nothing to compare"),
        (["model.patch_size={2,4"], "close"),
        (["model.patch_size=: :,4"], "not valid YAML"),
    ],
)
def test_what_cannot_be_varied_is_refused_in_one_line(over: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_axes(over)
    assert "\n" not in str(caught.value)


def test_true_is_not_one() -> None:
    assert parse_axes(["model.mixer_affine=true,1"])[0].texts == ("true", "1")


def test_the_papers_names_are_keys_of_the_recipe() -> None:
    for alias, settings in ALIASES.items():
        for setting in settings:
            load_recipe("debug", [f"{setting}=2"])  # an unknown key is an error
        assert resolve_setting(f"{alias}=2") == tuple(f"{setting}=2" for setting in settings)
    assert resolve_setting("train.steps=3") == ("train.steps=3",)
    made = plan("noise.alpha_max=45,60", "model.mixer_depth=0")
    assert [one.recipe.model.max_angle for one in made.combinations] == [45, 60]
    model = made.combinations[0].recipe.model
    assert (model.encoder_mixer_depth, model.decoder_mixer_depth) == (0, 0)
    assert plan("loss.w5=0,1", settings=["noise.alpha_max=40"]).base.model.max_angle == 40


# combinations


def test_a_grid_has_all_combinations_in_order() -> None:
    made = plan("loss.w5=0,0.1,0.2", "noise.weak_fraction=0.3,0.5")
    values = [tuple(one.values.values()) for one in made.combinations]
    assert values == list(itertools.product((0, 0.1, 0.2), (0.3, 0.5)))
    assert len({each.digest for each in made.trainings}) == 6
    assert made.combinations[1].label == "loss.w5=0, noise.weak_fraction=0.5"


def test_sampling_keys_share_a_training() -> None:
    made = plan("loss.w5=0,0.1", "sampling.steps=1,2,4", "sampling.schedule=fixed,decay")
    assert len(made.combinations) == 12 and len(made.trainings) == 2
    assert all(len(made.of(training)) == 6 for training in made.trainings)
    assert {one.generation.steps for one in made.combinations} == {1, 2, 4}
    assert "steps" not in made.trainings[0].name


def test_names_are_readable_and_tell_trainings_apart() -> None:
    made = plan("model.encoder={width: 16, depth: 1, heads: 2},{width: 32, depth: 1, heads: 2}", seeds=2)
    names = [each.name for each in made.trainings]
    assert len(set(names)) == 4
    assert names[0].startswith("encoder-width-16-depth-1-heads-2-seed-0-")
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)
    assert plan("loss.w5=0.1").trainings[0].name.startswith("w5-0.1-")
    assert plan("sampling.steps=1,2").trainings[0].name.startswith("debug-")


def test_a_training_is_known_by_what_decides_its_weights() -> None:
    own = plan("loss.w5=0.1").trainings[0].digest  # the default
    assert plan("sampling.steps=2").trainings[0].digest == own
    assert plan("noise.weak_fraction=0.5").trainings[0].digest == own
    assert plan("loss.w5=0.1", settings=["train.log_every=1", "name=other"]).trainings[0].digest == own
    assert plan("loss.w5=0.2").trainings[0].digest != own
    assert plan("loss.w5=0.1", settings=["train.seed=1"]).trainings[0].digest != own


def test_seeds_follow_the_recipes_own() -> None:
    (one,) = plan("loss.w5=0.1", settings=["train.seed=5"], seeds=3).combinations
    assert [each.recipe.train.seed for each in one.trainings] == [5, 6, 7]
    with pytest.raises(ConfigError, match="at least 1"):
        plan("loss.w5=0.1", seeds=0)
    with pytest.raises(ConfigError, match="same thing"):
        plan("train.seed=0,1", seeds=2)


def test_one_by_one_varies_around_the_recipe() -> None:
    made = plan("loss.w5=0,0.1,0.2", "sampling.steps=4,1", one_by_one=True)
    rows = [(one.varies, *one.values.values()) for one in made.combinations]
    # 0.1 and 4 are the recipe's own values
    assert rows == [(None, 0.1, 4), ("loss.w5", 0, 4), ("loss.w5", 0.2, 4), ("sampling.steps", 0.1, 1)]
    assert len(made.trainings) == 3


def test_different_mixers_of_a_recipe_are_told_both() -> None:
    made = plan("model.mixer_depth=0", settings=["model.encoder_mixer_depth=2"], one_by_one=True)
    assert made.combinations[0].texts["model.mixer_depth"] == "2 / 1"


def test_without_classes_the_recipes_guidance_is_none() -> None:
    made = plan("model.num_classes=0,10", settings=["sampling.guidance=1.5"])
    assert [one.generation.guidance for one in made.combinations] == [1.0, 1.5]


# refused beforehand


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["model.max_angel=60"], "did you mean 'max_angle'"),
        (["noise.alpha_mx=60"], "did you mean 'noise.alpha_max'"),
        (["noise.alpha_max=60,95"], r"noise\.alpha_max=95: .*between 0 and 90"),
        (["loss.w5=0,0.1", "model.c=1,100"], r"loss\.w5=0, model\.c=100: .*no latent channel"),
        (["sampling.steps=1,0"], r"sampling\.steps=0"),
        (["sampling.steps=20000"], "10000 at most"),
        (["sampling.schedule=fixed,decai"], "did you mean 'decay'"),
        (["model.num_classes=0", "sampling.guidance=1.2"], "without classes has no guidance"),
        (["loss.w1=1,0"], r"loss\.w1=0: .*pixel term alone"),
        (["model.encoder.width=16,20"], r"width=20: .*multiple of 4"),
        (["loss.w5=0.1,{a: 1}"], r"loss\.w5=\{a: 1\}"),
    ],
)
def test_an_impossible_combination_is_named(over: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan(*over)
    assert "\n" not in str(caught.value) and "--set" not in str(caught.value)


def test_a_section_that_is_a_name_is_explained_without_set() -> None:
    with pytest.raises(ConfigError, match=r"--over model\.encoder\.width=32: encoder is a single value"):
        make_plan("digits", ["model.encoder.width=32"])


def test_rows_of_the_same_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="come to the same settings"):
        plan("optimizer.betas=[0.8, 0.9],['0.8', 0.9]")


def test_a_study_has_an_upper_size() -> None:
    values = ",".join(str(angle / 10) for angle in range(1, 22))
    with pytest.raises(ConfigError, match=f"at most {LARGEST}.*--one-by-one"):
        plan(f"noise.alpha_max={values}", "loss.w5=0,1,2,3,4,5,6,7,8,9")
    with pytest.raises(ConfigError, match="lower --seeds"):
        plan("loss.w5=0,1", seeds=101)


def test_a_recipe_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="--data"):
        make_plan("flowers102", ["noise.alpha_max=80"])


def test_work_counts_all_steps() -> None:
    training = plan("loss.w5=0.1", settings=["train.steps=7"]).trainings[0]
    assert training.pflops(1400) == pytest.approx(7 * 16 * training.flops_per_image / 1e15)
    epochs = plan("loss.w5=0.1", settings=["train.epochs=2"]).trainings[0]
    assert epochs.pflops(160) == pytest.approx(20 * 16 * epochs.flops_per_image / 1e15)
