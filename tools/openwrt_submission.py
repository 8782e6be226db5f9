"""The packages of openwrt/ as openwrt/packages takes them: of a release, in that repository's layout.

In      the source distribution of the release, who answers for the packages there, the project's page
Out     net/kcptun-lite, utils/... and lang/python/python-... below a directory
Knows   what differs between this feed's Makefiles and that repository's. Not: what they declare

    python setup.py sdist
    python tools/openwrt_submission.py dist/kcptun_lite-*.tar.gz ../packages --maintainer 'Name <address>' --url ...
"""

import argparse
import hashlib
import re
import shutil
from pathlib import Path

FEED = Path(__file__).resolve().parent.parent / "openwrt"
PLACES = {
    "kcptun-lite": "net",
    "prometheus-node-exporter-lua-kcptun-lite": "utils",
    "python-configargparse": "lang/python",
    "python-cramjam": "lang/python",
}


def submit(release: Path, tree: Path, maintainer: str, url: str) -> None:
    for folder, place in PLACES.items():
        target = tree / place / folder
        shutil.copytree(FEED / folder, target, dirs_exist_ok=True)
        makefile = target / "Makefile"
        text = makefile.read_text()
        if folder == "kcptun-lite":
            text = _of_release(text, release)
        text = re.sub(r"^PKG_MAINTAINER:=.*$", lambda _: f"PKG_MAINTAINER:={maintainer}", text, flags=re.M)
        text = text.replace("https://example.org/kcptun-lite", url)
        # There is no older branch to build for, and the shared files are near.
        text = re.sub(
            r"^#.*\n^PKG_BUILD_DEPENDS:=.*(python-setuptools/host)\)$", r"PKG_BUILD_DEPENDS:=\1", text, flags=re.M
        )
        near = ".." if place == "lang/python" else "../../lang/python"
        makefile.write_text(text.replace("$(TOPDIR)/feeds/packages/lang/python", near))


def _of_release(text: str, release: Path) -> str:
    """A tarball in place of the tree around the feed."""
    name = f"PYPI_NAME:=kcptun-lite\nPYPI_SOURCE_NAME:={release.name.partition('-')[0]}\n"
    digest = hashlib.sha256(release.read_bytes()).hexdigest()
    text = text.replace("\nPKG_LICENSE:=", f"\n{name}PKG_HASH:={digest}\n\nPKG_LICENSE:=", 1)
    text = re.sub(r"^# This feed lies.*?^endef\n\n", "", text, flags=re.M | re.S)
    return re.sub(r"^PKG_BUILD_DIR:=.*\n", "include ../../lang/python/pypi.mk", text, flags=re.M)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the packages as openwrt/packages takes them.")
    parser.add_argument("release", type=Path, help="the source distribution, kcptun_lite-X.Y.Z.tar.gz")
    parser.add_argument("tree", type=Path, help="a checkout of openwrt/packages")
    parser.add_argument("--maintainer", required=True, help="Name <address>")
    parser.add_argument("--url", required=True, help="the project's page")
    options = parser.parse_args()
    submit(options.release, options.tree, options.maintainer, options.url)


if __name__ == "__main__":
    main()
