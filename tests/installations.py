"""Two installations of dspool side by side, as an operator has them: each an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import dspool
import dspool_console
import dspool_serve


class Installed:
    """An environment with a copy of the product, as `version`; all else is that of this process's environment."""

    def __init__(self, directory: Path, version: str = dspool.__version__) -> None:
        self.version = version
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
        self.python = directory / "bin" / "python"
        library = directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages, product = library / "site-packages", directory / "product"
        for package in (dspool, dspool_serve, dspool_console):
            assert package.__file__ is not None
            source = Path(package.__file__).parent
            shutil.copytree(source, product / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        release = product / "dspool" / "release.py"
        said, text = f'"{dspool.__version__}"', release.read_text()
        assert said in text
        release.write_text(text.replace(said, f'"{version}"'))
        about = product / f"dspool-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dspool\nVersion: {version}\n")
        (packages / "product.pth").write_text(f"{product}\n{sysconfig.get_paths()['purelib']}\n")
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
        }

    def dspool(self, *words: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), "-m", "dspool.cli", *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self.environ,
        )


__all__ = ["Installed"]
