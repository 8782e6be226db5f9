#!/bin/sh
# The Debian package, in build/deb. Needs: apt-get install build-essential debhelper dh-python python3-all python3-setuptools
set -eu
cd "$(dirname "$0")/.."

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' kcptun_lite/__init__.py)
tree=build/deb/kcptun-lite-$version
rm -rf build/deb
mkdir -p "$tree"
cp -a kcptun_lite setup.py pyproject.toml README.md LICENSE tools "$tree"
find "$tree" -name __pycache__ -prune -exec rm -rf {} +
rm -rf "$tree"/kcptun_lite.egg-info
mv "$tree/tools/packaging/debian" "$tree/debian"

# One entry: what has changed is told in CHANGELOG.md.
cat >"$tree/debian/changelog" <<ENTRY
kcptun-lite ($version) unstable; urgency=medium

  * Version $version.

 -- $(sed -n 's/^Maintainer: //p' "$tree/debian/control")  $(LC_ALL=C date -R -d "@${SOURCE_DATE_EPOCH:-$(stat -c %Y CHANGELOG.md)}")
ENTRY

cd "$tree"
dpkg-buildpackage --build=binary --no-sign "$@"
