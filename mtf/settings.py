"""Where things are: typed settings from the environment (`MTF_*`), with defaults for one machine.

`local` keeps everything under the state folder; `cluster` expects the URLs of a database, a store and servers.
A running platform writes the ports that it got to `<state>/platform.json`; `Settings` reads them where the environment
says nothing.
"""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from mtf.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """One object a process; every field is settable as MTF_<FIELD>. Raises InputError naming the setting that cannot be used."""

    model_config = SettingsConfigDict(env_prefix="MTF_", env_ignore_empty=True, extra="ignore")

    profile: Literal["local", "cluster"] = "local"
    state_dir: Path = ROOT / "var"
    surfaces: tuple[str, ...] = ("feed",)
    clock: Literal["real", "simulated"] = "real"
    expectations_dir: Path = ROOT / "expectations"
    spec_file: Path | None = None

    store_url: str | None = None
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None

    mlflow_url: str | None = None
    airflow_url: str | None = None
    serve_url: str | None = None
    airflow_password_file: Path | None = None

    threads: int = Field(default=2, ge=1)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = "_".join(str(part) for part in first["loc"][:1]).upper()
            raise InputError(f"MTF_{name} = {first['input']!r}: {first['msg']}") from None
        except SettingsError as error:
            raise InputError(f"settings: {error}; lists are written as JSON, e.g. MTF_SURFACES='[\"feed\"]'") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    def model_post_init(self, _: Any) -> None:
        """Fill what is unset from platform.json, and make the state folder absolute."""
        self.state_dir = self.state_dir.expanduser().resolve()
        for name, value in self._platform.items():
            if name in type(self).model_fields and value is not None and getattr(self, name) is None:
                form = SecretStr if name.endswith("_key") else Path if name.endswith("_file") else str
                setattr(self, name, form(value))
        if "clock" not in self.model_fields_set:
            self.clock = self._platform.get("clock", "real")
        if self.store_url is None:
            self.store_url = (self.state_dir / "store").as_uri()

    @cached_property
    def _platform(self) -> dict[str, Any]:
        path = self.state_dir / "platform.json"
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); run `mtf down`, delete it and run `mtf up`") from None
        if not isinstance(document, dict):
            raise InputError(f"{path} holds no object; run `mtf down`, delete it and run `mtf up`")
        return document

    @property
    def clock_us(self) -> int:
        """What the event clock says without asking anybody, microseconds: now, or 0 where it is simulated and callers keep it."""
        return time.time_ns() // 1000 if self.clock == "real" else 0

    def spool_dir(self, surface: str) -> Path:
        """The spool of a surface: one SQLite file a server process."""
        return self.state_dir / "spool" / surface

    def logs_dir(self, surface: str) -> Path:
        """Sealed days of a surface."""
        return self.state_dir / "logs" / surface

    def quality_dir(self, surface: str) -> Path:
        """Validation results, quarantine and summaries of a surface."""
        return self.state_dir / "quality" / surface

    @property
    def docs_dir(self) -> Path:
        """The Data Docs site."""
        return self.state_dir / "quality" / "site"

    def transitions_dir(self, surface: str) -> Path:
        """Transitions of a surface, by day."""
        return self.state_dir / "transitions" / surface

    @property
    def datasets_dir(self) -> Path:
        """The dataset workspace: a git + DVC repository of its own."""
        return self.state_dir / "datasets"

    @property
    def bundles_dir(self) -> Path:
        """Local cache of policy bundles by hash, filled from the registry's artefacts."""
        return self.state_dir / "bundles"

    def rollout_dir(self, surface: str) -> Path:
        """The controller's own files (history, checkpoints)."""
        return self.state_dir / "rollout" / surface
