"""A volume whose commands find a configuration with [store] in it."""

import json

from tests.support.layer import Layer


class ConfiguredVolume(Layer):
    """A volume with a configuration that the commands find."""

    made: dict[str, str]
    """The store of its versions, as it was told when it was made."""

    def configure(self, options: dict[str, str], mode: int = 0o600, **settings: object) -> None:
        directory = self.base / "config"
        directory.mkdir(exist_ok=True)
        self.environment["FUSEJOURNAL_CONFIG_ROOT"] = str(directory)
        rows = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        rows += ["[store.options]"]
        rows += [f"{key} = {json.dumps(value)}" for key, value in options.items()]
        path = directory / "volume.toml"
        path.write_text("\n".join(["[store]", *rows]) + "\n")
        path.chmod(mode)
