"""The data settings as gin has bound them; the data room itself does not know gin."""

from __future__ import annotations

import gin

from sbs_jax.data import settings


def install() -> None:
    """Makes what gin binds to `settings.DataSettings` the settings in force."""
    settings.configure(bound)


def bound() -> settings.DataSettings:
    """Returns the settings with the values that gin has bound, defaults elsewhere."""
    try:
        make = gin.get_configurable(settings.DataSettings)
    except ValueError:  # No gin file has named them.
        make = settings.DataSettings
    return make()
