"""The environment of the platform's processes: supervisord gets it, every program inherits it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from mtf.platform.state import MARKER, Platform, Secrets, password_file
from mtf.settings import ROOT, Settings

# a run's own tokens outlive its longest task: the LocalExecutor does not renew them
TOKEN_SECONDS = 6 * 3600


def environment(settings: Settings, platform: Platform, secrets: Secrets) -> dict[str, str]:
    """The calling process's environment plus what the programs need."""
    return os.environ | _mtf(settings, secrets) | _airflow(settings, platform, secrets) | _mlflow(settings, platform, secrets)


def _mtf(settings: Settings, secrets: Secrets) -> dict[str, str]:
    threads = str(settings.threads)
    return {
        MARKER: secrets.state_id,
        # process titles must not overwrite the environment block, where the marker is looked for
        "SPT_NOENV": "1",
        "MTF_STATE_DIR": str(settings.state_dir),
        "MTF_SURFACES": json.dumps(settings.surfaces),
        "MTF_CLOCK": settings.clock,
        "MTF_EXPECTATIONS_DIR": str(settings.expectations_dir),
        "MTF_THREADS": threads,
        # many processes share the machine, and BLAS threads that spin take it from the others
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        # every task is a new process: without compiled files each one spends 10 to 20 s on compiling what it imports
        "PYTHONDONTWRITEBYTECODE": "",
        # loopback never goes through a proxy
        "no_proxy": "*",
        "NO_PROXY": "*",
    }


def _airflow(settings: Settings, platform: Platform, secrets: Secrets) -> dict[str, str]:
    home = settings.state_dir / "airflow"
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{platform.airflow_url}/execution/",
        "AIRFLOW__CORE__FERNET_KEY": secrets.airflow_fernet,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(password_file(settings)),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__API__BASE_URL": platform.airflow_url,
        "AIRFLOW__API__SECRET_KEY": secrets.airflow_jwt,
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.airflow_jwt,
        "AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME": str(TOKEN_SECONDS),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        # state changes are seen at once (defaults: up to 5 s late each)
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
        # a task whose machine went away is retried after a minute, not five
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def _mlflow(settings: Settings, platform: Platform, secrets: Secrets) -> dict[str, str]:
    s3 = {
        "AWS_ACCESS_KEY_ID": secrets.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": secrets.s3_secret_key,
        "AWS_DEFAULT_REGION": settings.s3_region,
        "MLFLOW_S3_ENDPOINT_URL": platform.s3_endpoint or "",
    }
    return {
        "MLFLOW_TRACKING_URI": platform.mlflow_url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # no model gateway jobs: eight processes of 240 MB
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    } | (s3 if platform.s3_endpoint else {})
