import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from mtl_utils.files import UserError
from mtl_utils.settings import MAX_REPLAY_PER_TASK, PROFILES, Settings, default_profile, get_settings
from mtl_utils.tasks import TASKS


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_within_the_rules(name):
    settings = PROFILES[name]
    assert settings.profile == name
    assert 0 < settings.replay_per_task <= MAX_REPLAY_PER_TASK == 10
    assert all(size % 32 == 0 for size in (*settings.train_size.values(), settings.eval_size))
    assert all(set(getattr(settings, name)) == set(TASKS) for name in ("train_size", "epochs", "batch_size", "lr"))


@pytest.mark.parametrize("name", PROFILES)
def test_settings_survive_json(name):
    stored = json.loads(json.dumps(PROFILES[name].as_dict()))
    assert Settings.from_dict(stored) == PROFILES[name]


@pytest.mark.parametrize("change", ["lacks", "has too many"])
def test_settings_of_another_version_are_no_settings(change):
    """A default in the place of a missing field would let a run be continued with other settings than it began with."""
    stored = PROFILES["smoke"].as_dict()
    if change == "lacks":
        del stored["ema_decay"]
    else:
        stored["momentum"] = 0.9
    with pytest.raises((KeyError, TypeError), match=r"ema_decay|momentum"):
        Settings.from_dict(stored)


def test_single_values_are_replaced_and_the_profile_stays_as_it_is():
    settings = get_settings("smoke", seed=7, replay_per_task=0)
    assert (settings.seed, settings.replay_per_task, settings.train_size) == (7, 0, PROFILES["smoke"].train_size)
    assert PROFILES["smoke"].seed == 0


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        get_settings("smoke").seed = 1


def test_unknown_profile_names_the_known_ones():
    with pytest.raises(UserError, match=r"'huge'.*smoke, quick, full"):
        get_settings("huge")


def test_environment_variable_chooses_the_profile(monkeypatch):
    monkeypatch.setenv("MTL_PROFILE", "smoke")
    assert get_settings().profile == "smoke"
    assert get_settings("quick").profile == "quick", "what is asked for comes before the variable"


def test_unknown_profile_in_the_environment_is_a_user_error(monkeypatch):
    monkeypatch.setenv("MTL_PROFILE", "huge")
    with pytest.raises(UserError, match="MTL_PROFILE"):
        get_settings()


@pytest.mark.parametrize(("gpu", "profile"), [(True, "full"), (False, "quick")])
def test_default_profile_depends_on_the_gpu(monkeypatch, gpu, profile):
    monkeypatch.delenv("MTL_PROFILE", raising=False)
    monkeypatch.delenv("MTL_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert default_profile() == profile
    monkeypatch.setenv("MTL_DEVICE", "cpu")
    assert default_profile() == "quick", "a GPU that is not used does not count"
